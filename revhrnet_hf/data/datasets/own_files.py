"""Checks that the rows of a stored dataset refer only to the dataset's own files.

`datasets` stores an image as bytes, or as a path that the dataset's author chose. When a user saves or pushes the dataset, the
content of that file is copied into it, whatever the file is. So a path must lead into the dataset's own folder, or to a file that
`datasets` itself unpacked or downloaded for it. Other URLs are never followed.
"""

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
from huggingface_hub.constants import HF_HUB_CACHE

from ...errors import DataError
from ..annotation import JSON_START
from ..archive import split_location

FOLDER_BUILDER = "imagefolder"  # a builder of `datasets` that lists image files itself and unpacks archives into its cache
SNAPSHOTS = "snapshots"  # a folder in the Hub's cache; its files are links to ../../blobs


class OwnFiles:
    """The files of one dataset.

    Args:
        source: the dataset's folder, or its name on the Hub.
        builder: the builder of `datasets` that listed its files; None for a dataset written by `save_to_disk`.
    """

    def __init__(self, source: str | Path, builder: str | None = None):
        self.source = str(source)
        folder = Path(source).expanduser()
        self._is_local = folder.exists()
        own = _repository(folder.resolve()) if self._is_local else Path(HF_HUB_CACHE) / f"datasets--{source}".replace("/", "--")
        caches = (datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.EXTRACTED_DATASETS_PATH)
        self._roots = [os.path.realpath(root) for root in (own, *(caches if builder == FOLDER_BUILDER else ()))]

    def check_column(self, dataset: datasets.Dataset, column: str) -> None:
        """Raises a DataError for the first row of an image column that refers to another file."""
        stored = dataset.data.column(column)
        contents, paths = pc.struct_field(stored, "bytes"), pc.struct_field(stored, "path")
        for path in paths.filter(pc.is_null(contents)).drop_null().unique().to_pylist():
            self._check(path, column)
        for annotation in contents.filter(pc.fill_null(pc.starts_with(contents, JSON_START), False)):
            self._check_annotation(annotation.as_py(), column)

    def check_value(self, value: dict[str, Any], column: str) -> None:
        """Raises a DataError if a stored value refers to another file."""
        if value["bytes"] is None:
            if value["path"] is not None:
                self._check(value["path"], column)
        elif value["bytes"].startswith(JSON_START):
            self._check_annotation(value["bytes"], column)

    def _check_annotation(self, annotation: bytes, column: str) -> None:
        for path in _pointers(annotation):
            self._check(path, column)

    def _check(self, path: str, column: str) -> None:
        if not self._holds(path):
            raise DataError(
                f"The column {column!r} of {self.source} points to {path}, which is none of the dataset's own files. It is not "
                "opened, because its content would be copied into the dataset when that is saved. If you trust the dataset, "
                "store the images themselves in it (their bytes), or put the files into its folder."
            )

    def _holds(self, path: str) -> bool:
        file, _ = split_location(path)
        if "://" in file:
            return not self._is_local and file.startswith((f"hf://datasets/{self.source}@", f"hf://datasets/{self.source}/"))
        if ".." in Path(file).parts:
            return False
        real = os.path.join(_real_folder(os.path.dirname(file)), os.path.basename(file))
        real = os.path.realpath(real) if os.path.islink(real) else real
        return any(real.startswith(root + os.sep) for root in self._roots)


def _repository(folder: Path) -> Path:
    return folder.parents[1] if folder.parent.name == SNAPSHOTS else folder


def _pointers(annotation: bytes) -> Iterator[str]:
    """The locations of other files in an annotation (see annotation.py). A damaged annotation is an error when it is drawn."""
    try:
        record = json.loads(annotation)
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and "png" in record:
        yield str(record["png"])


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
