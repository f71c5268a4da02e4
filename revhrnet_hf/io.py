"""Writing so that what is there is whole, whenever a program is killed or a disk is full, and nothing of others is deleted."""

import json
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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Suffixes of files that loading might unpickle, which runs whatever code is in them.
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
LOG_FILE = "log.jsonl"  # in a run's folder: its numbers, a line of JSON an entry

# Of a folder that is being written or replaced, `.NAME.revhrnet-new-…`: nobody else's files have such names.
FRESH, OLD = "revhrnet-new", "revhrnet-old"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name to write to beside `path`, moved there at the end: no half-written file is ever seen at `path`."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write valid JSON (NaN becomes null), whole or not at all."""
    write_text(path, json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: None stands for them, at any depth."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Called with an old folder, the one that replaces it, and whether the old one stays under another name.
CarryOver = Callable[[Path, Path, bool], None]


def write_folder(
    target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None, carry_over: CarryOver | None = None
) -> None:
    """Replace `target` by what `fill` writes: at any moment the old folder or the new one is there, whole.

    The move of a folder over another is two renames; a process killed between them leaves the old one as `.NAME.revhrnet-old-…`,
    and one killed before them `.NAME.revhrnet-new-…`. `recover_folder` puts that right.

    Args:
        target: the folder.
        fill: called with an empty folder beside it; whatever it raises leaves `target` as it was.
        keep_old_as: where the folder goes that was there before (it replaces what is there); None deletes it.
        carry_over: moves what is to survive from an old folder into the one that has taken its place.
    """
    fresh, old = _beside(target, FRESH), keep_old_as or _beside(target, OLD)
    fresh.mkdir(parents=True)
    try:
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
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def recover_folder(target: Path, carry_over: CarryOver | None = None) -> None:
    """Undo what a killed `write_folder` left beside `target`: the old folder comes back if no new one took its place.

    No other process may be writing the folder meanwhile. `carry_over` is that of `write_folder`.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.({FRESH}|{OLD})-[0-9a-f]{{8}}")
    beside = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
    for path, match in [(path, match) for path in beside if (match := pattern.fullmatch(path.name))]:
        if match[1] == OLD and not target.exists():
            path.rename(target)
            continue
        if match[1] == OLD and carry_over is not None:
            carry_over(path, target, False)
        remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a folder; nothing to do where there is none.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(path: Path) -> IO | None:
    """Makes a file that no other process can lock until it is closed or this process ends, in whatever way.

    Returns:
        The open file, to be read and written in bytes; None if another process holds it. Where the system or the file system
        knows no locks, nobody is kept out; the latter is said.
    """
    while True:
        # Neither truncated nor followed: what lies there may be a link to somebody's file.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
        if fcntl is None:
            return file
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which loader workers would hold as well
        except (BlockingIOError, PermissionError):
            file.close()
            return None
        except OSError as error:  # ENOLCK, ENOTSUP: some network file systems
            print(f"warning: {path} cannot be locked ({error.strerror}): start nothing else in its folder", file=sys.stderr)
            return file
        if _is_still(path, file):
            return file
        file.close()  # whoever held it has removed it meanwhile


def _is_still(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
