"""Many images small on one sheet, each with its label map laid over it, and a legend."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..images import Colour
from .figures import BACKGROUND, INK, ignored_colour, legend, overlay, overlay_legend, shortened, stack_vertically
from .fonts import font_for

THUMBNAIL = 320  # pixels, width of an image
COLUMNS = 2  # of pairs
GAP = 8
TEXT = 14


def contact_sheet(
    rows: Iterable[tuple[str, Image.Image, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
    ignore_index: int = 255,
    opacity: float = 0.55,
    untinted: Collection[int] = (),
) -> Image.Image:
    """Each image beside itself with its label map laid over it; ignored pixels show the image alone.

    Args:
        rows: title, image and label map, (height, width) of class ids, of one size.
        names, colours: of each class id; colours are (red, green, blue), 0 to 255.
        ignore_index: the id of pixels without a class.
        opacity: of the colours, 0 to 1.
        untinted: class ids that are not coloured; see `untinted_classes`.

    Raises:
        ValueError: there are no rows, or as `overlay`.
    """
    pairs, present = [], set()
    for title, image, label_map in rows:
        present.update(np.unique(label_map).tolist())
        pairs.append(_pair(title, image, label_map, colours, ignore_index, opacity, untinted))
    if not pairs:
        raise ValueError("a contact sheet needs one image at least")
    lines = [_side_by_side(pairs[start : start + COLUMNS]) for start in range(0, len(pairs), COLUMNS)]
    shown = [class_id for class_id in sorted(present) if class_id != ignore_index]
    names, colours = overlay_legend(names, colours, untinted)
    if ignore_index in present:
        shown.append(len(names))
        names.append("ignored (image alone)")
        colours.append(ignored_colour(colours))
    return stack_vertically([*lines, legend(names, colours, shown, width=lines[0].width)])


def _pair(title, image, label_map, colours, ignore_index, opacity, untinted) -> Image.Image:
    size = (THUMBNAIL, max(1, round(image.height * THUMBNAIL / image.width)))
    small = image.convert("RGB").resize(size)
    ids = np.asarray(Image.fromarray(np.asarray(label_map)).resize(size, Image.Resampling.NEAREST))
    pair = _side_by_side([small, overlay(small, ids, colours, opacity, ignore_index, untinted)])
    canvas = Image.new("RGB", (pair.width, pair.height + 2 * TEXT), BACKGROUND)
    canvas.paste(pair, (0, 2 * TEXT))
    font = font_for(title, TEXT)
    title = shortened(title, font, pair.width - 2 * GAP)
    ImageDraw.Draw(canvas).text((GAP, TEXT), title, fill=INK, font=font, anchor="lm")
    return canvas


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + GAP * (len(images) + 1)
    canvas = Image.new("RGB", (width, max(image.height for image in images)), BACKGROUND)
    left = GAP
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width + GAP
    return canvas
