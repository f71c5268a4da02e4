"""Which classes occur in which label maps, how often and where: counted once and kept in the cache of `datasets`.

Used to draw crops and images by their classes (rare_classes.py) and to weight the classes of the loss.
"""

import hashlib
import logging
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm.auto import tqdm

from ..errors import DataError, first_few
from ..io import lock_file, whole_file
from .archive import location_stamp
from .class_counts import ClassCounter
from .loader import build_loader

logger = logging.getLogger(__name__)

PLACES = 16  # pixels of each class that are kept for each label map
FORMAT = 2  # counts up when the files' contents change, so that older files are not read
SECONDS_BETWEEN_LOOKS = 0.2  # at another process that is counting the same label maps
LONG_COUNT = 500  # label maps; counting fewer is too quick for a progress bar


@dataclass(frozen=True)
class ClassIndex:
    """The classes of each label map.

    Attributes:
        pixels: the pixels of each class in each label map, (images, classes) int64. A label map that cannot be read has none.
        places: `PLACES` random pixels (with repetitions) of each class that occurs, (occurrences, PLACES) uint32, in the order of
            `pixels.nonzero()`. A pixel is row × width + column, in the upright label map.
        unreadable: the numbers of the label maps that cannot be read, (label maps,) int64.
    """

    pixels: np.ndarray
    places: np.ndarray
    unreadable: np.ndarray

    def places_of(self, image: int, class_id: int) -> np.ndarray:
        """Some pixels of a class that occurs in the label map, (PLACES,) uint32."""
        return self.places[self._occurrence[image, class_id]]

    @cached_property
    def _occurrence(self) -> np.ndarray:
        occurs = self.pixels > 0
        return (np.cumsum(occurs) - 1).reshape(occurs.shape)


def class_pixel_counts(dataset: datasets.Dataset, num_workers: int | None = None) -> np.ndarray:
    """The pixels of each class in each label map of a dataset, (images, classes) int64; ignored pixels do not count.

    The label maps are read once, in the loader's workers; later calls read the counts from the cache of `datasets`. A label map
    that cannot be read is logged and counts as empty: training handles it (`on_bad_sample`).

    Args:
        dataset: a split, as from `load_segmentation_dataset`; of several, call it for each.
        num_workers: processes that read; 0: this process; None: `default_num_workers()`.
    """
    return class_index(dataset, num_workers).pixels


def class_index(dataset: datasets.Dataset, num_workers: int | None = None) -> ClassIndex:
    """The index of a dataset's label maps, from the cache or counted now; see [`class_pixel_counts`].

    Of several processes on a machine that ask at the same time, one counts, and the others wait for its file. The index does not
    depend on who counts. Label maps that could not be read are tried again at each call.
    """
    file = _cache_file(dataset)
    index = _kept(file, dataset)
    if index is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file):
            index = _kept(file, dataset)
            if index is None:
                index = _count(dataset, num_workers)
                _write(file, index)
    if len(index.unreadable):
        image_ids = dataset.select_columns("image_id")[index.unreadable.tolist()]["image_id"]
        logger.warning(
            "%d of %d label maps cannot be read and are not counted: %s", len(image_ids), len(dataset), first_few(image_ids)
        )
    return index


def _kept(file: Path, dataset: datasets.Dataset) -> ClassIndex | None:
    """The index in a file; None if there is none, or if label maps that could not be read then can be now."""
    index = _read(file)
    if index is None or not len(index.unreadable):
        return index
    again = _count(dataset.select(index.unreadable.tolist()), 0)
    return index if len(again.unreadable) == len(index.unreadable) else None


