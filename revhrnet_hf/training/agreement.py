"""How the processes of a run stop together: all with one error, or all after the same step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .. import errors
from ..errors import RevHRNetError, TrainingError
from .signals import StopSignals


class SharedErrors:
    """Lets an error of one process end all of them; otherwise the others would wait for it until the timeout.

    Work that one process does while the others wait, or that each does for itself, goes into `together`. Where processes exchange
    messages, it goes into `hold`: a process with an error continues in step with the others until all of them come to
    `raise_together`. With one process errors are raised at once.

    Attributes:
        held: this process's first error that the others do not know yet.
    """

    def __init__(self, accelerator: Accelerator, timeout: float):
        self.accelerator, self.timeout = accelerator, timeout
        self.held: Exception | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes == 1:
                raise
            self.held = self.held or error

    @contextmanager
    def together(self) -> Iterator[None]:
        """As `hold` and `raise_together` after it; all processes must come here."""
        with self.hold():
            yield
        self.raise_together()

    def raise_together(self) -> None:
        """Wait for all processes, then raise this one's error, or else that of the first process that has one."""
        if self.accelerator.num_processes == 1:
            return
        own, self.held = self.held, None
        try:
            told = gather_object([None if own is None else _told(own)])
        except RuntimeError as error:
            raise own or lost_process(error, self.accelerator, self.timeout) or error from error
        if own is not None:
            raise own
        for process, what in enumerate(told):
            if what is not None:
                kind, message = what
                raise getattr(errors, kind, TrainingError)(f"Process {process}: {message}")


def _told(error: Exception) -> tuple[str, str]:
    """The name of an error's class, if it is one that the user can mend, and its message."""
    if isinstance(error, RevHRNetError):
        return type(error).__name__, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return TrainingError.__name__, f"{error.filename}: {error.strerror}"
    return TrainingError.__name__, f"{type(error).__name__}: {error}"


def lost_process(error: RuntimeError, accelerator: Accelerator, timeout: float) -> TrainingError | None:
    """The error to raise where another process did not answer a message; None for any other error."""
    said = str(error)
    if accelerator.num_processes == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in said):
        return None
    first_line = said.partition("\n")[0].rstrip(" .")
    return TrainingError(
        f"Process {accelerator.process_index} got no answer from another one, which has ended or hangs (waits end after "
        f"{timeout:.0f} s): {first_line}. Resume with --resume"
    )


class EarlyCopy:
    """A number on the device, copied to the host as soon as it is computed.

    `item()` waits for this number alone, where `tensor.item()` would wait for all that was given to the device after it.
    """

    def __init__(self, number: torch.Tensor):
        self._number, self._arrival = number, None
        if number.device.type == "cuda":
            self._number = torch.empty_like(number, device="cpu", pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def item(self) -> float:
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._number.item()


class SharedStop:
    """Lets all processes stop after the same step, whichever of them has had a signal or an error.

    Args:
        signals: of this process.
        errors: of this process and the others.
    """

    def __init__(self, signals: StopSignals, errors: SharedErrors):
        self.signals, self.errors, self.accelerator = signals, errors, errors.accelerator
        # How many processes had to stop: told with the losses of the last step, and of the step before.
        self._last: EarlyCopy | None = None
        self._before: EarlyCopy | None = None

    @property
    def here(self) -> bool:
        """Whether this process has had a signal, or an error that the others do not know yet."""
        return self.signals.received is not None or self.errors.held is not None

    def sum_losses(self, losses: torch.Tensor) -> torch.Tensor:
        """The sum of a step's losses over the processes, which in the same message tell each other whether they have to stop."""
        if self.accelerator.num_processes == 1:
            return losses
        message = torch.cat([losses, losses.new_full((1,), float(self.here))])
        message = self.accelerator.reduce(message, "sum")
        self._last, self._before = EarlyCopy(message[-1]), self._last
        return message[:-1]

    @property
    def after_this_step(self) -> bool:
        """Whether the run is to stop now; all processes say the same.

        With several processes, this is what they told each other one step ago, so that nobody waits for the device.
        """
        if self.accelerator.num_processes == 1:
            return self.signals.received is not None
        return self._before is not None and self._before.item() > 0

    def anywhere(self) -> bool:
        """Whether any process has to stop by now; waits for the others."""
        flag = torch.tensor(float(self.here), device=self.accelerator.device)
        return self.accelerator.reduce(flag, "sum").item() > 0
