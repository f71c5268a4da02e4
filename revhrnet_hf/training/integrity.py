"""Folders that are there whole or not at all, and are known to be what was written.

Each has a file `SHA256SUMS`, in the form that `sha256sum -c SHA256SUMS` checks too.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError

CHECKSUMS = "SHA256SUMS"
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def write_folder(target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None) -> None:
    """Replace `target` by what `fill` writes, with checksums: at any moment the old folder or the new one is there, whole.

    The move of a folder over another is two renames; `checkpoint.recover` mends a run that was killed between them.

    Args:
        target: the folder.
        fill: called with an empty folder beside it.
        keep_old_as: where the folder goes that was there before (it replaces what is there); None deletes it.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full; `target` is as it was.
    """
    fresh, old = target.with_name(target.name + ".new"), keep_old_as or target.with_name(target.name + ".old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        fill(fresh)
        write_checksums(fresh)
        for path in fresh.rglob("*"):
            flush(path)
        flush(fresh)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        standing = "what was saved before is whole" if target.exists() else "nothing was saved before"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot write {target}: {reason}; {standing}. Make room, then go on with --resume") from error
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


def write_checksums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_folder` wrote; None if each file is as it was written. Files are read in pieces."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = [line.split("  ", 1) for line in lines]
        for digest, name in sums:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _digest(path) != digest:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read ({getattr(error, 'strerror', None) or error})"
    listed = {name for _, name in sums}
    unlisted = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in listed)
    return f"{unlisted[0]} is not in {CHECKSUMS}" if unlisted else None if sums else f"{CHECKSUMS} is empty"


def refuse_pickles(folder: Path) -> None:
    """Raises a CheckpointError if there is a file that loading could unpickle, which runs whatever code is in it.

    Checkpoints hold safetensors and text only, so that such a file has been put there by somebody else.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(
                f"{path} was not written by this program, and loading such a file can run code that is hidden in it: see where "
                "it comes from, and remove it to go on"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
