"""Figures of panels, legends and matrices, laid out with matplotlib (the extra `plots`): PNG, or PDF with text as text.

The panels' images come from figures.py and feature_maps.py. Sizes are in inches.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from ..errors import RecipeError
from ..images import Colour
from ..io import whole_file
from .matrix import shares_of_truth

FORMATS = (".png", ".pdf")
DPI = 200

PANEL_WIDTH, GAP, BLOCK_GAP, MARGIN = 2.2, 0.05, 0.15, 0.1
TITLE_HEIGHT, LINE_HEIGHT, LEGEND_ROW = 0.25, 0.16, 0.165
FONT_SIZE, SMALL = 9, 8
CHARACTER_WIDTH = 0.062  # of small text, on average
MOST_PIXELS = 1200  # of a panel's width: more would be invisible and make files large

CELL = 0.42  # side of a cell with a number in it
MOST_WITH_NUMBERS = 24  # classes; with more there is no room for numbers
LONG_SIDE = 14  # of larger matrices
EDGE = "#808080"


@dataclass
class Block:
    """An image and the rows of panels that belong to it.

    Attributes:
        image: shown once, left of its rows.
        rows: each row's title (or "") and its panels; None leaves a place empty.
    """

    image: Image.Image
    rows: list[tuple[str, list[Image.Image | np.ndarray | None]]]


# A class or a folder may be called `$x_1$`: no text is a formula.
_plain_text = rc_context({"text.parse_math": False})


@_plain_text
def panel_figure(
    blocks: Sequence[Block],
    column_titles: Sequence[str],
    legend: Sequence[tuple[str, Colour]] = (),
    caption: str = "",
) -> Figure:
    """Rows of panels beside their images, titles above, a legend and a caption below.

    Args:
        blocks: one an image; all rows have as many panels as there are column titles. Every panel is stretched to its
            image's shape, without smoothing.
        column_titles: of the panels; the image's own is always "image".
        legend: name and colour (red, green, blue, 0 to 255) of each class that occurs.
        caption: wrapped to the figure's width.
    """
    titled = any(title for block in blocks for title, _ in block.rows)
    left = MARGIN + (0.25 if titled else 0)
    width = left + (1 + len(column_titles)) * (PANEL_WIDTH + GAP) - GAP + MARGIN
    heights = [PANEL_WIDTH * block.image.height / block.image.width for block in blocks]
    block_heights = [(height + GAP) * len(block.rows) - GAP for height, block in zip(heights, blocks, strict=True)]
    block_gap = BLOCK_GAP if any(len(block.rows) > 1 for block in blocks) else GAP
    panels_height = sum(block_heights) + block_gap * (len(blocks) - 1)
    foot = _Foot(legend, caption, width)
    height = MARGIN + TITLE_HEIGHT + panels_height + foot.height
    figure = Figure(figsize=(width, height))

    def place(image: Image.Image | np.ndarray, column: int, top: float, panel_height: float) -> None:
        _add_panel(figure, image, left + column * (PANEL_WIDTH + GAP), top, panel_height)

    for column, title in enumerate(["image", *column_titles]):
        _add_title(figure, title, left + column * (PANEL_WIDTH + GAP), height - MARGIN)
    top = height - MARGIN - TITLE_HEIGHT
    for block, panel_height, block_height in zip(blocks, heights, block_heights, strict=True):
        place(block.image, 0, top - (block_height - panel_height) / 2, panel_height)
        for title, panels in block.rows:
            x, y = MARGIN + 0.1, top - panel_height / 2
            figure.text(x / width, y / height, title, ha="center", va="center", rotation=90, fontsize=FONT_SIZE)
            for column, panel in enumerate(panels, start=1):
                if panel is not None:
                    place(panel, column, top, panel_height)
            top -= panel_height + GAP
        top -= block_gap - GAP
    foot.draw(figure, left)
    return figure


@_plain_text
def tiled_figure(
    tiles: Sequence[Sequence[tuple[str, Image.Image | np.ndarray]]],
    columns: int,
    legend: Sequence[tuple[str, Colour]] = (),
    caption: str = "",
) -> Figure:
    """Panels in rows of `columns`, each below its title, for pages that are too narrow for `panel_figure`.

    Args:
        tiles: one list of titles and panels an image, the image first; the panels are stretched to its shape.
        columns: number of panels in a row; each image begins a row.
        legend, caption: as for `panel_figure`.
    """
    width = 2 * MARGIN + columns * (PANEL_WIDTH + GAP) - GAP
    heights = [TITLE_HEIGHT + PANEL_WIDTH * panels[0][1].height / panels[0][1].width for panels in tiles]
    rows_height = sum(row_height * -(-len(panels) // columns) for row_height, panels in zip(heights, tiles, strict=True))
    foot = _Foot(legend, caption, width)
    figure = Figure(figsize=(width, MARGIN + rows_height + foot.height))
    top = MARGIN + rows_height + foot.height - MARGIN
    for row_height, panels in zip(heights, tiles, strict=True):
        for start in range(0, len(panels), columns):
            for column, (title, panel) in enumerate(panels[start : start + columns]):
                left = MARGIN + column * (PANEL_WIDTH + GAP)
                _add_title(figure, title, left, top)
                _add_panel(figure, panel, left, top - TITLE_HEIGHT, row_height - TITLE_HEIGHT)
            top -= row_height
    foot.draw(figure, MARGIN)
    return figure


class _Foot:
    """A legend and a caption below the panels of a figure of this width."""

    def __init__(self, legend: Sequence[tuple[str, Colour]], caption: str, width: float):
        self.legend, self.lines = legend, textwrap.wrap(caption, int((width - 2 * MARGIN) / CHARACTER_WIDTH))
        self.columns, rows = legend_shape([name for name, _ in legend], width)
        self.height = MARGIN + LEGEND_ROW * rows + LINE_HEIGHT * len(self.lines) + (MARGIN if legend else 0) + MARGIN

    def draw(self, figure: Figure, left: float) -> None:
        width, height = figure.get_size_inches()
        if self.legend:
            _add_legend(figure, self.legend, self.columns, (left / width, (self.height - MARGIN) / height))
        if self.lines:
            text = "\n".join(self.lines)
            figure.text(left / width, MARGIN / height, text, ha="left", va="bottom", fontsize=SMALL, linespacing=1.3)


def _add_panel(figure: Figure, image: Image.Image | np.ndarray, left: float, top: float, panel_height: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, (top - panel_height) / height, PANEL_WIDTH / width, panel_height / height))
    axes.imshow(_small_enough(image), aspect="auto", interpolation="none", cmap="cividis", vmin=0, vmax=255)
    axes.set_axis_off()


def _add_title(figure: Figure, title: str, left: float, top: float) -> None:
    width, height = figure.get_size_inches()
    x, y = (left + PANEL_WIDTH / 2) / width, (top - TITLE_HEIGHT / 2) / height
    figure.text(x, y, title, ha="center", va="center", fontsize=FONT_SIZE)


@_plain_text
def legend_figure(legend: Sequence[tuple[str, Colour]], width: float = 5) -> Figure:
    """Names and colours alone."""
    columns, rows = legend_shape([name for name, _ in legend], width)
    height = LEGEND_ROW * rows + 2 * MARGIN
    figure = Figure(figsize=(width, height))
    _add_legend(figure, legend, columns, (MARGIN / width, 1 - MARGIN / height))
    return figure


@_plain_text
def confusion_figure(matrix: np.ndarray, names: Sequence[str], caption: str = "") -> Figure:
    """A confusion matrix: of each true class's pixels, the percent that were predicted as each class.

    Classes that occur neither in truth nor in prediction are left out.

    Args:
        matrix: (classes, classes) counts of pixels, rows truth, columns prediction. The row of a class that is never
            true is grey.
        names: of the classes.
        caption: below the matrix.
    """
    percent, names = shares_of_truth(matrix, names)
    percent = 100 * percent
    numbered = len(names) <= MOST_WITH_NUMBERS
    side = max(2.5, CELL * len(names)) if numbered else LONG_SIDE
    font_size = SMALL if numbered else min(SMALL, 0.75 * 72 * side / len(names))
    label_width = 0.2 + max(map(len, names)) * font_size / 72 * 0.62
    lines = textwrap.wrap(caption, int((side + label_width + 0.9) / CHARACTER_WIDTH))
    below = 2 * MARGIN + LINE_HEIGHT * len(lines)
    width, height = label_width + 0.25 + side + 1, below + side + label_width + 0.35
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes(((label_width + 0.25) / width, below / height, side / width, side / height))
    axes.set_facecolor("#e8e8e8")  # the colour of classes that are never true
    # The colour follows the square root of the share, so that a few percent of confusion are visible.
    drawn = axes.imshow(np.ma.masked_invalid(percent), cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="none")
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=font_size)
    axes.set_yticks(ticks, names, fontsize=font_size)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel("predicted", fontsize=FONT_SIZE)
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("true", fontsize=FONT_SIZE)
    if numbered:
        for row, column in zip(*np.nonzero(percent >= 0.5), strict=True):
            value = percent[row, column]
            colour = "white" if value > 35 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
    scale = figure.add_axes(((label_width + 0.25 + side + 0.15) / width, below / height, 0.15 / width, side / height))
    bar = figure.colorbar(drawn, cax=scale, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the true class's pixels", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    figure.text(MARGIN / width, MARGIN / height, "\n".join(lines), ha="left", va="bottom", fontsize=SMALL, linespacing=1.3)
    return figure


@_plain_text
def reliability_figure(calibration: Mapping[str, Any], caption: str = "") -> Figure:
    """A reliability diagram at the checkpoint's temperature, and one at the fitted temperature beside it, if there is one.

    Args:
        calibration: of `calibration_result`.
        caption: below the diagrams.
    """
    side, gap, left, share_height = 2.6, 0.35, 0.6, 0.7
    parts = [(name, calibration[name]) for name in ("checkpoint", "fitted") if calibration[name] is not None]
    width = left + len(parts) * side + (len(parts) - 1) * gap + 2 * MARGIN
    lines = textwrap.wrap(caption, int((width - 2 * MARGIN) / CHARACTER_WIDTH))
    below = 2 * MARGIN + LINE_HEIGHT * len(lines) + 0.45
    height = below + share_height + 0.15 + side + TITLE_HEIGHT + LINE_HEIGHT
    figure = Figure(figsize=(width, height))
    for column, (name, part) in enumerate(parts):
        x = (left + column * (side + gap)) / width
        upper = figure.add_axes((x, (below + share_height + 0.15) / height, side / width, side / height))
        lower = figure.add_axes((x, below / height, side / width, share_height / height))
        _draw_reliability(upper, lower, part["reliability"])
        error = f"ECE {100 * part['expected_calibration_error']:.2f} %"
        upper.set_title(f"{name}: temperature {part['temperature']:.3g}\n{error}", fontsize=FONT_SIZE)
        lower.set_xlabel("confidence", fontsize=FONT_SIZE)
        if column == 0:
            upper.set_ylabel("accuracy", fontsize=FONT_SIZE)
            lower.set_ylabel("share", fontsize=FONT_SIZE)
        else:
            upper.tick_params(labelleft=False)
            lower.tick_params(labelleft=False)
    figure.text(MARGIN / width, MARGIN / height, "\n".join(lines), ha="left", va="bottom", fontsize=SMALL, linespacing=1.3)
    return figure


def _draw_reliability(upper: Axes, lower: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy by bin of confidence with the diagonal, and the share of the pixels in each bin."""
    total = sum(row["pixels"] for row in bins)
    shown = [row for row in bins if row["pixels"]]
    edges, widths = [row["from"] for row in shown], [row["to"] - row["from"] for row in shown]
    upper.bar(edges, [row["accuracy"] for row in shown], widths, align="edge", color="#9ecae1", edgecolor=EDGE, linewidth=0.5)
    upper.plot([0, 1], [0, 1], color=EDGE, linestyle="--", linewidth=0.8)
    # A bin's accuracy is to be compared with the mean confidence of its pixels, which is not its middle.
    points = [row["confidence"] for row in shown], [row["accuracy"] for row in shown]
    upper.plot(*points, color="#b2182b", marker="o", markersize=3, linewidth=1)
    lower.bar(
        edges, [row["pixels"] / total for row in shown], widths, align="edge", color="#cccccc", edgecolor=EDGE, linewidth=0.5
    )
    lower.set_yscale("log")  # most pixels are in the last bin
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.set(xlim=(0, 1))
    upper.tick_params(labelbottom=False, labelsize=SMALL)
    lower.tick_params(labelsize=SMALL)


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise a RecipeError unless `save_figure` can write a file of this name, and replaces none (unless `overwrite`)."""
    if path.suffix.lower() not in FORMATS:
        raise RecipeError(f"--output {path}: figures are written as {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise RecipeError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.exists() and not overwrite:
        raise RecipeError(f"{path} is there already: give --overwrite, or another --output")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG or PDF, as the file's name says, whole or not at all."""
    # Type 42: fonts that journals take, and text that can be searched.
    with whole_file(path) as partial, rc_context({"pdf.fonttype": 42}):
        figure.savefig(partial, format=Path(path).suffix.lower().lstrip("."), dpi=DPI, bbox_inches="tight", pad_inches=MARGIN)


def _small_enough(image: Image.Image | np.ndarray) -> np.ndarray:
    """A panel's pixels, at most `MOST_PIXELS` in a row. Pixels are left out, not averaged, so that no colours of maps mix."""
    pixels = np.asarray(image)
    step = -(-pixels.shape[1] // MOST_PIXELS)
    return pixels[step // 2 :: step, step // 2 :: step]


def legend_label(name: str) -> str:
    """The name as the label of a line or patch: legends leave out labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def legend_shape(names: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and rows of a legend of these names, in a figure of this width."""
    if not names:
        return 1, 0
    column = 0.45 + max(map(len, names)) * CHARACTER_WIDTH
    columns = max(1, min(len(names), int((width - 2 * MARGIN) / column)))
    return columns, -(-len(names) // columns)


def _add_legend(figure: Figure, legend: Sequence[tuple[str, Colour]], columns: int, corner: tuple[float, float]) -> None:
    """Add a legend; `corner` is its upper left corner, in shares of the figure."""
    handles = [
        Patch(facecolor=np.divide(colour, 255), edgecolor=EDGE, linewidth=0.5, label=legend_label(name))
        for name, colour in legend
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=corner,
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.2,
        labelspacing=0.45,
    )
