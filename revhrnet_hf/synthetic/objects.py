"""Writes COCO and PASCAL VOC (with SBD) with drawn street scenes, in their publishers' layouts."""

import io
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image
import scipy.io
import scipy.ndimage
import scipy.sparse

from ..data.datasets.coco import ANNOTATIONS, CATEGORIES
from ..data.datasets.pascal_voc import BORDER, IMAGES, LABELS, LISTS, NAMES, voc_colour
from .files import COUNTS, draw_scenes, empty_folder, save_jpeg, save_json, save_png
from .scene import SCENE_CLASSES, Scene

COCO_THINGS = {
    "pedestrian": "person",
    "bicyclist": "bicycle",
    "car": "car",
    "bus": "bus",
    "traffic light": "traffic light",
    "sign": "stop sign",
}
COCO_STUFF = {
    "sky": "sky-other-merged",
    "building": "building-other-merged",
    "wall": "wall-other-merged",
    "road": "road",
    "lane marking": "road",
    "pavement": "pavement-merged",
    "tree": "tree-merged",
    "vegetation": "grass-merged",
    "fence": "fence-merged",
}
VOC_NAMES = {"pedestrian": "person", "bicyclist": "bicycle", "car": "car", "bus": "bus"}
FIRST_IMAGE_ID = {"train": 1, "val": 500_001}
VOC_YEARS = {"train": 2010, "val": 2012, "sbd": 2008}
MATLAB_HEADER = b"MATLAB 5.0 MAT-file, drawn for tests".ljust(116)
SEGMENT_STEP = 70_001  # between panoptic ids, so that red, green and blue are all used


