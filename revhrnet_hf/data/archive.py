"""A dataset's folder, in which zip and tar files are read as if they were unpacked.

Every file has a *location*, one string: its path, or `zip://MEMBER::ARCHIVE` (`tar://…`) for a member of an archive, as in fsspec
and `datasets`. Datasets store locations; `read_location` reads the bytes at one. In ARCHIVE, `::` is written `%3A%3A` and `%` is
written `%25`, so that a location can be split in one way only.
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
from .limits import JSON_BYTES, LIST_BYTES, check_member_size, max_text_bytes, text_too_long

ARCHIVES = (".zip", ".tar")
COMPRESSED_WHOLE = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
# Names of files and folders that operating systems and tools create, besides hidden ones (`._X`, `.DS_Store` …).
SYSTEM_NAMES = (
    "__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "#recycle", "$recycle.bin", "system volume information",
    "lost+found",
)  # fmt: skip
TEXTS = (".txt", ".json", ".yaml", ".yml", ".csv", ".xml")  # lists and tables; a user may have unpacked only one of them
TAR_BLOCK = 512
MOST_LINKS = 40  # that follow one another, as in Linux
MAX_OPEN = 64  # archives that a process keeps open; each open zip file takes a file descriptor
LONGEST_NAME, DEEPEST = 4096, 128  # characters and folders of a member's name; no file system supports longer ones
CHUNK = 1 << 20  # bytes that are unpacked at a time
# The exceptions of zipfile and tarfile for damaged files. ValueError includes text that is not UTF-8. RuntimeError is raised for
# encrypted members, and its subclass NotImplementedError for versions and methods that zipfile does not support.
DAMAGE_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OverflowError,
    LookupError,
)  # fmt: skip


class DataFolder:
    """The files below a folder or in an archive. Paths are relative, with `/`; `""` is the folder itself.

    A file on the disk takes precedence over the same file in an archive. The images of a folder that was unpacked are read from
    the disk only, so that those which the user deleted do not reappear from the archive (`_unpacked_folders`). Hidden files and
    those of the system are skipped (`is_hidden`). Links are followed, except links to a folder above themselves.

    A file that is in several archives must be the same in all of them; it is an error to request one that differs. (Other files
    may differ, such as each archive's README.)

    The last suffix of a file's name may be in capitals: where `x.jpg` is asked for and missing, `x.JPG` is found.

    Args:
        root: a folder, in which zip and tar files are opened (not those in its sub-folders), or a single archive.

    Raises:
        DataError: there is no such folder or file, or an archive is damaged; the message names it.
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
            if self.root.name.lower().endswith(COMPRESSED_WHOLE):
                raise DataError(f"{self.root} is compressed as a whole, so that no single image can be read from it: unpack it.")
            raise DataError(f"{self.root} is neither a folder nor a zip or tar file: give the folder that holds the dataset.")

    def subfolder(self, folder: str) -> "DataFolder":
        """The same files with paths relative to one of the folders."""
        data_folder = copy.copy(self)
        data_folder._base = f"{self._base}{folder}/"
        return data_folder

    def packed_folders(self) -> list[str]:
        """Sorted names of the top folders that are only in archives."""
        return [name for name in self.folders() if self.is_packed(name)]

    def is_packed(self, folder: str) -> bool:
        """Whether one of the folders is only in archives."""
        return not self._on_disk(self._full_path(folder))

    def _full_path(self, path: str) -> str:
        return f"{self._base}{path}".rstrip("/")

    def _on_disk(self, path: str) -> bool:
        # os.path.isdir, unlike Path.is_dir, is False for a path that no file can have.
        return bool(self._folder) and os.path.isdir(self._folder / path)

    @property
    def is_empty(self) -> bool:
        return not any(not is_hidden(path.name) for path in self._folder.iterdir()) if self._folder else not self._packed.members

    @cached_property
    def _packed_below(self) -> dict[str, set[str]]:
        """Folder → names of the folders in it, for those in archives; the top folder is empty text."""
        below: dict[str, set[str]] = defaultdict(set)
        for key in self._packed.members:
            while key:
                key, _, name = key.rpartition("/")
                if name in below[key]:
                    break  # and so are those above it
                below[key].add(name)
        return below

    @cached_property
    def _packed(self) -> "_ArchiveMembers":
        members: dict[str, dict[str, str]] = defaultdict(dict)
        duplicates: dict[str, list[str]] = defaultdict(list)
        for archive in self.archives:
            listed = _listing(archive)
            unpacked = self._unpacked_folders(listed)
            for folder, files in listed.items():
                if folder in unpacked:
                    files = {name: found for name, found in files.items() if name.lower().endswith(TEXTS)}
                    if not files:
                        continue
                for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents):
                    members[_folder_key(parent)]
                for name, same_path in files.items():
                    for location in (archive_location(archive, member) for member in same_path):
                        if members[folder].setdefault(name, location) != location:
                            duplicates[f"{folder}/{name}" if folder else name].append(location)
        return _ArchiveMembers(dict(members), dict(duplicates))

    def _unpacked_folders(self, listed: dict[str, dict[str, list[str]]]) -> set[str]:
        """The folders of an archive that were unpacked, including those that were deleted afterwards.

        A folder counts as deleted if it is not on the disk, but another folder beside it from the same archive is, or the folder
        above it together with that folder's own files.
        """
        unpacked = {folder for folder in listed if folder and self._on_disk(folder)}
        parents = {posixpath.dirname(folder) for folder in unpacked} - {""} | unpacked

        def is_deleted(folder: str) -> bool:
            above = posixpath.dirname(folder)
            return bool(above) and ((above in parents and not self._on_disk(folder)) or is_deleted(above))

        return unpacked | {folder for folder in listed if is_deleted(folder)}

    def has_folder(self, path: str) -> bool:
        return self._on_disk(self._full_path(path)) or self._full_path(path) in self._packed.members

    def has_file(self, path: str) -> bool:
        return self.location(path) is not None

    def location(self, path: str) -> str | None:
        """The location of the file `path`, or None if there is none.

        Raises:
            DataError: the file's name is not UTF-8, or archives hold different files at this path; the message names them.
        """
        path = self._full_path(path)
        return next((found for spelling in _spellings(path) if (found := self._location_of(spelling)) is not None), None)

    def _location_of(self, path: str) -> str | None:
        """The location of the file with just this full path."""
        folder, _, name = path.rpartition("/")
        # os.path.isfile, unlike Path.is_file, is False for a path that no file can have.
        unpacked = self._folder and os.path.isfile(self._folder / path)
        location = str(self._folder / path) if unpacked else self._packed.members.get(folder, {}).get(name)
        if location is not None and not _is_utf8(location):
            raise DataError(f"The name of the file {location!a} is not UTF-8: rename it.")
        if location is not None and not unpacked:
            self._check_duplicates(path, location)
        return location

    def _check_duplicates(self, path: str, location: str) -> None:
        """Raises a DataError if another archive holds a different file at this path."""
        duplicates = self._packed.duplicates.get(path, [])
        for duplicate in duplicates:
            if _size_and_crc(duplicate) != _size_and_crc(location):
                raise DataError(
                    f"{location} and {duplicate} are both {path!r} and differ, so it is not clear which one counts: remove the "
                    f"outdated archive from {self.root}, or give each archive a folder of its own."
                )
        duplicates.clear()  # compare once

    def expected(self, path: str) -> str:
        """The location of the file `path`, or the path where it should be; for messages."""
        return self.location(path) or str(self.root / self._full_path(path))

    def files(self, folder: str, suffixes: Iterable[str] = ()) -> list[str]:
        """Sorted names of the files in `folder`; with `suffixes`, only those that end with one of them."""
        folder = self._full_path(folder)
        names = set(self._packed.members.get(folder, ()))
        if self._on_disk(folder):
            below = _entries(self._folder / folder)
            names.update(entry.name for entry in below if _safely(entry.is_file) or _leads_nowhere(entry))
        endings = tuple(spelling for suffix in suffixes for spelling in _spellings(suffix))
        return sorted(name for name in names if not is_hidden(name) and (not endings or name.endswith(endings)))

    def stems(self, folder: str, suffix: str) -> list[str]:
        """Sorted names of the files in `folder` that end with `suffix`, without it."""
        return sorted({name[: -len(suffix)] for name in self.files(folder, [suffix])})

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of the folders in `folder`."""
        folder = self._full_path(folder)
        names = set(self._packed_below.get(folder, ()))
        if self._on_disk(folder):
            names.update(self._folders_on_disk(self._folder / folder))
        return sorted(name for name in names - {""} if not is_hidden(name))

    def _folders_on_disk(self, folder: Path) -> list[str]:
        """Names of the folders in `folder`, without links to a folder above: following those would never end."""
        below = [entry for entry in _entries(folder) if _safely(entry.is_dir)]
        if not any(entry.is_symlink() for entry in below):
            return [entry.name for entry in below]
        levels = [Path(os.path.realpath(level)) for level in (folder, *folder.parents) if level.is_relative_to(self._folder)]
        above = {folder for level in levels for folder in (level, *level.parents)}
        return [entry.name for entry in below if not (entry.is_symlink() and Path(os.path.realpath(entry.path)) in above)]

    def read_text(self, path: str, max_bytes: int = LIST_BYTES) -> str:
        """The file's text, without the byte order mark that Windows programs write before it.

        Raises:
            DataError: the file is missing, unreadable, not UTF-8, or longer than `max_bytes` (see limits.py).
        """
        location = self.location(path)
        if location is None:
            raise DataError(f"{self.root / self._full_path(path)} is missing.")
        return read_text(location, max_bytes)

    def read_json(self, path: str) -> Any:
        """The content of a JSON file; raises a DataError as `read_text` and `parse_json` do."""
        return parse_json(self.read_text(path, JSON_BYTES), self.expected(path))

    def unreadable_archives(self) -> list[Path]:
        """Archives in the folder that are compressed as a whole, so that single images cannot be read from them."""
        return sorted(path for path in self._folder.iterdir() if path.name.endswith(COMPRESSED_WHOLE)) if self._folder else []


class _ArchiveMembers(NamedTuple):
    """The files in the archives of a DataFolder, without hidden files and folders that were unpacked.

    Attributes:
        members: folder → file name → location, in the first archive that holds the file.
        duplicates: path → further locations with the same path, not yet compared with the first.
    """

    members: dict[str, dict[str, str]]
    duplicates: dict[str, list[str]]


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() in ARCHIVES and path.is_file() and not is_hidden(path.name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name is hidden, or created by an operating system or tool."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def _listing(archive: Path) -> dict[str, dict[str, list[str]]]:
    """Folder in an archive → file name → members that unpack to it, usually one.

    Some Windows programs write `\\` for `/` into zip files. A leading `/` is ignored, as in `unzip` and `tar`.
    """
    listed: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for member in dict.fromkeys(_open_archive(str(archive)).names):
        name = member.replace("\\", "/") if archive.suffix.lower() == ".zip" else member
        path = PurePosixPath(name.lstrip("/"))
        if path.name and not member.endswith("\\") and not any(map(is_hidden, path.parts)):
            listed[_folder_key(path.parent)].setdefault(path.name, []).append(member)
    return listed


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return entries(folder)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be listed ({error}): check its permissions.") from error


def _leads_nowhere(entry: os.DirEntry) -> bool:
    """Whether an entry is a link whose target is not there, such as a file of a disk that is not mounted."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _safely(check: Callable[[], bool]) -> bool:
    """The result of an entry's `is_file` or `is_dir`; False for a link to itself, for which they raise an error."""
    try:
        return check()
    except OSError:
        return False


