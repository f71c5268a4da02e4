"""Label maps that are no picture: COCO's annotations of one picture, as JSON, and SBD's MATLAB files.

A stored annotation is a JSON object with the picture's `height` and `width` in pixels and

- `objects`: a list of {`id`, `category_id`, `segmentation`, `iscrowd`}. A segmentation is a list of polygons [x0, y0, x1, y1, …]
  in pixels, or a run-length encoding {`size`, `counts`} (https://cocodataset.org/#format-data); or
- `segments`: a list of [segment id, category id], and where the segment ids are drawn (R + 256 G + 65536 B): `png` is the
  location of a PNG, `png_base64` the PNG itself, in data sets that travel without their files.
"""

import base64
import io
import json
import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import PIL.Image

from ..errors import DataError
from .label_space import LabelSpace
from .tree import read_location

BACKGROUND = 0  # train id of pixels that no object claims
VOID_SEGMENT = 0  # panoptic pixels that nobody labelled
MAX_NAMED = 8
JSON_START, MATLAB_START = b"{", b"MATLAB"


def pack_annotation(annotation: dict[str, Any]) -> bytes:
    """The JSON that is stored."""
    return json.dumps(annotation, separators=(",", ":")).encode()


def annotation_size(annotation: bytes) -> tuple[int, int]:
    """Width and height of the picture, in pixels."""
    record = json.loads(annotation)
    return record["width"], record["height"]


def self_contained(annotation: bytes) -> bytes:
    """The same annotation with the PNG that it may point to inside; an OSError if that cannot be read."""
    record = json.loads(annotation)
    if "png" not in record:
        return annotation
    png = base64.b64encode(read_location(record.pop("png"))).decode()
    return pack_annotation({**record, "png_base64": png})


def draw_annotation(annotation: bytes, label_space: LabelSpace, source: str) -> np.ndarray:
    """Draws a stored annotation as a label map.

    Of objects, a pixel that only one class claims gets that class, one that several claim is ignored, and the rest is background.
    What is background in the label space claims nothing; a crowd counts as its class.

    Args:
        annotation: the stored JSON.
        label_space: translates category ids.
        source: what the annotation is called in an error.

    Returns:
        (height, width) uint8 train ids.

    Raises:
        DataError: a category id that the label space lacks, a segmentation that cannot be drawn, or a segment id that is not
            listed.
    """
    record = json.loads(annotation)
    draw = _draw_segments if "segments" in record else _draw_objects
    return draw(record, label_space, source)


def labelled_pixels(annotation: bytes, label_space: LabelSpace, source: str) -> int:
    """How many pixels the objects of the label space's classes cover, background not counted."""
    from pycocotools import mask

    claims = _claims(json.loads(annotation), label_space, source).values()
    return int(mask.area(mask.merge([rle for rles in claims for rle in rles]))) if claims else 0


def _draw_objects(record: dict[str, Any], label_space: LabelSpace, source: str) -> np.ndarray:
    from pycocotools import mask

    size = record["height"], record["width"]
    train_ids, claimants = np.full(size, BACKGROUND, np.uint8), np.zeros(size, np.uint8)
    for train_id, rles in _claims(record, label_space, source).items():
        claimed = mask.decode(mask.merge(rles)).astype(bool)
        train_ids[claimed] = train_id
        claimants += claimed
    train_ids[claimants > 1] = label_space.ignore_index
    return train_ids


def _claims(record: dict[str, Any], label_space: LabelSpace, source: str) -> dict[int, list[dict]]:
    """Train id → run-length encodings of its objects."""
    claims = defaultdict(list)
    for thing in record["objects"]:
        where = f"{source}: annotation {thing['id']}"
        train_id = category_train_id(thing["category_id"], label_space, where)
        if train_id != BACKGROUND:
            claims[train_id] += _run_lengths(thing["segmentation"], record["height"], record["width"], where)
    return claims


