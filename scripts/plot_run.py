"""The same as `revhrnet plot`: see revhrnet_hf/commands/plot.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.plot import main

if __name__ == "__main__":
    run(main)
