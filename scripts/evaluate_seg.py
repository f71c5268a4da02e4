"""The same as `revhrnet evaluate`: see revhrnet_hf/commands/evaluate.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.evaluate import main

if __name__ == "__main__":
    run(main)
