"""The exponential moving average of a network's weights."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """torch's average, of trained weights and BatchNorms' statistics, at less cost for each step.

    torch walks through the network and asks the device for the number of updates each time. Here tensors are looked up once,
    frozen weights stay as they were copied, and the number of updates is kept on the CPU.

    Args:
        model: the network; `module` is its copy, on `device`.
        decay: the share of the average that an update keeps. At the start it keeps less, (1 + updates) / (10 + updates), and at
            the first update nothing, so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device):
        super().__init__(model)
        self.module.to(device)
        self.decay = decay
        self._floats: tuple[list[Tensor], list[Tensor]] | None = None  # averaged, current
        self._counts: tuple[list[Tensor], list[Tensor]] = ([], [])  # of batches, by BatchNorms

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """One update; `model` must be the same network each time."""
        if self._floats is None:
            self._look_up(model)
        updates = int(self.n_averaged) + 1
        decay = 0.0 if updates == 1 else min(self.decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(*self._floats, updates)
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)  # one kernel for all, on a GPU
        self.n_averaged += 1

    def _look_up(self, model: nn.Module) -> None:
        pairs = list(zip(self.module.buffers(), model.buffers(), strict=True))
        pairs += [pair for pair in zip(self.module.parameters(), model.parameters(), strict=True) if pair[1].requires_grad]
        floats = [(averaged.detach(), current.detach()) for averaged, current in pairs if current.is_floating_point()]
        self._floats = [averaged for averaged, _ in floats], [current for _, current in floats]
        counts = [pair for pair in pairs if not pair[1].is_floating_point()]
        self._counts = [averaged for averaged, _ in counts], [current for _, current in counts]
