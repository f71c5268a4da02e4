"""From an image, or a row of a dataset, to a network's input, with any image processor.

The input must show the whole image, at a known place. An image processor may crop or pad, so that the logits would cover a part
of the image, or more than the image. Cropping is switched off. Padding, which a network may need, stays and is undone on the
logits: the image's place in the input is found by its pixels, not assumed. A processor that changes the image's geometry in any
other way than resizing it as a whole is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..data.listing import mismatch
from ..data.loader import build_loader
from ..errors import CheckpointError, DataError
from ..images import orient_to_fit
from ..models.rgb import as_rgb
from .settings import InferenceSettings, Size

CUTTING = ("do_center_crop", "do_split_image")  # options with which an image processor cuts the image
PADDING = "do_pad"
TESTED_SIZES: tuple[Size, ...] = ((161, 243), (243, 161))  # odd, wide and tall
GREY_TOLERANCE = 0.01  # of the range from black to white: rounding to 8 bits, and overshoot of cubic filters

_TESTED: WeakKeyDictionary = WeakKeyDictionary()
"""For each image processor its options when it last passed `check_shows_whole_images`."""


@dataclass(frozen=True)
class NetworkInput:
    """An image at one scale as the network takes it.

    Attributes:
        tensors: the image processor's output (a `BatchFeature`): `pixel_values` (1, 3, height, width), and others it may add.
        place: (top, left) of the image in `pixel_values`; the rest is padding.
        size: (height, width) of the image there.
    """

    tensors: Any
    place: tuple[int, int]
    size: Size

    def pin_memory(self) -> "NetworkInput":
        """With its tensors in pinned memory, from which a GPU fetches them while the host goes on; a DataLoader calls it."""
        pinned = {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in self.tensors.items()}
        return replace(self, tensors=self.tensors.__class__(pinned))

    @property
    def padded_size(self) -> Size:
        return tuple(self.tensors["pixel_values"].shape[-2:])

    def canvas(self, target: Size) -> tuple[float, float]:
        """(height, width) of the whole input, padding included, at the scale at which the image is of size `target`."""
        return tuple(whole * edge / own for whole, edge, own in zip(self.padded_size, target, self.size, strict=True))

    def origin(self, target: Size) -> tuple[float, float]:
        """(row, column) of that canvas at which the image begins."""
        return tuple(start * edge / own for start, edge, own in zip(self.place, target, self.size, strict=True))


def network_inputs(
    image_processor, image: PIL.Image.Image, settings: InferenceSettings, name: str = "the image"
) -> list[NetworkInput]:
    """The image as the network takes it, once for each scale.

    With windows or scales the image processor's padding is switched off.

    Args:
        image: of any mode; it is converted to RGB.
        name: what errors call it.

    Raises:
        CheckpointError: the image processor does not show the whole image and nothing else.
        DataError: the image is larger than the size to which the image processor pads.
        ValueError: the image's values are outside the valid range (see `as_rgb`).
    """
    check_shows_whole_images(image_processor)
    image = as_rgb(image)  # before it is scaled: Pillow resizes palette and 1-bit images by nearest neighbour
    if settings.is_whole:
        return [_whole(image_processor, image, name)]
    own = _unpadded(image_processor, image)
    height, width = own.size
    inputs = []
    for scale in settings.scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # From the original each time, so that nothing is resized twice.
        inputs.append(own if scale == 1 else _of_size(image_processor, image, size))
    return inputs


def _whole(image_processor, image, name) -> NetworkInput:
    if not getattr(image_processor, PADDING, None):
        return _unpadded(image_processor, image)
    unpadded = _unpadded(image_processor, image)
    _check_fits_padding(image_processor, image, unpadded.size, name)
    padded = image_processor(images=[image], return_tensors="pt", **_switched_off(image_processor, *CUTTING))
    return NetworkInput(padded, _place_in(image_processor, padded["pixel_values"], unpadded), unpadded.size)


def _check_fits_padding(image_processor, image: PIL.Image.Image, size: Size, name: str) -> None:
    """Raises a DataError if an image, resized to (height, width) `size`, is larger than the fixed size it is to be padded to."""
    fixed = getattr(image_processor, "pad_size", None)
    if not fixed or isinstance(fixed, int):  # an int is what sizes are made multiples of
        return
    limit = fixed.get("height"), fixed.get("width")
    if None not in limit and any(edge > most for edge, most in zip(size, limit, strict=True)):
        resized = "" if size == (image.height, image.width) else f", resized to {_by(size)}"
        raise DataError(
            f"{name} cannot be segmented: its {_by((image.height, image.width))} pixels (height×width{resized}) are more than "
            f"the {_by(limit)} to which the checkpoint's {type(image_processor).__name__} pads images (pad_size). Use windows "
            "(--window), which are not padded, or set do_resize and a size in its preprocessor_config.json."
        )


def _unpadded(image_processor, image, **options) -> NetworkInput:
    off = _switched_off(image_processor, PADDING, *CUTTING)
    tensors = image_processor(images=[image], return_tensors="pt", **off, **options)
    return NetworkInput(tensors, (0, 0), tuple(tensors["pixel_values"].shape[-2:]))


def _of_size(image_processor, image, size: Size) -> NetworkInput:
    resized = image.resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    scaled = _unpadded(image_processor, resized, **_switched_off(image_processor, "do_resize"))
    if scaled.size != size:
        raise CheckpointError(
            f"{type(image_processor).__name__} makes {_by(scaled.size)} pixels of an image of {_by(size)} although do_resize is "
            "off: leave the scales out, or use another image processor"
        )
    return scaled


def _switched_off(image_processor, *options: str) -> dict[str, bool]:
    """Keyword arguments that switch off, for one call, those of the options that are on."""
    return {option: False for option in options if getattr(image_processor, option, None)}


def _place_in(image_processor, padded: torch.Tensor, unpadded: NetworkInput) -> tuple[int, int]:
    """(top, left) of the image in the padded input, a corner or the centre: the place where every pixel is the image's."""
    height, width = unpadded.size
    pixels = unpadded.tensors["pixel_values"]
    slack = padded.shape[-2] - height, padded.shape[-1] - width
    if min(slack) >= 0:
        tops, lefts = (dict.fromkeys((0, edge // 2, -(-edge // 2), edge)) for edge in slack)
        for top in tops:
            for left in lefts:
                if torch.equal(padded[..., top : top + height, left : left + width], pixels):
                    return top, left
    raise CheckpointError(
        f"{type(image_processor).__name__} makes {_by(padded.shape[-2:])} pixels of an image that is {_by(unpadded.size)} "
        "without padding, in a way that cannot be undone: set do_pad to false in its preprocessor_config.json"
    )


def check_shows_whole_images(image_processor) -> None:
    """Tests an image processor, with cropping and padding off, on drawn images: each must stay whole, and may be resized.

    Raises:
        CheckpointError: it crops, pads, splits or turns images in a way that no option switches off.
    """
    options = repr(sorted(vars(image_processor).items(), key=lambda item: item[0]))
    if _TESTED.get(image_processor) == options:
        return
    for size in TESTED_SIZES:
        _check_shows_whole_image(image_processor, size)
    _TESTED[image_processor] = options


def _check_shows_whole_image(image_processor, size: Size) -> None:
    name = type(image_processor).__name__
    advice = "label maps would not fit the image: use another image processor, or one without cropping, in the checkpoint"
    off = _switched_off(image_processor, PADDING, *CUTTING)
    try:
        # One call for each image: a processor may pad the images of one call to a common size.
        outputs = [image_processor(images=[image], return_tensors="pt", **off)["pixel_values"] for image in _drawn_images(size)]
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot make pixel_values of an image of {_by(size)} pixels ({error}): {advice}") from error
    if any(output.ndim != 4 or len(output) != 1 or output.shape != outputs[0].shape for output in outputs):
        raise CheckpointError(f"{name} makes {list(outputs[0].shape)} of one image, not (1, 3, height, width): {advice}")
    if not _shows_whole_ramps(outputs, size):
        raise CheckpointError(
            f"{name} does not show the network all of an image, and nothing but the image ({_by(size)} pixels become "
            f"{_by(outputs[0].shape[-2:])}; do_center_crop and do_pad are off): {advice}"
        )


def _shows_whole_ramps(outputs: list[torch.Tensor], size: Size) -> bool:
    """Whether a processor's outputs for `_drawn_images` rise evenly from edge to edge, as the drawn images do."""
    black, white, *ramps = (output[0].double() for output in outputs)
    brightness = [(ramp - black) / (white - black) for ramp in ramps]
    for values, old, new, shape in zip(brightness, size, outputs[0].shape[-2:], ((-1, 1), (1, -1)), strict=True):
        expected = (torch.arange(new, dtype=torch.float64) + 0.5).reshape(shape) / new
        # At the edges the resizing filter reaches as far as a pixel of the coarser grid.
        allowed = GREY_TOLERANCE + 1 / min(old, new)
        # Not "larger than": NaN must be refused, and a comparison with it is false.
        if not bool(((values - expected).abs() <= allowed).all()):
            return False
    return True


def _drawn_images(size: Size) -> list[PIL.Image.Image]:
    """A black image, a white one, one that brightens from top to bottom, and one that brightens from left to right."""
    height, width = size
    down = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, size)
    across = np.broadcast_to((np.arange(width)[None] + 0.5) / width, size)
    planes = [np.zeros(size), np.ones(size), down, across]
    return [PIL.Image.fromarray(np.repeat((255 * plane).round().astype(np.uint8)[..., None], 3, axis=2)) for plane in planes]


def _by(size) -> str:
    return "×".join(map(str, size))


class Sample(NamedTuple):
    """An image of a dataset, ready for the network.

    Attributes:
        index: its row.
        image_id: its name.
        inputs: its `network_inputs`.
        size: (height, width) in pixels.
        references: true class ids (height, width), or None.
    """

    index: int
    image_id: str
    inputs: list[NetworkInput]
    size: Size
    references: torch.Tensor | None


class Samples(Dataset):
    """Rows of a dataset, read and prepared for the network."""

    def __init__(self, dataset, indices: list[int], image_processor, settings: InferenceSettings):
        check_shows_whole_images(image_processor)  # here once, and not in each worker
        self.dataset, self.indices, self.image_processor, self.settings = dataset, indices, image_processor, settings

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        row = self.dataset[self.indices[position]]
        image, references = row["image"], row["label_map"]
        if references is not None:
            image, references = orient_to_fit(image, references.size), torch.from_numpy(np.array(references))
            _check_same_size(row["image_id"], (image.height, image.width), tuple(references.shape))
        inputs = network_inputs(self.image_processor, image, self.settings, f"image {row['image_id']}")
        return Sample(self.indices[position], row["image_id"], inputs, (image.height, image.width), references)


def _check_same_size(image_id: str, size: Size, label_map_size: Size) -> None:
    if size != label_map_size:
        raise DataError(mismatch(f"image {image_id}", size[::-1], 1, "its label map", label_map_size[::-1]))


def read_ahead(samples: Samples, num_workers: int | None, device: torch.device, timeout: float = 0) -> Iterator[Sample]:
    """The samples in order, prepared by worker processes for a network on `device`; see `build_loader`."""
    return iter(build_loader(samples, num_workers, device, collate_fn=_no_batch, timeout=timeout))


def _no_batch(sample: Sample) -> Sample:
    return sample
