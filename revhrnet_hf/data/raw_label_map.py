"""A label map's numbers as its file holds them: Pillow scales small grey values for display, and a GIF has palettes only."""

import re
from typing import NamedTuple

import PIL.Image

from ..errors import DataError
from ..images import ImageFile
from .label_space import LabelSpace

FEW_BITS = re.compile(r"L;([24])")  # Pillow's names for grey of 2 and 4 bits, which it scales to 8
DEEP_COLOUR = re.compile(r"(LA|La|RGB|RGBA|RGBX|RGBa|CMYK);16")  # of which it drops the lower 8 bits
BLACK_AND_WHITE = {(0, 0, 0), (255, 255, 255)}


class Encoding(NamedTuple):
    """What `LabelSpace.translate_image` must know of the file beside the image; its arguments."""

    greatest: int = 255
    is_black_and_white_gif: bool = False


def translate_file(
    file: ImageFile,
    label_space: LabelSpace,
    source: str,
    data: bytes | None = None,
    box: tuple[int, int, int, int] | None = None,
) -> PIL.Image.Image:
    """The train ids of a label-map file, upright, as an image of mode L.

    Args:
        file: the label map.
        label_space: translates its ids or colours.
        source: what it is called in an error.
        data: the file cut short, if that is enough.
        box: (left, top, right, bottom) of the part that is wanted.

    Raises:
        DataError: as `LabelSpace.translate_image`, or the file is of colours of 16 bits.
    """
    greatest = _greatest(file, source)
    image, encoding = _plain(file.pixels(data=data), file.header.format, greatest)
    part = image if box is None else image.crop(box)
    return label_space.translate_image(part, source, *encoding)


def _greatest(file: ImageFile, source: str) -> int:
    """The number in the file that Pillow shows as white."""
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


def _plain(image: PIL.Image.Image, kind: str, greatest: int) -> tuple[PIL.Image.Image, Encoding]:
    """A GIF of grey colours as the grey image that it was made of: its palette's order is its encoder's business."""
    if kind != "GIF" or image.mode != "P":
        return image, Encoding(greatest)
    palette = image.getpalette("RGB")
    colours = {tuple(palette[3 * k : 3 * k + 3]) for k, pixels in enumerate(image.histogram()) if pixels}
    if colours <= BLACK_AND_WHITE:
        return image, Encoding(is_black_and_white_gif=True)
    is_grey = all(red == green == blue for red, green, blue in colours)
    return (image.convert("L") if is_grey else image), Encoding()
