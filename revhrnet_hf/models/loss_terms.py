"""The terms of the loss that are computed from sums over pixels: cross-entropy, focal, Dice and Tversky."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .loss_bands import Target


@dataclass(frozen=True)
class CrossEntropy:
    """The sum of the pixels' cross-entropies, with the weights of their classes.

    Args:
        label_smoothing: share ε of the truth that is spread over all classes, as in `torch.nn.CrossEntropyLoss`.
        boundary_relaxation: a pixel may be of any class in its 3×3 neighbourhood; its cross-entropy is then −log of the sum of
            their probabilities (arXiv 1812.01593, equation 3). Ignored neighbours add no class.
    """

    label_smoothing: float = 0.0
    boundary_relaxation: bool = False

    def size(self, num_labels: int) -> int:
        return 1

    def sums(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        labels, settings = target.hard[rows], {"weight": target.weight, "ignore_index": target.ignore_index, "reduction": "sum"}
        if not self.boundary_relaxation:
            return F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing, **settings).reshape(1)
        found = (1 - self.label_smoothing) * self._relaxed(scores, target, rows)
        if self.label_smoothing:  # with the whole truth spread, torch's is the part of the loss that does not depend on it
            found = found + self.label_smoothing * F.cross_entropy(scores, labels, label_smoothing=1.0, **settings)
        return found.reshape(1)

    def _relaxed(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        labels = target.hard[rows]
        labelled = labels != target.ignore_index
        own = labels.masked_fill(~labelled, 0)
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for classes in neighbours(target.labels, rows):
            classes = classes.where(classes != target.ignore_index, own)
            allowed = allowed.scatter(1, classes.unsqueeze(1), True)
        entropy = scores.logsumexp(1) - scores.masked_fill(~allowed, -torch.inf).logsumexp(1)
        return _weighted(entropy, own, labelled, target).sum()


@dataclass(frozen=True)
class Focal:
    """The sum of the pixels' cross-entropies, each times (1 − p)^γ with p the probability of its class (arXiv 1708.02002)."""

    gamma: float = 2.0

    def size(self, num_labels: int) -> int:
        return 1

    def sums(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        labels = target.labels[rows]
        labelled = labels != target.ignore_index
        entropy = F.cross_entropy(scores, labels, ignore_index=target.ignore_index, reduction="none")
        # Not 0: there, the derivative of a power below 1 is infinite.
        other = (-torch.expm1(-entropy)).clamp(min=torch.finfo(entropy.dtype).tiny)
        own = labels.masked_fill(~labelled, 0)
        return _weighted(other**self.gamma * entropy, own, labelled, target).sum().reshape(1)


@dataclass(frozen=True)
class ClassSums:
    """For each class the sums over the labelled pixels from which Dice and Tversky are computed, one after another:

    the probabilities of the class, the same at the pixels of the class, and the number of these pixels.
    """

    def size(self, num_labels: int) -> int:
        return 3 * num_labels

    def sums(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        labels = target.labels[rows].unsqueeze(1)
        labelled = labels != target.ignore_index
        probability = scores.softmax(1)
        is_class = (labels == torch.arange(scores.shape[1], device=scores.device).reshape(-1, 1, 1)) & labelled
        predicted = probability * labelled
        parts = predicted, probability * is_class, is_class.to(scores.dtype)
        return torch.cat([part.sum((0, 2, 3)) for part in parts])


def tversky(sums: Tensor, alpha: float, beta: float) -> Tensor:
    """1 − the Tversky index, TP / (TP + α FP + β FN), in the mean over the classes that occur (arXiv 1706.05721).

    With α = β = ½ it is the Dice loss (arXiv 1606.04797, with the sum of probabilities in the denominator, not of their squares).
    Zero where no pixel is labelled.

    Args:
        sums: of [`ClassSums`], for all pixels.
    """
    predicted, correct, truth = sums.chunk(3)
    is_present = truth > 0
    union = correct + alpha * (predicted - correct) + beta * (truth - correct)
    losses = 1 - correct / union.where(is_present, torch.ones_like(union))
    return (losses * is_present).sum() / is_present.sum().clamp(min=1)


def neighbours(labels: Tensor, rows: tuple[slice, ...]) -> list[Tensor]:
    """The labels of the nine pixels around each pixel, each like `labels[rows]`; beyond a border, of the last pixel before it."""
    image, band = rows
    labels = labels[image]
    height, width = labels.shape[-2:]
    start, stop, _ = band.indices(height)
    row = torch.arange(start, stop, device=labels.device)
    column = torch.arange(width, device=labels.device)
    shifted = [labels.index_select(-2, (row + step).clamp(0, height - 1)) for step in (-1, 0, 1)]
    return [some.index_select(-1, (column + step).clamp(0, width - 1)) for some in shifted for step in (-1, 0, 1)]


def _weighted(values: Tensor, classes: Tensor, labelled: Tensor, target: Target) -> Tensor:
    """(n, height, width) values times the weights of their classes, 0 where nothing is labelled."""
    if target.weight is not None:
        values = values * target.weight[classes]
    return values.where(labelled, torch.zeros_like(values))
