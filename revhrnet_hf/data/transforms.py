"""The joint augmentation of image and label map: random scale, crop and flip, as in HRNet (arXiv 1908.07919)."""

import hashlib
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from torch.utils.data import ConcatDataset
from torchvision.transforms.v2 import functional as TF

from ..errors import DataError
from ..models.image_processing_pil_revhrnet import nearest_source_indices
from .features import OpenedRows
from .listing import mismatch


class TrainingTransform:
    """Scales, crops, flips, normalises and pads one image with its label map.

    The image is scaled so that its long side is `base_size` × a factor (antialiased bilinear; labels by nearest neighbour). If
    the result is larger than `crop_size`, it is cropped. Only the crop is computed, so that the cost depends on the crop's size
    and not on the image's. If the result is smaller, it is padded at the bottom and right: the image with 0 after normalisation,
    which is the mean colour, the labels with `ignore_index`.

    Args:
        image_processor: rescales and normalises, with the backbone's mean and std.
        crop_size: (height, width) of the output, in pixels.
        base_size: the long side at factor 1, in pixels.
        scale_range: smallest and largest factor.
        scale_step: the step between possible factors; both ends of the range are possible. None draws from the whole range.
        flip: probability of a left-right flip.
        ignore_index: the label of padded pixels, up to 255.
    """

    def __init__(
        self,
        image_processor,
        crop_size: tuple[int, int],
        base_size: int,
        scale_range: tuple[float, float] = (0.5, 2.1),
        scale_step: float | None = 0.1,
        flip: float = 0.5,
        ignore_index: int = 255,
    ):
        self.image_processor = image_processor
        self.crop_size = tuple(crop_size)
        self.base_size = base_size
        self.scale_range = tuple(scale_range)
        self.scale_step = scale_step
        self.flip = flip
        self.ignore_index = ignore_index

    def __call__(self, image: PIL.Image.Image, label_map: PIL.Image.Image) -> dict[str, torch.Tensor]:
        """Augments `image` (RGB) and `label_map` (L, train ids), which must have the same size.

        Returns:
            `pixel_values` float32 (3, height, width) and `labels` uint8 (height, width), of `crop_size`.
        """
        return self.tensors(*self.crop(image, label_map))

    def crop(
        self, image: PIL.Image.Image, label_map: PIL.Image.Image, generator: torch.Generator | None = None
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """The first part of the augmentation, with Pillow and NumPy: scales, crops and flips.

        Args:
            generator: the source of random numbers; torch's global generator if None.

        Returns:
            Pixels (RGB) and labels uint8 (height, width), not larger than `crop_size`.
        """
        ratio = round(self.base_size * self._draw_factor(generator)) / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        crop_height, crop_width = min(height, self.crop_size[0]), min(width, self.crop_size[1])
        slacks = height - crop_height, width - crop_width
        top, left = (torch.randint(slack + 1, (), generator=generator).item() for slack in slacks)
        # The crop's box in the unscaled image. Pillow's filter also reads pixels beyond the box, so the result equals a crop of
        # the whole scaled image, except for rounding (at most 2 grey levels).
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + crop_width) * across, (top + crop_height) * down)
        rows = nearest_source_indices(image.height, height)[top : top + crop_height]
        columns = nearest_source_indices(image.width, width)[left : left + crop_width]
        # Only the needed part is converted to an array.
        part = label_map.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        labels = np.asarray(part).take(rows - rows[0], 0).take(columns - columns[0], 1)
        pixels = image.resize((crop_width, crop_height), Resampling.BILINEAR, box)
        if torch.rand((), generator=generator) < self.flip:
            pixels, labels = PIL.ImageOps.mirror(pixels), np.ascontiguousarray(labels[:, ::-1])
        return pixels, labels

    def tensors(self, pixels: PIL.Image.Image, labels: np.ndarray) -> dict[str, torch.Tensor]:
        """The second part of the augmentation: normalises and pads the result of `crop`."""
        planes = TF.pil_to_tensor(pixels)
        processed = self.image_processor(planes, do_resize=False, do_pad=False)["pixel_values"][0]  # batching would copy it
        return {
            "pixel_values": self._pad(torch.as_tensor(processed), 0.0),
            "labels": self._pad(torch.from_numpy(labels), self.ignore_index),
        }

    def _draw_factor(self, generator) -> float:
        low, high = self.scale_range
        if self.scale_step is None:
            return low + (high - low) * torch.rand((), generator=generator).item()
        steps = round((high - low) / self.scale_step)
        return low + self.scale_step * torch.randint(steps + 1, (), generator=generator).item()

    def _pad(self, plane: torch.Tensor, value: float) -> torch.Tensor:
        bottom, right = (want - have for have, want in zip(plane.shape[-2:], self.crop_size, strict=True))
        return plane if bottom == right == 0 else F.pad(plane, (0, right, 0, bottom), value=value)


