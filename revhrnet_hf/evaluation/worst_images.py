"""Drawings of the images that a model segments worst."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..data.label_space import LabelSpace
from ..images import save_image
from ..viz.figures import (
    BACKGROUND,
    INK,
    colours_of,
    overlay,
    overlay_legend,
    shortened,
    stack_vertically,
    text_size,
    untinted_classes,
    with_legend,
)
from ..viz.fonts import font_for
from ..viz.report import ShownImage
from .results import WORST_DRAWINGS

OPACITY = 0.6


def draw_worst_images(folder: Path, images: Iterable[ShownImage], label_space: LabelSpace) -> None:
    """Writes `RANK_IMAGE.png` for each of the images: the truth above the prediction, each laid over the image.

    Args:
        folder: is made; drawings of an earlier evaluation in it are removed.
        images: worst first.
        label_space: of the label maps.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob(WORST_DRAWINGS):
        old.unlink()
    for rank, shown in enumerate(images, 1):
        save_image(truth_above_prediction(shown, label_space), folder / f"{rank:03d}_{shown.name.replace('/', '_')}.png")


def truth_above_prediction(shown: ShownImage, label_space: LabelSpace) -> Image.Image:
    """Two label maps, each laid over the image below a heading, with name and mIoU above and a legend below."""
    colours, space = colours_of(label_space), label_space
    untinted = untinted_classes(space.names, space.untinted)
    image, width = shown.image.resize(shown.truth.shape[::-1]), shown.truth.shape[1]
    parts = [heading(f"{shown.name} · mIoU {100 * shown.mean_iou:.1f} %", width)]
    for title, label_map in (("truth", shown.truth), ("prediction", shown.prediction)):
        parts += [heading(title, width), overlay(image, label_map, colours, OPACITY, space.ignore_index, untinted)]
    present = sorted({*np.unique(shown.truth).tolist(), *np.unique(shown.prediction).tolist()} - {space.ignore_index})
    return with_legend(stack_vertically(parts), *overlay_legend(space.names, colours, untinted), present)


def heading(text: str, width: int) -> Image.Image:
    """A line of text; the beginning of a long one is left out, because names of images differ at their ends."""
    size = text_size(width)
    font, line = font_for(text, size), Image.new("RGB", (width, round(1.7 * size)), BACKGROUND)
    draw = ImageDraw.Draw(line)
    draw.text((size // 2, line.height / 2), shortened(text, font, width - size), fill=INK, font=font, anchor="lm")
    return line
