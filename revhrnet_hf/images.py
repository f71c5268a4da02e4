"""Image files → RGB images: the only way in, so that training, evaluation, prediction, pipeline and demo see the same pixels.

The image is the one that a viewer shows: turned upright by its EXIF orientation, 16 bits scaled to 8, transparency on white,
palettes, CMYK and grey converted to RGB. Pillow decodes the files, and only the formats in `FORMATS`: a file cannot start another
decoder, whatever its name.
"""

import glob
import io
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

import PIL.Image
from PIL.Image import Transpose

from .errors import DataError
from .io import whole_file
from .models.rgb import (
    FORMATS,
    GREY_RANGE,
    MEGAPIXELS_VARIABLE,
    TO_UPRIGHT,
    apply_pixel_limit,
    as_rgb,
    exif_orientation,
    grey_range,
)

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".j2k", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip

# EXIF orientation → the operation that turns the upright image as it was stored.
TO_STORED = {**TO_UPRIGHT, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}
EXCHANGES_SIDES = (5, 6, 7, 8)
# Keys of an image's `info` that may hold an orientation. A turned image loses them, so that it is not turned again.
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
TURNED = "revhrnet_turned"  # key of an image's `info`: the orientation that was applied to it
PNG_METADATA = (b"eXIf", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

NEVER_SEVERAL = ("JPEG", "MPO")  # MPO: a photograph with a smaller copy of itself
NEW_SUBFILE_TYPE, COPY_OR_MASK = 254, 0b101  # a tag of TIFF, and its bits for a smaller copy and for a mask

Size = tuple[int, int]  # (width, height) in pixels, as in Pillow
Colour = tuple[int, int, int]  # red, green, blue, 0–255


class ImageFile:
    """An image file of which only the header has been read.

    Args:
        data: the file's bytes.

    Attributes:
        data: the file's bytes.
        header: the image that Pillow opened, without pixels.
        tile: how Pillow will decode the pixels; None if Pillow does not say.
        orientation: the EXIF orientation, 1 to 8; 1 if there is none or it is invalid, as in image viewers.
        size: (width, height) of the upright image, in pixels.
        stored_size: (width, height) of the image as stored.

    Raises:
        Any exception of Pillow: `unreadable_is_data_error` converts them to one kind of error.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.header = open_header(io.BytesIO(data))
        self.tile = self.header.tile[0] if self.header.tile else None  # Pillow drops it when it loads the pixels
        if self.header.format == "PNG" and _has_late_metadata(data):
            self.header.load()
        self.orientation = exif_orientation(self.header)
        self.size = _upright_size(self.header, self.orientation)
        self.stored_size = _turned_size(self.size, self.orientation)

    def pixels(self, as_stored: bool = False, data: bytes | None = None) -> PIL.Image.Image:
        """The decoded image in the file's own mode; upright unless `as_stored`.

        Args:
            as_stored: do not apply the orientation.
            data: the file cut short (see data/first_rows.py), to be decoded instead of the whole file.
        """
        image = self.header if data is None else open_header(io.BytesIO(data))
        return _oriented(image, self.orientation, as_stored)

    def rgb(self, as_stored: bool = False) -> PIL.Image.Image:
        """The decoded image as RGB. It remembers how it was turned, so that `orient_to_fit` can turn it back."""
        return as_rgb(self.pixels(as_stored))


def read_image(path: str | Path) -> PIL.Image.Image:
    """Reads a file as an upright RGB image; see `decode_image` for a file that holds several.

    Raises:
        DataError: the file is missing, damaged, too large or not an image; the message names it.
    """
    with unreadable_is_data_error("Image", str(path)):
        data = Path(path).read_bytes()
    return decode_image(data, str(path))


def save_image(image: PIL.Image.Image, path: str | Path) -> None:
    """Writes a PNG file, whole or not at all."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")


class FoundFile(NamedTuple):
    """A file that a user has named, by itself or with others.

    Attributes:
        path: where it is.
        name: its path below the folder that was searched, without suffix: `north/street`. Results are named so.
    """

    path: Path
    name: PurePath


def find_images(paths: Sequence[str | Path], recursive: bool = False) -> list[Path]:
    """The paths of `find_files`, for image files."""
    return [found.path for found in find_files(paths, recursive)]


