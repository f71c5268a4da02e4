"""The classifiers of a segmentation network, and its output with the loss of all of them.

The head gives the logits. Auxiliary classifiers of single streams take part in training only: deep supervision, as in PSPNet
(arXiv 1612.01105, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_segmentation import SegmentationConfig
from .high_resolution import SegmentationHead
from .losses import LossSettings, class_ids, loss_terms, weighted_sum
from .ocr import REGION_LOSS_WEIGHT, REGIONS, OcrHead

AUXILIARY = "auxiliary"


@dataclass
class TrainingOutput(SemanticSegmenterOutput):
    """The output of a training step whose loss has several parts.

    Args:
        loss_terms (`dict[str, torch.Tensor]`, *optional*):
            The value of each term before its weight; of `"auxiliary"`, the mean loss of the auxiliary classifiers; and of
            `"regions"`, the loss of OCR's soft object regions.
    """

    loss_terms: dict[str, Tensor] | None = None


class AuxiliaryHead(nn.ModuleList):
    """A 1×1 classifier for each map: (batch, channels[i], h_i, w_i) → logits (batch, num_labels, h_i, w_i)."""

    def __init__(self, channels: Sequence[int], num_labels: int):
        super().__init__(nn.Conv2d(count, num_labels, 1) for count in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [classifier(x) for classifier, x in zip(self, maps, strict=True)]


def build_head(config: SegmentationConfig, channels: int, align_corners: bool = False) -> SegmentationHead | OcrHead:
    """The head that the configuration names, of maps with so many channels in total."""
    settings = {"momentum": config.batch_norm_momentum, "align_corners": align_corners}
    if config.head == "ocr":
        return OcrHead(channels, config.num_labels, config.ocr_channels, config.ocr_key_channels, **settings)
    return SegmentationHead(channels, config.num_labels, **settings)


def auxiliary_head(config: SegmentationConfig) -> AuxiliaryHead | None:
    """The classifiers of all streams but the finest, if the configuration has an `auxiliary_loss_weight`."""
    return None if config.auxiliary_loss_weight is None else AuxiliaryHead(config.stream_channels[1:], config.num_labels)


def segmenter_output(
    model: nn.Module,
    classified: Tensor | tuple[Tensor, Tensor],
    maps: Sequence[Tensor],
    labels: Tensor | None,
    hidden_states: tuple[Tensor, ...] | None,
    pixel_share: Tensor | float | None,
) -> SemanticSegmenterOutput:
    """The output of a segmentation network, with the loss if there are labels. Only that of the logits counts outside training.

    Args:
        classified: logits, or with OCR the logits and those of its regions.
        maps: the last map of each stream, finest first.
        pixel_share: see [`loss_terms`].
    """
    logits, *regions = (classified,) if isinstance(classified, Tensor) else classified
    if labels is None:
        return SemanticSegmenterOutput(logits=logits, hidden_states=hidden_states)
    others: dict[str, tuple[float, list[Tensor]]] = {}
    if model.training and regions:
        others[REGIONS] = REGION_LOSS_WEIGHT, regions
    if model.training and model.auxiliary_head is not None:
        others[AUXILIARY] = model.config.auxiliary_loss_weight, model.auxiliary_head(maps[1:])
    loss, parts = training_loss(logits, others, labels, model.config, pixel_share)
    if not model.training or len(parts) == 1:
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=hidden_states)
    return TrainingOutput(loss=loss, logits=logits, hidden_states=hidden_states, loss_terms=parts)


def training_loss(
    logits: Tensor,
    others: dict[str, tuple[float, list[Tensor]]],
    labels: Tensor,
    config: SegmentationConfig,
    pixel_share: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the logits, plus the weighted mean of the same loss of other logits, by name.

    Returns:
        The loss, and its parts before their weights, without gradients.
    """
    settings = LossSettings.of_config(config)
    labels = class_ids(labels, logits.shape[1], settings)
    parts = loss_terms(logits, labels, settings, pixel_share)
    loss = weighted_sum(parts, settings)
    for name, (weight, several) in others.items():
        losses = [weighted_sum(loss_terms(other, labels, settings, pixel_share), settings) for other in several]
        parts[name] = sum(losses[1:], start=losses[0]) / len(losses)
        loss = loss + weight * parts[name]
    return loss, {name: part.detach() for name, part in parts.items()}