def _spellings(path: str) -> list[str]:
    """A path, or the end of one, as it is and with what follows its last dot in capitals and in small letters."""
    stem, dot, ending = path.rpartition(".")
    endings = (ending, ending.upper(), ending.lower()) if dot and "/" not in ending else (ending,)
    return list(dict.fromkeys(stem + dot + spelling for spelling in endings))


def _is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8; Python keeps the bytes of other encodings as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(location: str, max_bytes: int = LIST_BYTES) -> str:
    """The text at a location, as in `DataFolder.read_text`."""
    most = max_text_bytes(max_bytes)
    try:
        data = read_location(location, most + 1)
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error}).") from error
    if len(data) > most:
        raise text_too_long(location, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{location} is not text in UTF-8 ({error}).") from error


def parse_json(text: str | bytes, source: str) -> Any:
    """Parses JSON; raises a DataError that names `source` if it is invalid, nested too deeply or has too long numbers."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise not_json(source, error) from error


def not_json(source: str, error: Exception) -> DataError:
    return DataError(f"{source} is no JSON ({error}): it is damaged or cut off, fetch it again.")


def leads_outside(path: str) -> bool:
    """Whether a path from a dataset's own file leads outside the data folder, or is empty."""
    relative = PurePosixPath(path.replace("\\", "/"))
    return relative.is_absolute() or ".." in relative.parts or not relative.parts


def _folder_key(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath(".") else str(path)


def archive_location(archive: str | Path, member: str) -> str:
    kind = Path(archive).suffix.lower().removeprefix(".")
    return f"{kind}://{member}::{str(archive).replace('%', '%25').replace('::', '%3A%3A')}"


def split_location(location: str) -> tuple[str, str | None]:
    """The file on disk, and the member's name if the file is an archive (else None)."""
    for kind in ARCHIVES:
        prefix = f"{kind.removeprefix('.')}://"
        if location.startswith(prefix) and "::" in location:
            member, _, archive = location.removeprefix(prefix).rpartition("::")
            return archive.replace("%3A%3A", "::").replace("%25", "%"), member
    return location, None


def read_location(location: str, size: int = -1) -> bytes:
    """The file's bytes, or the first `size` of them.

    Raises:
        OSError: the file is missing or damaged.
        DataError: it is in an archive and would unpack to more than the limit (see limits.py), or the archive is damaged.
    """
    file, member = split_location(location)
    if "://" in file:  # a streamed dataset: on the Hub or in another file system of fsspec
        with fsspec.open(location) as remote:
            return remote.read(size)
    if member is not None:
        return _open_archive(file).read(member, size)
    with open(file, "rb") as stream:
        if size is None or size < 0:
            return stream.read()
        return stream.read(min(size, os.fstat(stream.fileno()).st_size))  # Python allocates memory for the requested size


def location_name(location: str) -> str:
    """The file's name without its folders."""
    file, member = split_location(location)
    return PurePosixPath(member.replace("\\", "/") if member else Path(file).as_posix()).name


def location_stamp(location: str) -> str:
    """Text that changes when the file does: location, size in bytes and modification time (of the archive, for a member)."""
    status = os.stat(split_location(location)[0])
    return f"{location}\0{status.st_size}\0{status.st_mtime_ns}"


def location_size(location: str) -> int | None:
    """Size in bytes of the file (of the archive, for a member); None for a file on a server, or one that is missing."""
    try:
        return os.stat(split_location(location)[0]).st_size
    except OSError:
        return None


def _size_and_crc(location: str) -> tuple[int, int]:
    """Size in bytes and CRC-32 of an archive's member."""
    file, member = split_location(location)
    try:
        return _open_archive(file).size_and_crc(member)
    except OSError as error:
        raise DataError(f"{location} cannot be read ({error}).") from error


class _ZipFile:
    """An open zip file; several threads may read members. It is closed when the object is garbage-collected."""

    def __init__(self, file: str):
        self._file = file
        self._lock = Lock()
        # Unbuffered: if another thread held the buffer's lock during a fork, the child process would wait for it forever.
        stream = open(file, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, stream.close)
        self._zip = zipfile.ZipFile(stream)
        self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def size_and_crc(self, member: str) -> tuple[int, int]:
        info = self._zip.getinfo(member)
        return info.file_size, info.CRC

    def read(self, member: str, size: int) -> bytes:
        """The member's first `size` bytes, all if it is negative."""
        try:
            info = self._zip.getinfo(member)
        except KeyError as error:
            raise FileNotFoundError(f"no member {member}") from error
        # Other methods may unpack any number of bytes in one step.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError("it is not compressed with deflate: unpack the archive, or pack it again")
        wanted = info.file_size if size < 0 else min(size, info.file_size)
        check_member_size(member, self._file, info.compress_size, wanted)
        try:
            with self._lock, self._zip.open(info) as stream:
                return _read_exactly(stream, wanted)
        except DAMAGE_ERRORS as error:
            raise OSError(str(error) or repr(error)) from error


def _read_exactly(stream: zipfile.ZipExtFile, size: int) -> bytes:
    """Reads in chunks: in a single read, zipfile would unpack 2 GB from a member that claims to have one byte."""
    chunks = []
    while size > 0:
        chunks.append(stream.read(min(size, CHUNK)))
        if not chunks[-1]:
            raise EOFError("the member ends too early")
        size -= len(chunks[-1])
    return b"".join(chunks)


class _TarFile:
    """The members of a tar file. The file is open only while one is read; several threads and processes may read.

    Links to files in the archive are followed. Another link is listed as a file, and reading it is an error.
    """

    def __init__(self, file: str):
        self._file = file
        whole = os.stat(file).st_size
        # Uncompressed only: in a compressed tar file, every read would begin at the start.
        with tarfile.open(file, "r:") as tar:
            members = {_tar_name(member.name): member for member in tar}
        self.names = [name for name, member in members.items() if member.isfile() or member.islnk() or member.issym()]
        files = {name: _followed(name, members) for name in self.names}
        self._places = {name: (m.offset_data, m.size) for name, m in files.items() if m is not None and not m.issparse()}
        self._lost_links = {name: members[name].linkname for name, m in files.items() if m is None}
        self.folder_links = _folder_links(self._lost_links, members)
        # tarfile does not notice that a file was cut off within a header.
        if any(self._bytes(whole - TAR_BLOCK, TAR_BLOCK)):
            raise EOFError("it ends before its end mark")

    def size_and_crc(self, member: str) -> tuple[int, int]:
        data = self.read(member, -1)
        return len(data), zlib.crc32(data)

    def read(self, member: str, size: int) -> bytes:
        """The member's first `size` bytes, all if it is negative."""
        if member in self._lost_links:
            target = self._lost_links[member]
            raise OSError(f"it is a link to {target}, which is no file in the archive: unpack it where the link leads to one")
        if member not in self._places:
            absent = member not in self.names
            raise FileNotFoundError(f"no member {member}") if absent else OSError("it is a sparse file: unpack the archive")
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


def _tar_name(name: str) -> str:
    return name.removeprefix("./")


def _followed(name: str, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member with this name, or to which it is a link; None if that is no file in the archive."""
    for _ in range(MOST_LINKS):
        member = members.get(name)
        if member is None or not (member.islnk() or member.issym()):
            return member if member is not None and member.isfile() else None
        name = _link_target(name, member)
    return None


def _link_target(name: str, link: tarfile.TarInfo) -> str:
    """The member that a link names: a hard link as it is in the archive, a symbolic link relative to its own folder."""
    if link.islnk():
        return _tar_name(link.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link.linkname))


def _folder_links(names: Iterable[str], members: dict[str, tarfile.TarInfo]) -> dict[str, str]:
    """Those of the links that lead to a folder in the archive, and the folders; without links to a folder above themselves."""
    folders = {str(folder) for name in members for folder in PurePosixPath(name).parents}
    targets = {name: _link_target(name, members[name]) for name in names if not any(map(is_hidden, PurePosixPath(name).parts))}
    return {
        name: target
        for name, target in targets.items()
        if target in folders and PurePosixPath(target) not in PurePosixPath(name).parents
    }


def _open_archive(file: str) -> _ZipFile | _TarFile:
    """The archive, opened once in each process, and again if the file has changed."""
    status = os.stat(file)
    return _cached_archive(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=MAX_OPEN)
def _cached_archive(file: str, modified: int, size: int) -> _ZipFile | _TarFile:
    try:
        archive = _ZipFile(file) if file.lower().endswith(".zip") else _TarFile(file)
    except (*DAMAGE_ERRORS, OSError) as error:
        raise DataError(f"The archive {file} is damaged ({error or repr(error)}): fetch it again.") from error
    for name, target in getattr(archive, "folder_links", {}).items():
        raise DataError(
            f"The archive {file} holds a link to a folder, {name!a} to {target!a}, which is followed on a disk only: unpack it."
        )
    for name in archive.names:
        if len(name) > LONGEST_NAME or name.count("/") > DEEPEST:
            raise DataError(
                f"The archive {file} holds a name of {len(name)} characters and {name.count('/')} folders, {name[:80]!a}…; the "
                f"limit is {LONGEST_NAME} and {DEEPEST}, beyond which no file can be unpacked: pack it again with shorter names."
            )
    return archive


if hasattr(os, "register_at_fork"):
    # A forked process would share the position in the file with its parent, and keep the file open until it ends.
    os.register_at_fork(after_in_child=_cached_archive.cache_clear)
