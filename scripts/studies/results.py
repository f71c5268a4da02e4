"""The results of a study: a table (Markdown and CSV), and figures. What is not finished is a gap, never a number."""

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from scipy.stats import t

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation.scores import paired_difference
from revhrnet_hf.io import write_text
from revhrnet_hf.viz.plots import CHARACTER_WIDTH, legend_label, legend_shape, save_figure

from .plan import PLAIN, Run, Study, scored_on
from .runner import chosen_rates, read_result, read_times, read_totals

GAP = "–"
CONFIDENCE = 0.95
MIN_SEEDS = 3  # for an interval over seeds; with two Student's t is 12.7, and the interval says nothing
MARKERS = ("o", "s", "^")  # each with ten colours
LABEL_WIDTH = 40  # characters of a line
SHIFT, MAX_SHIFT = 0.06, 0.5  # between the marks of two networks and of the first and last, in variations
COSTS = {"kept_bytes": "kept MiB per training crop", "step_seconds": "seconds per step", "image_seconds": "seconds per image"}


@dataclass
class Row:
    """The runs of one network with one variation.

    Attributes:
        results: of the finished runs, by seed.
        totals: of the same runs, (runs, images, 3, classes).
        wanted: number of runs in the study.
        difference: to the baseline's mIoU over the seeds that both have, and its interval over images.
        by_seed: the same of each of these seeds.
    """

    network: str
    variation: str
    results: list[dict[str, Any]]
    totals: list[np.ndarray]
    wanted: int
    difference: tuple[float, list[float]] | None = None
    by_seed: tuple[float, ...] = ()

    def _values(self, name: str) -> list[float]:
        """A value of each result; none if one lacks it, as results of earlier versions may."""
        values = [result.get(name) for result in self.results]
        return [] if None in values else values

    def mean(self, name: str) -> float:
        """Mean of a value of the results; NaN if no run is finished or one lacks the value."""
        values = self._values(name)
        return fmean(values) if values else math.nan

    def half_width(self) -> float:
        """Of the mean mIoU over seeds, see `half_width`."""
        return half_width(self._values("mean_iou"))

    def totals_by_seed(self) -> dict[int, np.ndarray]:
        return {result["seed"]: totals for result, totals in zip(self.results, self.totals, strict=True)}

    def class_iou(self, name: str) -> float:
        values = [result["iou"].get(name) for result in self.results]
        return fmean(values) if values and None not in values else math.nan


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean over seeds (Student's t); NaN with fewer than three values."""
    if len(values) < MIN_SEEDS:
        return math.nan
    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values)))


Times = dict[tuple[str, str], dict[str, float]]


def read_rows(study: Study, output_dir: Path, times: Times | None = None) -> list[Row]:
    """All rows of the table, variation by variation; those without a finished run too.

    Args:
        times: of `read_times`, in place of those of the runs.
    """
    rates = chosen_rates(study, output_dir)
    found: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs(rates):
        found.setdefault((run.network, run.variation), []).append(run)
    rows = []
    for variation in study.variations:
        for network in study.networks:
            finished = [(run, read_result(run, output_dir)) for run in found.get((network, variation), [])]
            finished = [(run, result) for run, result in finished if result is not None]
            totals = [read_totals(run, output_dir) for run, _ in finished]
            if times is not None:
                measured = times.get((network, variation), {"step_seconds": None, "image_seconds": None})
                finished = [(run, {**result, **measured}) for run, result in finished]
            rows.append(Row(network, variation, [result for _, result in finished], totals, len(study.seeds)))
    if study.baseline is not None:
        _compare(rows, study.baseline, study.interval_block)
    return rows


def _compare(rows: list[Row], baseline: str, block: int) -> None:
    """Differences to the baseline, over the seeds that are finished in both."""
    by_variation = {row.variation: row for row in rows if row.network == baseline}
    for row in rows:
        other = by_variation[row.variation]
        if len({result["data"] for result in (*row.results, *other.results) if "data" in result}) > 1:
            raise CheckpointError(
                f"{row.network} cannot be compared with {baseline}: they are scored on other images or label maps"
            )
        own, others = row.totals_by_seed(), other.totals_by_seed()
        seeds = sorted(own.keys() & others.keys())
        if row is not other and seeds:
            try:
                both = (np.stack([totals[seed] for seed in seeds]) for totals in (own, others))
                row.difference = paired_difference(*both, block=block)
                row.by_seed = tuple(paired_difference(own[seed][None], others[seed][None], block=block)[0] for seed in seeds)
            except ValueError as error:
                raise CheckpointError(f"{row.network} cannot be compared with {baseline}: {error}") from error


