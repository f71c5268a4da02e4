"""Write a checkpoint in a form that needs neither this package nor Transformers: ONNX, or a torch.export program.

    python scripts/export.py CHECKPOINT --format onnx --dynamic --output_dir exported
    python scripts/export.py CHECKPOINT --format torch_export --size 540 720 --output_dir exported
    python scripts/export.py CHECKPOINT --format onnx --dynamic --quantize int8 --calibration CamVid/train \
        --dataset camvid --data_dir CamVid --output_dir exported

In the folder: model.onnx or model.pt2, with --quantize int8 model_int8.onnx, and model.json, which tells a program how images
go in and classes come out. Nothing is written unless the exported network agrees with the checkpoint on drawn images. Needs the
extra `export` for ONNX: pip install -c constraints.txt -e .[export]
"""

import argparse
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

from revhrnet_hf import export
from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.evaluation import class_sources, evaluate_dataset, load_checkpoint
from revhrnet_hf.images import find_images, read_image
from revhrnet_hf.io import write_folder, write_json
from revhrnet_hf.versions import versions


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a Hub name")
    parser.add_argument("--format", choices=("onnx", "torch_export"), required=True)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not exist, or be empty")
    sizes = parser.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--dynamic", action="store_true", help="take any number of images of any size")
    sizes.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="take one image of this size, in pixels")
    parser.add_argument("--opset", type=int, help="of ONNX (default: what PyTorch writes)")
    parser.add_argument("--with_argmax", action="store_true", help="give label maps at the input's size instead of logits")
    parser.add_argument("--quantize", choices=("int8",), help="write a network of eight bits as well")
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="IMAGES",
        help=f"for int8: images like those it will see, or folders; {export.CALIBRATION_IMAGES} are used",
    )
    parser.add_argument("--dataset", help="for int8: measure on this dataset what mIoU it costs")
    parser.add_argument("--loader", help="how to read it, where --dataset is a name of your own: folder, hub, camvid …")
    parser.add_argument("--data_dir", type=Path, help="the dataset's folder")
    parser.add_argument("--split", default="val", help="part of the dataset (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    args = parse_arguments(arguments)
    check_arguments(args)
    images = find_images(args.calibration or [])
    for path in images:
        read_image(path)
    dataset = load_segmentation_dataset(args.dataset, args.data_dir, args.split, loader=args.loader) if args.dataset else None
    model, image_processor = load_checkpoint(args.checkpoint)
    if dataset is not None:
        class_sources(model.config, label_space_of(dataset), args.dataset)
    write_folder(args.output_dir, lambda folder: fill(folder, args, model, image_processor, images, dataset))
    for path in sorted(args.output_dir.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def check_arguments(args) -> None:
    """What does not fit together is said before anything is loaded."""
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise CheckpointError(f"{args.output_dir} exists and is not an empty folder: give another one")
    if args.format == "torch_export" and (args.opset or args.quantize):
        raise RecipeError("--opset and --quantize are of --format onnx")
    if args.quantize and not args.calibration:
        raise RecipeError("--quantize int8 needs --calibration IMAGES, such as the training images")
    if not args.quantize and (args.calibration or args.dataset):
        raise RecipeError("--calibration and --dataset are of --quantize int8")
    if args.dataset and (args.with_argmax or not args.data_dir):
        raise RecipeError("--dataset needs --data_dir, and logits: leave --with_argmax out")
    if args.size and min(args.size) < 1:
        raise RecipeError(f"--size {args.size}: give pixels")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
    if args.format == "onnx" and missing:
        raise RecipeError(f"{', '.join(missing)} missing: pip install -c constraints.txt -e .[export]")


def fill(folder, args, model, image_processor, images, dataset) -> None:
    """Writes and checks everything that goes into the folder."""
    size = tuple(args.size) if args.size else None
    image_processor = export.for_size(image_processor, size)
    print("exporting (a minute or two)", flush=True)
    program = export.export_program(model, size, args.with_argmax)
    record = export.describe(model, image_processor, args.with_argmax)
    if args.format == "onnx":
        opset = export.write_onnx(program, folder / export.ONNX_FILE, args.opset)
        session = export.onnx_session(folder / export.ONNX_FILE)
        record |= {"format": "onnx", "opset": opset}
        exported = lambda pixel_values: export.run_onnx(session, pixel_values)  # noqa: E731
    else:
        torch.export.save(program, folder / export.PROGRAM_FILE)
        record |= {"format": "torch_export"}
        exported = torch.export.load(folder / export.PROGRAM_FILE).module()
    agreement = export.check_agreement(model, exported, export.drawn_batches(image_processor, size))
    print(f"agrees with the checkpoint on {agreement.images} drawn images: {report(agreement)}", flush=True)
    record |= {"sizes": size or "any", "agreement_with_the_checkpoint": asdict(agreement)}
    if args.quantize:
        batches = export.calibration_batches(image_processor, images)
        export.write_int8(folder / export.ONNX_FILE, folder / export.INT8_FILE, batches)
        record["int8"] = {"calibration_images": min(len(images), export.CALIBRATION_IMAGES)}
        if dataset is not None:
            record["int8"]["mean_iou"] = int8_scores(folder, args, model, image_processor, dataset)
    write_json(folder / export.DESCRIPTION_FILE, record | {"versions": versions()})


def report(agreement: export.Agreement) -> str:
    logits = "" if agreement.largest_difference is None else f"logits differ by {agreement.largest_difference:.1e} at most, "
    return f"{logits}{100 * agreement.equal_pixels:.3f} % of the pixels get the same class"


def int8_scores(folder, args, model, image_processor, dataset) -> dict:
    """mIoU on the dataset of the network in 32 bits and in eight."""
    label_space = label_space_of(dataset)
    sources = class_sources(model.config, label_space, args.dataset)
    scores = {"dataset": args.dataset, "split": args.split, "images": len(dataset)}
    for name, file in (("float32", export.ONNX_FILE), ("int8", export.INT8_FILE)):
        confusion = evaluate_dataset(
            export.OnnxModel(folder / file),
            image_processor,
            dataset,
            label_space.num_classes,
            ignore_index=label_space.ignore_index,
            sources=sources,
        )
        scores[name] = confusion.scores(label_space.names)["mean_iou"]
        print(f"mIoU on {args.dataset} {args.split}, {name}: {scores[name]:.4f}", flush=True)
    return scores


if __name__ == "__main__":
    run(main)
