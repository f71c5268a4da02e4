"""The categories of a COCO-format file: the names and ids of the classes in a user's own export."""

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ..errors import DataError
from .archive import location_name, location_stamp, not_json, parse_json, read_text, split_location
from .limits import JSON_BYTES

BACKGROUND = "background"
# Names of a category for pixels without an object, which labelme and other tools write.
BACKGROUND_NAMES = (BACKGROUND, "_background_", "__background__")
NO_GROUP = "none"  # the supercategory of a category that belongs to no group
LARGEST_ID = (1 << 31) - 1
MOST = 254  # classes besides background; 255 is ignored
KEY = re.compile(r'"categories"\s*:\s*(?=\[)')
LEVELS = ("annotations", "labels.json", "_annotations.coco.json")  # parts of a file's path that are not the dataset's name


class OwnCategories(NamedTuple):
    """The classes of a user's own dataset.

    Attributes:
        name: the dataset's name, from its folder.
        classes: id → name, without background.
        background: the ids of categories that mean background.
    """

    name: str
    classes: dict[int, str]
    background: list[int]


def is_background(name: str) -> bool:
    return name.lower() in BACKGROUND_NAMES


def is_coco_file(label_space: str) -> bool:
    """Whether the given label space is the path of a COCO-format file."""
    return location_name(label_space).endswith(".json")


def read_own_categories(location: str) -> OwnCategories:
    """The classes of a COCO-format file, without categories that only group others.

    Those are the `group_names` of which there is no annotation in the file.

    Args:
        location: the file's location (see archive.py).

    Raises:
        DataError: the file is missing or not JSON, or a category has no name or no id of its own.
    """
    try:
        stamp = location_stamp(location)
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error}).") from error
    return _read(location, stamp)


def listed_categories(location: str) -> list[Any]:
    """The file's list of categories, without parsing the rest, which takes a minute for COCO's own files."""
    text = read_text(location, JSON_BYTES)
    places = [match.end() for match in KEY.finditer(text)]
    if len(places) != 1:  # the key occurs elsewhere, too, or in another form
        return _list(parse_json(text, location), "categories", location)
    try:
        return json.JSONDecoder().raw_decode(text, places[0])[0]
    except (ValueError, RecursionError) as error:
        raise not_json(location, error) from error


def category_names(categories: list[Any], location: str) -> dict[int, str]:
    """Id → name."""
    names: dict[int, str] = {}
    for record in categories:
        category_id, name = (record.get("id"), record.get("name")) if isinstance(record, dict) else (None, None)
        if type(category_id) is not int or not 0 <= category_id <= LARGEST_ID or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{location}: {str(record)[:80]} is among its categories; a category has an id, a whole number from 0 to "
                f"{LARGEST_ID}, and a name: correct it."
            )
        if category_id in names:
            raise DataError(f"{location}: the category id {category_id} is there twice, as {names[category_id]!r} and {name!r}.")
        names[category_id] = name
    return names


def group_names(categories: list[Any]) -> dict[int, str]:
    """Id → name of the categories that may only group others, in a list that `category_names` accepts.

    Roboflow writes such a category before the real ones: they name it as their `supercategory`, and its own is "none".
    """
    above = {record["id"]: record.get("supercategory") for record in categories}
    named = [name for name in above.values() if name != NO_GROUP]
    return {record["id"]: record["name"] for record in categories if above[record["id"]] == NO_GROUP and record["name"] in named}


@lru_cache(maxsize=8)
def _read(location: str, stamp: str) -> OwnCategories:
    content = parse_json(read_text(location, JSON_BYTES), location)
    categories, annotations = (_list(content, key, location) for key in ("categories", "annotations"))
    names = category_names(categories, location)
    used = [record.get("category_id") for record in annotations if isinstance(record, dict)]
    used = {category_id for category_id in used if type(category_id) is int}
    groups = group_names(categories)
    names = {key: name for key, name in sorted(names.items()) if key in used or key not in groups}
    background = [key for key, name in names.items() if is_background(name)]
    classes = {key: name for key, name in names.items() if key not in background}
    for name, count in Counter(classes.values()).items():
        if count > 1:
            ids = ", ".join(str(key) for key in classes if classes[key] == name)
            raise DataError(f"{location}: the categories {ids} are all called {name!r}: rename all but one, or join them.")
    if not 0 < len(classes) <= MOST:
        raise DataError(f"{location} has {len(classes)} categories; there can be 1 to {MOST} and background: join or drop some.")
    return OwnCategories(_dataset_name(location), classes, background)


def json_object(content: object, location: str) -> dict[str, Any]:
    """The content of a COCO-format file; a DataError if it is not a JSON object."""
    if not isinstance(content, dict):
        raise DataError(f"{location} holds a {type(content).__name__}: COCO's JSON is an object with images and annotations.")
    return content


def _list(content: object, key: str, location: str) -> list[Any]:
    found = json_object(content, location).get(key)
    if not isinstance(found, list):
        raise DataError(f"{location} has no list {key!r}, so it is not in COCO's format: export it again.")
    return found


def _dataset_name(location: str) -> str:
    """The data folder's name, or the archive's."""
    file, member = split_location(location)
    path = PurePosixPath(file.replace("\\", "/"))
    if member is not None:
        return path.stem
    return (path.parent.parent if path.parent.name in LEVELS or path.name in LEVELS else path.parent).name or "own"
