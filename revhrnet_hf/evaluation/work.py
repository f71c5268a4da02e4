"""What an evaluation has done so far, image by image, so that one that was interrupted goes on.

A folder holds `settings.json` and one `part_N.jsonl` a process, with a line an image. A line is there whole or does not count,
so the process may be killed at any time. A lock keeps a second evaluation out; it ends with the process that holds it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..io import lock_file, write_json

SETTINGS, LOCK = "settings.json", "lock"
PARTS = "part_*.jsonl"


@dataclass
class ImageRecord:
    """What is kept of one image.

    Attributes:
        index: its row in the dataset.
        image_id: its name.
        size: (height, width) in pixels.
        cells: the confusion matrix's cells that are not 0, as [row × classes + column, count]; empty without labels.
        boundary: `boundary_counts`, or None.
        objects: `count_objects` of Cityscapes, or None.
    """

    index: int
    image_id: str
    size: tuple[int, int]
    cells: list[list[int]] = field(default_factory=list)
    boundary: list[list[int]] | None = None
    objects: list[list[int]] | None = None

    def matrix(self, num_classes: int) -> np.ndarray:
        """(classes, classes) int64."""
        flat = np.zeros(num_classes**2, np.int64)
        if self.cells:
            places, counts = np.array(self.cells, np.int64).T
            flat[places] = counts
        return flat.reshape(num_classes, num_classes)


def cells_of(matrix: np.ndarray) -> list[list[int]]:
    """The cells of a confusion matrix that are not 0; see `ImageRecord`."""
    flat = matrix.ravel()
    places = np.flatnonzero(flat)
    return np.stack([places, flat[places]], axis=1).tolist()


class WorkFolder:
    """The records of one evaluation.

    Args:
        folder: where they lie.
        settings: all that the results depend on; what was begun with others is not gone on with.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        self._lock = None
        self.settings = json.loads(json.dumps(settings))

    def claim(self, overwrite: bool) -> None:
        """Makes the folder, or checks that the one that is there is of the same evaluation; and keeps others out of it.

        Args:
            overwrite: forget what was done there before.

        Raises:
            CheckpointError: it is of another, and what differs is named; or another process is at work in it.
        """
        file = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self.folder / LOCK)
        if self._lock is None:
            raise CheckpointError(
                f"another process is at this evaluation already (it keeps {self.folder}): wait for it or end it, or give another "
                "--output"
            )
        if overwrite:
            self._remove_files(file, *self.folder.glob(PARTS))
        if file.is_file():
            begun = json.loads(file.read_text(encoding="utf-8"))
            different = [key for key in self.settings if begun.get(key) != self.settings[key]]
            if different:
                pairs = "; ".join(f"{key} was {begun.get(key)}, is {self.settings[key]}" for key in different)
                raise CheckpointError(
                    f"{self.folder} holds an unfinished evaluation with other settings ({pairs}): give the same to go on with "
                    "it, or --overwrite to begin anew"
                )
        else:
            write_json(file, self.settings)

    def read(self) -> dict[int, ImageRecord]:
        """The records so far, by the images' rows."""
        records = {}
        for part in sorted(self.folder.glob(PARTS)):
            for line in _whole_lines(part).splitlines():
                record = ImageRecord(**json.loads(line))
                records[record.index] = record
        return records

    def append_to(self, process_index: int) -> "WorkPart":
        """This process's file, to write to."""
        return WorkPart(self.folder / f"part_{process_index}.jsonl")

    def remove(self) -> None:
        """Takes away what this class has written, and the folder unless something else lies in it; lets others in."""
        # The lock last: whoever has it then finds a file that is gone, and begins with another one.
        self._remove_files(self.folder / SETTINGS, *self.folder.glob(PARTS), self.folder / LOCK)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Lets others in, who may continue."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @staticmethod
    def _remove_files(*files: Path) -> None:
        for file in files:
            file.unlink(missing_ok=True)


class WorkPart:
    """A file of records that is appended to; a line that was cut off by an interruption is taken away first."""

    def __init__(self, file: Path):
        if file.exists():
            os.truncate(file, len(_whole_lines(file).encode("utf-8")))
        self._stream = file.open("a", encoding="utf-8")

    def write(self, record: ImageRecord) -> None:
        self._stream.write(json.dumps(vars(record), separators=(",", ":")) + "\n")
        self._stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()


def _whole_lines(file):
    # Bytes: a line may end within a letter.
    data = file.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode("utf-8")
