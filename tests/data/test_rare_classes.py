"""Probabilities of classes against DAFormer's formula; what is drawn has them."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from revhrnet_hf.data.class_index import PLACES, ClassIndex
from revhrnet_hf.data.rare_classes import RareClasses

PIXELS = np.array([[900, 0, 50, 0], [800, 100, 0, 0], [0, 300, 45, 5], [1000, 0, 0, 0], [0, 0, 0, 0]])


def index_of(pixels):
    """An index whose pixels are numbered 1000 × class + 0, 1, 2 …"""
    classes = np.nonzero(pixels)[1]
    return ClassIndex(pixels, (classes[:, None] * 1000 + np.arange(PLACES)).astype(np.uint32), np.zeros(0, np.int64))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fits(counts, probabilities):
    """A chi-square test that a correct draw fails once in a thousand seeds; classes without probability must not occur."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert scipy.stats.chisquare(counts[possible], probabilities[possible] * counts.sum()).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.01, 0.3, 5.0])
def test_probabilities_are_daformers(temperature):
    drawing = RareClasses([index_of(PIXELS[:2]), index_of(PIXELS[2:])], 1, 1, temperature)
    shares = PIXELS.sum(0) / PIXELS.sum()
    expected = scipy.special.softmax((1 - shares) / temperature)
    np.testing.assert_allclose(drawing.probabilities(np.full(4, True)), expected)
    some = np.array([True, False, True, False])
    np.testing.assert_allclose(drawing.probabilities(some), expected * some / expected[some].sum())


@pytest.mark.parametrize("temperature", [1e-9, 1e-4])
def test_small_temperatures_draw_the_rarest_that_is_there(temperature):
    drawing = RareClasses([index_of(PIXELS)], 1, 1, temperature)
    for occurring, rarest in (([1, 1, 1, 1], 3), ([1, 1, 1, 0], 2), ([1, 0, 0, 0], 0)):
        assert drawing.probabilities(np.array(occurring, bool)).argmax() == rarest
        assert {drawing._draw_class(np.array(occurring, bool), generator(seed)) for seed in range(20)} == {rarest}


def test_images_are_drawn_by_class_then_evenly():
    drawing, numbers = RareClasses([index_of(PIXELS)], 0, 1.0, 0.5), generator()
    draws = [drawing.draw_image(4, numbers) for _ in range(4000)]
    classes = np.bincount([class_id for _, class_id in draws], minlength=4)
    probabilities = drawing.probabilities(np.full(4, True))
    fits(classes, probabilities)
    occurs = PIXELS > 0
    fits(np.bincount([row for row, _ in draws], minlength=5), (occurs / occurs.sum(0) * probabilities).sum(1))
    assert all(PIXELS[row, class_id] for row, class_id in draws)


def test_pixels_are_of_the_class_that_was_drawn():
    drawing, numbers = RareClasses([index_of(PIXELS)], 1.0, 0, 0.5), generator()
    for class_id in (1, 2, 3):
        assert {drawing.draw_pixel(2, class_id, numbers) // 1000 for _ in range(50)} == {class_id}
    pixels = [drawing.draw_pixel(2, None, numbers) for _ in range(4000)]
    fits(np.bincount([pixel // 1000 for pixel in pixels], minlength=4), drawing.probabilities(PIXELS[2] > 0))
    fits(np.bincount([pixel % 1000 for pixel in pixels]), np.full(PLACES, 1 / PLACES))
    # Where the class is missing, as in the next image after a bad one, another one is drawn.
    assert {drawing.draw_pixel(3, 2, numbers) // 1000 for _ in range(20)} == {0}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares(share):
    drawing, numbers, draws = RareClasses([index_of(PIXELS)], share, share, 0.01), generator(), 2000
    images = sum(drawing.draw_image(0, numbers)[1] is not None for _ in range(draws))
    crops = sum(drawing.draw_pixel(0, None, numbers) is not None for _ in range(draws))
    for count in (images, crops):
        assert abs(count - share * draws) <= 5 * (share * (1 - share) * draws) ** 0.5


def test_nothing_to_draw():
    numbers, empty = generator(), np.zeros((2, 3), np.int64)
    drawing = RareClasses([index_of(empty)], 1.0, 1.0, 0.01)
    assert drawing.draw_image(1, numbers) == (1, None) and drawing.draw_pixel(1, None, numbers) is None


def test_rows_count_through_all_datasets():
    drawing, numbers = RareClasses([index_of(PIXELS[:2]), index_of(PIXELS[2:])], 1.0, 1.0, 100.0), generator()
    assert {drawing.draw_image(0, numbers)[0] for _ in range(200)} == {0, 1}
    assert {drawing.draw_image(4, numbers)[0] for _ in range(200)} == {2, 3}  # the last has no class
    assert {drawing.draw_pixel(2, None, numbers) // 1000 for _ in range(200)} == {1, 2, 3}
