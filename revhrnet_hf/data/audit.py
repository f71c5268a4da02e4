"""Audits a dataset on disk: decodes every file and lists all problems, not only the first.

A finding is an error and makes the audit fail; a note may be correct. In a user's own classes, a class without a pixel in the
training split is a finding, and so is an id that the label table ignores on many pixels: usually the table is wrong. In a
published label space, a class that never occurs is only a note (an incomplete copy is found by its number of images), and
ignored ids are not reported.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from tqdm.auto import tqdm

from ..errors import AbsentSplitError, DataError
from ..images import Size, orient_to_fit
from ..text import table
from .archive import DataFolder
from .builder import SegmentationBuilder
from .class_counts import MOST_IGNORED, ClassCounter, ClassCounts, RawValue, ignored_text, is_published, unseen_text
from .datasets.hub import IMAGE, IMAGE_ID, LABEL_MAP, load_stored, stored_splits
from .features import RgbImage, RgbImageFile
from .label_space import LabelSpace, find_label_space, id_ranges
from .listing import Sample, locate_all, mismatch, size_text
from .loader import build_loader
from .loading import STORED, check_known, check_no_columns, find_builder, label_space_of, loader_of

MAX_SIZES = 4  # image sizes in the printed table; the JSON has all
TRAINING_SPLITS = ("train", "training", "trainval", "default")  # the first that exists counts as the training split


class Problem(NamedTuple):
    """A finding or a note: its kind, the file or folder, and a message.

    Kinds: listing, count, missing, image, label map, size, class, ignored; and orientation, only in notes.
    """

    kind: str
    file: str
    text: str


class CheckedSample(NamedTuple):
    """The result of decoding an image and its label map.

    Attributes:
        image_size: (width, height); None if the image is unreadable.
        pixels: the pixels of each train id and, last, the ignored pixels; None if the label map is unreadable.
        ignored: ignored id or colour → pixels.
        problems, notes: what was found.
    """

    image_size: Size | None
    pixels: np.ndarray | None
    ignored: dict[RawValue, int]
    problems: list[Problem]
    notes: list[Problem]


@dataclass
class SplitReport:
    """The contents of one split.

    Attributes:
        images: the number of entries in its list, whether the files exist or not.
        published: the publisher's number of images; None if unknown.
        counts: the pixels of each class and the ignored pixels.
        occurrences: the label maps in which each train id and, last, ignored pixels occur; (num_classes + 1,) int64.
        sizes: (width, height) of the readable images → number of images.
    """

    images: int
    published: int | None
    counts: ClassCounts
    occurrences: np.ndarray
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def pixels(self) -> np.ndarray:
        """The pixels of each train id and, last, the ignored pixels; (num_classes + 1,) int64."""
        return self.counts.pixels

    def add(self, checked: CheckedSample) -> None:
        if checked.image_size is not None:
            self.sizes[checked.image_size] += 1
        if checked.pixels is not None:
            self.counts.add(checked.pixels, checked.ignored)
            self.occurrences += checked.pixels > 0


@dataclass
class Audit:
    """The result of an audit.

    Attributes:
        dataset, label_space: the dataset's name and its label space.
        splits: split → its report.
        absent: missing split → the reason. Not a finding, because users may have only a part of a dataset.
        findings: error → the splits with it.
        notes: possible error → the splits with it.
    """

    dataset: str
    label_space: LabelSpace
    splits: dict[str, SplitReport] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    findings: dict[Problem, list[str]] = field(default_factory=dict)
    notes: dict[Problem, list[str]] = field(default_factory=dict)

    def find(self, problem: Problem, split: str) -> None:
        self.findings.setdefault(problem, []).append(split)

    def note(self, problem: Problem, split: str) -> None:
        self.notes.setdefault(problem, []).append(split)

    def to_dict(self) -> dict[str, Any]:
        """The audit in a form that JSON can hold."""
        names = [*self.label_space.names, "(ignored)"]
        return {
            "dataset": self.dataset,
            "label_space": self.label_space.name,
            "splits": {
                split: {
                    "images": report.images,
                    "published": report.published,
                    "sizes": {size_text(size): count for size, count in report.sizes.most_common()},
                    "pixels": dict(zip(names, report.pixels.tolist(), strict=True)),
                    "label_maps_with": dict(zip(names, report.occurrences.tolist(), strict=True)),
                }
                for split, report in self.splits.items()
            },
            "absent_splits": self.absent,
            "findings": [{**problem._asdict(), "splits": splits} for problem, splits in self.findings.items()],
            "notes": [{**problem._asdict(), "splits": splits} for problem, splits in self.notes.items()],
        }

    def __str__(self) -> str:
        parts = [f"{self.dataset}, label space {self.label_space.name}", table(self._split_rows()), table(self._class_rows())]
        if self.absent:
            parts.append(f"not there: {', '.join(self.absent)}")
        if self.notes:
            parts.append(table(self._rows("note", self.notes)))
        parts.append(table(self._rows("finding", self.findings)) if self.findings else "no findings")
        return "\n\n".join(parts)

    def _split_rows(self) -> Iterable[list[str]]:
        yield ["split", ">images", ">published", "width×height"]
        for split, report in self.splits.items():
            sizes = [f"{size_text(size)} ({count})" for size, count in report.sizes.most_common(MAX_SIZES)]
            others = len(report.sizes) - MAX_SIZES
            more = f" and {others} other sizes" if others > 0 else ""
            yield [split, str(report.images), str(report.published or "–"), ", ".join(sizes) + more]

    def _class_rows(self) -> Iterable[list[str]]:
        """Each class with its raw ids, and for each split its share of the pixels and the number of label maps with it."""
        space = self.label_space
        yield ["class", "ids", *(title for split in self.splits for title in (f">{split} %", ">label maps"))]
        shares = [100 * report.pixels / max(report.pixels.sum(), 1) for report in self.splits.values()]
        train_ids = [*range(space.num_classes), space.ignore_index]
        for row, (name, train_id) in enumerate(zip([*space.names, "(ignored)"], train_ids, strict=True)):
            ids = id_ranges(raw_id for raw_id, target in space.raw_ids.items() if target == train_id)
            counts = zip(shares, self.splits.values(), strict=True)
            yield [name, ids, *(cell for share, r in counts for cell in (f"{share[row]:.3f}", str(r.occurrences[row])))]

    @staticmethod
    def _rows(title: str, problems: dict[Problem, list[str]]) -> Iterable[list[str]]:
        yield [title, "splits", f"{len(problems)} in all"]
        for problem, splits in problems.items():
            yield [problem.kind, ", ".join(splits), problem.text]


def audit_dataset(
    name: str,
    data_dir: str | Path,
    splits: Iterable[str] = (),
    label_space: str | Path | None = None,
    num_workers: int | None = 0,
    loader: str | None = None,
    most_ignored: float = MOST_IGNORED,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Audit:
    """Decodes every image and label map of a dataset, with a progress bar, and lists all problems.

    Args:
        name, data_dir, label_space, loader, image_column, label_column: as for `load_segmentation_dataset`.
        splits: the splits to audit; all that exist if empty. Files that several splits share are read once.
        num_workers: processes that decode; 0: this process; None: `default_num_workers()`.
        most_ignored: per cent of a split's pixels that an id may cover if a user's own label table ignores it.

    Raises:
        DataError: the dataset, all its splits, or a named split does not exist.
    """
    loader = loader_of(name, loader)
    if loader == STORED:
        columns = image_column or IMAGE, label_column or LABEL_MAP
        return _audit_stored(name, data_dir, tuple(splits), label_space, columns, num_workers, most_ignored)
    check_no_columns(name, image_column, label_column)
    builder_class, data_dir, label_space = find_builder(loader, data_dir, label_space)
    audit = Audit(name, find_label_space(label_space))
    splits_of = _list_samples(audit, builder_class, data_dir, tuple(splits), label_space)
    check = partial(check_sample, counter=ClassCounter(audit.label_space))
    _decode(audit, list(splits_of), list(splits_of.values()), check, num_workers)
    # In a user's own folder a class that never occurs is an error, even if the classes are a published dataset's.
    is_own = not (builder_class.LABEL_SPACES and is_published(audit.label_space))
    _check_classes(audit, label_space, is_own)
    _check_ignored(audit, label_space, most_ignored)
    return audit


def _list_samples(
    audit: Audit, builder_class: type[SegmentationBuilder], data_dir: Path, splits: tuple[str, ...], label_space: str
) -> dict[Sample, list[str]]:
    """Sample → the splits that contain it; all splits if none is named."""
    data_folder = builder_class.open_folder(data_dir)
    possible = builder_class.splits(data_dir, label_space)
    for split in splits:
        check_known(f"split of {audit.dataset}", split, possible)
    splits_of: dict[Sample, list[str]] = {}
    for split in splits or possible:
        for sample in _list_split(audit, builder_class, data_folder, split, label_space):
            splits_of.setdefault(sample, []).append(split)
    if missing := [split for split in splits if split in audit.absent]:
        raise DataError(audit.absent[missing[0]])
    if not audit.splits and not audit.findings:
        raise DataError(" ".join(audit.absent.values()))
    return splits_of


def _audit_stored(
    name: str,
    source: str | Path,
    splits: tuple[str, ...],
    label_space: str | Path | None,
    columns: tuple[str, str],
    num_workers: int | None,
    most_ignored: float,
) -> Audit:
    """`audit_dataset` for a dataset that `datasets` has stored; `columns` are those of images and label maps."""
    possible = stored_splits(source)
    for split in splits:
        check_known(f"split of {source}", split, possible)
    loaded, failed = {}, {}
    for split in splits or possible:
        try:
            loaded[split] = load_stored(source, split, label_space, False, *columns)
        except DataError as error:
            failed[split] = error
    if not loaded:
        raise next(iter(failed.values()))
    audit = Audit(name, label_space_of(next(iter(loaded.values()))))
    for split, error in failed.items():
        audit.find(Problem("listing", str(source), str(error)), split)
    check = partial(check_row, counter=ClassCounter(audit.label_space))
    for split, dataset in loaded.items():
        audit.splits[split] = _empty_report(len(dataset), None, audit.label_space)
        _decode(audit, _undecoded(dataset), [[split]] * len(dataset), check, num_workers)
    table = str(label_space or source)
    _check_classes(audit, table, is_own=not is_published(audit.label_space))
    _check_ignored(audit, table, most_ignored)
    return audit


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    for column in (IMAGE, LABEL_MAP):
        dataset = dataset.cast_column(column, replace(dataset.features[column], decode=False))
    return dataset


def _list_split(
    audit: Audit, builder_class: type[SegmentationBuilder], data_folder: DataFolder, split: str, label_space: str
) -> list[Sample]:
    """The split's samples whose files exist; errors in the list become findings."""
    try:
        listed = builder_class.list_split(data_folder, split, label_space)
        samples, missing = locate_all(data_folder, listed)
    except AbsentSplitError as error:
        audit.absent[split] = str(error)
        return []
    except DataError as error:
        audit.find(Problem("listing", str(data_folder.root), str(error)), split)
        return []
    published = builder_class.published_count(data_folder, split, audit.label_space)
    audit.splits[split] = _empty_report(len(listed), published, audit.label_space)
    if published not in (None, len(listed)):
        text = f"{split} has {len(listed)} images, but {builder_class.TITLE} was published with {published}."
        audit.find(Problem("count", str(data_folder.root), text), split)
    for item in missing:
        text = f"{item.partner_kind} without its {item.kind}: {item.partner} (expected {item.expected})"
        audit.find(Problem("missing", item.expected, text), split)
    return samples


