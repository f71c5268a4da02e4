"""Checkpoint folders are there whole or not at all, and are known to be what was written.

Each has a file `SHA256SUMS`, in the form that `sha256sum -c SHA256SUMS` checks too.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError
from ..io import PICKLES, write_folder
from .run_files import CHECKSUMS, carry_over

CHANGING = {"README.md"}  # the card: people edit it, and scoring writes it anew


def write_checkpoint(target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None) -> None:
    """Replace the folder `target` by what `fill` writes, with checksums; see `write_folder`. Files of others in it stay.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full; `target` is as it was.
    """

    def fill_and_sum(folder: Path) -> None:
        fill(folder)
        write_checksums(folder)

    try:
        write_folder(target, fill_and_sum, keep_old_as, carry_over)
    except (OSError, SafetensorError) as error:
        standing = "what was saved before is whole" if target.exists() else "nothing was saved before"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot write {target}: {reason}; {standing}. Make room, then go on with --resume") from error


def write_checksums(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in CHANGING)
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_checkpoint` wrote; None if each file is as it was. Files are read in pieces."""
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
