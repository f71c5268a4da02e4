"""Label images with a checkpoint, to train on them: a dataset of label maps in which uncertain pixels are ignored.

    revhrnet pseudo_label CHECKPOINT IMAGES… --output_dir pseudo --min_confidence 0.9
    revhrnet pseudo_label CHECKPOINT IMAGES… --output_dir pseudo --class_share 0.5
    revhrnet pseudo_label CHECKPOINT IMAGES… --output_dir pseudo --class_confidence Pole=0.6 "traffic sign=0.7"

Written are train/images, train/labels and labels.yaml, which the loader `folder` reads; report.json with the coverage of each
class; and report.png, examples to look at. Images in which no pixel is sure enough are left out. To train on labelled images and
these together:

    revhrnet train --recipe camvid --data_dir camvid=DIR pseudo=pseudo --output_dir runs/both
        --more_datasets pseudo,loader=folder --dataset_shares 1 1

Confidences are those of the checkpoint's temperature: fit it first (revhrnet evaluate --calibration --save_temperature). An
interrupted run is resumed by the same command; the thresholds may be others. If an image cannot be read, a warning names it, the
others are labelled, and the exit status is 1. If the split's folder holds files that this command has not written, it names them
and does not start. docs/unlabelled_images.md goes through it.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, add_device_argument, add_inference_arguments, add_trust_argument, run
from ..defaults import MIN_CONFIDENCE
from ..errors import RecipeError


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, or folders of them")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the dataset that is made")
    parser.add_argument(
        "--min_confidence",
        type=probability,
        help=f"ignore pixels whose class is less probable (default: {MIN_CONFIDENCE}; with --class_share 0)",
    )
    parser.add_argument(
        "--class_confidence",
        type=class_confidence,
        nargs="+",
        default=[],
        metavar="CLASS=CONFIDENCE",
        help="the least confidence of single classes, instead of all other thresholds",
    )
    parser.add_argument(
        "--class_share",
        type=probability,
        metavar="SHARE",
        help="class-balanced: of the pixels predicted as each class keep this share, those of highest confidence (CBST, arXiv "
        "1810.07911), if they reach --min_confidence",
    )
    parser.add_argument("--split", default="train", help="name of the dataset's split (default: %(default)s)")
    parser.add_argument("--link", action="store_true", help="make symbolic links to the images instead of copies")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the pseudo-labels of an earlier run in --output_dir, or begin anew where an unfinished run has another "
        "checkpoint, other images or other options; else it is resumed",
    )
    add_inference_arguments(parser)
    add_trust_argument(parser)
    add_device_argument(parser)
    return parser


def probability(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and at most 1")
    return value


def class_confidence(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text} is not CLASS=CONFIDENCE, such as Pole=0.6")
    return name, probability(value)


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.split in ("", ".", "..") or "/" in args.split or args.split.startswith("."):
        raise RecipeError(f"--split {args.split}: give the name of a folder, such as train")
    from ._pseudo_label import label_images  # after parsing, so that --help answers at once

    label_images(args)


if __name__ == "__main__":
    run(main)
