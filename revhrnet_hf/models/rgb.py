"""Upright images, and an image of any Pillow mode as RGB: 16 bits scaled to 8, transparency on white.

It is in this folder because a checkpoint contains it together with the image processors. `revhrnet_hf.images` reads image files
and uses it.
"""

import base64
import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from .fetching import fetch, is_address

GREATEST_8_BIT, GREATEST_16_BIT = 255, 65535
UNCLEAR = 16  # floating-point grey values that end between 1 and this number do not say what white is

# EPS and WMF are left out, because their decoders start other programs, and so are formats that are not used for photographs.
# Pillow raises a KeyError for a format that it does not know, as AVIF before Pillow 11.3.
PIL.Image.init()
KNOWN = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in KNOWN if name in PIL.Image.OPEN)

ORIENTATION = 0x0112  # the EXIF tag
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second one
# EXIF orientation → the operation that turns the stored image upright; orientation 1 is upright already.
TO_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
GREY_RANGE = "revhrnet_grey_range"  # key of an image's `info`; see `grey_range`
MEGAPIXELS_VARIABLE = "REVHRNET_MAX_MEGAPIXELS"
QUOTED_CHARACTERS = 120


def open_upright(source: str) -> PIL.Image.Image:
    """Opens a file, an http address, or base64 text as an upright image in its own mode.

    Raises:
        ValueError: the text is none of these, or of no image in one of `FORMATS`, or the image is too large.
        OSError: the file or address cannot be read, or is damaged.
    """
    apply_pixel_limit()
    try:
        image = PIL.Image.open(io.BytesIO(_bytes_of(source)), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(
            f"{quoted(source)}: {error} If you trust it, raise the limit with the environment variable {MEGAPIXELS_VARIABLE}"
        ) from error
    except (ValueError, PIL.UnidentifiedImageError) as error:
        raise ValueError(
            f"{quoted(source)} must be a file, http address or base64 text of an image in a known format ({', '.join(FORMATS)})"
        ) from error
    image.load()  # turns a TIFF, and reads the metadata behind a PNG's pixels
    turn = None if image.format == "TIFF" else TO_UPRIGHT.get(exif_orientation(image))
    return image if turn is None else image.transpose(turn)


def _bytes_of(source: str) -> bytes:
    if is_address(source):
        return fetch(source)
    return Path(source).read_bytes() if os.path.isfile(source) else base64_bytes(source)


def apply_pixel_limit() -> None:
    """Gives Pillow the limit on pixels that the environment sets; without it, Pillow's own is 179 megapixels.

    It is read before each image, because it must reach worker processes however they are started.

    Raises:
        ValueError: the environment variable is no positive number.
    """
    text = os.environ.get(MEGAPIXELS_VARIABLE)
    if text is None:
        return
    try:
        megapixels = float(text)
        if not megapixels > 0:
            raise ValueError("it must be more than 0")
    except ValueError as error:
        raise ValueError(f"{MEGAPIXELS_VARIABLE}={text} is no number of megapixels ({error}): give one such as 400.") from error
    PIL.Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)  # Pillow warns above this number and refuses above twice this number


def base64_bytes(text: str) -> bytes:
    """The bytes of base64 text, with or without `data:image/…,` before it; raises a ValueError for any other text."""
    encoded = text.partition(",")[2] if text.startswith("data:image/") else text
    return base64.b64decode("".join(encoded.split()), validate=True)


def quoted(text: str) -> str:
    """The text as an error message quotes it; the end of a long one, where the name of a file is."""
    return repr(text if len(text) <= QUOTED_CHARACTERS else f"…{text[-QUOTED_CHARACTERS:]}")


