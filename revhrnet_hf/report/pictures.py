"""Reading pictures as a person sees them, and writing picture files whole or not at all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import DataError
from ..models.image_processing_pil_revhrnet import as_rgb


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file as RGB: turned upright as EXIF says, 16-bit grey scaled to 8, transparency on white.

    Raises:
        DataError: the file is missing, truncated, no picture, or suspiciously huge; the message names it.
    """
    try:
        with Image.open(path) as image:
            return as_seen(image)
    # What Pillow raises for broken files; OSError covers missing, unidentified and truncated ones.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the picture {path}: {error}") from error


def as_seen(image: Image.Image) -> Image.Image:
    """A picture of any kind as a person sees it: RGB, upright, 16-bit grey scaled to 8, transparency on white."""
    return as_rgb(ImageOps.exif_transpose(image))


def find_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """The picture files that are named, and those that lie directly in folders that are named; each once.

    Raises:
        DataError: a path does not exist, or a folder holds no picture.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _pictures_in(path)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no picture or folder {path}")
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
    endings = Image.registered_extensions()
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings and path.is_file())
    if not pictures:
        raise DataError(f"the folder {folder} holds no pictures (its own files count, sub-folders do not)")
    return pictures
