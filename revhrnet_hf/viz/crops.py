"""A sheet of training crops, each beside its label map."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ..images import Colour
from .figures import BACKGROUND, INK, colourise, ignored_colour, legend, stack_vertically, text_size
from .fonts import font_for

PANEL_WIDTH = 384  # pixels


class DrawnCrop(NamedTuple):
    """A crop, its label map (height, width) of class ids, and the text above both."""

    image: Image.Image
    labels: np.ndarray
    title: str


def crop_sheet(
    crops: Sequence[DrawnCrop], names: Sequence[str], colours: Sequence[Colour], ignore_index: int = 255
) -> Image.Image:
    """Crops in rows, each beside its label map, above a legend of the classes that occur.

    Args:
        crops: all of one size.
        names: the name of each class id.
        colours: (red, green, blue), 0 to 255, of each class id.
        ignore_index: the id of pixels without a class.
    """
    size = PANEL_WIDTH, max(1, round(crops[0].image.height * PANEL_WIDTH / crops[0].image.width))
    in_row = max(1, round((len(crops) * size[1] / (2 * size[0])) ** 0.5))  # about as high as wide
    tiles = [_tile(crop, size, colours, ignore_index) for crop in crops]
    rows = [_beside(tiles[first : first + in_row]) for first in range(0, len(tiles), in_row)]
    ids = np.unique(np.concatenate([np.unique(crop.labels) for crop in crops])).tolist()
    present = [index for index in ids if index != ignore_index] + [len(names)] * (ignore_index in ids)
    names, colours = [*names, "ignored"], [*colours, ignored_colour(colours)]
    return stack_vertically([*rows, legend(names, colours, present, rows[0].width, text_size(PANEL_WIDTH))])


def _tile(crop: DrawnCrop, size: tuple[int, int], colours: Sequence[Colour], ignore_index: int) -> Image.Image:
    font_size = text_size(PANEL_WIDTH)
    top, gap = round(1.6 * font_size), 2
    tile = Image.new("RGB", (2 * size[0] + 3 * gap, top + size[1] + gap), BACKGROUND)
    draw, font = ImageDraw.Draw(tile), font_for(crop.title, font_size)
    draw.text((gap, top / 2), crop.title, fill=INK, font=font, anchor="lm")
    tile.paste(crop.image.resize(size, Image.Resampling.BILINEAR), (gap, top))
    label_map = colourise(crop.labels, colours, ignore_index)
    tile.paste(label_map.resize(size, Image.Resampling.NEAREST), (2 * gap + size[0], top))
    return tile


def _beside(tiles: Sequence[Image.Image]) -> Image.Image:
    gap = 8
    row = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, tiles[0].height), BACKGROUND)
    for place, tile in enumerate(tiles):
        row.paste(tile, (place * (tile.width + gap), 0))
    return row
