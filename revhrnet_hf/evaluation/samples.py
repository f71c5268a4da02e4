"""A data set's pictures as a network takes them, read by several processes or threads."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from ..data.workers import obey_parent_only, reads_in_threads
from ..images import fitted
from .settings import InferenceSettings, Size

READ_PIXELS = 2**22  # of pictures that are read at once between forward passes


class Sample(NamedTuple):
    """A picture of a data set: its row and id, `model_inputs`, the label map's size, and the true ids (height, width) or None."""

    index: int
    image_id: str
    inputs: list
    size: Size
    references: torch.Tensor | None


class Samples(Dataset):
    """Rows of a data set, read and then prepared."""

    def __init__(self, dataset, indices: list[int], image_processor, settings: InferenceSettings):
        self.dataset, self.indices, self.image_processor, self.settings = dataset, indices, image_processor, settings

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        return self.prepare(position, self.read(position))

    def read(self, position: int) -> dict:
        return self.dataset[self.indices[position]]

    def prepare(self, position: int, row: dict) -> Sample:
        image, references = row["image"], row["label_map"]
        image = image if references is None else fitted(image, references.size)
        references = None if references is None else torch.from_numpy(np.array(references))
        size = (image.height, image.width) if references is None else tuple(references.shape)
        inputs = model_inputs(self.image_processor, image, self.settings)
        return Sample(self.indices[position], row["image_id"], inputs, size, references)


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


def model_inputs(image_processor, image: PIL.Image.Image, settings: InferenceSettings) -> list:
    """The picture as the network takes it, once a scale: what an image processor gives."""
    if settings.is_whole:
        return [image_processor(images=[image], return_tensors="pt")]
    off = {option: False for option in ("do_pad", "do_center_crop") if getattr(image_processor, option, None)}
    own = image_processor(images=[image], return_tensors="pt", **off)
    height, width = own["pixel_values"].shape[-2:]
    if getattr(image_processor, "do_resize", None):
        off["do_resize"] = False
    inputs = []
    for scale in settings.scales:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        # From the original each time, so that nothing is resized twice.
        scaled = own if scale == 1 else image_processor(
            images=[image.resize(size, PIL.Image.Resampling.BILINEAR)], return_tensors="pt", **off
        )  # fmt: skip
        inputs.append(scaled)
    return inputs
