"""Image files of every mode, format and EXIF orientation, with the RGB pixels that a viewer shows for them, by NumPy."""

import io

import numpy as np
import PIL.Image

ORIENTATION = 0x0112
# EXIF 2.3, 4.6.4 A: which side of the upright image the stored row 0 and column 0 are.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
TRANSPARENT = ("P with transparency", "L with transparency", "I;16 with transparency")
IN_FORMAT = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", *TRANSPARENT),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"),
    "JPEG": ("L", "RGB", "CMYK"),
}
COMBINATIONS = [(kind, mode) for kind, modes in IN_FORMAT.items() for mode in modes]


def encoded(image, kind, orientation=1, **options):
    stream, exif = io.BytesIO(), PIL.Image.Exif()
    if orientation != 1:
        exif[ORIENTATION] = orientation
    image.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def image_of(mode, height=9, width=14, seed=0):
    """A PIL image of this mode, what `save` needs besides, and (height, width, 3) float64: its colours, on white."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    plain, _, extra = mode.partition(" with ")
    values, alpha = noise[..., 0], noise[..., 3:] / 255
    if plain == "1":
        return PIL.Image.fromarray(values > 127), {}, grey((values > 127) * 255)
    if plain == "L":
        options = {"transparency": int(values[0, 0])} if extra else {}
        return PIL.Image.fromarray(values), options, grey(np.where(extra and values == values[0, 0], 255, values))
    if plain == "LA":
        return PIL.Image.fromarray(noise[..., [0, 3]]), {}, grey(values) * alpha + 255 * (1 - alpha)
    if plain == "P":
        image = PIL.Image.fromarray(values)
        palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
        image.putpalette(palette.tobytes())
        opaque = rng.integers(0, 256, 256, dtype=np.uint8)
        options = {"transparency": opaque.tobytes()} if extra else {}
        share = opaque[values][..., None] / 255 if extra else 1
        return image, options, palette[values] * share + 255 * (1 - share)
    if plain == "RGBA":
        return PIL.Image.fromarray(noise), {}, noise[..., :3] * alpha + 255 * (1 - alpha)
    if plain == "CMYK":
        return PIL.Image.fromarray(noise, mode="CMYK"), {}, (255 - noise[..., :3]) * ((255 - noise[..., 3:]) / 255)
    if plain == "F":
        return PIL.Image.fromarray(values.astype(np.float32)), {}, grey(values)
    if plain in ("I;16", "I"):
        deep = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        deep[0, 0] |= 256  # 32 bits without a larger number may be of 8 bits, and are refused
        options = {"transparency": int(deep[0, 0])} if extra else {}
        shown = grey(np.rint(deep / 257))
        shown[(deep == deep[0, 0]) & bool(extra)] = 255
        return PIL.Image.fromarray(deep.astype(np.int32) if plain == "I" else deep), options, shown
    return PIL.Image.fromarray(noise[..., :3]), {}, noise[..., :3]
