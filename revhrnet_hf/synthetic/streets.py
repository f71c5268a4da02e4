"""Writes Cityscapes and Mapillary Vistas with drawn street scenes, in their publishers' layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image
import scipy.ndimage

from ..data.datasets.cityscapes import IMAGES
from ..data.datasets.cityscapes import LABELS as CITYSCAPES_LABELS
from ..data.datasets.mapillary_vistas import FOLDERS, V12, V20
from ..data.datasets.mapillary_vistas import LABELS as VISTAS_LABELS
from .files import COUNTS, draw_scenes, empty_folder, save_jpeg, save_json, save_png
from .scene import SCENE_CLASSES, Scene

CITYSCAPES_NAMES = {
    "void": "static",
    "sky": "sky",
    "building": "building",
    "wall": "wall",
    "pole": "pole",
    "road": "road",
    "lane marking": "road",
    "pavement": "sidewalk",
    "tree": "vegetation",
    "vegetation": "vegetation",
    "sign": "traffic sign",
    "traffic light": "traffic light",
    "fence": "fence",
    "car": "car",
    "bus": "bus",
    "pedestrian": "person",
    "bicyclist": "rider",
}
VISTAS_NAMES_V12 = {
    "void": "void--unlabeled",
    "sky": "nature--sky",
    "building": "construction--structure--building",
    "wall": "construction--barrier--wall",
    "pole": "object--support--pole",
    "road": "construction--flat--road",
    "lane marking": "marking--general",
    "pavement": "construction--flat--sidewalk",
    "tree": "nature--vegetation",
    "vegetation": "nature--vegetation",
    "sign": "object--traffic-sign--front",
    "traffic light": "object--traffic-light",
    "fence": "construction--barrier--fence",
    "car": "object--vehicle--car",
    "bus": "object--vehicle--bus",
    "pedestrian": "human--person",
    "bicyclist": "human--rider--bicyclist",
}
VISTAS_NAMES_V20 = VISTAS_NAMES_V12 | {
    "lane marking": "marking--continuous--dashed",
    "traffic light": "object--traffic-light--general-upright",
    "pedestrian": "human--person--individual",
}
VISTAS_NAMES = {V12: VISTAS_NAMES_V12, V20: VISTAS_NAMES_V20}
# Release → the versions of labels in it, each with its folder in a split and its list of labels.
VISTAS_PLACES = {
    V12: {V12: ("", "config.json")},
    V20: {V12: (V12, f"config_{V12}.json"), V20: (V20, f"config_{V20}.json")},
}

CITIES = {
    "train": ("aachen", "bremen", "ulm"),
    "val": ("frankfurt", "lindau", "munster"),
    "train_extra": ("augsburg", "konigswinter", "wurzburg"),
}
COARSE_MARGIN = 3  # pixels on both sides of a border, unlabelled in coarse label maps
UNLABELLED = 0
KEY_LENGTH = 22  # characters of the publisher's image names


def write_cityscapes(
    data_dir: str | Path,
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> None:
    """Writes a miniature Cityscapes: images of several cities, with label maps drawn finely and coarsely.

    `labelIds`, `instanceIds` and `color` equal the output of the publisher's tools for `polygons.json`, in which every connected
    part of an object has its own polygon.

    Args:
        data_dir: the folder to fill; created if it is missing.
        counts: split (train, val, train_extra) → number of images; train_extra has only coarse label maps.
        size: (height, width) of the images, in pixels.
        seed: the same seed gives the same files.

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = empty_folder(data_dir)
    for split, count in counts.items():
        cities = CITIES[split]
        for k, scene in enumerate(draw_scenes(split, count, size, seed)):
            city = cities[k % len(cities)]
            frame = f"{city}/{city}_{k // len(cities):06d}_000019"
            save_png(data_dir / IMAGES / split / f"{frame}_leftImg8bit.png", scene.image)
            ids = _CITYSCAPES_IDS[scene.classes]
            if split != "train_extra":
                _write_annotation(data_dir / "gtFine" / split / f"{frame}_gtFine", ids, scene.objects)
            _write_annotation(data_dir / "gtCoarse" / split / f"{frame}_gtCoarse", _coarse(ids), scene.objects)


def _write_annotation(prefix: Path, ids: np.ndarray, objects: np.ndarray) -> None:
    instance_ids, polygons = ids.astype(np.uint16), []
    seen = np.zeros(len(CITYSCAPES_LABELS), int)
    for part in _parts(ids, objects):
        label = CITYSCAPES_LABELS[part.raw_id]
        polygons.append({"label": label.name, "polygon": part.outline})
        if label.has_instances:
            instance_ids[part.window][part.mask] = part.raw_id * 1000 + seen[part.raw_id]
            seen[part.raw_id] += 1
    height, width = ids.shape
    save_png(prefix.with_name(f"{prefix.name}_labelIds.png"), ids)
    save_png(prefix.with_name(f"{prefix.name}_instanceIds.png"), instance_ids)
    save_png(prefix.with_name(f"{prefix.name}_color.png"), _CITYSCAPES_COLOURS[ids])
    save_json(prefix.with_name(f"{prefix.name}_polygons.json"), {"imgHeight": height, "imgWidth": width, "objects": polygons})


def _coarse(ids: np.ndarray) -> np.ndarray:
    """The ids, unlabelled near a border between labels."""
    around = 2 * COARSE_MARGIN + 1
    inner = scipy.ndimage.minimum_filter(ids, around) == scipy.ndimage.maximum_filter(ids, around)
    return np.where(inner, ids, np.uint8(UNLABELLED))


