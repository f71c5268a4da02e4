"""From an image to what a network takes, with any image processor: always the whole image, and known where it lies in it.

A processor may crop the centre or pad, so that logits cover a part of the image, or more than the image. Cropping is switched
off. Padding, which a network may need, stays and is undone on the logits: the image's place in the input is found, not assumed.
A processor that does anything else to the image's geometry than resizing it as a whole is refused.
"""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import PIL.Image
import torch

from ..errors import CheckpointError
from .settings import InferenceSettings, Size

CUTTING = ("do_center_crop", "do_split_image")  # options with which an image processor shows a part of the image
PADDING = "do_pad"
PROBED_SIZES: tuple[Size, ...] = ((161, 243), (243, 161))  # odd, wide and tall
GREY_TOLERANCE = 0.01  # of the range from black to white: rounding to 8 bits, and overshoot of cubic filters

_PROBED: WeakKeyDictionary = WeakKeyDictionary()
"""The state in which an image processor was last found to show whole images."""


@dataclass(frozen=True)
class NetworkInput:
    """An image at one scale as the network takes it.

    Attributes:
        tensors: what the image processor gives (a `BatchFeature`): `pixel_values` (1, 3, height, width), and whatever else.
        place: (top, left) of the image in `pixel_values`; the rest is padding.
        size: (height, width) of the image there.
    """

    tensors: Any
    place: tuple[int, int]
    size: Size

    @property
    def padded_size(self) -> Size:
        return tuple(self.tensors["pixel_values"].shape[-2:])

    def canvas(self, target: Size) -> tuple[float, float]:
        """(height, width) that all of the input covers where the image covers `target`."""
        return tuple(whole * edge / own for whole, edge, own in zip(self.padded_size, target, self.size, strict=True))

    def origin(self, target: Size) -> tuple[float, float]:
        """(row, column) of that canvas at which the image begins."""
        return tuple(start * edge / own for start, edge, own in zip(self.place, target, self.size, strict=True))


def network_inputs(image_processor, image: PIL.Image.Image, settings: InferenceSettings) -> list[NetworkInput]:
    """The image as the network takes it, once for each scale.

    With windows or scales the image processor's padding is off.

    Raises:
        CheckpointError: the image processor shows something else than the whole image.
    """
    check_shows_whole_images(image_processor)
    if settings.is_whole:
        return [_whole(image_processor, image)]
    own = _unpadded(image_processor, image)
    height, width = own.size
    inputs = []
    for scale in settings.scales:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # From the original each time, so that nothing is resized twice.
        inputs.append(own if scale == 1 else _of_size(image_processor, image, size))
    return inputs


def _whole(image_processor, image) -> NetworkInput:
    if not getattr(image_processor, PADDING, None):
        return _unpadded(image_processor, image)
    unpadded = _unpadded(image_processor, image)
    padded = image_processor(images=[image], return_tensors="pt", **_switched_off(image_processor, *CUTTING))
    return NetworkInput(padded, _place_in(image_processor, padded["pixel_values"], unpadded), unpadded.size)


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
    """Those of the options that are on, for a call."""
    return {option: False for option in options if getattr(image_processor, option, None)}


def _place_in(image_processor, padded: torch.Tensor, unpadded: NetworkInput) -> tuple[int, int]:
    """Where the image lies in the padded input: in a corner or the centre. Found by its pixels, of which none may differ."""
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
    """Tries an image processor, with cropping and padding off, on drawn images: each must come out whole, resized at most.

    Raises:
        CheckpointError: it crops, pads, splits or turns images in a way that no option switches off.
    """
    state = repr(sorted(vars(image_processor).items(), key=lambda item: item[0]))
    if _PROBED.get(image_processor) == state:
        return
    for size in PROBED_SIZES:
        _check_shows_all_of(image_processor, size)
    _PROBED[image_processor] = state


def _check_shows_all_of(image_processor, size: Size) -> None:
    name = type(image_processor).__name__
    advice = "label maps would not fit the image: use another image processor, or one without cropping, in the checkpoint"
    off = _switched_off(image_processor, PADDING, *CUTTING)
    try:
        # Four calls: images of one call may be put together.
        outputs = [image_processor(images=[image], return_tensors="pt", **off)["pixel_values"] for image in _drawn(size)]
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot make pixel_values of an image of {_by(size)} pixels ({error}): {advice}") from error
    if any(output.ndim != 4 or len(output) != 1 or output.shape != outputs[0].shape for output in outputs):
        raise CheckpointError(f"{name} makes {list(outputs[0].shape)} of one image, not (1, 3, height, width): {advice}")
    black, white, *ramps = (output[0].double() for output in outputs)
    found = [(ramp - black) / (white - black) for ramp in ramps]
    shown = outputs[0].shape[-2:]
    for values, old, new, shape in zip(found, size, shown, ((-1, 1), (1, -1)), strict=True):
        expected = (torch.arange(new, dtype=torch.float64) + 0.5).reshape(shape) / new
        # The filter's reach at the edges: a pixel of the coarser grid.
        allowed = GREY_TOLERANCE + 1 / min(old, new)
        # Not "larger than": a comparison with NaN is false.
        if not bool(((values - expected).abs() <= allowed).all()):
            raise CheckpointError(
                f"{name} does not show the network all of an image, and nothing but the image ({_by(size)} pixels become "
                f"{_by(shown)}; do_center_crop and do_pad are off): {advice}"
            )


def _drawn(size: Size) -> list[PIL.Image.Image]:
    """Black, white, brighter from top to bottom, brighter from left to right."""
    height, width = size
    down = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, size)
    across = np.broadcast_to((np.arange(width)[None] + 0.5) / width, size)
    planes = [np.zeros(size), np.ones(size), down, across]
    return [PIL.Image.fromarray(np.repeat((255 * plane).round().astype(np.uint8)[..., None], 3, axis=2)) for plane in planes]


def _by(size) -> str:
    return "×".join(map(str, size))
