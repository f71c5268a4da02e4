"""Cross-entropy at label resolution: weighted, and with online hard example mining (OHEM) as HRNet trains Cityscapes.

Logits at the labels' resolution would need more memory than the network: for 66 classes at 1024×512, 132 MiB for each image,
and the same again for their softmax. So the loss is computed one band of rows at a time, and a second time in the backward pass.
This is also faster, because a band stays in the processor's cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .configuration_segmentation import SegmentationConfig
from .upsampling import SourcePixels, row_bands, source_pixels, working_dtype

BAND_VALUES = 2**20  # number of logits in a band, at label resolution
ACCELERATOR_BAND_VALUES = 2**24  # enough work for each kernel of an accelerator
BAND_ROWS = 16  # least number of label rows in a band: neighbouring bands compute two rows of logits twice


def configured_loss(logits: Tensor, labels: Tensor | None, config: SegmentationConfig) -> Tensor | None:
    """[`segmentation_loss`] with the settings of `config`; None without labels."""
    if labels is None:
        return None
    return segmentation_loss(
        logits,
        labels.long(),  # other integers, such as a PNG's uint8, are taken too
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
        logits: (batch, num_labels, h, w), any resolution; they are resized to the labels' size bilinearly, in float32
            (or in float64 if they are float64).
        labels: int64 (batch, height, width), class ids or `ignore_index`.
        class_weights: one factor for each class; the mean is then the weighted mean, as in `torch.nn.CrossEntropyLoss`.
        ohem_threshold: if given, only pixels whose true class has a lower probability than this count …
        ohem_min_kept: … but at least this number of the hardest pixels of the whole batch. With OHEM the sum is divided by the
            number of kept pixels, with and without class weights (as in the official HRNet's `OhemCrossEntropy`).

    Returns:
        A scalar. Zero (with zero gradients) where no pixel is labelled; NaN logits give a NaN loss.
    """
    if labels.ndim != 3:
        raise ValueError(f"labels must be (batch, height, width), got {tuple(labels.shape)}")
    if ohem_threshold is None:
        count = labelled_weight(labels, ignore_index, class_weights)
    else:
        labels = _ignore_easy_pixels(logits, labels, ignore_index, ohem_threshold, ohem_min_kept)
        count = labelled_weight(labels, ignore_index)
    weight = (
        None if class_weights is None else torch.tensor(class_weights, dtype=working_dtype(logits.dtype), device=logits.device)
    )

    # Not in bands when compiling: a graph of hundreds of bands would take minutes to compile.
    summed = _whole_cross_entropy if torch.compiler.is_compiling() else _BandedCrossEntropy.apply
    total = summed(logits, labels, weight, ignore_index)
    # If all pixels of a batch are ignored, torch's own mean is 0/0 = NaN. One such crop would end a run.
    return total / count.clamp(min=torch.finfo(torch.float32).tiny)


def labelled_weight(labels: Tensor, ignore_index: int = 255, class_weights: list[float] | None = None) -> Tensor:
    """The divisor of the mean in [`segmentation_loss`] without OHEM: the number of labelled pixels, or the sum of their weights.

    The mean over several batches is the mean of their losses, weighted by this number.
    """
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum()
    weight = torch.tensor(class_weights, dtype=torch.float32, device=labels.device)
    return (weight[labels.masked_fill(~labelled, 0)] * labelled).sum()


@torch.no_grad()
def _ignore_easy_pixels(logits: Tensor, labels: Tensor, ignore_index: int, threshold: float, min_kept: int) -> Tensor:
    """The labels with `ignore_index` at the pixels that OHEM does not use."""
    labelled = labels != ignore_index
    probability = _probability(logits, labels.masked_fill(~labelled, 0))
    of_labelled = probability[labelled]
    if of_labelled.numel() <= min_kept:
        return labels
    limit = of_labelled.kthvalue(min_kept + 1).values.clamp(min=threshold)
    return labels.masked_fill(probability >= limit, ignore_index)  # NaN does not count as easy


