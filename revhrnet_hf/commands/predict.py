"""Segment images and videos with a trained checkpoint.

    revhrnet predict CHECKPOINT IMAGES… --output_dir predictions
    revhrnet predict runs/mine photos/ --recursive
    revhrnet predict runs/mine "photos/**/*.jpg" https://example.org/street.jpg clip.mp4

CHECKPOINT may be the output folder of a run, whose `best` is then used, or any model that Transformers loads with
AutoModelForSemanticSegmentation. IMAGES are files, folders, patterns and addresses (http, https).

For each image NAME.jpg two files are written: NAME_labels.png, a palette PNG of the image's size whose pixel
values are the class ids, and NAME_overlay.png, the image with the classes' colours laid over it and a legend. With --confidence
there is NAME_confidence.png too, a grey PNG whose values are the probability of each pixel's class: 255 (or, with 16 bits, 65535)
is 100 %. It is computed at the checkpoint's temperature (`revhrnet evaluate --calibration --save_temperature`). Results of
images in sub-folders are in sub-folders of the same names.

For a video clip.mp4 the overlay is clip_overlay.mp4, with the frames' times and without sound, and the legend is clip_legend.png.
With --frame_labels the label maps are clip_labels/000000.png … Videos need the extra `video`: pip install "revhrnet_hf[video]"

Files in folders that are no images are skipped, and so are videos there: name them, or give a pattern. If an image or a video
cannot be read, or segmented, a warning names it, the others are segmented, and the exit status is 1.
"""

import argparse
from pathlib import Path

from ..cli import (
    ArgumentParser,
    add_compile_argument,
    add_device_argument,
    add_inference_arguments,
    add_trust_argument,
    run,
)
from ..defaults import MAX_DOWNLOAD


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="images and videos: files, folders, patterns in quotes, addresses"
    )
    parser.add_argument("--recursive", action="store_true", help="search the sub-folders of folders too")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("predictions"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument(
        "--confidence",
        type=int,
        nargs="?",
        const=8,
        choices=(8, 16),
        metavar="BITS",
        help="also write a map of the confidence, as a grey PNG of 8 (without a number) or 16 bits",
    )
    parser.add_argument(
        "--opacity",
        type=share,
        default=0.5,
        help="opacity of the colours in the overlay, from 0 (image only) to 1 (colours only) (default: %(default)s)",
    )
    parser.add_argument(
        "--max_megapixels",
        type=above_zero,
        help="refuse images with more, because a small damaged file could fill the memory (default: 179)",
    )
    parser.add_argument(
        "--max_download",
        type=above_zero,
        default=MAX_DOWNLOAD,
        metavar="MB",
        help="refuse addresses with more megabytes (default: %(default)g)",
    )
    parser.add_argument("--frame_labels", action="store_true", help="of videos, also write the label map of each frame")
    add_inference_arguments(parser)
    add_trust_argument(parser)
    add_device_argument(parser)
    add_compile_argument(parser)
    return parser


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    from ._predict import predict_sources  # after parsing, so that --help answers at once

    predict_sources(args)


if __name__ == "__main__":
    run(main)
