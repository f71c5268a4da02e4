"""The data of a stage: the splits that it trains and scores on, and the batches that its steps learn from."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import ConcatDataset

from ..data import LabelSpace, TrainingSamples, TrainingTransform, label_space_of, load_segmentation_dataset, translate
from ..data.augmentation import GaussianBlur, JpegNoise, PhotometricDistortion
from ..data.byte_crops import ByteCrops, ByteNormalisation
from ..data.class_index import class_index
from ..data.loader import build_loader, warn_of_small_shared_memory
from ..data.loading import in_classes
from ..data.rare_classes import RareClasses
from ..data.transforms import Distortion
from ..errors import DataError, RecipeError, TrainingError, first_few
from .agreement import SharedErrors
from .feature_bank import FeatureBank
from .recipe import Recipe
from .sampler import EpochBatches, Mixture

logger = logging.getLogger(__name__)

DataDirs = Mapping[str, str | Path]
"""Folder by name of dataset."""

Batch = dict[str, Any]
"""The inputs of one forward pass: `labels` (images, height, width) and `pixel_values` (images, 3, height, width); from a feature
bank `backbone_maps` and `image_size` in place of pixels."""

BYTES_OF_A_PIXEL = 4  # red, green, blue and its label, as workers pass them


class TrainingSet(NamedTuple):
    """A split that is trained on; `ignored` are those of its own classes that correspond to no class of the first dataset."""

    name: str
    split: str
    images: Dataset
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{self.name}:{self.split}: {len(self.images)} images"
        if self.ignored:
            said += f"; ignored, for they correspond to no class of the first dataset: {', '.join(self.ignored)}"
        return said


Sets = tuple[list[TrainingSet], Dataset]
"""The splits that a stage trains on, and the one that it scores on."""


def training_sets(recipe: Recipe) -> list[tuple[str, str]]:
    """(dataset, split) of everything that the recipe trains on, beginning with the dataset that it scores on."""
    return [(dataset.name, dataset.split or recipe.train_split) for dataset in recipe.datasets]


def folders_by_name(recipe: Recipe, data_dir: str | Path | DataDirs) -> DataDirs:
    """`data_dir` as a mapping; a single folder is the first dataset's.

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


def load_sets(recipe: Recipe, data_dirs: DataDirs) -> Sets:
    """The splits that the recipe trains on, in the classes of the first dataset, and the split that it scores on.

    Raises:
        DataError: a dataset cannot be loaded, or none of its classes corresponds to one of the first dataset's.
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


def image_id_of(sets: list[TrainingSet], index: int) -> str:
    """The id of an image by its index into the concatenated sets; an index beyond the end repeats an image (`Mixture`)."""
    index %= sum(len(entry.images) for entry in sets)
    for _, _, images, _ in sets:
        if index < len(images):
            return images.select_columns("image_id")[index]["image_id"]
        index -= len(images)
    raise ValueError("there are no images")


def training_samples(recipe: Recipe, sets: list[TrainingSet], label_space: LabelSpace, image_processor) -> TrainingSamples:
    """The augmented images of the recipe. If it draws by classes, all label maps are read, or their counts from the cache."""
    transform = TrainingTransform(
        image_processor,
        crop_size=recipe.crop_size,
        base_size=recipe.base_size,
        scale_range=recipe.scale_range,
        scale_step=recipe.scale_step,
        flip=recipe.flip,
        ignore_index=label_space.ignore_index,
        rotation=recipe.rotation,
        max_class_share=recipe.max_class_share,
        distortions=_distortions(recipe),
    )
    rare_classes = None
    if recipe.rare_class_crops or recipe.rare_class_images:
        indices = [class_index(entry.images, recipe.num_workers) for entry in sets]
        rare_classes = RareClasses(indices, recipe.rare_class_crops, recipe.rare_class_images, recipe.rare_class_temperature)
    chosen = recipe.distorted_datasets
    distorted = None if chosen is None else [entry.name in chosen for entry in sets]
    return TrainingSamples(_concatenated(sets), transform, recipe.seed, recipe.on_bad_sample == "skip", rare_classes, distorted)


def epoch_batches(recipe: Recipe, sets: list[TrainingSet], num_processes: int = 1, process_index: int = 0) -> EpochBatches:
    """The order of the recipe's images on one of several processes."""
    return EpochBatches(
        sum(len(entry.images) for entry in sets),
        recipe.batch_size,
        recipe.gradient_accumulation_steps,
        num_processes,
        process_index,
        recipe.seed,
        _mixture(recipe, sets),
        recipe.feature_bank or None,
    )