def write_coco(
    data_dir: str | Path, counts: Mapping[str, int] = COUNTS, size: tuple[int, int] = (240, 320), seed: int = 0
) -> None:
    """Writes a miniature COCO: images, instances and panoptic segments of six kinds of things and eight of stuff.

    Instances do not overlap, and their polygons are exact. In each image, all pedestrians except the largest form a crowd.

    Args:
        data_dir: the folder to fill; created if it is missing.
        counts: split (train, val) → number of images.
        size: (height, width) of the images, in pixels.
        seed: the same seed gives the same files.

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = empty_folder(data_dir)
    for split, count in counts.items():
        images, instances, panoptic = [], [], []
        for image_id, scene in enumerate(draw_scenes(split, count, size, seed), start=FIRST_IMAGE_ID[split]):
            stem, things = f"{image_id:012d}", _things(scene)
            save_jpeg(data_dir / f"{split}2017" / f"{stem}.jpg", scene.image)
            images.append({"file_name": f"{stem}.jpg", "height": size[0], "width": size[1], "id": image_id, "license": 1})
            instances += [_instance(thing, image_id, image_id * 1000 + k) for k, thing in enumerate(things)]
            segments = {k * SEGMENT_STEP: region for k, region in enumerate([*things, *_stuff(scene)], start=1)}
            save_png(data_dir / ANNOTATIONS / f"panoptic_{split}2017" / f"{stem}.png", _panoptic_colours(segments, size))
            infos = [_segment_info(segment, region) for segment, region in segments.items()]
            panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": infos})
        _write_json(data_dir, f"instances_{split}2017", images, instances, things_only=True)
        _write_json(data_dir, f"panoptic_{split}2017", images, panoptic, things_only=False)


class _Region(NamedTuple):
    """The pixels of an annotation: `mask` is (height, width) bool."""

    category_id: int
    mask: np.ndarray
    is_crowd: bool = False


def _things(scene: Scene) -> list[_Region]:
    regions = []
    for drawn, name in COCO_THINGS.items():
        here = scene.classes == SCENE_CLASSES.index(drawn)
        masks = [here & (scene.objects == number) for number in np.unique(scene.objects[here])]
        masks.sort(key=np.count_nonzero, reverse=True)
        alone = masks[:1] if drawn == "pedestrian" else masks
        regions += [_Region(_CATEGORY_IDS[name], mask) for mask in alone]
        if crowd := masks[len(alone) :]:
            regions.append(_Region(_CATEGORY_IDS[name], np.any(crowd, axis=0), is_crowd=True))
    return regions


def _stuff(scene: Scene) -> Iterator[_Region]:
    for name in dict.fromkeys(COCO_STUFF.values()):
        drawn = [SCENE_CLASSES.index(drawn) for drawn, stuff in COCO_STUFF.items() if stuff == name]
        mask = np.isin(scene.classes, drawn)
        if mask.any():
            yield _Region(_CATEGORY_IDS[name], mask)


def _instance(thing: _Region, image_id: int, annotation_id: int) -> dict[str, Any]:
    return {
        "segmentation": _run_lengths(thing.mask) if thing.is_crowd else _polygons(thing.mask),
        "area": int(thing.mask.sum()),
        "iscrowd": int(thing.is_crowd),
        "image_id": image_id,
        "bbox": _box(thing.mask),
        "category_id": thing.category_id,
        "id": annotation_id,
    }


def _segment_info(segment: int, region: _Region) -> dict[str, Any]:
    return {
        "id": segment,
        "category_id": region.category_id,
        "iscrowd": int(region.is_crowd),
        "bbox": _box(region.mask),
        "area": int(region.mask.sum()),
    }


def _panoptic_colours(segments: Mapping[int, _Region], size: tuple[int, int]) -> np.ndarray:
    ids = np.zeros(size, np.uint32)
    for segment, region in segments.items():
        ids[region.mask] = segment
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def _write_json(data_dir: Path, name: str, images: list[dict], annotations: list[dict], things_only: bool) -> None:
    categories = []
    for category in CATEGORIES:
        entry = {"supercategory": category.supercategory, "id": category.id, "name": category.name}
        if things_only and category.is_thing:
            categories.append(entry)
        elif not things_only:
            categories.append({**entry, "isthing": int(category.is_thing), "color": category.colour})
    licences = [{"id": 1, "name": "drawn for tests", "url": ""}]
    content = {"info": {"year": 2017}, "licenses": licences, "images": images, "annotations": annotations}
    save_json(data_dir / ANNOTATIONS / f"{name}.json", {**content, "categories": categories})


def _box(mask: np.ndarray) -> list[int]:
    """Left, top, width, height."""
    rows, columns = scipy.ndimage.find_objects(mask.astype(np.uint8))[0]
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Lengths of the runs of 0, 1, 0 … down the columns, COCO's format for crowds."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return {"counts": np.diff([0, *changes, mask.size]).tolist(), "size": list(mask.shape)}


def _polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons along the pixels' edges that cover the mask exactly; a shape with a hole is cut through the hole."""
    polygons = []
    numbers, _ = scipy.ndimage.label(mask)
    for number, window in enumerate(scipy.ndimage.find_objects(numbers), start=1):
        part = np.zeros_like(mask)
        part[window] = numbers[window] == number
        holes = scipy.ndimage.binary_fill_holes(part[window]) & ~part[window]
        if holes.any():
            cut = window[1].start + int(holes.any(axis=0).argmax())
            left, right = part.copy(), part
            left[:, cut:] = right[:, :cut] = False
            polygons += _polygons(left) + _polygons(right)
        else:
            polygons.append(_outline(part))
    return polygons


def _outline(mask: np.ndarray) -> list[int]:
    """The corners [x0, y0, x1, y1, …] of a 4-connected shape without holes.

    Without holes, no two pixels touch only at a corner, so that exactly one edge starts at each corner.
    """
    framed = np.pad(mask, 1)
    follower = {}
    for (dx, dy), (from_x, from_y), (to_x, to_y) in _EDGES:
        beyond = framed[1 + dy : framed.shape[0] - 1 + dy, 1 + dx : framed.shape[1] - 1 + dx]
        for y, x in np.argwhere(mask & ~beyond).tolist():
            follower[x + from_x, y + from_y] = (x + to_x, y + to_y)
    first = before = next(iter(follower))
    corners, here = [], follower[first]
    while True:
        after = follower[here]
        if after[0] - here[0] != here[0] - before[0] or after[1] - here[1] != here[1] - before[1]:
            corners += here
        if here == first:
            return corners
        before, here = here, after


