"""The same as `revhrnet push`: see revhrnet_hf/commands/push.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.push import main

if __name__ == "__main__":
    run(main)
