"""Errors that the user can correct: each message says what is wrong, where, and what to do.

The commands print them as one line and exit with status 1. Any other exception is a defect of this package and keeps its
traceback.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class RevHRNetError(ValueError):
    """The data, recipe or checkpoint that the user gave is wrong."""

    def __init__(self, message: str):
        # The error of a DataLoader worker arrives as text that includes the worker's traceback: keep the message only.
        _, _, worker_message = message.rpartition(f"{type(self).__name__}: ")
        super().__init__(worker_message.strip() if message.startswith("Caught ") else message)


class DataError(RevHRNetError):
    """A dataset cannot be used as it is; the message names the file, field or id."""


class AbsentSplitError(DataError):
    """The dataset exists, but lacks the requested split."""


class RecipeError(RevHRNetError):
    """A recipe or a command line asks for something that does not exist or does not fit."""


class CheckpointError(RevHRNetError):
    """A checkpoint or an output folder cannot be used as asked."""


class TrainingError(RevHRNetError):
    """Training cannot continue: the loss is not a number, or a process has died."""


class DivergedError(TrainingError, CheckpointError):
    """The network's loss, or its logits, are not numbers."""


class HubError(RevHRNetError):
    """A checkpoint cannot be uploaded to the Hub as it is, or the Hub refuses it."""


class ExportError(RevHRNetError):
    """A checkpoint cannot be exported as asked, or the exported model differs from the checkpoint."""


class RunStopped(KeyboardInterrupt):
    """A signal stopped a run that can be resumed; the message says how.

    Attributes:
        status: the program's exit status, 128 + the signal's number, as shells report it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def strict_reason(error: Exception) -> str:
    """The innermost message of a StrictDataclassError of huggingface_hub, whose message quotes those of the errors within it."""
    return re.split(r"^ *\w+Error: ", str(error), flags=re.M)[-1].strip()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's kind where it has no message."""
    return next((" ".join(line.split()) for line in str(error).splitlines() if line.strip()), type(error).__name__)


def first_few(entries: Iterable[object], most: int = 20) -> str:
    """The first entries, separated by commas, and the number of the others: `a, b and 3 more`."""
    texts = [str(entry) for entry in entries]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` with the known name that is most similar, or "" if none is.

    Hyphens and capitals do not matter. Among names that differ only in these, the first counts.
    """
    original: dict[str, str] = {}
    for name in known:
        original.setdefault(_normalised(name), name)
    similar = get_close_matches(_normalised(given), original, n=1)
    return f" (did you mean {original[similar[0]]}?)" if similar else ""


def _normalised(name: str) -> str:
    return name.lower().lstrip("-").replace("-", "_")