def _cache_file(dataset: datasets.Dataset) -> Path:
    """The name depends on the dataset's fingerprint, its classes, and the sizes and times of the label maps' files."""
    digest = hashlib.sha256(f"{FORMAT} {PLACES} {dataset._fingerprint}\n".encode())
    digest.update(dataset.features["label_map"].space.to_json().encode())
    for location in files_of(dataset, "label_map"):
        digest.update(f"\n{_stamp(location)}".encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "class_index" / f"{digest.hexdigest()[:32]}.npz"


def files_of(dataset: datasets.Dataset, column: str) -> list[str]:
    """The locations of the images or label maps that are not stored inside the dataset."""
    return [location for location in files_in_table(dataset, column) if location is not None]


def files_in_table(dataset: datasets.Dataset, column: str) -> list[str | None]:
    """The location of the image or label map of each row of the dataset's table; None for one stored inside the dataset."""
    stored = dataset.data.column(column)
    if not pa.types.is_struct(stored.type):
        return [None] * len(stored)
    is_file = pc.is_null(pc.struct_field(stored, "bytes"))
    return pc.if_else(is_file, pc.struct_field(stored, "path"), None).to_pylist()


def _stamp(location: str) -> str:
    try:
        return location_stamp(location)
    except OSError:  # on a server, or missing, which is noticed when it is read
        return location


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock_name = file.with_suffix(".lock")
    while (lock := lock_file(lock_name)) is None:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        if sys.platform == "win32":  # which does not delete an open file
            lock.close()
        lock_name.unlink(missing_ok=True)
        lock.close()


def _read(file: Path) -> ClassIndex | None:
    """The index in a file; None if there is none, or a crash of the machine has left it damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return ClassIndex(arrays["pixels"], arrays["places"], arrays["unreadable"])
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        logger.warning("%s is damaged (%s): the label maps are counted anew", file, error)
        return None


def _write(file: Path, index: ClassIndex) -> None:
    with whole_file(file) as partial, partial.open("wb") as stream:
        np.savez(stream, pixels=index.pixels, places=index.places, unreadable=index.unreadable)


def _count(dataset: datasets.Dataset, num_workers: int | None) -> ClassIndex:
    label_maps = _CountedLabelMaps(dataset)
    bar = tqdm(
        build_loader(label_maps, num_workers, collate_fn=_unchanged),
        desc="counting classes",
        unit="label map",
        disable=len(dataset) < LONG_COUNT or None,
    )
    pixels = np.zeros((len(dataset), label_maps.counter.space.num_classes), np.int64)
    places, unreadable = [np.zeros((0, PLACES), np.uint32)], []
    for row, counted in enumerate(bar):
        if counted is None:
            unreadable.append(row)
            continue
        pixels[row] = counted[0]
        places.append(counted[1])
    return ClassIndex(pixels, np.concatenate(places), np.array(unreadable, np.int64))


def _unchanged(counted: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Keeps the loader from converting arrays to tensors."""
    return counted


class _CountedLabelMaps(torch.utils.data.Dataset):
    """For each label map the pixels of each class and `PLACES` pixels of each class that occurs; None if it is unreadable."""

    def __init__(self, dataset: datasets.Dataset):
        self.counter = ClassCounter(dataset.features["label_map"].space)
        self._label_maps = dataset.select_columns("label_map").cast_column("label_map", self.counter.feature)

    def __len__(self) -> int:
        return len(self._label_maps)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            train_ids = np.asarray(self._label_maps[row]["label_map"])
        except DataError:
            return None
        pixels = self.counter.count(train_ids)[0][:-1]
        return pixels, _random_places(train_ids, pixels, np.random.default_rng(row))


def _random_places(train_ids: np.ndarray, pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """`PLACES` pixels of each class that occurs, (classes that occur, PLACES) uint32."""
    by_class = np.argsort(train_ids.ravel(), kind="stable")  # a radix sort, as the ids have eight bits
    counts = pixels[pixels > 0]
    starts = (np.cumsum(pixels) - pixels)[pixels > 0]
    return by_class[starts[:, None] + generator.integers(counts[:, None], size=(len(counts), PLACES))].astype(np.uint32)
