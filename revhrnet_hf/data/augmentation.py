"""Augmentation of a training crop's pixels; the label map stays as it is. All of it is off unless a recipe says so.

Each is called with an RGB image and the sample's own generator of random numbers, and returns an RGB image of the same size.
"""

import io
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch

LEVELS = np.arange(256, dtype=np.float64)  # grey levels of 8 bits
FULL_CIRCLE = 360.0  # degrees of hue


def chance(probability: float, generator: torch.Generator | None) -> bool:
    """True with this probability."""
    return torch.rand((), generator=generator).item() < probability


def uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


@dataclass(frozen=True)
class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue, each with probability ½, as in SSD (arXiv 1512.02325) and mmsegmentation.

    First brightness, then saturation and hue; contrast with equal probability right after brightness or at the end.

    Args:
        brightness: the most that is added to or subtracted from every channel, in grey levels of 255.
        contrast: smallest and largest factor of every channel.
        saturation: smallest and largest factor of the saturation in HSV.
        hue: the most that the hue is turned in either direction, in degrees of 360. (OpenCV's and mmsegmentation's have 180.)
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0

    def __call__(self, pixels: PIL.Image.Image, generator: torch.Generator | None) -> PIL.Image.Image:
        shift = uniform(-self.brightness, self.brightness, generator) if chance(0.5, generator) else 0.0
        factor = uniform(*self.contrast, generator) if chance(0.5, generator) else 1.0
        first = chance(0.5, generator)
        saturation = uniform(*self.saturation, generator) if chance(0.5, generator) else 1.0
        hue = uniform(-self.hue, self.hue, generator) if chance(0.5, generator) else 0.0
        # All changes of a channel that follow each other are one look-up.
        pixels = adjust_levels(pixels, shift, factor if first else 1.0)
        pixels = adjust_hsv(pixels, saturation, hue)
        return pixels if first else adjust_levels(pixels, 0.0, factor)


def adjust_levels(pixels: PIL.Image.Image, shift: float, factor: float) -> PIL.Image.Image:
    """Adds `shift` to every channel, clips to 0–255, multiplies by `factor` and clips."""
    if shift == 0 and factor == 1:
        return pixels
    return pixels.point(_table(np.clip(LEVELS + shift, 0, 255) * factor) * 3)


def adjust_hsv(pixels: PIL.Image.Image, saturation: float, hue: float) -> PIL.Image.Image:
    """Multiplies the saturation in HSV by a factor and turns the hue by `hue` degrees."""
    if saturation == 1 and hue == 0:
        return pixels
    hues = ((LEVELS + round(hue / FULL_CIRCLE * 256)) % 256).astype(int).tolist()
    return pixels.convert("HSV").point([*hues, *_table(LEVELS * saturation), *range(256)]).convert("RGB")


def _table(levels: np.ndarray) -> list[int]:
    return np.clip(levels, 0, 255).round().astype(int).tolist()


@dataclass(frozen=True)
class GaussianBlur:
    """Blurs a share of the crops.

    Args:
        probability: of a blur.
        sigma: smallest and largest standard deviation, in pixels of the crop.
    """

    probability: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def __call__(self, pixels: PIL.Image.Image, generator: torch.Generator | None) -> PIL.Image.Image:
        if not chance(self.probability, generator):
            return pixels
        # Three box filters, which Pillow extends to fractions of pixels.
        return pixels.filter(PIL.ImageFilter.GaussianBlur(uniform(*self.sigma, generator)))


@dataclass(frozen=True)
class JpegNoise:
    """Encodes a share of the crops as JPEG and decodes them.

    Args:
        probability: of the noise.
        quality: smallest and largest JPEG quality (libjpeg's, 1 to 100).
    """

    probability: float
    quality: tuple[int, int] = (30, 95)

    def __call__(self, pixels: PIL.Image.Image, generator: torch.Generator | None) -> PIL.Image.Image:
        if not chance(self.probability, generator):
            return pixels
        low, high = self.quality
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=torch.randint(low, high + 1, (), generator=generator).item())
        decoded = PIL.Image.open(file, formats=["JPEG"])
        decoded.load()
        return decoded
