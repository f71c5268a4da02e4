"""One confusion matrix over a whole dataset, and every score read off it.

The matrix is all that is kept of the maps (classes × classes counts), so images can be streamed, split into any
batches and shared among any number of processes: the sum of their matrices is the matrix of them all.

Scores follow the usual definitions (Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015), their dictionary keys those of `evaluate`'s `mean_iou`.
"""

import math
import warnings

import datasets
import evaluate
import numpy as np
import torch

from ..errors import DataError

BYTES = 256
CHUNK_PIXELS = 2**19  # counted at once, so that what is computed stays in the processor's cache


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
        # Around the classes lie places for what is no class: see `_place`.
        self._counts = torch.zeros(num_classes + 3, num_classes + 2, dtype=torch.int64, device=device)

    def update(self, predictions, references, image_ids=None) -> None:
        """Add the pixels of one map or of a batch of maps.

        On the CPU a bad id is an error at once, and nothing of this call is counted. On an accelerator nothing is read
        back, so that the host never waits: a bad id is then an error when the matrix is read.

        Args:
            predictions: predicted class ids; integers in any shape (tensor, array, PIL image or nested lists).
            references: true class ids, or `ignore_index`; the same shape.
            image_ids: names of the images for error messages: one in all, or one for each entry of the first axis.

        Raises:
            DataError: the shapes differ, the values are not integers, a prediction is not a class (the ignored pixels'
                included), or a reference is neither a class nor `ignore_index`.
        """
        predictions, references = as_ids(predictions, "predictions"), as_ids(references, "references")
        if predictions.shape != references.shape:
            raise DataError(
                f"{_where(image_ids)}predictions of shape {tuple(predictions.shape)} and references of shape "
                f"{tuple(references.shape)} differ: predict at the label map's own size"
            )
        references = references.to(predictions.device, non_blocking=True)
        on_cpu = predictions.device.type == "cpu"
        ids = predictions.flatten(), references.flatten()
        counts = self._count_on_cpu(*ids) if on_cpu else self._count_cells(*ids, _count_without_waiting)
        if on_cpu and _outside(counts).any():
            self._raise_for_bad_ids(predictions, references, image_ids)
        # Not in place: a tensor made under torch.inference_mode could not be changed outside it.
        self._counts = self._counts.to(counts.device) + counts

    @property
    def matrix(self) -> torch.Tensor:
        """The counts, int64 (num_classes, num_classes), rows truth and columns prediction, on the device of the maps.

        Assigning replaces them: `confusion.matrix = accelerator.reduce(confusion.matrix, "sum")` sums over processes.

        Raises:
            DataError: maps on an accelerator held ids that are no classes.
        """
        bad_references, bad_predictions = _outside(self._counts).tolist()
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

    def reset(self) -> None:
        """Forget every map."""
        self._counts = torch.zeros_like(self._counts)

    def scores(self, names=None, absent_as_zero: bool = False) -> dict:
        """Every score, as plain numbers (shares from 0 to 1) and lists in the order of the class ids.

        A class that occurs neither in the references nor in the predictions has no IoU: it is NaN, is left out of
        `mean_iou`, and stands in `absent_classes`. A class that is predicted somewhere but never true has IoU 0 and
        counts in `mean_iou`; it has no accuracy. Without a single labelled pixel every score is NaN, with a warning.

        Args:
            names: class names; `absent_classes` then holds names instead of ids.
            absent_as_zero: count what is NaN as 0 in the means, as the official HRNet does.

        Returns:
            `mean_iou`, `mean_accuracy`, `overall_accuracy` (share of labelled pixels that are right),
            `frequency_weighted_iou` (IoUs weighted by the classes' reference pixels), `per_category_iou`,
            `per_category_accuracy` and, the same by its other name, `per_category_recall` (share of the class's pixels that are
            right), `per_category_precision` (share of the pixels predicted as the class that are), `per_category_pixels`
            (reference pixels), `labelled_pixels`, `absent_as_zero` (as given), `absent_classes`.
        """
        if names is not None and len(names) != self.num_classes:
            raise DataError(f"{len(names)} class names were given for {self.num_classes} classes")
        scores = scores_of(self.matrix.cpu().numpy(), absent_as_zero)
        if scores["labelled_pixels"] == 0:
            warnings.warn(
                f"no labelled pixel was counted (every reference pixel is {self.ignore_index}, or there was no map): "
                "all scores are NaN",
                stacklevel=2,
            )
        if names is not None:
            scores["absent_classes"] = [names[class_id] for class_id in scores["absent_classes"]]
        return scores

    def _count_on_cpu(self, predictions, references):
        if predictions.dtype == references.dtype == torch.uint8:
            return self._count_bytes(predictions, references)
        return self._count_cells(predictions, references)

    def _count_cells(self, predictions, references, count=torch.bincount):
        """Look at each id."""
        rows, columns = self._counts.shape
        cells = _place(references, self.num_classes, self.ignore_index)
        cells.mul_(columns).add_(_place(predictions, self.num_classes))
        return count(cells, minlength=rows * columns).view(rows, columns)

    def _count_bytes(self, predictions, references):
        """Count all pairs of two bytes, and only then what they mean: there are 65,536 pairs, and millions of pixels."""
        pairs = torch.zeros(BYTES**2, dtype=torch.int64)
        for reference, prediction in zip(references.split(CHUNK_PIXELS), predictions.split(CHUNK_PIXELS), strict=True):
            pairs += torch.bincount(reference.int().mul_(BYTES).add_(prediction), minlength=BYTES**2)
        every_id = torch.arange(BYTES).to(torch.uint8)
        rows, columns = self._counts.shape
        places = _place(every_id, self.num_classes, self.ignore_index)
        by_row = pairs.new_zeros(rows, BYTES).index_add_(0, places, pairs.view(BYTES, BYTES))
        return pairs.new_zeros(rows, columns).index_add_(1, _place(every_id, self.num_classes), by_row)

    def _raise_for_bad_ids(self, predictions, references, image_ids):
        # int64 holds any ignore_index, so that the comparisons below cannot wrap.
        predictions = _by_image(predictions.long(), image_ids)
        references = _by_image(references.long(), image_ids)
        for image_id, prediction, reference in zip(image_ids or [None], predictions, references, strict=True):
            where = _where(image_id and [image_id])
            bad = (prediction < 0) | (prediction >= self.num_classes)
            if bad.any():
                raise DataError(
                    f"{where}the predictions hold {_ids(prediction[bad])}, which are not classes "
                    f"0…{self.num_classes - 1}: every pixel needs a predicted class, the ignored ones too"
                )
            bad = ((reference < 0) | (reference >= self.num_classes)) & (reference != self.ignore_index)
            if bad.any():
                raise DataError(
                    f"{where}the references hold {_ids(reference[bad])}, which are neither classes "
                    f"0…{self.num_classes - 1} nor ignored ({self.ignore_index}): translate raw ids to train ids first"
                )


