"""The geometry of line charts in SVG, without matplotlib; the report's template draws it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 560, 280  # of the whole chart, in SVG's user units
LEFT, RIGHT, TOP, BOTTOM = 52, 28, 12, 40  # margins for the axes' numbers and titles
MOST_POINTS = 400  # of a line: more would be invisible
MOST_TICKS = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        title: for the legend; "" for none.
        points: (x, y) in the chart's own units, x ascending.
        kind: CSS class that gives colour and dashes.
        marked: whether each point is marked; a line of one point is marked always, because it would be invisible.
    """

    title: str
    points: Sequence[Point]
    kind: str
    marked: bool = False


@dataclass(frozen=True)
class Tick:
    """A number at an axis: its place in user units, and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class DrawnLine:
    """A line in user units: the text of a `polyline`'s points, and the marked points with their values as text."""

    title: str
    kind: str
    path: str
    marks: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart in user units."""

    title: str
    x_title: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[DrawnLine]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(title: str, x_title: str, lines: Sequence[Line]) -> Chart:
    """The geometry of a chart.

    Args:
        title: of the y axis.
        lines: at least one point in all. Points that are not finite are left out.
    """
    kept = [[(x, y) for x, y in line.points if math.isfinite(y)] for line in lines]
    points = [point for line in kept for point in line]
    if not points:
        raise ValueError("a chart needs at least one point")
    xs, ys = zip(*points, strict=True)
    x_low, x_high = _widened(min(xs), max(xs))
    y_low, y_high = _widened(min(ys), max(ys))

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    drawn = []
    for line, own in zip(lines, kept, strict=True):
        path = " ".join(f"{across(x)},{down(y)}" for x, y in thinned(own))
        marked = own if line.marked or len(own) == 1 else []
        marks = [(across(x), down(y), f"{x_title} {x:g}: {y:.4g}") for x, y in marked]
        drawn.append(DrawnLine(line.title, line.kind, path, marks))
    x_ticks = [Tick(across(x), f"{x:,.0f}") for x in ticks(x_low, x_high, whole=True)]
    return Chart(title, x_title, x_ticks, [Tick(down(y), f"{y:g}") for y in ticks(y_low, y_high)], drawn)


def sparkline(points: Sequence[Point], first: float, last: float, width: float, height: float) -> str:
    """The points of a small line from 0 to 1 without axes, as text of a `polyline`.

    Args:
        points: (x, y) with y from 0 to 1.
        first, last: the x at the left and at the right end, the same for lines that are compared.
        width, height: in user units.
    """
    span = (last - first) or 1
    return " ".join(f"{width * (x - first) / span:.1f},{height * (1 - y):.1f}" for x, y in thinned(points))


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, at most `MOST_TICKS`.

    Args:
        whole: whole numbers only.
    """
    step = next(step for step in _steps((high - low) / MOST_TICKS, whole) if _count(low, high, step) <= MOST_TICKS)
    first = math.ceil(low / step - 1e-9)
    return [round((first + place) * step, 12) for place in range(_count(low, high, step))]


def _steps(least: float, whole: bool) -> Iterator[float]:
    exponent = math.floor(math.log10(least))
    if whole:
        exponent = max(0, exponent)
    while True:
        yield from (factor * 10.0**exponent for factor in (1, 2, 5))
        exponent += 1


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1


def thinned(points: Sequence[Point]) -> list[Point]:
    """The points, or where there are more than `MOST_POINTS` the means of as many groups of neighbours, about equally large."""
    if len(points) <= MOST_POINTS:
        return list(points)
    bounds = [place * len(points) // MOST_POINTS for place in range(MOST_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(bounds)]
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, made wider where it is a single value."""
    return (low, high) if high > low else (low - max(abs(low) * 0.1, 0.5), high + max(abs(high) * 0.1, 0.5))
