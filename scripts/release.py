"""The same as `revhrnet release`: see revhrnet_hf/commands/release.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.release import main

if __name__ == "__main__":
    run(main)
