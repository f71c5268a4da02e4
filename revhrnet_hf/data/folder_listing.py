"""Lists folders, each only once while a dataset is loaded: on network disks, listing takes most of the loading time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_seen: ContextVar[dict[str, list[os.DirEntry]] | None] = ContextVar("seen", default=None)


@contextmanager
def listed_once() -> Iterator[None]:
    """Inside this context (or function, as a decorator), `entries` lists each folder only once and remembers the result."""
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def entries(folder: Path) -> list[os.DirEntry]:
    """The entries of a folder; an OSError if it cannot be listed."""
    seen = _seen.get()
    if seen is not None and str(folder) in seen:
        return seen[str(folder)]
    with os.scandir(folder) as scanned:
        found = list(scanned)
    if seen is not None:
        seen[str(folder)] = found
    return found