def exif_orientation(image: PIL.Image.Image) -> int:
    """The orientation in the metadata that Pillow has read so far, 1 to 8; 1 if there is none or it is invalid.

    Invalid metadata are no error: image viewers ignore them too, and the pixels are intact.
    """
    try:
        # Not `image.getexif()`: for a PNG it decodes the whole image to find more metadata.
        value = PIL.Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds of exception for malformed metadata
        return 1
    return int(value) if isinstance(value, int) and value in TO_UPRIGHT else 1


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image of any mode as RGB. An RGB image without transparency is returned unchanged, not as a copy.

    Raises:
        ValueError: an image of 32 bits (mode `I` or `F`) has values outside the valid range; see `eight_bit_grey`.
    """
    image = on_white(eight_bit_grey(image))
    return image if image.mode == "RGB" else image.convert("RGB")


def on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image with transparency as RGB on white; any other image unchanged."""
    if not image.has_transparency_data:
        return image
    white = PIL.Image.new("RGBA", image.size, "white")
    return PIL.Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def eight_bit_grey(image: PIL.Image.Image) -> PIL.Image.Image:
    """A grey image of more than 8 bits (modes `I;16…`, `I` and `F`) as 8-bit grey; any other image unchanged.

    Pillow's own conversion clips at 255 instead of scaling, which turns nearly all of such an image white. A TIFF file says how
    many bits there are and whether 0 is white. Mode `I` holds 16-bit values. Mode `F` holds values from 0 to 1 if none is larger,
    and from 0 to 255 otherwise.

    Raises:
        ValueError: an image of mode `I` has values outside 0–65535, or of mode `F` outside 0–255; or its range is not clear: mode
            `I` without a value above 255 (but a PGM file always has 16 bits), or mode `F` with fractions up to a little above 1.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        grey = _grey_of_floats(values)
    elif image.mode == "I":
        grey = _grey_of_integers(values, image.format == "PPM")
    else:
        grey = _scaled(values, *grey_range(image))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a grey PNG may declare one value as transparent; the new image would lose this
        grey[values == transparent] = 255
    return PIL.Image.fromarray(grey)


def grey_range(image: PIL.Image.Image) -> tuple[int, int]:
    """The values of black and white in an image of mode `I;16…`. Pillow gives those of a TIFF file as they are stored.

    A copy of an image does not have the file's tags; who makes one keeps the range in its `info`, under `GREY_RANGE`.
    """
    tags = getattr(image, "tag_v2", {})
    black, white = 0, 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    return image.info.get(GREY_RANGE) or ((white, black) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (black, white))


def _grey_of_integers(values: np.ndarray, are_16_bits: bool) -> np.ndarray:
    """Of 32-bit integers; Pillow scales a PGM file's to 16 bits, so that it is sure what they are, however dark the image is."""
    _check_range(values, GREATEST_16_BIT)
    largest = values.max(initial=0)
    if 0 < largest <= GREATEST_8_BIT and not are_16_bits:  # black, or numbers of 8 bits in an image of 32?
        raise ValueError(
            f"its pixels hold 32-bit numbers up to {largest}, which may be of 0 to {GREATEST_8_BIT} or of 0 to "
            f"{GREATEST_16_BIT}: convert them to 8 or 16 bits"
        )
    return _scaled(values, 0, GREATEST_16_BIT)


def _scaled(values: np.ndarray, black: int, white: int) -> np.ndarray:
    """Grey from 0 to 255, rounded."""
    span = abs(white - black)
    return ((np.abs(values.astype(np.int64) - black) * GREATEST_8_BIT + span // 2) // span).astype(np.uint8)


def _grey_of_floats(values: np.ndarray) -> np.ndarray:
    _check_range(values, GREATEST_8_BIT)
    largest = values.max(initial=0)
    if 1 < largest < UNCLEAR and (values % 1).any():  # a tile of 0 to 1 in which some pixels are a little brighter?
        raise ValueError(
            f"its pixels hold fractions up to {largest:.4g}, which may be of 0 to 1 or of 0 to 255: scale them to 8 or 16 bits"
        )
    scale = 255 if largest <= 1 else 1
    return np.rint(values * scale).astype(np.uint8)


def _check_range(values: np.ndarray, greatest: int) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= greatest):  # a NaN fails both
        raise ValueError(
            f"its pixels hold values from {values.min()} to {values.max()}; an image of this kind may hold 0 to {greatest}"
        )
