"""A dataset's folder, in which zip and tar files are read as if they had been unpacked where they lie.

Every file has a *location*, one string: its path, or for a member of an archive `zip://MEMBER::ARCHIVE` (`tar://…`), which is how
fsspec and `datasets` write it too. Locations are what datasets store; `read_location` turns one into bytes. In ARCHIVE, `::` is
written `%3A%3A` and `%` is written `%25`, so that a location splits in one way only, whatever its folders are called.
"""

import copy
import json
import os
import posixpath
import struct
import tarfile
import weakref
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple

import fsspec

from ..errors import DataError
from .folder_listing import entries
from .limits import JSON_BYTES, LIST_BYTES, check_member_size, most_text, text_too_long

ARCHIVES = (".zip", ".tar")
COMPRESSED_WHOLE = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
# What systems and tools leave among people's files, beside all that is hidden (`._X`, `.DS_Store`, `.ipynb_checkpoints` …).
LITTER = (
    "__macosx",
    "@eadir",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
TEXTS = (".txt", ".json", ".yaml", ".yml", ".csv", ".xml")  # lists and tables, of which one alone may be unpacked
TAR_BLOCK = 512
MAX_OPEN = 64  # archives that a process holds open; each open zip file takes a file descriptor
LONGEST_NAME, DEEPEST = 4096, 128  # characters and folders of a member's name; no file system takes longer ones
CHUNK = 1 << 20  # bytes that are unpacked at a time
# What zipfile and tarfile raise for damaged files. ValueError: also text that is no UTF-8; RuntimeError: encrypted members,
# and NotImplementedError, for versions and methods that zipfile does not know.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    LookupError,
)


