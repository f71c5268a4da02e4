"""Curves of runs from their log.jsonl; only drawing them takes matplotlib (the extra `plots`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..io import LOG_FILE, whole_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING_SPAN = 50  # the loss is averaged over a span of one part in 50 of the curve


@dataclass
class Curves:
    """The losses and scores that a run has logged, as (step, value) pairs; the IoUs of each class by its name."""

    name: str
    losses: list[tuple[int, float]]
    mean_ious: list[tuple[int, float]]
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    class_ious: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def read_curves(output_dirs: list[str | Path]) -> list[Curves]:
    """The curves of runs; a chain's folder gives those of each stage, in order; a folder of runs those of each run, by name.

    Raises:
        CheckpointError: a folder holds no log.jsonl, or the file is no log.
    """
    curves = []
    for folder in map(Path, output_dirs):
        runs = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        logs = _logs(folder) or [log for run in runs for log in _logs(run)]
        if not logs:
            raise CheckpointError(f"{folder} holds no {LOG_FILE}: give the --output_dir of a run, or a folder of runs")
        curves += [read_log(path) for path in logs]
    return curves


def _logs(run: Path) -> list[Path]:
    """The log of each stage of a chain, and that of the run's last stage."""
    stages = [path for path in run.glob(f"[0-9]*_*/{LOG_FILE}") if path.parent.name.partition("_")[0].isdigit()]
    logs = sorted(stages, key=lambda path: int(path.parent.name.partition("_")[0]))
    return [*logs, run / LOG_FILE] if (run / LOG_FILE).exists() else logs


def read_log(path: Path) -> Curves:
    """The curves of one log.jsonl; a CheckpointError if it is none. A last line that was cut off is left out."""
    curves = Curves(str(path.parent), [], [])
    by_name = {"loss": curves.losses, "validation_loss": curves.validation_losses, "mean_iou": curves.mean_ious}
    try:
        lines = whole_lines(path).splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no log of a run: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            for name, points in by_name.items():
                if entry.get(name) is not None:
                    points.append((entry["step"], entry[name]))
            for name, iou in entry.get("iou", {}).items():
                if iou is not None:
                    curves.class_ious.setdefault(name, []).append((entry["step"], iou))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}, line {number} is no entry of a log: {error}") from error
    return curves


def draw_curves(curves: list[Curves]) -> "Figure":
    """Loss (values faint, moving mean strong, validation loss dashed) beside mIoU, over steps, in one colour for each run."""
    from matplotlib.figure import Figure

    from .plots import legend_label

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss_axes, iou_axes = figure.subplots(1, 2)
    for number, run in enumerate(curves):
        colour = f"C{number % 10}"
        if run.losses:
            steps, losses = zip(*run.losses, strict=True)
            loss_axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
            alone = "." if len(losses) == 1 else None  # a line of one point is invisible
            loss_axes.plot(steps, moving_mean(losses), color=colour, marker=alone, label=legend_label(run.name))
        if run.validation_losses:
            points = zip(*run.validation_losses, strict=True)
            loss_axes.plot(*points, color=colour, marker=".", linestyle="--", label=legend_label(f"{run.name} (validation)"))
        if run.mean_ious:
            best_step, best = max(run.mean_ious, key=lambda point: point[1])
            label = legend_label(f"{run.name} (best {best:.3f})")
            iou_axes.plot(*zip(*run.mean_ious, strict=True), color=colour, marker=".", label=label)
            iou_axes.plot(best_step, best, color=colour, marker="o", fillstyle="none", markersize=10)
    for axes, what in ((loss_axes, "loss"), (iou_axes, "mIoU")):
        axes.set(xlabel="step", ylabel=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            for text in axes.legend(fontsize="small").get_texts():
                text.set_parse_math(False)  # a folder may be called `$x_1$`
    return figure


def moving_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, over a fiftieth of the curve."""
    span = max(1, len(values) // SMOOTHING_SPAN)
    return [sum(values[max(0, i - span + 1) : i + 1]) / min(span, i + 1) for i in range(len(values))]
