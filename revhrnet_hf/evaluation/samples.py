"""A data set's pictures as a network takes them, read by several processes or threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.workers import obey_parent_only, reads_in_threads
from ..errors import DataError
from .network_input import NetworkInput, check_shows_whole_images, network_inputs
from .settings import InferenceSettings, Size

READ_PIXELS = 2**22  # of pictures that are read at once between forward passes


class Sample(NamedTuple):
    """An image of a dataset: its row and id, its `network_inputs`, its size, and the true ids (height, width) or None."""

    index: int
    image_id: str
    inputs: list[NetworkInput]
    size: Size
    references: torch.Tensor | None


class Samples(Dataset):
    """Rows of a data set, read and then prepared."""

    def __init__(self, dataset, indices: list[int], image_processor, settings: InferenceSettings):
        check_shows_whole_images(image_processor)  # once, and not in each worker
        self.dataset, self.indices, self.image_processor, self.settings = dataset, indices, image_processor, settings

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        return self.prepare(position, self.read(position))

    def read(self, position: int) -> dict:
        return self.dataset[self.indices[position]]

    def prepare(self, position: int, row: dict) -> Sample:
        image, references = row["image"], row["label_map"]
        references = None if references is None else torch.from_numpy(np.array(references))
        size = (image.height, image.width)
        if references is not None:
            check_same_size(row["image_id"], size, tuple(references.shape))
        inputs = network_inputs(self.image_processor, image, self.settings)
        return Sample(self.indices[position], row["image_id"], inputs, size, references)


def check_same_size(image_id: str, size: Size, label_map_size: Size) -> None:
    """Raises a DataError unless an image and its label map are of one size, (height, width)."""
    if size != label_map_size:
        (height, width), (label_height, label_width) = size, label_map_size
        raise DataError(
            f"image {image_id} is {width}×{height} pixels (width×height) but its label map is {label_width}×{label_height}: "
            "bring both to one size (label maps by nearest neighbour). If only the sides are swapped, the image's EXIF "
            "orientation was applied to one of the two only: turn the label map, do not resize it"
        )


def load(samples: Samples, num_workers: int, device: torch.device) -> Iterator[Sample]:
    """The samples in order, for a network on `device`.

    For an accelerator `num_workers` processes get them ready meanwhile; for a CPU as many threads read pictures between
    forward passes (see `reads_in_threads`).
    """
    if num_workers and reads_in_threads(device):
        return _read_between(samples, num_workers)
    return iter(
        DataLoader(samples, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers, worker_init_fn=obey_parent_only)
    )


def _as_it_is(sample):
    return sample


def _read_between(samples, num_threads):
    """Several pictures at once: after a forward pass the network's threads spin for some milliseconds before they sleep."""
    first, count = 0, num_threads
    with ThreadPoolExecutor(num_threads) as pool:
        while first < len(samples):
            positions = range(first, min(first + count, len(samples)))
            reads = [pool.submit(samples.read, position) for position in positions]
            wait(reads)
            for position, read in zip(positions, reads, strict=True):
                row = read.result()
                count = max(num_threads, READ_PIXELS // (row["image"].width * row["image"].height))
                yield samples.prepare(position, row)
            first = positions.stop
