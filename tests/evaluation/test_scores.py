"""The tables that people read, the JSON that programs read, scores of single images, and intervals against closed formulas."""

import csv
import json
import math
import os

import numpy as np
import pytest
import torch
from scipy.stats import norm, t

from revhrnet_hf.evaluation import ConfusionMatrix, format_scores
from revhrnet_hf.evaluation.scores import NUM_DRAWS, bootstrap_intervals, paired_difference, worst_images, write_image_scores
from revhrnet_hf.io import write_json

NAMES = ["Sky", "a very long class name", "Car"]


def scores():
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    return confusion.scores(NAMES)


def test_table_shows_every_number_in_aligned_columns():
    lines = format_scores(scores(), NAMES).splitlines()
    assert [line.split()[-4:] for line in lines[1:4]] == [
        ["66.67", "100.00", "66.67", "50.00"],
        ["50.00", "50.00", "100.00", "50.00"],
        ["–", "–", "–", "0.00"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert [line.split()[-1] for line in lines[5:9]] == ["58.33", "75.00", "75.00", "58.33"]
    assert lines[5].index("58.33") == lines[1].index("66.67")
    assert lines[9] == "occur nowhere, left out of mIoU: Car"


def test_json_is_valid_and_nan_is_null(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = tmp_path / "scores.json"
    write_json(path, {"scores": scores(), "matrix": [(1, 2)]})
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["scores"]["per_category_iou"] == [2 / 3, 0.5, None]
    assert read["scores"]["mean_iou"] == (2 / 3 + 0.5) / 2
    assert read["matrix"] == [[1, 2]]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, {"run": 1})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"run": 2})
    with pytest.raises(TypeError):
        write_json(path, {"run": object()})
    assert json.loads(path.read_text()) == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]


def totals_of(matrices):
    """(images, 3, classes): correct, true and predicted pixels of each class."""
    return np.array([[np.diag(matrix), matrix.sum(1), matrix.sum(0)] for matrix in matrices])


def test_table_and_worst_images(tmp_path):
    good, bad, void = np.diag([8, 2]), np.array([[1, 4], [5, 0]]), np.zeros((2, 2), int)
    only_one = np.array([[9, 1], [0, 0]])
    totals = totals_of([good, bad, void, only_one])
    write_image_scores(tmp_path / "scores.csv", ["Sky", "Car"], ["a", "b,b", "c", "d"], totals)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == ["a", "b,b", "c", "d"]
    assert [row["labelled_pixels"] for row in rows] == ["10", "10", "0", "10"]
    assert float(rows[1]["iou Sky"]) == 0.1 and float(rows[1]["mean_iou"]) == 0.05
    assert rows[2]["mean_iou"] == rows[2]["iou Car"] == ""
    assert float(rows[3]["mean_iou"]) == 0.45
    assert worst_images(totals, 2) == [1, 3] and worst_images(totals, 9) == [1, 3, 0]


def ends(values, units):
    """The expanded percentile interval, with scipy's Student's t."""
    outside = norm.cdf(-math.sqrt(units / (units - 1)) * t.ppf(0.975, units - 1))
    return pytest.approx(np.quantile(values, [outside, 1 - outside]).tolist(), rel=1e-12)


def test_intervals_are_those_of_a_loop_over_draws():
    rng = np.random.default_rng(0)
    matrices = np.pad(rng.integers(0, 9, (12, 4, 4)), ((0, 0), (0, 1), (0, 1)))  # the fifth class never occurs
    found = bootstrap_intervals(totals_of(matrices), num_draws=250, seed=3)
    generator = np.random.default_rng(3)
    scores = []
    for many in (100, 100, 50):
        for times in generator.multinomial(12, np.full(12, 1 / 12), size=many):
            confusion = ConfusionMatrix(5)
            confusion.matrix = torch.from_numpy(np.repeat(matrices, times, axis=0).sum(0))
            scores.append(confusion.scores())
    for key in ("mean_iou", "overall_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        assert found[key] == ends([draw[key] for draw in scores], 12)
    assert found["per_category_iou"][1] == ends([draw["per_category_iou"][1] for draw in scores], 12)
    assert np.isnan(found["per_category_iou"][4]).all()
    assert str(found) == str(bootstrap_intervals(totals_of(matrices), num_draws=250, seed=3))


def test_four_thousand_draws_unless_told_otherwise():
    """The quantiles of so many draws, made here; with fewer or more draws they would differ."""
    num_images, right = 40, 28
    totals = totals_of(np.array([[[10, 0], [0, 0]]] * right + [[[0, 10], [0, 0]]] * (num_images - right)))
    generator = np.random.default_rng(0)
    times = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=4000)
    assert bootstrap_intervals(totals)["overall_accuracy"] == ends(times[:, :right].sum(1) / num_images, num_images)
    # With ten draws the interval is narrower.
    narrow = bootstrap_intervals(totals, num_draws=10)["overall_accuracy"]
    assert np.ptp(bootstrap_intervals(totals)["overall_accuracy"]) > np.ptp(narrow)
    assert NUM_DRAWS == 4000


