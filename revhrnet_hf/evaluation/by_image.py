"""Scores read off one confusion matrix an image: a table of the images, the worst of them, and how sure the means are."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..io import write_text
from .confusion import scores_of

SUMMARY = ("mean_iou", "overall_accuracy", "mean_accuracy", "frequency_weighted_iou")
NUM_DRAWS = 1000
DRAWS_AT_ONCE = 100


def write_image_scores(path: str | Path, names: Sequence[str], image_ids: Sequence[str], matrices: np.ndarray) -> None:
    """Writes a CSV with a row an image: id, labelled pixels, scores, IoU of each class (empty where the image has none).

    `mean_iou` is over the classes that the image shows or was said to show.

    Args:
        names: the class names.
        image_ids: the images' names.
        matrices: (images, classes, classes) counts, rows truth.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "labelled_pixels", *SUMMARY, *(f"iou {name}" for name in names)])
    for image_id, matrix in zip(image_ids, matrices, strict=True):
        scores = scores_of(matrix)
        values = [scores[key] for key in SUMMARY] + scores["per_category_iou"]
        writer.writerow([image_id, scores["labelled_pixels"], *("" if math.isnan(value) else repr(value) for value in values)])
    write_text(path, text.getvalue())


def worst_images(matrices: np.ndarray, count: int) -> list[int]:
    """The places of the `count` images with the lowest mean IoU, lowest first; images without labelled pixels are none."""
    scores = [scores_of(matrix)["mean_iou"] for matrix in matrices]
    known = [place for place, score in enumerate(scores) if not math.isnan(score)]
    return sorted(known, key=scores.__getitem__)[:count]


def bootstrap_intervals(matrices: np.ndarray, confidence: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0) -> dict:
    """Intervals in which the scores lie if the images were drawn again (percentile bootstrap over images).

    Each draw takes as many images as there are, with repetition, and reads the scores off the sum of their matrices. Classes
    that a draw lacks are left out of its mean.

    Args:
        matrices: (images, classes, classes) counts, rows truth.
        confidence: the share of draws inside the interval.
        seed: of the draws; the same seed gives the same intervals.

    Returns:
        For each score of `SUMMARY` a pair [low, high]; for `per_category_iou` a pair a class. NaN for what no draw has.
    """
    counts = np.stack([np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)], axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)
    num_images = len(counts)
    draws = []
    for first in range(0, num_draws, DRAWS_AT_ONCE):
        many = min(DRAWS_AT_ONCE, num_draws - first)
        times = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=many)
        # Whole numbers, so that float64 sums them exactly.
        draws.append(np.tensordot(times.astype(np.float64), counts, axes=1))
    right, truth, predicted = np.moveaxis(np.concatenate(draws), 1, 0)
    iou = _share(right, truth + predicted - right)
    labelled = truth.sum(1)
    drawn = {
        "mean_iou": _row_means(iou),
        "overall_accuracy": _share(right.sum(1), labelled),
        "mean_accuracy": _row_means(_share(right, truth)),
        "frequency_weighted_iou": _share((truth * np.nan_to_num(iou)).sum(1), labelled),
    }
    intervals = {key: _interval(values, confidence) for key, values in drawn.items()}
    return intervals | {"per_category_iou": [_interval(values, confidence) for values in iou.T]}


def _interval(values, confidence):
    known = values[~np.isnan(values)]
    if not len(known):
        return [math.nan, math.nan]
    return np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()


def _share(part, whole):
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _row_means(values):
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(1), known.sum(1))
