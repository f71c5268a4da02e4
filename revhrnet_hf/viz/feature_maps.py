"""A network's feature maps as images: their principal components, or their mean activation.

The same rule turns maps of all networks into images, so that two networks can be compared.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..errors import CheckpointError

NUM_COMPONENTS = 3  # red, green, blue
CLIPPED_PERCENT = 1  # at either end of the scale, so that single pixels do not stretch it


def feature_maps(model, inputs) -> dict[int, np.ndarray]:
    """A model's `hidden_states`: for RevHRNet the last map of each stream, for HRNetV2 its last stage's streams.

    Args:
        model: a Transformers model for semantic segmentation, in eval mode.
        inputs: the whole image as the model's input, from `evaluation.network_input.network_inputs`.

    Returns:
        stride → (channels, height, width), float32, finest first, of the image without padding. If several maps have one stride,
        the last of them.

    Raises:
        CheckpointError: the model returns no feature maps.
    """
    parameter = next(model.parameters())
    tensors = inputs.tensors.to(parameter.device, parameter.dtype)
    with torch.inference_mode():
        hidden_states = model(**tensors, output_hidden_states=True).hidden_states or ()
    height = inputs.padded_size[0]
    # A transformer's hidden states are sequences of tokens, without height and width.
    maps = {
        _stride(height, x.shape[-2]): _without_padding(x[0].float().cpu().numpy(), inputs) for x in hidden_states if x.ndim == 4
    }
    if not maps:
        raise CheckpointError(
            f"{type(model).__name__} gives no feature maps (4-dimensional `hidden_states`): choose a RevHRNet, an HRNetV2 or "
            "another convolutional network"
        )
    return dict(sorted(maps.items()))


def _without_padding(features: np.ndarray, inputs) -> np.ndarray:
    """A map (channels, height, width) of the padded input, cropped to the cells that the image touches."""
    kept = []
    for cells, whole, start, length in zip(features.shape[1:], inputs.padded_size, inputs.place, inputs.size, strict=True):
        kept.append(slice(start * cells // whole, -(-(start + length) * cells // whole)))
    return features[:, *kept]


def _stride(image_height: int, map_height: int) -> int:
    """A power of two: the network rounds up heights that are no multiple of the stride."""
    return 2 ** round(np.log2(image_height / map_height))


def component_images(maps: Sequence[np.ndarray], images: Sequence[Image.Image]) -> tuple[list[np.ndarray], float]:
    """The first three principal components of maps as red, green and blue.

    The components are computed over all pixels of all maps together, so that a colour means the same in all of them. Principal
    component analysis leaves the sign of a component open; here a component is larger where the image is brighter. Each is scaled
    from its 1st to its 99th percentile.

    Args:
        maps: of one network at one stride, (channels, height, width), one for each image.
        images: the images of the maps.

    Returns:
        (height, width, 3) uint8 for each map, and the three components' share of the maps' variance (1 if there is none).
    """
    pixels = _pixels(maps)
    pixels -= pixels.mean(axis=0)
    variances, directions = np.linalg.eigh(pixels.T @ pixels)
    largest = slice(None, -1 - NUM_COMPONENTS, -1)
    components = pixels @ directions[:, largest]
    brightness = np.concatenate([_brightness(image, x.shape[1:]) for image, x in zip(images, maps, strict=True)])
    components *= np.where((brightness - brightness.mean()) @ components < 0, -1, 1)
    colours = np.zeros((len(components), NUM_COMPONENTS), dtype=np.uint8)  # a map of fewer channels has fewer components
    colours[:, : components.shape[1]] = _eight_bit(components)
    total = variances.sum()
    return _split(colours, maps), float(variances[largest].sum() / total) if total > 0 else 1.0


def mean_images(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mean over channels at each pixel, scaled over all maps together: (height, width) uint8 for each map."""
    return _split(_eight_bit(_pixels(maps).mean(axis=1)), maps)


def _pixels(maps: Sequence[np.ndarray]) -> np.ndarray:
    """All pixels of the maps, (pixels, channels)."""
    return np.concatenate([x.reshape(len(x), -1).T for x in maps]).astype(np.float64)


def _split(values: np.ndarray, maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The reverse of `_pixels`: one array for each map."""
    ends = np.cumsum([x[0].size for x in maps])[:-1]
    return [part.reshape(*x.shape[1:], *values.shape[1:]) for part, x in zip(np.split(values, ends), maps, strict=True)]


def _brightness(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(image.convert("L").resize(size[::-1], Image.Resampling.BOX), dtype=np.float64).ravel()


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """Each column scaled from its low to its high percentile, to 0 to 255; a constant column becomes 0."""
    low, high = np.percentile(values, (CLIPPED_PERCENT, 100 - CLIPPED_PERCENT), axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1)
    return (255 * scaled.clip(0, 1) + 0.5).astype(np.uint8)
