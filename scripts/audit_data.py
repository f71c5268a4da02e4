"""Check a data set on disk before a long training: every file is decoded, and everything that is wrong is listed.

    python scripts/audit_data.py camvid DIR
    python scripts/audit_data.py folder DIR --split train --label_space labels.yaml --json audit.json

Prints the pictures of each split (and how many its owner published), their sizes, each class's share of the pixels, and a table
of findings: files without partner, unreadable ones, sizes that differ, ids outside the table. Exit status 1 if there is any.
"""

import argparse
import sys
from pathlib import Path

from revhrnet_hf.cli import run
from revhrnet_hf.data.audit import audit_dataset
from revhrnet_hf.data.loader import MOST_WORKERS
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="data set by name, such as camvid; folder, for pictures of your own")
    parser.add_argument("data_dir", metavar="DIR", type=Path, help="its folder, as its owner ships it")
    parser.add_argument("--split", nargs="+", default=(), help="parts of the data set (default: all that are there)")
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the data set's usual ones)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all of it as JSON, too")
    parser.add_argument(
        "--num_workers", type=int, help=f"processes that decode; 0: none (default: half the cores, at most {MOST_WORKERS})"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.num_workers is not None and args.num_workers < 0:
        raise RecipeError(f"--num_workers {args.num_workers}: give 0 or more")
    if args.json and not args.json.parent.is_dir():
        raise RecipeError(f"--json {args.json}: there is no folder {args.json.parent}; make it first")
    audit = audit_dataset(args.name, args.data_dir, args.split, args.label_space, args.num_workers)
    print(audit)
    if args.json:
        write_json(args.json, audit.to_dict())
        print(f"written: {args.json}")
    sys.exit(1 if audit.findings else 0)


if __name__ == "__main__":
    run(main)
