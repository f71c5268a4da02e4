"""Look at a folder of images and masks, and write what is missing to train on it: label table, split, recipe, contact sheet.

    revhrnet new photos
    revhrnet new photos --output_dir mine --val_fraction 0.1 --seed 7
    revhrnet train --recipe photos_recipe/mine.yaml --data_dir photos --output_dir runs/mine

Masks may hold ids, palettes, colours, or 0 and 255, or be labelme's JSON files; images and masks may lie in any two folders, or
beside each other with a suffix (x.jpg, x_mask.png) or a prefix (img01.jpg, mask01.png), with or without splits: exports of CVAT
and Roboflow, VOC's layout, Kaggle's. Names of classes are read from labelmap.txt, classes.txt, _classes.csv or class_dict.csv
where one is there. Nothing in the folder is changed. Files that exist in the output folder are kept and used: give the classes
their names in labels.yaml, delete masks.png, and call the command again for a new sheet.
"""

import argparse
import shlex
from pathlib import Path

from ..cli import ArgumentParser, run
from ..defaults import VAL_FRACTION
from ..errors import RecipeError
from . import name_of


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of images and masks, or a zip or tar file of them")
    parser.add_argument("--output_dir", type=Path, help="where the files go (default: FOLDER_recipe, beside FOLDER)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        metavar="SHARE",
        help=f"share of the images to hold out for scoring, where there is no such split (default: {VAL_FRACTION})",
    )
    parser.add_argument("--seed", type=int, help="chooses these images, with their names (default: 0)")
    parser.add_argument("--images", type=int, default=12, metavar="N", help="images on the contact sheet (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise RecipeError(f"--val_fraction {args.val_fraction}: give a share between 0 and 1")
    if args.images < 1:
        raise RecipeError(f"--images {args.images}: give 1 or more")
    output_dir = args.output_dir or beside(args.folder)
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"--output_dir {output_dir} is a file: name a folder")
    from ._new import RECIPE, SHEET, Division, Start  # after parsing, so that --help answers at once

    start = Start(args.folder, output_dir)
    start.write_table(Division(args.val_fraction, args.seed))
    start.check_samples()
    start.write_recipe()
    start.write_sheet(args.images)
    print(f"\nLook at {output_dir / SHEET}: do the colours lie on the right things?")
    print(f"Then give the classes in {start.table} their names, and train:\n")
    for line in next_commands(args.folder, output_dir / RECIPE, start.table, start.eval_split):
        print(f"    {line}")


def beside(folder: Path) -> Path:
    """The output folder beside a data folder, relative to the working directory where that is above it."""
    output_dir = folder.absolute().parent / f"{name_of(folder)}_recipe"
    return output_dir.relative_to(Path.cwd()) if output_dir.is_relative_to(Path.cwd()) else output_dir


def next_commands(folder: Path, recipe: Path, table: str, eval_split: str) -> list[str]:
    data, space = shlex.quote(str(folder)), shlex.quote(table)
    return [
        f"revhrnet audit folder {data} --label_space {space}",
        f"revhrnet train --recipe {shlex.quote(str(recipe))} --data_dir {data} --output_dir runs/mine",
        f"revhrnet evaluate runs/mine/best --dataset folder --data_dir {data} --label_space {space} --split {eval_split}",
        "revhrnet predict runs/mine/best IMAGE.jpg",
    ]


if __name__ == "__main__":
    run(main)
