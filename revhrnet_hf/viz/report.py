"""The report of a run or of an evaluation: one HTML file that needs no other file, no network and no script.

Its text is the template report.html.jinja. Everything that comes from elsewhere (names of classes, files and checkpoints) is
escaped by Jinja, and the page's content security policy lets nothing run or be fetched.
"""

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from ..errors import DataError
from ..escape import printable
from ..images import Colour
from ..io import write_text
from .curves import Curves, moving_mean
from .figures import class_shares, overlay, overlay_legend
from .line_chart import Chart, Line, line_chart, sparkline
from .matrix import shares_of_truth

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MARK = "<!-- A report of revhrnet_hf, which is written anew by it. -->"
REPORT_FILE = "report.html"  # of a run, in its folder

IMAGE_SIDE = 480  # pixels, of the longer side of an image as shown
OPACITY = 0.6
JPEG = {"format": "JPEG", "quality": 85, "subsampling": 0}  # label maps' colours at full resolution
SPARKLINE = (120, 28)  # user units
MOST_WITH_NUMBERS = 24  # classes in a confusion matrix; with more there is no room for numbers
LEAST_SHARE = 0.005  # of a cell that is drawn


@dataclass(frozen=True)
class ShownImage:
    """An image of the dataset with its truth and its prediction.

    Attributes:
        name: of the image.
        mean_iou: over the classes that occur in its truth or prediction.
        image: RGB.
        truth, prediction: (height, width) of class ids, the image's size.
    """

    name: str
    mean_iou: float
    image: Image.Image
    truth: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class Report:
    """Contents of a report.

    Attributes:
        title: of the page.
        facts: names and values that stand below the title: dataset, epoch, inference settings.
        terms: whether the images may be passed on.
        checkpoint: folder or Hub name to load, for the examples of use.
        names, colours: of each class id.
        scores: of `ConfusionMatrix.scores`.
        matrix: (classes, classes) counts of pixels, rows truth.
        best, worst: images of the highest and of the lowest mIoU.
        curves: of the run; None where there is no log.
        recipe: of the run, as YAML; None where it is not known.
        ignore_index: id of pixels without a class.
        untinted: ids of classes that are not coloured over images.
    """

    title: str
    facts: Mapping[str, str]
    terms: str
    checkpoint: str
    names: Sequence[str]
    colours: Sequence[Colour]
    scores: Mapping[str, Any]
    matrix: np.ndarray
    best: Sequence[ShownImage] = ()
    worst: Sequence[ShownImage] = ()
    curves: Curves | None = None
    recipe: str | None = None
    ignore_index: int = 255
    untinted: frozenset[int] = frozenset()

    @property
    def shell_checkpoint(self) -> str:
        """The checkpoint as a word of a command line."""
        return shlex.quote(self.checkpoint)

    @property
    def python_checkpoint(self) -> str:
        """The checkpoint as a string of Python."""
        return json.dumps(self.checkpoint, ensure_ascii=False)


def write_report(path: str | Path, report: Report) -> None:
    """Write a report, whole or not at all.

    Raises:
        DataError: the file is there, and is no report of this program.
        OSError: it cannot be written.
    """
    check_report_place(path)
    write_text(path, report_html(report))


def check_report_place(path: str | Path) -> None:
    """Raise a DataError if something lies there that is no report of this program."""
    path = Path(path)
    if os.path.lexists(path) and (not path.is_file() or path.is_symlink() or not is_report(path)):
        raise DataError(f"{path} is there and is no report of this program: move it away")


