"""Label maps that are not images: COCO's and labelme's annotations of one image, as JSON, and SBD's MATLAB files.

A stored annotation is a JSON object with the image's `height` and `width` in pixels and

- `objects`: a list of {`id`, `category_id`, `segmentation`, `iscrowd`}. A segmentation is a list of polygons [x0, y0, x1, y1, …]
  in pixels, or a run-length encoding {`size`, `counts`} (https://cocodataset.org/#format-data). `shapes` lists the other forms
  that are read. An object without a segmentation may have a `bbox` [left, top, width, height]; or
- `segments`: a list of [segment id, category id], with a PNG in which the segment ids are drawn (R + 256 G + 65536 B): `png` is
  its location, or `png_base64` is the PNG itself, in datasets that are copied without their files; or
- `shapes`: a list of [raw id, kind, points] of labelme, drawn one over another; a point is [x, y] in pixels. A mask has two
  corners for points and its PNG in base64 as a fourth entry.

Annotations come from files of others, so every value is checked.
"""

import base64
import binascii
import io
import json
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from ..errors import DataError, first_few
from ..images import Size
from .archive import parse_json, read_location, split_location
from .label_space import LabelSpace
from .limits import check_pixels
from .matlab import read_structure_field

VOID_SEGMENT = 0  # segment id of unlabelled pixels
LARGEST_SEGMENT = (1 << 24) - 1  # three bytes of colour
MAX_NAMED = 8
MAX_NESTED = 4  # lists around a polygon; COCO has one
MAX_BITS = 64  # of one number in COCO's text form
JSON_START, MATLAB_START = b"{", b"MATLAB"
DAMAGED_PNG = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
LARGEST_NUMBER = 1e300
Box = tuple[slice, slice]  # rows, columns
# Kinds of labelme's shapes, with their fewest and most points.
SHAPE_POINTS = {
    "polygon": (3, None),
    "rectangle": (2, 2),  # opposite corners
    "circle": (2, 2),  # the centre, and a point on the edge
    "line": (2, 2),
    "linestrip": (2, None),
    "point": (1, 1),
    "mask": (2, 2),
}
LINE_WIDTH, POINT_RADIUS = 10, 5  # pixels, as labelme draws them
LARGEST_COORDINATE = 1e6


def pack_annotation(annotation: dict[str, Any]) -> bytes:
    """The stored form of an annotation: JSON."""
    return json.dumps(annotation, separators=(",", ":")).encode()


def annotation_size(annotation: bytes, source: str) -> Size:
    """(width, height) of the image, in pixels; a DataError if the annotation is damaged."""
    record = _read(annotation, source)
    return record["width"], record["height"]


def self_contained(annotation: bytes, source: str) -> bytes:
    """The annotation with its PNG, if it refers to one, stored inside.

    Raises:
        DataError: the annotation is damaged, or refers to a file that is not a PNG; such a file is never copied into a dataset.
    """
    record = _read(annotation, source)
    if "png" not in record:
        return annotation
    data = _png_file(record, source)
    _open_png(data, source).close()
    del record["png"]
    return pack_annotation({**record, "png_base64": base64.b64encode(data).decode()})


def draw_annotation(annotation: bytes, label_space: LabelSpace, source: str) -> np.ndarray:
    """Draws a stored annotation as a label map.

    In COCO's annotations, a pixel that objects of one class cover gets that class. A pixel that objects of several classes cover
    is ignored. All other pixels are background. Objects that the label space maps to background cover nothing; a crowd counts as
    its class. An object that has only a box does not say which pixels it covers: the pixels of the box that no other object
    covers are ignored. labelme's shapes lie one over another.

    Args:
        annotation: the stored JSON.
        label_space: translates category ids, or the raw ids of shapes.
        source: the annotation's name in error messages.

    Returns:
        (height, width) uint8 train ids.

    Raises:
        DataError: the annotation is damaged or larger than Pillow's limit, the label space lacks a category id, a segmentation
            cannot be drawn, or a segment id is not listed.
    """
    record = _read(annotation, source)
    if "shapes" in record:
        return label_space.train_ids(_draw_shapes(record, source), source)
    draw = _draw_segments if "segments" in record else _draw_objects
    return draw(record, label_space, source)