class DataTree:
    """Files below one folder, or in one archive, by their relative paths with `/` (`""` is the folder itself).

    Where a file is both unpacked and in an archive, the unpacked one counts; and a folder of images that is unpacked is read
    from the disk alone, so that a file which was deleted there does not come back out of the archive (`_leftovers`).
    Litter (`is_litter`) is skipped. Links are followed, but for those that lead to a folder above themselves, whose files are
    listed anyway.

    A file that several archives hold is read if they all hold the same; otherwise nobody knows which one counts, and to ask for
    it is an error. (Files that nobody asks for, such as each archive's README, may differ.)

    Args:
        root: a folder, whose own zip and tar files are opened (not those of folders below), or a single archive.

    Raises:
        DataError: there is no such folder or file, or an archive is damaged; it is named.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        if not self.root.exists():
            raise DataError(f"The data folder {self.root} does not exist: give the folder that holds the dataset.")
        self._folder = self.root if self.root.is_dir() else None
        self._base = ""
        below = sorted(Path(entry.path) for entry in _entries(self._folder)) if self._folder else [self.root]
        self.archives = [path for path in below if _is_archive(path)]
        if not self._folder and not self.archives:
            raise DataError(f"{self.root} is neither a folder nor a zip or tar file: give the folder that holds the dataset.")

    def below(self, folder: str) -> "DataTree":
        """The same tree, seen from one of its folders."""
        tree = copy.copy(self)
        tree._base = f"{self._base}{folder}/"
        return tree

    def packed_folders(self) -> list[str]:
        """Sorted names of the folders at the top that are in archives only."""
        return [name for name in self.folders() if not self._on_disk(self._at(name))]

    def _at(self, path: str) -> str:
        return f"{self._base}{path}".rstrip("/")

    def _on_disk(self, path: str) -> bool:
        # os.path.isdir: of a path that no file can have it says False, too.
        return bool(self._folder) and os.path.isdir(self._folder / path)

    @property
    def is_empty(self) -> bool:
        return not any(not is_litter(path.name) for path in self._folder.iterdir()) if self._folder else not self._members

    @property
    def _members(self) -> dict[str, dict[str, str]]:
        return self._packed.members

    @cached_property
    def _packed(self) -> "_Packed":
        members: dict[str, dict[str, str]] = defaultdict(dict)
        rivals: dict[str, list[str]] = defaultdict(list)
        for archive in self.archives:
            listed = _listing(archive)
            leftovers = self._leftovers(listed)
            for folder, files in listed.items():
                kept = files if folder not in leftovers else {n: m for n, m in files.items() if n.lower().endswith(TEXTS)}
                if folder in leftovers and not kept:
                    continue
                for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents):
                    members[_folder_key(parent)]
                for name, same_path in kept.items():
                    for location in (archive_location(archive, member) for member in same_path):
                        if members[folder].setdefault(name, location) != location:
                            rivals[f"{folder}/{name}" if folder else name].append(location)
        return _Packed(dict(members), dict(rivals))

    def _leftovers(self, listed: dict[str, dict[str, list[str]]]) -> set[str]:
        """The folders of an archive that was unpacked here and kept: those that are on the disk, and those deleted there.

        A folder was deleted if it is not on the disk and one beside it out of the same archive, or the one above it with files
        of its own, is.
        """
        unpacked = {folder for folder in listed if folder and self._on_disk(folder)}
        parents = {posixpath.dirname(folder) for folder in unpacked} - {""} | unpacked

        def is_gone(folder: str) -> bool:
            above = posixpath.dirname(folder)
            return bool(above) and ((above in parents and not self._on_disk(folder)) or is_gone(above))

        return unpacked | {folder for folder in listed if is_gone(folder)}

    def has_folder(self, path: str) -> bool:
        return self._on_disk(self._at(path)) or self._at(path) in self._members

    def has_file(self, path: str) -> bool:
        return self.location(path) is not None

    def location(self, path: str) -> str | None:
        """Where the file `path` is, or None if there is none.

        Raises:
            DataError: no text can hold its name, or archives hold different files at this path; they are named.
        """
        path = self._at(path)
        folder, _, name = path.rpartition("/")
        # os.path.isfile: of a path that no file can have it says False, too.
        unpacked = self._folder and os.path.isfile(self._folder / path)
        location = str(self._folder / path) if unpacked else self._members.get(folder, {}).get(name)
        if location is not None and not _is_text(location):
            raise DataError(f"The name of the file {location!a} is not UTF-8: rename it.")
        if location is not None and not unpacked:
            self._check_rivals(path, location)
        return location

    def _check_rivals(self, path: str, location: str) -> None:
        """Raises a DataError if another member at this path of the archives holds something else."""
        rivals = self._packed.rivals.get(path, [])
        for rival in rivals:
            if _content_stamp(rival) != _content_stamp(location):
                raise DataError(
                    f"{location} and {rival} are both {path!r} and differ, so it is not clear which one counts: take the "
                    f"archive that is out of date out of {self.root}, or give each archive a folder of its own."
                )
        rivals.clear()  # compared once

    def expected(self, path: str) -> str:
        """Where the file `path` is, or would be, for messages."""
        return self.location(path) or str(self.root / self._at(path))

    def files(self, folder: str, suffixes: Iterable[str] = ()) -> list[str]:
        """Sorted names of the files in `folder`; with `suffixes`, of those that end so."""
        folder = self._at(folder)
        names = set(self._members.get(folder, ()))
        if self._on_disk(folder):
            names.update(entry.name for entry in _entries(self._folder / folder) if _is(entry.is_file))
        endings = tuple(suffixes)
        return sorted(name for name in names if not is_litter(name) and (not endings or name.endswith(endings)))

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of the folders in `folder`."""
        folder = self._at(folder)
        prefix = f"{folder}/" if folder else ""
        names = {key[len(prefix) :].split("/")[0] for key in self._members if key.startswith(prefix) and key != folder}
        if self._on_disk(folder):
            names.update(self._unpacked_folders(self._folder / folder))
        return sorted(name for name in names - {""} if not is_litter(name))

    def _unpacked_folders(self, folder: Path) -> list[str]:
        """Names of the folders in `folder`, without links that lead back to a folder above, a walk along which never ends."""
        below = [entry for entry in _entries(folder) if _is(entry.is_dir)]
        if not any(entry.is_symlink() for entry in below):
            return [entry.name for entry in below]
        levels = [Path(os.path.realpath(level)) for level in (folder, *folder.parents) if level.is_relative_to(self._folder)]
        above = {folder for level in levels for folder in (level, *level.parents)}
        return [entry.name for entry in below if not (entry.is_symlink() and Path(os.path.realpath(entry.path)) in above)]

    def read_bytes(self, path: str, size: int = -1) -> bytes:
        """The file's bytes, or the first `size`. Raises a DataError that names the file if it is missing or unreadable."""
        return _read_named(self._present(path), size)

    def _present(self, path: str) -> str:
        location = self.location(path)
        if location is None:
            raise DataError(f"{self.root / self._at(path)} is missing.")
        return location

    def read_text(self, path: str, usual_most: int = LIST_BYTES) -> str:
        """The file's text, without the byte order mark that Windows puts before it.

        Raises:
            DataError: it is missing, unreadable, no UTF-8, or longer than `usual_most` bytes (limits.py).
        """
        return read_text(self._present(path), usual_most)

    def read_json(self, path: str) -> Any:
        """Raises a DataError for a file that is no JSON, as `read_text` does."""
        return parse_json(self.read_text(path, JSON_BYTES), self.expected(path))

    def unreadable_archives(self) -> list[Path]:
        """Archives in the folder that are compressed as a whole, so that no image can be read on its own."""
        return sorted(path for path in self._folder.iterdir() if path.name.endswith(COMPRESSED_WHOLE)) if self._folder else []


