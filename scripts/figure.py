"""The same as `revhrnet figure`: see revhrnet_hf/commands/figure.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.figure import main

if __name__ == "__main__":
    run(main)
