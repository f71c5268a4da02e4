"""A small CamVid of drawn street scenes, in SegNet's layout or the original one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.datasets.camvid import CAMVID11, COLOURS_32, LABELS, SEGNET_VOID, STILLS
from .files import COUNTS, draw_scenes, empty_folder, save_png
from .scene import SCENE_CLASSES, Scene

CAMVID_NAMES = {
    "void": "Void",
    "sky": "Sky",
    "building": "Building",
    "wall": "Wall",
    "pole": "Column_Pole",
    "road": "Road",
    "lane marking": "LaneMkgsDriv",
    "pavement": "Sidewalk",
    "tree": "Tree",
    "vegetation": "VegetationMisc",
    "sign": "SignSymbol",
    "traffic light": "TrafficLight",
    "fence": "Fence",
    "car": "Car",
    "bus": "Truck_Bus",
    "pedestrian": "Pedestrian",
    "bicyclist": "Bicyclist",
}


def write_camvid(
    data_dir: str | Path,
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] = (360, 480),
    seed: int = 0,
    form: Literal["segnet", "original"] = "segnet",
) -> None:
    """Writes a miniature CamVid: images, label maps and lists, with the names and ids of the real dataset.

    All 11 classes occur in each split of 8 images or more.

    Args:
        data_dir: the folder to fill; created if it is missing.
        counts: split (train, val, test) → number of images.
        size: (height, width) of the images, in pixels.
        seed: the same seed gives the same files.
        form: "segnet" (grey label maps of ids) or "original" (label maps in 32 colours).

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = empty_folder(data_dir)
    write_split = {"segnet": _write_segnet, "original": _write_original}[form]
    for split, count in counts.items():
        scenes = {f"mini_{split}_{k:05d}": scene for k, scene in enumerate(draw_scenes(split, count, size, seed))}
        write_split(data_dir, split, scenes)


def _write_segnet(data_dir: Path, split: str, scenes: Mapping[str, Scene]) -> None:
    images, label_maps = data_dir / split, data_dir / f"{split}annot"
    for stem, scene in scenes.items():
        save_png(images / f"{stem}.png", scene.image)
        save_png(label_maps / f"{stem}.png", _SEGNET_IDS[scene.classes])
    prefix = "/SegNet/CamVid"
    lines = [f"{prefix}/{split}/{stem}.png {prefix}/{split}annot/{stem}.png\n" for stem in scenes]
    (data_dir / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _write_original(data_dir: Path, split: str, scenes: Mapping[str, Scene]) -> None:
    for stem, scene in scenes.items():
        save_png(data_dir / STILLS / f"{stem}.png", scene.image)
        save_png(data_dir / LABELS / f"{stem}_L.png", _CAMVID_COLOURS[scene.classes])
    (data_dir / f"{split}.txt").write_text("".join(f"{stem}.png\n" for stem in scenes), encoding="utf-8")


_CAMVID_COLOURS = np.array([COLOURS_32[CAMVID_NAMES[name]] for name in SCENE_CLASSES], np.uint8)
_SEGNET_IDS = np.array([CAMVID11.raw_colours[tuple(colour)] for colour in _CAMVID_COLOURS.tolist()], np.uint8)
_SEGNET_IDS[SCENE_CLASSES.index("void")] = SEGNET_VOID