def raw_ids_of_shapes(annotation: bytes, source: str) -> np.ndarray:
    """The raw ids, (height, width) int32, of a stored annotation with `shapes`; errors as of `draw_annotation`."""
    return _draw_shapes(_read(annotation, source), source)


def labelled_pixels(annotation: bytes, label_space: LabelSpace, source: str) -> int:
    """The number of pixels that objects of the label space's classes other than background cover."""
    from pycocotools import mask

    objects, _ = _objects_by_class(_read(annotation, source), label_space, source)
    return int(mask.area(mask.merge([rle for rles in objects.values() for rle in rles]))) if objects else 0


def _read(annotation: bytes, source: str) -> dict[str, Any]:
    """Parses an annotation; checks that its size can be drawn and that it has a list of objects, segments or shapes."""
    record = parse_json(annotation, f"The annotation {source}")
    if not isinstance(record, dict):
        raise DataError(f"The annotation {source} is a {type(record).__name__}, not a JSON object: load the dataset again.")
    for side in ("height", "width"):
        if not is_whole(record.get(side)) or record[side] < 1:
            raise DataError(
                f"The annotation {source} has the {side} {shown(record.get(side))}; it must be the image's {side}, a whole "
                "number of 1 or more: correct it."
            )
    check_pixels(record["width"], record["height"], f"The annotation {source}")
    kind = next((kind for kind in ("segments", "shapes") if kind in record), "objects")
    if not isinstance(record.get(kind), list):
        raise DataError(f"The annotation {source} has no list of {kind}: load the dataset again.")
    return record


def is_whole(value: object) -> bool:
    """Whether a value from JSON is a whole number; True and False are not."""
    return type(value) is int


