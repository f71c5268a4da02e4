"""The entries of folders on disk, each folder asked for once within a load: on network disks that is most of a load's time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_seen: ContextVar[dict[str, list[os.DirEntry]] | None] = ContextVar("seen", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Within it, `entries` answers from memory for a folder that was listed before. Also a decorator."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def entries(folder: Path) -> list[os.DirEntry]:
    """What lies in a folder; an OSError if it cannot be listed."""
    seen = _seen.get()
    if seen is not None and str(folder) in seen:
        return seen[str(folder)]
    with os.scandir(folder) as scanned:
        found = list(scanned)
    if seen is not None:
        seen[str(folder)] = found
    return found
