"""Check a dataset on disk before a long training: every file is decoded, and every problem is listed.

    revhrnet audit camvid DIR
    revhrnet audit folder DIR --split train --label_space labels.yaml --json audit.json
    revhrnet audit hub DIR --label_column mask --label_space labels.yaml

Prints the number of images in each split (and the publisher's number), their sizes, each class's share of the pixels, and a table
of findings: files without a partner, unreadable files, sizes that differ, ids outside the table, classes of your own without a
pixel in the training split, ids that your label table ignores and that cover much of a split. The exit status is 1 if there are
findings; notes, which may be harmless, do not count.
"""

import argparse
import sys
from pathlib import Path

from ..cli import ArgumentParser, add_column_arguments, run
from ..defaults import MOST_IGNORED, MOST_WORKERS
from ..errors import RecipeError
from ..io import write_json


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="dataset by name, such as camvid; folder, for images of your own; hub")
    parser.add_argument("data_dir", metavar="DIR", help="folder as its publisher ships it; for hub, also its name on the Hub")
    parser.add_argument(
        "--loader", help="how to read it, where NAME is a name of your own: folder, or a published dataset's name"
    )
    parser.add_argument("--split", nargs="+", default=(), help="parts of the dataset (default: all that are there)")
    add_column_arguments(parser)
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    parser.add_argument(
        "--max_ignored",
        type=float,
        default=MOST_IGNORED,
        metavar="PERCENT",
        help="share of a split's pixels that an id which your label table ignores may cover (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything as JSON")
    parser.add_argument(
        "--num_workers", type=int, help=f"processes that decode; 0: none (default: half the cores, at most {MOST_WORKERS})"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.num_workers is not None and args.num_workers < 0:
        raise RecipeError(f"--num_workers {args.num_workers}: give 0 or more")
    if args.json and not args.json.parent.is_dir():
        raise RecipeError(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    if not 0 <= args.max_ignored <= 100:
        raise RecipeError(f"--max_ignored {args.max_ignored}: give a percentage from 0 to 100")
    from ..data.audit import audit_dataset  # after parsing, so that --help answers at once

    audit = audit_dataset(
        args.name,
        args.data_dir,
        args.split,
        args.label_space,
        args.num_workers,
        args.loader,
        args.max_ignored,
        args.image_column,
        args.label_column,
    )
    print(audit)
    if args.json:
        write_json(args.json, audit.to_dict())
        print(f"written: {args.json}")
    sys.exit(1 if audit.findings else 0)


if __name__ == "__main__":
    run(main)
