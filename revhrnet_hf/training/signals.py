"""Signals that ask a run to stop: clusters send SIGTERM, people press Ctrl-C (SIGINT)."""

import ctypes
import os
import signal
import sys
import threading

from ..errors import RunStopped

PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


class StopSignals:
    """A context in which SIGINT and SIGTERM are only noted; the run looks for them where it can stop.

    So no signal interrupts a step or the saving of a checkpoint. A second Ctrl-C interrupts at once, unless there are several
    processes: launchers such as torchrun pass on a signal that the terminal has sent to all already. `accelerate launch` of one
    process passes nothing on, so its end counts as a SIGTERM.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self, num_processes: int = 1):
        self.num_processes = num_processes
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        # Python allows handlers in the main thread only, which gets the signals.
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
            _signal_at_end_of_launcher(signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            _signal_at_end_of_launcher(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            return  # in a forked worker, which the training process will end
        if self.received is not None:
            if number == signal.SIGINT and self.num_processes == 1:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        again = "; Ctrl-C again stops at once" if self.num_processes == 1 else ""
        os.write(
            2, f"\n{self.received.name}: stopping as soon as everything is saved{again}\n".encode()
        )  # print may not be re-entered

    def stopped(self, message: str) -> RunStopped:
        """The error that ends the run; where only another process has had a signal, as if by SIGTERM."""
        number = self.received or signal.SIGTERM
        return RunStopped(f"{number.name}: {message}", 128 + number)


def _signal_at_end_of_launcher(number: int) -> None:
    """Send this process a signal (0: none) when `accelerate launch`, if it has started this process, ends first."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number))
