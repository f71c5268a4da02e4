"""The one loop that runs a model over a dataset and scores it: training, the command, export and benchmarks call it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..data.features import read_upright
from ..data.label_space import LabelSpace
from ..errors import DataError
from .boundary import boundary_counts, boundary_scores
from .calibration import Calibration
from .cityscapes import RAW_IDS, cityscapes_scores, count_objects, matrix_of_ids
from .confusion import ConfusionMatrix
from .predict import Predicted, predict_dataset
from .records import ImageRecord, nonzero_cells, total_matrix
from .settings import WHOLE, InferenceSettings
from .sliding import first_parameter
from .submission import SubmissionFormat


def evaluate_images(
    model,
    image_processor,
    dataset,
    indices: Iterable[int],
    num_labels: int,
    *,
    ignore_index: int = 255,
    sources: list[list[int]] | None = None,
    settings: InferenceSettings = WHOLE,
    num_workers: int | None = 0,
    timeout: float = 0,
    count_on_cpu: bool = False,
    calibration: Calibration | None = None,
    each_image: Callable[[Predicted, ConfusionMatrix], None] | None = None,
) -> ConfusionMatrix:
    """Predicts images of a dataset and counts each prediction at its label map's own size.

    Args:
        model, image_processor, dataset, indices, sources, settings, num_workers, timeout, calibration: as in
            `predict_dataset`.
        num_labels: number of classes of the label maps, and of the model unless `sources` is given.
        ignore_index: the id of pixels that do not count.
        count_on_cpu: move each predicted label map to the CPU first; an id that is no class is then an error at once, which
            names the image. Otherwise label maps stay on the model's device; see `ConfusionMatrix.update`.
        each_image: is called after each image with the prediction and the image's own confusion matrix, which is all 0 where the
            image has no label map.

    Returns:
        The confusion matrix of all these images, on the device where they were counted.

    Raises:
        DataError: an image cannot be read, its label map is of another size, or holds an id that is neither a class nor ignored.
        CheckpointError, RecipeError: as in `predict_dataset`.
    """
    device = torch.device("cpu") if count_on_cpu else first_parameter(model).device
    total = ConfusionMatrix(num_labels, ignore_index, device)
    for image in predict_dataset(
        model,
        image_processor,
        dataset,
        indices,
        settings=settings,
        sources=sources,
        num_workers=num_workers,
        timeout=timeout,
        calibration=calibration,
    ):
        image = replace(image, label_map=image.label_map.to(device))
        counts = ConfusionMatrix(num_labels, ignore_index, device)
        if image.references is not None:
            counts.update(image.label_map, image.references, image_ids=[image.image_id])
        total.add(counts)
        if each_image is not None:
            each_image(image, counts)
    return total


def evaluate_dataset(
    model,
    image_processor,
    dataset,
    num_labels: int,
    *,
    ignore_index: int = 255,
    sources: list[list[int]] | None = None,
    settings: InferenceSettings = WHOLE,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int | None = 0,
    timeout: float = 0,
    progress: Callable[[int], None] | None = None,
    look: Callable[[Predicted, ConfusionMatrix], None] | None = None,
) -> ConfusionMatrix:
    """Scores a model on a dataset with label maps, or on this process's share of it.

    With several processes each takes every `num_processes`-th image, so that every image is counted once; the sum
    of their matrices (`accelerator.reduce(confusion.matrix, "sum")`) is then exactly the matrix of one process.

    Args:
        model, image_processor, dataset, num_labels, ignore_index, sources, settings, num_workers, timeout: as in
            `evaluate_images`.
        process_index, num_processes: which share of the images to take, of how many.
        progress: is called with 1 after each image (a progress bar's `update`).
        look: is called with each prediction and the image's own confusion matrix.

    Returns:
        The matrix of this process's images, on the model's device.

    Raises:
        DataError: as in `evaluate_images`, or an image has no label map.
        CheckpointError, RecipeError: as in `predict_dataset`.
    """

    def each_image(image: Predicted, counts: ConfusionMatrix) -> None:
        if image.references is None:
            raise DataError(f"image {image.image_id} has no label map, so it cannot be scored: choose a split with label maps")
        if look is not None:
            look(image, counts)
        if progress is not None:
            progress(1)

    return evaluate_images(
        model,
        image_processor,
        dataset,
        range(process_index, len(dataset), num_processes),
        num_labels,
        ignore_index=ignore_index,
        sources=sources,
        settings=settings,
        num_workers=num_workers,
        timeout=timeout,
        each_image=each_image,
    )


@dataclass(frozen=True)
class Recorder:
    """Makes the record of each predicted image.

    Attributes:
        label_space: of the dataset.
        boundary: whether to count pixels near class boundaries, for the boundary IoU.
        instances: for each row of the dataset the location of Cityscapes' instance map, or None.
        submission, submission_dir: how and where to write label maps for a benchmark server, or None.
    """

    label_space: LabelSpace
    boundary: bool = False
    instances: Sequence[str] | None = None
    submission: SubmissionFormat | None = None
    submission_dir: Path | None = None

    def record(self, image: Predicted, confusion: ConfusionMatrix) -> ImageRecord:
        """Counts an image, and writes its file of the submission.

        Args:
            image: the prediction, with its label map on the CPU.
            confusion: the image's own confusion matrix.

        Raises:
            DataError: the instance map does not fit; the message names the image.
        """
        space, label_map = self.label_space, image.label_map.numpy()
        record = ImageRecord(image.index, image.image_id, label_map.shape, nonzero_cells(confusion.matrix.numpy()))
        record.calibration = image.calibration
        if self.boundary and image.references is not None:
            record.boundary = boundary_counts(label_map, image.references.numpy(), space.num_classes, space.ignore_index)
        if self.instances is not None:
            instances = np.asarray(read_upright(self.instances[image.index]))
            record.objects = count_objects(RAW_IDS[label_map], instances, image.image_id)
        if self.submission is not None:
            self.submission.write(self.submission_dir, image.image_id, label_map)
        return record


def score_records(
    records: Sequence[ImageRecord], label_space: LabelSpace, absent_as_zero: bool = False
) -> tuple[dict, np.ndarray]:
    """Scores of all recorded images together.

    Returns:
        The scores of `ConfusionMatrix.scores`, with those of `boundary_scores` and `cityscapes_scores` where every image has
        these counts; and the confusion matrix, (classes, classes) int64 with rows truth.
    """
    confusion = ConfusionMatrix(label_space.num_classes, label_space.ignore_index)
    matrix = total_matrix(records, label_space.num_classes)
    confusion.matrix = torch.from_numpy(matrix)
    scores = confusion.scores(label_space.names, absent_as_zero)
    if all(record.boundary is not None for record in records):
        scores |= boundary_scores(sum(record.boundary for record in records))
    if all(record.objects is not None for record in records):
        scores |= cityscapes_scores(matrix_of_ids(matrix), np.concatenate([record.objects for record in records]))
    return scores, matrix