def shown(value: object) -> str:
    """A value from JSON as it is shown in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:50]}…"


def _draw_objects(record: dict[str, Any], label_space: LabelSpace, source: str) -> np.ndarray:
    from pycocotools import mask

    size = record["height"], record["width"]
    objects, boxes = _objects_by_class(record, label_space, source)
    train_ids, num_classes = np.full(size, label_space.background, np.uint8), np.zeros(size, np.uint8)
    for train_id, rles in objects.items():
        covered = mask.decode(mask.merge(rles)).astype(bool)
        train_ids[covered] = train_id
        num_classes += covered
    train_ids[num_classes > 1] = label_space.ignore_index
    for rows, columns in boxes:
        train_ids[rows, columns][num_classes[rows, columns] == 0] = label_space.ignore_index
    return train_ids


def _objects_by_class(record: dict[str, Any], label_space: LabelSpace, source: str) -> tuple[dict[int, list[dict]], list[Box]]:
    """Train id → run-length encodings of its objects; and the boxes of the objects that have only a box."""
    height, width = record["height"], record["width"]
    objects, boxes = defaultdict(list), []
    for thing in record["objects"]:
        if not isinstance(thing, dict):
            raise DataError(f"{source}: {shown(thing)} is among the annotations, which are JSON objects: take it out.")
        where = f"{source}: annotation {shown(thing.get('id'))}"
        train_id = category_train_id(thing.get("category_id"), label_space, where)
        if train_id == label_space.background:
            continue
        if drawable := shapes(thing.get("segmentation"), where):
            objects[train_id] += [rle for shape in drawable for rle in _run_lengths(shape, height, width, where)]
        elif thing.get("bbox"):
            boxes.append(_box(thing["bbox"], height, width, where))
    return dict(objects), boxes


def _box(bbox: object, height: int, width: int, where: str) -> Box:
    """The pixels that a box [left, top, width, height] touches."""
    box = _numbers(bbox)
    if box is None or len(box) != 4 or not np.isfinite(box).all() or (box[2:] < 0).any():
        raise DataError(f"{where}: its bbox is {shown(bbox)}; it must be [left, top, width, height] in pixels: correct it.")
    left, top = np.floor(box[:2]).clip(0, (width, height)).astype(int)
    right, bottom = np.ceil(box[:2] + box[2:]).clip(0, (width, height)).astype(int) if box[2:].all() else (left, top)
    return slice(top, bottom), slice(left, right)


def category_train_id(category_id: object, label_space: LabelSpace, where: str) -> int:
    if not is_whole(category_id) or category_id not in label_space.raw_ids:
        raise DataError(
            f"{where} has the category id {shown(category_id)}, which label space {label_space.name!r} does not have: "
            "correct the id, or take the annotation out."
        )
    return label_space.raw_ids[category_id]


def shapes(segmentation: object, where: str) -> list[list | dict]:
    """The polygons and run-length encodings of an object; an empty list if the file has none.

    Besides COCO's two forms, annotation tools write null, `[]` or counts of null for an object that has only a box; one polygon
    without the list around it; one list too many; polygons as lists of points [x, y]; and run lengths in a list. Polygons of one
    or two corners, slips of the hand, are left out: they have no area.
    """
    if segmentation is None or (isinstance(segmentation, dict) and segmentation.get("counts", "") is None):
        return []
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        return [segmentation]
    if isinstance(segmentation, list):
        return list(_unnested(segmentation, where, MAX_NESTED))
    raise _not_drawable(segmentation, where)


def _unnested(parts: list, where: str, levels: int) -> Iterator[list | dict]:
    if not parts:
        return
    if not any(isinstance(part, list | dict) for part in parts):  # a polygon
        if len(parts) not in (2, 4):
            yield parts
    elif len(parts) > 2 and all(isinstance(part, list) and len(part) == 2 and not isinstance(part[0], list) for part in parts):
        yield [number for point in parts for number in point]
    elif levels == 0:
        raise _not_drawable(parts, where)
    else:
        for part in parts:
            if isinstance(part, list):
                yield from _unnested(part, where, levels - 1)
            else:
                yield from shapes(part, where)


def _not_drawable(segmentation: object, where: str) -> DataError:
    return DataError(
        f"{where} has a segmentation that is neither polygons nor run lengths (size, counts), {shown(segmentation)}: correct it."
    )


def _run_lengths(shape: list | dict, height: int, width: int, where: str) -> list[dict]:
    """pycocotools' encoding of the pixels that a polygon or a run-length encoding covers.

    The checks are needed because pycocotools has none: for run lengths of too few pixels it reads uninitialised memory or never
    returns, and it walks along each edge of a polygon, however long.
    """
    from pycocotools import mask

    if isinstance(shape, dict):
        counts = _counts(shape, height, width, where)
        return [mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)]
    if len(shape) < 6 or len(shape) % 2:
        raise DataError(f"{where}: a polygon has {len(shape)} numbers; it needs x and y of three corners or more.")
    corners = _numbers(shape)
    if corners is None:
        raise _not_drawable(shape, where)
    corners = corners.reshape(-1, 2)
    # Corners that are drawn by hand may lie a little outside the image.
    near = (corners >= (-width, -height)) & (corners <= (2 * width, 2 * height))
    if not near.all():
        raise DataError(f"{where}: a polygon lies far outside of the image of {width}×{height} pixels: correct it.")
    return mask.frPyObjects([shape], height, width)


def _numbers(values: object) -> np.ndarray | None:
    """A list of numbers from JSON as float64; None if it is not one. Numbers that float64 cannot hold become infinite."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    return np.array([float(value) if abs(value) < LARGEST_NUMBER else np.inf for value in values])


