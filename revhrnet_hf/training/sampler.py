"""What a stage trains on, and in which order: one dataset, or several in the classes of the first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from torch.utils.data import ConcatDataset

from ..data import label_space_of, load_segmentation_dataset, translate
from ..data.loading import in_classes
from ..errors import DataError, RecipeError
from .recipe import Recipe

DataDirs = Mapping[str, str | Path]
"""Folder by name of dataset."""


@dataclass(frozen=True)
class Mixture:
    """How many images of each of several datasets an epoch has.

    An epoch is as long as all of them together. A set that gives more than it has is gone through again, each time in a new order
    and augmented anew; of one that gives less, each epoch has others.

    Args:
        lengths: images in each dataset.
        shares: of an epoch's images, relative to each other.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def counts(self) -> list[int]:
        """Images of each set in an epoch; what rounding leaves over goes to those that lost most."""
        exact = [sum(self.lengths) * share / sum(self.shares) for share in self.shares]
        counts = [int(count) for count in exact]
        losers = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in losers[: sum(self.lengths) - sum(counts)]:
            counts[i] += 1
        return counts

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """The images of an epoch, by their place in the sets laid end to end; the k-th time, plus k times the whole length."""
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        drawn = []
        for start, length, count in zip(starts, self.lengths, self.counts, strict=True):
            times = range(-(-count // length))
            passes = [start + torch.randperm(length, generator=generator) + time * sum(self.lengths) for time in times]
            drawn += [torch.cat(passes)[:count]] if passes else []
        order = torch.cat(drawn)
        return order[torch.randperm(len(order), generator=generator)]


class EpochBatches:
    """The order of an epoch, as a batch sampler: for each forward pass of one process, the indices of its images.

    A step's images are the next `batch_size` of a permutation (of several datasets, of their mixture's order) that depends on
    seed and epoch only; forward passes and processes share them out. The images left over at the end of an epoch are skipped
    (another epoch has others), as in HRNet.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        passes: int,
        num_processes: int,
        process_index: int,
        seed: int,
        mixture: Mixture | None = None,
    ):
        self.num_samples, self.batch_size, self.seed, self.mixture = num_samples, batch_size, seed, mixture
        self.passes, self.num_processes, self.process_index = passes, num_processes, process_index
        self.epoch = 0
        self.first_step = 0
        if batch_size % (passes * num_processes):
            raise RecipeError(
                f"batch_size {batch_size} cannot be split evenly over {num_processes} processes with {passes} forward passes "
                "a step (gradient_accumulation_steps): change one of them"
            )
        if num_samples < batch_size:
            raise RecipeError(f"batch_size {batch_size} is more than the {num_samples} images of the training split")

    def start_at(self, epoch: int, step: int) -> None:
        """Iteration begins with step `step` (from 0) of `epoch`; the images before it are not loaded."""
        self.epoch, self.first_step = epoch, step

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.num_samples // self.batch_size

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        passes = self._passes()[self.first_step * self.passes :, self.process_index]
        yield from passes.tolist()

    def images(self, step: int, forward_pass: int) -> list[int]:
        """What all processes see in one forward pass of step `step` (from 0) of the epoch."""
        return self._passes()[step * self.passes + forward_pass].flatten().tolist()

    def _passes(self) -> torch.Tensor:
        """(forward passes of the epoch, processes, images)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self.mixture.order(generator) if self.mixture else torch.randperm(self.num_samples, generator=generator)
        return order[: self.steps * self.batch_size].view(self.steps * self.passes, self.num_processes, -1)


class TrainingSet(NamedTuple):
    """A split that is trained on; `ignored` are its own classes that mean none of the classes trained for."""

    name: str
    split: str
    images: Dataset
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{self.name}:{self.split}: {len(self.images)} images"
        if self.ignored:
            said += f"; ignored, for no class of the first dataset is meant: {', '.join(self.ignored)}"
        return said


def training_sets(recipe: Recipe) -> list[tuple[str, str]]:
    """(dataset, split) of all that the recipe trains on, the one that it scores on first."""
    return [(dataset.name, dataset.split or recipe.train_split) for dataset in recipe.datasets]


def folders_by_name(recipe: Recipe, data_dir: str | Path | DataDirs) -> DataDirs:
    """`data_dir` as a mapping, of which a single folder is the first dataset's.

    Raises:
        RecipeError: a dataset of the recipe has no folder.
    """
    folders = data_dir if isinstance(data_dir, Mapping) else {recipe.dataset: data_dir}
    if missing := [name for name, _ in training_sets(recipe) if name not in folders]:
        raise RecipeError(f"The recipe trains on {missing[0]} too: say where it lies (--data_dir {missing[0]}=DIR)")
    return folders


def load_split(recipe: Recipe, data_dir: str | Path, split: str) -> Dataset:
    """A split of the recipe's (first) dataset."""
    return load_segmentation_dataset(
        recipe.dataset,
        data_dir,
        split,
        label_space=recipe.label_space,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        loader=recipe.loader,
    )


def load_sets(recipe: Recipe, data_dirs: DataDirs) -> tuple[list[TrainingSet], Dataset]:
    """What the recipe trains on, in the classes of the first dataset, and the split that it scores on.

    Raises:
        DataError: a dataset cannot be loaded, or its classes have nothing to do with the first one's.
    """
    train, evaluation = (
        load_split(recipe, data_dirs[recipe.dataset], split) for split in (recipe.train_split, recipe.eval_split)
    )
    space = label_space_of(train)
    sets = [TrainingSet(recipe.dataset, recipe.train_split, train)]
    for dataset in recipe.datasets[1:]:
        name, split = dataset.name, dataset.split or recipe.train_split
        try:
            images = load_segmentation_dataset(
                name,
                data_dirs[name],
                split,
                label_space=dataset.label_space,
                image_column=dataset.image_column,
                label_column=dataset.label_column,
                loader=dataset.loader,
            )
            ignored = tuple(own for own, partner in translate(label_space_of(images), space).items() if partner is None)
            sets.append(TrainingSet(name, split, in_classes(images, space), ignored))
        except DataError as error:
            raise DataError(f"more_datasets: {name}:{split} cannot be trained on as well: {error}") from error
    return sets, evaluation


def laid_end_to_end(sets: list[TrainingSet]) -> Dataset | ConcatDataset:
    # Not datasets.concatenate_datasets, to which label maps that are translated by different tables are different columns.
    return sets[0].images if len(sets) == 1 else ConcatDataset([entry.images for entry in sets])


def image_id_of(sets: list[TrainingSet], index: int) -> str:
    """The id of an image by its place in the sets laid end to end; a place beyond the end is an image again (`Mixture`)."""
    index %= sum(len(entry.images) for entry in sets)
    for _, _, images, _ in sets:
        if index < len(images):
            return images.select_columns("image_id")[index]["image_id"]
        index -= len(images)
    raise ValueError("there are no images")
