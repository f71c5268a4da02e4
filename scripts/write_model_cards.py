"""The same as `revhrnet cards`: see revhrnet_hf/commands/cards.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.cards import main

if __name__ == "__main__":
    run(main)
