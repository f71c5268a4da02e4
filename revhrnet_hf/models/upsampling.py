"""Bilinear upsampling of a few rows at a time, so that the upsampled logits (classes, height, width) never exist as a whole.

For an image of 22 megapixels and 66 classes they would take 5.8 GB in float32. Each band of rows is computed alone, with the
sampling positions of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`; the values differ by rounding.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

BAND_PIXELS = 2**18  # for each class; a band of this size stays in the processor's cache
ACCELERATOR_BAND_PIXELS = 2**21  # enough work for each kernel of an accelerator
MAX_UINT8_CLASSES = 256


def row_bands(height: int, rows: int) -> Iterator[slice]:
    """The rows 0 … height − 1 in slices of `rows` (at least one); the last slice may be shorter."""
    rows = max(1, rows)
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values are interpolated: float64 for float64, otherwise float32."""
    return dtype if dtype == torch.float64 else torch.float32


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on `device`. The host does not wait for a GPU to finish its work before, as it does in `tensor.to`."""
    if torch.device(device).type != "cuda" or torch.compiler.is_compiling() or type(tensor) is not torch.Tensor:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class SourcePixels(NamedTuple):
    """The rows (or columns) of a map from which rows (or columns) of the upsampled map are interpolated.

    Attributes:
        span: the rows of the map that are needed.
        upper, lower: for each row of the result, the two rows of the map between which it lies, int64, relative to `span.start`.
        weight: for each row of the result, the weight of the lower row, 0 to 1.
    """

    span: slice
    upper: torch.Tensor
    lower: torch.Tensor
    weight: torch.Tensor


def source_pixels(
    length: int, canvas: float, wanted: slice, dtype: torch.dtype, device: torch.device | str, origin: float = 0.0
) -> SourcePixels:
    """The rows of a map from which rows of the upsampled map are interpolated. Columns work in the same way.

    Args:
        length: number of rows of the map.
        canvas: number of rows of the whole upsampled map; it need not be a whole number.
        wanted: the rows of the result to compute.
        dtype: dtype in which positions are computed. It must be the one that torch uses, because rounding would otherwise shift
            the rows of large maps.
        device: device of the results. They are computed there, and the span on the host: nothing is copied from one to the other,
            which would make the host wait.
        origin: position of row 0 of the result in the canvas; it need not be a whole number.
    """
    # As torch does: with a size, it divides in `dtype`; with a factor, it uses the inverse of the factor.
    number = np.float64 if dtype == torch.float64 else np.float32
    scale = number(length) / number(canvas) if float(canvas).is_integer() else number(length / canvas)
    ends = (number(row + 0.5) + number(origin) for row in (wanted.start, wanted.stop - 1))
    first, last = (max(int(end * scale - number(0.5)), 0) for end in ends)
    span = slice(min(first, length - 1), min(last + 1, length - 1) + 1)
    rows = torch.arange(wanted.start, wanted.stop, dtype=dtype, device=device)
    positions = ((rows + 0.5 + origin) * float(scale) - 0.5).clamp(min=0)
    upper = positions.long().clamp(max=length - 1)
    lower = (upper + 1).clamp(max=length - 1)
    weight = (positions - upper).clamp(max=1)
    return SourcePixels(span, upper - span.start, lower - span.start, weight)


def upsample_rows(
    maps: torch.Tensor,
    rows: slice,
    width: int,
    canvas: tuple[float, float],
    first_row: int = 0,
    length: int | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Some rows of upsampled maps.

    Args:
        maps: (classes, height, width), or a part of their rows.
        rows: the rows of the result to compute.
        width: number of columns of the result.
        canvas: (height, width) of the whole upsampled maps.
        first_row: number of the row `maps[:, 0]` in the whole maps.
        length: number of rows of the whole maps; by default that of `maps`.
        origin: (row, column) in the canvas at which the result begins.

    Returns:
        (classes, number of rows, width), float32, or float64 for float64.
    """
    dtype = working_dtype(maps.dtype)
    row_sources = source_pixels(length or maps.shape[1], canvas[0], rows, dtype, maps.device, origin[0])
    column_sources = source_pixels(maps.shape[2], canvas[1], slice(0, width), dtype, maps.device, origin[1])
    needed = maps[:, row_sources.span.start - first_row : row_sources.span.stop - first_row]
    return _interpolate_rows(_interpolate_columns(needed, column_sources), row_sources)


