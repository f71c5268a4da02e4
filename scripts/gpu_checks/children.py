"""Functions in processes of their own: Accelerate settles a process's precision for good, and a run is to be killed.

The processes are forked from a server that has imported the libraries and has never touched a GPU.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable

from .record import NotPossible

PRELOADED = ["revhrnet_hf.training.chain", "revhrnet_hf.synthetic", "gpu_checks.stages"]


class ChildError(RuntimeError):
    """A function failed in its process; the message ends with the line that says why."""


class Child:
    """`function(*arguments)`, which is of a module, in a process of its own; ended at the latest with the `with` block."""

    def __init__(self, function: Callable, *arguments):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_send, args=(sender, multiprocessing.get_start_method(), function, arguments))
        self.process.start()
        sender.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.join()

    def result(self):
        """Waits for the function's result.

        Raises:
            ChildError, NotPossible: as the function did.
        """
        try:
            kind, value = self.receiver.recv()
        except EOFError:
            self.process.join()
            raise ChildError(f"the process ended with status {self.process.exitcode} before its result") from None
        self.process.join()
        if kind == "not possible":
            raise NotPossible(value)
        if kind == "error":
            raise ChildError(value)
        return value


def _send(sender, start_method: str, function: Callable, arguments: tuple) -> None:
    # The loader's workers are started as in any program; else each process would begin a server of its own, with all its imports.
    multiprocessing.set_start_method(start_method, force=True)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the prints of training would stand between two results; an error comes with its traceback
        os.dup2(silence, stream)
    try:
        sender.send(("result", function(*arguments)))
    except NotPossible as error:
        sender.send(("not possible", str(error)))
    except Exception:  # whatever it is, `result` raises it in the parent process, with this traceback
        sender.send(("error", traceback.format_exc()))


def in_child(function: Callable, *arguments):
    """The result of `function(*arguments)` from a process of its own."""
    with Child(function, *arguments) as child:
        return child.result()
