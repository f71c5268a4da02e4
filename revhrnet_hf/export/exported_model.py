"""An exported network in the place of a Transformers model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput


class ExportedModel(nn.Module):
    """A network that another library runs on the CPU, used like a Transformers model to compute scores and label maps.

    Args:
        run: `pixel_values` (batch, 3, height, width) float32 → logits.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]):
        super().__init__()
        self.run = run
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells device and dtype

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        return SemanticSegmenterOutput(logits=self.run(pixel_values))
