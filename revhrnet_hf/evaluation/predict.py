"""Label maps from a model and images, and the confusion matrix of a model on a dataset.

Any Transformers model for semantic segmentation will do, with its own image processor. Images are run one by one: a
batch of several can change the last bits of the logits, and then the label map would depend on an image's neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..errors import CheckpointError, DataError, RecipeError
from ..models.upsampling import upsampled_argmax
from .confusion import ConfusionMatrix
from .network_input import NetworkInput, network_inputs
from .samples import Samples, load
from .settings import InferenceSettings, Size
from .sliding import View, Window, joined_bands, only_logits

WHOLE = InferenceSettings()


@dataclass(frozen=True)
class Segmentation:
    """What a model says of one image.

    Attributes:
        label_map: (height, width) class ids: uint8, or uint16 where there are more than 256 classes.
        confidence: (height, width) float32, the share of the best class, from 0 to 1; None unless asked for.
        probabilities: (classes, height, width) float32 that sum to 1 over the classes; None unless asked for.
    """

    label_map: np.ndarray
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None


def segment(
    model,
    image_processor,
    image: PIL.Image.Image,
    settings: InferenceSettings = WHOLE,
    *,
    target_size: Size | None = None,
    sources: list[list[int]] | None = None,
    return_confidence: bool = False,
    return_probabilities: bool = False,
    name: str = "the image",
) -> Segmentation:
    """Segments one image; with the default settings the label map is that of `pipeline("image-segmentation")`.

    No map of (classes, height, width) at the image's size is made, unless the probabilities are asked for.

    Args:
        model: a Transformers model for semantic segmentation, on any device. It is run in eval mode; each of its
            modules is then put back into the mode it was in.
        image_processor: its image processor.
        image: the image, RGB; of any size, smaller than a window too.
        settings: whole or in windows, scales, mirrored.
        target_size: (height, width) of the result; by default the image's own.
        sources: for each class wanted the model's classes that count as it, whose probabilities are summed; the
            model's own classes if None.
        return_confidence, return_probabilities: what is wanted beside the label map.
        name: what errors call the image.

    Raises:
        CheckpointError: the model's logits are not finite, or its image processor does not show it the whole image.
        RecipeError: the GPU's memory is not enough for an image or window of this size.
    """
    size = tuple(target_size or (image.height, image.width))
    inputs = network_inputs(image_processor, image, settings)
    with inference(model):
        views = _look(model, inputs, size, settings, name, sources)
        label_map = _label_map(views, size, settings)
        confidence, probabilities = _shares(views, size, settings, return_confidence, return_probabilities)
    return Segmentation(label_map.cpu().numpy(), confidence, probabilities)


def predict_label_maps(model, image_processor, images, target_sizes=None, settings=WHOLE) -> list[np.ndarray]:
    """The label maps of several images, one by one; see `segment`.

    Args:
        images: PIL images of any sizes.
        target_sizes: (height, width) of each label map; by default the images' own.

    Raises:
        DataError: the numbers of images and of target sizes differ.
    """
    sizes = [None] * len(images) if target_sizes is None else target_sizes
    if len(sizes) != len(images):
        raise DataError(f"{len(sizes)} target sizes were given for {len(images)} images: give one an image")
    return [
        segment(model, image_processor, image, settings, target_size=size, name=f"image {number}").label_map
        for number, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]


@dataclass(frozen=True)
class Predicted:
    """An image of a dataset: its row and id, the predicted label map on the model's device, and the true one or None."""

    index: int
    image_id: str
    label_map: torch.Tensor
    references: torch.Tensor | None


