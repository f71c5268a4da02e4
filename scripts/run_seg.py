"""Train a network by a recipe.

    accelerate launch scripts/run_seg.py --recipe scripts/recipes/camvid.yaml --data_dir DIR --output_dir OUT

On two CPU cores in some minutes, on the small scenes that scripts/quickstart.sh has drawn:

    python scripts/run_seg.py --recipe scripts/recipes/camvid_mini.yaml --data_dir quickstart/camvid_mini --output_dir OUT

Any field of the recipe can be overridden: --epochs 5 --crop_size 360 480. OUT/best and OUT/last load with the Auto classes.
"""

import argparse
from dataclasses import asdict, dataclass, field

from transformers import HfArgumentParser

from revhrnet_hf.cli import run
from revhrnet_hf.training.recipe import Recipe


@dataclass
class RunArguments:
    recipe: str = field(metadata={"help": "YAML file with the fields below that differ from their defaults"})
    data_dir: str = field(metadata={"help": "Folder of the data set, as its owner ships it"})
    output_dir: str = field(metadata={"help": "Folder for checkpoints (best/, last/), log.jsonl and the trackers' files"})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir after its last checkpoint"})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in output_dir and start anew"})


def parse_command_line() -> tuple[RunArguments, Recipe]:
    """The run's arguments, and the recipe: the file's fields over the defaults, the command line's over both."""
    only_recipe = argparse.ArgumentParser(add_help=False)
    only_recipe.add_argument("--recipe")
    path = only_recipe.parse_known_args()[0].recipe
    parser = HfArgumentParser([RunArguments, Recipe], description=__doc__.splitlines()[0], allow_abbrev=False)
    if path is not None:
        parser.set_defaults(**asdict(Recipe.from_yaml(path)))
    run_arguments, recipe = parser.parse_args_into_dataclasses()
    return run_arguments, recipe


def main():
    run_arguments, recipe = parse_command_line()
    from revhrnet_hf.training.stage import Stage  # after parsing, so that --help answers at once

    Stage(recipe, run_arguments.data_dir, run_arguments.output_dir, run_arguments.resume, run_arguments.overwrite).run()


if __name__ == "__main__":
    run(main)
