"""What every data set does with the list of its files: find missing partners, differing sizes, and changes."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from ..errors import DataError

MAX_NAMED = 3


class Sample(NamedTuple):
    """One picture with its label map, still files."""

    image: Path
    label_map: Path
    image_id: str


def check_partners(samples: list[Sample]) -> None:
    """Raises a DataError that counts the listed files that are not there, and names the first few."""
    for kind, partner, lost in (
        ("Picture", "label map", [(s.image, s.label_map) for s in samples if not s.label_map.is_file()]),
        ("Label map", "picture", [(s.label_map, s.image) for s in samples if not s.image.is_file()]),
    ):
        if lost:
            shown = ", ".join(f"{file} (expected {missing})" for file, missing in lost[:MAX_NAMED])
            more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
            raise DataError(
                f"{kind} without its {partner}, {len(lost)} of {len(samples)}: {shown}{more}. "
                "Add the missing files, or take these entries out of the split."
            )


def check_same_sizes(samples: list[Sample]) -> None:
    """Raises a DataError for the first picture of another size than its label map; reads only the files' headers."""
    for sample in samples:
        image_size, label_map_size = _size(sample.image), _size(sample.label_map)
        if image_size != label_map_size:
            raise DataError(
                f"Picture {sample.image} is {_by(image_size)} pixels (width×height) but its label map "
                f"{sample.label_map} is {_by(label_map_size)}: bring both to one size "
                "(label maps by nearest neighbour)."
            )


def listing_digest(samples: list[Sample]) -> str:
    """A short hash of the files' names, sizes in bytes and times of change."""
    digest = hashlib.sha256()
    for sample in samples:
        for file in (sample.image, sample.label_map):
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _size(file: Path) -> tuple[int, int]:
    try:
        with PIL.Image.open(file) as image:
            return image.size
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): it is truncated or not a picture. Fetch the file again.") from error


def _by(size: tuple[int, int]) -> str:
    return "×".join(map(str, size))
