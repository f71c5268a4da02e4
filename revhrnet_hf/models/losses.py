"""The loss of the segmentation networks: a weighted sum of terms, taken at label resolution.

Cross-entropy, weighted and with online hard example mining (OHEM) as HRNet trains Cityscapes, with label smoothing and boundary
relaxation; focal, Dice, Tversky and Lovász-softmax. Sums over pixels are computed in bands (loss_bands.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from .configuration_segmentation import CROSS_ENTROPY, DICE, FOCAL, LOVASZ, TVERSKY, SegmentationConfig
from .loss_bands import PixelTerm, Target, bands, pixel_sums, upsampled
from .loss_lovasz import lovasz_softmax
from .loss_terms import ClassSums, CrossEntropy, Focal, tversky
from .upsampling import moved, working_dtype


@dataclass(frozen=True)
class LossSettings:
    """The settings of the loss; they are the fields `semantic_loss_…` of [`SegmentationConfig`]."""

    ignore_index: int = 255
    class_weights: list[float] | None = None
    ohem_threshold: float | None = None
    ohem_min_kept: int = 131_072
    terms: Mapping[str, float] | None = None
    label_smoothing: float = 0.0
    boundary_relaxation: bool = False
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    tversky_beta: float = 0.7

    @classmethod
    def of_config(cls, config: SegmentationConfig) -> Self:
        return cls(**{name: getattr(config, f"semantic_loss_{name}") for name in SETTINGS})

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {CROSS_ENTROPY: 1.0} if self.terms is None else dict(self.terms)

    def is_pixel_mean(self, name: str) -> bool:
        """Whether a term is a mean over all labelled pixels; OHEM's is one over the pixels that each batch mines for itself."""
        return name == FOCAL or (name == CROSS_ENTROPY and self.ohem_threshold is None)

    @property
    def has_pixel_means(self) -> bool:
        return any(map(self.is_pixel_mean, self.weights))


SETTINGS = tuple(field.name for field in fields(LossSettings))  # not in a function: torch.compile does not know `fields`

# Terms that are sums over pixels, by name: the sums that they need.
PIXEL_SUMS = {
    CROSS_ENTROPY: lambda settings: CrossEntropy(settings.label_smoothing, settings.boundary_relaxation),
    FOCAL: lambda settings: Focal(settings.focal_gamma),
    DICE: lambda settings: ClassSums(),
    TVERSKY: lambda settings: ClassSums(),
}


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: list[float] | None = None,
    ohem_threshold: float | None = None,
    ohem_min_kept: int = 131_072,
    pixel_share: Tensor | float | None = None,
    **settings,
) -> Tensor:
    """The weighted sum of the terms; by default the mean cross-entropy over the labelled pixels, at the labels' resolution.

    Args:
        logits: (batch, num_labels, h, w), any resolution; they are resized to the labels' size bilinearly, in float32
            (or in float64 if they are float64).
        labels: int64 (batch, height, width), class ids or `ignore_index`.
        class_weights: one factor for each class, in cross-entropy and focal; the mean is then the weighted mean, as in
            `torch.nn.CrossEntropyLoss`.
        ohem_threshold: if given, only pixels whose true class has a lower probability than this count in the cross-entropy …
        ohem_min_kept: … but at least this number of the hardest pixels of the whole batch. With OHEM the sum is divided by the
            number of kept pixels, with and without class weights (as in the official HRNet's `OhemCrossEntropy`).
        pixel_share: see [`loss_terms`].
        settings: the other fields of [`LossSettings`].

    Returns:
        A scalar. Zero (with zero gradients) where no pixel is labelled; NaN logits give a NaN loss.
    """
    given = LossSettings(ignore_index, class_weights, ohem_threshold, ohem_min_kept, **settings)
    return weighted_sum(loss_terms(logits, labels, given, pixel_share), given)


def weighted_sum(terms: Mapping[str, Tensor], settings: LossSettings) -> Tensor:
    """The loss, from the values of its terms."""
    weights = settings.weights
    first, *others = (value if weights[name] == 1 else weights[name] * value for name, value in terms.items())
    return sum(others, start=first)


def loss_terms(
    logits: Tensor, labels: Tensor, settings: LossSettings, pixel_share: Tensor | float | None = None
) -> dict[str, Tensor]:
    """The value of each term, before its weight.

    Args:
        pixel_share: factor for means over pixels (cross-entropy without OHEM, and focal): with a batch's share of the labelled
            pixels of a step, times the number of batches, the mean over the batches is the mean over all pixels. Means over
            classes, and OHEM's, belong to their batch.
    """
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(
            f"labels must be (batch, height, width), one map for each of the {len(logits)} images, got {tuple(labels.shape)}"
        )
    ignore_index, names = settings.ignore_index, list(settings.weights)
    hard = labels
    if settings.ohem_threshold is not None:
        hard = _ignore_easy_pixels(logits, labels, ignore_index, settings.ohem_threshold, settings.ohem_min_kept)
    weight = _on_device(settings.class_weights, working_dtype(logits.dtype), logits.device)
    sums = _sums(names, logits, Target(labels, hard, weight, ignore_index), settings)
    values = {name: _value(name, sums, logits, labels, hard, settings) for name in names}
    if pixel_share is None:
        return values
    return {name: value * pixel_share if settings.is_pixel_mean(name) else value for name, value in values.items()}


