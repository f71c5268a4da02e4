"""Scores for people (a table) and for programs (JSON)."""

import json
import math
import os
from pathlib import Path


def format_scores(scores: dict, names) -> str:
    """The scores of `ConfusionMatrix.scores` as lines of text: a row a class, then the means; shares in percent."""
    width = max(map(len, [*names, "pixel accuracy"]))
    lines = [f"{'class':<{width}}  {'IoU %':>7}  {'accuracy %':>10}  {'pixels %':>8}"]
    labelled = scores["labelled_pixels"]
    for name, iou, accuracy, pixels in zip(
        names,
        scores["per_category_iou"],
        scores["per_category_accuracy"],
        scores["per_category_pixels"],
        strict=True,
    ):
        share = pixels / labelled if labelled else math.nan
        lines.append(f"{name:<{width}}  {_percent(iou):>7}  {_percent(accuracy):>10}  {_percent(share):>8}")
    lines.append("-" * len(lines[0]))
    for title, key in (
        ("mIoU", "mean_iou"),
        ("mean accuracy", "mean_accuracy"),
        ("pixel accuracy", "overall_accuracy"),
    ):
        lines.append(f"{title:<{width}}  {_percent(scores[key]):>7}")
    absent = ", ".join(map(str, scores["absent_classes"]))
    if absent:
        lines.append(f"occur nowhere, left out of mIoU: {absent}")
    return "\n".join(lines)


def write_json(path: str | Path, value) -> None:
    """Writes valid JSON (NaN becomes null) so that the file is there whole or not at all."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _percent(share):
    return "–" if math.isnan(share) else f"{100 * share:.2f}"


def without_nan(value):
    """JSON has no NaN and no infinity: None stands for them, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