def is_report(path: Path) -> bool:
    """Whether this program has written the file."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(len(MARK) + 100)


def report_html(report: Report) -> str:
    """The page."""
    shown = [*report.worst, *report.best]
    return _template().render(
        mark=Markup(MARK),
        report=report,
        summary=_summary(report.scores),
        charts=[] if report.curves is None else charts(report.curves),
        classes=class_rows(report),
        sparkline=SPARKLINE,
        matrix=None if not np.any(report.matrix) else confusion_cells(report.matrix, report.names),
        groups=[(title, [_panels(report, image) for image in images]) for title, images in _groups(report)],
        legend=_legend(report, shown),
    )


def charts(curves: Curves) -> list[Chart]:
    """Loss, with the validation loss where it was logged, and mIoU."""
    drawn = []
    losses = [
        Line("each line of the log", curves.losses, "faint"),
        Line("training, moving mean", _smooth(curves.losses), "first"),
        Line("validation", curves.validation_losses, "second", marked=True),
    ]
    scores = [Line("mIoU", curves.mean_ious, "first", marked=True)]
    for title, lines in (("loss", losses), ("mIoU", scores)):
        lines = [line for line in lines if any(math.isfinite(y) for _, y in line.points)]
        if lines:
            drawn.append(line_chart(title, "step", lines))
    return drawn


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    return [(step, mean) for (step, _), mean in zip(finite, moving_mean([loss for _, loss in finite]), strict=True)]


def class_rows(report: Report) -> list[dict[str, Any]]:
    """A row for each class: its scores, its share of the labelled pixels, and the curve of its IoU."""
    scores, curves = report.scores, {} if report.curves is None else report.curves.class_ious
    labelled = scores["labelled_pixels"]
    steps = [step for points in curves.values() for step, _ in points]
    columns = (scores[f"per_category_{column}"] for column in ("iou", "accuracy", "precision", "pixels"))
    rows = []
    for name, colour, iou, accuracy, precision, pixels in zip(report.names, report.colours, *columns, strict=True):
        points = curves.get(name, [])
        rows.append(
            {
                "name": name,
                "colour": tuple(colour),
                "iou": _known(iou),
                "accuracy": _known(accuracy),
                "precision": _known(precision),
                "share": pixels / labelled if labelled else None,
                "curve": sparkline(points, min(steps), max(steps), *SPARKLINE) if len(points) > 1 else None,
                "curve_title": ", ".join(f"step {step}: {100 * value:.1f} %" for step, value in points[-8:]),
            }
        )
    return rows


def confusion_cells(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The drawing of a confusion matrix in SVG's user units; classes that occur nowhere are left out."""
    shares, names = shares_of_truth(matrix, names)
    numbered = len(names) <= MOST_WITH_NUMBERS
    cell, text = (30, 11) if numbered else (12, 9)
    label = round(max(map(len, names)) * text * 0.58) + 24
    cells = [
        {
            "x": label + column * cell,
            "y": label + row * cell,
            "share": float(shares[row, column]),
            "strength": round(float(shares[row, column]) ** 0.5, 3),  # so that a few percent of confusion are visible
            "title": f"{names[row]} → {names[column]}: {100 * shares[row, column]:.1f} %",
        }
        for row, column in zip(*np.nonzero(np.nan_to_num(shares) >= LEAST_SHARE), strict=True)
    ]
    never_true = [row for row in range(len(names)) if np.isnan(shares[row]).all()]
    side = label + len(names) * cell + 4
    return {
        "names": names,
        "cells": cells,
        "cell": cell,
        "label": label,
        "text": text,
        "side": side,
        "numbered": numbered,
        "never_true": never_true,
    }


def _summary(scores: Mapping[str, Any]) -> dict[str, float | None]:
    titles = {"mIoU": "mean_iou", "pixel accuracy": "overall_accuracy", "mean accuracy": "mean_accuracy"}
    return {title: _known(scores[key]) for title, key in titles.items()}


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _groups(report: Report) -> list[tuple[str, Sequence[ShownImage]]]:
    return [(title, images) for title, images in (("Worst images", report.worst), ("Best images", report.best)) if images]


def _panels(report: Report, shown: ShownImage) -> dict[str, Any]:
    """An image as data URIs: alone, and with truth and prediction laid over it."""
    image, truth, prediction = _small(shown)
    laid = [
        overlay(image, label_map, report.colours, OPACITY, report.ignore_index, report.untinted)
        for label_map in (truth, prediction)
    ]
    titles = ("image", "truth", "prediction")
    return {
        "name": shown.name,
        "mean_iou": _known(shown.mean_iou),
        "size": image.size,
        "panels": [(title, data_uri(panel)) for title, panel in zip(titles, (image, *laid), strict=True)],
    }


def _small(shown: ShownImage) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Image and label maps, of one size, at most `IMAGE_SIDE` long."""
    scale = min(1, IMAGE_SIDE / max(shown.truth.shape))
    size = tuple(max(1, round(side * scale)) for side in shown.truth.shape[::-1])
    maps = (
        np.asarray(Image.fromarray(np.asarray(ids).astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
        for ids in (shown.truth, shown.prediction)
    )
    return shown.image.convert("RGB").resize(size, Image.Resampling.BILINEAR), *maps


def _legend(report: Report, images: Sequence[ShownImage]) -> list[tuple[str, Colour]]:
    """Name and colour of each class that occurs in the images, the most frequent ones first."""
    if not images:
        return []
    ids = np.concatenate([label_map.ravel() for image in images for label_map in (image.truth, image.prediction)])
    names, colours = overlay_legend(report.names, report.colours, report.untinted)
    return [(names[index], colours[index]) for index in class_shares(ids) if index != report.ignore_index]


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG in a `data:` address."""
    file = io.BytesIO()
    image.save(file, **JPEG)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters and marks of direction in names could make text look like other text.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f} %"
    environment.filters["rgb"] = lambda colour: "#{:02x}{:02x}{:02x}".format(*colour)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
