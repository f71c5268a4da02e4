"""Scores for people: the table of classes and means with their confidence intervals, the table of images, and the worst images.

The functions on images take the `class_totals` of each image, (images, 3, classes): for each class the pixels that are predicted
correctly, that are truly of it, and that are predicted as it.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr, stdtrit

from ..errors import DataError
from ..io import write_text
from ..text import aligned
from .confusion import ratios, scores_of_totals

TITLES = {
    "mIoU": "mean_iou",
    "mean accuracy": "mean_accuracy",
    "pixel accuracy": "overall_accuracy",
    "frequency-weighted IoU": "frequency_weighted_iou",
    "boundary IoU": "boundary_iou",
    "iIoU class": "iiou_class",
    "IoU category": "iou_category",
    "iIoU category": "iiou_category",
}
"""The titles of the scores below the classes; the table leaves out the scores that were not asked for."""
SUMMARY = ("mean_iou", "overall_accuracy", "mean_accuracy", "frequency_weighted_iou")
NUM_DRAWS = 4000
DRAWS_AT_ONCE = 100  # bounds the memory


def check_labelled(scores: dict, what: str) -> None:
    """Raises a DataError if there was no labelled pixel: then all scores are NaN, and no checkpoint can be the best.

    Args:
        scores: of `ConfusionMatrix.scores`.
        what: what was scored, for the message, such as "the split 'val'".
    """
    if not scores["labelled_pixels"]:
        raise DataError(
            f"{what} holds no labelled pixel (all pixels of its label maps are ignored), so no score can be given: look at the "
            "label maps, and at what the label table ignores"
        )


def format_scores(scores: dict, names, intervals: dict | None = None, never_predicted: Sequence[str] = ()) -> str:
    """The scores of `ConfusionMatrix.scores` as a table: a row for each class, then the means; shares in percent.

    Args:
        names: the class names.
        intervals: of `bootstrap_intervals`, to be shown beside the means.
        never_predicted: the classes that the model lacks; they are named below the table.
    """
    means = {title: key for title, key in TITLES.items() if key in scores}
    titles = ["class", ">IoU %", ">accuracy %", ">precision %", ">pixels %"]
    by_class = [titles, *_class_rows(scores, names)]
    lines = aligned([*by_class, *([title, _percent(scores[key])] for title, key in means.items())])
    for place, key in enumerate(means.values(), start=len(by_class)):
        low, high = (intervals or {}).get(key, (math.nan, math.nan))
        lines[place] += "" if math.isnan(low) else f"  {_percent(low)}–{_percent(high)}"
    lines.insert(len(by_class), "-" * len(lines[0]))
    if intervals is not None:
        lines.append("(after the scores: 95 % intervals, bootstrap over images)")
    absent = ", ".join(map(str, scores["absent_classes"]))
    if absent:
        counted = "counted as 0" if scores["absent_as_zero"] else "left out of mIoU"
        lines.append(f"occur nowhere, {counted}: {absent}")
    if never_predicted:
        lines.append(f"not among the checkpoint's classes, so never predicted: {', '.join(never_predicted)}")
    return "\n".join(lines)


def _class_rows(scores: dict, names) -> list[list[str]]:
    labelled = scores["labelled_pixels"]
    columns = (scores[f"per_category_{column}"] for column in ("iou", "accuracy", "precision", "pixels"))
    return [
        [str(name), *map(_percent, (iou, accuracy, precision, pixels / labelled if labelled else math.nan))]
        for name, iou, accuracy, precision, pixels in zip(names, *columns, strict=True)
    ]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f}"


def write_image_scores(path: str | Path, names: Sequence[str], image_ids: Sequence[str], totals: np.ndarray) -> None:
    """Writes a CSV with a row for each image: id, labelled pixels, scores, IoU of each class (empty where the image has none).

    An image's `mean_iou` is over the classes that occur in its label map or in its prediction.

    Args:
        names: the class names.
        image_ids: the images' names.
        totals: (images, 3, classes).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "labelled_pixels", *SUMMARY, *(f"iou {name}" for name in names)])
    for image_id, image_totals in zip(image_ids, totals, strict=True):
        scores = scores_of_totals(image_totals)
        values = [scores[key] for key in SUMMARY] + scores["per_category_iou"]
        writer.writerow([image_id, scores["labelled_pixels"], *("" if math.isnan(value) else repr(value) for value in values)])
    write_text(path, text.getvalue())


def image_mean_ious(totals: np.ndarray) -> np.ndarray:
    """The mean IoU of each image, over the classes that occur in its truth or prediction; NaN where no pixel is labelled.

    Args:
        totals: (images, 3, classes).
    """
    return np.array([scores_of_totals(image_totals)["mean_iou"] for image_totals in totals])


def worst_images(totals: np.ndarray, count: int) -> list[int]:
    """The positions of the `count` images with the lowest mean IoU, lowest first; images without labelled pixels are left out.

    Args:
        totals: (images, 3, classes).
    """
    scores = image_mean_ious(totals).tolist()
    known = [position for position, score in enumerate(scores) if not math.isnan(score)]
    return sorted(known, key=scores.__getitem__)[:count]


