"""Bilinear upsampling a few rows at a time, so that no map of (classes, height, width) at a picture's size need exist.

A picture of 22 megapixels with 66 classes would take 5.8 GB in float32. Only what a band of rows needs is computed, with the
sampling positions and the arithmetic of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

BAND_PIXELS = 2**21  # per class; a few times 8 MiB in float32
MAX_UINT8_CLASSES = 256


def row_bands(height: int, rows: int) -> Iterator[slice]:
    """The rows 0 … height − 1 in slices of `rows` (at least one); the last may be shorter."""
    rows = max(1, rows)
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """What interpolation is computed in: float32, or float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32


def source_rows(
    length: int, canvas: float, rows: slice, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where rows of an upsampled map come from.

    Args:
        length: rows of the map.
        canvas: rows that the whole of it is upsampled to; need not be a whole number.
        rows: which of these are wanted.
        dtype: of the arithmetic. torch computes positions in it, and so must we, or the 5,000th row would lie elsewhere.
        device: of the results.

    Returns:
        For each wanted row the upper and the lower row of the map, int64, and the weight of the lower one.
    """
    # torch divides in `dtype` where it is given a size, and inverts the factor where it is given that.
    by_size = float(canvas).is_integer()
    scale = torch.tensor(length, dtype=dtype) / canvas if by_size else torch.tensor(length / canvas, dtype=dtype)
    positions = ((torch.arange(rows.start, rows.stop, dtype=dtype) + 0.5) * scale - 0.5).clamp(min=0)
    upper = positions.long().clamp(max=length - 1)
    lower = (upper + 1).clamp(max=length - 1)
    return upper.to(device), lower.to(device), (positions - upper).clamp(max=1).to(device)


def upsample_columns(maps: torch.Tensor, width: int, canvas: float) -> torch.Tensor:
    """Interpolates (…, rows, columns) along the columns only.

    Args:
        maps: (batch, channels, rows, columns).
        width: columns of the result.
        canvas: columns that the whole map is upsampled to, of which the first `width` are kept.
    """
    if float(canvas).is_integer():
        maps = F.interpolate(maps, size=(maps.shape[-2], int(canvas)), mode="bilinear", align_corners=False)
    else:
        # The tiny excess keeps a product like 29.999… from losing its last pixel.
        factor = canvas / maps.shape[-1] * (1 + 1e-12)
        maps = F.interpolate(maps, scale_factor=(1.0, factor), mode="bilinear", align_corners=False)
    return maps[..., :width]


def upsample_rows(maps: torch.Tensor, rows: slice, width: int, canvas: tuple[float, float], first_row: int = 0, length=None):
    """Some rows of upsampled maps.

    Args:
        maps: (classes, height, width), or a part of their rows.
        rows: the rows of the result that are wanted.
        width: columns of the result.
        canvas: (height, width) that the whole maps are upsampled to.
        first_row: which row of the whole maps `maps[:, 0]` is.
        length: rows of the whole maps; those of `maps` if None.

    Returns:
        (classes, number of rows, width), float32, or float64 for float64.
    """
    dtype = working_dtype(maps.dtype)
    upper, lower, weight = source_rows(length or maps.shape[1], canvas[0], rows, dtype, maps.device)
    blended = torch.lerp(maps[:, upper - first_row].to(dtype), maps[:, lower - first_row].to(dtype), weight[:, None])
    return upsample_columns(blended[None], width, canvas[1])[0]


def upsampled_argmax(
    logits: torch.Tensor,
    size: tuple[int, int],
    canvas: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.int64,
) -> torch.Tensor:
    """The best class of each pixel of upsampled logits.

    It is `F.interpolate(logits, canvas, mode="bilinear")[..., :height, :width].argmax(0)`, except where two classes tie within
    rounding; of equal classes the first wins, as in argmax. Half precision is interpolated in float32, so that it has fewer ties.

    Args:
        logits: (classes, height, width), any floating-point type and device.
        size: (height, width) of the result in pixels.
        canvas: (height, width) that the whole of the logits is upsampled to, where that is more than `size` (padding);
            need not be whole numbers.
        dtype: of the result; it must hold the class ids.

    Returns:
        (height, width) class ids. Beside them at most about 2.5 × `BAND_PIXELS` × 4 bytes are needed, or as much for one row.
    """
    height, width = size
    label_map = torch.empty(size, dtype=dtype, device=logits.device)
    for rows in row_bands(height, BAND_PIXELS // width):
        label_map[rows] = _best_classes(logits, rows, width, canvas or size)
    return label_map


def _best_classes(logits, rows, width, canvas):
    """Class by class: the scores of one band and one class stay in the processor's cache, those of all classes would not."""
    num_classes, length, _ = logits.shape
    dtype = working_dtype(logits.dtype)
    upper, lower, weight = source_rows(length, canvas[0], rows, dtype, logits.device)
    weight = weight[:, None]
    best, classes = None, None
    for class_id in range(num_classes):
        logit = logits[class_id]
        blended = torch.lerp(logit[upper].to(dtype), logit[lower].to(dtype), weight)
        scores = upsample_columns(blended[None, None], width, canvas[1])[0, 0]
        if best is None:
            best = scores.contiguous()
            classes = torch.zeros(
                best.shape, dtype=torch.uint8 if num_classes <= MAX_UINT8_CLASSES else torch.int32, device=logits.device
            )
        else:
            classes.masked_fill_(scores > best, class_id)
            torch.maximum(best, scores, out=best)
    return classes
