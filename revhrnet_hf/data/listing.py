"""What every data set does with the list of its files: find missing partners, differing sizes, and changes."""

import hashlib
import io
from typing import NamedTuple

import PIL.Image
from tqdm.auto import tqdm

from ..errors import DataError
from .tree import DataTree, location_stamp, read_location, split_location

MAX_NAMED = 3
HEADER_BYTES = 1 << 16  # of a zipped picture: nearly always enough for its size
LONG_CHECK = 2000  # pictures; below, opening every header takes no time worth a bar


class Listed(NamedTuple):
    """One picture with its label map, as a data set lists them: paths in its DataTree.

    `annotation` is the label map itself where it is no file of its own but part of a larger one (COCO's JSON); `label_map` then
    says where that is, for messages, as `FILE#ID`.
    """

    image: str
    label_map: str
    image_id: str
    annotation: bytes | None = None


class Sample(NamedTuple):
    """The same with locations (see tree.py)."""

    image: str
    label_map: str
    image_id: str
    annotation: bytes | None = None


def locate(tree: DataTree, listed: list[Listed]) -> list[Sample]:
    """The files' locations. Raises a DataError that counts the listed files that are not there, and names the first few."""
    samples = [
        Sample(
            tree.location(item.image),
            tree.location(item.label_map) if item.annotation is None else item.label_map,
            item.image_id,
            item.annotation,
        )
        for item in listed
    ]
    for kind, partner, lost in (
        ("Picture", "label map", [(i.image, i.label_map) for i, s in zip(listed, samples, strict=True) if s.label_map is None]),
        ("Label map", "picture", [(i.label_map, i.image) for i, s in zip(listed, samples, strict=True) if s.image is None]),
    ):
        if lost:
            named = [(tree.expected(file), tree.expected(missing)) for file, missing in lost[:MAX_NAMED]]
            shown = ", ".join(f"{file} (expected {missing})" for file, missing in named)
            more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
            raise DataError(
                f"{kind} without its {partner}, {len(lost)} of {len(samples)}: {shown}{more}. "
                "Add the missing files, or take these entries out of the split."
            )
    return samples


def check_same_sizes(samples: list[Sample]) -> None:
    """Raises a DataError for the first picture of another size than its label map; reads only the files' headers."""
    files = [sample for sample in samples if sample.annotation is None and sample.label_map.lower().endswith(".png")]
    for sample in tqdm(files, desc="checking sizes", unit="picture", leave=False, disable=len(files) < LONG_CHECK):
        image_size, label_map_size = picture_size(sample.image), picture_size(sample.label_map)
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
        digest.update(f"{location_stamp(sample.image)}\n".encode())
        if sample.annotation is None:
            digest.update(f"{location_stamp(sample.label_map)}\n".encode())
        else:
            digest.update(sample.annotation)
    return digest.hexdigest()[:16]


def picture_size(location: str) -> tuple[int, int]:
    """Width and height from the picture's header."""
    file, member = split_location(location)
    try:
        if member is None:
            return _size(file)
        try:
            return _size(io.BytesIO(read_location(location, HEADER_BYTES)))
        except OSError:  # perhaps a JPEG with much before its header
            return _size(io.BytesIO(read_location(location)))
    except OSError as error:
        raise DataError(
            f"{location} cannot be read ({error}): it is truncated or not a picture. Fetch the file again."
        ) from error


def _size(file: str | io.BytesIO) -> tuple[int, int]:
    with PIL.Image.open(file) as image:
        return image.size


def _by(size: tuple[int, int]) -> str:
    return "×".join(map(str, size))
