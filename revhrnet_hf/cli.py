"""What the scripts share: the device they run on, and how each ends: well, or with one line that says what was wrong, or with the
traceback of our own defect."""

import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

import torch

from .errors import RecipeError, RevHRNetError, RunStopped
from .escape import PROGRESS_BAR, PrintableStream

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; print the user's errors as `error: …` on stderr and exit with status 1.

    The user's are our own errors, and those of the operating system about a named file (no permission, disk full, not
    a folder). Anything else keeps its traceback, for it is ours: where a library's `ValueError` can be the user's, the
    code that calls it says so with a `RevHRNetError`.

    Raises:
        SystemExit: status 1 after an error, 130 after Ctrl-C, 143 after a SIGTERM that was heeded.
    """
    # Names of classes, files and images come from elsewhere.
    with redirect_stdout(PrintableStream(sys.stdout)), redirect_stderr(PrintableStream(sys.stderr, PROGRESS_BAR)):
        _run(main)


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except RevHRNetError as error:
        _fail(error)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")
    except RunStopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def choose_device(name: str) -> str:
    """The device of an option `--device`: auto takes a GPU if there is one.

    Raises:
        RecipeError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _fail(message: object) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