class TrainingSamples(torch.utils.data.Dataset):
    """A dataset with its training augmentation. All random draws depend only on (seed, epoch, index).

    So a resumed run sees the same images, with any number of workers and processes. `set_epoch` also reaches workers that are
    already running.

    Args:
        dataset: columns `image`, `label_map`, `image_id`, as from `load_segmentation_dataset`; or a concatenation of several.
        transform: the augmentation. Its `crop` gets files that are opened but not decoded (`RgbImageFile`), so that only the rows
            that the crop needs are decoded. `revhrnet audit` finds damage in the other rows, and unknown ids there.
        seed: the run's seed.
        skip_bad: whether to replace an unusable image by the next one and mark it in `bad`; else it is an error.

    Attributes:
        bad: (images,) uint8, 1 for each image that was unusable at least once; all workers write to it.
    """

    def __init__(
        self, dataset: datasets.Dataset | ConcatDataset, transform: TrainingTransform, seed: int, skip_bad: bool = False
    ):
        parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        self._rows = ConcatDataset([OpenedRows(part) for part in parts])
        self.skip_bad = skip_bad
        self.bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        self.transform = transform
        self.seed = seed
        # In shared memory, because persistent workers keep their own copy of this object.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The augmented image `index`. An index beyond the end repeats an image with other random draws.

        Raises:
            DataError: the image cannot be read or does not fit its label map; with `skip_bad`, no image can be used.
        """
        return self.transform.tensors(*self.crop(index))

    def crop(self, index: int) -> tuple[PIL.Image.Image, np.ndarray]:
        """The augmented image `index` before normalisation and padding: pixels (RGB) and labels; errors as for `self[index]`."""
        row = index % len(self)
        draw_seed = _draw_seed(self.seed, int(self._epoch), index)
        return self._next_usable(row, draw_seed) if self.skip_bad else self._crop(row, draw_seed)

    def _next_usable(self, row: int, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        last: DataError | None = None
        for step in range(len(self)):
            candidate = (row + step) % len(self)
            # Marked images are tried again: another crop may not need the damaged part, and the result must not depend on when a
            # worker marks an image.
            try:
                return self._crop(candidate, draw_seed)
            except DataError as error:
                last = error
                self.bad[candidate] = 1
        raise DataError(f"None of the {len(self)} training images can be used. {last or ''}".rstrip())

    def _crop(self, row: int, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        example = self._read(row)
        # Not torch's global generator: seeding that one records a traceback each time, which is slow.
        generator = torch.Generator().manual_seed(draw_seed)
        return self.transform.crop(example["image"], example["label_map"], generator)

    def _read(self, row: int) -> dict[str, Any]:
        example = self._rows[row]
        image, label_map = example["image"], example["label_map"]
        image.orient_to_fit(label_map.size)
        if image.size != label_map.size:
            raise DataError(
                mismatch(f"Image {example['image_id']}", image.size, image.orientation, "its label map", label_map.size)
            )
        return example


def _draw_seed(seed: int, epoch: int, index: int) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
