"""The same as `revhrnet demo`: see revhrnet_hf/commands/demo.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.demo import main

if __name__ == "__main__":
    run(main)
