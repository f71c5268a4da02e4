"""Draws the crops that a recipe trains on, so that its augmentation can be judged before a training."""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import label_space_of
from ..models.image_processing_revhrnet import RevHRNetImageProcessor
from ..viz.crops import DrawnCrop, crop_sheet
from .data import DataDirs, epoch_batches, folders_by_name, image_id_of, load_sets, training_samples
from .recipe import Recipe


def draw_crops(recipe: Recipe, data_dir: str | Path | DataDirs, number: int) -> Image.Image:
    """A sheet of the first `number` crops that a training on one process sees, each beside its label map.

    The crops are those that the network gets, except that their padding has ImageNet's mean colour, not the backbone's.

    Args:
        recipe: of the stage; neither its network nor its weights are needed.
        data_dir: as for `Stage`.
        number: of crops, at least 1.

    Raises:
        DataError, RecipeError: as for `Stage`.
    """
    sets, _ = load_sets(recipe, folders_by_name(recipe, data_dir))
    space = label_space_of(sets[0].images)
    processor = RevHRNetImageProcessor()
    samples = training_samples(recipe, sets, space, processor)
    crops = []
    for epoch, index in islice(_order(recipe, sets), number):
        samples.set_epoch(epoch)
        sample = samples[index]
        title = image_id_of(sets, samples.row(index))
        crops.append(DrawnCrop(_image(sample["pixel_values"], processor), np.asarray(sample["labels"]), title))
    return crop_sheet(crops, space.names, space.colours, space.ignore_index)


def _order(recipe: Recipe, sets) -> Iterator[tuple[int, int]]:
    """(epoch, index) of each crop."""
    batches = epoch_batches(recipe, sets)
    for epoch in count():
        batches.start_at(epoch, 0)
        yield from ((epoch, index) for batch in batches for index in batch)


def _image(pixel_values: torch.Tensor, processor: RevHRNetImageProcessor) -> Image.Image:
    """The image of normalised values (3, height, width)."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (processor.image_mean, processor.image_std))
    return Image.fromarray(((pixel_values * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
