"""The work of `revhrnet pseudo_label`. The command line is elsewhere, because it does not wait for PyTorch."""

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..cli import choose_device, inference_settings
from ..defaults import MIN_CONFIDENCE
from ..errors import DataError
from ..evaluation import find_checkpoint, load_for_inference, segment
from ..evaluation.calibration import temperature_of
from ..evaluation.pseudo_labels import (
    EXAMPLES,
    PREDICTIONS,
    WORK,
    Predictions,
    PseudoLabels,
    Thresholds,
    check_classes,
    check_distinct,
    check_not_replaced,
    check_other_files,
    check_output_dir,
    format_report,
)
from ..evaluation.records import WorkFolder
from ..evaluation.results import weights_stamp
from ..evaluation.settings import InferenceSettings
from ..images import find_images, read_image
from ..io import BEST, LAST, recover_folder
from ..viz.figures import names_and_palette

logger = logging.getLogger(__name__)

FEW = 0.1  # of the pixels; with fewer labels the report says what keeps more


def label_images(args: argparse.Namespace) -> None:
    """Does what the command line says; see pseudo_label.py."""
    device, settings = choose_device(args.device), inference_settings(args)
    args.checkpoint = find_checkpoint(args.checkpoint)
    check_output_dir(args.output_dir, args.overwrite)
    images = find_images(args.images)
    check_distinct(images)
    check_not_replaced(images, args.output_dir, args.split)
    # Before the checkpoint is loaded: a run that resumes then notices if a training has replaced it meanwhile.
    basis = basis_of_predictions(args.checkpoint, images, settings, device)
    model, image_processor = load_for_inference(args.checkpoint, device, trust_remote_code=args.trust_remote_code)
    names, palette = names_and_palette(model.config)
    check_classes(names)
    check_other_files(args.output_dir, args.split, names)
    thresholds = thresholds_of(args)
    thresholds.check(names)

    work = claim_work_folder(args, basis)
    predictions = Predictions(work.folder)
    unreadable = predict_remaining(predictions, images, model, image_processor, settings)
    readable = [image for image in images if image not in unreadable]
    if not readable:
        raise DataError(f"none of the {len(images)} images can be read")
    about = {
        "checkpoint": name_of_checkpoint(args.checkpoint),
        "temperature": temperature_of(model.config),
        "inference": str(settings),
        "class_share": thresholds.class_share,
        "unreadable_images": [image.name for image in unreadable],
    }
    dataset = PseudoLabels(args.output_dir, args.split, names, palette, predictions, args.link)
    report = dataset.write(readable, thresholds, about)
    work.remove()
    print_report(args.output_dir, report)
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(images)} images could not be read: {', '.join(map(str, unreadable))}")


def thresholds_of(args: argparse.Namespace) -> Thresholds:
    default = MIN_CONFIDENCE if args.class_share is None else 0.0
    least = default if args.min_confidence is None else args.min_confidence
    return Thresholds(least, dict(args.class_confidence), args.class_share)


def basis_of_predictions(checkpoint: str, images: Sequence[Path], settings: InferenceSettings, device: str) -> dict[str, Any]:
    """Everything that the predictions depend on; see `WorkFolder`."""
    stamps = [image_stamp(image) for image in images]
    return {
        "checkpoint": weights_stamp(checkpoint),
        "images": hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16],
        "inference": settings.to_dict(),
        "device": device,
    }


def image_stamp(image: Path) -> list:
    """Place, size and time of an image file. Broken links have neither size nor time; reading them says that they are broken."""
    place = os.path.realpath(image)
    try:
        status = image.stat()
    except OSError:
        return [place, None, None]
    return [place, status.st_size, status.st_mtime_ns]


def claim_work_folder(args: argparse.Namespace, basis: dict[str, Any]) -> WorkFolder:
    """The folder of this run's predictions, which no other process uses; with --overwrite it forgets those on another basis."""
    work = WorkFolder(args.output_dir / WORK, basis, work="run of pseudo_label", option="--output_dir", records=PREDICTIONS)
    work.claim(args.overwrite and not work.can_resume())
    recover_folder(args.output_dir / args.split)
    return work


def name_of_checkpoint(checkpoint: str) -> str:
    """A Hub name, or a folder's name without its path, which is not to be published; of a run's checkpoint, with the run's."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return checkpoint
    parts = folder.resolve().parts
    return "/".join(parts[-2:]) if parts[-1] in (BEST, LAST) else parts[-1]


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
    if report["kept"] < FEW * report["pixels"]:
        share = 100 * report["kept"] / report["pixels"]
        print(f"only {share:.2g} % of the pixels have labels: a lower --min_confidence keeps more, --class_share some of all")
    said = f"{report['images']} images, confidences at temperature {report['temperature']:.4g}"
    if report["temperature"] == 1:
        said += " (none was fitted: revhrnet evaluate --calibration --save_temperature)"
    print(said)
    if report["images_without_a_sure_pixel"]:
        print(f"left out, for no pixel is sure enough: {len(report['images_without_a_sure_pixel'])} images")
    print(f"written: {folder}, a dataset of the loader folder; look at {folder / EXAMPLES}")