def predict_dataset(
    model,
    image_processor,
    dataset,
    indices: Iterable[int],
    *,
    settings: InferenceSettings = WHOLE,
    sources: list[list[int]] | None = None,
    num_workers: int | None = 0,
) -> Iterator[Predicted]:
    """Label maps of a dataset's images, one by one, each at its image's own size.

    Between two of them nothing of this call is in force: the caller's grad mode and the model's training mode are the caller's,
    several readers may take turns, and one may be left before its end.

    Args:
        model, image_processor, settings, sources: as in `segment`; the bare model, not one wrapped for distributed training.
        dataset: a `datasets.Dataset` with the columns `image` (PIL, RGB), `label_map` (PIL, mode L, train ids, or None) and
            `image_id`.
        indices: which rows.
        num_workers: processes that read and prepare images; 0: this one; None: see `default_num_workers`.

    Raises:
        DataError: an image cannot be read, or its label map is of another size.
        CheckpointError, RecipeError: as in `segment`.
    """
    samples = Samples(dataset, list(indices), image_processor, settings)
    for index, image_id, inputs, size, references in load(samples, num_workers, _parameter(model).device):
        with inference(model):
            label_map = _label_map(_look(model, inputs, size, settings, f"image {image_id}", sources), size, settings)
        # A copy made outside: tensors of inference mode can neither be changed in place nor take part in training.
        yield Predicted(index, image_id, label_map.clone(), references)


def evaluate_dataset(
    model,
    image_processor,
    dataset,
    num_labels: int,
    *,
    ignore_index: int = 255,
    sources: list[list[int]] | None = None,
    settings: InferenceSettings = WHOLE,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int | None = 0,
    progress: Callable[[int], None] | None = None,
    look: Callable[[Predicted], None] | None = None,
) -> ConfusionMatrix:
    """Scores a model on a dataset, each prediction at its label map's own size.

    With several processes each takes every `num_processes`-th image, so that every image is counted once; the sum
    of their matrices (`accelerator.reduce(confusion.matrix, "sum")`) is then exactly the matrix of one process.

    Args:
        model, image_processor, dataset, sources, settings, num_workers: as in `predict_dataset`.
        num_labels: number of classes of the label maps, and of the model unless `sources` is given.
        ignore_index: the id of pixels that do not count.
        process_index, num_processes: which share of the images to take, of how many.
        progress: is called with 1 after each image (a progress bar's `update`).
        look: is called with each prediction.

    Returns:
        The matrix of this process's images, on the model's device.

    Raises:
        DataError: an image cannot be read, its label map is of another size, or holds an id that is neither a class nor ignored.
        CheckpointError: the model's logits are not finite.
    """
    confusion = ConfusionMatrix(num_labels, ignore_index, device=_parameter(model).device)
    indices = range(process_index, len(dataset), num_processes)
    predicted = predict_dataset(
        model, image_processor, dataset, indices, settings=settings, sources=sources, num_workers=num_workers
    )
    for image in predicted:
        confusion.update(image.label_map, image.references, image_ids=[image.image_id])
        if look is not None:
            look(image)
        if progress is not None:
            progress(1)
    return confusion


def _look(model, inputs: list[NetworkInput], size, settings, where, sources) -> list[View]:
    """Run the model on an image at every scale, in every window."""
    try:
        if settings.is_whole:
            [whole] = inputs
            logits = _logits_both_ways(model, whole.tensors, settings, where, sources)
            return [View(size, [Window(0, 0, size, [one[0] for one in logits], whole.canvas(size), whole.origin(size))])]
        return [
            _look_through_windows(model, scaled, scale, size, settings, where, sources)
            for scaled, scale in zip(inputs, settings.scales, strict=True)
        ]
    except torch.OutOfMemoryError as error:
        edges = settings.window or inputs[-1].padded_size
        taken = ("windows of {}×{}" if settings.window else "{}×{} pixels at once").format(*edges)
        raise RecipeError(
            f"{where}: the GPU's memory is not enough for {taken}: slide a smaller window (--window HEIGHT WIDTH)"
            + (f", or fewer at once than {settings.batch_size} (--batch_size)" if settings.batch_size > 1 else "")
        ) from error


