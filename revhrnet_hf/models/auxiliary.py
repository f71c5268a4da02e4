"""Classifiers of single streams, which only training uses: deep supervision, as in PSPNet (arXiv 1612.01105, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_segmentation import SegmentationConfig
from .losses import LossSettings, loss_terms, weighted_sum

AUXILIARY = "auxiliary"


@dataclass
class TrainingOutput(SemanticSegmenterOutput):
    """The output of a training step whose loss has several parts.

    Args:
        loss_terms (`dict[str, torch.Tensor]`, *optional*):
            The value of each term before its weight, and of `"auxiliary"`, the mean loss of the auxiliary classifiers.
    """

    loss_terms: dict[str, Tensor] | None = None


class AuxiliaryHead(nn.ModuleList):
    """A 1×1 classifier for each map: (batch, channels[i], h_i, w_i) → logits (batch, num_labels, h_i, w_i)."""

    def __init__(self, channels: Sequence[int], num_labels: int):
        super().__init__(nn.Conv2d(count, num_labels, 1) for count in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [classifier(x) for classifier, x in zip(self, maps, strict=True)]


def auxiliary_head(config: SegmentationConfig) -> AuxiliaryHead | None:
    """The classifiers of all streams but the finest, if the configuration has an `auxiliary_loss_weight`."""
    return None if config.auxiliary_loss_weight is None else AuxiliaryHead(config.stream_channels[1:], config.num_labels)


def segmenter_output(
    model: nn.Module,
    logits: Tensor,
    maps: Sequence[Tensor],
    labels: Tensor | None,
    hidden_states: tuple[Tensor, ...] | None,
    pixel_share: Tensor | float | None,
) -> SemanticSegmenterOutput:
    """The output of a segmentation network, with the loss if there are labels. Auxiliary classifiers count in training mode only.

    Args:
        maps: the last map of each stream, finest first.
        pixel_share: see [`loss_terms`].
    """
    if labels is None:
        return SemanticSegmenterOutput(logits=logits, hidden_states=hidden_states)
    uses_auxiliary = model.training and model.auxiliary_head is not None
    others = model.auxiliary_head(maps[1:]) if uses_auxiliary else []
    loss, parts = training_loss(logits, others, labels, model.config, pixel_share)
    if not model.training or len(parts) == 1:
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=hidden_states)
    return TrainingOutput(loss=loss, logits=logits, hidden_states=hidden_states, loss_terms=parts)


def training_loss(
    logits: Tensor,
    auxiliary_logits: Sequence[Tensor],
    labels: Tensor,
    config: SegmentationConfig,
    pixel_share: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the logits, plus `auxiliary_loss_weight` times the mean of the same loss of the auxiliary logits.

    Returns:
        The loss, and its parts before their weights, without gradients.
    """
    settings = LossSettings.of_config(config)
    parts = loss_terms(logits, labels, settings, pixel_share)
    loss = weighted_sum(parts, settings)
    if auxiliary_logits:
        others = [weighted_sum(loss_terms(other, labels, settings, pixel_share), settings) for other in auxiliary_logits]
        parts[AUXILIARY] = sum(others[1:], start=others[0]) / len(others)
        loss = loss + config.auxiliary_loss_weight * parts[AUXILIARY]
    return loss, {name: part.detach() for name, part in parts.items()}