def bootstrap_intervals(
    totals: np.ndarray, confidence: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0, block: int = 1
) -> dict:
    """Confidence intervals of the scores by the bootstrap over images.

    Each draw takes as many images as there are, or in blocks a few more, with replacement, and computes the scores from the sum
    of their pixels. The means of a draw leave out the classes that do not occur in it. With few images or blocks the draws vary
    too little, so the interval reaches further out among them: the expanded percentile interval of Hesterberg (2015).

    Args:
        totals: (images, 3, classes).
        confidence: the share of draws inside the interval.
        seed: of the draws; the same seed gives the same intervals.
        block: number of consecutive images that are drawn together. Frames of a video are alike, and intervals that take them for
            independent are too narrow; blocks of frames hardly depend on each other (the circular block bootstrap of Politis
            and Romano, 1992).

    Returns:
        For each score of `SUMMARY` a pair [low, high]; for `per_category_iou` a pair for each class. NaN for a score that no draw
        has.

    Raises:
        ValueError: there are fewer than two blocks.
    """
    drawn = _scores_of_draws(_draw_totals(totals, num_draws, np.random.default_rng(seed), block))
    outside = _share_outside(confidence, len(totals) / block)
    per_category = [_interval(values, outside) for values in drawn.pop("per_category_iou").T]
    return {key: _interval(values, outside) for key, values in drawn.items()} | {"per_category_iou": per_category}


def paired_difference(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0, block: int = 1
) -> tuple[float, list[float]]:
    """How much higher the mIoU of one network is than another's, and its confidence interval by the paired bootstrap.

    Both are scored on the same images, and each draw takes the same images for both: what makes an image hard for both cancels.

    Args:
        first, second: (runs, images, 3, classes), the totals of each run of a network; their mIoUs are averaged. The numbers of
            runs may differ.
        confidence, num_draws, seed, block: as for `bootstrap_intervals`.

    Returns:
        The difference of the means, and [low, high], both NaN for a single image.

    Raises:
        ValueError: the images or classes are not the same in number, or there are fewer than two blocks.
    """
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"the runs are of different images or classes: {first.shape[1:]} and {second.shape[1:]}")

    def of_draws(runs: np.ndarray) -> np.ndarray:
        draws = (_draw_totals(totals, num_draws, np.random.default_rng(seed), block) for totals in runs)
        return np.mean([_scores_of_draws(drawn)["mean_iou"] for drawn in draws], axis=0)

    def of_all(runs: np.ndarray) -> float:
        return float(np.mean(_scores_of_draws(runs.sum(1).astype(np.float64))["mean_iou"]))

    difference = of_all(first) - of_all(second)
    if first.shape[1] == block == 1:  # every draw would be this image
        return difference, [math.nan, math.nan]
    outside = _share_outside(confidence, first.shape[1] / block)
    return difference, _interval(of_draws(first) - of_draws(second), outside)


def _draw_totals(totals: np.ndarray, num_draws: int, generator: np.random.Generator, block: int) -> np.ndarray:
    """(draws, 3, classes): the sums over the images of each draw. After the last image blocks go on with the first one."""
    num_images, counts = len(totals), totals.astype(np.float64)  # whole numbers, so float64 sums them exactly
    if not 1 <= block <= num_images // 2:
        raise ValueError(f"blocks of {block} images cannot be drawn from {num_images}: there must be two blocks or more")
    num_blocks, draws = -(-num_images // block), []
    for first in range(0, num_draws, DRAWS_AT_ONCE):
        size = min(DRAWS_AT_ONCE, num_draws - first)
        begun = generator.multinomial(num_blocks, np.full(num_images, 1 / num_images), size=size)
        times = sum(np.roll(begun, place, axis=1) for place in range(block))
        draws.append(np.tensordot(times.astype(np.float64), counts, axes=1))
    return np.concatenate(draws)


def _scores_of_draws(totals: np.ndarray) -> dict[str, np.ndarray]:
    """As `scores_of_totals`, for all draws at once: an array with a row for each draw."""
    correct, truth, predicted = np.moveaxis(totals, 1, 0)
    iou = ratios(correct, truth + predicted - correct)
    labelled = truth.sum(1)
    return {
        "mean_iou": _row_means(iou),
        "overall_accuracy": ratios(correct.sum(1), labelled),
        "mean_accuracy": _row_means(ratios(correct, truth)),
        "frequency_weighted_iou": ratios((truth * np.nan_to_num(iou)).sum(1), labelled),
        "per_category_iou": iou,
    }


def _row_means(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return ratios(np.where(known, values, 0).sum(1), known.sum(1))


def _share_outside(confidence: float, units: float) -> float:
    """The share of the draws beyond each end of an interval, for so many units that are drawn independently.

    The mean of `units` draws has 1 − 1/units of the variance that it estimates, and the estimate itself varies, as Student's t
    takes into account. T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015).
    """
    student = stdtrit(units - 1, (1 + confidence) / 2)
    return float(ndtr(-math.sqrt(units / (units - 1)) * student))


def _interval(values: np.ndarray, outside: float) -> list[float]:
    """The range of the draws without the share `outside` at each end."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [math.nan, math.nan]
    return np.quantile(known, [outside, 1 - outside]).tolist()
