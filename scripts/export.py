"""The same as `revhrnet export`: see revhrnet_hf/commands/export.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.export import main

if __name__ == "__main__":
    run(main)
