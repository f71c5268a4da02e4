"""What the commands share: how they read a command line, where their warnings and notes go, the device they run on, and how each
ends: well, or with one line that says what was wrong, or with the traceback of our own defect."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from .deferred import when_imported
from .errors import RecipeError, RevHRNetError, RunStopped, did_you_mean
from .escape import PROGRESS_BAR, PrintableStream, ReaderEndedError

if TYPE_CHECKING:
    from .evaluation import InferenceSettings

INTERRUPTED = 130  # what a shell reports for Ctrl-C
BROKEN_PIPE = 141  # and for a program whose reader, such as `head`, has ended before it

# The number of this process among all that a launcher started, under the names that Accelerate reads.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


class ArgumentParser(argparse.ArgumentParser):
    """As argparse's, but all that is wrong with a command line is one line, and an unknown option is named with the nearest
    known option, before anything else is said to be missing. The exit status is 2, as argparse has it. A program that was started
    as `python -m MODULE` is called so."""

    def __init__(self, *args, prog: str | None = None, **settings):
        super().__init__(*args, prog=prog or _module_program(), **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        args = sys.argv[1:] if args is None else list(args)
        known = list(_options(self))
        unknown = dict.fromkeys(name for name in _long_options(args) if not self._is_known(name, known))
        if unknown:
            self.error("unknown option " + ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown))
        return super().parse_known_args(args, namespace)

    def _is_known(self, name: str, known: list[str]) -> bool:
        return name in known or (self.allow_abbrev and any(option.startswith(name) for option in known))

    def error(self, message: str):
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # --data_dir/--data-dir: one spelling is enough
        self.exit(2, f"error: {message} (options: {self.prog} --help)\n")


def _module_program() -> str | None:
    """`python -m MODULE` if the running program was started so, else None: argparse then takes the file's name."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is None or sys.argv[0] != getattr(main, "__file__", None):
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of a parser and of its commands."""
    for action in parser._actions:  # argparse has no public list of them
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)


def _long_options(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "--":  # what follows are no options
            return
        if argument.startswith("--"):
            yield argument.partition("=")[0]


def run(main: Callable[[], None]) -> None:
    """Call a command's `main`; print the user's errors as `error: …` on stderr and exit with status 1.

    The user's are our own errors, and those of the operating system about a named file (no permission, disk full, not
    a folder). Anything else keeps its traceback, for it is ours: where a library's `ValueError` can be the user's, the
    code that calls it says so with a `RevHRNetError`.

    Raises:
        SystemExit: status 1 after an error, 130 after Ctrl-C, 143 after a SIGTERM that was heeded, 141 if the program that
            reads the output has ended.
    """
    # Names of classes, files and images come from elsewhere.
    streams = redirect_stdout(PrintableStream(sys.stdout)), redirect_stderr(PrintableStream(sys.stderr, PROGRESS_BAR))
    with _quiet_libraries(), streams[0], streams[1], _messages():
        _run(main)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Transformers shows its progress bars on terminals only."""
    is_terminal, undo = sys.stderr.isatty(), []

    def hide_bars() -> None:
        from transformers.utils import logging as transformers_logging

        if not undo and not is_terminal and transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            undo.append(transformers_logging.enable_progress_bar)

    with when_imported("transformers", hide_bars):
        try:
            yield
        finally:
            for enable in undo:
                enable()


@contextmanager
def _messages() -> Iterator[None]:
    """The package's log goes to stderr: one line each, `warning: …` or `note: …` (level INFO), from the main process only.

    Without it, as in a program that uses the package as a library, Python prints warnings as they are and no notes.
    """
    logger = logging.getLogger(__package__)
    level, propagate = logger.level, logger.propagate
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MessageLine())
    handler.addFilter(lambda record: all(int(os.environ.get(name) or 0) == 0 for name in RANKS))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # to handlers of the root logger, which would print them again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _MessageLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        kind = "note" if record.levelno < logging.WARNING else record.levelname.lower()
        return f"{kind}: {record.getMessage()}"


def _run(main: Callable[[], None]) -> None:
    try:
        _call_and_flush(main)
    except RevHRNetError as error:
        _fail(error)
    except ReaderEndedError:
        sys.exit(BROKEN_PIPE)
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
    finally:
        _leave_ended_readers()


def _call_and_flush(main: Callable[[], None]) -> None:
    """Calls `main` and flushes what it has printed; Python would flush at the end, where no error can be caught."""
    try:
        main()
    except SystemExit:  # of --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _leave_ended_readers() -> None:
    """Keeps Python, which flushes at the end what it could not write, from another error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ReaderEndedError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--trust_remote_code`, which every command that loads a checkpoint has."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python files of a checkpoint whose architecture is neither this package's nor Transformers' own",
    )


def add_compile_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--compile`; see `load_for_inference`."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network by torch.compile, with dynamic shapes: the first image takes minutes, and so does the first "
        "that is much smaller. For CPUs it needs a C++ compiler, for GPUs Triton",
    )


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the settings of inference as options of a command."""
    group = parser.add_argument_group("inference", "by default the network sees each image once, whole and at its own size")
    group.add_argument(
        "--window",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="slide a window of this size over the image; it needs less memory, and the network sees the size it was trained on",
    )
    group.add_argument(
        "--stride",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="step from window to window (default: 2/3 of the window)",
    )
    group.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="run on the image resized by each of these factors (default: 1)"
    )
    group.add_argument("--flip", action="store_true", help="run on the mirrored image as well")
    group.add_argument(
        "--average",
        choices=("softmax", "exp"),
        default="softmax",
        help="average several results for a pixel as probabilities, or as exp(logits) like the official HRNet (default: "
        "%(default)s)",
    )
    group.add_argument("--batch_size", type=int, default=1, help="windows in one forward pass (default: %(default)s)")


def inference_settings(arguments: argparse.Namespace) -> "InferenceSettings":
    """The settings given by the options of `add_inference_arguments`."""
    from .evaluation.settings import InferenceSettings  # after parsing, so that --help answers at once

    return InferenceSettings(
        window=arguments.window and tuple(arguments.window),
        stride=arguments.stride and tuple(arguments.stride),
        scales=tuple(arguments.scales),
        flip=arguments.flip,
        average=arguments.average,
        batch_size=arguments.batch_size,
    )


def add_column_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds the options that say where a dataset of the Hub has its images and label maps, to a parser or a group."""
    parser.add_argument("--image_column", help="for hub, the column of images (default: image)")
    parser.add_argument("--label_column", help="for hub, the column of label maps (default: label_map)")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--device`; see `choose_device`."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs; auto takes a GPU if there is one (default: %(default)s)",
    )


def choose_device(name: str, option: str = "--device") -> str:
    """The device of an option such as `--device`: auto takes a GPU if there is one.

    Raises:
        RecipeError: a GPU is asked for and there is none.
    """
    import torch  # which --help does without

    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"{option} cuda: PyTorch sees no GPU here; use {option} cpu" + " or auto" * (option == "--device"))
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _fail(message: object) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
