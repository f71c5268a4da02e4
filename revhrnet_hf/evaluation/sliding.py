"""What a network says of one image at several scales and in windows, joined a few rows at a time.

Kept are the logits as they come from the network (of stride 4, a sixteenth of the pixels); maps of all classes at the image's
size exist for one band of rows only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..models.upsampling import row_bands, source_pixels, upsample_rows, working_dtype
from .settings import Size

BAND_VALUES = 2**22  # of one band of rows and all classes: 16 MiB in float32, a few times
EXP_LIMIT = 80.0  # exp of more, summed, leaves float32


@dataclass(frozen=True)
class Window:
    """What was said of one window.

    Attributes:
        top, left: its first row and column.
        size: (height, width) in pixels.
        logits: one (classes, h, w) each time it was looked at, all in the image's orientation.
        canvas: (height, width) that the logits cover at this scale; more than `size` where the input was padded.
        origin: (row, column) of the canvas at which the window begins; more than 0 where the input was padded above or left.
    """

    top: int
    left: int
    size: Size
    logits: list[torch.Tensor]
    canvas: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class View:
    """The image at one scale: its size there, and windows that cover it."""

    size: Size
    windows: list[Window]


def only_logits(views: list[View]) -> Window | None:
    """The window, where the image was looked at just once, so that nothing is to be joined."""
    [view, *others] = views
    return view.windows[0] if not others and len(view.windows) == 1 and len(view.windows[0].logits) == 1 else None


def joined_bands(views: list[View], size: Size, average: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Probabilities of an image's classes, band of rows after band of rows.

    Args:
        views: what was said of it.
        size: (height, width) of the result in pixels.
        average: "softmax" or "exp"; see `InferenceSettings`.

    Yields:
        The rows, and (classes, number of rows, width) of numbers that sum to 1 over the classes.
    """
    height, width = size
    logits = [logits for view in views for window in view.windows for logits in window.logits]
    largest = max(max(edge / whole for edge, whole in zip(view.size, size, strict=True)) for view in views)
    shift = 0.0
    if average == "exp":
        # A constant for the whole image changes no share of the sum; without need it is 0, as in HRNet.
        shift = max(0.0, max(tensor.max().item() for tensor in logits) - EXP_LIMIT)
    for rows in row_bands(height, int(BAND_VALUES / (len(logits[0]) * width * max(1.0, largest) ** 2))):
        total = sum(_rows_at_size(view, rows, size, average, shift) for view in views)
        yield rows, total / total.sum(0, keepdim=True)


def _rows_at_size(view, rows, size, average, shift):
    """The view's shares, brought to the image's size by a second interpolation, as HRNet does."""
    if view.size == size:
        return _rows(view, rows, average, shift)
    length = view.size[0]
    needed = source_pixels(length, size[0], rows, torch.float32, "cpu").span
    return upsample_rows(_rows(view, needed, average, shift), rows, size[1], size, needed.start, length)


def _rows(view, rows, average, shift):
    """Rows of the view at its own scale: the mean over the windows that cover each pixel."""
    width, tensor = view.size[1], view.windows[0].logits[0]
    total = torch.zeros(len(tensor), rows.stop - rows.start, width, dtype=working_dtype(tensor.dtype), device=tensor.device)
    counts = torch.zeros(rows.stop - rows.start, width, dtype=total.dtype, device=tensor.device)
    for window in view.windows:
        height, window_width = window.size
        first, last = max(rows.start, window.top), min(rows.stop, window.top + height)
        if first >= last:
            continue
        place = slice(first - rows.start, last - rows.start), slice(window.left, window.left + window_width)
        inside = slice(first - window.top, last - window.top)
        for logits in window.logits:
            scores = upsample_rows(logits, inside, window_width, window.canvas, origin=window.origin)
            total[:, *place] += scores.softmax(0) if average == "softmax" else (scores - shift).exp_()
            counts[place] += 1
    return total.div_(counts)
