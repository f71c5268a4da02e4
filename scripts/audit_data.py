"""The same as `revhrnet audit`: see revhrnet_hf/commands/audit.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.audit import main

if __name__ == "__main__":
    run(main)
