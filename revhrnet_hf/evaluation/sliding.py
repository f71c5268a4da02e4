"""Running a network on an image at several scales and in windows, and joining the results a few rows at a time.

The logits are kept as the network gives them (at stride 4, a sixteenth of the pixels). Maps of all classes at the image's size
exist only for one band of rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import DivergedError, RecipeError
from ..models.upsampling import row_bands, source_pixels, upsample_rows, working_dtype
from .network_input import NetworkInput
from .settings import InferenceSettings, Size

BAND_VALUES = 2**22  # of one band of rows and all classes: 16 MiB in float32, a few times
EXP_LIMIT = 80.0  # the sum of larger exponentials would overflow float32


@dataclass(frozen=True)
class Window:
    """The network's results for one window.

    Attributes:
        top, left: the window's first row and column.
        size: (height, width) in pixels.
        logits: one (classes, h, w) for each forward pass (one more where mirrored), all in the image's orientation.
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


@dataclass(frozen=True)
class ForwardPass:
    """A model, and how to run it.

    Attributes:
        model: a Transformers model for semantic segmentation, in eval mode.
        settings: mirrored or not, and how many windows at once.
        sources: for each class wanted the model's classes that count as it; None for the model's own classes.
        name: what errors call the image.
    """

    model: torch.nn.Module
    settings: InferenceSettings
    sources: list[list[int]] | None
    name: str

    def __call__(self, inputs) -> list[torch.Tensor]:
        """The logits (batch, classes, h, w) of a batch of inputs.

        With `flip` there are two: those of the mirrored inputs, mirrored back, come second; with average "exp" their mean only.
        """
        logits = [self._logits(inputs)]
        if self.settings.flip:
            mirrored = inputs.__class__({"pixel_values": inputs["pixel_values"].flip(-1)})
            logits.append(self._logits(mirrored).flip(-1))
            if self.settings.average == "exp":
                logits = [(logits[0] + logits[1]) / 2]
        return logits

    def _logits(self, inputs) -> torch.Tensor:
        parameter = first_parameter(self.model)
        # The dtype applies to floating-point inputs only.
        logits = self.model(**inputs.to(parameter.device, parameter.dtype, non_blocking=True)).logits
        if not torch.isfinite(logits.abs().amax()):  # takes a sixth of the time of testing each value
            raise DivergedError(
                f"{self.name}: the model's logits hold NaN or infinity, so its label map would mean nothing; the training has "
                f"diverged, or {logits.dtype} is too narrow (try float32)"
            )
        return logits if self.sources is None else merge_classes(logits, self.sources)


def run_at_all_scales(forward: ForwardPass, inputs: list[NetworkInput], size: Size) -> list[View]:
    """Runs a model on an image, at every scale and in every window.

    Args:
        forward: the model and its settings.
        inputs: `network_inputs` of the image, one for each scale.
        size: (height, width) of the label map wanted.

    Raises:
        DivergedError: the logits are not finite.
        RecipeError: the GPU's memory is not enough.
    """
    settings = forward.settings
    try:
        if settings.is_whole:
            [whole] = inputs
            logits = [batch[0] for batch in forward(whole.tensors)]
            return [View(size, [Window(0, 0, size, logits, whole.canvas(size), whole.origin(size))])]
        return [_run_windows(forward, scaled, scale, size) for scaled, scale in zip(inputs, settings.scales, strict=True)]
    except torch.OutOfMemoryError as error:
        edges = settings.window or inputs[-1].padded_size
        taken = ("windows of {}×{}" if settings.window else "{}×{} pixels at once").format(*edges)
        raise RecipeError(
            f"{forward.name}: the GPU's memory is not enough for {taken}: slide a smaller window (--window HEIGHT WIDTH)"
            + (f", or fewer at once than {settings.batch_size} (--batch_size)" if settings.batch_size > 1 else "")
        ) from error


