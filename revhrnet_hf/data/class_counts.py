"""Whether there is something to learn: which classes never occur, and how much is ignored.

The commonest way to train on nothing is a mask of 0 and 255 with `names: [background, person]`: 255 is ignored unless the label
table says otherwise, so that no pixel is a person. The audit counts every pixel (audit.py); `warn_of_unseen_classes` looks at
some label maps before a training.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import datasets
import numpy as np

from ..errors import DataError
from .features import LabelMap
from .label_space import LABEL_SPACES, LabelSpace

MOST_IGNORED = 5.0  # per cent of the pixels that a single ignored id or colour may cover
MOST_READ = 200  # label maps that are read before a training
FEWEST_READ = 20  # after which it suffices to have seen every class
LONGEST_EXAMPLE = 6  # classes of a label table that a message writes out

Raw = int | tuple[int, int, int]


@dataclass
class ClassCounts:
    """What label maps hold.

    Attributes:
        space: their label space.
        pixels: of each train id and, last, ignored ones; (num_classes + 1,) int64.
        ignored: ignored id or colour → pixels, where they are counted apart (`Counting`).
        label_maps, of: how many were counted, and of how many.
    """

    space: LabelSpace
    pixels: np.ndarray
    ignored: dict[Raw, int] = field(default_factory=dict)
    label_maps: int = 0
    of: int = 0

    @classmethod
    def none_of(cls, space: LabelSpace, of: int = 0) -> "ClassCounts":
        return cls(space, np.zeros(space.num_classes + 1, np.int64), of=of)

    def add(self, pixels: np.ndarray, ignored: dict[Raw, int]) -> None:
        """One more label map."""
        self.pixels += pixels
        self.label_maps += 1
        for raw, count in ignored.items():
            self.ignored[raw] = self.ignored.get(raw, 0) + count

    @property
    def unseen(self) -> list[int]:
        """Train ids of the classes that have no pixel."""
        return np.flatnonzero(self.pixels[:-1] == 0).tolist()

    def percent(self, raw: Raw) -> float:
        return 100 * self.ignored[raw] / max(1, int(self.pixels.sum()))

    def much_ignored(self, most: float = MOST_IGNORED) -> list[Raw]:
        """Ids and colours that are ignored on more than `most` per cent of the pixels, the commonest first."""
        return sorted((raw for raw in self.ignored if self.percent(raw) > most), key=self.percent, reverse=True)


class Counting:
    """Counts a label map's classes, and apart from each other the ids and colours that a label table ignores.

    Args:
        space: of the label maps. Of a published one all that is ignored is one, for its publisher knows what that is.
    """

    def __init__(self, space: LabelSpace):
        self.space = space
        ignored = [] if is_published(space) else _ignored_values(space)
        # Each gets a class of its own behind the others.
        self._apart = ignored[: space.ignore_index - space.num_classes]
        class_of = {raw: space.num_classes + k for k, raw in enumerate(self._apart)}
        self.feature = LabelMap.of(
            replace(
                space,
                names=(*space.names, *(f"ignored {raw}" for raw in self._apart)),
                colours=(*space.colours, *((0, 0, 0) for _ in self._apart)),
                raw_ids={raw: class_of.get(raw, train_id) for raw, train_id in space.raw_ids.items()},
                raw_colours={raw: class_of.get(raw, train_id) for raw, train_id in space.raw_colours.items()},
            )
            if self._apart
            else space
        )

    def count(self, train_ids: np.ndarray) -> tuple[np.ndarray, dict[Raw, int]]:
        """Pixels of each class and, last, ignored ones; and of each ignored id and colour.

        Args:
            train_ids: (height, width) uint8, a label map that `feature` has decoded.
        """
        counts = np.bincount(train_ids.ravel(), minlength=256)
        first, behind = self.space.num_classes, self.space.num_classes + len(self._apart)
        apart = counts[first:behind]
        pixels = np.append(counts[:first], counts[self.space.ignore_index] + apart.sum())
        return pixels, {raw: count for raw, count in zip(self._apart, apart.tolist(), strict=True) if count}


def is_published(space: LabelSpace) -> bool:
    """Whether the classes are those of a known dataset and not of somebody's own label table."""
    known = LABEL_SPACES.get(space.name)
    return known is not None and known.names == space.names


def _ignored_values(space: LabelSpace) -> list[Raw]:
    tables = (space.raw_ids, space.raw_colours)
    return [raw for table in tables for raw, train_id in table.items() if train_id == space.ignore_index]