def scores_of(matrix: np.ndarray, absent_as_zero: bool = False) -> dict:
    """The scores of a confusion matrix, (classes, classes) counts with rows truth; see `ConfusionMatrix.scores`."""
    right, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    union = truth + predicted - right
    labelled = int(truth.sum())
    iou, accuracy = _share(right, union), _share(right, truth)
    mean = _mean_with_zeros if absent_as_zero and labelled else _mean
    return {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": int(right.sum()) / labelled if labelled else math.nan,
        "frequency_weighted_iou": float((truth * np.nan_to_num(iou)).sum()) / labelled if labelled else math.nan,
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
        "per_category_recall": accuracy.tolist(),
        "per_category_precision": _share(right, predicted).tolist(),
        "per_category_pixels": truth.tolist(),
        "labelled_pixels": labelled,
        "absent_as_zero": absent_as_zero,
        "absent_classes": np.flatnonzero(union == 0).tolist(),
    }


class SegmentationMetric(evaluate.Metric):
    """Scores of semantic segmentation as an `evaluate` metric: offline, and with memory for one matrix only.

    Use it as any metric: `add` a map, `add_batch` some maps, `compute`. Nothing is written to a cache; the maps of a
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
        # The base class makes the folder of its cache files here; there are none.
        return self._data_dir_root

    def add(self, *, prediction, reference, image_id=None):
        """Add one predicted map and its reference, (height, width) each."""
        self.confusion.update(prediction, reference, image_ids=None if image_id is None else [image_id])

    def add_batch(self, *, predictions, references, image_ids=None):
        """Add as many predicted maps as references: lists of maps, or stacked (batch, height, width)."""
        if len(predictions) != len(references):
            raise DataError(f"{len(predictions)} predictions were given for {len(references)} references")
        if isinstance(predictions, (list, tuple)) or isinstance(references, (list, tuple)):
            ids = [None] * len(predictions) if image_ids is None else image_ids
            for prediction, reference, image_id in zip(predictions, references, ids, strict=True):
                self.add(prediction=prediction, reference=reference, image_id=image_id)
        else:
            self.confusion.update(predictions, references, image_ids)

    def compute(self, *, predictions=None, references=None, image_ids=None) -> dict:
        """Scores of all maps since the last `compute`, these included; see `ConfusionMatrix.scores`."""
        if (predictions is None) != (references is None):
            raise DataError("compute needs both predictions and references, or neither")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references, image_ids=image_ids)
        scores = self.confusion.scores(self.names, self.absent_as_zero)
        self.confusion.reset()
        return scores


def as_ids(values, what):
    if isinstance(values, torch.Tensor):
        ids = values
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise DataError(f"{what} must be integer class ids, not {array.dtype}")
        # Only a contiguous, writable array can be shared with torch as it is.
        ids = torch.from_numpy(np.require(array, requirements="CW"))
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise DataError(f"{what} must be integer class ids, not {ids.dtype}")
    # torch computes with few unsigned types.
    return ids.long() if ids.dtype in (torch.uint16, torch.uint32, torch.uint64) else ids


def _place(ids, num_classes, ignore_index=None):
    """Row or column of each id: 0 below the classes, 1 … num_classes a class, then above them, then ignored."""
    dtype = torch.iinfo(ids.dtype)
    places = ids.clamp(max(-1, dtype.min), min(num_classes, dtype.max)).to(torch.int32).add_(1)
    # torch wraps a number that the type cannot hold: 255 == -1 in uint8.
    if ignore_index is not None and dtype.min <= ignore_index <= dtype.max:
        places.masked_fill_(ids == ignore_index, num_classes + 2)
    return places


def _count_without_waiting(cells, minlength):
    # bincount would read the largest value back to the host to learn the number of its bins.
    counts = torch.zeros(minlength, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells.long(), torch.ones_like(counts[:1]).expand(cells.numel()))


def _outside(counts):
    """Reference pixels and predicted pixels that are no classes, a tensor of the two numbers."""
    num_classes = counts.shape[1] - 2
    return torch.stack([counts[[0, num_classes + 1]].sum(), counts[:, [0, num_classes + 1]].sum()])


def _by_image(ids, image_ids):
    return ids if image_ids is not None and len(image_ids) > 1 else [ids]


def _where(image_ids):
    return "" if image_ids is None else f"image {', '.join(map(str, image_ids))}: "


def _ids(values, most=10):
    found = values.unique().tolist()
    listed = ", ".join(map(str, found[:most])) + (" …" if len(found) > most else "")
    return f"id{'s' if len(found) > 1 else ''} {listed}"


def _share(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean_with_zeros(values):
    return float(np.nan_to_num(values).mean())


def _mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
