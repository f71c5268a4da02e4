"""Turn a checkpoint of the official HRNet for segmentation into a folder that Transformers loads.

    revhrnet convert hrnet_w48_cityscapes_cls19_1024x2048.pth hrnet_w48_cityscapes
    revhrnet convert hrnet_w48_ocr_branch.pth OUT --align_corners

Converts checkpoints of the model seg_hrnet of HRNet/HRNet-Semantic-Segmentation: of branch pytorch-v1.1, and with --align_corners
of branch HRNet-OCR. Width, depth and number of classes are read off the tensors. Nothing is written unless every tensor fits.
Prints the names of tensors that differ, official → ours.
"""

import argparse
from itertools import groupby
from pathlib import Path

from ..cli import ArgumentParser, run
from ..io import refuse_used_folder


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("official", metavar="OFFICIAL", type=Path, help=".pth file of the official training or model zoo")
    parser.add_argument("output_dir", metavar="OUT", type=Path, help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--align_corners",
        action="store_true",
        help="the checkpoint is of branch HRNet-OCR, which upsamples with aligned corners (the file does not record it)",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    # After parsing, so that --help answers at once.
    from .. import RevHRNetImageProcessor
    from ..export.conversion import convert_official, read_official
    from ..hub.model_card import write_model_card

    refuse_used_folder(args.output_dir)
    model, names = convert_official(read_official(args.official), args.align_corners)
    model.save_pretrained(args.output_dir)
    RevHRNetImageProcessor().save_pretrained(args.output_dir)
    write_model_card(args.output_dir)
    for (theirs, ours), keys in groupby(names.items(), key=name_parts):
        print(f"{theirs}* → {ours}*  ({len(list(keys))} tensors)")
    config = model.config
    print(f"streams {list(config.stream_channels)}, modules {list(config.num_modules)}, {config.num_labels} classes")
    print(f"written: {args.output_dir}")


def name_parts(names: tuple[str, str]) -> tuple[str, str]:
    """The first part of an official name, and the part of our name in its place."""
    official, ours = names
    first = official.split(".")[0]
    rest = official.removeprefix(first)
    return first, ours.removesuffix(rest)


if __name__ == "__main__":
    run(main)
