"""Signals that ask a run to stop: clusters send SIGTERM, people press Ctrl-C (SIGINT)."""

import os
import signal
import threading

from ..errors import RunStopped


class StopSignals:
    """While this context is entered, SIGINT and SIGTERM are noted only; the run looks where it can stop.

    So no signal falls into the middle of a step or of saving. A second Ctrl-C interrupts at once, unless there are several
    processes: launchers such as torchrun pass on what the terminal has sent already.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self, num_processes: int = 1):
        self.num_processes = num_processes
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        # Elsewhere Python allows no handlers, and the signals are the main thread's.
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:
            return  # a forked worker, which the training process will end
        if self.received is not None:
            if number == signal.SIGINT and self.num_processes == 1:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number)
        again = "; Ctrl-C again stops at once" if self.num_processes == 1 else ""
        os.write(2, f"\n{self.received.name}: stopping as soon as all is saved{again}\n".encode())  # print may not be re-entered

    def stopped(self, message: str) -> RunStopped:
        """The error that ends the run; where only another process has had a signal, as if by SIGTERM."""
        number = self.received or signal.SIGTERM
        return RunStopped(f"{number.name}: {message}", 128 + number)
