"""The audit of a data set on disk: every file decoded, every finding listed, not only the first."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..errors import AbsentSplitError, DataError
from .builder import SegmentationBuilder
from .label_map import LabelMap, Picture
from .label_space import LabelSpace, find_label_space, id_ranges
from .listing import Listed, Sample, by, locate_all
from .loader import build_loader
from .loading import check_known, find_builder
from .tree import DataTree

MAX_SIZES = 4  # that the table names; the JSON has all


class Problem(NamedTuple):
    """What is wrong: kind (listing, count, missing, picture, label map or size), the file or folder, and a sentence."""

    kind: str
    file: str
    text: str


class Checked(NamedTuple):
    """What one picture and its label map hold.

    `pixels` counts the pixels of each train id and, last, of the ignored ones; sizes are (width, height). None: unreadable.
    """

    image_size: tuple[int, int] | None
    pixels: np.ndarray | None
    problems: list[Problem]


@dataclass
class SplitReport:
    """What one split holds.

    Attributes:
        pictures: entries of its list, whether their files are there or not.
        published: how many its owner says there are; None if the owner says nothing.
        sizes: (width, height) of the readable pictures → how many.
        pixels: of each train id and, last, ignored ones; (num_classes + 1,) int64.
        occurrences: label maps in which each of these occurs.
    """

    pictures: int
    published: int | None
    pixels: np.ndarray
    occurrences: np.ndarray
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, checked: Checked) -> None:
        if checked.image_size is not None:
            self.sizes[checked.image_size] += 1
        if checked.pixels is not None:
            self.pixels += checked.pixels
            self.occurrences += checked.pixels > 0


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        dataset, label_space: what was audited.
        splits: by name.
        absent: splits that are not there, with the reason; no findings, for people have parts of data sets.
        findings: everything that is wrong → the splits in which it is.
    """

    dataset: str
    label_space: LabelSpace
    splits: dict[str, SplitReport] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    findings: dict[Problem, list[str]] = field(default_factory=dict)

    def find(self, problem: Problem, split: str) -> None:
        self.findings.setdefault(problem, []).append(split)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = [*self.label_space.names, "(ignored)"]
        return {
            "dataset": self.dataset,
            "label_space": self.label_space.name,
            "splits": {
                split: {
                    "pictures": report.pictures,
                    "published": report.published,
                    "sizes": {by(size): count for size, count in report.sizes.most_common()},
                    "pixels": dict(zip(names, report.pixels.tolist(), strict=True)),
                    "label_maps_with": dict(zip(names, report.occurrences.tolist(), strict=True)),
                }
                for split, report in self.splits.items()
            },
            "absent_splits": self.absent,
            "findings": [{**problem._asdict(), "splits": splits} for problem, splits in self.findings.items()],
        }

    def __str__(self) -> str:
        parts = [f"{self.dataset}, label space {self.label_space.name}", _table(self._split_rows()), _table(self._class_rows())]
        if self.absent:
            parts.append(f"not there: {', '.join(self.absent)}")
        parts.append(_table(self._finding_rows()) if self.findings else "no findings")
        return "\n\n".join(parts)

    def _split_rows(self) -> Iterable[list[str]]:
        yield ["split", ">pictures", ">published", "width×height"]
        for split, report in self.splits.items():
            sizes = [f"{by(size)} ({count})" for size, count in report.sizes.most_common(MAX_SIZES)]
            others = len(report.sizes) - MAX_SIZES
            more = f" and {others} other sizes" if others > 0 else ""
            yield [split, str(report.pictures), str(report.published or "–"), ", ".join(sizes) + more]

    def _class_rows(self) -> Iterable[list[str]]:
        """Of each class its raw ids, and for each split its share of the pixels and the label maps in which it occurs."""
        space = self.label_space
        yield ["class", "ids", *(title for split in self.splits for title in (f">{split} %", ">label maps"))]
        shares = [100 * report.pixels / max(report.pixels.sum(), 1) for report in self.splits.values()]
        train_ids = [*range(space.num_classes), space.ignore_index]
        for row, (name, train_id) in enumerate(zip([*space.names, "(ignored)"], train_ids, strict=True)):
            ids = id_ranges(raw_id for raw_id, target in space.raw_ids.items() if target == train_id)
            counts = zip(shares, self.splits.values(), strict=True)
            yield [name, ids, *(cell for share, r in counts for cell in (f"{share[row]:.3f}", str(r.occurrences[row])))]

    def _finding_rows(self) -> Iterable[list[str]]:
        yield ["finding", "splits", f"{len(self.findings)} in all"]
        for problem, splits in self.findings.items():
            yield [problem.kind, ", ".join(splits), problem.text]


