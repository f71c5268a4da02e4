"""Train a network by a recipe, or several stages after each other by a chain's recipe.

    revhrnet train --recipe camvid --data_dir DIR --output_dir OUT --dry_run
    revhrnet train --recipe camvid --data_dir DIR --output_dir OUT
    accelerate launch -m revhrnet_hf.commands.train --recipe mapillary_to_cityscapes \\
        --data_dir mapillary_vistas=DIR cityscapes=DIR --output_dir OUT

On two CPU cores in some minutes, on the small scenes that `revhrnet quickstart` has drawn:

    revhrnet train --recipe mapillary_to_cityscapes_mini \\
        --data_dir mapillary_vistas=quickstart/mapillary_vistas cityscapes=quickstart/cityscapes --output_dir OUT

`--crops 16` draws crops as the recipe augments them, to be looked at before a training; `--dry_run` says how long a chain will
take. SIGINT (Ctrl-C) and SIGTERM save and stop; `--resume` resumes.
Any field of the recipe can be overridden, for all stages alike: --epochs 5 --crop_size 360 480. OUT/best and OUT/last load with
the Auto classes; a chain's earlier stages are in OUT/1_DATASET and so on.
"""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..cli import ArgumentParser, run
from ..errors import RecipeError
from ..training.recipe import GROUPS, Recipe, read_chain
from ._options import GroupedHelp, add_fields


@dataclass
class RunArguments:
    """The options that are not fields of the recipe."""

    recipe: str = field(
        metadata={
            "help": "Recipe by name, such as camvid, or a YAML file with the fields below that differ from their defaults",
            "metavar": "RECIPE",
        }
    )
    data_dir: list[str] = field(
        metadata={
            "help": "Folder of the dataset, as its publisher ships it; for several datasets NAME=DIR NAME=DIR …",
            "metavar": "DIR",
        }
    )
    output_dir: str = field(
        metadata={"help": "Folder for checkpoints (best/, last/), log.jsonl and the trackers' files", "metavar": "OUT"}
    )
    resume: bool = field(default=False, metadata={"help": "Resume the run in output_dir after its last checkpoint, on its data"})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in output_dir and start anew"})
    dry_run: bool = field(
        default=False,
        metadata={"help": "Build and try all stages, print the time and room that the run will take, and write nothing"},
    )
    bank_dir: str | None = field(
        default=None,
        metadata={
            "help": "With feature_bank: folder of the bank, such as one on a fast disk; runs whose maps are the same can share "
            "it; of a chain the folder of its stages' banks (not given: OUT/feature_bank)",
            "metavar": "DIR",
        },
    )
    crops: int | None = field(
        default=None,
        metadata={
            "help": "Draw the first so many augmented crops of each stage with their label maps to OUTPUT_DIR_crops.png (of the "
            "earlier stages of a chain: OUTPUT_DIR_1_DATASET_crops.png and so on), and train nothing"
        },
    )
    timeout_minutes: float = field(
        default=30, metadata={"help": "End the run if a loader's worker or another process has not answered for so long"}
    )

    def __post_init__(self):
        if not 0 < self.timeout_minutes < float("inf"):
            raise RecipeError(f"--timeout_minutes must be a positive number, got {self.timeout_minutes}")
        if self.crops is not None and self.crops < 1:
            raise RecipeError(f"--crops must be 1 or more, got {self.crops}")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        usage="%(prog)s --recipe RECIPE --data_dir DIR --output_dir OUT [--FIELD VALUE …]",
        description=__doc__,
        formatter_class=GroupedHelp,
        allow_abbrev=False,
    )
    add_fields(parser, RunArguments, {"this run": "recipe"})
    add_fields(parser, Recipe, {f"recipe: {title}": first for title, first in GROUPS.items()})
    return parser


def parse_command_line(arguments: list[str] | None = None) -> tuple[RunArguments, list[Recipe]]:
    """The run's arguments, and each stage's recipe: the file's fields override the defaults, the command line's override both."""
    parser = build_parser()
    # argparse sets no default for an attribute that is there already. So we know which fields were given, and the file is checked
    # with these alone.
    not_given = object()
    namespace = argparse.Namespace(**dict.fromkeys((setting.name for setting in fields(Recipe)), not_given))
    parsed, rest = parser.parse_known_args(arguments, namespace=namespace)
    if rest:
        parser.error(f"not understood: {' '.join(rest)}")
    given = {name: value for name, value in vars(parsed).items() if value is not not_given}
    run_arguments = RunArguments(**{setting.name: given.pop(setting.name) for setting in fields(RunArguments)})
    return run_arguments, read_chain(run_arguments.recipe, given)


def _draw_crops(recipes: list[Recipe], data_dirs: dict[str, Path], output_dir: Path, number: int) -> None:
    """Draws a sheet for each stage, beside the output folder: the folder itself is the run's."""
    from ..images import save_image
    from ..training.crops import draw_crops

    for position, recipe in enumerate(recipes, 1):
        stage = "" if position == len(recipes) else f"_{position}_{recipe.dataset}"
        file = output_dir.absolute().with_name(f"{output_dir.absolute().name}{stage}_crops.png")
        sheet = draw_crops(recipe, data_dirs, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(sheet, file)
        print(f"written: {file}")


def main(arguments: list[str] | None = None) -> None:
    """Train, or rehearse with `--dry_run`, as the command line (`sys.argv` if None) says."""
    args, recipes = parse_command_line(arguments)
    # After parsing, so that --help answers at once.
    from accelerate import PartialState

    from ..hub.push import check_ready, push_checkpoint
    from ..training.chain import data_dirs_by_name, run_chain
    from ..training.dry_run import dry_run
    from ..training.output_dir import BEST

    data_dirs, result = data_dirs_by_name(args.data_dir, recipes), recipes[-1]
    if args.crops is not None:
        if PartialState().is_main_process:
            _draw_crops(recipes, data_dirs, Path(args.output_dir), args.crops)
        return
    if result.push_to_hub:
        check_ready(result.hub_model_id)  # not after days of training
    train = dry_run if args.dry_run else run_chain
    train(recipes, data_dirs, args.output_dir, args.resume, args.overwrite, 60 * args.timeout_minutes, args.bank_dir)
    if result.push_to_hub and not args.dry_run and PartialState().is_main_process:
        push_checkpoint(Path(args.output_dir) / BEST, result.hub_model_id, private=result.hub_private_repo)


if __name__ == "__main__":
    run(main)
