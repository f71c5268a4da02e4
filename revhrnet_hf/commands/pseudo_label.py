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
others are labelled, and the exit status is 1. docs/unlabelled_images.md goes through it.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..cli import ArgumentParser, choose_device, run
from ..errors import DataError, RecipeError
from ..evaluation import add_inference_arguments, add_trust_argument, inference_settings, load_checkpoint, segment
from ..evaluation.calibration import temperature_of
from ..evaluation.pseudo_labels import (
    EXAMPLES,
    WORK,
    Predictions,
    PseudoLabels,
    Thresholds,
    check_classes,
    check_distinct,
    check_output_dir,
    format_report,
)
from ..evaluation.records import WorkFolder
from ..evaluation.results import weights_stamp
from ..evaluation.settings import InferenceSettings
from ..images import find_images, read_image
from ..io import recover_folder
from ..viz.figures import names_and_palette

logger = logging.getLogger(__name__)

MIN_CONFIDENCE = 0.9


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a Hub name")
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
        help="replace the pseudo-labels of an earlier run in --output_dir, or begin anew where one could be resumed",
    )
    add_inference_arguments(parser)
    add_trust_argument(parser)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs; auto takes a GPU if there is one (default: %(default)s)",
    )
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
    device, settings = choose_device(args.device), inference_settings(args)
    if args.split in ("", ".", "..") or "/" in args.split or args.split.startswith("."):
        raise RecipeError(f"--split {args.split}: give the name of a folder, such as train")
    check_output_dir(args.output_dir, args.overwrite)
    images = find_images(args.images)
    check_distinct(images)
    model, image_processor = load_checkpoint(args.checkpoint, trust_remote_code=args.trust_remote_code)
    names, palette = names_and_palette(model.config)
    check_classes(names)
    thresholds = thresholds_of(args)
    thresholds.check(names)

    work, predictions = claim_work_folder(args, images, settings, device)
    unreadable = predict_remaining(predictions, images, model.to(device), image_processor, settings)
    readable = [image for image in images if image not in unreadable]
    if not readable:
        raise DataError(f"none of the {len(images)} images can be read")
    about = {
        "checkpoint": Path(args.checkpoint).resolve().name if Path(args.checkpoint).is_dir() else args.checkpoint,
        "temperature": temperature_of(model.config),
        "inference": str(settings),
        "class_share": thresholds.class_share,
        "unreadable_images": [image.name for image in unreadable],
    }
    dataset = PseudoLabels(args.output_dir, args.split, names, palette, predictions, args.link)
    report = dataset.write(readable, thresholds, about)
    predictions.remove()
    work.remove()
    print_report(args.output_dir, report)
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(images)} images could not be read: {', '.join(map(str, unreadable))}")


def thresholds_of(args: argparse.Namespace) -> Thresholds:
    default = MIN_CONFIDENCE if args.class_share is None else 0.0
    least = default if args.min_confidence is None else args.min_confidence
    return Thresholds(least, dict(args.class_confidence), args.class_share)


def claim_work_folder(
    args: argparse.Namespace, images: Sequence[Path], settings: InferenceSettings, device: str
) -> tuple[WorkFolder, Predictions]:
    """The folder of this run's predictions, which no other process uses; with --overwrite it is emptied."""
    stamps = [[str(image.resolve()), image.stat().st_size, image.stat().st_mtime_ns] for image in images]
    work = WorkFolder(
        args.output_dir / WORK,
        {
            "checkpoint": weights_stamp(args.checkpoint),
            "images": hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16],
            "inference": settings.to_dict(),
            "device": device,
        },
        work="run of pseudo_label",
        option="--output_dir",
    )
    work.claim(args.overwrite)
    recover_folder(args.output_dir / args.split)
    predictions = Predictions(work.folder)
    if args.overwrite:
        predictions.remove()
    return work, predictions


def predict_remaining(
    predictions: Predictions, images: Sequence[Path], model, image_processor, settings: InferenceSettings
) -> list[Path]:
    """Predicts the images that have no prediction yet.

    Returns:
        Those that cannot be read.
    """
    remaining = [image for image in images if not predictions.file(image).exists()]
    if len(remaining) < len(images):
        logger.info("resumed: %d of %d images are done", len(images) - len(remaining), len(images))
    unreadable = []
    for path in tqdm(remaining, unit="image", disable=None):  # None: quiet where standard error is no terminal
        try:
            image = read_image(path)
        except DataError as error:
            logger.warning("skipped: %s", error)
            unreadable.append(path)
            continue
        predictions.write(path, segment(model, image_processor, image, settings, return_confidence=True, name=str(path)))
    return unreadable


def print_report(folder: Path, report: dict) -> None:
    print(format_report(report))
    said = f"{report['images']} images, confidences at temperature {report['temperature']:.4g}"
    if report["temperature"] == 1:
        said += " (none was fitted: revhrnet evaluate --calibration --save_temperature)"
    print(said)
    if report["images_without_a_sure_pixel"]:
        print(f"left out, for no pixel is sure enough: {len(report['images_without_a_sure_pixel'])} images")
    print(f"written: {folder}, a dataset of the loader folder; look at {folder / EXAMPLES}")


if __name__ == "__main__":
    run(main)
