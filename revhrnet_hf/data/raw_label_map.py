"""The original numbers in a label map's file: Pillow scales grey values of few bits, and a GIF has only palettes."""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import PIL.Image

from ..errors import DataError
from ..images import Colour, ImageFile, unreadable_is_data_error
from .archive import read_location
from .label_space import SINGLE_BAND, LabelSpace, displayed_colours, single_band, whole_ids

FEW_BITS = re.compile(r"L;([24])")  # Pillow's names for grey of 2 and 4 bits, which it scales to 8 bits
DEEP_COLOUR = re.compile(r"(LA|La|RGB|RGBA|RGBX|RGBa|CMYK);16")  # Pillow drops the lower 8 bits of these
LARGEST_OF_16_BITS = 65535
# Pillow's names of formats, and of compressions in a TIFF, that change ids. Some need not, but their headers do not tell.
LOSSY = {"AVIF": "AVIF", "JPEG": "JPEG", "JPEG2000": "JPEG 2000", "MPO": "JPEG", "WEBP": "WebP"}
LOSSY_IN_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
BLACK_AND_WHITE = {(0, 0, 0), (255, 255, 255)}


class Encoding(NamedTuple):
    """The arguments of `LabelSpace.translate_image` and `translate_part` that describe the file."""

    max_value: int = 255
    is_black_and_white_gif: bool = False


def translate_file(
    file: ImageFile,
    label_space: LabelSpace,
    source: str,
    data: bytes | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> PIL.Image.Image:
    """Decodes a label map to an upright image of train ids, mode L.

    Args:
        file: the label map.
        label_space: translates its ids or colours.
        source: its name in error messages.
        data: the file cut short, if only its upper part is needed.
        box: (left, top, right, bottom) of the part to decode; None for all of it. It is read as in the whole label map, which is
            decoded if the part does not tell how.

    Raises:
        DataError: as `LabelSpace.translate_image`, or the file has colours of 16 bits or a lossy compression.
    """
    max_value = _max_value(file, source)
    image, encoding = _without_grey_palette(file.pixels(data=data), file.header.format, max_value)
    if box is None:
        return label_space.translate_image(image, source, *encoding)
    part = label_space.translate_part(image.crop(box), source, *encoding)
    if part is not None:
        return part
    # Of label maps only a PNG is cut short, and `_without_grey_palette` leaves it as it is.
    whole = image if data is None or data is file.data else file.pixels(data=file.data)
    return label_space.translate_image(whole, source, *encoding).crop(box)


def _max_value(file: ImageFile, source: str) -> int:
    """The number in the file that Pillow displays as white; a DataError if the numbers in it are not those that were saved."""
    if compression := _lossy_compression(file.header):
        raise DataError(
            f"Label map {source} is compressed as {compression}, whatever its name says, and {compression} can change the "
            "numbers at edges: save it as PNG, from the original."
        )
    arguments = file.tile.args if file.tile else None
    raw_mode, *rest = (arguments,) if isinstance(arguments, str) else arguments or ("",)
    if DEEP_COLOUR.match(str(raw_mode)):
        raise DataError(
            f"Label map {source} is a colour image of 16 bits a channel, of which only 8 can be read: save its ids as a grey "
            "image, or its colours with 8 bits."
        )
    if rest and file.tile.codec_name.startswith("ppm"):
        return rest[0]
    bits = FEW_BITS.match(str(raw_mode))
    return 2 ** int(bits[1]) - 1 if bits else 255


def _lossy_compression(header: PIL.Image.Image) -> str | None:
    """The name of a compression that can change the ids, found by the file's header; None if it has none."""
    if header.format == "TIFF":
        return LOSSY_IN_TIFF.get(header.info.get("compression"))
    return LOSSY.get(header.format)


def _without_grey_palette(image: PIL.Image.Image, kind: str, max_value: int) -> tuple[PIL.Image.Image, Encoding]:
    """Converts a GIF with grey colours to a grey image, because the order of its palette has no meaning."""
    if kind != "GIF" or image.mode != "P":
        return image, Encoding(max_value)
    palette = image.getpalette("RGB")
    colours = {tuple(palette[3 * k : 3 * k + 3]) for k, pixels in enumerate(image.histogram()) if pixels}
    if colours <= BLACK_AND_WHITE:
        return image, Encoding(is_black_and_white_gif=True)
    is_grey = all(red == green == blue for red, green, blue in colours)
    return (image.convert("L") if is_grey else image), Encoding()


class RawContent(NamedTuple):
    """The numbers of pixels in a label map's file, by id and by colour.

    Attributes:
        ids: id → pixels; None for a file that holds colours.
        colours: colour, as a viewer shows it, → pixels; None for ids of more than 8 bits.
        shown: id → its colour, where that is known.
    """

    ids: dict[int, int] | None
    colours: dict[Colour, int] | None
    shown: dict[int, Colour]


def raw_content(location: str) -> RawContent:
    """Counts the ids and colours in a label map whose label table is not known.

    Ids are read as `translate_file` reads them. In a black and white GIF they are 0 and 255.

    Raises:
        DataError: the file cannot be read, or holds numbers that are no ids.
    """
    with unreadable_is_data_error("Label map", location):
        file = ImageFile(read_location(location))
        max_value = _max_value(file, location)
        image, encoding = _without_grey_palette(file.pixels(), file.header.format, max_value)
    if encoding.is_black_and_white_gif:
        image = image.convert("L")
    if image.mode in SINGLE_BAND:
        values, max_value = single_band(image, max_value)
        ids = {value: pixels for value, pixels in enumerate(values.histogram()) if pixels}
        shown = displayed_colours(values, list(ids), max_value)
        colours: Counter[Colour] = Counter()
        for value, pixels in ids.items():
            colours[shown[value]] += pixels
        return RawContent(ids, dict(colours), shown)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return ids_in(np.asarray(image), location)
    colours = {colour: pixels for pixels, colour in image.convert("RGB").getcolors(image.width * image.height)}
    is_grey = all(red == green == blue for red, green, blue in colours)
    if not is_grey:
        return RawContent(None, colours, {})
    ids = {colour[0]: pixels for colour, pixels in colours.items()}
    return RawContent(ids, colours, {colour[0]: colour for colour in colours})


def ids_in(raw: np.ndarray, source: str) -> RawContent:
    """Counts the raw ids in an array, (height, width); a DataError calls it `source` if they are none or too large."""
    ids, pixels = np.unique(whole_ids(raw, source), return_counts=True)
    if ids[-1] > LARGEST_OF_16_BITS:
        raise DataError(f"Label map {source} holds the number {ids[-1]}: ids of classes are at most {LARGEST_OF_16_BITS}.")
    # Other values of 16 bits are shown in greys that 8 bits cannot hold, mostly as black.
    shown = {raw_id: (raw_id // 257,) * 3 for raw_id in ids.tolist() if raw_id % 257 == 0 and 0 <= raw_id <= LARGEST_OF_16_BITS}
    return RawContent(dict(zip(ids.tolist(), pixels.tolist(), strict=True)), None, shown)