def _probability(logits: Tensor, classes: Tensor) -> Tensor:
    """For each pixel the probability of its class in `classes`, (batch, height, width)."""

    def of_classes(scores: Tensor, classes: Tensor) -> Tensor:
        return scores.softmax(dim=1).gather(1, classes.unsqueeze(1)).squeeze(1)

    if torch.compiler.is_compiling():
        return of_classes(_upsampled(logits, classes.shape[-2:]), classes)
    found = torch.empty_like(classes, dtype=working_dtype(logits.dtype))
    for band in _bands(logits, classes):
        found[band.labels] = of_classes(band.upsample(logits[band.logits], classes.shape[-1]), classes[band.labels])
    return found


def _whole_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """The sum over all pixels, with all logits upsampled at once."""
    scores = _upsampled(logits, labels.shape[-2:])
    return F.cross_entropy(scores, labels, weight=weight, ignore_index=ignore_index, reduction="sum")


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.to(working_dtype(logits.dtype)), size, mode="bilinear", align_corners=False)


class _BandedCrossEntropy(torch.autograd.Function):
    """The same sum, band by band. The backward pass computes each band again, so only the network's logits are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, labels, weight, ignore_index):
        bands = _bands(logits, labels)
        # One tensor for all sums: scalars allocated between the bands would fragment memory, and each band would need new memory.
        sums = logits.new_zeros(len(bands), dtype=working_dtype(logits.dtype))
        for number, band in enumerate(bands):
            sums[number] = band.cross_entropy(logits[band.logits], labels, weight, ignore_index)
        return sums.sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.ignore_index = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        logits, *labels_and_weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative was requested
            total = _whole_cross_entropy(logits, *labels_and_weight, ctx.ignore_index)
            return *torch.autograd.grad(total, logits, gradient, create_graph=True), None, None, None
        found = _gradient_by_bands(logits, *labels_and_weight, ctx.ignore_index)
        return found.mul_(gradient).to(logits.dtype), None, None, None

    @staticmethod
    def jvp(ctx, direction, *_):
        logits, *labels_and_weight = ctx.saved_tensors

        def total(logits: Tensor) -> Tensor:
            return _whole_cross_entropy(logits, *labels_and_weight, ctx.ignore_index)

        return torch.func.jvp(total, (logits,), (direction,))[1]


def _gradient_by_bands(logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    found = torch.zeros_like(logits, dtype=working_dtype(logits.dtype))
    for band in _bands(logits, labels):
        with torch.enable_grad():
            needed = logits[band.logits].detach().to(found.dtype).requires_grad_()
            total = band.cross_entropy(needed, labels, weight, ignore_index)
        found[band.logits] += torch.autograd.grad(total, needed)[0]
    return found


class _Band(NamedTuple):
    """Some rows of one image.

    Attributes:
        labels: slices of these rows in (batch, height, width).
        logits: slices of the logits from which they are interpolated, in (batch, num_labels, h, w).
        source: the two rows of those logits between which each row lies.
    """

    labels: tuple[slice, ...]
    logits: tuple[slice, ...]
    source: SourcePixels

    def upsample(self, logits: Tensor, width: int) -> Tensor:
        """The band's logits, upsampled: (1, num_labels, rows, width)."""
        # torch upsamples the columns, then the rows are interpolated here: the values are the same as without bands.
        columns = _upsampled(logits, (logits.shape[2], width))
        upper, lower = columns.index_select(2, self.source.upper), columns.index_select(2, self.source.lower)
        return torch.lerp(upper, lower, self.source.weight[:, None])

    def cross_entropy(self, logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
        scores = self.upsample(logits, labels.shape[-1])
        return F.cross_entropy(scores, labels[self.labels], weight=weight, ignore_index=ignore_index, reduction="sum")


def _bands(logits: Tensor, labels: Tensor) -> list[_Band]:
    """The bands of a batch, image by image, from top to bottom."""
    num_labels, length = logits.shape[1:3]
    height, width = labels.shape[1:]
    values = BAND_VALUES if logits.device.type == "cpu" else ACCELERATOR_BAND_VALUES
    per_band = max(BAND_ROWS, values // (num_labels * width))
    dtype = working_dtype(logits.dtype)
    bands = [(rows, source_pixels(length, height, rows, dtype, logits.device)) for rows in row_bands(height, per_band)]
    images = [slice(number, number + 1) for number in range(len(labels))]
    return [_Band((image, rows), (image, slice(None), source.span), source) for image in images for rows, source in bands]
