"""Image files → RGB images: the one way in, so that training, evaluation, prediction, pipeline and demo see the same pixels.

An image is what a viewer shows: turned upright by its EXIF orientation, 16 bits scaled to 8, transparency on white, palettes,
CMYK and grey as RGB. Files are decoded by Pillow, and only in the formats of `FORMATS`: whatever a file is called, its content
starts no other decoder.
"""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
from PIL.Image import Transpose

from .errors import DataError
from .io import whole_file
from .models.rgb import as_rgb

# Not among them: EPS and WMF, whose decoders start other programs, and formats in which nobody keeps photographs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jp2", ".j2k", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip

ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation → what turns the stored image upright; 1 is upright already.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
STORED = {**UPRIGHT, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}  # the way back
EXCHANGES_SIDES = (5, 6, 7, 8)
# Where Pillow keeps what names an orientation; an image that was turned must not be turned again.
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
TURNED = "revhrnet_turned"  # in an image's `info`: the orientation that it was turned by
PNG_METADATA = (b"eXIf", b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")

MEGAPIXELS_VARIABLE = "REVHRNET_MAX_MEGAPIXELS"

Size = tuple[int, int]  # (width, height) in pixels, as Pillow has it
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class ImageFile:
    """An image file whose header was read and whose pixels were not.

    Args:
        data: the file.

    Attributes:
        data: the same.
        header: what Pillow made of it.
        tile: how Pillow is going to decode the pixels; None if it does not say.
        orientation: EXIF's, 1 to 8; 1 where there is none, or none that can be understood: viewers turn nothing then.
        size: (width, height) upright, in pixels.
        stored_size: (width, height) of what is stored.

    Raises:
        Whatever Pillow raises: `unreadable_is_data_error` makes one kind of error of it.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.header = open_header(io.BytesIO(data))
        self.tile = self.header.tile[0] if self.header.tile else None  # which loading takes away
        if self.header.format == "PNG" and _has_late_metadata(data):
            self.header.load()
        self.orientation = exif_orientation(self.header)
        self.size = _upright_size(self.header, self.orientation)
        self.stored_size = _turned_size(self.size, self.orientation)

    def pixels(self, as_stored: bool = False, data: bytes | None = None) -> PIL.Image.Image:
        """The decoded image in the file's own mode; upright unless `as_stored`.

        Args:
            data: the file cut short (see data/first_rows.py), to be decoded in its place.
        """
        image = self.header if data is None else open_header(io.BytesIO(data))
        return _in_position(image, self.orientation, as_stored)

    def rgb(self, as_stored: bool = False) -> PIL.Image.Image:
        """The same as RGB. An upright image remembers how it was turned, so that `fitted` can turn it back."""
        return as_rgb(self.pixels(as_stored))


def read_image(path: str | Path) -> PIL.Image.Image:
    """A file as an RGB image, upright.

    Raises:
        DataError: it is missing, damaged, too large or no image; the message names it.
    """
    with unreadable_is_data_error("Image", str(path)):
        return ImageFile(Path(path).read_bytes()).rgb()


def save_image(image: PIL.Image.Image, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as partial:
        image.save(partial, format="PNG")


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files that are named, and those that lie directly in folders that are named; each once.

    In a folder, files count that are called images of a format that is read, but no hidden ones, such as the `._a.jpg` of macOS.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            found += _images_in(path)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"there is no image or folder {path}")
    return list({path.resolve(): path for path in found}.values())


def _images_in(folder: Path) -> list[Path]:
    images = sorted(
        path
        for path in folder.iterdir()
        # A link that leads nowhere counts: reading it is an error that names it.
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and (path.is_file() or not path.exists())
    )
    if not images:
        raise DataError(f"the folder {folder} holds no images (its own files count, sub-folders do not)")
    return images


def decode_image(data: bytes, source: str) -> PIL.Image.Image:
    """A file's bytes as an RGB image, upright; `source` is what a DataError calls the file."""
    with unreadable_is_data_error("Image", source):
        return ImageFile(data).rgb()


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image that somebody else opened with Pillow, as `read_image` would have given it."""
    with unreadable_is_data_error("Image", getattr(image, "filename", "") or "(a PIL image)"):
        _load(image)  # a TIFF is turned by that, and a PNG may tell its orientation only then
        return as_rgb(_in_position(image, exif_orientation(image), as_stored=False))


def fitted(image: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """An image of `ImageFile.rgb` as it fits a label map of this (width, height).

    That is the upright image, or the stored one where the label map fits only that. An image that fits neither way is returned as
    it is.
    """
    turned = image.info.get(TURNED)
    if turned is None or image.size == size or _turned_size(image.size, turned) != size:
        return image
    return _without_orientation(image.transpose(STORED[turned]))


def open_header(file: io.IOBase) -> PIL.Image.Image:
    """`PIL.Image.open` for the formats that are allowed."""
    _apply_pixel_limit()
    return PIL.Image.open(file, formats=FORMATS)


def header_size(file: io.IOBase) -> Size:
    """Width and height of the upright image, as far as its header tells; raises what Pillow raises."""
    header = open_header(file)
    return _upright_size(header, exif_orientation(header))


def exif_orientation(image: PIL.Image.Image) -> int:
    """The orientation that the metadata read so far name, 1 to 8; 1 where there is none.

    Viewers turn nothing where the metadata cannot be understood, and neither do we: the pixels are as good as ever.
    """
    try:
        # Not a PNG's own method, which decodes the whole image to look for more.
        value = PIL.Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # Pillow raises nearly anything for malformed metadata
        return 1
    return int(value) if isinstance(value, int) and value in UPRIGHT else 1


@contextmanager
def unreadable_is_data_error(kind: str, source: str) -> Iterator[None]:
    """Whatever a decoder raises becomes a DataError that names the file and says what to do.

    Every exception: decoders raise nearly all kinds of them for damaged files. So no more than reading belongs inside.

    Args:
        kind: "Image", "Label map": how the message begins.
        source: the file's name.
    """
    try:
        yield
    except DataError:
        raise  # says already what is wrong and where
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
            f"{kind} {source} cannot be read ({_said(error)}): it is truncated or damaged, or no image of a kind that can be "
            "read. Fetch the file again, or leave it out."
        ) from error


def allow_megapixels(megapixels: float) -> None:
    """Images of up to so many megapixels may be read, by this process and those that it starts; Pillow's limit is 179.

    The limit guards against small files that fill the memory when they are decoded.
    """
    os.environ[MEGAPIXELS_VARIABLE] = str(megapixels)
    _apply_pixel_limit()


def _apply_pixel_limit() -> None:
    """By the environment, for the setting must reach worker processes however they are started."""
    text = os.environ.get(MEGAPIXELS_VARIABLE)
    if text is None:
        return
    try:
        megapixels = float(text)
        if not megapixels > 0:
            raise ValueError("it must be more than 0")
    except ValueError as error:
        raise DataError(f"{MEGAPIXELS_VARIABLE}={text} is no number of megapixels ({error}): give one such as 400.") from error
    PIL.Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)  # Pillow warns from here on, and refuses twice as many


def _too_large(error: PIL.Image.DecompressionBombError) -> str:
    limit = 2 * PIL.Image.MAX_IMAGE_PIXELS / 1e6
    pixels = re.search("[0-9]+", str(error))
    size = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "too many pixels"
    return (
        f"it has {size}, and more than {limit:.0f} are refused because so a small file can fill the memory. If you trust it, "
        f"raise the limit with the environment variable {MEGAPIXELS_VARIABLE}, or with predict.py's --max_megapixels."
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _turns_itself(image: PIL.Image.Image) -> bool:
    """Pillow gives the upright size of a TIFF, and turns it when it loads the pixels."""
    return image.format == "TIFF"


def _upright_size(header: PIL.Image.Image, orientation: int) -> Size:
    return header.size if _turns_itself(header) else _turned_size(header.size, orientation)


def _load(image: PIL.Image.Image) -> None:
    """`image.load()`, but a TIFF with a file name is read and not mapped into memory: Pillow garbles it if EXIF turns it."""
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


def _in_position(image: PIL.Image.Image, orientation: int, as_stored: bool) -> PIL.Image.Image:
    """The loaded image, turned if it must be."""
    turned_by_pillow = _turns_itself(image) and image.fp is not None
    image.load()  # a truncated file is an error here and not later
    if orientation == 1:
        return image
    if as_stored:
        return _without_orientation(image.transpose(STORED[orientation]) if turned_by_pillow else image.copy())
    upright = _without_orientation(image.copy() if turned_by_pillow else image.transpose(UPRIGHT[orientation]))
    upright.info[TURNED] = orientation
    return upright


def _without_orientation(image: PIL.Image.Image) -> PIL.Image.Image:
    """The same object, which must be a copy and not what was opened: that would find its metadata in the file again."""
    for key in (*METADATA, TURNED):
        image.info.pop(key, None)
    return image


def _has_late_metadata(data: bytes) -> bool:
    """Whether a PNG holds metadata that may name an orientation behind its pixels, where an opened header does not show them."""
    start = data.find(b"IDAT")
    place = start - 4
    while start > 0 and place + 8 < len(data):
        kind = data[place + 4 : place + 8]
        if kind in PNG_METADATA or data.startswith(PNG_METADATA, place + 8):
            return True
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return False