def _empty_report(images: int, published: int | None, label_space: LabelSpace) -> SplitReport:
    counts = ClassCounts.empty(label_space, total=images)
    return SplitReport(images, published, counts, np.zeros_like(counts.pixels))


def _decode(
    audit: Audit,
    pairs: Sequence[Any],
    splits_of: list[list[str]],
    check: Callable[[Any], CheckedSample],
    num_workers: int | None,
) -> None:
    """Checks each pair, in the loader's workers, and adds the result to the splits that contain it."""
    loader = build_loader(pairs, num_workers, collate_fn=check)
    for checked, splits in zip(tqdm(loader, desc="decoding", unit="image", disable=None), splits_of, strict=True):
        for split in splits:
            audit.splits[split].add(checked)
            for problem in checked.problems:
                audit.find(problem, split)
            for problem in checked.notes:
                audit.note(problem, split)


def _check_classes(audit: Audit, label_space: str, is_own: bool) -> None:
    """Reports classes that never occur in the training split, or only there."""
    trained = _training_split(audit)
    if trained is None:
        return
    counts = audit.splits[trained].counts
    for train_id in counts.unseen:
        others = [split for split, report in audit.splits.items() if report.pixels[train_id]]
        where = f"{trained} (it occurs in {' and '.join(others)})" if others else trained
        report = audit.find if is_own else audit.note
        report(Problem("class", label_space, unseen_text(counts, train_id, where)), trained)
    for split, report in audit.splits.items():
        absent = [counts.space.names[train_id] for train_id in report.counts.unseen if train_id not in counts.unseen]
        if absent and is_own and split != trained and report.counts.label_maps:
            text = f"No pixel in {split}, so that no score tells how well it is learnt: {', '.join(absent)}."
            audit.note(Problem("class", label_space, text), split)


