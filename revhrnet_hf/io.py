"""Writes files and folders whole or not at all; deletes no file of others.

That holds if the program is killed, the disk is full, or the machine loses its power.
"""

import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml
from safetensors import SafetensorError

from .errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

# Suffixes of files that loading might unpickle; unpickling runs any code in the file.
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
OF_FILES = PICKLES | {".safetensors", ".yaml", ".yml", ".json", ".csv", ".txt"}  # suffixes that no name on the Hub has
PATH_FIELDS = ("label_space", "backbone", "backbone_weights", "init_from")  # of a recipe: files or folders here, or names
LOG_FILE = "log.jsonl"  # the numbers of a run, in its folder; one JSON object a line
CHECKSUMS = "SHA256SUMS"  # in a checkpoint: what `sha256sum -c SHA256SUMS` checks
LAST, BEST = "last", "best"  # checkpoints in a run's folder: the newest, and the one with the best scores

RUST_ERROR = re.compile(r"\(os error (\d+)\)$")  # the end of a SafetensorError that is the operating system's

# A folder that is being written or replaced is called `.NAME.revhrnet-new-…`: no other program uses such names.
FRESH, OLD = "revhrnet-new", "revhrnet-old"
LONG_NAME = 100  # bytes of a name above which temporary names have its digest instead
LONGEST_NAME = 255  # bytes of a file's name that file systems take; of UTF-16, units


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; the file is moved to `path` at the end, so that it is never there half-written.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the error names `path`.
    """
    path = Path(path)
    partial = _hidden(path, f"{os.getpid()}.part")
    try:
        with _errors_name(path, partial):
            yield partial
            flush(partial)  # else the new name may reach the disk before the contents
            os.replace(partial, path)
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _errors_name(target: Path, temporary: Path) -> Iterator[None]:
    """Errors of the operating system name the target, where they name the temporary path or, as when a disk is full, nothing."""
    try:
        yield
    except ConnectionError:  # of a pipe or the network: no file is to blame
        raise
    except OSError as error:
        named = temporary if error.filename is None else Path(error.filename)
        if error.errno is None or not named.is_relative_to(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(target / named.relative_to(temporary))) from error
    except SafetensorError as error:
        number = RUST_ERROR.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error


def is_name_too_long(name: str) -> bool:
    """Whether file systems refuse a file of this name."""
    length = len(name.encode("utf-16-le", "surrogatepass")) // 2 if sys.platform == "win32" else len(os.fsencode(name))
    return length > LONGEST_NAME


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def whole_lines(path: Path) -> str:
    """A text file in UTF-8, without a last line that was cut off, as by a kill or a full disk: one without a newline."""
    data = path.read_bytes()  # bytes, because a cut-off line may end within a character
    return data[: data.rfind(b"\n") + 1].decode("utf-8")


def read_values(path: Path, read: Callable[[str], Any] = json.loads, kind: type = dict) -> Any:
    """The values in a JSON or YAML file, a mapping unless `kind` says otherwise; a CheckpointError that names the file."""
    try:
        values = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, kind):
        raise CheckpointError(f"{path} cannot be read: it holds a {type(values).__name__}, no {kind.__name__}")
    return values


def without_folders(value: Any, field: str | None = None) -> Any:
    """Settings at any depth with only the name of each file, so that they do not tell where files lie.

    Only `PATH_FIELDS` hold files. A name in them, such as the Hub's someone/model, stays as it is. In
    `scans:all,label_space=TABLE` the table is looked at.

    Args:
        field: whose value it is.
    """
    if isinstance(value, dict):
        return {key: without_folders(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry, field) for entry in value]
    if not isinstance(value, str):
        return value
    if ",label_space=" in value:
        return re.sub("(?<=,label_space=)[^,]+", lambda table: without_folders(table[0], "label_space"), value)
    if field not in PATH_FIELDS:
        return value
    path = Path(value)
    is_path = (
        path.is_absolute() or value.startswith(("~", "./", "../")) or path.suffix.lower() in OF_FILES or os.path.exists(path)
    )
    return path.name if is_path else value


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def change_text(path: Path, text: str) -> None:
    """As `write_text`, for a file of a checkpoint: its line in `SHA256SUMS` changes with it, if it was right before."""
    checksums = path.with_name(CHECKSUMS)
    listed = checksums.read_text(encoding="utf-8").splitlines(keepends=True) if checksums.is_file() else []
    before = f"{sha256_of(path)}  {path.name}\n"
    after = f"{hashlib.sha256(text.encode()).hexdigest()}  {path.name}\n"
    others = [line for line in listed if not line.endswith(f"  {path.name}\n")]
    if before in listed:
        # Whichever file is there if the program is killed now is one of the two, and so not damaged.
        write_text(checksums, "".join([*others, before, after]))
    write_text(path, text)
    if before in listed:
        write_text(checksums, "".join([*others, after]))


def write_json(path: str | Path, value: Any) -> None:
    """Writes valid JSON (NaN becomes null), whole or not at all."""
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinity by None at any depth, because JSON does not have them."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Called with the old folder, the new folder, and whether the old folder is kept under another name.
CarryOver = Callable[[Path, Path, bool], None]


def refuse_used_folder(folder: Path) -> None:
    """Raises a CheckpointError if there is anything at this path but an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder: give another one")


