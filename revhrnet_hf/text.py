"""Tables, sizes and the order of names."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, in which the cells of a column stand below each other, two spaces apart.

    Args:
        rows: the titles, then the cells. A title that begins with ">" puts its column flush right. A row may end early.
    """
    titles, *body = rows
    to_right = [title.startswith(">") for title in titles]
    rows = [[title.removeprefix(">") for title in titles], *body]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return ["  ".join(map(_padded, row, widths, to_right)).rstrip() for row in rows]


def table(rows: Iterable[Sequence[str]]) -> str:
    """The lines of [`aligned`] as one text."""
    return "\n".join(aligned(rows))


def size_on_disk(gibibytes: float) -> str:
    """In GiB; below a tenth in MiB, rounded up, so that no size that is not 0 looks as if it were."""
    return f"{gibibytes:.2f} GiB" if gibibytes >= 0.1 else f"{math.ceil(gibibytes * 1024)} MiB"


def natural_order(name: str) -> tuple[list[str | int], str]:
    """The key that sorts names by the numbers in them: `frame_2` before `frame_10`."""
    # Every other part is a number, so that two keys are compared text with text and number with number.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _padded(cell: str, width: int, to_right: bool) -> str:
    return cell.rjust(width) if to_right else cell.ljust(width)