def _check_classes(study: Study, rows: Sequence[Row]) -> None:
    """Raises a RecipeError for a class of the table that no result has, if there are results on all datasets of the study."""
    results = [result for row in rows for result in row.results]
    if {scored_on(asdict(run.recipe)) for run in study.any_runs()} <= {scored_on(result["recipe"]) for result in results}:
        study.check_classes(name for result in results for name in result["iou"])


def score_cells(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """The title row, then the scores of each network with each variation."""
    versus = [] if study.baseline is None else [f"to {study.baseline}", "with each seed", "interval over images"]
    cells = [[*_names(study), "seeds", "mIoU", *versus, "pixel accuracy", "boundary IoU", *study.classes, "learning rate"]]
    for row in rows:
        rate = row.results[0]["recipe"]["learning_rate"] if row.results else math.nan
        cells.append(
            [
                *_names(study, row),
                f"{len(row.results)} of {row.wanted}" if len(row.results) < row.wanted else str(row.wanted),
                _with_interval(row.mean("mean_iou"), row.half_width()),
                *(_differences(row, study.baseline) if versus else []),
                _number(row.mean("pixel_accuracy")),
                _number(row.mean("boundary_iou")),
                *(_number(row.class_iou(name)) for name in study.classes),
                _number(rate, "g"),
            ]
        )
    return cells


def cost_cells(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """The title row, then the costs of each network of which a run is finished."""
    titles = ["trained M", "multiply-adds G", "kept MiB", "without recomputation", "s / step", "s / image"]
    cells = [[*_names(study), *titles]]
    for row in (row for row in rows if row.results):
        cells.append(
            [
                *_names(study, row),
                _number(row.mean("trained_parameters") / 1e6, ".2f"),
                _number(row.mean("multiply_adds") / 1e9, ".2f"),
                _number(row.mean("kept_bytes") / 2**20, ".0f"),
                _number(row.mean("plain_kept_bytes") / 2**20, ".0f"),
                _number(row.mean("step_seconds"), ".2f"),
                _number(row.mean("image_seconds"), ".3f"),
            ]
        )
    return cells


def _names(study: Study, row: Row | None = None) -> list[str]:
    """Of a row's network and variation, or their titles; without the variation if the study has one only."""
    names = ["network", "variation"] if row is None else [row.network, row.variation]
    return names if len(study.variations) > 1 else names[:1]


def _number(value: float, form: str = ".3f") -> str:
    return GAP if math.isnan(value) else format(value, form)


def _with_interval(mean: float, half: float, form: str = ".3f") -> str:
    return _number(mean, form) + ("" if math.isnan(half) else f" ± {half:.3f}")


def _differences(row: Row, baseline: str) -> tuple[str, str, str]:
    """To the baseline: the mean, that of each seed, and the interval over images."""
    if row.difference is None:
        return "" if row.network == baseline else GAP, "", ""
    value, (low, high) = row.difference
    each = ", ".join(f"{difference:+.3f}" for difference in row.by_seed)
    over_images = GAP if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"  # one image has no interval
    return _with_interval(value, half_width(row.by_seed), "+.3f"), each, over_images


def tables(study: Study, rows: Sequence[Row]) -> str:
    """Scores, and below them costs."""
    return f"### {study.title}\n\n{markdown(score_cells(study, rows))}\n{markdown(cost_cells(study, rows))}"


def markdown(cells: list[list[str]]) -> str:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    titles, *rows = cells
    return "\n".join([line(titles), "|" + "---|" * len(titles), *map(line, rows)]) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes a row for each finished run, with full digits."""
    text = io.StringIO()
    scores = ["mean_iou", "pixel_accuracy", "boundary_iou"]
    costs = ["trained_parameters", "multiply_adds", *COSTS, "plain_kept_bytes"]
    classes = next((list(result["iou"]) for row in rows for result in row.results), [])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["network", "variation", "seed", *scores, "learning_rate", *costs, *(f"iou {name}" for name in classes), "revision"]
    )
    for row in rows:
        for result in row.results:
            rate, revision = result["recipe"]["learning_rate"], result["versions"].get("revision", "")
            values = [*(result.get(name) for name in scores), rate, *(result.get(name) for name in costs)]
            ious = [result["iou"].get(name) for name in classes]
            writer.writerow([row.network, row.variation, result["seed"], *values, *ious, revision])
    write_text(path, text.getvalue())


@rc_context({"text.parse_math": False})  # names are no formulas
def score_figure(study: Study, rows: Sequence[Row]) -> Figure:
    """mIoU of each finished row with its interval over seeds, best first; each run is a small dot."""
    shown = sorted((row for row in rows if row.results), key=lambda row: row.mean("mean_iou"))
    labels = [_label(row) for row in shown]
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    figure = Figure(figsize=(7.5, 0.9 + 0.17 * (lines + 1) * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        colour = "C0" if row.network == study.baseline else "C1"
        axes.errorbar(row.mean("mean_iou"), place, xerr=_bar(row), fmt="o", color=colour, capsize=3, **_face(row))
        axes.plot([result["mean_iou"] for result in row.results], [place] * len(row.results), "|", color="0.4", markersize=9)
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(-0.5, len(shown) - 0.5)
    axes.set(xlabel="mIoU (strokes: runs; hollow: one run; bars: 95 % interval of the mean)")
    figure.suptitle(study.title)
    axes.grid(axis="x", alpha=0.3)
    return figure


@rc_context({"text.parse_math": False})
def cost_figure(study: Study, rows: Sequence[Row]) -> Figure:
    """mIoU against memory, step time and inference time; the line joins the networks that none beats in both.

    Filled marks are means over several seeds, the others are single runs.
    """
    shown = [row for row in rows if row.results and not any(math.isnan(row.mean(name)) for name in COSTS)]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True):
        scale = 2**20 if name == "kept_bytes" else 1
        points = [(row.mean(name) / scale, row.mean("mean_iou")) for row in shown]
        if points:
            axes.step(*zip(*pareto_front(points), strict=True), where="post", color="0.7", zorder=0)
        for number, (row, (cost, score)) in enumerate(zip(shown, points, strict=True)):
            marker = MARKERS[number // 10 % len(MARKERS)]
            axes.plot(cost, score, marker, color=f"C{number % 10}", markersize=8, label=legend_label(_label(row)), **_face(row))
        axes.set(xlabel=title, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the usual one writes formulas
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mIoU")
    lines = [line for row in shown for line in _label(row).split("\n")]
    columns = min(5, legend_shape(lines, 0.8 * figure.get_figwidth())[0])  # its font is larger than that of panels
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")
    figure.suptitle(study.title)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) than which no other costs as little and scores as high, by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


@rc_context({"text.parse_math": False})
def growth_figure(study: Study, rows: Sequence[Row]) -> Figure:
    """mIoU of each network over the variations, in the order of the study, with its interval over seeds.

    The line is broken at a gap. The networks stand a little beside each other, so that their bars can be told apart.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    names = list(study.variations)
    for number, network in enumerate(study.networks):
        by_variation = {row.variation: row for row in rows if row.network == network}
        if not any(row.results for row in by_variation.values()):
            continue
        places = [place + min(SHIFT, MAX_SHIFT / len(study.networks)) * number for place in range(len(names))]
        means = [by_variation[name].mean("mean_iou") for name in names]
        marker, colour = MARKERS[number % len(MARKERS)], f"C{number % 10}"
        axes.plot(places, means, color=colour)
        axes.plot([], [], f"{marker}-", color=colour, label=legend_label(_wrapped(network)))  # for the legend
        for place, row in zip(places, map(by_variation.get, names), strict=True):
            if row.results:
                style = {"fmt": marker, "color": colour, "capsize": 3}
                axes.errorbar(place, row.mean("mean_iou"), yerr=_bar(row), **style, **_face(row))
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) * CHARACTER_WIDTH > figure.get_figwidth() / 2:  # in one line they would run into each other
        axes.tick_params(axis="x", rotation=30)
        for text in axes.get_xticklabels():
            text.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set(ylabel="mIoU", xlabel="hollow: one run; bars: 95 % interval of the mean", title=study.title)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    return figure


def _bar(row: Row) -> float | None:
    half = row.half_width()
    return None if math.isnan(half) else half


def _face(row: Row) -> dict[str, Any]:
    """The look of a row's mark: hollow if there is one run only."""
    return {} if len(row.results) > 1 else {"markerfacecolor": "white", "markeredgewidth": 2}


def _label(row: Row) -> str:
    return _wrapped(row.network if row.variation == PLAIN else f"{row.network}, {row.variation}")


def _wrapped(name: str) -> str:
    return textwrap.fill(name, LABEL_WIDTH)


def write_results(study: Study, output_dir: Path, target: Path, name: str) -> list[Path]:
    """Writes NAME.md (the tables), NAME.csv and the figures into `target`; returns what was written."""
    rows = read_rows(study, output_dir, read_times(output_dir, name))
    _check_classes(study, rows)
    written = [target / f"{name}.md", target / f"{name}.csv"]
    write_text(written[0], tables(study, rows))
    write_csv(written[1], rows)
    if any(row.results for row in rows):
        figures = {"scores": score_figure, "costs": cost_figure}
        if len(study.variations) > 1:
            figures = {"growth": growth_figure}
        for kind, draw in figures.items():
            written.append(target / f"{name}_{kind}.png")
            save_figure(draw(study, rows), written[-1])
    return written
