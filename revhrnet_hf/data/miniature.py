"""Miniature data sets: drawn street scenes, written in each data set's own layout, for tests and the quickstart."""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from ..errors import DataError
from .camvid import CAMVID11, COLOURS_32, LABELS, SEGNET_VOID, STILLS
from .street_scene import SCARCE, SCENE_CLASSES, Scene, draw_street_scene

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
CAMVID_COUNTS = {"train": 40, "val": 12}


def draw_scenes(split: str, count: int, size: tuple[int, int], seed: int) -> Iterator[Scene]:
    """Scenes 0 … count − 1 of a split, of `size` (height, width).

    Scene k depends on `seed`, `split`, `size` and k alone.
    """
    for k in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), k])
        yield draw_street_scene(rng, size, SCARCE[k % len(SCARCE)])


def write_camvid(
    data_dir: str | Path,
    counts: Mapping[str, int] = CAMVID_COUNTS,
    size: tuple[int, int] = (360, 480),
    seed: int = 0,
    form: Literal["segnet", "original"] = "segnet",
) -> None:
    """Writes a miniature CamVid: pictures, label maps and lists, named and coded as in the real one.

    All 11 classes occur in each split of 8 pictures or more.

    Args:
        data_dir: the folder to fill; made if it is missing.
        counts: pictures by split (train, val, test).
        size: (height, width) of the pictures, in pixels.
        seed: same seed, same files.
        form: "segnet" (grey label maps of ids) or "original" (label maps in 32 colours).

    Raises:
        DataError: `data_dir` already holds files.
    """
    data_dir = _empty_folder(data_dir)
    write_split = {"segnet": _write_segnet, "original": _write_original}[form]
    for split, count in counts.items():
        scenes = {f"mini_{split}_{k:05d}": scene for k, scene in enumerate(draw_scenes(split, count, size, seed))}
        write_split(data_dir, split, scenes)


def _write_segnet(data_dir: Path, split: str, scenes: Mapping[str, Scene]) -> None:
    images, label_maps = data_dir / split, data_dir / f"{split}annot"
    for stem, scene in scenes.items():
        _save(images / f"{stem}.png", scene.image)
        _save(label_maps / f"{stem}.png", _SEGNET_IDS[scene.classes])
    prefix = "/SegNet/CamVid"
    lines = [f"{prefix}/{split}/{stem}.png {prefix}/{split}annot/{stem}.png\n" for stem in scenes]
    (data_dir / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def _write_original(data_dir: Path, split: str, scenes: Mapping[str, Scene]) -> None:
    for stem, scene in scenes.items():
        _save(data_dir / STILLS / f"{stem}.png", scene.image)
        _save(data_dir / LABELS / f"{stem}_L.png", _CAMVID_COLOURS[scene.classes])
    (data_dir / f"{split}.txt").write_text("".join(f"{stem}.png\n" for stem in scenes), encoding="utf-8")


def _empty_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"{folder} already holds files: give an empty folder, or delete what is in it.")
    return folder


def _save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    # Level 1: a third of the time for a tenth more bytes.
    PIL.Image.fromarray(array).save(file, compress_level=1)


_CAMVID_COLOURS = np.array([COLOURS_32[CAMVID_NAMES[name]] for name in SCENE_CLASSES], np.uint8)
_SEGNET_IDS = np.array([CAMVID11.raw_colours[tuple(colour)] for colour in _CAMVID_COLOURS.tolist()], np.uint8)
_SEGNET_IDS[SCENE_CLASSES.index("void")] = SEGNET_VOID