def unseen_text(counts: ClassCounts, train_id: int, where: str) -> str:
    """A sentence on a class without a pixel `where`, and what may be the reason."""
    name = counts.space.names[train_id]
    ids = [raw_id for raw_id, target in counts.space.raw_ids.items() if target == train_id]
    shown = f" (id {', '.join(map(str, ids[:LONGEST_EXAMPLE]))})" if ids else ""
    said = f"The class {name!r}{shown} has no pixel in {where}, so that it cannot be learnt."
    suspects = counts.much_ignored(0)
    if not suspects:
        return f"{said} Add label maps that hold it, or take it out of the label table."
    raw = suspects[0]
    return (
        f"{said} {counts.percent(raw):.1f} % of the pixels are {_shown(raw)}, which is ignored: if that is {name!r}, the label "
        f"table must say so, {_example(counts.space, train_id, raw)}."
    )


def ignored_text(counts: ClassCounts, raw: Raw, where: str, most: float) -> str:
    """A sentence on an id or colour that is ignored on more pixels than is usual."""
    return (
        f"{counts.percent(raw):.1f} % of the pixels in {where} are {_shown(raw)}, which is ignored: nothing is learnt from more "
        f"than {most:g} % of them. If it is a class, name it in the label table, such as person: {_as_yaml(raw)}."
    )


def _shown(raw: Raw) -> str:
    return f"the id {raw}" if isinstance(raw, int) else f"the colour {raw}"


def _as_yaml(raw: Raw) -> str:
    return str(raw) if isinstance(raw, int) else f"{{colours: {list(raw)}}}"


def _example(space: LabelSpace, train_id: int, raw: Raw) -> str:
    """How the label table would say that `raw` is this class."""
    wanted = f"{space.names[train_id]}: {_as_yaml(raw)}"
    ids = [next((i for i, target in space.raw_ids.items() if target == k), None) for k in range(space.num_classes)]
    if space.num_classes > LONGEST_EXAMPLE or any(i is None for k, i in enumerate(ids) if k != train_id):
        return wanted
    lines = [wanted if k == train_id else f"{name}: {i}" for k, (name, i) in enumerate(zip(space.names, ids, strict=True))]
    return f"names: {{{', '.join(lines)}}}"


def count_classes(sets: Sequence[datasets.Dataset], space: LabelSpace, most: int = MOST_READ) -> ClassCounts:
    """Counts classes in label maps of datasets that are all in the classes of `space`.

    At most `most` are read, spread over all of them in an order that does not change; and no more than `FEWEST_READ` once every
    class was seen. Label maps that cannot be read do not count: training has its own way with them (`on_bad_sample`).
    """
    places = [(number, row) for number, dataset in enumerate(sets) for row in range(len(dataset))]
    chosen = random.Random(0).sample(places, min(most, len(places)))
    countings = [Counting(dataset.features["label_map"].space) for dataset in sets]
    label_maps = [
        dataset.select_columns("label_map").cast_column("label_map", counting.feature)
        for dataset, counting in zip(sets, countings, strict=True)
    ]
    counts = ClassCounts.none_of(space, of=len(places))
    for number, row in chosen:
        try:
            train_ids = np.asarray(label_maps[number][row]["label_map"])
        except DataError:
            continue
        counts.add(*countings[number].count(train_ids))
        if counts.label_maps >= FEWEST_READ and not counts.unseen:
            break
    return counts


def warn_of_unseen_classes(sets: Sequence[datasets.Dataset], space: LabelSpace) -> None:
    """Says on stderr which classes have no pixel in what is trained on, and which ids are ignored on much of it.

    Where not all label maps are read, nothing is said of published classes, some of which are rare.
    """
    counts = count_classes(sets, space)
    is_whole = counts.label_maps == counts.of
    where = f"the {counts.of} label maps that are trained on"
    if not is_whole:
        where = f"the {counts.label_maps} label maps that were looked at, of {counts.of} that are trained on"
    texts = []
    if is_whole or not is_published(space):
        texts += [unseen_text(counts, train_id, where) for train_id in counts.unseen]
    # What is said of a class that may be the ignored id need not be said of the id again.
    if not texts:
        texts += [ignored_text(counts, raw, where, MOST_IGNORED) for raw in counts.much_ignored()]
    for text in texts:
        print(f"warning: {text} (scripts/audit_data.py looks at everything)", file=sys.stderr)
