"""The same as `revhrnet train`: see revhrnet_hf/commands/train.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.train import main

if __name__ == "__main__":
    run(main)
