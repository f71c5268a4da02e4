"""An evaluation that keeps a record of each image: it can go on after an interruption, and scores images one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ..data.datasets.cityscapes import CITYSCAPES, instances_location
from ..data.features import read_upright
from ..data.label_space import LabelSpace
from .boundary import boundary_counts
from .cityscapes import RAW_IDS, count_objects
from .confusion import ConfusionMatrix
from .predict import WHOLE, Predicted, predict_dataset
from .settings import InferenceSettings
from .submission import SubmissionFormat
from .work import ImageRecord, WorkPart, cells_of

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Recorder:
    """What is recorded of each predicted image.

    Attributes:
        label_space: of the dataset.
        boundary: whether the borders are counted for the boundary IoU.
        instances: locations of Cityscapes' instance maps, one a row of the dataset, or None.
        submission, submission_dir: where and how label maps are written for a server, or None.
    """

    label_space: LabelSpace
    boundary: bool = False
    instances: Sequence[str] | None = None
    submission: SubmissionFormat | None = None
    submission_dir: Path | None = None

    def record(self, image: Predicted) -> ImageRecord:
        """Raises a DataError that names the image where its label map holds unknown ids."""
        space, references = self.label_space, image.references
        record = ImageRecord(image.index, image.image_id, tuple(image.label_map.shape))
        if references is not None:
            confusion = ConfusionMatrix(space.num_classes, space.ignore_index)
            confusion.update(image.label_map.cpu(), references, image_ids=[image.image_id])
            record.cells = cells_of(confusion.matrix.numpy())
        label_map = image.label_map.cpu().numpy()
        if references is not None and self.boundary:
            counts = boundary_counts(label_map, references.numpy(), space.num_classes, space.ignore_index)
            record.boundary = counts.tolist()
        if self.instances is not None:
            instances = np.asarray(read_upright(self.instances[image.index]))
            record.objects = count_objects(RAW_IDS[label_map], instances, image.image_id).tolist()
        if self.submission is not None:
            self.submission.write(self.submission_dir, image.image_id, label_map)
        return record


def record_images(
    model,
    image_processor,
    dataset,
    indices: Sequence[int],
    recorder: Recorder,
    part: WorkPart,
    *,
    settings: InferenceSettings = WHOLE,
    sources: list[list[int]] | None = None,
    num_workers: int | None = 0,
    progress: Callable[[int], Any] | None = None,
) -> None:
    """Predicts the images and writes each one's record at once.

    Args:
        model, image_processor, dataset, indices, settings, sources, num_workers: as in `predict_dataset`.
        recorder: what is recorded.
        part: where to.
        progress: is called with 1 after each image.

    Raises:
        DataError, CheckpointError, RecipeError: as in `predict_dataset`; what was recorded before stays.
    """
    for image in predict_dataset(
        model, image_processor, dataset, indices, settings=settings, sources=sources, num_workers=num_workers
    ):
        part.write(recorder.record(image))
        if progress is not None:
            progress(1)


def is_labelled(dataset: datasets.Dataset) -> bool:
    """Whether the label maps are there; a test split may have none."""
    return dataset.data.column("label_map").null_count == 0


def instance_locations(dataset_name: str, dataset: datasets.Dataset, label_space: LabelSpace) -> list[str] | None:
    """Where Cityscapes' instance maps lie, one a row; None for what is not Cityscapes, or has label maps alone."""
    if dataset_name != "cityscapes" or label_space.name != CITYSCAPES.name or not is_labelled(dataset):
        return None
    stored = dataset.cast_column("label_map", datasets.Image(decode=False))["label_map"]
    locations = [instances_location(value["path"]) for value in stored]
    return None if None in locations else locations


def weights_stamp(checkpoint: str | Path) -> list | str:
    """What changes when the checkpoint's files do: names, sizes and times; for a name on the Hub the name."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
