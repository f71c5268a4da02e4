"""Bilinear upsampling a few rows at a time, so that no map of (classes, height, width) at an image's size need exist.

An image of 22 megapixels with 66 classes would take 5.8 GB in float32. Only what a band of rows needs is computed, with the
sampling positions of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`; the values differ by rounding.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

BAND_PIXELS = 2**18  # per class; what is computed of them stays in the processor's cache
ACCELERATOR_BAND_PIXELS = 2**21  # enough work for each of an accelerator's kernels
MAX_UINT8_CLASSES = 256


def row_bands(height: int, rows: int) -> Iterator[slice]:
    """The rows 0 … height − 1 in slices of `rows` (at least one); the last may be shorter."""
    rows = max(1, rows)
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What interpolation is computed in: float32, or float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32


class SourcePixels(NamedTuple):
    """Where rows (or columns) of an upsampled map come from.

    Attributes:
        span: the rows of the map that are needed.
        upper, lower: for each wanted row the two rows that it lies between, int64, counted from the span's first.
        weight: of the lower one.
    """

    span: slice
    upper: torch.Tensor
    lower: torch.Tensor
    weight: torch.Tensor


def source_pixels(
    length: int, canvas: float, wanted: slice, dtype: torch.dtype, device: torch.device | str, origin: float = 0.0
) -> SourcePixels:
    """Where rows of an upsampled map come from; columns do alike.

    Args:
        length: rows of the map.
        canvas: rows that the whole of it is upsampled to; need not be a whole number.
        wanted: which of these are wanted.
        dtype: of the arithmetic. torch computes positions in it, and so must we, or the 5,000th row would lie elsewhere.
        device: of the results. They are computed on the CPU, so that nothing need be read back.
        origin: where in the canvas row 0 of the result lies; need not be a whole number.
    """
    # torch divides in `dtype` where it is given a size, and inverts the factor where it is given that.
    by_size = float(canvas).is_integer()
    scale = torch.tensor(length, dtype=dtype) / canvas if by_size else torch.tensor(length / canvas, dtype=dtype)
    positions = ((torch.arange(wanted.start, wanted.stop, dtype=dtype) + 0.5 + origin) * scale - 0.5).clamp(min=0)
    upper = positions.long().clamp(max=length - 1)
    lower = (upper + 1).clamp(max=length - 1)
    weight = (positions - upper).clamp(max=1)
    span = slice(int(upper[0]), int(lower[-1]) + 1)
    return SourcePixels(span, *(tensor.to(device) for tensor in (upper - span.start, lower - span.start, weight)))


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
        rows: the rows of the result that are wanted.
        width: columns of the result.
        canvas: (height, width) that the whole maps are upsampled to.
        first_row: which row of the whole maps `maps[:, 0]` is.
        length: rows of the whole maps; those of `maps` if None.
        origin: (row, column) of the canvas at which the result begins.

    Returns:
        (classes, number of rows, width), float32, or float64 for float64.
    """
    dtype = working_dtype(maps.dtype)
    row_sources = source_pixels(length or maps.shape[1], canvas[0], rows, dtype, maps.device, origin[0])
    column_sources = source_pixels(maps.shape[2], canvas[1], slice(0, width), dtype, maps.device, origin[1])
    needed = maps[:, row_sources.span.start - first_row : row_sources.span.stop - first_row]
    return _between(_wide(needed, column_sources), row_sources)


def _wide(maps, columns):
    """Columns are upsampled before rows: of maps that are enlarged there are fewer rows now than later."""
    # Whole rows are copied many times as fast as single pixels: columns lie as rows meanwhile.
    needed = maps[..., columns.span].transpose(1, 2)
    needed = needed.to(columns.weight.dtype, memory_format=torch.contiguous_format)
    return _between(needed, columns).transpose(1, 2).contiguous()


def _between(maps, rows):
    return torch.lerp(maps.index_select(1, rows.upper), maps.index_select(1, rows.lower), rows.weight[:, None])


@torch.no_grad()  # a class id has no gradient, and results are written in place
def upsampled_argmax(
    logits: torch.Tensor,
    size: tuple[int, int],
    canvas: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.int64,
    origin: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """The best class of each pixel of upsampled logits.

    It is `F.interpolate(logits, canvas, mode="bilinear")[..., top : top + height, left : left + width].argmax(0)`, except where
    two classes tie within rounding; of equal classes the first wins, as in argmax. Half precision is interpolated in float32, so
    that it has fewer ties.

    Args:
        logits: (classes, height, width), any floating-point type and device.
        size: (height, width) of the result in pixels.
        canvas: (height, width) that the whole of the logits is upsampled to, where that is more than `size` (padding);
            need not be whole numbers.
        dtype: of the result; it must hold the class ids.
        origin: (top, left), where in the canvas the result begins (padding above or at the left); need not be whole numbers.

    Returns:
        (height, width) class ids. Beside them some 40 × `BAND_PIXELS` bytes are needed, or as much for one row.
    """
    height, width = size
    label_map = torch.empty(size, dtype=dtype, device=logits.device)
    pixels = BAND_PIXELS if logits.device.type == "cpu" else ACCELERATOR_BAND_PIXELS
    for rows in row_bands(height, pixels // width):
        label_map[rows] = _best_classes(logits, rows, width, canvas or size, pixels, origin)
    return label_map


def _best_classes(logits, rows, width, canvas, pixels, origin):
    """Class by class: the scores of one band and one class stay in the processor's cache, those of all classes would not.

    Columns are upsampled for several classes at once, `pixels` in all: fewer and larger operations, after each of which threads
    wait for each other.
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
    maps = (one[None] for several in needed.split(at_once) for one in _wide(several, column_sources))
    best = _between(next(maps), row_sources)[0]
    classes = torch.zeros(
        best.shape, dtype=torch.uint8 if num_classes <= MAX_UINT8_CLASSES else torch.int32, device=logits.device
    )
    for class_id, wide in enumerate(maps, 1):
        scores = _between(wide, row_sources)[0]
        # Classes come in order: the larger id is the one that was better later. Filling in under a mask takes 20 times as long.
        better = (scores > best).view(torch.uint8).to(classes.dtype)
        torch.maximum(classes, better.mul_(class_id), out=classes)
        torch.maximum(best, scores, out=best)
    return classes