@pytest.mark.parametrize(("images", "block"), [(8, 1), (20, 1), (100, 20)])
def test_an_interval_of_few_images_covers_what_it_promises(images, block):
    """95 of 100 intervals hold the true share, also with five blocks, of which the percentiles hold 85."""
    generator, held, repeats = np.random.default_rng(3), 0, 300
    for _ in range(repeats):
        right = generator.integers(200, 601, images)  # of 1000 pixels; the mean is 400
        totals = totals_of(np.array([[[count, 1000 - count], [0, 0]] for count in right]))
        low, high = bootstrap_intervals(totals, num_draws=1000, block=block)["overall_accuracy"]
        held += low <= 0.4 <= high
    assert 0.92 <= held / repeats <= 0.985


def test_interval_of_an_accuracy_is_the_normal_approximation():
    """Images that are wholly right or wrong: the share of right ones is a binomial."""
    num_images, right = 400, 280
    matrices = np.array([[[10, 0], [0, 0]]] * right + [[[0, 10], [0, 0]]] * (num_images - right))
    low, high = bootstrap_intervals(totals_of(matrices), num_draws=4000)["overall_accuracy"]
    half = 1.96 * math.sqrt(0.7 * 0.3 / num_images)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.005)


def test_blocks_of_images_are_drawn_one_by_one_here():
    generator = np.random.default_rng(1)
    matrices = generator.integers(0, 9, (11, 3, 3))
    totals = totals_of(matrices)
    found = bootstrap_intervals(totals, num_draws=60, seed=4, block=4)
    means = []
    for begun in np.random.default_rng(4).multinomial(3, np.full(11, 1 / 11), size=60):
        drawn = [(first + place) % 11 for first in np.repeat(np.arange(11), begun) for place in range(4)]
        confusion = ConfusionMatrix(3)
        confusion.matrix = torch.from_numpy(matrices[drawn].sum(0))
        means.append(confusion.scores()["mean_iou"])
    assert found["mean_iou"] == ends(means, 11 / 4)
    for block in (0, 6):
        with pytest.raises(ValueError, match=f"blocks of {block} images cannot be drawn from 11"):
            bootstrap_intervals(totals, block=block)
    with pytest.raises(ValueError, match="blocks of 1 images cannot be drawn from 1: there must be two blocks"):
        bootstrap_intervals(totals[:1])


def test_an_interval_in_blocks_covers_what_one_of_dependent_images_does_not():
    """Clips of ten equal frames: the standard error is that of the clips."""
    right = np.random.default_rng(7).random(60) < 0.7
    totals = totals_of(np.array([[[10, 0], [0, 0]] if each else [[0, 10], [0, 0]] for each in np.repeat(right, 10)]))
    widths = {block: np.ptp(bootstrap_intervals(totals, block=block)["overall_accuracy"]) for block in (1, 10)}
    share = right.mean()
    assert widths[1] == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 600), rel=0.1)
    # The blocks begin anywhere, so that most of them lie in two clips: 2/3 of the variance of whole clips and more.
    assert widths[10] == pytest.approx(2 * 1.96 * math.sqrt(2 / 3 * share * (1 - share) / 60), rel=0.15)


def test_paired_difference_against_brute_force():
    generator = np.random.default_rng(5)
    runs = [generator.integers(1, 30, (count, 7, 3, 4)) for count in (2, 3)]
    for one in runs:
        one[:, :, 1:] += one[:, :, :1]  # as many true and predicted pixels as correct ones at least

    def mean_iou(totals):
        correct, truth, predicted = totals.sum(0)
        return np.mean(correct / (truth + predicted - correct))

    draws = np.random.default_rng(0)
    times = np.concatenate([draws.multinomial(7, np.full(7, 1 / 7), size=100) for _ in range(3)])
    by_draw = [
        np.mean([mean_iou(np.repeat(one, drawn, axis=0)) for one in runs[0]])
        - np.mean([mean_iou(np.repeat(one, drawn, axis=0)) for one in runs[1]])
        for drawn in times
    ]
    difference, interval = paired_difference(*runs, num_draws=300)
    assert difference == pytest.approx(np.mean([*map(mean_iou, runs[0])]) - np.mean([*map(mean_iou, runs[1])]))
    assert interval == ends(by_draw, 7)
    assert paired_difference(runs[0], runs[0])[1] == [0, 0]
    single, interval = paired_difference(*(one[:, :1] for one in runs))
    means = [np.mean([mean_iou(totals[:1]) for totals in one]) for one in runs]
    assert single == pytest.approx(means[0] - means[1])
    assert np.isnan(interval).all()
    with pytest.raises(ValueError, match="different images"):
        paired_difference(runs[0], runs[1][:, 1:])