def find_files(
    paths: Sequence[str | Path], recursive: bool = False, more_suffixes: Sequence[str] = (), without: Path | None = None
) -> list[FoundFile]:
    """The files that are given, in the given folders, or match the given patterns; each once.

    Files in a folder count if their suffix is in `SUFFIXES` and they are not hidden, such as `._a.jpg`, which macOS writes.

    Args:
        paths: files, folders, and patterns such as `photos/**/*.jpg`, in which `**` stands for any folders. Shells of Windows
            leave patterns to the program; others do so if they are in quotes.
        recursive: search the sub-folders of a folder too, except hidden ones and links.
        more_suffixes: other suffixes of files that a pattern may match.
        without: a folder below which nothing is found, because results are written there.

    Raises:
        DataError: a path does not exist, a folder holds no image, or a pattern matches none.
    """
    found: list[FoundFile] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _images_in(path, recursive, without)
        elif path.is_file():
            found.append(FoundFile(path, PurePath(path.stem)))
        elif glob.has_magic(str(path)):
            found += _matches(path, (*SUFFIXES, *more_suffixes), without)
        else:
            raise DataError(f"there is no image or folder {path}")
    first: dict[str, FoundFile] = {}
    for file in found:
        first.setdefault(place_of(file.path), file)
    return list(first.values())


def place_of(path: str | Path) -> str:
    """A file's path in its folder's own place: the same by whatever way the folder was named.

    Two links to one file are two files with results of their own: some tools keep files of the same content once.
    """
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)  # not `Path.resolve`, which raises for a link to itself


def _images_in(folder: Path, recursive: bool, without: Path | None) -> list[FoundFile]:
    images = []
    for below, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        images += sorted(Path(below, name) for name in names if _is_image_of_folder(Path(below, name)))
    if not images:
        pattern = f"{glob.escape(str(folder))}/**/*"
        where = "nor do its sub-folders" if recursive else f"sub-folders are not searched; the pattern '{pattern}' does it"
        raise DataError(f"the folder {folder} holds no images ({where})")
    images = [image for image in images if not _is_below(image, without)]
    if not images:
        raise DataError(f"all images of {folder} lie in the output folder {without}, which is not read: choose another one")
    return [FoundFile(image, image.relative_to(folder).with_suffix("")) for image in images]


def _is_image_of_folder(path: Path) -> bool:
    # A broken link counts: reading it raises an error that names it.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and (path.is_file() or not path.exists())


def _matches(pattern: Path, suffixes: Sequence[str], without: Path | None) -> list[FoundFile]:
    """The files of these suffixes that match a pattern, named from the last folder before its first wildcard."""
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    folder = Path(*plain) if plain else Path()
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    files = [path for path in matches if path.suffix.lower() in suffixes and path.is_file() and not _is_below(path, without)]
    if not files:
        raise DataError(f"no image matches the pattern {pattern}")
    return [FoundFile(path, path.relative_to(folder).with_suffix("")) for path in files]


def _is_below(path: Path, folder: Path | None) -> bool:
    # Not `Path.resolve`, which raises for a link to itself.
    return folder is not None and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def decode_image(data: bytes, source: str) -> PIL.Image.Image:
    """Decodes a file's bytes to an upright RGB image; a DataError calls the file `source`.

    Of a file that holds several images (a stack in a TIFF file, an animation) it is the first one, and a warning says so.
    """
    with unreadable_is_data_error("Image", source):
        image = ImageFile(data).rgb()
    if others := _number_of_others(data):
        logger.warning("%s holds %d images: only the first one is read, of %d×%d pixels", source, 1 + others, *image.size)
    return image


def _number_of_others(data: bytes) -> int:
    """The images in a file after its first one, without previews: those of JPEG files, smaller copies and masks in TIFF files."""
    header = open_header(io.BytesIO(data))
    if header.format in NEVER_SEVERAL:
        return 0
    try:
        count = getattr(header, "n_frames", 1)
        if header.format != "TIFF":
            return count - 1
        others = 0
        for number in range(1, count):
            header.seek(number)
            others += not header.tag_v2.get(NEW_SUBFILE_TYPE, 0) & COPY_OR_MASK
        return others
    except Exception:  # decoders raise many kinds; the first image has been read, and what follows is damaged
        return 0


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Converts an image that other code opened with Pillow to the image that `read_image` returns."""
    with unreadable_is_data_error("Image", getattr(image, "filename", "") or "(a PIL image)"):
        _load(image)  # turns a TIFF, and reads the metadata at the end of a PNG
        return as_rgb(_oriented(image, exif_orientation(image), as_stored=False))


def orient_to_fit(image: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """Orients an image of `ImageFile.rgb` so that it fits a label map of this (width, height).

    The upright image is preferred. The image is turned back to the stored orientation if the label map fits only that. An image
    that fits in neither orientation is returned unchanged.
    """
    turned = image.info.get(TURNED)
    if turned is None or image.size == size or _turned_size(image.size, turned) != size:
        return image
    return _without_orientation(image.transpose(TO_STORED[turned]))


def open_header(file: io.IOBase) -> PIL.Image.Image:
    """`PIL.Image.open`, restricted to `FORMATS`."""
    _apply_pixel_limit()
    return PIL.Image.open(file, formats=FORMATS)


def header_size(file: io.IOBase) -> Size:
    """(width, height) of the upright image, according to its header; raises Pillow's exceptions."""
    header = open_header(file)
    return _upright_size(header, exif_orientation(header))