def _training_split(audit: Audit) -> str | None:
    """The split that is probably the training split: by its name, else the largest one."""
    read = [split for split, report in audit.splits.items() if report.counts.label_maps]
    named = [split for split in TRAINING_SPLITS if split in read] + [split for split in read if split.startswith("train")]
    return next(iter(named), max(read, key=lambda split: audit.splits[split].images, default=None))


def _check_ignored(audit: Audit, label_space: str, most: float) -> None:
    """Reports ids and colours that are ignored on many pixels; `ClassCounter` counts them only for a user's own label table."""
    for split, report in audit.splits.items():
        for raw in report.counts.much_ignored(most):
            text = ignored_text(report.counts, raw, split, most)
            audit.find(Problem("ignored", label_space, f"{text} If so much is meant to be ignored, raise --max_ignored."), split)


def check_sample(sample: Sample, counter: ClassCounter) -> CheckedSample:
    """Decodes an image and its label map."""
    image = {"path": sample.image, "bytes": None}
    label_map = {"path": sample.label_map, "bytes": sample.annotation}
    return _check_pair(image, label_map, f"Image {sample.image}", (sample.image, sample.label_map), counter)


def check_row(row: dict[str, Any], counter: ClassCounter) -> CheckedSample:
    """`check_sample` for a row of a stored dataset."""
    image_id = row[IMAGE_ID]
    return _check_pair(row[IMAGE], row[LABEL_MAP], f"Image {image_id}", (image_id, image_id), counter)


