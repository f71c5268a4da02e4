"""The same as `revhrnet table`: see revhrnet_hf/commands/table.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.table import main

if __name__ == "__main__":
    run(main)