@contextmanager
def unreadable_is_data_error(kind: str, source: str) -> Iterator[None]:
    """Converts any exception of a decoder to a DataError that names the file and says what to do.

    It catches every exception, because decoders raise many kinds for damaged files. So put only the reading inside.

    Args:
        kind: "Image" or "Label map": the start of the message.
        source: the file's name.
    """
    try:
        yield
    except DataError:
        raise  # it already says what is wrong and where
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"{kind} {source} cannot be read: {_too_large(error)}") from error
    except FileNotFoundError as error:
        raise DataError(f"{kind} {source} cannot be read ({error}): it is missing. Restore it, or leave it out.") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(
            f"{kind} {source} cannot be read: its content is no image in a known format ({', '.join(FORMATS)}), or its header is "
            "damaged. Fetch the file again, or leave it out."
        ) from error
    except MemoryError as error:
        raise DataError(f"{kind} {source} cannot be read: there is not enough memory for its pixels.") from error
    except Exception as error:
        raise DataError(
            f"{kind} {source} cannot be read ({_error_text(error)}): it is truncated or damaged, or its kind of image is not "
            "supported. Fetch the file again, or leave it out."
        ) from error


def allow_megapixels(megapixels: float) -> None:
    """Sets the largest image that this process and its child processes read; Pillow's default is 179 megapixels.

    The limit protects against small files that fill the memory when they are decoded.
    """
    os.environ[MEGAPIXELS_VARIABLE] = str(megapixels)
    _apply_pixel_limit()


def check_size(size: Size) -> None:
    """Raises a DataError if a decoded image of this (width, height), such as a frame of a video, is too large to be read."""
    _apply_pixel_limit()
    limit, pixels = PIL.Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is not None and pixels > 2 * limit:
        raise DataError(
            f"{size[0]}×{size[1]} pixels are more than {2 * limit / 1e6:.0f} megapixels: raise the limit with the environment "
            f"variable {MEGAPIXELS_VARIABLE}, or with `revhrnet predict --max_megapixels`"
        )


def _apply_pixel_limit() -> None:
    try:
        apply_pixel_limit()
    except ValueError as error:
        raise DataError(str(error)) from error


def _too_large(error: PIL.Image.DecompressionBombError) -> str:
    limit = 2 * PIL.Image.MAX_IMAGE_PIXELS / 1e6
    pixels = re.search("[0-9]+", str(error))
    size = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "too many pixels"
    return (
        f"it has {size}, and more than {limit:.0f} are refused because a small file could then fill the memory. If you trust "
        f"it, raise the limit with the environment variable {MEGAPIXELS_VARIABLE}, or with `revhrnet predict --max_megapixels`."
    )


def _error_text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _turns_itself(image: PIL.Image.Image) -> bool:
    """Whether Pillow applies the orientation itself: for a TIFF, its size is upright, and loading turns the pixels."""
    return image.format == "TIFF"


def _upright_size(header: PIL.Image.Image, orientation: int) -> Size:
    return header.size if _turns_itself(header) else _turned_size(header.size, orientation)


def _load(image: PIL.Image.Image) -> None:
    """`image.load()` without memory mapping for TIFF files: Pillow corrupts a mapped TIFF when it turns it."""
    if not _turns_itself(image):
        image.load()
        return
    name, image.filename = image.filename, ""
    try:
        image.load()
    finally:
        image.filename = name


def _turned_size(size: Size, orientation: int) -> Size:
    return size[::-1] if orientation in EXCHANGES_SIDES else size


def _oriented(image: PIL.Image.Image, orientation: int, as_stored: bool) -> PIL.Image.Image:
    """The loaded image, upright or as stored."""
    turned_by_pillow = _turns_itself(image) and image.fp is not None
    image.load()  # raises for a truncated file here rather than later
    if orientation == 1:
        return image
    if as_stored:
        turned = image.transpose(TO_STORED[orientation]) if turned_by_pillow else image.copy()
    else:
        turned = image.copy() if turned_by_pillow else image.transpose(TO_UPRIGHT[orientation])
    turned = _without_orientation(turned)
    if not as_stored:
        turned.info[TURNED] = orientation
    if image.mode.startswith("I;16"):
        turned.info[GREY_RANGE] = grey_range(image)
    return turned


def _without_orientation(image: PIL.Image.Image) -> PIL.Image.Image:
    """Removes the orientation from `image` itself, which must be a copy: an opened image would read it from the file again."""
    for key in (*METADATA, TURNED):
        image.info.pop(key, None)
    return image


def _has_late_metadata(data: bytes) -> bool:
    """Whether a PNG holds metadata after its pixels, where Pillow does not see them when it opens the header."""
    start = data.find(b"IDAT")
    place = start - 4
    while start > 0 and place + 8 < len(data):
        kind = data[place + 4 : place + 8]
        if kind in PNG_METADATA or data.startswith(PNG_METADATA, place + 8):
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False