def write_folder(
    target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None, carry_over: CarryOver | None = None
) -> None:
    """Replaces the folder `target` by a new one that `fill` writes. At any moment the old or the new folder is there, whole.

    Replacing a folder takes two renames. A process that is killed between them leaves the old folder as
    `.NAME.revhrnet-old-…`; one that is killed before them leaves `.NAME.revhrnet-new-…`. `recover_folder` repairs both.

    Args:
        target: the folder.
        fill: called with an empty folder beside `target`; if it raises, `target` stays as it was.
        keep_old_as: the new path of the old folder (whatever lies there is replaced); None deletes the old folder.
        carry_over: moves files that must survive from the old folder to the new one.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the error names `target` or a file in it.
    """
    fresh, old = _beside(target, FRESH), keep_old_as or _beside(target, OLD)
    fresh.mkdir(parents=True)
    try:
        with _errors_name(target, fresh):
            fill(fresh)
        for path in (*fresh.rglob("*"), fresh):
            flush(path)
        replaces = os.path.lexists(target)
        if replaces:
            if carry_over is not None and keep_old_as is not None:
                carry_over(old, target, False)
            remove(old)
            target.rename(old)
    except BaseException:
        remove(fresh)
        raise
    fresh.rename(target)
    flush(target.parent)
    if replaces and carry_over is not None:
        carry_over(old, target, keep_old_as is not None)
    if keep_old_as is None:
        remove(old)


def _beside(target: Path, kind: str) -> Path:
    return _hidden(target, f"{kind}-{secrets.token_hex(4)}")


def _hidden(path: Path, ending: str) -> Path:
    """`.NAME.ending` beside a path, with a digest for a long name: file systems that take the path's name take this one too."""
    return path.with_name(f".{_short(path.name)}.{ending}")


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONG_NAME else hashlib.sha256(encoded).hexdigest()[:16]


def recover_folder(target: Path, carry_over: CarryOver | None = None) -> None:
    """Cleans up after a killed `write_folder`: brings the old folder back if no new one has replaced it.

    No other process may be writing the folder meanwhile. `carry_over` is as for `write_folder`.
    """
    pattern = re.compile(rf"\.{re.escape(_short(target.name))}\.({FRESH}|{OLD})-[0-9a-f]{{8}}")
    beside = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
    for path, match in [(path, match) for path in beside if (match := pattern.fullmatch(path.name))]:
        if match[1] == OLD and not target.exists():
            path.rename(target)
            continue
        if match[1] == OLD and carry_over is not None:
            carry_over(path, target, False)
        remove(path)


def remove(path: Path) -> None:
    """Deletes a file, a link (not its target) or a folder, if it exists.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)  # Windows flushes what can be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(path: Path) -> IO | None:
    """Creates and locks a file. The lock ends when the file is closed or the process ends.

    Returns:
        The open file, unbuffered, for bytes; None if another process holds the lock. Without support for locks in the operating
        system or the file system (which is logged), other processes are not kept out.
    """
    while True:
        # Do not truncate the file and do not follow a link: it may belong to somebody else.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        if fcntl is None:
            return file
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: the loader's workers would hold it as well
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError as error:  # ENOLCK, ENOTSUP: some network file systems
            logger.warning("%s cannot be locked (%s): start nothing else in its folder", path, error.strerror)
            return file
        if _is_same_file(path, file):
            return file
        file.close()  # the previous holder has deleted the file meanwhile


def _is_same_file(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
