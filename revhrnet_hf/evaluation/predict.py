"""Label maps from a model: of single images, and of a dataset's.

Any Transformers model for semantic segmentation will do, with its own image processor. Images are run one by one: a
batch of several can change the last bits of the logits, and then the label map would depend on an image's neighbours.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from ..errors import DataError
from ..images import to_rgb
from ..models.upsampling import upsampled_argmax
from .calibration import Calibration, CalibrationCounts, temperature_of
from .network_input import Samples, network_inputs, read_ahead
from .settings import WHOLE, InferenceSettings, Size
from .sliding import ForwardPass, View, first_parameter, joined_bands, log_probability_bands, run_at_all_scales, sole_window


@dataclass(frozen=True)
class Segmentation:
    """A model's prediction for one image.

    Attributes:
        label_map: (height, width) class ids: uint8, or uint16 where there are more than 256 classes.
        confidence: (height, width) float32, the probability of the best class, from 0 to 1, at the temperature of the model's
            config (`confidence_temperature`); None unless asked for.
        probabilities: (classes, height, width) float32 that sum to 1 over the classes, at the same temperature; None unless
            asked for.
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
        image: the image, RGB, of any size; it may be smaller than a window.
        settings: windows, scales and mirroring.
        target_size: (height, width) of the result; by default the image's own.
        sources: for each class wanted the model's classes that count as it, whose probabilities are summed; the
            model's own classes if None.
        return_confidence, return_probabilities: what to give beside the label map.
        name: what errors call the image.

    Raises:
        CheckpointError: the model's logits are not finite, or its image processor does not show it the whole image.
        DataError: the image is larger than the size to which the image processor pads.
        RecipeError: the GPU's memory is not enough for an image or window of this size.
    """
    size = tuple(target_size or (image.height, image.width))
    inputs = network_inputs(image_processor, image, settings, name)
    with inference(model):
        views = run_at_all_scales(ForwardPass(model, settings, sources, name), inputs, size)
        label_map = _label_map(views, size, settings.average).cpu().numpy()
        if not return_confidence and not return_probabilities:
            return Segmentation(label_map)
        bands = _probability_bands(views, size, settings.average, temperature_of(getattr(model, "config", None)))
        num_classes = len(views[0].windows[0].logits[0])
        confidence, probabilities = _joined(bands, num_classes, size, return_confidence, return_probabilities)
    return Segmentation(label_map, confidence, probabilities)


def segment_frames(
    model,
    image_processor,
    frames: Iterable[PIL.Image.Image | np.ndarray],
    settings: InferenceSettings = WHOLE,
    *,
    return_confidence: bool = False,
) -> Iterator[tuple[PIL.Image.Image, Segmentation]]:
    """Segments a stream of frames, such as those of a camera or a video, for as long as it gives some.

    A frame is asked for when the caller asks for its segmentation, and none is kept, so that the memory does not depend on the
    length of the stream. Between two frames the model's training mode and the caller's grad mode are as the caller left them.

    Args:
        model, image_processor, settings, return_confidence: as in `segment`.
        frames: PIL images, or arrays (height, width, 3) of uint8, RGB (OpenCV's are BGR: give `frame[..., ::-1]`); sizes may
            differ.

    Yields:
        Each frame as an upright RGB image, and its segmentation.

    Raises:
        DataError: a frame is neither; the message gives its number, from 0.
        CheckpointError, RecipeError: as in `segment`.
    """
    for number, frame in enumerate(frames):
        image = _frame_image(frame, number)
        yield image, segment(model, image_processor, image, settings, return_confidence=return_confidence, name=f"frame {number}")


def _frame_image(frame: PIL.Image.Image | np.ndarray, number: int) -> PIL.Image.Image:
    if isinstance(frame, PIL.Image.Image):
        return to_rgb(frame)
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        return PIL.Image.fromarray(np.ascontiguousarray(frame))
    found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise DataError(f"frame {number} is {found}: give PIL images, or arrays (height, width, 3) of uint8, RGB")


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
        raise DataError(f"{len(sizes)} target sizes were given for {len(images)} images: give one for each image")
    return [
        segment(model, image_processor, image, settings, target_size=size, name=f"image {number}").label_map
        for number, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]


@dataclass(frozen=True)
class Predicted:
    """The prediction for an image of a dataset.

    Attributes:
        index: the image's row.
        image_id: its name.
        label_map: (height, width) predicted class ids, on the model's device.
        references: (height, width) true class ids on the CPU, or None.
        calibration: counts of its confidences; None unless asked for, or without references.
    """

    index: int
    image_id: str
    label_map: torch.Tensor
    references: torch.Tensor | None
    calibration: CalibrationCounts | None = None


def predict_dataset(
    model,
    image_processor,
    dataset,
    indices: Iterable[int],
    *,
    settings: InferenceSettings = WHOLE,
    sources: list[list[int]] | None = None,
    num_workers: int | None = 0,
    timeout: float = 0,
    calibration: Calibration | None = None,
) -> Iterator[Predicted]:
    """Label maps of a dataset's images, one by one, each at its image's own size.

    Between two images the caller's grad mode and the model's training mode are as the caller left them. Several iterators may
    take turns, and one may be abandoned before its end.

    Args:
        model, image_processor, settings, sources: as in `segment`; the bare model, not one wrapped for distributed training.
        dataset: a `datasets.Dataset` with the columns `image` (PIL, RGB), `label_map` (PIL, mode L, train ids, or None) and
            `image_id`.
        indices: which rows.
        num_workers: processes that read and prepare images; 0: this one; None: see `default_num_workers`.
        timeout: seconds after which a silent one of them is an error (a RuntimeError of torch's); 0: never.
        calibration: what to count of the confidences, or None.

    Raises:
        DataError: an image cannot be read, or its label map is of another size.
        CheckpointError, RecipeError: as in `segment`.
    """
    samples = Samples(dataset, list(indices), image_processor, settings)
    for index, image_id, inputs, size, references in read_ahead(samples, num_workers, first_parameter(model).device, timeout):
        with inference(model):
            views = run_at_all_scales(ForwardPass(model, settings, sources, f"image {image_id}"), inputs, size)
            label_map = _label_map(views, size, settings.average)
            counts = None
            if calibration is not None and references is not None:
                bands = log_probability_bands(views, size, settings.average)
                counts = calibration.count(bands, label_map, references)
        # A copy made outside: tensors of inference mode can neither be changed in place nor take part in training.
        yield Predicted(index, image_id, label_map.clone(), references, counts)


def _label_map(views: list[View], size: Size, average: str) -> torch.Tensor:
    """Class ids (height, width) on the model's device, in the smallest type that holds them."""
    first = views[0].windows[0].logits[0]
    dtype = torch.uint8 if len(first) <= 256 else torch.uint16
    # Not by way of probabilities: their rounding makes ties, and a single window would not be bit for bit the whole image.
    if window := sole_window(views):
        return upsampled_argmax(window.logits[0], size, window.canvas, dtype, window.origin)
    label_map = torch.empty(size, dtype=dtype, device=first.device)
    for rows, probabilities in joined_bands(views, size, average):
        label_map[rows] = probabilities.argmax(0).to(dtype)
    return label_map


def _probability_bands(views, size, average, temperature):
    """The bands of `joined_bands` at a temperature.

    It is applied to the joined probabilities. So the best class is that of temperature 1, with windows, scales and flips too.
    """
    if temperature == 1:
        yield from joined_bands(views, size, average)
        return
    for rows, log_probabilities in log_probability_bands(views, size, average):
        yield rows, log_probabilities.div_(temperature).softmax(0)


def _joined(bands, num_classes, size, return_confidence, return_probabilities):
    """Confidence (height, width) and probabilities (classes, height, width), each None unless asked for."""
    confidence = np.empty(size, np.float32) if return_confidence else None
    all_probabilities = np.empty((num_classes, *size), np.float32) if return_probabilities else None
    for rows, probabilities in bands:
        if return_confidence:
            confidence[rows] = probabilities.amax(0).cpu().numpy()
        if return_probabilities:
            all_probabilities[:, rows] = probabilities.cpu().numpy()
    return confidence, all_probabilities


@contextmanager
def inference(model) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in its own mode (parts may be frozen in eval mode)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
