"""Counts the pixels of each class and of ignored ids, to find classes that cannot be learnt.

The most common mistake is a mask of 0 and 255 with `names: [background, person]`: 255 is ignored unless the label table says
otherwise, so that no pixel is a person. The audit counts every pixel (audit.py); `warn_of_unseen_classes` reads some label maps
before a training.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from ..defaults import MOST_IGNORED
from ..errors import DataError, first_few
from ..images import Colour
from .features import LabelMap
from .label_space import LABEL_SPACES, LabelSpace

logger = logging.getLogger(__name__)

MOST_READ = 200  # label maps that are read before a training
FEWEST_READ = 20  # label maps after which reading may stop, once every class has occurred
LONGEST_EXAMPLE = 6  # classes of a label table that a message writes out

RawValue = int | Colour


@dataclass
class ClassCounts:
    """The pixels of each class in a set of label maps.

    Attributes:
        space: the label space.
        pixels: the pixels of each train id and, last, the ignored pixels; (num_classes + 1,) int64.
        ignored: ignored id or colour → pixels, if they are counted separately (`ClassCounter`).
        label_maps: the number of label maps counted.
        total: the number of label maps in the set.
    """

    space: LabelSpace
    pixels: np.ndarray
    ignored: dict[RawValue, int] = field(default_factory=dict)
    label_maps: int = 0
    total: int = 0

    @classmethod
    def empty(cls, space: LabelSpace, total: int = 0) -> "ClassCounts":
        return cls(space, np.zeros(space.num_classes + 1, np.int64), total=total)

    def add(self, pixels: np.ndarray, ignored: dict[RawValue, int]) -> None:
        """Adds the counts of one label map."""
        self.pixels += pixels
        self.label_maps += 1
        for raw, count in ignored.items():
            self.ignored[raw] = self.ignored.get(raw, 0) + count

    @property
    def unseen(self) -> list[int]:
        """The train ids of the classes without a pixel."""
        return np.flatnonzero(self.pixels[:-1] == 0).tolist()

    def percent(self, raw: RawValue) -> float:
        return 100 * self.ignored[raw] / max(1, int(self.pixels.sum()))

    def much_ignored(self, most: float = MOST_IGNORED) -> list[RawValue]:
        """Ignored ids and colours that cover more than `most` per cent of the pixels, the most common first."""
        return sorted((raw for raw in self.ignored if self.percent(raw) > most), key=self.percent, reverse=True)


class ClassCounter:
    """Counts the classes in a label map, and separately each id and colour that a user's label table ignores.

    Args:
        space: the label space of the label maps. Ignored ids of a published label space are not counted separately.
    """

    def __init__(self, space: LabelSpace):
        self.space = space
        ignored = [] if is_published(space) else _ignored_values(space)
        # Each of these gets its own train id after those of the classes. The label maps are read as with `space` itself.
        self._separate = ignored[: space.ignore_index - space.num_classes]
        class_of = {raw: space.num_classes + k for k, raw in enumerate(self._separate)}
        self.feature = LabelMap.of(
            replace(
                space,
                raw_ids={raw: class_of.get(raw, train_id) for raw, train_id in space.raw_ids.items()},
                raw_colours={raw: class_of.get(raw, train_id) for raw, train_id in space.raw_colours.items()},
                counted_apart=len(self._separate),
            )
        )

    def count(self, train_ids: np.ndarray) -> tuple[np.ndarray, dict[RawValue, int]]:
        """Counts the pixels of each class and, last, the ignored pixels; and those of each ignored id and colour.

        Args:
            train_ids: (height, width) uint8, a label map that `feature` has decoded.
        """
        counts = np.bincount(train_ids.ravel(), minlength=256)
        num_classes = self.space.num_classes
        separate = counts[num_classes : num_classes + len(self._separate)]
        pixels = np.append(counts[:num_classes], counts[self.space.ignore_index] + separate.sum())
        return pixels, {raw: count for raw, count in zip(self._separate, separate.tolist(), strict=True) if count}


def is_published(space: LabelSpace) -> bool:
    """Whether the classes are those of a published dataset rather than a user's own label table."""
    known = LABEL_SPACES.get(space.name)
    return known is not None and known.names == space.names


def _ignored_values(space: LabelSpace) -> list[RawValue]:
    tables = (space.raw_ids, space.raw_colours)
    return [raw for table in tables for raw, train_id in table.items() if train_id == space.ignore_index]


