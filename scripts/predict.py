"""The same as `revhrnet predict`: see revhrnet_hf/commands/predict.py."""

from revhrnet_hf.cli import run
from revhrnet_hf.commands.predict import main

if __name__ == "__main__":
    run(main)