def _counts(shape: dict, height: int, width: int, where: str) -> list[int]:
    """The run lengths; a DataError if they do not cover the image exactly. Python integers are summed: they do not overflow."""
    counts = shape.get("counts")
    if isinstance(counts, str):
        counts = _uncompressed(counts, where)
    if not isinstance(counts, list) or not all(map(is_whole, counts)):
        raise _not_drawable(shape, where)
    if shape["size"] != [height, width] or sum(counts) != height * width or min(counts) < 0:
        raise DataError(
            f"{where}: its run lengths are for {sum(counts)} pixels and the [height, width] {shown(shape['size'])}, but the "
            f"image's is [{height}, {width}]: correct them."
        )
    return counts


def _uncompressed(text: str, where: str) -> list[int]:
    """Reads run lengths in COCO's text form.

    A number is written in groups of 5 bits, the lowest first, as characters from "0" on. Bit 5 of a character says that another
    group follows, and bit 4 of the last character is the sign. From the third run length on, the number is the difference from
    the run length two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64:
            raise DataError(f"{where}: its run lengths hold {character!r}, which COCO's text form does not have: correct them.")
        value |= (code & 31) << shift
        shift += 5
        if shift > MAX_BITS:
            raise DataError(f"{where}: one of its run lengths has more than {MAX_BITS} bits: correct them.")
        if not code & 32:
            value -= (code & 16) << (shift - 4)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError(f"{where}: its run lengths end within a number: they are cut off, fetch the annotations again.")
    return counts


def _draw_segments(record: dict[str, Any], label_space: LabelSpace, source: str) -> np.ndarray:
    with _open_png(_png_file(record, source), source) as png:
        if png.size != (record["width"], record["height"]):
            raise DataError(
                f"Label map {source} is of {png.width}×{png.height} pixels, but the panoptic JSON says "
                f"{record['width']}×{record['height']}: PNG and JSON must be from the same release."
            )
        colours = np.asarray(png.convert("RGB"), np.uint32)
    ids = colours @ np.array([1, 256, 65536], np.uint32)
    train_id_of = {VOID_SEGMENT: label_space.ignore_index} | _segment_train_ids(record["segments"], label_space, source)
    known = np.array(sorted(train_id_of), np.uint32)
    nearest = np.searchsorted(known, ids).clip(max=len(known) - 1)
    if (stray := known[nearest] != ids).any():
        raise DataError(
            f"Label map {source} holds the segment ids {first_few(np.unique(ids[stray]), MAX_NAMED)}, which the panoptic JSON "
            "does not list for this image: PNG and JSON must be from the same release."
        )
    return np.array([train_id_of[segment] for segment in known.tolist()], np.uint8)[nearest]


def _segment_train_ids(segments: list, label_space: LabelSpace, source: str) -> dict[int, int]:
    train_id_of = {}
    for entry in segments:
        if not isinstance(entry, list) or len(entry) != 2 or not is_whole(entry[0]) or not 0 <= entry[0] <= LARGEST_SEGMENT:
            raise DataError(
                f"{source}: {shown(entry)} is among the segments; an entry is [segment id, category id] with a segment id from "
                f"0 to {LARGEST_SEGMENT}: correct the panoptic JSON."
            )
        train_id_of[entry[0]] = category_train_id(entry[1], label_space, f"{source}: segment {entry[0]}")
    return train_id_of


def _draw_shapes(record: dict[str, Any], source: str) -> np.ndarray:
    """Raw ids, (height, width) int32; 0 where no shape is. A later shape covers earlier ones, as in labelme's own converters."""
    canvas = PIL.Image.new("I", (record["width"], record["height"]))
    for number, entry in enumerate(record["shapes"], start=1):
        where = f"{source}: shape {number}"
        if not isinstance(entry, list) or len(entry) < 3 or not is_whole(entry[0]) or entry[1] not in SHAPE_POINTS:
            raise DataError(f"{where} is {shown(entry)}; it must be [id, kind, points]: load the dataset again.")
        raw_id, kind, points, *mask = entry
        _draw_shape(canvas, raw_id, kind, _points(points, kind, where), mask, where)
    return np.asarray(canvas)