def _interpolate_columns(maps, columns):
    """Upsample columns. This is done before rows, because maps that are enlarged have fewer rows before than after it."""
    # Columns are transposed to rows meanwhile: whole rows are copied many times faster than single pixels.
    needed = maps[..., columns.span].transpose(1, 2)
    needed = needed.to(columns.weight.dtype, memory_format=torch.contiguous_format)
    return _interpolate_rows(needed, columns).transpose(1, 2).contiguous()


def _interpolate_rows(maps, rows):
    return torch.lerp(maps.index_select(1, rows.upper), maps.index_select(1, rows.lower), rows.weight[:, None])


@torch.no_grad()  # class ids have no gradient, and results are written in place
def upsampled_argmax(
    logits: torch.Tensor,
    size: tuple[int, int],
    canvas: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.int64,
    origin: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """The best class of each pixel of upsampled logits.

    It is `F.interpolate(logits, canvas, mode="bilinear")[..., top : top + height, left : left + width].argmax(0)`, except where
    two classes are equal within rounding; of equal classes the first wins, as in argmax. Half precision is interpolated in
    float32, which makes equal values rarer.

    Args:
        logits: (classes, height, width), any floating-point type and device.
        size: (height, width) of the result in pixels.
        canvas: (height, width) of the whole upsampled logits, if that is larger than `size` because of padding; they need not be
            whole numbers.
        dtype: dtype of the result; it must be large enough for the class ids.
        origin: (top, left) position in the canvas at which the result begins, if there is padding above or at the left; they need
            not be whole numbers.

    Returns:
        (height, width) class ids. Besides them about 40 × `BAND_PIXELS` bytes are needed, or 40 bytes for each pixel of one row
        if that is more.
    """
    height, width = size
    label_map = torch.empty(size, dtype=dtype, device=logits.device)
    pixels = BAND_PIXELS if logits.device.type == "cpu" else ACCELERATOR_BAND_PIXELS
    for rows in row_bands(height, pixels // width):
        label_map[rows] = _best_classes(logits, rows, width, canvas or size, pixels, origin)
    return label_map


def _best_classes(logits, rows, width, canvas, pixels, origin):
    """The best classes of a band of rows.

    Classes are compared one by one: the scores of one class in one band stay in the processor's cache, those of all classes would
    not. Columns are upsampled for several classes at once, at most `pixels` in total: threads wait for each other after each
    operation, so fewer and larger operations are faster.
    """
    num_classes, *lengths = logits.shape
    wanted = rows, slice(0, width)
    dtype = working_dtype(logits.dtype)
    row_sources, column_sources = (
        source_pixels(length, edge, span, dtype, logits.device, start)
        for length, edge, span, start in zip(lengths, canvas, wanted, origin, strict=True)
    )
    needed = logits[:, row_sources.span]
    at_once = max(1, pixels // (needed.shape[1] * width))
    wide_maps = (wide[None] for several in needed.split(at_once) for wide in _interpolate_columns(several, column_sources))
    best = _interpolate_rows(next(wide_maps), row_sources)[0]
    classes = torch.zeros(
        best.shape, dtype=torch.uint8 if num_classes <= MAX_UINT8_CLASSES else torch.int32, device=logits.device
    )
    for class_id, wide in enumerate(wide_maps, 1):
        scores = _interpolate_rows(wide, row_sources)[0]
        # Ids increase, so the maximum is the last class that was better. Assignment with a mask would take 20 times as long.
        better = (scores > best).view(torch.uint8).to(classes.dtype)
        torch.maximum(classes, better.mul_(class_id), out=classes)
        torch.maximum(best, scores, out=best)
    return classes
