"""Sums over the pixels of a batch at the labels' resolution, computed one band of rows at a time.

Logits at the labels' resolution would need more memory than the network: for 66 classes at 1024×512, 132 MiB for each image,
and the same again for their softmax. So each band is upsampled and summed alone, and a second time in the backward pass.
This is also faster, because a band stays in the processor's cache.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .upsampling import SourcePixels, row_bands, source_pixels, working_dtype

BAND_VALUES = 2**20  # number of logits in a band, at label resolution
ACCELERATOR_BAND_VALUES = 2**24  # enough work for each kernel of an accelerator
BAND_ROWS = 16  # least number of label rows in a band: neighbouring bands compute two rows of logits twice

WHOLE = (slice(None), slice(None))


class Target(NamedTuple):
    """The truth of a batch.

    Attributes:
        labels: int64 (batch, height, width), class ids or `ignore_index`.
        hard: the same, with `ignore_index` also at the pixels that hard example mining does not use.
        weight: (num_labels,), one factor for each class, or None.
        ignore_index: label of the pixels that do not count.
    """

    labels: Tensor
    hard: Tensor
    weight: Tensor | None
    ignore_index: int


class PixelTerm(Protocol):
    """Sums over pixels, from which a loss is computed. Frozen dataclasses, because they are constants of a compiled graph."""

    def size(self, num_labels: int) -> int:
        """How many sums there are."""

    def sums(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        """(size,): the sums over the pixels `target.labels[rows]`, whose logits are `scores`, (n, num_labels, height, width)."""


@dataclass(frozen=True)
class PixelTerms:
    """Several terms, which share the upsampled logits."""

    terms: tuple[PixelTerm, ...]

    def size(self, num_labels: int) -> int:
        return sum(term.size(num_labels) for term in self.terms)

    def sums(self, scores: Tensor, target: Target, rows: tuple[slice, ...]) -> Tensor:
        found = [term.sums(scores, target, rows) for term in self.terms]
        return torch.cat(found) if len(found) > 1 else found[0]


def pixel_sums(terms: tuple[PixelTerm, ...], logits: Tensor, target: Target) -> list[Tensor]:
    """The sums of each term, (term.size,), over all pixels of a batch.

    Args:
        logits: (batch, num_labels, h, w), any resolution; they are resized to the labels' size bilinearly, in float32 (or in
            float64 if they are float64).
    """
    # Not in bands when compiling: a graph of hundreds of bands would take minutes to compile.
    summed = _whole_sums if torch.compiler.is_compiling() else _BandedSums.apply
    sums = summed(PixelTerms(terms), logits, *target)
    return list(sums.split([term.size(logits.shape[1]) for term in terms]))


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """All logits at `size`, in the working dtype."""
    return F.interpolate(logits.to(working_dtype(logits.dtype)), size, mode="bilinear", align_corners=False)


def _whole_sums(terms: PixelTerms, logits: Tensor, *target) -> Tensor:
    """The sums over all pixels, with all logits upsampled at once."""
    target = Target(*target)
    return terms.sums(upsampled(logits, target.labels.shape[-2:]), target, WHOLE)


class _BandedSums(torch.autograd.Function):
    """The same sums, band by band. The backward pass computes each band again, so only the network's logits are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(terms, logits, *target):
        target = Target(*target)
        found = bands(logits, target.labels)
        # One tensor for all sums: tensors allocated between the bands would fragment memory, and each band would need new memory.
        sums = logits.new_zeros(terms.size(logits.shape[1]), len(found), dtype=working_dtype(logits.dtype))
        for number, band in enumerate(found):
            sums[:, number] = band.sums(terms, logits[band.logits], target)
        return sums.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.terms, *tensors, ctx.ignore_index = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        logits, *target = *ctx.saved_tensors, ctx.ignore_index
        none = [None] * len(target)
        if torch.is_grad_enabled():  # a second derivative was requested
            sums = _whole_sums(ctx.terms, logits, *target)
            return None, *torch.autograd.grad(sums, logits, gradient, create_graph=True), *none
        return None, _gradient_by_bands(ctx.terms, logits, Target(*target), gradient).to(logits.dtype), *none

    @staticmethod
    def jvp(ctx, _terms, direction, *_):
        logits, *target = *ctx.saved_tensors, ctx.ignore_index
        return torch.func.jvp(lambda logits: _whole_sums(ctx.terms, logits, *target), (logits,), (direction,))[1]


def _gradient_by_bands(terms: PixelTerms, logits: Tensor, target: Target, gradient: Tensor) -> Tensor:
    found = torch.zeros_like(logits, dtype=working_dtype(logits.dtype))
    # The gradient of a single sum is multiplied at the end, once.
    of_sums = torch.ones_like(gradient) if len(gradient) == 1 else gradient
    for band in bands(logits, target.labels):
        with torch.enable_grad():
            needed = logits[band.logits].detach().to(found.dtype).requires_grad_()
            sums = band.sums(terms, needed, target)
        found[band.logits] += torch.autograd.grad(sums, needed, of_sums)[0]
    return found.mul_(gradient) if len(gradient) == 1 else found


class Band(NamedTuple):
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
        columns = upsampled(logits, (logits.shape[2], width))
        upper, lower = columns.index_select(2, self.source.upper), columns.index_select(2, self.source.lower)
        return torch.lerp(upper, lower, self.source.weight[:, None])

    def sums(self, terms: PixelTerms, logits: Tensor, target: Target) -> Tensor:
        return terms.sums(self.upsample(logits, target.labels.shape[-1]), target, self.labels)


def bands(logits: Tensor, labels: Tensor) -> list[Band]:
    """The bands of a batch, image by image, from top to bottom."""
    num_labels, length = logits.shape[1:3]
    height, width = labels.shape[1:]
    values = BAND_VALUES if logits.device.type == "cpu" else ACCELERATOR_BAND_VALUES
    per_band = max(BAND_ROWS, values // (num_labels * width))
    dtype = working_dtype(logits.dtype)
    sources = [(rows, source_pixels(length, height, rows, dtype, logits.device)) for rows in row_bands(height, per_band)]
    images = [slice(number, number + 1) for number in range(len(labels))]
    return [Band((image, rows), (image, slice(None), source.span), source) for image in images for rows, source in sources]
