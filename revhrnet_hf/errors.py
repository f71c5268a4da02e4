"""The errors that are the user's to mend: each says what is wrong, where, and what to do.

The scripts print them as one line and exit with status 1; everything else is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RevHRNetError(ValueError):
    """Something given to us is wrong: data, recipe or checkpoint."""

    def __init__(self, message: str):
        # A DataLoader worker's error arrives as text with the worker's traceback in it: keep what the worker said.
        _, _, worker_said = message.rpartition(f"{type(self).__name__}: ")
        super().__init__(worker_said.strip() if message.startswith("Caught ") else message)


class DataError(RevHRNetError):
    """A dataset on disk is not what it should be; the message names the file, field or id."""


class AbsentSplitError(DataError):
    """The dataset is there, but not this split of it."""


class RecipeError(RevHRNetError):
    """A recipe or a command line asks for something that does not exist or does not fit."""


class CheckpointError(RevHRNetError):
    """A checkpoint or an output folder cannot be used as asked."""


class TrainingError(RevHRNetError):
    """Training cannot go on: the loss is no longer a number, or a process that it needs has died."""


class HubError(RevHRNetError):
    """A checkpoint cannot be sent to the Hub as it is, or the Hub does not take it."""


class ExportError(RevHRNetError):
    """A checkpoint cannot be exported as asked, or what came out is not the checkpoint."""


class RunStopped(KeyboardInterrupt):
    """A signal stopped a run where it can go on later; the message says how.

    Attributes:
        status: what the program is to exit with, 128 + the signal's number, as shells report it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def listed(entries: Iterable[object], most: int = 20) -> str:
    """The first entries with commas between them, and how many more there are."""
    texts = [str(entry) for entry in entries]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` with the nearest of the known names, or nothing if none is near; of spellings that differ by
    hyphens or capitals only, the first."""
    spelt: dict[str, str] = {}
    for name in known:
        spelt.setdefault(_letters(name), name)
    near = get_close_matches(_letters(given), spelt, n=1)
    return f" (did you mean {spelt[near[0]]}?)" if near else ""


def _letters(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")