def _value(name: str, sums: dict[str, Tensor], logits: Tensor, labels: Tensor, hard: Tensor, settings: LossSettings) -> Tensor:
    if name == LOVASZ:
        return lovasz_softmax(logits, labels, settings.ignore_index)
    if name == TVERSKY:
        return tversky(sums[name], settings.tversky_alpha, settings.tversky_beta)
    if name == DICE:
        return tversky(sums[name], 0.5, 0.5)
    if settings.is_pixel_mean(name):
        count = labelled_weight(labels, settings.ignore_index, settings.class_weights)
    else:
        count = labelled_weight(hard, settings.ignore_index)
    # If all pixels of a batch are ignored, torch's own mean is 0/0 = NaN. One such crop would end a run.
    return sums[name][0] / count.clamp(min=torch.finfo(torch.float32).tiny)


def _sums(names: list[str], logits: Tensor, target: Target, settings: LossSettings) -> dict[str, Tensor]:
    """Each term's sums over pixels; terms that need the same have them from one computation."""
    needed: dict[str, PixelTerm] = {name: PIXEL_SUMS[name](settings) for name in names if name in PIXEL_SUMS}
    if not needed:
        return {}
    kinds = tuple(dict.fromkeys(needed.values()))
    found = dict(zip(kinds, pixel_sums(kinds, logits, target), strict=True))
    return {name: found[kind] for name, kind in needed.items()}


def labelled_weight(labels: Tensor, ignore_index: int = 255, class_weights: list[float] | None = None) -> Tensor:
    """The divisor of the mean in [`segmentation_loss`] without OHEM: the number of labelled pixels, or the sum of their weights.

    The mean over several batches is the mean of their losses, weighted by this number.
    """
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum()
    weight = _on_device(class_weights, torch.float32, labels.device)
    return (weight[labels.masked_fill(~labelled, 0)] * labelled).sum()


def _on_device(weights: list[float] | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    return None if weights is None else moved(torch.tensor(weights, dtype=dtype, device="cpu"), device)


@torch.no_grad()
def _ignore_easy_pixels(logits: Tensor, labels: Tensor, ignore_index: int, threshold: float, min_kept: int) -> Tensor:
    """The labels with `ignore_index` at the pixels that OHEM does not use.

    Nothing depends on the number of labelled pixels but values, so that the host need not wait for the device: among the
    `min_kept + 1` lowest probabilities are those of ignored pixels, ∞, only if fewer pixels are labelled.
    """
    if labels.numel() <= min_kept:
        return labels
    labelled = labels != ignore_index
    probability = _probability(logits, labels.masked_fill(~labelled, 0))
    lowest = probability.masked_fill(~labelled, torch.inf).flatten().topk(min_kept + 1, largest=False, sorted=False).values
    limit = lowest.max().clamp(min=threshold)
    return labels.masked_fill(probability >= limit, ignore_index)  # NaN does not count as easy


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    """For each pixel the probability of its class in `classes`, (batch, height, width)."""

    def of_classes(scores: Tensor, classes: Tensor) -> Tensor:
        return scores.softmax(dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)

    if torch.compiler.is_compiling():
        return of_classes(upsampled(logits, classes.shape[-2:]), classes)
    found = torch.empty_like(classes, dtype=working_dtype(logits.dtype))
    for band in bands(logits, classes):
        found[band.labels] = of_classes(band.upsample(logits[band.logits], classes.shape[-1]), classes[band.labels])
    return found


def configured_loss(
    logits: Tensor, labels: Tensor | None, config: SegmentationConfig, pixel_share: Tensor | float | None = None
) -> Tensor | None:
    """[`segmentation_loss`] with the settings of `config`; None without labels."""
    if labels is None:
        return None
    settings = LossSettings.of_config(config)
    return weighted_sum(loss_terms(logits, class_ids(labels, logits.shape[1], settings), settings, pixel_share), settings)


def class_ids(labels: Tensor, num_labels: int, settings: LossSettings) -> Tensor:
    """Labels as int64; other integers, such as a PNG's uint8, are taken too.

    Raises:
        TypeError: they are no tensor, or not of integers: masks that became fractions (id / 255) would all be class 0.
        ValueError: an id is neither a class nor ignored. On an accelerator, which would have to be waited for, this is left to
            torch's cross-entropy, unless the loss has none.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor (batch, height, width), got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"labels must hold class ids, which are whole numbers, but are {labels.dtype}: do not scale or normalise label maps "
            "(torchvision's ToTensor divides by 255), or give labels.long() if they hold ids"
        )
    labels = labels.long()
    is_checked_by_torch = labels.device.type != "cpu" and not settings.weights.keys().isdisjoint((CROSS_ENTROPY, FOCAL))
    if torch.compiler.is_compiling() or labels.is_meta or is_checked_by_torch:
        return labels
    unknown = labels[((labels < 0) | (labels >= num_labels)) & (labels != settings.ignore_index)]
    if len(unknown):
        raise ValueError(
            f"labels hold ids such as {unknown[0].item()}, but the network has the classes 0 to {num_labels - 1}, and ignores "
            f"{settings.ignore_index}: map the others to that, or change semantic_loss_ignore_index or the classes"
        )
    return labels
