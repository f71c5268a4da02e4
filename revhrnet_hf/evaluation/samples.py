"""A dataset's images as a network takes them, read ahead by worker processes."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from ..data.loader import build_loader
from .settings import InferenceSettings, Size


class Sample(NamedTuple):
    """A picture of a data set: its row and id, `model_inputs`, the label map's size, and the true ids (height, width) or None."""

    index: int
    image_id: str
    inputs: list
    size: Size
    references: torch.Tensor | None


class Samples(Dataset):
    """Rows of a dataset, read and prepared."""

    def __init__(self, dataset, indices: list[int], image_processor, settings: InferenceSettings):
        self.dataset, self.indices, self.image_processor, self.settings = dataset, indices, image_processor, settings

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        row = self.dataset[self.indices[position]]
        image, references = row["image"], row["label_map"]
        references = None if references is None else torch.from_numpy(np.array(references))
        size = (image.height, image.width) if references is None else tuple(references.shape)
        inputs = model_inputs(self.image_processor, image, self.settings)
        return Sample(self.indices[position], row["image_id"], inputs, size, references)


def load(samples: Samples, num_workers: int | None, device: torch.device) -> Iterator[Sample]:
    """The samples in order, for a network on `device`; see `build_loader`."""
    return iter(build_loader(samples, num_workers, device, collate_fn=_unchanged))


def _unchanged(sample):
    return sample


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
