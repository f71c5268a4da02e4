"""One confusion matrix over a whole dataset, and every score read off it.

Only the matrix (classes × classes counts) is kept, not the maps, so images can be streamed, split into any batches and shared
among any number of processes: the sum of their matrices is the matrix of all images.

The scores follow the usual definitions (Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015). Their dictionary keys are those of `evaluate`'s `mean_iou`.
"""

import logging
import math

import datasets
import evaluate
import numpy as np
import torch

from ..errors import DataError

BYTES = 256
CHUNK_PIXELS = 2**19  # counted at once, so that intermediate values stay in the processor's cache

logger = logging.getLogger(__name__)


class ConfusionMatrix:
    """Counts of pixels by true class (rows) and predicted class (columns), added up map by map.

    Args:
        num_classes: number of classes; ids are 0 … num_classes − 1.
        ignore_index: the reference id of pixels that do not count; it must not be a class.
        device: where the counts are kept at first; they follow the predictions to another one.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu"):
        if num_classes < 1:
            raise DataError(f"a confusion matrix needs at least one class, not {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise DataError(
                f"ignore_index {ignore_index} is one of the {num_classes} classes; choose an id outside "
                f"0…{num_classes - 1}, such as -1"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # The classes have a border of bins for ids that are no class: see `_bins`.
        self._counts = torch.zeros(num_classes + 3, num_classes + 2, dtype=torch.int64, device=device)

    def update(self, predictions, references, image_ids=None) -> None:
        """Add the pixels of one map or of a batch of maps.

        On the CPU a bad id is an error at once, and nothing of this call is counted. On an accelerator nothing is read
        back, so that the host never waits for it; a bad id is then an error when the matrix is read.

        Args:
            predictions: predicted class ids; integers in any shape (tensor, array, PIL image or nested lists).
            references: true class ids, or `ignore_index`; the same shape.
            image_ids: names of the images for error messages: a single one, or one for each entry of the first axis.

        Raises:
            DataError: the shapes differ, the values are not integers, a prediction is not a class (not even where the reference
                is ignored), or a reference is neither a class nor `ignore_index`.
        """
        predictions, references = as_ids(predictions, "predictions"), as_ids(references, "references")
        if predictions.shape != references.shape:
            raise DataError(
                f"{_image_prefix(image_ids)}predictions of shape {tuple(predictions.shape)} and references of shape "
                f"{tuple(references.shape)} differ: predict at the label map's own size"
            )
        references = references.to(predictions.device, non_blocking=True)
        on_cpu = predictions.device.type == "cpu"
        ids = predictions.flatten(), references.flatten()
        counts = self._count_on_cpu(*ids) if on_cpu else self._count_cells(*ids, _count_without_waiting)
        if on_cpu and _pixels_outside_classes(counts).any():
            self._raise_for_bad_ids(predictions, references, image_ids)
        self._add_counts(counts)

    def add(self, other: "ConfusionMatrix") -> None:
        """Add the maps that another matrix of the same classes has counted."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise DataError(
                f"a confusion matrix of {other.num_classes} classes (ignored: {other.ignore_index}) cannot be added to one of "
                f"{self.num_classes} (ignored: {self.ignore_index})"
            )
        self._add_counts(other._counts)

    def _add_counts(self, counts: torch.Tensor) -> None:
        # Not in place: a tensor made under torch.inference_mode could not be changed outside it.
        self._counts = self._counts.to(counts.device) + counts

    @property
    def matrix(self) -> torch.Tensor:
        """The counts, int64 (num_classes, num_classes) with rows truth and columns prediction, on the device of the maps.

        Assigning replaces them: `confusion.matrix = accelerator.reduce(confusion.matrix, "sum")` sums over processes.

        Raises:
            DataError: maps on an accelerator held ids that are no classes.
        """
        bad_references, bad_predictions = _pixels_outside_classes(self._counts).tolist()
        if bad_references or bad_predictions:
            raise DataError(
                f"{bad_predictions} predicted and {bad_references} reference pixels hold ids outside "
                f"0…{self.num_classes - 1} (ignored references: {self.ignore_index}); pass the maps on the CPU to "
                "have the ids and the image named"
            )
        return self._counts[1 : self.num_classes + 1, 1 : self.num_classes + 1].clone()

    @matrix.setter
    def matrix(self, matrix: torch.Tensor) -> None:
        expected = (self.num_classes, self.num_classes)
        if tuple(matrix.shape) != expected or matrix.dtype != torch.int64:
            raise DataError(f"expected an int64 matrix of shape {expected}, not {matrix.dtype} {tuple(matrix.shape)}")
        counts = torch.zeros(self._counts.shape, dtype=torch.int64, device=matrix.device)
        counts[1 : self.num_classes + 1, 1 : self.num_classes + 1] = matrix
        self._counts = counts

    @property
    def class_totals(self) -> torch.Tensor:
        """As the function `class_totals`, int64 on the device of the maps; nothing is read back."""
        matrix = self._counts[1 : self.num_classes + 1, 1 : self.num_classes + 1]
        return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])

    def reset(self) -> None:
        """Set all counts to 0."""
        self._counts = torch.zeros_like(self._counts)

    def scores(self, names=None, absent_as_zero: bool = False) -> dict:
        """Every score, as plain numbers (shares from 0 to 1) and lists in the order of the class ids.

        A class that occurs neither in the references nor in the predictions has the IoU NaN; it is left out of `mean_iou` and
        listed in `absent_classes`. A class that is predicted somewhere but never true has the IoU 0, which counts in `mean_iou`,
        and the accuracy NaN. Without a single labelled pixel every score is NaN, and a warning is logged.

        Args:
            names: class names; `absent_classes` then holds names instead of ids.
            absent_as_zero: count NaN as 0 in the means, as the official HRNet does.

        Returns:
            - `mean_iou`, `mean_accuracy`: means over the classes.
            - `overall_accuracy`: share of the labelled pixels that are predicted correctly.
            - `frequency_weighted_iou`: mean of the IoUs, weighted by the classes' reference pixels.
            - `per_category_iou`.
            - `per_category_accuracy` and `per_category_recall`, two names for one score: share of the class's reference pixels
              that are predicted as the class.
            - `per_category_precision`: share of the pixels predicted as the class that are of the class.
            - `per_category_pixels`: reference pixels of each class; `labelled_pixels`: their sum.
            - `absent_as_zero` (as given), `absent_classes`.
        """
        if names is not None and len(names) != self.num_classes:
            raise DataError(f"{len(names)} class names were given for {self.num_classes} classes")
        scores = scores_of_totals(class_totals(self.matrix.cpu().numpy()), absent_as_zero)
        if scores["labelled_pixels"] == 0:
            logger.warning(
                "no labelled pixel was counted (every reference pixel is %d, or there was no map): all scores are NaN",
                self.ignore_index,
            )
        if names is not None:
            scores["absent_classes"] = [names[class_id] for class_id in scores["absent_classes"]]
        return scores

    def _count_on_cpu(self, predictions, references):
        if predictions.dtype == references.dtype == torch.uint8:
            return self._count_bytes(predictions, references)
        return self._count_cells(predictions, references)

    def _count_cells(self, predictions, references, count=torch.bincount):
        """Counts ids of any type: the cell of every pixel is computed, then cells are counted."""
        rows, columns = self._counts.shape
        cells = _bins(references, self.num_classes, self.ignore_index)
        cells.mul_(columns).add_(_bins(predictions, self.num_classes))
        return count(cells, minlength=rows * columns).view(rows, columns)

    def _count_bytes(self, predictions, references):
        """Counts ids of one byte: first pairs of bytes, then the cells that these mean. There are 65,536 pairs, but millions of
        pixels.
        """
        pairs = torch.zeros(BYTES**2, dtype=torch.int64)
        for reference, prediction in zip(references.split(CHUNK_PIXELS), predictions.split(CHUNK_PIXELS), strict=True):
            pairs += torch.bincount(reference.int().mul_(BYTES).add_(prediction), minlength=BYTES**2)
        every_id = torch.arange(BYTES).to(torch.uint8)
        rows, columns = self._counts.shape
        row_of_id, column_of_id = _bins(every_id, self.num_classes, self.ignore_index), _bins(every_id, self.num_classes)
        by_row = pairs.new_zeros(rows, BYTES).index_add_(0, row_of_id, pairs.view(BYTES, BYTES))
        return pairs.new_zeros(rows, columns).index_add_(1, column_of_id, by_row)

    def _raise_for_bad_ids(self, predictions, references, image_ids):
        # int64 holds any ignore_index, so that the comparisons below cannot wrap.
        predictions = _split_by_image(predictions.long(), image_ids)
        references = _split_by_image(references.long(), image_ids)
        for image_id, prediction, reference in zip(image_ids or [None], predictions, references, strict=True):
            prefix = _image_prefix(image_id and [image_id])
            bad = (prediction < 0) | (prediction >= self.num_classes)
            if bad.any():
                raise DataError(
                    f"{prefix}the predictions hold {_distinct_ids(prediction[bad])}, which are not classes "
                    f"0…{self.num_classes - 1}: every pixel needs a predicted class, the ignored ones too"
                )
            bad = ((reference < 0) | (reference >= self.num_classes)) & (reference != self.ignore_index)
            if bad.any():
                raise DataError(
                    f"{prefix}the references hold {_distinct_ids(reference[bad])}, which are neither classes "
                    f"0…{self.num_classes - 1} nor ignored ({self.ignore_index}): translate raw ids to train ids first"
                )


