"""Write the assets of a release of a checkpoint: one folder of files for others to download.

    revhrnet release runs/camvid --output_dir release --calibration CamVid/train
    cd release && sha256sum -c SHA256SUMS
    gh release create v1 release/*                    # or attach the files by hand

The folder holds the weights in 16 bits (safetensors), image processor, configuration, code and card, with which it loads like any
checkpoint; the network as ONNX in 32 and in eight bits; and SHA256SUMS. It is written only if the checkpoint loads in a fresh
process without this package, no file holds a token or a path of this machine, and the networks agree with the checkpoint on
drawn images. Needs the extra `export`: pip install "revhrnet_hf[export]"
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, add_trust_argument, run
from ..defaults import CALIBRATION_IMAGES
from ..errors import RecipeError
from . import check_image_size, check_installed


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a run's output folder (its best is used)"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help="for eight bits: images like those that the network will see, or folders of them, such as the training images; "
        f"{CALIBRATION_IMAGES} are used (default: the checkpoint's own folder of examples)",
    )
    parser.add_argument("--without_int8", action="store_true", help="leave the network of eight bits out; needs no images")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image that the ONNX networks take, for networks on plain vision transformers (default: any)",
    )
    add_trust_argument(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_image_size(args.size)
    if args.without_int8 and args.calibration:
        raise RecipeError("--calibration is for the network of eight bits, which --without_int8 leaves out: give one of them")
    check_installed("a release needs", "export", "onnx", "onnxruntime", "onnxscript")
    # After parsing, so that --help answers at once.
    from ..evaluation import find_checkpoint
    from ..export.release import write_release
    from ..hub.examples import own_examples
    from ..images import find_images, read_image

    checkpoint = Path(find_checkpoint(args.checkpoint))
    if not (checkpoint / "config.json").is_file():
        raise RecipeError(f"{checkpoint} is no checkpoint's folder: it holds no config.json")
    images = [] if args.without_int8 else find_images(args.calibration or []) or own_examples(checkpoint)
    if not images and not args.without_int8:
        raise RecipeError(
            "the network of eight bits is calibrated with images like those that it will see: give --calibration IMAGES, such "
            "as the training images, or --without_int8"
        )
    for path in images:
        read_image(path)
    write_release(checkpoint, args.output_dir, images, args.size and tuple(args.size), args.trust_remote_code)
    for path in sorted(args.output_dir.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
