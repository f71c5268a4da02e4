"""Drawings of the images that a model segments worst."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.label_space import LabelSpace
from ..images import save_image
from ..viz.figures import default_palette, overlay, stack_vertically, with_legend
from .predict import segment
from .settings import WHOLE, InferenceSettings

OPACITY = 0.6


def draw_worst_images(
    folder: Path,
    positions: Sequence[int],
    dataset,
    label_space: LabelSpace,
    model,
    image_processor,
    settings: InferenceSettings = WHOLE,
    sources: list[list[int]] | None = None,
) -> None:
    """Writes `RANK_IMAGE.png` for each of the images: the truth above the prediction, each laid over the image.

    Args:
        folder: is made; drawings of an earlier evaluation in it are removed.
        positions: the images' rows, worst first.
        dataset, label_space: of the images and label maps.
        model, image_processor, settings, sources: as in `segment`.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9]*_*.png"):
        old.unlink()
    for rank, position in enumerate(positions, 1):
        row = dataset[position]
        truth = np.array(row["label_map"])
        prediction = segment(
            model, image_processor, row["image"], settings, target_size=truth.shape, sources=sources, name=row["image_id"]
        ).label_map
        figure = truth_above_prediction(row["image"], truth, prediction, label_space)
        save_image(figure, folder / f"{rank:03d}_{row['image_id'].replace('/', '_')}.png")


def truth_above_prediction(image: Image.Image, truth: np.ndarray, prediction: np.ndarray, label_space: LabelSpace) -> Image.Image:
    """Two label maps (height, width), each laid over the image, with a legend of the classes that occur."""
    colours = label_space.colours if any(map(any, label_space.colours)) else default_palette(label_space.num_classes)
    image = image.resize(truth.shape[::-1])
    shown = [overlay(image, label_map, colours, OPACITY, label_space.ignore_index) for label_map in (truth, prediction)]
    present = sorted({*np.unique(truth).tolist(), *np.unique(prediction).tolist()} - {label_space.ignore_index})
    return with_legend(stack_vertically(shown), label_space.names, colours, present)