def _distortions(recipe: Recipe) -> list[Distortion]:
    """As light, lens and file change an image: colours first, then blur, JPEG last."""
    distortions: list[Distortion] = []
    if recipe.photometric_distortion:
        ranges = recipe.brightness, tuple(recipe.contrast), tuple(recipe.saturation), recipe.hue
        distortions.append(PhotometricDistortion(*ranges))
    if recipe.blur:
        distortions.append(GaussianBlur(recipe.blur, tuple(recipe.blur_sigma)))
    if recipe.jpeg_noise:
        distortions.append(JpegNoise(recipe.jpeg_noise, tuple(recipe.jpeg_quality)))
    return distortions


class TrainingData:
    """The augmented images of a stage, in batches on the device, step by step.

    Args:
        recipe: the stage's recipe.
        sets: the splits to train on.
        label_space: of the first split; the others are translated to it.
        image_processor: of the network.
        errors: holds this process's error in loading until all processes come to the end of the step.

    Attributes:
        samples, batches, loader: the images, their order, and the loader's workers.
        bank: the feature bank, with `feature_bank`, from `make_bank` on.
        seconds_waited: time that the loop has waited for the loader; whoever logs it sets it back.

    Raises:
        RecipeError: batch size, forward passes, processes and images do not fit together.
    """

    def __init__(self, recipe: Recipe, sets: list[TrainingSet], label_space: LabelSpace, image_processor, errors: SharedErrors):
        self.recipe, self.sets, self.errors, self.accelerator = recipe, sets, errors, errors.accelerator
        self.label_space = label_space
        self.seconds_waited = 0.0
        self.bank: FeatureBank | None = None
        self.samples = training_samples(recipe, sets, label_space, image_processor)
        self.batches = epoch_batches(recipe, sets, self.accelerator.num_processes, self.accelerator.process_index)
        self.normalise = ByteNormalisation(image_processor, self.accelerator.device)
        self.loader = build_loader(
            ByteCrops(self.samples),
            recipe.num_workers,
            self.accelerator.device,
            batch_sampler=self.batches,
            persistent_workers=True,
            timeout=errors.timeout,
        )
        if self.accelerator.is_local_main_process:
            warn_of_small_shared_memory(self.loader, self._images_of_a_pass * math.prod(recipe.crop_size) * BYTES_OF_A_PIXEL)

    @property
    def _images_of_a_pass(self) -> int:
        return self.recipe.batch_size // (self.batches.passes * self.accelerator.num_processes)

    @property
    def description(self) -> dict[str, Any]:
        """What is trained on, for the `training_history` in a checkpoint's config."""
        names = dict.fromkeys(name for name, _ in training_sets(self.recipe))
        said = {"dataset": " + ".join(names), "label_space": self.label_space.name, "images": len(self.samples)}
        if len(self.sets) > 1:
            said["splits"] = [{"dataset": name, "split": split, "images": len(images)} for name, split, images, _ in self.sets]
        return said

    def start_at(self, epoch: int, step: int) -> None:
        """The next `steps()` begin with step `step` (from 0) of `epoch`."""
        self.batches.start_at(epoch, step)
        self.samples.set_epoch(self.batches.view)

    def make_bank(self, folder: Path, learner, fingerprint: dict[str, Any]) -> None:
        """With `feature_bank`, get `bank` ready for the network that a `Learner` has now; nothing is written yet.

        Args:
            folder: of the bank.
            fingerprint: of the data (dataset_checks.py).
        """
        if self.recipe.feature_bank:
            self.bank = FeatureBank.of_stage(folder, self, learner, fingerprint)

    def flush_bank(self) -> None:
        """Before a checkpoint is saved, which must not be ahead of the bank; for the main process."""
        if self.bank is not None:
            self.bank.flush()

    def open_bank(self, steps_done: int) -> None:
        """Open the feature bank, if there is one. Where it lacks maps of a resumed run's steps, they are computed again.

        Raises:
            RecipeError, CheckpointError: as for `FeatureBank.open`.
        """
        bank = self.bank
        if bank is None:
            return
        bank.open(self.errors)
        until = min(steps_done, bank.steps)
        if bank.filled < until and self.accelerator.is_main_process:
            logger.warning(f"{bank.folder} lacks the maps of {until - bank.filled} of {until} steps: they are computed again")
        while bank.filled < until:
            self.start_at(*divmod(bank.filled, self.batches.steps))
            for _ in self.steps():
                if bank.filled == until:
                    break
        self.errors.raise_together()

    def steps(self) -> Iterator[list[Batch]]:
        """For each step that is left in the epoch, the batches of its forward passes, on the device.

        Steps that a feature bank has the maps of come from there; others load images, and fill it.
        """
        batches, bank = self.batches, self.bank
        first = kept = batches.first_step
        if bank is not None:
            kept = bank.kept_steps(batches.view, first)
            with closing(bank.read(places for step in range(first, kept) for places in batches.places(step))) as reading:
                for _ in range(first, kept):
                    yield [bank.on_device(**batch) for batch in self._next_passes(reading, bank.blank)]
        if kept == batches.steps:
            return
        batches.start_at(batches.epoch, kept)
        loading = iter(self.loader)
        for step in range(kept, batches.steps):
            passes = [self._on_device(**batch) for batch in self._next_passes(loading, self._blank)]
            yield passes if bank is None else bank.fill(batches.places(step), passes, self.errors)

    def _on_device(self, pixels: torch.Tensor, labels: torch.Tensor, size: torch.Tensor) -> Batch:
        """A batch of `ByteCrops` as the network takes it. The host does not wait for copies from pinned memory."""
        pixels, labels = send_to_device((pixels, labels), self.accelerator.device, non_blocking=True)
        return {"pixel_values": self.normalise(pixels, size.tolist()), "labels": labels.long()}

    def _next_passes(self, batches: Iterator[Batch], blank: Callable[[int], Batch]) -> list[Batch]:
        """The next step's batches of the loader or the bank, or, once it has failed, `blank` ones of so many images.

        So the other processes are not left waiting in the middle of a step. They hear of the error at the end of the next step,
        and nothing of these steps is saved.
        """
        started = time.perf_counter()
        try:
            if self.errors.held is None:
                with self.errors.hold():
                    return list(islice(batches, self.batches.passes))
            return [blank(self._images_of_a_pass) for _ in range(self.batches.passes)]
        finally:
            self.seconds_waited += time.perf_counter() - started

    def _blank(self, count: int) -> Batch:
        """A batch as of `ByteCrops`, all padding without labels."""
        height, width = self.recipe.crop_size
        labels = torch.full((count, height, width), self.label_space.ignore_index, dtype=torch.uint8)
        pixels, size = torch.zeros(count, height, width, 3, dtype=torch.uint8), torch.zeros(count, 2, dtype=torch.int64)
        return {"pixels": pixels, "labels": labels, "size": size}

    def image_ids(self, indices: list[int]) -> list[str]:
        return [image_id_of(self.sets, index) for index in indices]

    def drawn_image_ids(self, indices: list[int]) -> list[str]:
        """The ids of the images of a batch, by the indices that `batches` gives for the epoch that was started last."""
        return self.image_ids([self.samples.row(index) for index in indices])

    def mark_bad(self, indices: list[int]) -> None:
        """Take over, in a resumed run, the images that could not be used before."""
        self.samples.bad[indices] = 1

    def gather_bad(self, known: list[int]) -> list[int]:
        """With `on_bad_sample: skip`, the indices of images that any process could not use so far; `known` are no news.

        Others are named in a warning.
        """
        if not self.samples.skip_bad:
            return known
        bad = self.accelerator.reduce(self.samples.bad.to(self.accelerator.device), "sum").nonzero().flatten().tolist()
        if len(bad) > len(known) and self.accelerator.is_main_process:
            ids = first_few(self.image_ids(bad))
            logger.warning(f"{len(bad)} of {len(self.samples)} training images cannot be used and are skipped: {ids}")
        return bad

    def loader_failure(self, error: RuntimeError) -> TrainingError | None:
        """The error to raise where a worker of the loader has died or hangs; None for any other error."""
        said = str(error)
        if "DataLoader worker" not in said and "DataLoader timed out" not in said:
            return None
        first_line = said.partition("\n")[0].rstrip(" .")
        return TrainingError(
            f"A process that loads images died or answered nothing for {self.errors.timeout:.0f} s: {first_line}. "
            f"Usual causes: too little memory (num_workers is {self.loader.num_workers}), a slow disk. Resume with --resume"
        )


def _concatenated(sets: list[TrainingSet]) -> Dataset | ConcatDataset:
    # Not datasets.concatenate_datasets, to which label maps that are translated by different tables are different columns.
    return sets[0].images if len(sets) == 1 else ConcatDataset([entry.images for entry in sets])


def _mixture(recipe: Recipe, sets: list[TrainingSet]) -> Mixture | None:
    if not recipe.dataset_shares:
        return None
    return Mixture(tuple(len(entry.images) for entry in sets), tuple(recipe.dataset_shares))
