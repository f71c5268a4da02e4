"""An image of any Pillow mode as RGB: 16 bits scaled to 8, transparency on white.

It is in this folder because a checkpoint contains it together with the image processors. `revhrnet_hf.images` reads image files
and uses it.
"""

import numpy as np
import PIL.Image

GREATEST_16_BIT = 65535


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

    Pillow's own conversion clips at 255 instead of scaling, which turns nearly all of such an image white. Mode `I` holds 16-bit
    values. Mode `F` holds values from 0 to 1 if none is larger, and from 0 to 255 otherwise.

    Raises:
        ValueError: an image of mode `I` has values outside 0–65535, or of mode `F` outside 0–255.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    grey = _grey_of_floats(values) if image.mode == "F" else _grey_of_integers(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # a grey PNG may declare one value as transparent; the new image would lose this
        grey[values == transparent] = 255
    return PIL.Image.fromarray(grey)


def _grey_of_integers(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    _check_range(values, GREATEST_16_BIT)
    return ((values + 128) // 257).astype(np.uint8)


def _grey_of_floats(values: np.ndarray) -> np.ndarray:
    _check_range(values, 255)
    scale = 255 if values.max(initial=0) <= 1 else 1
    return np.rint(values * scale).astype(np.uint8)


def _check_range(values: np.ndarray, greatest: int) -> None:
    if values.size and not (values.min() >= 0 and values.max() <= greatest):  # a NaN fails both
        raise ValueError(
            f"its pixels hold values from {values.min()} to {values.max()}; an image of this kind may hold 0 to {greatest}"
        )