def unseen_text(counts: ClassCounts, train_id: int, where: str) -> str:
    """A message about a class without a pixel in `where`, and the probable reason."""
    name = counts.space.names[train_id]
    ids = [raw_id for raw_id, target in counts.space.raw_ids.items() if target == train_id]
    shown = f" (id {', '.join(map(str, ids[:LONGEST_EXAMPLE]))})" if ids else ""
    finding = f"The class {name!r}{shown} has no pixel in {where}, so that it cannot be learnt."
    suspects = counts.much_ignored(0)
    if not suspects:
        or_else = "" if is_published(counts.space) else ", or take it out of the label table"
        return f"{finding} Add label maps that hold it{or_else}."
    raw = suspects[0]
    return (
        f"{finding} {counts.percent(raw):.1f} % of the pixels are {_shown(raw)}, which is ignored: if that is {name!r}, the "
        f"label table must say so, {_example(counts.space, train_id, raw)}."
    )


def ignored_text(counts: ClassCounts, raw: RawValue, where: str, most: float) -> str:
    """A message about an id or colour that is ignored on more than `most` per cent of the pixels."""
    return (
        f"{counts.percent(raw):.1f} % of the pixels in {where} are {_shown(raw)}, which is ignored; more than {most:g} % is "
        f"unusual. If it is a class, name it in the label table, such as person: {_as_yaml(raw)}."
    )


def _shown(raw: RawValue) -> str:
    return f"the id {raw}" if isinstance(raw, int) else f"the colour {raw}"


def _as_yaml(raw: RawValue) -> str:
    return str(raw) if isinstance(raw, int) else f"{{colours: {list(raw)}}}"


def _example(space: LabelSpace, train_id: int, raw: RawValue) -> str:
    """The line of a label table that maps `raw` to this class."""
    wanted = f"{space.names[train_id]}: {_as_yaml(raw)}"
    ids = [next((i for i, target in space.raw_ids.items() if target == k), None) for k in range(space.num_classes)]
    if space.num_classes > LONGEST_EXAMPLE or any(i is None for k, i in enumerate(ids) if k != train_id):
        return wanted
    lines = [wanted if k == train_id else f"{name}: {i}" for k, (name, i) in enumerate(zip(space.names, ids, strict=True))]
    return f"names: {{{', '.join(lines)}}}"


def count_classes(sets: Sequence[datasets.Dataset], space: LabelSpace, most: int = MOST_READ) -> ClassCounts:
    """Counts the classes in a sample of the datasets' label maps; all datasets have the classes of `space`.

    At most `most` label maps are read, in a random order that is always the same. Reading stops after `FEWEST_READ` once every
    class has occurred. Unreadable label maps are skipped: training handles them (`on_bad_sample`).
    """
    rows = [(number, row) for number, dataset in enumerate(sets) for row in range(len(dataset))]
    chosen = random.Random(0).sample(rows, min(most, len(rows)))
    counters = [ClassCounter(dataset.features["label_map"].space) for dataset in sets]
    label_maps = [
        dataset.select_columns("label_map").cast_column("label_map", counter.feature)
        for dataset, counter in zip(sets, counters, strict=True)
    ]
    counts = ClassCounts.empty(space, total=len(rows))
    for number, row in chosen:
        try:
            train_ids = np.asarray(label_maps[number][row]["label_map"])
        except DataError:
            continue
        counts.add(*counters[number].count(train_ids))
        if counts.label_maps >= FEWEST_READ and not counts.unseen:
            break
    return counts


def warn_of_unseen_classes(sets: Sequence[datasets.Dataset], space: LabelSpace) -> None:
    """Logs a warning of the classes without a pixel in the training data; if there are none, of each id that is ignored on much.

    If only some label maps were read, it does not warn of the classes of published datasets: some are rare.
    """
    counts = count_classes(sets, space)
    is_complete = counts.label_maps == counts.total
    where = f"the {counts.total} label maps that are trained on"
    if not is_complete:
        where = f"the {counts.label_maps} label maps that were read, of {counts.total} that are trained on"
    unseen = counts.unseen if is_complete or not is_published(space) else []
    if unseen:  # the message about an unseen class names the ignored id already
        first, *others = unseen
        texts = [unseen_text(counts, first, where)]
        if others:
            texts.append(f"{len(others)} more classes have no pixel there: {first_few(space.names[other] for other in others)}")
    else:
        texts = [ignored_text(counts, raw, where, MOST_IGNORED) for raw in counts.much_ignored()]
    for text in texts:
        logger.warning("%s (`revhrnet audit` reads all of them)", text)