def write_pascal_voc(
    data_dir: str | Path,
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] = (240, 320),
    seed: int = 0,
    form: Literal["voc", "sbd"] = "voc",
) -> None:
    """Writes a miniature PASCAL VOC of four classes, with a border of 255 around the objects.

    Args:
        data_dir: the folder to fill; created if it is missing.
        counts: split (train, val) → number of images.
        size: (height, width) of the images, in pixels.
        seed: the same seed gives the same files.
        form: "voc"; or "sbd", which adds SBD: label maps without borders for VOC's images and for as many more as train has.

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = empty_folder(data_dir)
    voc, sbd = data_dir / "VOCdevkit" / "VOC2012", data_dir / "benchmark_RELEASE" / "dataset"
    drawn = {**counts, "sbd": counts["train"]} if form == "sbd" else counts
    ids = {split: [f"{VOC_YEARS[split]}_{k:06d}" for k in range(count)] for split, count in drawn.items()}
    for split, members in ids.items():
        for image_id, scene in zip(members, draw_scenes(split, len(members), size, seed), strict=True):
            save_jpeg(voc / IMAGES / f"{image_id}.jpg", scene.image)
            classes = _VOC_IDS[scene.classes]
            if split != "sbd":
                _save_voc_labels(voc / LABELS / f"{image_id}.png", classes)
            if form == "sbd":
                _save_sbd_labels(sbd / "cls" / f"{image_id}.mat", classes)
    of_sbd = ids.pop("sbd", [])
    trainval = sorted(chain(*ids.values()))
    for split, members in {**ids, "trainval": trainval}.items():
        _write_list(voc / LISTS / f"{split}.txt", members)
    if form == "sbd":
        # SBD's halves are not VOC's: each has images of VOC's train and of its val.
        of_sbd += trainval
        _write_list(sbd / "train.txt", of_sbd[::2])
        _write_list(sbd / "val.txt", of_sbd[1::2])


def _save_voc_labels(file: Path, classes: np.ndarray) -> None:
    outside = (classes == 0) & (scipy.ndimage.maximum_filter(classes, 3) > 0)
    label_map = PIL.Image.fromarray(np.where(outside, np.uint8(BORDER), classes))
    label_map.putpalette([channel for index in range(256) for channel in voc_colour(index)])
    file.parent.mkdir(parents=True, exist_ok=True)
    label_map.save(file, compress_level=1)


def _save_sbd_labels(file: Path, classes: np.ndarray) -> None:
    boundaries = np.empty((len(NAMES) - 1, 1), object)
    for index in range(1, len(NAMES)):
        mask = classes == index
        boundaries[index - 1, 0] = scipy.sparse.csc_matrix((mask & ~scipy.ndimage.binary_erosion(mask)).astype(float))
    present = np.unique(classes[classes > 0])[:, None]
    file.parent.mkdir(parents=True, exist_ok=True)
    ground_truth = {"Boundaries": boundaries, "Segmentation": classes, "CategoriesPresent": present}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"GTcls": ground_truth}, do_compression=True)
    # scipy's header would contain the current time.
    file.write_bytes(MATLAB_HEADER + buffer.getvalue()[len(MATLAB_HEADER) :])


def _write_list(file: Path, ids: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")


# For a pixel's top, right, bottom and left edge: the neighbour beyond it, and its start and end, with the pixel on the right.
_EDGES = (
    ((0, -1), (0, 0), (1, 0)),
    ((1, 0), (1, 0), (1, 1)),
    ((0, 1), (1, 1), (0, 1)),
    ((-1, 0), (0, 1), (0, 0)),
)
_CATEGORY_IDS = {category.name: category.id for category in CATEGORIES}
_VOC_IDS = np.array([NAMES.index(VOC_NAMES.get(name, "background")) for name in SCENE_CLASSES], np.uint8)