def class_totals(matrix: np.ndarray) -> np.ndarray:
    """All that the scores need of a confusion matrix, (classes, classes) with rows truth.

    Returns:
        (3, classes): for each class the pixels that are predicted correctly, that are truly of it, and that are predicted as it.
    """
    return np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)])


def scores_of_totals(totals: np.ndarray, absent_as_zero: bool = False) -> dict:
    """The scores of `class_totals`; see `ConfusionMatrix.scores`."""
    correct, truth, predicted = totals
    union = truth + predicted - correct
    labelled = int(truth.sum())
    iou, accuracy = ratios(correct, union), ratios(correct, truth)
    mean = _mean_with_zeros if absent_as_zero and labelled else _mean
    return {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": int(correct.sum()) / labelled if labelled else math.nan,
        "frequency_weighted_iou": float((truth * np.nan_to_num(iou)).sum()) / labelled if labelled else math.nan,
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
        "per_category_recall": accuracy.tolist(),
        "per_category_precision": ratios(correct, predicted).tolist(),
        "per_category_pixels": truth.tolist(),
        "labelled_pixels": labelled,
        "absent_as_zero": absent_as_zero,
        "absent_classes": np.flatnonzero(union == 0).tolist(),
    }


class SegmentationMetric(evaluate.Metric):
    """Scores of semantic segmentation as an `evaluate` metric that works offline and keeps one matrix in memory.

    It is used as any metric: `add` a map, `add_batch` several maps, `compute`. It writes no cache files, and the maps of a
    batch may differ in size. To sum over processes, reduce `metric.confusion.matrix` before `compute`.

    Args:
        num_labels: number of classes.
        ignore_index: the reference id of pixels that do not count.
        names: class names, for `absent_classes`.
        absent_as_zero: count classes that occur nowhere as 0 in the means, as the official HRNet does.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, names: list[str] | None = None, absent_as_zero: bool = False):
        self.confusion = ConfusionMatrix(num_labels, ignore_index)
        self.names = names
        self.absent_as_zero = absent_as_zero
        super().__init__()

    def _info(self):
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Intersection over union and accuracies of semantic segmentation from one confusion matrix.",
            citation="",
            inputs_description="\nMaps hold class ids, (height, width); `ignore_index` in a reference is skipped.",
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _build_data_dir(self):
        # The base class would make a folder for cache files here.
        return self._data_dir_root

    def add(self, *, prediction, reference, image_id=None):
        """Add one predicted map and its reference, (height, width) each."""
        self.confusion.update(prediction, reference, image_ids=None if image_id is None else [image_id])

    def add_batch(self, *, predictions, references, image_ids=None):
        """Add predicted maps and as many references: lists of maps, or stacked maps (batch, height, width)."""
        if len(predictions) != len(references):
            raise DataError(f"{len(predictions)} predictions were given for {len(references)} references")
        if isinstance(predictions, (list, tuple)) or isinstance(references, (list, tuple)):
            ids = [None] * len(predictions) if image_ids is None else image_ids
            for prediction, reference, image_id in zip(predictions, references, ids, strict=True):
                self.add(prediction=prediction, reference=reference, image_id=image_id)
        else:
            self.confusion.update(predictions, references, image_ids)

    def compute(self, *, predictions=None, references=None, image_ids=None) -> dict:
        """Scores of all maps since the last `compute` and of these; see `ConfusionMatrix.scores`."""
        if (predictions is None) != (references is None):
            raise DataError("compute needs both predictions and references, or neither")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, image_ids=image_ids)
        scores = self.confusion.scores(self.names, self.absent_as_zero)
        self.confusion.reset()
        return scores


def as_ids(values, what: str) -> torch.Tensor:
    """Class ids as a tensor of a type that torch computes with; a DataError that says `what` where they are not integers."""
    if isinstance(values, torch.Tensor):
        ids = values
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise DataError(f"{what} must be integer class ids, not {array.dtype}")
        # torch shares the memory of contiguous, writable arrays only.
        ids = torch.from_numpy(np.require(array, requirements="CW"))
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"{what} must be integer class ids, not {ids.dtype}")
    # Few operations of torch take the larger unsigned types.
    return ids.long() if ids.dtype in (torch.uint16, torch.uint32, torch.uint64) else ids


def _bins(ids, num_classes, ignore_index=None):
    """Row or column of each id among the counts.

    It is 0 for an id below 0, id + 1 for a class, num_classes + 1 for an id above the classes, num_classes + 2 for the ignored
    one.
    """
    dtype = torch.iinfo(ids.dtype)
    bins = ids.clamp(max(-1, dtype.min), min(num_classes, dtype.max)).to(torch.int32).add_(1)
    # torch would wrap a number that the type cannot hold: 255 == -1 in uint8.
    if ignore_index is not None and dtype.min <= ignore_index <= dtype.max:
        bins.masked_fill_(ids == ignore_index, num_classes + 2)
    return bins


def _count_without_waiting(cells, minlength):
    # bincount would make the host wait: it reads the largest value back to learn how many bins there are.
    counts = torch.zeros(minlength, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells.long(), torch.ones_like(counts[:1]).expand(cells.numel()))


def _pixels_outside_classes(counts):
    """How many reference pixels and how many predicted pixels hold an id that is no class: a tensor of two numbers."""
    num_classes = counts.shape[1] - 2
    return torch.stack([counts[[0, num_classes + 1]].sum(), counts[:, [0, num_classes + 1]].sum()])


def _split_by_image(ids, image_ids):
    return ids if image_ids is not None and len(image_ids) > 1 else [ids]


def _image_prefix(image_ids):
    return "" if image_ids is None else f"image {', '.join(map(str, image_ids))}: "


def _distinct_ids(values, most=10):
    found = values.unique().tolist()
    listed = ", ".join(map(str, found[:most])) + (" …" if len(found) > most else "")
    return f"id{'s' if len(found) > 1 else ''} {listed}"


def ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, element by element; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _mean_with_zeros(values):
    return float(np.nan_to_num(values).mean())


def _mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
