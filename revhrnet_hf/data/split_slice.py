"""Parts of a split: `train[:10%]`, `train[100:200]`, `train[::4]`."""

import re
from dataclasses import dataclass

from ..errors import DataError

BOUND = r"(-?\d+%?)?"
FORM = re.compile(rf"(?P<name>[^\[\]]+)\[{BOUND}:{BOUND}(?::(\d+))?\]")


@dataclass(frozen=True)
class SplitSlice:
    """Some images of a split.

    Attributes:
        name: the whole split.
        start, stop: as in Python's slices, in images or, with `%` behind them, in per cent; None: from the first, to the last.
        step: every so many images.
    """

    name: str
    start: str | None = None
    stop: str | None = None
    step: int = 1

    @classmethod
    def of_text(cls, split: str) -> "SplitSlice":
        """From the name of a split, or a name with a slice behind it.

        Raises:
            DataError: there is a bracket, but no slice.
        """
        match = FORM.fullmatch(split)
        if match is None and "[" in split:
            raise DataError(
                f"{split!r} is not a split with a slice: write it as train[:100], train[50%:] or train[::4] (every fourth image)"
            )
        if match is None:
            return cls(split)
        start, stop, step = match.groups()[1:]
        if step is not None and int(step) == 0:
            raise DataError(f"{split!r}: the step of a slice is at least 1")
        return cls(match["name"], start, stop, int(step or 1))

    @property
    def is_whole(self) -> bool:
        return self == SplitSlice(self.name)

    def rows(self, count: int) -> range:
        """The rows that are selected from `count` images. Per cents are rounded to the nearest image, so parts do not overlap."""
        bounds = [None if bound is None else _in_images(bound, count) for bound in (self.start, self.stop)]
        return range(count)[slice(*bounds, self.step)]


def _in_images(bound: str, count: int) -> int:
    if not bound.endswith("%"):
        return int(bound)
    images = round(count * abs(int(bound[:-1])) / 100)
    return max(0, count - images) if bound.startswith("-") else images  # not `-images`: of few images that may be 0, the first