def _run_windows(forward: ForwardPass, inputs: NetworkInput, scale: float, target: Size) -> View:
    settings, size = forward.settings, inputs.size
    window_size = size if settings.window is None else tuple(map(min, settings.window, size))
    steps = size if settings.window is None else settings.steps
    tops, lefts = map(window_starts, size, window_size, steps)
    corners = [(top, left) for top in tops for left in lefts]
    pixel_values, (height, width) = inputs.tensors["pixel_values"], window_size
    windows = []
    for first in range(0, len(corners), settings.batch_size):
        group = corners[first : first + settings.batch_size]
        crops = torch.cat([pixel_values[..., top : top + height, left : left + width] for top, left in group])
        logits = forward(inputs.tensors.__class__({"pixel_values": crops}))
        for number, (top, left) in enumerate(group):
            windows.append(Window(top, left, window_size, [batch[number] for batch in logits], window_size))
    if scale == 1 and len(windows) == 1:
        # As for a whole image: one interpolation, to the result's size.
        return View(target, [Window(0, 0, target, windows[0].logits, target)])
    return View(size, windows)


def window_starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along one direction so that they cover all of it; the last one ends with it."""
    return [*range(0, length - window, step), length - window]


def merge_classes(logits: torch.Tensor, sources: list[list[int]]) -> torch.Tensor:
    """Logits of new classes, each made of several old ones whose probabilities are summed.

    A class without sources is never the best one. The softmax's denominator is common to all classes, so the logit of a sum of
    probabilities is the logarithm of the sum of exponentials.

    Args:
        logits: (batch, classes, height, width).
        sources: for each new class the old classes that it is made of.

    Returns:
        (batch, len(sources), height, width).
    """
    never = torch.full_like(logits[:, :1], torch.finfo(logits.dtype).min / 4)
    return torch.cat([logits[:, of].logsumexp(1, keepdim=True) if of else never for of in sources], dim=1)


def first_parameter(model) -> torch.Tensor:
    """A parameter of the model, whose device and dtype the inputs take."""
    return next(model.parameters())


def sole_window(views: list[View]) -> Window | None:
    """The window of an image that the network saw just once, so that there is nothing to join; else None."""
    [view, *others] = views
    return view.windows[0] if not others and len(view.windows) == 1 and len(view.windows[0].logits) == 1 else None


def joined_bands(views: list[View], size: Size, average: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """The probabilities of an image's classes, one band of rows after another.

    Args:
        views: the results at every scale.
        size: (height, width) of the label map wanted, in pixels.
        average: "softmax" or "exp"; see `InferenceSettings`.

    Yields:
        The rows, and (classes, number of rows, width) of numbers that sum to 1 over the classes.
    """
    height, width = size
    logits = [logits for view in views for window in view.windows for logits in window.logits]
    largest = max(max(edge / whole for edge, whole in zip(view.size, size, strict=True)) for view in views)
    shift = 0.0
    if average == "exp":
        # A constant for the whole image changes no probability. It is 0, as in HRNet, unless exp would overflow.
        shift = max(0.0, max(tensor.max().item() for tensor in logits) - EXP_LIMIT)
    for rows in row_bands(height, int(BAND_VALUES / (len(logits[0]) * width * max(1.0, largest) ** 2))):
        total = sum(_rows_at_size(view, rows, size, average, shift) for view in views)
        yield rows, total / total.sum(0, keepdim=True)


def log_probability_bands(views: list[View], size: Size, average: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """The logarithms of the probabilities of `joined_bands`.

    Those of an image that the network saw once are computed from its logits, and so are exact for improbable classes too. After
    averaging, a probability counts as at least the smallest normal number of its type.
    """
    if window := sole_window(views):
        [logits], (height, width) = window.logits, size
        for rows in row_bands(height, int(BAND_VALUES / (len(logits) * width))):
            yield rows, upsample_rows(logits, rows, width, window.canvas, origin=window.origin).log_softmax(0)
        return
    for rows, probabilities in joined_bands(views, size, average):
        yield rows, probabilities.clamp_(min=torch.finfo(probabilities.dtype).tiny).log_()


def _rows_at_size(view, rows, size, average, shift):
    """The view's values for these rows, brought to the image's size by a second interpolation, as HRNet does."""
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
