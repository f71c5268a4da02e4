"""Write a checkpoint in a form that needs neither this package nor Transformers: ONNX, OpenVINO, or a torch.export program.

    revhrnet export CHECKPOINT --format onnx --dynamic --output_dir exported
    revhrnet export CHECKPOINT --format torch_export --size 540 720 --output_dir exported
    revhrnet export CHECKPOINT --format onnx --dynamic --quantize int8 --calibration CamVid/train \\
        --dataset camvid --data_dir CamVid --output_dir exported
    revhrnet export CHECKPOINT --format openvino --dynamic --quantize int8 \\
        --dataset camvid --data_dir CamVid --output_dir exported

The folder holds model.onnx, model.xml and model.bin (OpenVINO), or model.pt2, with --quantize int8 also model_int8.onnx or
model_int8.xml and .bin, and model.json, which describes inputs and outputs to other programs. Nothing is written unless the
exported network agrees with the checkpoint on drawn images. ONNX needs the extra `export`, and OpenVINO the extra `openvino`:
pip install "revhrnet_hf[export,openvino]"

Eight bits in ONNX are calibrated with --calibration. In OpenVINO they are calibrated with labelled images of --dataset, and what
costs them more mIoU than --max_drop stays in 32 bits.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, add_column_arguments, add_trust_argument, run
from ..defaults import CALIBRATION_IMAGES, MAX_DROP
from ..errors import RecipeError
from ..io import refuse_used_folder
from . import check_image_size, check_installed


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    parser.add_argument("--format", choices=("onnx", "openvino", "torch_export"), required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not exist, or be empty")
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--dynamic", action="store_true", help="take any number of images of any size")
    sizes.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="take one image of this size, in pixels")
    parser.add_argument("--opset", type=int, help="version of ONNX's operators (default: the one that PyTorch chooses)")
    parser.add_argument(
        "--with_argmax",
        action="store_true",
        help="give label maps at the input's size instead of logits: uint8, or uint16 above 256 classes",
    )
    parser.add_argument("--quantize", choices=("int8",), help="write a network of eight bits as well")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help=f"for int8 in ONNX: images like those that the network will see, or folders of them; {CALIBRATION_IMAGES} are used",
    )
    parser.add_argument(
        "--calibration_split",
        metavar="SPLIT",
        help=f"for int8 in OpenVINO: part of the dataset to calibrate with, and to control the mIoU on; {CALIBRATION_IMAGES} "
        "images are used (default: train)",
    )
    parser.add_argument(
        "--max_drop",
        type=float,
        metavar="X",
        help=f"for int8 in OpenVINO: the most by which the mIoU of these images may fall (default: {MAX_DROP})",
    )
    parser.add_argument("--dataset", help="for int8: compare the mIoU of both networks on this dataset")
    parser.add_argument("--loader", help="how to read it, where --dataset is a name of your own: folder, hub, camvid …")
    parser.add_argument("--data_dir", type=Path, help="the dataset's folder")
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    parser.add_argument("--split", help="part of the dataset to compare them on (default: val)")
    add_column_arguments(parser)
    add_trust_argument(parser)
    return parser


OF_DATASET = ("data_dir", "loader", "split", "label_space", "image_column", "label_column")
"""Options that have no effect without --dataset."""


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_arguments(args)
    # After parsing, so that --help answers at once.
    from ..data import label_space_of, load_segmentation_dataset
    from ..evaluation import class_sources, load_checkpoint
    from ..export import Export, ScoredDataset
    from ..images import find_images, read_image

    images = find_images(args.calibration or [])
    for path in images:
        read_image(path)

    def labelled(split: str) -> ScoredDataset:
        rows = load_segmentation_dataset(
            args.dataset,
            args.data_dir,
            split,
            label_space=args.label_space,
            image_column=args.image_column,
            label_column=args.label_column,
            loader=args.loader,
        )
        return ScoredDataset(args.dataset, split, rows)

    scored = labelled(args.split or "val") if args.dataset else None
    control = labelled(args.calibration_split or "train") if args.dataset and args.format == "openvino" else None
    model, image_processor = load_checkpoint(args.checkpoint, trust_remote_code=args.trust_remote_code)
    if scored:
        class_sources(model.config, label_space_of(scored.rows), args.dataset)  # an error now, not after minutes
    export = Export(
        model,
        image_processor,
        args.format,
        size=tuple(args.size) if args.size else None,
        opset=args.opset,
        with_argmax=args.with_argmax,
        calibration=images,
        control=control,
        max_drop=MAX_DROP if args.max_drop is None else args.max_drop,
        scored=scored,
    )
    export.write(args.output_dir)
    for path in sorted(args.output_dir.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an error for options that do not fit together, before anything is loaded."""
    refuse_used_folder(args.output_dir)
    if args.opset and args.format != "onnx":
        raise RecipeError("--opset needs --format onnx")
    check_int8_arguments(args)
    check_image_size(args.size)
    if args.format == "onnx":
        check_installed("--format onnx needs", "export", "onnx", "onnxruntime", "onnxscript")
    if args.format == "openvino":
        check_installed("--format openvino needs", "openvino", "openvino", *(["nncf"] if args.quantize else []))


def check_int8_arguments(args: argparse.Namespace) -> None:
    """Raise an error for options of --quantize that do not fit together."""
    if args.quantize and args.format == "torch_export":
        raise RecipeError("--quantize needs --format onnx or openvino")
    if not args.quantize and (args.calibration or args.dataset):
        raise RecipeError("--calibration and --dataset need --quantize int8")
    alone = [f"--{name}" for name in OF_DATASET if getattr(args, name) is not None]
    if alone and not args.dataset:
        raise RecipeError(f"{', '.join(alone)}: for the label maps of --dataset, which is not given")
    if args.quantize and args.format == "onnx" and not args.calibration:
        raise RecipeError("--quantize int8 needs --calibration IMAGES, such as the training images")
    if args.quantize and args.format == "openvino" and (args.calibration or not args.dataset):
        raise RecipeError(
            "--quantize int8 with --format openvino takes labelled images: give --dataset and --data_dir (and "
            "--calibration_split), not --calibration"
        )
    if not (args.quantize and args.format == "openvino"):
        for name in ("calibration_split", "max_drop"):
            if getattr(args, name) is not None:
                raise RecipeError(f"--{name} needs --format openvino --quantize int8")
    if args.max_drop is not None and not 0 <= args.max_drop <= 1:
        raise RecipeError(f"--max_drop {args.max_drop}: give a difference of mIoU, from 0 to 1")
    if args.dataset and (args.with_argmax or not args.data_dir):
        raise RecipeError("--dataset needs --data_dir, and logits: leave --with_argmax out")


if __name__ == "__main__":
    run(main)
