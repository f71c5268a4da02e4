"""What every dataset does with the list of its files: find missing partners, differing sizes, and changes."""

import hashlib
import io
from collections.abc import Iterable
from typing import NamedTuple

from tqdm.auto import tqdm

from ..errors import DataError
from ..images import ImageFile, Size, header_size, unreadable_is_data_error
from .annotation import annotation_size, matlab_size
from .archive import DataTree, location_name, location_stamp, read_location, split_location
from .features import as_stored

MAX_NAMED = 3
HEADER = 65536  # bytes of an archive's member in which the image's size mostly stands
LONG_CHECK = 2000  # images; below, opening every header takes no time worth a bar


class Listed(NamedTuple):
    """One image with its label map, as a dataset lists them: paths in its DataTree.

    `label_map` is None where the publisher keeps the label maps. `annotation` is the label map itself where it is no file of its
    own but part of a larger one (COCO's JSON); `label_map` then says where that is, for messages, as `FILE#ID`.
    """

    image: str
    label_map: str | None
    image_id: str
    annotation: bytes | None = None


class Sample(NamedTuple):
    """The same with locations (see archive.py)."""

    image: str
    label_map: str | None
    image_id: str
    annotation: bytes | None = None


class Lost(NamedTuple):
    """A file that a dataset lists and that is not there: where it should be, and its partner, which may be lost as well."""

    kind: str
    missing: str
    partner_kind: str
    partner: str


def locate_all(tree: DataTree, listed: list[Listed]) -> tuple[list[Sample], list[Lost]]:
    """The locations of the images and label maps that are both there, and every file that is not."""
    samples, lost = [], []
    for item in listed:
        image = tree.location(item.image)
        if item.label_map is None:
            # It was found by its image, so that it is there.
            samples.append(Sample(image, None, item.image_id))
            continue
        label_map = tree.location(item.label_map) if item.annotation is None else item.label_map
        if image is None:
            lost.append(Lost("image", tree.expected(item.image), "Label map", tree.expected(item.label_map)))
        if label_map is None:
            lost.append(Lost("label map", tree.expected(item.label_map), "Image", tree.expected(item.image)))
        if image is not None and label_map is not None:
            samples.append(Sample(image, label_map, item.image_id, item.annotation))
    return samples, lost


def locate(tree: DataTree, listed: list[Listed]) -> list[Sample]:
    """The files' locations. Raises a DataError that counts the listed files that are not there, and names the first few."""
    samples, lost = locate_all(tree, listed)
    if lost:
        kind, partner_kind = lost[0].kind, lost[0].partner_kind
        alike = [item for item in lost if item.kind == kind]
        shown = ", ".join(f"{item.partner} (expected {item.missing})" for item in alike[:MAX_NAMED])
        more = f" and {len(alike) - MAX_NAMED} more" if len(alike) > MAX_NAMED else ""
        raise DataError(
            f"{partner_kind} without its {kind}, {len(alike)} of {len(listed)}: {shown}{more}. "
            "Add the missing files, or take these entries out of the split."
        )
    return samples


def check_same_sizes(samples: list[Sample]) -> list[Sample]:
    """The samples, with the images marked whose label maps fit only the image as it is stored (`as_stored`).

    Of images it reads only the headers.

    Raises:
        DataError: for the first image that fits its label map neither upright nor as stored.
    """
    labelled = sum(sample.label_map is not None for sample in samples)
    bar = tqdm(samples, desc="checking sizes", unit="image", leave=False, disable=labelled < LONG_CHECK)
    return [sample if sample.label_map is None else _fitting(sample) for sample in bar]


def _fitting(sample: Sample) -> Sample:
    labelled_size = label_map_size(sample)
    if labelled_size == image_size(sample.image):
        return sample
    # Its beginning need not tell everything: the metadata of a PNG may lie at its end.
    with unreadable_is_data_error("Image", sample.image):
        image = ImageFile(read_location(sample.image))
    if labelled_size == image.size:
        return sample
    if labelled_size == image.stored_size:
        return sample._replace(image=as_stored(sample.image))
    raise DataError(
        mismatch(f"Image {sample.image}", image.size, image.orientation, f"its label map {sample.label_map}", labelled_size)
    )


def mismatch(image: str, size: Size, orientation: int, label_map: str, labelled_size: Size) -> str:
    """The message for an image and a label map of different (width, height).

    Args:
        image, label_map: what the message calls them.
        size: of the image, upright.
        orientation: EXIF's, of the image.
        labelled_size: of the label map.
    """
    turned = f" (as its EXIF orientation {orientation} turns it, {by(size[::-1])} as stored)" if orientation > 4 else ""
    return (
        f"{image} is {by(size)} pixels (width×height){turned} but {label_map} is {by(labelled_size)}: bring both to one size "
        "(label maps by nearest neighbour). If only the sides are swapped, the EXIF orientation was applied to one of the two "
        "only: turn the label map, do not resize it."
    )


def check_no_repeats(image_ids: Iterable[str], source: str) -> None:
    """Raises a DataError for a list that names an image twice, which would count twice in scores and in training."""
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise DataError(f"{source} names {image_id!r} twice: take one out.")
        seen.add(image_id)


def listing_digest(samples: list[Sample]) -> str:
    """A short hash of the files' names, sizes in bytes and times of change."""
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
    """The same of single files."""
    return hashlib.sha256("\n".join(map(location_stamp, locations)).encode()).hexdigest()[:16]


def label_map_size(sample: Sample) -> tuple[int, int]:
    """Width and height of the sample's label map; a DataError if it cannot be read."""
    if sample.annotation is not None:
        return annotation_size(sample.annotation, sample.label_map)
    if location_name(sample.label_map).lower().endswith(".mat"):
        return matlab_size(sample.label_map)
    return image_size(sample.label_map)


def image_size(location: str) -> Size:
    """Width and height of the upright image, from its header."""
    file, member = split_location(location)
    with unreadable_is_data_error("Image", location):
        if member is None and "://" not in file:
            with open(file, "rb") as stream:
                return header_size(stream)
        try:
            return header_size(io.BytesIO(read_location(location, HEADER)))
        except (OSError, SyntaxError, ValueError):
            return header_size(io.BytesIO(read_location(location)))


def by(size: Size) -> str:
    return "×".join(map(str, size))
