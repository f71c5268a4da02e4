"""Whatever a user gives to be segmented: files, folders, patterns, addresses on the web → images and videos, and their names.

An address is fetched by http or https only, into memory, up to a limit of size and time; nothing is written under a name that a
server has chosen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

import PIL.Image

from ..defaults import MAX_DOWNLOAD
from ..download import download
from ..errors import DataError
from ..images import decode_image, find_files, place_of, read_image
from ..models import fetching

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
LONGEST_NAME = 100  # characters of a name from an address; file systems take 255 bytes, and endings are added


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        place: its file's path, or its address; errors call it so.
        name: where its results go, below the output folder: the sub-folders in which it was found, and its name without suffix.
        is_video: whether it is a video, by its suffix.
        limit: megabytes that are fetched from an address at most.
    """

    place: str
    name: PurePath
    is_video: bool = False
    limit: float = MAX_DOWNLOAD

    @property
    def is_address(self) -> bool:
        return is_address(self.place)

    def read_image(self) -> PIL.Image.Image:
        """The upright RGB image, of a file or an address.

        Raises:
            DataError: it cannot be fetched or read.
        """
        return decode_image(download(self.place, self.limit), self.place) if self.is_address else read_image(self.place)

    def __str__(self) -> str:
        return self.place


def find_sources(
    given: Sequence[str | Path], recursive: bool = False, without: Path | None = None, limit: float = MAX_DOWNLOAD
) -> list[Source]:
    """The images and videos that are given.

    Of a folder only the images count, because a video can take hours; a video is named itself, or by a pattern.

    Args:
        given: files, folders, patterns (see `images.find_files`), and addresses that begin with http:// or https://.
        recursive, without: as in `images.find_files`.
        limit: megabytes that are fetched from one address at most.

    Raises:
        DataError: a file does not exist, a folder or pattern has no image, or an address has another scheme or is none.
    """
    sources: dict[str, Source] = {}
    for text in map(str, given):
        if is_address(text):
            name = _name_of_address(text)
            sources.setdefault(text, Source(text, PurePath(name.stem), _is_video(name), limit))
            continue
        for file in find_files([text], recursive, VIDEO_SUFFIXES, without):
            sources.setdefault(place_of(file.path), Source(str(file.path), file.name, _is_video(file.path)))
    return list(sources.values())


def is_address(text: str) -> bool:
    """Whether a text is an address on the web.

    Raises:
        DataError: it is an address of a scheme that is not fetched, such as ftp:// or file://.
    """
    if fetching.is_address(text):
        return True
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise DataError(f"{text} is not fetched: addresses begin with http:// or https://; name a file by its path")
    return False


def _is_video(path: PurePath) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _name_of_address(address: str) -> PurePath:
    """A harmless file name: the last part of the address's path, without what file systems or shells read otherwise."""
    try:
        path = urlsplit(address).path
    except ValueError as error:  # such as a bracket that is not closed
        raise DataError(f"{address} is not an address that can be fetched: {error}") from error
    last = unquote(path).replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = PurePath(re.sub(r"[^\w.-]+", "_", last).lstrip(".-_") or "image")
    return PurePath(name.stem[:LONGEST_NAME] + name.suffix[:10])
