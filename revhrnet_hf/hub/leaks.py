"""What a file would give away if it were published: places on this machine, access tokens, where a photograph was taken.

Every file that leaves this machine (a push to the Hub, a Space) is looked through here first.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from ..images import SUFFIXES, open_header

# A path from the root of a file system: two parts at least, so that 1/255 and km/h are none; of the folders that hold people's
# own files one part is enough. Web addresses (https://a.org/b/c) and closing tags (</b>) are none.
ABSOLUTE_PATH = re.compile(
    r"""
      (?<![\w./*<-]) / (?:[\w.+@~-]+/)+ [\w.+@~-]+         # data_dir:/mnt/sets/camvid
    | (?<![\w./*<-]) / (?:root|home|Users) \b
    | \b file:/{1,3} [\w.~]
    | (?<![\w./*<-]) ~/ [\w./+@~-]+
    | (?<!\w) [A-Za-z]: (?: \\{1,2} | / (?!/) ) \w [\w\\/. -]*  # C:\Users\me, in JSON with the backslash doubled, C:/Users/me
    | (?<!\\) \\{2,4} \w[\w.-]+ \\{1,2} \w [\w\\.-]+          # \\server\share
    """,
    re.VERBOSE,
)

# Each provider's own prefix; the lengths are the shortest that are issued.
TOKEN = re.compile(
    rb"""
      \b (?: hf | api_org ) _ [A-Za-z0-9]{20,}
    | \b gh[pousr]_ [A-Za-z0-9]{36}                | \b github_pat_ [A-Za-z0-9_]{22,}   # GitHub
    | \b glpat- [\w-]{20}                                                               # GitLab
    | \b sk- (?: proj- | ant- )? [A-Za-z0-9_-]{20,}                                     # OpenAI, Anthropic
    | \b (?: AKIA | ASIA ) [0-9A-Z]{16} \b                                              # Amazon
    | \b AIza [0-9A-Za-z_-]{35}                                                         # Google
    | \b xox[abeoprs]- [0-9A-Za-z-]{10,}                                                # Slack
    | \b npm_ [A-Za-z0-9]{36}                      | \b pypi- [A-Za-z0-9_-]{50,}
    | \b wandb_v1_ [A-Za-z0-9_-]{20,}              | (?i: wandb_api_key ) \W{1,4} [0-9a-f]{40}
    | \b eyJ [\w-]{10,} \. eyJ [\w-]{10,} \. [\w-]{10,}                                 # JSON web token
    | -----BEGIN[ A-Z]*PRIVATE[ ]KEY-----
    """,
    re.VERBOSE,
)

XMP_PLACE = re.compile(rb"GPSLatitude\W+\d")  # an attribute or an element that holds a number
TEXT_ONLY = (b"P1", b"P2", b"P3")  # the kinds of PNM files whose pixels are written as text
JPEG2000_START = b"\0\0\0\x0cjP  "
JPEG2000_EXIF = b"JpgTiffExif->JP2"  # how a box with EXIF data begins


def leaks_of(path: Path, name: str | Path) -> Iterator[str]:
    """What the file `path` would give away, a sentence each, in which it is called `name`.

    Of an image only what stands beside its pixels is read: EXIF, XMP, comments, text chunks.
    """
    content = _readable_part(path)
    if TOKEN.search(content):
        yield f"{name} holds an access token: remove it, and revoke it if anybody else has seen the file"
    if found := ABSOLUTE_PATH.search(content.decode("utf-8", errors="replace")):
        yield f"{name} holds the absolute path {found[0]}: remove it, or write the file's name alone"
    if _is_image(path) and (XMP_PLACE.search(content) or _exif_says_where(path)):
        yield f"{name} says where it was taken (GPS in its EXIF or XMP data): save the image without its metadata"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _readable_part(path: Path) -> bytes:
    """The text in a file: all of it, but of weights and images only what stands beside the numbers."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return file.read(length)
    return _image_texts(path) if _is_image(path) else path.read_bytes()


def _image_texts(path: Path) -> bytes:
    """The comments and tags of an image (PNG's text chunks, EXIF, XMP); all bytes of what is no image but bears such a name."""
    data = path.read_bytes()
    try:
        with open_header(io.BytesIO(data)) as image:
            unread = _texts_that_pillow_leaves(image, data)
            image.load()  # PNG's text may stand behind the pixels
            noted = [*image.info.items(), *_exif_values(image)]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return data
    return b"\n".join([unread, *(value if isinstance(value, bytes) else str(value).encode() for pair in noted for value in pair)])


def _texts_that_pillow_leaves(image: Image.Image, data: bytes) -> bytes:
    """The comments of a PNM file, and the boxes of a JPEG 2000 file beside its pixels."""
    if image.format == "PPM":
        return data if data.startswith(TEXT_ONLY) else data[: image.tile[0].offset]
    return b"\n".join(_jpeg2000_boxes(data)) if image.format == "JPEG2000" else b""


def _jpeg2000_boxes(data: bytes) -> Iterator[bytes]:
    """The contents of a JPEG 2000 file's boxes, except the pixels (ISO/IEC 15444-1, annex I); none of a bare codestream."""
    place = 0 if data.startswith(JPEG2000_START) else len(data)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if length == 1:  # a long box, whose length follows
            length = int.from_bytes(data[place + 8 : place + 16])
        end = place + max(8, length) if length else len(data)
        if kind != b"jp2c":
            yield data[place + 8 : end]
        place = end


def _exif_values(image: Image.Image) -> Iterator[tuple]:
    exif = image.getexif()
    yield from exif.items()
    for folder in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.IFD1):
        yield from exif.get_ifd(folder).items()


def _exif_says_where(path: Path) -> bool:
    data = path.read_bytes()
    try:
        with open_header(io.BytesIO(data)) as image:
            exif = image.getexif()
            for box in _jpeg2000_boxes(data):
                if box.startswith(JPEG2000_EXIF):
                    exif.load(box.removeprefix(JPEG2000_EXIF))
            return bool(exif.get_ifd(ExifTags.IFD.GPSInfo))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return False