def category_train_id(category_id: int, label_space: LabelSpace, where: str) -> int:
    if category_id not in label_space.raw_ids:
        raise DataError(
            f"{where} has the category id {category_id}, which label space {label_space.name!r} does not know: "
            "correct the id, or take the annotation out."
        )
    return label_space.raw_ids[category_id]


def _run_lengths(segmentation: list | dict, height: int, width: int, where: str) -> list[dict]:
    """pycocotools' encoding of what the object covers.

    Checked is what pycocotools takes as it comes: of run lengths for too few pixels it shows whatever lies in memory, or it never
    comes back; and it walks along each edge of a polygon, however far that leads.
    """
    from pycocotools import mask

    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        counts = np.asarray(_uncompressed(counts, where) if isinstance(counts, str) else counts, np.int64)
        if segmentation["size"] != [height, width] or counts.sum() != height * width or (counts < 0).any():
            raise DataError(
                f"{where}: its run lengths are for {counts.sum()} pixels and the [height, width] {segmentation['size']}, but the "
                f"picture's is [{height}, {width}]: correct them."
            )
        return [mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)]
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise DataError(f"{where}: a polygon has {len(polygon)} numbers; it needs x and y of three corners or more.")
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
        # Hand-drawn corners do lie a little outside.
        near = (corners >= (-width, -height)) & (corners <= (2 * width, 2 * height))
        if not near.all():
            raise DataError(f"{where}: a polygon lies far outside of the picture of {width}×{height} pixels: correct it.")
    return mask.frPyObjects(segmentation, height, width)


def _uncompressed(text: str, where: str) -> list[int]:
    """Run lengths out of COCO's text form.

    Numbers are written in groups of 5 bits, the lowest first, as characters from "0" on; a character's bit 5 says that more
    follow, and bit 4 of the last is the sign. From the third run length on, it is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64:
            raise DataError(f"{where}: its run lengths hold {character!r}, which COCO's text form does not know: correct them.")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _draw_segments(record: dict[str, Any], label_space: LabelSpace, source: str) -> np.ndarray:
    png = read_location(record["png"]) if "png" in record else base64.b64decode(record["png_base64"])
    with PIL.Image.open(io.BytesIO(png)) as picture:
        colours = np.asarray(picture.convert("RGB"), np.uint32)
    ids = colours @ np.array([1, 256, 65536], np.uint32)
    train_id_of = {VOID_SEGMENT: label_space.ignore_index}
    for segment, category_id in record["segments"]:
        train_id_of[segment] = category_train_id(category_id, label_space, f"{source}: segment {segment}")
    known = np.array(sorted(train_id_of), np.uint32)
    nearest = np.searchsorted(known, ids).clip(max=len(known) - 1)
    if (stray := known[nearest] != ids).any():
        strays = np.unique(ids[stray]).tolist()
        more = f" and {len(strays) - MAX_NAMED} more" if len(strays) > MAX_NAMED else ""
        raise DataError(
            f"Label map {source} holds the segment ids {', '.join(map(str, strays[:MAX_NAMED]))}{more}, which the panoptic JSON "
            "does not list for this picture: PNG and JSON must be of one release."
        )
    return np.array([train_id_of[segment] for segment in known.tolist()], np.uint8)[nearest]


def read_matlab(data: bytes) -> np.ndarray:
    """SBD's label map, `GTcls.Segmentation`: (height, width) uint8 raw ids.

    Raises:
        OSError, ValueError: the file is damaged or has no such field.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    except (KeyError, IndexError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise ValueError(f"no field GTcls.Segmentation: {error}") from error


def matlab_size(location: str) -> tuple[int, int]:
    """Width and height of SBD's label map in a file; a DataError if it cannot be read."""
    try:
        height, width = read_matlab(read_location(location)).shape
    except (OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read ({error}): it is damaged or none of SBD's. Fetch the file again.") from error
    return width, height
