"""Functions that all writers of drawn datasets use: they draw scenes and save files."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..errors import DataError
from .scene import SCARCE, Scene, draw_street_scene

COUNTS = {"train": 40, "val": 12}  # split → images, by default
JPEG_QUALITY = 95


def draw_scenes(split: str, count: int, size: tuple[int, int], seed: int) -> Iterator[Scene]:
    """Draws the scenes 0 … count − 1 of a split, of `size` (height, width).

    Scene k depends only on `seed`, `split`, `size` and k.
    """
    for k in range(count):
        rng = np.random.default_rng([seed, zlib.crc32(split.encode()), k])
        yield draw_street_scene(rng, size, SCARCE[k % len(SCARCE)])


def empty_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"{folder} already holds files: give an empty folder, or delete what is in it.")
    return folder


def save_png(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Level 1 takes a third of the time and a tenth more bytes.
    PIL.Image.fromarray(array).save(file, compress_level=1)


def save_jpeg(file: Path, image: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(file, quality=JPEG_QUALITY)


def save_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
