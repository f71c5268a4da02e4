"""How far a stage is, and how it is doing: the progress bar, and the numbers of a log line of training."""

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..errors import DivergedError
from .data import TrainingData
from .learner import Learner
from .optimisation import learning_rate


def progress_bar(accelerator: Accelerator, total: int, title: str, unit: str, **settings: Any) -> tqdm:
    """A bar on standard error, if that is a terminal, by one process of each machine."""
    disable = None if accelerator.is_local_main_process else True  # None: where there is no terminal
    return tqdm(total=total, desc=title, unit=unit, disable=disable, **settings)


class Meter:
    """The losses and the speed of training since the last log line.

    Losses stay on the device until a line is due, so that the host does not wait for the device at each step.

    Attributes:
        losses: of each step, over all processes: (passes,), what each forward pass adds to the step's loss.
    """

    def __init__(self, data: TrainingData, learner: Learner):
        self.data, self.learner = data, learner
        self.losses: list[torch.Tensor] = []
        self.start(time.perf_counter())

    def start(self, now: float) -> None:
        """Measure speed from `now` on (`time.perf_counter()`), as at the start of an epoch."""
        self._started, self._steps = now, 0
        self.data.seconds_waited = 0.0

    def restore(self, losses: list[list[float]]) -> None:
        """Take over, in a resumed run, the losses since the last log line."""
        self.losses = list(torch.tensor(losses, device=self.learner.accelerator.device))

    def add(self, losses: torch.Tensor) -> None:
        self.losses.append(losses)
        self._steps += 1

    def line(self, step: int, epoch: int, progress: tqdm) -> dict[str, Any]:
        """The numbers of a log line after `step` steps, some also for the bar; the next line begins here.

        This is where the host waits for the device. A loss that is not finite is an error, as in `checked_losses`.
        """
        now = time.perf_counter()
        numbers: dict[str, Any] = {"loss": self._mean_loss(step, epoch), "learning_rate": self.learner.learning_rate}
        if self.learner.grad_norm is not None:
            numbers["grad_norm"] = self.learner.grad_norm.item()
        if terms := self.learner.mean_loss_terms():
            numbers["loss_terms"] = terms
        numbers["images_per_second"] = self.data.recipe.batch_size * self._steps / (now - self._started)
        numbers["data_seconds"] = self.data.seconds_waited
        self.start(now)
        loss, rate, speed = (numbers[name] for name in ("loss", "learning_rate", "images_per_second"))
        progress.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.2e}", images_per_s=f"{speed:.1f}")
        return numbers

    def _mean_loss(self, step: int, epoch: int) -> float:
        self.checked_losses(step, epoch)
        mean = torch.stack(self.losses).sum(1).mean().item()
        self.losses = []
        return mean

    def checked_losses(self, step: int, epoch: int) -> list[list[float]]:
        """The losses since the last log line, after `step` steps, in `epoch` (from 0).

        Raises:
            DivergedError: a loss is not finite; the message names step and images.
        """
        losses = torch.stack(self.losses).tolist() if self.losses else []
        for number, step_losses in enumerate(losses, step - len(losses)):
            for forward_pass, loss in enumerate(step_losses):
                if not math.isfinite(loss):
                    raise self._diverged(number, epoch, forward_pass, loss)
        return losses

    def _diverged(self, step: int, epoch: int, forward_pass: int, loss: float) -> DivergedError:
        batches, recipe, total = self.data.batches, self.data.recipe, self.learner.total_steps
        ids = ", ".join(self.data.drawn_image_ids(batches.images(step - epoch * batches.steps, forward_pass)))
        return DivergedError(
            f"The loss is {loss} in step {step + 1} of {total} (epoch {epoch + 1}, learning rate "
            f"{learning_rate(recipe, step, total):.3g}), on the images {ids}. What was saved before is whole. Lower "
            f"learning_rate, or use another precision than {recipe.precision}"
        )