def _points(points: object, kind: str, where: str) -> list[tuple[float, float]]:
    fewest, most = SHAPE_POINTS[kind]
    are_pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    values = _numbers([number for point in points for number in point]) if are_pairs else None
    if values is None or not (np.abs(values) <= LARGEST_COORDINATE).all() or not fewest <= len(points) <= (most or len(points)):
        count = str(fewest) if fewest == most else f"{fewest} or more"
        raise DataError(f"{where} is a {kind}, which has {count} points [x, y] in pixels, not {shown(points)}: correct it.")
    return [tuple(point) for point in points]


def _draw_shape(canvas: PIL.Image.Image, raw_id: int, kind: str, points: list, mask: list, where: str) -> None:
    """As labelme's `shape_to_mask` does."""
    draw = PIL.ImageDraw.Draw(canvas)
    (left, top), *others = points
    if kind == "mask":
        canvas.paste(raw_id, (round(left), round(top)), _mask_png(mask, where))
    elif kind == "polygon":
        draw.polygon(points, fill=raw_id, outline=raw_id)
    elif kind == "rectangle":
        [(right, bottom)] = others
        draw.rectangle([min(left, right), min(top, bottom), max(left, right), max(top, bottom)], fill=raw_id, outline=raw_id)
    elif kind in ("line", "linestrip"):
        draw.line(points, fill=raw_id, width=LINE_WIDTH)
    else:
        radius = float(np.hypot(others[0][0] - left, others[0][1] - top)) if kind == "circle" else POINT_RADIUS
        draw.ellipse([left - radius, top - radius, left + radius, top + radius], fill=raw_id, outline=raw_id)


def _mask_png(encoded: list, where: str) -> PIL.Image.Image:
    try:
        data = base64.b64decode(encoded[0], validate=True)
    except (IndexError, TypeError, binascii.Error) as error:
        raise DataError(f"{where} is a mask without a PNG in base64 ({error}): correct it.") from error
    return _open_png(data, where).convert("L").point(lambda value: 255 * (value > 0))


def _png_file(record: dict[str, Any], source: str) -> bytes:
    """The bytes of the file of segment ids; they are not yet checked to be a PNG."""
    location, encoded = record.get("png"), record.get("png_base64")
    try:
        if isinstance(location, str) and "://" not in split_location(location)[0]:  # never from the network
            return read_location(location)
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except (OSError, binascii.Error) as error:
        raise DataError(f"Label map {source} cannot be read ({error}): fetch it again.") from error
    raise DataError(f"The annotation {source} has no PNG of its segments: load the dataset again.")


def _open_png(data: bytes, source: str) -> PIL.Image.Image:
    try:
        png = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
        png.load()
    except (*DAMAGED_PNG, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"Label map {source} cannot be read ({error}): it is damaged or not a PNG. Fetch it again.") from error
    return png


def read_matlab(data: bytes) -> np.ndarray:
    """Reads SBD's label map, `GTcls.Segmentation`: (height, width) raw ids.

    Raises:
        ValueError: the file is damaged, unpacks to more than the limit, or has no such field.
    """
    label_map = read_structure_field(data, "GTcls", "Segmentation")
    if label_map.ndim != 2:
        raise ValueError(f"GTcls.Segmentation has the shape {label_map.shape}; a label map has two dimensions")
    return label_map


def matlab_size(location: str) -> Size:
    """(width, height) of SBD's label map in a file; a DataError if it cannot be read."""
    try:
        height, width = read_matlab(read_location(location)).shape
    except (OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read ({error}): it is damaged or not SBD's. Fetch the file again.") from error
    return width, height