class _Packed(NamedTuple):
    """What the archives of a tree hold, without litter, and without what lies unpacked beside its archive.

    Attributes:
        members: folder → name → location, in the first archive that has it.
        rivals: path → further locations with this path, not yet compared with the first.
    """

    members: dict[str, dict[str, str]]
    rivals: dict[str, list[str]]


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVES and path.is_file() and not is_litter(path.name)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left there by a system or tool."""
    return name.startswith(".") or name.lower() in LITTER


def _listing(archive: Path) -> dict[str, dict[str, list[str]]]:
    """Folder in an archive → name of a file → members that unpack to it, mostly one.

    Some programs on Windows write `\\` into zip files for `/`. A path that begins with `/` is taken below the folder, as `unzip`
    and `tar` do.
    """
    listed: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for member in dict.fromkeys(_open_archive(str(archive)).names):
        name = member.replace("\\", "/") if archive.suffix.lower() == ".zip" else member
        path = PurePosixPath(name.lstrip("/"))
        if path.name and not member.endswith("\\") and not any(map(is_litter, path.parts)):
            listed[_folder_key(path.parent)].setdefault(path.name, []).append(member)
    return listed


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return entries(folder)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error}): check its permissions.") from error


def _is(kind: Callable[[], bool]) -> bool:
    """What an entry's `is_file` or `is_dir` says; False for a link that leads to itself."""
    try:
        return kind()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold the name; of a file's name in another encoding Python keeps the bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(location: str, usual_most: int = LIST_BYTES) -> str:
    """The text at a location, as `DataTree.read_text` gives it."""
    most = most_text(usual_most)
    data = _read_named(location, most + 1)
    if len(data) > most:
        raise text_too_long(location, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{location} is not text in UTF-8 ({error}).") from error


def _read_named(location: str, size: int) -> bytes:
    try:
        return read_location(location, size)
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error}).") from error


def parse_json(text: str | bytes, source: str) -> Any:
    """Raises a DataError that names `source` for a text that is no JSON, or nested or with numbers beyond all measure."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise not_json(source, error) from error


def not_json(source: str, error: Exception) -> DataError:
    return DataError(f"{source} is no JSON ({error}): it is damaged or cut off, fetch it again.")


def leads_outside(path: str) -> bool:
    """Whether a path that a dataset's own file gives is no file below the data folder."""
    relative = PurePosixPath(path.replace("\\", "/"))
    return relative.is_absolute() or ".." in relative.parts or not relative.parts


def _folder_key(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath(".") else str(path)


def archive_location(archive: str | Path, member: str) -> str:
    kind = Path(archive).suffix.lower().removeprefix(".")
    return f"{kind}://{member}::{str(archive).replace('%', '%25').replace('::', '%3A%3A')}"


def split_location(location: str) -> tuple[str, str | None]:
    """A location's file on disk, and the member if that is an archive."""
    for kind in ARCHIVES:
        prefix = f"{kind.removeprefix('.')}://"
        if location.startswith(prefix) and "::" in location:
            member, _, archive = location.removeprefix(prefix).rpartition("::")
            return archive.replace("%3A%3A", "::").replace("%25", "%"), member
    return location, None


def read_location(location: str, size: int = -1) -> bytes:
    """The file's bytes, or the first `size` of them.

    Raises:
        OSError: it is missing or damaged.
        DataError: it is in an archive and would unpack to more than the limit (limits.py), or the archive itself is damaged.
    """
    file, member = split_location(location)
    if "://" in file:  # where a streamed dataset lies: on the Hub, or in any other file system that fsspec knows
        with fsspec.open(location) as remote:
            return remote.read(size)
    if member is not None:
        return _open_archive(file).read(member, size)
    with open(file, "rb") as stream:
        if size is None or size < 0:
            return stream.read()
        return stream.read(min(size, os.fstat(stream.fileno()).st_size))  # Python sets memory aside for all that is asked for


def location_name(location: str) -> str:
    """The file's name without its folders."""
    file, member = split_location(location)
    return PurePosixPath(member.replace("\\", "/") if member else Path(file).as_posix()).name


def location_stamp(location: str) -> str:
    """Text that changes when the file does: location, size in bytes, time of change (of the whole archive for a member)."""
    status = os.stat(split_location(location)[0])
    return f"{location}\0{status.st_size}\0{status.st_mtime_ns}"


def _content_stamp(location: str) -> tuple[int, int]:
    """Size in bytes and CRC-32 of an archive's member."""
    file, member = split_location(location)
    try:
        return _open_archive(file).content_stamp(member)
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error}).") from error


