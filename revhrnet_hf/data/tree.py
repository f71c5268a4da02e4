"""A data set's folder, in which zip and tar files are read as if they had been unpacked where they lie.

Every file has a *location*, one string: its path, or for a member of an archive `zip://MEMBER::ARCHIVE` (`tar://…`), which is how
fsspec and `datasets` write it too. Locations are what data sets store; `read_location` turns one into bytes.
"""

import os
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock

import fsspec

from ..errors import DataError
from .folder_listing import entries

ARCHIVES = (".zip", ".tar")
COMPRESSED_WHOLE = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
MACOS_LITTER = "._"  # macOS puts `._X` beside X on foreign disks and into zips.
TAR_BLOCK = 512


class DataTree:
    """Files below one folder, or in one archive, by their relative paths with `/` (`""` is the folder itself).

    Where a file is both unpacked and in an archive, the unpacked one counts.

    Args:
        root: a folder, whose own zip and tar files are opened (not those of folders below), or a single archive.

    Raises:
        DataError: there is no such folder or file, or an archive is damaged; it is named.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.exists():
            raise DataError(f"The data folder {self.root} does not exist: give the folder that holds the data set.")
        self._folder = self.root if self.root.is_dir() else None
        below = sorted(self.root.iterdir()) if self._folder else [self.root]
        self.archives = [path for path in below if _is_archive(path)]
        if not self._folder and not self.archives:
            raise DataError(f"{self.root} is neither a folder nor a zip or tar file: give the folder that holds the data set.")

    @property
    def is_empty(self) -> bool:
        return not any(self._folder.iterdir()) if self._folder else not self._members

    @cached_property
    def _members(self) -> dict[str, dict[str, str]]:
        """Folder in the archives → name → location."""
        members: dict[str, dict[str, str]] = defaultdict(dict)
        for archive in self.archives:
            for member in _open_archive(str(archive)).names:
                path = PurePosixPath(member)
                members[_folder_key(path.parent)].setdefault(path.name, archive_location(archive, member))
                for folder in path.parents:
                    members[_folder_key(folder)]
        return dict(members)

    def has_folder(self, path: str) -> bool:
        return bool(self._folder and (self._folder / path).is_dir()) or path in self._members

    def has_file(self, path: str) -> bool:
        return self.location(path) is not None

    def location(self, path: str) -> str | None:
        """Where the file `path` is, or None if there is none."""
        if self._folder and (self._folder / path).is_file():
            return str(self._folder / path)
        folder, _, name = path.rpartition("/")
        return self._members.get(folder, {}).get(name)

    def expected(self, path: str) -> str:
        """Where the file `path` is, or would be, for messages."""
        return self.location(path) or str(self.root / path)

    def files(self, folder: str, suffixes: Iterable[str] = ()) -> list[str]:
        """Sorted names of the files in `folder`; with `suffixes`, of those that end so."""
        names = set(self._members.get(folder, ()))
        if self._folder and (self._folder / folder).is_dir():
            names.update(entry.name for entry in entries(self._folder / folder) if entry.is_file())
        endings = tuple(suffixes)
        return sorted(name for name in names if not name.startswith(MACOS_LITTER) and (not endings or name.endswith(endings)))

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of the folders in `folder`."""
        prefix = f"{folder}/" if folder else ""
        names = {key[len(prefix) :].split("/")[0] for key in self._members if key.startswith(prefix) and key != folder}
        if self._folder and (self._folder / folder).is_dir():
            names.update(entry.name for entry in entries(self._folder / folder) if entry.is_dir())
        return sorted(names - {"", "__MACOSX"})

    def read_bytes(self, path: str) -> bytes:
        """Raises a DataError that names the file if it is not there or cannot be read."""
        location = self.location(path)
        if location is None:
            raise DataError(f"{self.root / path} is missing.")
        try:
            return read_location(location)
        except OSError as error:
            raise DataError(f"{location} cannot be read ({error}).") from error

    def read_text(self, path: str) -> str:
        try:
            return self.read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.expected(path)} is no text in UTF-8 ({error}).") from error

    def unreadable_archives(self) -> list[Path]:
        """Archives in the folder that are compressed as a whole, so that no picture can be read on its own."""
        return sorted(path for path in self._folder.iterdir() if path.name.endswith(COMPRESSED_WHOLE)) if self._folder else []


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVES and path.is_file() and not path.name.startswith(MACOS_LITTER)


