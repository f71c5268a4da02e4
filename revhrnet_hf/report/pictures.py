"""Finding image files, and writing them whole or not at all. They are read by images.py."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ..errors import DataError
from ..images import SUFFIXES
from ..images import read_image as open_picture

__all__ = ["find_pictures", "open_picture", "save_picture", "whole_file"]


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """The image files that are named, and those that lie directly in folders that are named; each once.

    In a folder, files count that are called images of a format that is read (see images.py), but no hidden ones, such as the
    `._a.jpg` of macOS.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _pictures_in(path)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no image or folder {path}")
    return list({path.resolve(): path for path in found}.values())


def save_picture(image: Image.Image, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name to write to, which is moved to `path` at the end: no half-written file is ever seen there."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _pictures_in(folder: Path) -> list[Path]:
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not images:
        raise DataError(f"the folder {folder} holds no images (its own files count, sub-folders do not)")
    return images
