"""A dataset's images as a network takes them, read ahead by worker processes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.listing import mismatch
from ..data.loader import build_loader
from ..errors import DataError
from ..images import orient_to_fit
from .network_input import NetworkInput, check_shows_whole_images, network_inputs
from .settings import InferenceSettings, Size


class Sample(NamedTuple):
    """An image of a dataset: its row and id, its `network_inputs`, its size, and the true ids (height, width) or None."""

    index: int
    image_id: str
    inputs: list[NetworkInput]
    size: Size
    references: torch.Tensor | None


class Samples(Dataset):
    """Rows of a dataset, read and prepared."""

    def __init__(self, dataset, indices: list[int], image_processor, settings: InferenceSettings):
        check_shows_whole_images(image_processor)  # once, and not in each worker
        self.dataset, self.indices, self.image_processor, self.settings = dataset, indices, image_processor, settings

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        row = self.dataset[self.indices[position]]
        image, references = row["image"], row["label_map"]
        image = image if references is None else orient_to_fit(image, references.size)
        references = None if references is None else torch.from_numpy(np.array(references))
        size = (image.height, image.width)
        if references is not None:
            check_same_size(row["image_id"], size, tuple(references.shape))
        inputs = network_inputs(self.image_processor, image, self.settings)
        return Sample(self.indices[position], row["image_id"], inputs, size, references)


def check_same_size(image_id: str, size: Size, label_map_size: Size) -> None:
    """Raises a DataError unless an image and its label map are of one size, (height, width)."""
    if size != label_map_size:
        raise DataError(mismatch(f"image {image_id}", size[::-1], 1, "its label map", label_map_size[::-1]))


def load(samples: Samples, num_workers: int | None, device: torch.device) -> Iterator[Sample]:
    """The samples in order, for a network on `device`; see `build_loader`."""
    return iter(build_loader(samples, num_workers, device, collate_fn=_unchanged))


def _unchanged(sample):
    return sample
