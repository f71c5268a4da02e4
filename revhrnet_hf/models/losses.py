"""Cross-entropy at label resolution: weighted, and with online hard example mining (OHEM) as HRNet trains Cityscapes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_segmentation import SegmentationConfig


def configured_loss(logits: Tensor, labels: Tensor | None, config: SegmentationConfig) -> Tensor | None:
    """[`segmentation_loss`] with the settings of `config`; no loss without labels."""
    if labels is None:
        return None
    return segmentation_loss(
        logits,
        labels,
        ignore_index=config.semantic_loss_ignore_index,
        class_weights=config.semantic_loss_class_weights,
        ohem_threshold=config.semantic_loss_ohem_threshold,
        ohem_min_kept=config.semantic_loss_ohem_min_kept,
    )


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: list[float] | None = None,
    ohem_threshold: float | None = None,
    ohem_min_kept: int = 131_072,
) -> Tensor:
    """Mean cross-entropy over the labelled pixels, taken at the labels' resolution.

    Args:
        logits: (batch, num_labels, h, w), any resolution; brought to the labels' size bilinearly, in float32.
        labels: int64 (batch, height, width), class ids or `ignore_index`.
        class_weights: one factor a class; the mean is then the weighted mean, as `torch.nn.CrossEntropyLoss` has it.
        ohem_threshold: with a value, only pixels whose true class has a lower probability than this count …
        ohem_min_kept: … but at least this many of the hardest, over the whole batch. With OHEM the mean is over the number of
            kept pixels, weighted or not (official HRNet, `OhemCrossEntropy`).

    Returns:
        A scalar. Zero (with zero gradients) where no pixel is labelled; NaN logits give a NaN loss.
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be (batch, height, width), got {tuple(labels.shape)}")
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
    if ohem_threshold is not None:
        return _ohem_cross_entropy(logits, labels, ignore_index, weight, ohem_threshold, ohem_min_kept)
    total = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="sum")
    count = labelled_weight(labels, ignore_index, class_weights)
    # torch's own mean is 0/0 = NaN for a batch of ignored pixels only, which would end a run over one odd crop.
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def labelled_weight(labels: Tensor, ignore_index: int = 255, class_weights: list[float] | None = None) -> Tensor:
    """What the mean of [`segmentation_loss`] without OHEM divides by: the labelled pixels, or the sum of their classes' weights.

    Means of several batches, weighted by it, make the mean over all of them.
    """
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum()
    weight = torch.tensor(class_weights, dtype=torch.float32, device=labels.device)
    return (weight[labels.masked_fill(~labelled, 0)] * labelled).sum()


def _ohem_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, weight: Tensor | None, threshold: float, min_kept: int
) -> Tensor:
    losses = F.cross_entropy(logits, labels, weight=weight, ignore_index=ignore_index, reduction="none")
    labelled = labels != ignore_index
    with torch.no_grad():
        true_class = labels.masked_fill(~labelled, 0).unsqueeze(1)
        probability = logits.softmax(dim=1).gather(1, true_class).squeeze(1)[labelled]
        if probability.numel() > min_kept:
            easy = probability >= probability.kthvalue(min_kept + 1).values.clamp(min=threshold)
        else:
            easy = torch.zeros_like(probability, dtype=torch.bool)
    kept = losses[labelled][~easy]  # NaN is not easy: it stays
    return kept.sum() / max(kept.numel(), 1)
