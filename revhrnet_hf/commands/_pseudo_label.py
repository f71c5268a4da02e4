"""The work of `revhrnet pseudo_label`. The command line is elsewhere, because it does not wait for PyTorch."""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..cli import choose_device
from ..defaults import MIN_CONFIDENCE
from ..errors import DataError
from ..evaluation import inference_settings, load_for_inference, segment
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


def label_images(args: argparse.Namespace) -> None:
    """Does what the command line says; see pseudo_label.py."""
    device, settings = choose_device(args.device), inference_settings(args)
    check_output_dir(args.output_dir, args.overwrite)
    images = find_images(args.images)
    check_distinct(images)
    model, image_processor = load_for_inference(args.checkpoint, device, trust_remote_code=args.trust_remote_code)
    names, palette = names_and_palette(model.config)
    check_classes(names)
    thresholds = thresholds_of(args)
    thresholds.check(names)

    work, predictions = claim_work_folder(args, images, settings, device)
    unreadable = predict_remaining(predictions, images, model, image_processor, settings)
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