def audit_dataset(
    name: str,
    data_dir: str | Path,
    splits: Iterable[str] = (),
    label_space: str | Path | None = None,
    num_workers: int | None = 0,
) -> Audit:
    """Decodes every picture and label map of a data set in a folder, with a progress bar, and lists all that is wrong.

    Args:
        name, data_dir, label_space: as for `load_segmentation_dataset`.
        splits: which; every split that is there if none is named. Files that several splits share are read once.
        num_workers: processes that decode; 0: this one; None: one for each core or two.

    Raises:
        DataError: there is no such data set, or none of its splits, or not one that is named.
    """
    builder_class, data_dir, label_space = find_builder(name, data_dir, label_space)
    tree = builder_class.open_tree(data_dir)
    possible = builder_class.splits(data_dir, label_space)
    for split in splits:
        check_known(f"split of {name}", split, possible)
    audit = Audit(name, find_label_space(label_space))
    wanted: dict[Sample, list[str]] = {}
    for split in splits or possible:
        for sample in _samples(audit, builder_class, tree, split, label_space):
            wanted.setdefault(sample, []).append(split)
    if missing := [split for split in splits if split in audit.absent]:
        raise DataError(audit.absent[missing[0]])
    if not audit.splits and not audit.findings:
        raise DataError(" ".join(audit.absent.values()))
    _check_files(audit, wanted, num_workers)
    return audit


def _samples(
    audit: Audit, builder_class: type[SegmentationBuilder], tree: DataTree, split: str, label_space: str
) -> list[Sample]:
    """The split's pairs of files that are there; whatever is wrong with the list itself goes to the findings."""
    try:
        listed = builder_class.list_split(tree, split, label_space)
    except AbsentSplitError as error:
        audit.absent[split] = str(error)
        return []
    except DataError as error:
        audit.find(Problem("listing", str(tree.root), str(error)), split)
        return []
    audit.splits[split] = _empty_report(listed, builder_class.PUBLISHED_COUNTS.get(split), audit.label_space)
    published = audit.splits[split].published
    if published not in (None, len(listed)):
        text = f"{split} has {len(listed)} pictures, but {builder_class.TITLE} was published with {published}."
        audit.find(Problem("count", str(tree.root), text), split)
    samples, lost = locate_all(tree, listed)
    for item in lost:
        text = f"{item.partner_kind} without its {item.kind}: {item.partner} (expected {item.missing})"
        audit.find(Problem("missing", item.missing, text), split)
    return samples


def _empty_report(listed: list[Listed], published: int | None, label_space: LabelSpace) -> SplitReport:
    pixels, occurrences = np.zeros((2, label_space.num_classes + 1), np.int64)
    return SplitReport(len(listed), published, pixels, occurrences)


def _check_files(audit: Audit, wanted: dict[Sample, list[str]], num_workers: int) -> None:
    check = partial(check_sample, feature=LabelMap.of(audit.label_space))
    loader = build_loader(list(wanted), num_workers, collate_fn=check)  # the workers decode
    for checked, splits in zip(tqdm(loader, desc="decoding", unit="picture"), wanted.values(), strict=True):
        for split in splits:
            audit.splits[split].add(checked)
            for problem in checked.problems:
                audit.find(problem, split)


def check_sample(sample: Sample, feature: LabelMap) -> Checked:
    """Decodes a picture and its label map."""
    problems, image, label_map = [], None, None
    try:
        image = Picture().decode_example({"path": sample.image, "bytes": None})
    except DataError as error:
        problems.append(Problem("picture", sample.image, str(error)))
    try:
        label_map = feature.decode_example({"path": sample.label_map, "bytes": sample.annotation})
    except DataError as error:
        problems.append(Problem("label map", sample.label_map, str(error)))
    if image and label_map and image.size != label_map.size:
        text = f"Picture {sample.image} is {by(image.size)} pixels (width×height) but its label map is {by(label_map.size)}."
        problems.append(Problem("size", sample.image, text))
    pixels = None if label_map is None else _count(np.asarray(label_map), feature.space)
    return Checked(image and image.size, pixels, problems)


def _count(train_ids: np.ndarray, space: LabelSpace) -> np.ndarray:
    counts = np.bincount(train_ids.ravel(), minlength=256)
    return np.append(counts[: space.num_classes], counts[space.ignore_index])


def _table(rows: Iterable[list[str]]) -> str:
    """Columns in line; those whose title begins with > to the right."""
    title, *body = rows
    right = [cell.startswith(">") for cell in title]
    rows = [[cell.removeprefix(">") for cell in title], *body]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths, right) for row in rows)


def _line(cells: list[str], widths: list[int], right: list[bool]) -> str:
    aligned = (cell.rjust(w) if to_right else cell.ljust(w) for cell, w, to_right in zip(cells, widths, right, strict=True))
    return "  ".join(aligned).rstrip()
