"""Scores of single images, intervals of the whole, and boundary IoU, against loops and closed formulas."""

import csv
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index, multiclass_precision

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import ConfusionMatrix, SegmentationMetric
from revhrnet_hf.evaluation.boundary import boundary_counts, boundary_scores
from revhrnet_hf.evaluation.by_image import NUM_DRAWS, bootstrap_intervals, worst_images, write_image_scores

RNG = np.random.default_rng(0)


def random_maps(num_classes=6, shape=(40, 50)):
    references = RNG.integers(0, num_classes, shape)
    return np.where(RNG.random(shape) < 0.7, references, RNG.integers(0, num_classes, shape)), references


def matrix_of(predictions, references, num_classes):
    confusion = ConfusionMatrix(num_classes)
    confusion.update(predictions, references)
    return confusion.matrix.numpy()


def test_precision_and_frequency_weighted_iou_are_torchmetrics():
    predictions, references = map(torch.from_numpy, random_maps())
    scores = SegmentationMetric(6).compute(predictions=predictions[None], references=references[None])
    precision = multiclass_precision(predictions[None], references[None], 6, average=None)
    assert scores["per_category_precision"] == pytest.approx(precision.tolist(), abs=1e-6)
    weighted = multiclass_jaccard_index(predictions[None], references[None], 6, average="weighted")
    assert scores["frequency_weighted_iou"] == pytest.approx(weighted.item(), abs=1e-6)
    assert scores["per_category_recall"] == scores["per_category_accuracy"]


def test_absent_classes_as_zero_are_hrnets_means():
    predictions, references = random_maps(4)
    metric = SegmentationMetric(7, absent_as_zero=True)
    scores = metric.compute(predictions=[predictions], references=[references])
    matrix = matrix_of(predictions, references, 7)
    truth, predicted, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    assert scores["mean_iou"] == pytest.approx((right / np.maximum(1.0, truth + predicted - right)).mean())
    assert scores["mean_accuracy"] == pytest.approx((right / np.maximum(1.0, truth)).mean())
    assert scores["absent_classes"] == [4, 5, 6] and math.isnan(scores["per_category_iou"][4])
    with pytest.warns(UserWarning, match="no labelled pixel"):
        assert math.isnan(SegmentationMetric(3, absent_as_zero=True).compute()["mean_iou"])


@pytest.mark.parametrize("num_classes", [3, 19, 256])
def test_counting_of_bytes_is_counting_of_other_types(num_classes):
    """Maps of bytes that are large enough are counted in another way; every id may occur, also ignored and unknown ones."""
    ignore_index = 255 if num_classes < 256 else -1
    predictions = RNG.integers(0, num_classes, (600, 1500))
    references = RNG.integers(0, num_classes, (600, 1500))
    if num_classes < 256:
        references[:50] = 255
    bytewise, plain = ConfusionMatrix(num_classes, ignore_index), ConfusionMatrix(num_classes, ignore_index)
    bytewise.update(predictions.astype(np.uint8), references.astype(np.uint8))
    plain.update(predictions, references)
    assert torch.equal(bytewise.matrix, plain.matrix) and bytewise.matrix.sum() > 0
    if num_classes < 256:
        predictions[100, 100] = num_classes
        with pytest.raises(DataError, match=f"image a: the predictions hold id {num_classes}"):
            bytewise.update(predictions.astype(np.uint8), references.astype(np.uint8), ["a"])
        assert torch.equal(bytewise.matrix, plain.matrix)


def test_table_and_worst_images(tmp_path):
    good, bad, void = np.diag([8, 2]), np.array([[1, 4], [5, 0]]), np.zeros((2, 2), int)
    only_one = np.array([[9, 1], [0, 0]])
    matrices = np.stack([good, bad, void, only_one])
    write_image_scores(tmp_path / "scores.csv", ["Sky", "Car"], ["a", "b,b", "c", "d"], matrices)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == ["a", "b,b", "c", "d"]
    assert [row["labelled_pixels"] for row in rows] == ["10", "10", "0", "10"]
    assert float(rows[1]["iou Sky"]) == 0.1 and float(rows[1]["mean_iou"]) == 0.05
    assert rows[2]["mean_iou"] == rows[2]["iou Car"] == ""
    assert float(rows[3]["mean_iou"]) == 0.45
    assert worst_images(matrices, 2) == [1, 3] and worst_images(matrices, 9) == [1, 3, 0]


def test_intervals_are_those_of_a_loop_over_draws():
    matrices = np.stack([matrix_of(*random_maps(4, (9, 9)), 5) for _ in range(12)])
    found = bootstrap_intervals(matrices, num_draws=250, seed=3)
    generator = np.random.default_rng(3)
    scores = []
    for many in (100, 100, 50):
        for times in generator.multinomial(12, np.full(12, 1 / 12), size=many):
            confusion = ConfusionMatrix(5)
            confusion.matrix = torch.from_numpy(np.repeat(matrices, times, axis=0).sum(0))
            scores.append(confusion.scores())
    for key in ("mean_iou", "overall_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        expected = np.quantile([draw[key] for draw in scores], [0.025, 0.975])
        assert found[key] == pytest.approx(expected.tolist(), rel=1e-12)
    assert found["per_category_iou"][1] == pytest.approx(
        np.quantile([draw["per_category_iou"][1] for draw in scores], [0.025, 0.975]).tolist(), rel=1e-12
    )
    assert np.isnan(found["per_category_iou"][4]).all()
    assert str(found) == str(bootstrap_intervals(matrices, num_draws=250, seed=3))


def test_a_thousand_draws_unless_told_otherwise():
    """The quantiles of a thousand draws, made here: of fewer or more they are others."""
    num_images, right = 40, 28
    matrices = np.array([[[10, 0], [0, 0]]] * right + [[[0, 10], [0, 0]]] * (num_images - right))
    generator = np.random.default_rng(0)
    times = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=1000)
    accuracies = times[:, :right].sum(1) / num_images
    assert bootstrap_intervals(matrices)["overall_accuracy"] == pytest.approx(np.quantile(accuracies, [0.025, 0.975]).tolist())
    # Of ten, as many as a careless default would draw, the interval is narrower.
    narrow = bootstrap_intervals(matrices, num_draws=10)["overall_accuracy"]
    assert np.ptp(bootstrap_intervals(matrices)["overall_accuracy"]) > np.ptp(narrow)
    assert NUM_DRAWS == 1000


def test_interval_of_an_accuracy_is_the_normal_approximation():
    """Images that are wholly right or wrong: the share of right ones is a binomial."""
    num_images, right = 400, 280
    matrices = np.array([[[10, 0], [0, 0]]] * right + [[[0, 10], [0, 0]]] * (num_images - right))
    low, high = bootstrap_intervals(matrices, num_draws=4000)["overall_accuracy"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / num_images)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.005)


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