def leads_outside(path: str) -> bool:
    """Whether a path that a data set's own file gives is no file below the data folder."""
    relative = PurePosixPath(path.replace("\\", "/"))
    return relative.is_absolute() or ".." in relative.parts or not relative.parts


def _folder_key(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath(".") else str(path)


def archive_location(archive: str | Path, member: str) -> str:
    kind = Path(archive).suffix.lower().removeprefix(".")
    return f"{kind}://{member}::{archive}"


def split_location(location: str) -> tuple[str, str | None]:
    """A location's file on disk, and the member if that is an archive."""
    for kind in ARCHIVES:
        prefix = f"{kind.removeprefix('.')}://"
        if location.startswith(prefix) and "::" in location:
            member, _, archive = location.removeprefix(prefix).rpartition("::")
            return archive, member
    return location, None


def read_location(location: str, size: int = -1) -> bytes:
    """The file's bytes, or the first `size` of them; an OSError if it is missing or damaged."""
    file, member = split_location(location)
    if "://" in file:  # where a streamed data set lies: on the Hub, or in any other file system that fsspec knows
        with fsspec.open(location) as remote:
            return remote.read(size)
    if member is not None:
        return _open_archive(file).read(member, size)
    with open(file, "rb") as stream:
        return stream.read(size)


def location_name(location: str) -> str:
    """The file's name without its folders."""
    file, member = split_location(location)
    return PurePosixPath(member or Path(file).as_posix()).name


def location_stamp(location: str) -> str:
    """Text that changes when the file does: location, size in bytes, time of change (of the whole archive for a member)."""
    status = os.stat(split_location(location)[0])
    return f"{location}\0{status.st_size}\0{status.st_mtime_ns}"


class _Archive:
    """An open zip or tar file, read member by member; several threads may read."""

    def __init__(self, file: str):
        self.lock = Lock()
        try:
            if file.lower().endswith(".zip"):
                self._zip = zipfile.ZipFile(file)
                self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
            else:
                self._zip = None
                # Uncompressed only: of a compressed tar every read would begin at its start.
                with tarfile.open(file, "r:") as tar:
                    self._members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isfile()}
                self._descriptor = os.open(file, os.O_RDONLY)
                # tarfile takes a file that was cut off within a header for a whole one.
                if any(os.pread(self._descriptor, TAR_BLOCK, os.stat(file).st_size - TAR_BLOCK)):
                    raise EOFError("it ends before its end mark")
                self.names = list(self._members)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise DataError(f"The archive {file} is damaged ({error}): fetch it again.") from error

    def read(self, member: str, size: int) -> bytes:
        """The member's first `size` bytes, all if it is negative."""
        try:
            if self._zip is not None:
                with self.lock, self._zip.open(member) as stream:
                    return stream.read(size)
            offset, whole = self._members[member]
        except KeyError as error:
            raise FileNotFoundError(f"no member {member}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
            raise OSError(str(error)) from error  # damaged, encrypted, or of an unknown compression
        wanted = whole if size < 0 else min(size, whole)
        data = os.pread(self._descriptor, wanted, offset)
        if len(data) < wanted:
            raise OSError("the archive ends too early")
        return data


def _open_archive(file: str) -> _Archive:
    """One for each process, for forked workers would share the position in the file; a new one where the file has changed."""
    status = os.stat(file)
    return _opened_archive(os.getpid(), file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _opened_archive(process: int, file: str, changed: int, size: int) -> _Archive:
    return _Archive(file)
