"""Records of an evaluation, one for each image, kept in files so that an interrupted evaluation can be resumed.

A work folder holds `settings.json` and, for each process, one file `part_N.jsonl` with a line for each image. A line that was
cut off does not count, so a process may be killed at any time. A lock keeps a second evaluation out of the folder; the system
releases it when the process that holds it ends.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..io import lock_file, read_values, whole_lines, write_json
from .calibration import CalibrationCounts

SETTINGS, LOCK = "settings.json", "lock"
PARTS = "part_*.jsonl"


def _no_cells() -> np.ndarray:
    return np.empty((0, 2), np.int64)


@dataclass(eq=False)
class ImageRecord:
    """The counts of one image.

    Attributes:
        index: its row in the dataset.
        image_id: its name.
        size: (height, width) in pixels.
        cells: (cells, 2) int64, the cells of its confusion matrix that are not 0: row × classes + column, and the count. Empty
            without a label map.
        boundary: (3, classes) `boundary_counts`, or None.
        objects: (objects, 4) Cityscapes' `count_objects`, or None.
        calibration: counts of the confidences, or None.
    """

    index: int
    image_id: str
    size: tuple[int, int]
    cells: np.ndarray = field(default_factory=_no_cells)
    boundary: np.ndarray | None = None
    objects: np.ndarray | None = None
    calibration: CalibrationCounts | None = None

    def to_json(self) -> str:
        """The record as one line of JSON."""
        values = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}
        values["calibration"] = self.calibration and self.calibration.to_json()
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "ImageRecord":
        values = json.loads(line)
        values["size"] = tuple(values["size"])
        for name, columns in (("cells", 2), ("objects", 4)):
            if values[name] is not None:
                values[name] = np.array(values[name], np.int64).reshape(-1, columns)
        if values["boundary"] is not None:
            values["boundary"] = np.array(values["boundary"], np.int64)
        if values.get("calibration") is not None:
            values["calibration"] = CalibrationCounts.from_json(values["calibration"])
        return cls(**values)


def nonzero_cells(matrix: np.ndarray) -> np.ndarray:
    """The cells of a confusion matrix, (classes, classes), that are not 0; see `ImageRecord.cells`."""
    flat = matrix.ravel()
    places = np.flatnonzero(flat)
    return np.stack([places, flat[places]], axis=1)


def total_matrix(records: Sequence[ImageRecord], num_classes: int) -> np.ndarray:
    """The confusion matrix of all images together, (classes, classes) int64 with rows truth."""
    flat = np.zeros(num_classes**2, np.int64)
    for record in records:
        places, counts = record.cells.T
        flat[places] += counts
    return flat.reshape(num_classes, num_classes)


def class_totals_by_image(records: Sequence[ImageRecord], num_classes: int) -> np.ndarray:
    """The `confusion.class_totals` of each image, (images, 3, classes) int64."""
    totals = np.zeros((len(records), 3, num_classes), np.int64)
    for (correct, true, predicted), record in zip(totals, records, strict=True):
        places, counts = record.cells.T
        rows, columns = np.divmod(places, num_classes)
        on_diagonal = rows == columns
        correct[rows[on_diagonal]] = counts[on_diagonal]
        np.add.at(true, rows, counts)
        np.add.at(predicted, columns, counts)
    return totals


# Settings that are digests, or names and times of files, which tell people nothing.
OPAQUE = ("checkpoint", "images", "image_ids", "data", "label_space")


class WorkFolder:
    """The records of one evaluation on disk.

    Args:
        folder: where they lie.
        settings: everything that the records depend on. An evaluation that was begun with other settings is not resumed.
        work, option: what errors call the work, and the option that names its results.
        records: the pattern of the records' files.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        work: str = "evaluation",
        option: str = "--output",
        records: str = PARTS,
    ):
        self.folder, self.work, self.option, self.records = folder, work, option, records
        self._lock = None
        self.settings = json.loads(json.dumps(settings))  # as the file gives them back

    def claim(self, overwrite: bool) -> None:
        """Makes the folder, or checks that the existing one is of the same evaluation; keeps other processes out of it.

        Args:
            overwrite: forget the records that are there.

        Raises:
            CheckpointError: the folder is of another evaluation (the message names the settings that differ), or another process
                works in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self.folder / LOCK)
        if self._lock is None:
            raise CheckpointError(
                f"another process is at this {self.work} already (it keeps {self.folder}): wait for it or end it, or give "
                f"another {self.option}"
            )
        file = self.folder / SETTINGS
        if overwrite:
            file.unlink(missing_ok=True)
        if not file.is_file():
            # Records without settings are those of a process that was killed while it removed both.
            self._remove_files(*self.folder.glob(self.records))
            write_json(file, self.settings)
        elif different := self._different_settings():
            raise CheckpointError(
                f"{self.folder} holds an unfinished {self.work} with other settings ({'; '.join(different)}): give the same "
                "settings to resume it, or --overwrite to begin anew"
            )

    def can_resume(self) -> bool:
        """Whether unfinished work with the same settings lies in the folder."""
        return (self.folder / SETTINGS).is_file() and not self._different_settings()

    def _different_settings(self) -> list[str]:
        """Each setting that the folder's work was begun with and that is another now, as text."""
        try:
            begun = read_values(self.folder / SETTINGS)
        except CheckpointError as error:
            return [str(error)]
        now = self.settings
        different = [key for key in {**now, **begun} if begun.get(key) != now.get(key)]
        return [f"{key} changed" if key in OPAQUE else f"{key} was {begun.get(key)}, is {now.get(key)}" for key in different]

    def read(self) -> dict[int, ImageRecord]:
        """All records so far, by the images' rows in the dataset."""
        lines = (line for part in sorted(self.folder.glob(PARTS)) for line in whole_lines(part).splitlines())
        return {record.index: record for record in map(ImageRecord.from_json, lines)}

    def append_to(self, process_index: int) -> "RecordFile":
        """The file of one process, to write to."""
        return RecordFile(self.folder / f"part_{process_index}.jsonl")

    def remove(self) -> None:
        """Removes the files that this class has written, and the folder unless other files lie in it; releases the lock."""
        # The lock file goes last: a process that holds a lock on a removed file notices, and locks a new one.
        self._remove_files(self.folder / SETTINGS, *self.folder.glob(self.records), self.folder / LOCK)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Releases the lock; another process may then resume."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @staticmethod
    def _remove_files(*files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)


class RecordFile:
    """A file of records to append to. A last line that an interruption cut off is removed first."""

    def __init__(self, file: Path):
        if file.exists():
            os.truncate(file, len(whole_lines(file).encode("utf-8")))
        self._stream = file.open("a", encoding="utf-8")

    def write(self, record: ImageRecord) -> None:
        self._stream.write(record.to_json() + "\n")
        self._stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()
