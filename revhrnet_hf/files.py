"""Writing so that what is there is whole, whenever a program is killed or a disk is full."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_folder(target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None) -> None:
    """Replace `target` by what `fill` writes: at any moment the old folder or the new one is there, whole.

    The move of a folder over another is two renames; a process killed between them leaves the old one as `NAME.old`.

    Args:
        target: the folder.
        fill: called with an empty folder beside it; whatever it raises leaves `target` as it was.
        keep_old_as: where the folder goes that was there before (it replaces what is there); None deletes it.
    """
    fresh, old = target.with_name(target.name + ".new"), keep_old_as or target.with_name(target.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        fill(fresh)
        for path in (*fresh.rglob("*"), fresh):
            flush(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    fresh.rename(target)
    flush(target.parent)
    if keep_old_as is None:
        shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
