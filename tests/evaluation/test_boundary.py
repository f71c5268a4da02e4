"""Boundary IoU against loops over masks."""

import math

import numpy as np
import pytest

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation.boundary import boundary_counts, boundary_scores

RNG = np.random.default_rng(0)


def band_by_loop(mask, distance):
    """A pixel of the mask is near the border if a pixel at most `distance` rows and columns away is not of the mask."""
    band = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in zip(*np.nonzero(mask), strict=True):
        ys, xs = range(y - distance, y + distance + 1), range(x - distance, x + distance + 1)
        band[y, x] = any(not (0 <= v < height and 0 <= u < width and mask[v, u]) for v in ys for u in xs)
    return band


@pytest.mark.parametrize(("size", "distance"), [((60, 80), 2), ((300, 400), 10), ((90, 120), 3), ((3, 4), 1), ((512, 1024), 23)])
def test_near_the_border_is_two_percent_of_the_diagonal(size, distance):
    """Two halves: of each, a frame of that width is near its border (the paper's dilation ratio is 0.02)."""
    height, half = size[0], size[1] // 2
    label_map = np.zeros(size, np.uint8)
    label_map[:, half:] = 1
    inside = max(0, height - 2 * distance) * max(0, half - 2 * distance)
    expected = height * half - inside
    assert boundary_counts(label_map, label_map, 2).tolist() == [[expected, expected]] * 3


def test_boundary_iou_is_that_of_a_loop_over_masks():
    num_classes = 4
    references = np.kron(RNG.integers(0, num_classes, (3, 4)), np.ones((10, 10), int))
    predictions = np.roll(references, (2, 1), (0, 1))
    references[5:9, 5:30] = 255
    labelled = references != 255
    distance = 1  # 2 % of the diagonal of 50
    expected = np.zeros((3, num_classes), int)
    for class_id in range(num_classes):
        truth = band_by_loop(references == class_id, distance)
        predicted = band_by_loop((predictions == class_id) & labelled, distance)
        expected[:, class_id] = (truth & predicted).sum(), truth.sum(), predicted.sum()
    counts = boundary_counts(predictions.astype(np.uint8), references.astype(np.uint8), num_classes)
    assert counts.tolist() == expected.tolist()
    wide = boundary_counts(predictions, references, num_classes, ratio=0.08)  # 4 pixels
    assert wide[1, 0] == band_by_loop(references == 0, 4).sum()
    both, true, predicted = counts
    iou = both / (true + predicted - both)
    assert boundary_scores(counts)["boundary_iou"] == pytest.approx(iou.mean())
    assert math.isnan(boundary_scores(np.zeros((3, 2), int))["boundary_iou"])
    with pytest.raises(DataError, match="differ"):
        boundary_counts(predictions[1:], references, num_classes)
