"""How training crops come from the loader's workers to the device: as bytes, which the device then normalises.

Bytes are a quarter of the float32 values, in the shared memory through which workers pass them and on the way to a GPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .transforms import TrainingSamples

LEVELS = 256  # values of a byte


class ByteCrops(torch.utils.data.Dataset):
    """The crops of `samples` before normalisation, padded to `crop_size` at the bottom and right.

    An item has `pixels` uint8 (height, width, 3), `labels` uint8 (height, width), and `size` int64 (2,), the height and width of
    the crop without its padding. `ByteNormalisation` makes of a batch of these what `samples` itself gives.
    """

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Errors as for `samples[index]`."""
        pixels, labels = self.samples.crop(index)
        transform = self.samples.transform
        height, width = labels.shape
        missing = transform.crop_size[0] - height, transform.crop_size[1] - width
        pixels = torch.from_numpy(np.array(pixels))
        return {
            "pixels": torch.nn.functional.pad(pixels, (0, 0, 0, missing[1], 0, missing[0])),
            "labels": torch.nn.functional.pad(
                torch.from_numpy(labels), (0, missing[1], 0, missing[0]), value=transform.ignore_index
            ),
            "size": torch.tensor(labels.shape),
        }


class ByteNormalisation:
    """Normalises batches of `ByteCrops` on a device, to the very values that the image processor computes.

    They are looked up in a table of what the image processor makes of each byte in each channel. So there is one definition of
    the normalisation, and no rounding of the device's own.

    Args:
        image_processor: rescales and normalises each pixel for itself; resizing and padding are switched off.
        device: of the batches.
    """

    def __init__(self, image_processor, device: torch.device):
        levels = torch.arange(LEVELS, dtype=torch.uint8).expand(3, 1, LEVELS)
        table = torch.as_tensor(image_processor(levels, do_resize=False, do_pad=False)["pixel_values"][0])
        self.table = table.flatten().to(device, torch.float32)
        self.first_of_channel = torch.arange(0, 3 * LEVELS, LEVELS, dtype=torch.int32, device=device)

    def __call__(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Normalises a batch; padding becomes 0, the mean colour.

        Args:
            pixels: uint8 (images, height, width, 3), on the device.
            sizes: height and width of each image without its padding.

        Returns:
            float32 (images, 3, height, width), channels-last in memory.
        """
        entries = pixels.to(torch.int32).add_(self.first_of_channel)
        values = self.table.index_select(0, entries.flatten()).view(pixels.shape).permute(0, 3, 1, 2)
        for image, (height, width) in zip(values, sizes, strict=True):
            if (height, width) != image.shape[1:]:
                image[:, height:] = 0
                image[:, :height, width:] = 0
        return values