def _check_pair(
    image_value: dict[str, Any], label_value: dict[str, Any], shown: str, files: tuple[str, str], counter: ClassCounter
) -> CheckedSample:
    """Decodes stored values; `shown` and `files` are their names in messages."""
    problems, notes, image, label_map = [], [], None, None
    (image_file, label_file), opened = files, None
    try:
        image, opened = RgbImage().decode_example(image_value), RgbImage().open(image_value)
    except DataError as error:
        problems.append(Problem("image", image_file, _naming(image_file, error)))
    try:
        label_map = counter.feature.decode_example(label_value)
    except DataError as error:
        problems.append(Problem("label map", label_file, _naming(label_file, error)))
    if image and label_map:
        image = orient_to_fit(image, label_map.size)
        if image.size != label_map.size:
            text = mismatch(shown, image.size, opened.orientation, "its label map", label_map.size)
            problems.append(Problem("size", image_file, text))
        if is_ambiguous(opened, label_map.size):
            text = (
                f"{shown} has the EXIF orientation {opened.orientation}, and its label map fits both the turned and the stored "
                "image: check that image and label map show the same."
            )
            notes.append(Problem("orientation", image_file, text))
    pixels, ignored = (None, {}) if label_map is None else counter.count(np.asarray(label_map))
    return CheckedSample(image and image.size, pixels, ignored, problems, notes)


def _naming(file: str, error: DataError) -> str:
    """The error's text with the file's name, which is missing if the image is stored inside the dataset."""
    return str(error) if file in str(error) else f"Image {file}: {error}"


def is_ambiguous(image: RgbImageFile, label_map_size: Size) -> bool:
    """Whether a label map of this (width, height) fits a turned image both as stored and as turned."""
    stored_size = image.size[::-1] if image.orientation > 4 else image.size
    return image.orientation != 1 and image.size == stored_size == label_map_size