def _look_through_windows(model, inputs, scale, target, settings, where, sources) -> View:
    pixel_values, size = inputs.tensors["pixel_values"], inputs.size
    window_size = size if settings.window is None else tuple(map(min, settings.window, size))
    steps = size if settings.window is None else settings.steps
    places = [
        (top, left) for top in window_starts(size[0], window_size[0], steps[0])
        for left in window_starts(size[1], window_size[1], steps[1])
    ]  # fmt: skip
    height, width = window_size
    windows = []
    for first in range(0, len(places), settings.batch_size):
        group = places[first : first + settings.batch_size]
        crops = torch.cat([pixel_values[..., top : top + height, left : left + width] for top, left in group])
        logits = _logits_both_ways(model, inputs.tensors.__class__({"pixel_values": crops}), settings, where, sources)
        for number, (top, left) in enumerate(group):
            windows.append(Window(top, left, window_size, [one[number] for one in logits], window_size))
    if scale == 1 and len(windows) == 1:
        # As the whole image is: one interpolation to the result's size.
        return View(target, [Window(0, 0, target, windows[0].logits, target)])
    return View(size, windows)


def window_starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin along one direction, so that they cover all of it; the last ends with it."""
    return [*range(0, length - window, step), length - window]


def _logits_both_ways(model, inputs, settings, where, sources) -> list[torch.Tensor]:
    """The logits (batch, classes, h, w); with flip those of the mirrored inputs too, mirrored back, or for "exp" the mean."""
    logits = [_logits(model, inputs, where, sources)]
    if settings.flip:
        mirrored = inputs.__class__({"pixel_values": inputs["pixel_values"].flip(-1)})
        logits.append(_logits(model, mirrored, where, sources).flip(-1))
        if settings.average == "exp":
            logits = [(logits[0] + logits[1]) / 2]
    return logits


def _logits(model, inputs, where, sources):
    parameter = _parameter(model)
    # Dtype applies to the floating-point inputs only.
    logits = model(**inputs.to(parameter.device, parameter.dtype)).logits
    if not torch.isfinite(logits.abs().amax()):  # a sixth of the time of looking at each
        raise CheckpointError(
            f"{where}: the model's logits hold NaN or infinity, so its label map would mean nothing; the training has "
            f"diverged, or {logits.dtype} is too narrow (try float32)"
        )
    return logits if sources is None else merge_classes(logits, sources)


def _label_map(views, size, settings) -> torch.Tensor:
    """Class ids (height, width) on the model's device, in the smallest type that holds them."""
    first = views[0].windows[0].logits[0]
    dtype = torch.uint8 if len(first) <= 256 else torch.uint16
    # Not by way of probabilities, whose rounding makes ties: then a single window would not be bit for bit the whole image.
    if only := only_logits(views):
        return upsampled_argmax(only.logits[0], size, only.canvas, dtype, only.origin)
    label_map = torch.empty(size, dtype=dtype, device=first.device)
    for rows, shares in joined_bands(views, size, settings.average):
        label_map[rows] = shares.argmax(0).to(dtype)
    return label_map


def _shares(views, size, settings, return_confidence, return_probabilities):
    if not return_confidence and not return_probabilities:
        return None, None
    num_classes = len(views[0].windows[0].logits[0])
    confidence = np.empty(size, np.float32) if return_confidence else None
    probabilities = np.empty((num_classes, *size), np.float32) if return_probabilities else None
    for rows, shares in joined_bands(views, size, settings.average):
        if return_confidence:
            confidence[rows] = shares.amax(0).cpu().numpy()
        if return_probabilities:
            probabilities[:, rows] = shares.cpu().numpy()
    return confidence, probabilities


def merge_classes(logits: torch.Tensor, sources: list[list[int]]) -> torch.Tensor:
    """Logits of classes that are each made of several: their probabilities summed.

    A class without sources is never the best. As the softmax's denominator is common to all, the logit of a sum of probabilities
    is the logarithm of the sum of exponentials.

    Args:
        logits: (batch, classes, height, width).
        sources: for each new class the old classes it is made of.

    Returns:
        (batch, len(sources), height, width).
    """
    never = torch.full_like(logits[:, :1], torch.finfo(logits.dtype).min / 4)
    return torch.cat([logits[:, of].logsumexp(1, keepdim=True) if of else never for of in sources], dim=1)


def _parameter(model):
    return next(model.parameters())


@contextmanager
def inference(model) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in its own mode (parts may be frozen in eval)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