class _ZipFile:
    """An open zip file, read member by member; several threads may read. It is closed when nobody refers to it any more."""

    def __init__(self, file: str):
        self._file = file
        self._lock = Lock()
        # Without a buffer: a buffer's own lock, held by another thread while the process forks, would stop the fork for good.
        stream = open(file, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, stream.close)
        self._zip = zipfile.ZipFile(stream)
        self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def content_stamp(self, member: str) -> tuple[int, int]:
        info = self._zip.getinfo(member)
        return info.file_size, info.CRC

    def read(self, member: str, size: int) -> bytes:
        """The member's first `size` bytes, all if it is negative."""
        try:
            info = self._zip.getinfo(member)
        except KeyError as error:
            raise FileNotFoundError(f"no member {member}") from error
        # The others unpack without any bound on what one step gives.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError("it is packed in another way than by deflate: unpack the archive, or pack it again")
        wanted = info.file_size if size < 0 else min(size, info.file_size)
        check_member_size(member, self._file, info.compress_size, wanted)
        try:
            with self._lock, self._zip.open(info) as stream:
                return _read_exactly(stream, wanted)
        except DAMAGE as error:
            raise OSError(str(error) or repr(error)) from error


def _read_exactly(stream: zipfile.ZipExtFile, size: int) -> bytes:
    """In chunks: asked for everything at once, zipfile unpacks 2 GB of a member that claims to have one byte."""
    chunks = []
    while size > 0:
        chunks.append(stream.read(min(size, CHUNK)))
        if not chunks[-1]:
            raise EOFError("the member ends too early")
        size -= len(chunks[-1])
    return b"".join(chunks)


class _TarFile:
    """The list of a tar file's members; only while one is read is the file open. Several threads and processes may read."""

    def __init__(self, file: str):
        self._file = file
        whole = os.stat(file).st_size
        # Uncompressed only: of a compressed tar every read would begin at its start.
        with tarfile.open(file, "r:") as tar:
            members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
        self._places = {name: (m.offset_data, m.size) for name, m in members.items() if not m.issparse()}
        # tarfile takes a file that was cut off within a header for a whole one.
        if any(self._bytes(whole - TAR_BLOCK, TAR_BLOCK)):
            raise EOFError("it ends before its end mark")
        self.names = list(members)

    def content_stamp(self, member: str) -> tuple[int, int]:
        data = self.read(member, -1)
        return len(data), zlib.crc32(data)

    def read(self, member: str, size: int) -> bytes:
        """The member's first `size` bytes, all if it is negative."""
        if member not in self._places:
            absent = member not in self.names
            raise FileNotFoundError(f"no member {member}") if absent else OSError("it is stored with holes: unpack the archive")
        offset, whole = self._places[member]
        wanted = whole if size < 0 else min(size, whole)
        data = self._bytes(offset, wanted)
        if len(data) < wanted:
            raise OSError("the archive ends too early")
        return data

    def _bytes(self, offset: int, size: int) -> bytes:
        with open(self._file, "rb") as stream:
            stream.seek(offset)
            return stream.read(size)


def _open_archive(file: str) -> _ZipFile | _TarFile:
    """One for each process; a new one where the file has changed."""
    status = os.stat(file)
    return _opened_archive(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=MAX_OPEN)
def _opened_archive(file: str, changed: int, size: int) -> _ZipFile | _TarFile:
    try:
        archive = _ZipFile(file) if file.lower().endswith(".zip") else _TarFile(file)
    except (*DAMAGE, OSError) as error:
        raise DataError(f"The archive {file} is damaged ({error or repr(error)}): fetch it again.") from error
    for name in archive.names:
        if len(name) > LONGEST_NAME or name.count("/") > DEEPEST:
            raise DataError(
                f"The archive {file} holds a name of {len(name)} characters and {name.count('/')} folders, {name[:80]!a}…; the "
                f"limit is {LONGEST_NAME} and {DEEPEST}, beyond which no file can be unpacked: pack it again with shorter names."
            )
    return archive


if hasattr(os, "register_at_fork"):
    # A forked process would share the position in the file, and keep the file open for as long as it lives.
    os.register_at_fork(after_in_child=_opened_archive.cache_clear)
