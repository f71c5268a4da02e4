"""Scores as a table, and whether there are any."""

import math
from collections.abc import Sequence

from ..errors import DataError
from ..text import aligned

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
"""What the table calls the scores below the classes; those that were not asked for are left out."""


def format_scores(scores: dict, names, intervals: dict | None = None, never_predicted: Sequence[str] = ()) -> str:
    """The scores of `ConfusionMatrix.scores` as lines of text: a row a class, then the means; shares in percent.

    Args:
        intervals: of `bootstrap_intervals`, to be shown beside the scores.
        never_predicted: the classes for which the model has none, which is said below the table.
    """
    titles, labelled = ["class", ">IoU %", ">accuracy %", ">precision %", ">pixels %"], scores["labelled_pixels"]
    by_class = []
    for name, iou, accuracy, precision, pixels in zip(
        names,
        scores["per_category_iou"],
        scores["per_category_accuracy"],
        scores["per_category_precision"],
        scores["per_category_pixels"],
        strict=True,
    ):
        share = pixels / labelled if labelled else math.nan
        by_class.append([str(name), *map(_percent, (iou, accuracy, precision, share))])
    means = {title: key for title, key in TITLES.items() if key in scores}
    lines = aligned([titles, *by_class, *([title, _percent(scores[key])] for title, key in means.items())])
    below = 1 + len(by_class)
    for place, key in enumerate(means.values(), start=below):
        low, high = (intervals or {}).get(key, (math.nan, math.nan))
        lines[place] += "" if math.isnan(low) else f"  {_percent(low)}–{_percent(high)}"
    lines.insert(below, "-" * len(lines[0]))
    if intervals is not None:
        lines.append("(after the scores: 95 % intervals, bootstrap over images)")
    absent = ", ".join(map(str, scores["absent_classes"]))
    if absent:
        counted = "counted as 0" if scores["absent_as_zero"] else "left out of mIoU"
        lines.append(f"occur nowhere, {counted}: {absent}")
    if never_predicted:
        lines.append(f"not among the checkpoint's classes, so never predicted: {', '.join(never_predicted)}")
    return "\n".join(lines)


def check_labelled(scores: dict, what: str) -> None:
    """Raises a DataError if the scores are of not a single labelled pixel: then they are no numbers, and nothing can be best.

    Args:
        scores: of `ConfusionMatrix.scores`.
        what: was scored, for the message, such as "the split 'val'".
    """
    if not scores["labelled_pixels"]:
        raise DataError(
            f"{what} holds no labelled pixel (all pixels of its label maps are ignored), so no score can be given: look at the "
            "label maps, and at what the label table ignores"
        )


def _percent(share):
    return "–" if math.isnan(share) else f"{100 * share:.2f}"
