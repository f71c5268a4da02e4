"""The same as `revhrnet convert`: see revhrnet_hf/commands/convert.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.convert import main

if __name__ == "__main__":
    run(main)
