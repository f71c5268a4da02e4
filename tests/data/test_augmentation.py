"""Distortions of pixels against formulas, colorsys, torchvision and SciPy; how often they happen, and that ranges are reached."""

import colorsys
import io

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as TF

from revhrnet_hf.data import augmentation
from revhrnet_hf.data.augmentation import GaussianBlur, JpegNoise, PhotometricDistortion, adjust_hsv, adjust_levels


def noise(height=24, width=32, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def five_deviations(probability, draws):
    return 5 * (probability * (1 - probability) * draws) ** 0.5


@given(st.floats(-255, 255), st.floats(0, 4))
def test_levels_are_the_formula(shift, factor):
    image = noise()
    expected = np.clip(np.clip(np.asarray(image, float) + shift, 0, 255) * factor, 0, 255)
    assert abs(np.asarray(adjust_levels(image, shift, factor)) - expected).max() <= 0.5


@given(st.floats(0, 3))
def test_contrast_is_torchvisions_brightness(factor):
    """torchvision calls the factor of all channels brightness; it cuts fractions off."""
    theirs = np.asarray(TF.pil_to_tensor(noise())).astype(int)
    theirs = TF.adjust_brightness(torch.from_numpy(theirs.astype(np.uint8)), factor).permute(1, 2, 0).numpy().astype(int)
    assert abs(np.asarray(adjust_levels(noise(), 0.0, factor)).astype(int) - theirs).max() <= 1


@given(st.floats(0, 2), st.floats(-180, 180))
def test_saturation_and_hue_are_those_of_colorsys(saturation, hue):
    image = noise(6, 8)
    found = np.asarray(adjust_hsv(image, saturation, hue)).reshape(-1, 3)
    for colour, changed in zip(np.asarray(image).reshape(-1, 3) / 255, found, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected = np.multiply(255, colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), v))
        # Hue in 256 steps: half a step in each conversion and of the turn moves a channel, which crosses 255 in 42.7 steps.
        assert abs(changed - expected).max() <= 255 / 42.7 * 1.5 + 4


def test_hue_is_torchvisions():
    image = noise()
    for hue in (-180, -36, 36, 100):
        # torchvision cuts the turn to whole steps, in uint8 (so a negative turn by way of 256).
        theirs = np.asarray(TF.adjust_hue(image, hue / 360)).astype(int)
        steps = abs(np.asarray(adjust_hsv(image, 1.0, hue)).astype(int) - theirs)
        assert np.median(steps) <= 6 and np.quantile(steps, 0.99) <= 13


def test_unchanged_without_factors():
    image = noise()
    assert adjust_levels(image, 0.0, 1.0) is image and adjust_hsv(image, 1.0, 0.0) is image
    grey = image.convert("L").convert("RGB")
    assert adjust_hsv(grey, 1.4, 77).tobytes() == grey.tobytes()


@pytest.fixture
def recorded(monkeypatch):
    """The arguments of each change, in order."""
    calls = []
    monkeypatch.setattr(augmentation, "adjust_levels", lambda pixels, *given: calls.append(("levels", *given)) or pixels)
    monkeypatch.setattr(augmentation, "adjust_hsv", lambda pixels, *given: calls.append(("hsv", *given)) or pixels)
    return calls


def test_each_change_in_half_of_the_crops_and_over_its_range(recorded):
    draws, numbers, image = 4000, generator(), noise(2, 2)
    distort = PhotometricDistortion(20.0, (0.7, 1.2), (0.5, 1.8), 30.0)
    crops, last = [], 0
    for _ in range(draws):
        distort(image, numbers)
        (_, shift, before), (_, saturation, hue), *after = recorded[last:]
        last = len(recorded)
        assert after == [] or before == 1.0
        crops.append((shift, before, after[0][2] if after else 1.0, saturation, hue))
    shift, before, after, saturation, hue = np.transpose(crops)
    tolerance = five_deviations(0.5, draws)
    contrast = np.where(before != 1, before, after)
    for values, low, high, none in (
        (shift, -20, 20, 0),
        (contrast, 0.7, 1.2, 1),
        (saturation, 0.5, 1.8, 1),
        (hue, -30, 30, 0),
    ):
        changed = values[values != none]
        assert abs(len(changed) - draws / 2) < tolerance
        assert low <= changed.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < changed.max() <= high
        counts = np.histogram(changed, 4, (low, high))[0]
        assert abs(counts - len(changed) / 4).max() < five_deviations(0.25, len(changed))
    # Contrast before or after, in one of four crops each; and independent of each other.
    for values in (before != 1, after != 1, (shift != 0) & (hue != 0), (saturation != 1) & (hue != 0)):
        assert abs(values.sum() - draws / 4) < five_deviations(0.25, draws)


def test_contrast_comes_before_or_after_saturation_and_hue():
    """Bright colours show the order: contrast clips them, and saturation then starts from other colours."""
    distort = PhotometricDistortion(0.0, (1.5, 1.5), (0.5, 0.5), 0.0)
    image = PIL.Image.new("RGB", (1, 1), (250, 150, 100))
    found = {distort(image, generator(seed)).getpixel((0, 0)) for seed in range(200)}
    contrast = (255, 225, 150)
    halved = adjust_hsv(image, 0.5, 0.0).getpixel((0, 0))
    both = {
        adjust_hsv(adjust_levels(image, 0, 1.5), 0.5, 0).getpixel((0, 0)),
        adjust_levels(adjust_hsv(image, 0.5, 0), 0, 1.5).getpixel((0, 0)),
    }
    assert len(both) == 2 and found == {image.getpixel((0, 0)), contrast, halved, *both}


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0, 5.0])
def test_blur_is_gaussian(sigma):
    image = noise(60, 80)
    blurred = np.asarray(GaussianBlur(1.0, (sigma, sigma))(image, generator())).astype(float)
    exact = scipy.ndimage.gaussian_filter(np.asarray(image, float), (sigma, sigma, 0), mode="nearest")
    plain = abs(np.asarray(image) - exact).mean()
    assert abs(blurred - exact)[10:-10, 10:-10].mean() < 0.1 * plain  # on white noise, where three boxes differ most from a bell


def test_jpeg_is_pillows():
    image = noise(40, 56)
    for quality in (10, 60, 95):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        expected = PIL.Image.open(file)
        found = JpegNoise(1.0, (quality, quality))(image, generator())
        assert (found.mode, found.size) == ("RGB", image.size) and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_blur_and_jpeg_happen_as_often_as_said(probability, monkeypatch):
    image, numbers, draws = noise(8, 8), generator(), 1500
    sigmas, qualities = [], []
    monkeypatch.setattr(augmentation.PIL.ImageFilter, "GaussianBlur", lambda sigma: sigmas.append(sigma) or PIL.ImageFilter.BLUR)
    save = PIL.Image.Image.save
    monkeypatch.setattr(PIL.Image.Image, "save", lambda *args, quality: qualities.append(quality) or save(*args, quality=quality))
    blur, jpeg = GaussianBlur(probability, (0.5, 1.5)), JpegNoise(probability, (40, 44))
    for _ in range(draws):
        blur(image, numbers)
        jpeg(image, numbers)
    for drawn in (sigmas, qualities):
        assert abs(len(drawn) - probability * draws) <= five_deviations(probability, draws)
    if probability:
        assert 0.5 <= min(sigmas) < 0.52 and 1.48 < max(sigmas) <= 1.5
        assert set(qualities) == {40, 41, 42, 43, 44}
