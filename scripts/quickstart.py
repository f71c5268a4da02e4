"""The same as `revhrnet quickstart`: see revhrnet_hf/commands/quickstart.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.quickstart import main

if __name__ == "__main__":
    run(main)
