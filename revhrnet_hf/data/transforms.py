"""The joint augmentation of image and label map: random scale, crop and flip, as HRNet does (arXiv 1908.07919)."""

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

    The image's long side becomes `base_size` × a factor (antialiased bilinear; labels by nearest neighbour). A crop is cut
    where the result is larger than `crop_size`; only what is in it is computed, so that the cost follows the crop's size and not
    the image's. What is smaller is padded at the bottom and right: the image with 0 after normalising, which is the mean
    colour, the labels with `ignore_index`.

    Args:
        image_processor: rescales and normalises, with the backbone's mean and std.
        crop_size: (height, width) of what comes out, in pixels.
        base_size: the long side at factor 1, in pixels.
        scale_range: smallest and largest factor.
        scale_step: factors are drawn from this grid, both ends included; None draws from the whole range.
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
        """Augments `image` (RGB) and `label_map` (L, train ids), which must be of one size.

        Returns:
            `pixel_values` float32 (3, height, width) and `labels` uint8 (height, width), of `crop_size`. Labels become the int64
            that the networks want on the device: a worker has an eighth to hand over, and memory that is shared is dear.
        """
        return self.tensors(*self.crop(image, label_map))

    def crop(
        self, image: PIL.Image.Image, label_map: PIL.Image.Image, generator: torch.Generator | None = None
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """The first part, by Pillow and NumPy only.

        Args:
            generator: what is drawn comes from it; from torch's global one if None.

        Returns:
            Pixels (RGB) and labels uint8 (height, width), scaled, cropped and flipped; up to `crop_size`.
        """
        ratio = round(self.base_size * self._draw_factor(generator)) / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        crop_height, crop_width = min(height, self.crop_size[0]), min(width, self.crop_size[1])
        slacks = height - crop_height, width - crop_width
        top, left = (torch.randint(slack + 1, (), generator=generator).item() for slack in slacks)
        # The crop's place in the image as it is. Pillow looks beyond it where the filter does: these are the pixels of the
        # whole image scaled, but for rounding (at most 2 grey levels, where a value lies between two).
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + crop_width) * across, (top + crop_height) * down)
        rows = nearest_source_indices(image.height, height)[top : top + crop_height]
        columns = nearest_source_indices(image.width, width)[left : left + crop_width]
        # Only this part becomes an array.
        part = label_map.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        labels = np.asarray(part).take(rows - rows[0], 0).take(columns - columns[0], 1)
        pixels = image.resize((crop_width, crop_height), Resampling.BILINEAR, box)
        if torch.rand((), generator=generator) < self.flip:
            pixels, labels = PIL.ImageOps.mirror(pixels), np.ascontiguousarray(labels[:, ::-1])
        return pixels, labels

    def tensors(self, pixels: PIL.Image.Image, labels: np.ndarray) -> dict[str, torch.Tensor]:
        """The second part: what `crop` gives, normalised and padded."""
        planes = TF.pil_to_tensor(pixels)
        processed = self.image_processor(planes, do_resize=False, do_pad=False)["pixel_values"][0]  # of a batch it made a copy
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
    """A dataset with its training augmentation, whose draws depend on nothing but (seed, epoch, index).

    So a resumed run, any number of workers and any number of processes see the same images. `set_epoch` reaches
    workers that are already running.

    Args:
        dataset: columns `image`, `label_map`, `image_id`, as `load_segmentation_dataset` gives them; or several, laid end to end.
        transform: its `crop` is given files that are opened and not decoded (`RgbImageFile`), so that only what the crop needs is
            read. Damage elsewhere in a file, and ids that its label space lacks, are for `scripts/audit_data.py`.
        seed: of the run.
        skip_bad: whether the next image takes the place of one that cannot be used; such are marked in `bad`. Else it is an
            error.

    Attributes:
        bad: (images,) uint8, 1 for each that at some time could not be used; all workers write to it.
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
        # Shared memory: persistent workers keep the copy of this object that they started with.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The augmented image `index`; an index beyond the end is an image again, with draws of its own.

        Raises:
            DataError: it cannot be read, or label map and image do not fit; with `skip_bad`, if that is so of all images.
        """
        place = index % len(self)
        draw_seed = _draw_seed(self.seed, int(self._epoch), index)
        crop = self._next_usable(place, draw_seed) if self.skip_bad else self._crop(place, draw_seed)
        return self.transform.tensors(*crop)

    def _next_usable(self, place: int, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        last: DataError | None = None
        for step in range(len(self)):
            candidate = (place + step) % len(self)
            # Marked ones are tried again: another crop may have no use for what is bad, and when a worker marks it is chance.
            try:
                return self._crop(candidate, draw_seed)
            except DataError as error:
                last = error
                self.bad[candidate] = 1
        raise DataError(f"None of the {len(self)} training images can be used. {last or ''}".rstrip())

    def _crop(self, place: int, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        example = self._read(place)
        # Not torch's global generator: to seed that takes a note of the traceback each time.
        generator = torch.Generator().manual_seed(draw_seed)
        return self.transform.crop(example["image"], example["label_map"], generator)

    def _read(self, place: int) -> dict[str, Any]:
        example = self._rows[place]
        image, label_map = example["image"], example["label_map"]
        image.fit(label_map.size)
        if image.size != label_map.size:
            raise DataError(
                mismatch(f"Image {example['image_id']}", image.size, image.orientation, "its label map", label_map.size)
            )
        return example


def _draw_seed(seed: int, epoch: int, index: int) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
