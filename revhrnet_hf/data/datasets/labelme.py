"""labelme's annotations: a JSON file for each image, with shapes drawn by hand (https://github.com/wkentaro/labelme).

The file of `x.jpg` is `x.json`, usually beside it. Its `shapes` are polygons and the like, each with a `label`; a label table
says which id a label has (`labelme: {road: 1}`). Pixels that no shape covers have the id 0. Images without a file have not been
annotated, and are left out.
"""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ...errors import DataError, did_you_mean, first_few
from ...images import SUFFIXES
from ...text import natural_order
from ..annotation import SHAPE_POINTS, is_whole, pack_annotation, shown
from ..archive import DataFolder, leads_outside
from ..listing import MAX_NAMED, ListedSample, image_size

BACKGROUND_LABELS = ("background", "_background_")
UNLABELLED = 0  # the id of pixels that no shape covers
FIELDS = ("shapes", "imagePath", "imageWidth", "imageHeight")  # that are read; imageData, the whole image, is among the others


def labelme_files(data_folder: DataFolder, folder: str = "") -> dict[str, dict[str, Any]]:
    """File → content (`FIELDS`) of labelme's files in `folder` and its sub-folders, sorted; other JSON files are none of them."""
    found = {}
    for name in sorted(data_folder.files(folder, [".json"])):
        file = posixpath.join(folder, name)
        content = data_folder.read_json(file)
        if isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content:
            found[file] = {field: content[field] for field in FIELDS if field in content}
    for name in sorted(data_folder.folders(folder)):
        found |= labelme_files(data_folder, posixpath.join(folder, name))
    return found


def labels_in(files: Mapping[str, dict[str, Any]]) -> Counter[str]:
    """Label → the number of shapes that bear it."""
    return Counter(
        str(shape.get("label")) for content in files.values() for shape in content["shapes"] if isinstance(shape, dict)
    )


def labelme_pairs(data_folder: DataFolder, folder: str, ids: Mapping[str, int]) -> dict[str, ListedSample]:
    """Id → pair, sorted by id, of every file of labelme below `folder` and its image.

    Args:
        ids: the labels of shapes → ids in the label map.

    Raises:
        DataError: a label is not among `ids`, a shape cannot be drawn, or there is no file of labelme.
    """
    files = labelme_files(data_folder, folder)
    if not files:
        raise DataError(f"{data_folder.expected(folder)} holds no JSON files of labelme: put them there, beside their images.")
    pairs, images = {}, _ImageFiles(data_folder)
    for file, content in files.items():
        image_id = str(PurePosixPath(file).relative_to(folder).with_suffix(""))
        image = images.of(file, content)
        location = data_folder.location(image)
        annotation = None if location is None else _annotation(content, location, ids, data_folder.expected(file))
        pairs[image_id] = ListedSample(image, file, image_id, annotation)
    return {image_id: pairs[image_id] for image_id in sorted(pairs, key=natural_order)}


def images_without_file(data_folder: DataFolder, images: list[str], files: Mapping[str, dict[str, Any]]) -> list[str]:
    """The images that have not been annotated."""
    image_files = _ImageFiles(data_folder)
    return sorted(set(images) - {image_files.of(file, content) for file, content in files.items()})


class _ImageFiles:
    """Finds the images of labelme's files. Each folder is listed once."""

    def __init__(self, data_folder: DataFolder):
        self._data_folder = data_folder
        self._by_stem: dict[str, dict[str, list[str]]] = {}

    def of(self, file: str, content: dict[str, Any]) -> str:
        """The image's path: the file with the same name beside the JSON, else the one that the JSON names."""
        folder = posixpath.dirname(file)
        beside = self._in(folder).get(PurePosixPath(file).stem, ())
        if len(beside) == 1:
            return posixpath.join(folder, beside[0])
        named = posixpath.normpath(posixpath.join(folder, str(content["imagePath"]).replace("\\", "/")))
        if leads_outside(named):
            raise DataError(
                f"{self._data_folder.expected(file)} names the image {shown(content['imagePath'])}, which is outside the data "
                "folder: put it beside the JSON file, with the same name."
            )
        return named

    def _in(self, folder: str) -> dict[str, list[str]]:
        """Name without ending → images in the folder."""
        if folder not in self._by_stem:
            found = self._by_stem[folder] = defaultdict(list)
            for name in self._data_folder.files(folder):
                if name.lower().endswith(SUFFIXES):
                    found[PurePosixPath(name).stem].append(name)
        return self._by_stem[folder]


def _annotation(content: dict[str, Any], image: str, ids: Mapping[str, int], source: str) -> bytes:
    """The shapes with ids for labels, as annotation.py stores them."""
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not (is_whole(width) and is_whole(height)):  # old versions did not write them
        width, height = image_size(image)
    shapes = [_shape(shape, ids, f"{source}: shape {number}") for number, shape in enumerate(content["shapes"], start=1)]
    return pack_annotation({"height": height, "width": width, "shapes": shapes})


def _shape(shape: Any, ids: Mapping[str, int], where: str) -> list:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise DataError(f"{where} is {shown(shape)}, and a shape has a label: correct it.")
    label, kind = shape["label"], shape.get("shape_type") or "polygon"
    if label not in ids:
        raise DataError(
            f"{where} has the label {label!r}{did_you_mean(label, ids)}, which the label table does not have (labelme: "
            f"{first_few(ids, MAX_NAMED)}): add it there with an id, or correct it in labelme."
        )
    if kind not in SHAPE_POINTS:
        raise DataError(f"{where} is a {kind}, which is not read ({', '.join(SHAPE_POINTS)} are): draw it as a polygon.")
    return [ids[label], kind, shape.get("points"), *([shape.get("mask")] if kind == "mask" else [])]