class _Part(NamedTuple):
    """A connected part of an object or of a region without objects.

    Attributes:
        raw_id: its label.
        window: the rows and columns of its bounding box.
        mask: the pixels of the window that it covers.
        outline: the centres [x, y] of the pixels on its rim, clockwise.
    """

    raw_id: int
    window: tuple[slice, slice]
    mask: np.ndarray
    outline: list[list[int]]


def _parts(ids: np.ndarray, objects: np.ndarray) -> list[_Part]:
    """All parts. A part inside another one comes after it, so that drawing the polygons in this order gives `ids`."""
    parts = []
    kinds = ids.astype(int) << 16 | np.where(_HAS_INSTANCES[ids], objects, 0)
    for kind in np.unique(kinds):
        numbers, _ = scipy.ndimage.label(kinds == kind)
        for number, window in enumerate(scipy.ndimage.find_objects(numbers), start=1):
            mask = numbers[window] == number
            rows, columns = window
            outline = [[x + columns.start, y + rows.start] for x, y in _rim(mask)]
            parts.append(_Part(int(kind) >> 16, window, mask, outline))
    return sorted(parts, key=lambda part: -part.mask.size)


def _rim(mask: np.ndarray) -> list[tuple[int, int]]:
    """The pixels (x, y) at which the path around a 4-connected shape turns; the outside is on the left."""
    inside = np.pad(mask, 1).tolist()
    start = x, y, side = int(mask[0].argmax()) + 1, 1, 0
    corners = []
    while not corners or (x, y, side) != start:
        (dx, dy), (left_x, left_y) = _STEPS[side], _STEPS[side - 1]
        if not inside[y + dy][x + dx]:
            corners.append((x, y))
            side = (side + 1) % 4
        elif not inside[y + dy + left_y][x + dx + left_x]:
            x, y = x + dx, y + dy
        else:
            corners.append((x, y))
            x, y, side = x + dx + left_x, y + dy + left_y, (side - 1) % 4
            corners.append((x, y))
    return [(x - 1, y - 1) for x, y in corners]


def write_mapillary_vistas(
    data_dir: str | Path,
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] = (360, 480),
    seed: int = 0,
    version: Literal["v1.2", "v2.0"] = V12,
) -> None:
    """Writes a miniature Mapillary Vistas; like the real dataset, v2.0 has the label maps of both versions.

    Args:
        data_dir: the folder to fill; created if it is missing.
        counts: split (train, val) → number of images.
        size: (height, width) of the images, in pixels.
        seed: the same seed gives the same files.
        version: the release, which determines layout and labels.

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = empty_folder(data_dir)
    places = VISTAS_PLACES[version]
    for labels_of, (_, config) in places.items():
        save_json(data_dir / config, _vistas_config(labels_of))
    for split, count in counts.items():
        folder, prefix = data_dir / FOLDERS[split], f"mini_{FOLDERS[split]}_"
        for k, scene in enumerate(draw_scenes(split, count, size, seed)):
            key = f"{prefix}{k:0{KEY_LENGTH - len(prefix)}d}"
            save_jpeg(folder / "images" / f"{key}.jpg", scene.image)
            for labels_of, (below, _) in places.items():
                _write_vistas_labels(folder / below, key, scene, labels_of)


def _write_vistas_labels(folder: Path, key: str, scene: Scene, version: str) -> None:
    labels = VISTAS_LABELS[version]
    ids = _VISTAS_IDS[version][scene.classes]
    file = folder / "labels" / f"{key}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    label_map = PIL.Image.fromarray(ids)
    label_map.putpalette([channel for label in labels for channel in label.colour])
    label_map.save(file, compress_level=1)
    instances = ids.astype(np.uint16) * 256
    for raw_id in np.unique(ids):
        if labels[raw_id].instances:
            here = ids == raw_id
            instances[here] += np.unique(scene.objects[here], return_inverse=True)[1].astype(np.uint16)
    save_png(folder / "instances" / f"{key}.png", instances)


def _vistas_config(version: str) -> dict[str, Any]:
    labels = [label._asdict() for label in VISTAS_LABELS[version]]
    for label in labels:
        label["color"] = list(label.pop("colour"))
    return {
        "labels": labels,
        "version": version.removeprefix("v"),
        "mapping": {V12: "public", V20: "mvd20"}[version],
        "folder_structure": "{split}/{content}/{key:.{22}}.{ext}",
    }


_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # (x, y) along the top, right, bottom and left edge of a pixel; y points down
_CITYSCAPES_ID_OF = {label.name: label.raw_id for label in CITYSCAPES_LABELS}
_CITYSCAPES_IDS = np.array([_CITYSCAPES_ID_OF[CITYSCAPES_NAMES[name]] for name in SCENE_CLASSES], np.uint8)
_CITYSCAPES_COLOURS = np.array([(*label.colour, 255) for label in CITYSCAPES_LABELS], np.uint8)
_HAS_INSTANCES = np.array([label.has_instances for label in CITYSCAPES_LABELS])
_VISTAS_ID_OF = {
    version: {label.name: raw_id for raw_id, label in enumerate(labels)} for version, labels in VISTAS_LABELS.items()
}
_VISTAS_IDS = {
    version: np.array([_VISTAS_ID_OF[version][names[name]] for name in SCENE_CLASSES], np.uint8)
    for version, names in VISTAS_NAMES.items()
}
