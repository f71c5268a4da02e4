"""The list of a dataset's files: missing partners, differing sizes, and a digest that changes with the files."""

import hashlib
import io
import re
from collections.abc import Iterable
from typing import NamedTuple

from tqdm.auto import tqdm

from ..errors import DataError, first_few
from ..images import ImageFile, Size, header_size, unreadable_is_data_error
from .annotation import annotation_size, matlab_size
from .archive import DataFolder, location_name, location_stamp, read_location, split_location
from .features import as_stored

MAX_NAMED = 3
HEADER = 65536  # bytes at the start of an archive's member; they usually contain the image's size
LONG_CHECK = 2000  # images; checking fewer is too quick for a progress bar


# A path with the suffix of an image may hold blanks.
LISTED = re.compile(r"\S.*?\.(?:png|jpe?g|bmp|tiff?)(?=\s|$)|\S+", re.IGNORECASE)


def listed_paths(line: str) -> list[str]:
    """The paths, or names without suffixes, in a line of a list of files; backslashes, which Windows writes, become `/`."""
    return LISTED.findall(line.replace("\\", "/"))


class ListedSample(NamedTuple):
    """An image with its label map, as a dataset lists them: paths in its DataFolder.

    `label_map` is None in a split without public label maps. `annotation` is the label map itself if it is part of a larger file
    (COCO's JSON); `label_map` is then its name in messages, `FILE#ID`. If it is drawn from a file of its own (labelme's JSON),
    `label_map` is that file.
    """

    image: str
    label_map: str | None
    image_id: str
    annotation: bytes | None = None


class Sample(ListedSample):
    """A listed sample with locations (see archive.py) for paths."""

    __slots__ = ()


class MissingFile(NamedTuple):
    """A file that a dataset lists but lacks: its kind and expected path, and those of its partner, which may be missing too."""

    kind: str
    expected: str
    partner_kind: str
    partner: str


def locate_all(data_folder: DataFolder, listed: list[ListedSample]) -> tuple[list[Sample], list[MissingFile]]:
    """The samples whose image and label map both exist, and every file that is missing."""
    samples, missing = [], []
    for item in listed:
        image = data_folder.location(item.image)
        if item.label_map is None:
            # The dataset was listed by its image files, so the image exists.
            samples.append(Sample(image, None, item.image_id))
            continue
        is_part_of_file = item.annotation is not None and not item.label_map.endswith(".json")
        label_map = item.label_map if is_part_of_file else data_folder.location(item.label_map)
        if image is not None and label_map is not None:
            samples.append(Sample(image, label_map, item.image_id, item.annotation))
            continue
        expected = data_folder.expected(item.image), data_folder.expected(item.label_map)
        if image is None:
            missing.append(MissingFile("image", expected[0], "Label map", expected[1]))
        if label_map is None:
            missing.append(MissingFile("label map", expected[1], "Image", expected[0]))
    return samples, missing


def locate(data_folder: DataFolder, listed: list[ListedSample]) -> list[Sample]:
    """The samples' locations. Raises a DataError with the number of missing files and the names of the first few."""
    samples, missing = locate_all(data_folder, listed)
    if missing:
        kind, partner_kind = missing[0].kind, missing[0].partner_kind
        alike = [f"{item.partner} (expected {item.expected})" for item in missing if item.kind == kind]
        raise DataError(
            f"{partner_kind} without its {kind}, {len(alike)} of {len(listed)}: {first_few(alike, MAX_NAMED)}. "
            "Add the missing files, or take these entries out of the split."
        )
    return samples


def check_same_sizes(samples: list[Sample]) -> list[Sample]:
    """The samples; an image whose label map fits only the stored orientation is marked so (`as_stored`).

    Only the headers of the images are read.

    Raises:
        DataError: for the first image that fits its label map neither upright nor as stored.
    """
    is_short = sum(sample.label_map is not None for sample in samples) < LONG_CHECK
    bar = tqdm(samples, desc="checking sizes", unit="image", leave=False, disable=is_short or None)
    return [sample if sample.label_map is None else _fitting(sample) for sample in bar]


def _fitting(sample: Sample) -> Sample:
    labelled_size = label_map_size(sample)
    if labelled_size == image_size(sample.image):
        return sample
    # Read the whole file: the metadata of a PNG may be at its end.
    with unreadable_is_data_error("Image", sample.image):
        image = ImageFile(read_location(sample.image))
    if labelled_size == image.size:
        return sample
    if labelled_size == image.stored_size:
        return sample._replace(image=as_stored(sample.image))
    if sample.annotation is not None:
        raise DataError(
            f"Image {sample.image} is {size_text(image.size)} pixels (width×height) but its shapes in {sample.label_map} were "
            f"drawn on {size_text(labelled_size)}, as that file says: bring back the image that was annotated, or annotate this."
        )
    raise DataError(
        mismatch(f"Image {sample.image}", image.size, image.orientation, f"its label map {sample.label_map}", labelled_size)
    )


def mismatch(image: str, size: Size, orientation: int, label_map: str, labelled_size: Size) -> str:
    """The error message for an image and a label map of different sizes.

    Args:
        image, label_map: their names in the message.
        size: (width, height) of the upright image.
        orientation: the image's EXIF orientation.
        labelled_size: (width, height) of the label map.
    """
    turned = f" (as its EXIF orientation {orientation} turns it, {size_text(size[::-1])} as stored)" if orientation > 4 else ""
    return (
        f"{image} is {size_text(size)} pixels (width×height){turned} but {label_map} is {size_text(labelled_size)}: bring both "
        "to one size (label maps by nearest neighbour). If only the sides are swapped, the EXIF orientation was applied to one "
        "of the two only: turn the label map, do not resize it."
    )


def check_no_repeats(image_ids: Iterable[str], source: str) -> None:
    """Raises a DataError if a list names an image twice: it would count twice in training and in scores."""
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise DataError(f"{source} names {image_id!r} twice: take one out.")
        seen.add(image_id)


def listing_digest(samples: list[Sample]) -> str:
    """A short hash of the files' names, sizes in bytes and modification times."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{location_stamp(sample.image)}\n".encode())
        if sample.label_map is None:
            continue
        if sample.annotation is None:
            digest.update(f"{location_stamp(sample.label_map)}\n".encode())
        else:
            digest.update(sample.annotation)
    return digest.hexdigest()[:16]


def files_digest(locations: Iterable[str]) -> str:
    """The same hash for files that are not samples."""
    return hashlib.sha256("\n".join(map(location_stamp, locations)).encode()).hexdigest()[:16]


def label_map_size(sample: Sample) -> Size:
    """(width, height) of the sample's label map; a DataError if it cannot be read."""
    if sample.annotation is not None:
        return annotation_size(sample.annotation, sample.label_map)
    if location_name(sample.label_map).lower().endswith(".mat"):
        return matlab_size(sample.label_map)
    return image_size(sample.label_map)


def image_size(location: str) -> Size:
    """(width, height) of the upright image, from its header."""
    file, member = split_location(location)
    with unreadable_is_data_error("Image", location):
        if member is None and "://" not in file:
            with open(file, "rb") as stream:
                return header_size(stream)
        try:
            return header_size(io.BytesIO(read_location(location, HEADER)))
        except (OSError, SyntaxError, ValueError):
            return header_size(io.BytesIO(read_location(location)))


def size_text(size: Size) -> str:
    return "×".join(map(str, size))
