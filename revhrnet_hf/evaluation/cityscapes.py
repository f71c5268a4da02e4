"""Cityscapes' own four scores: IoU and iIoU (instance-weighted IoU) over classes and over categories.

The definitions are the publisher's (Cordts et al., 2016; https://www.cityscapes-dataset.com/benchmarks/#scene-labeling-task), the
numbers those of `cityscapesscripts`. An iIoU weighs each true object's pixels by the class's average object size over the
object's own, so that far objects count as much as near ones; false positives are pixels, as in the IoU.
"""

import math
from collections.abc import Iterable

import numpy as np

from ..data.datasets.cityscapes import CATEGORIES, IGNORED, LABELS, SCORED
from ..errors import DataError
from .confusion import ConfusionMatrix, as_ids

NUM_IDS = 1 + max(label.raw_id for label in LABELS)
INSTANCE_FACTOR = 1000  # instance id = label id × 1000 + number

# Pixels of an average object of the training set, as the publisher's evaluation has them.
AVERAGE_SIZES = {
    "bicycle": 4672.3249222261,
    "motorcycle": 6298.7200839748,
    "rider": 3930.4788056518,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "car": 12794.0202738185,
    "person": 3462.4756337644,
    "truck": 27855.1264367816,
}
RAW_IDS = np.array([label.raw_id for label in SCORED], np.uint8)
"""Label id of each train id."""

_BY_ID = {label.raw_id: label for label in LABELS}
_IDS_OF_CATEGORY = {
    category: [label.raw_id for label in LABELS if label.category == category and label.raw_id >= 0] for category in CATEGORIES
}
# Categories of things only; here the labels that are not scored (caravan, trailer) are right as well.
_THING_CATEGORIES = [
    category for category, ids in _IDS_OF_CATEGORY.items() if all(_BY_ID[label_id].has_instances for label_id in ids)
]


class CityscapesMetric:
    """IoU class, iIoU class, IoU category and iIoU category, equal to the publisher's evaluation.

    Kept are one confusion matrix and four numbers an object. Matrix and objects of several processes add up exactly: sum
    `confusion.matrix`, and lay `objects` end to end.
    """

    def __init__(self):
        self.confusion = ConfusionMatrix(NUM_IDS, ignore_index=IGNORED)
        self.objects: list[np.ndarray] = []

    def add_batch(self, predictions, references, instances, image_ids: Iterable | None = None) -> None:
        """Add the maps of one image, (height, width), or of several: lists of maps, or stacked.

        Args:
            predictions: label ids (`labelIds`: road is 7), not train ids.
            references: true label ids; −1 and 255 (the licence plate) are not scored.
            instances: instance ids as in the publisher's 16-bit `instanceIds` files.
            image_ids: names of the images, for errors.

        Raises:
            DataError: shapes or numbers of maps differ, a label id outside 0…33, or an instance of a label without instances.
        """
        predictions, references, instances = map(_maps, (predictions, references, instances))
        ids = [None] * len(predictions) if image_ids is None else list(image_ids)
        if not len(predictions) == len(references) == len(instances) == len(ids):
            raise DataError(
                f"{len(predictions)} predictions, {len(references)} references, {len(instances)} instance maps and {len(ids)} "
                "image names were given: give as many of each"
            )
        for prediction, reference, instance, image_id in zip(predictions, references, instances, ids, strict=True):
            prediction, reference, instance = _array(prediction), _array(reference), _array(instance)
            # First: it raises before anything is kept.
            objects = count_objects(prediction, instance, image_id)
            without_plates = np.where(reference == -1, IGNORED, reference) if reference.dtype.kind == "i" else reference
            self.confusion.update(prediction, without_plates, None if image_id is None else [image_id])
            self.objects.append(objects)

    def compute(self) -> dict:
        """The scores of all maps since the last `compute`; see `cityscapes_scores`."""
        objects = np.concatenate([np.empty((0, 4), np.int64), *self.objects])
        scores = cityscapes_scores(self.confusion.matrix.cpu().numpy(), objects)
        self.confusion.reset()
        self.objects = []
        return scores


def count_objects(prediction: np.ndarray, instances: np.ndarray, image_id=None) -> np.ndarray:
    """What was found of each true object of a scored class.

    Args:
        prediction: (height, width) label ids.
        instances: (height, width) instance ids; below 1000 are areas and groups, which are no objects.

    Returns:
        (objects, 4) int64: label id, pixels, pixels predicted as the label, pixels predicted as one of its category.

    Raises:
        DataError: the shapes differ, or an instance is of a label that has none.
    """
    where = "" if image_id is None else f"image {image_id}: "
    if prediction.shape != instances.shape:
        raise DataError(f"{where}predictions of shape {prediction.shape} and instances of shape {instances.shape} differ")
    # Instance 1000 × label + 0 is an object, but 1000 itself is none.
    inside = instances > INSTANCE_FACTOR
    found, predicted = instances[inside].astype(np.int64), prediction[inside]
    ids, places, sizes = _unique(found)
    rows = []
    for place, (instance_id, size) in enumerate(zip(ids.tolist(), sizes.tolist(), strict=True)):
        label = _BY_ID.get(instance_id // INSTANCE_FACTOR)
        if label is None or not label.has_instances:
            raise DataError(
                f"{where}the instance map holds {instance_id}, but label {instance_id // INSTANCE_FACTOR} has no instances: "
                "give the publisher's instanceIds (label id × 1000 + number)"
            )
        if label.train_id != IGNORED:
            rows.append((place, label.raw_id, size, _IDS_OF_CATEGORY[label.category]))
    right = np.bincount(places, predicted == found // INSTANCE_FACTOR, len(ids)).astype(np.int64)
    in_category = {
        category: np.bincount(places, np.isin(predicted, _IDS_OF_CATEGORY[category]), len(ids)).astype(np.int64)
        for category in _THING_CATEGORIES
    }
    counted = [(label_id, size, right[place], in_category[_BY_ID[label_id].category][place]) for place, label_id, size, _ in rows]
    return np.array(counted, np.int64).reshape(-1, 4)


def matrix_of_ids(matrix: np.ndarray) -> np.ndarray:
    """A confusion matrix of train ids, (19, 19), as one of label ids, (34, 34)."""
    result = np.zeros((NUM_IDS, NUM_IDS), np.int64)
    result[np.ix_(RAW_IDS, RAW_IDS)] = matrix
    return result


def cityscapes_scores(matrix: np.ndarray, objects: np.ndarray) -> dict:
    """The publisher's scores.

    Args:
        matrix: (34, 34) counts by label ids, rows truth.
        objects: (objects, 4), see `count_objects`.

    Returns:
        `iou_class`, `iiou_class`, `iou_category`, `iiou_category`, and by name `class_iou`, `class_iiou`, `category_iou`,
        `category_iiou`. NaN where there is neither truth nor prediction, and for iIoU of classes and categories without
        instances; means leave NaN out.
    """
    scored = [label.raw_id for label in SCORED]
    # Pixels of labels that are not scored do not count, whatever is predicted there; predicting such a label is a miss.
    truth = matrix[scored]
    classes, categories = {}, {}
    class_things, category_things = {}, {}
    for label in SCORED:
        hits = int(matrix[label.raw_id, label.raw_id])
        false = int(truth[:, label.raw_id].sum()) - hits
        classes[label.name] = _ratio(hits, int(matrix[label.raw_id].sum()) + false)
        own = objects[objects[:, 0] == label.raw_id]
        class_things[label.name] = _weighted(own, 2, false) if label.has_instances else math.nan
    for category in CATEGORIES:
        own_rows = [label.raw_id for label in SCORED if label.category == category]
        others = [label.raw_id for label in SCORED if label.category != category]
        hits = int(matrix[np.ix_(own_rows, own_rows)].sum())
        false = int(matrix[np.ix_(others, own_rows)].sum())
        categories[category] = _ratio(hits, int(matrix[own_rows].sum()) + false)
        ids = _IDS_OF_CATEGORY[category]
        own = objects[np.isin(objects[:, 0], ids)]
        false = int(matrix[np.ix_(others, ids)].sum())
        category_things[category] = _weighted(own, 3, false) if category in _THING_CATEGORIES else math.nan
    return {
        "iou_class": _mean(classes),
        "iiou_class": _mean(class_things),
        "iou_category": _mean(categories),
        "iiou_category": _mean(category_things),
        "class_iou": classes,
        "class_iiou": class_things,
        "category_iou": categories,
        "category_iiou": category_things,
    }


def _weighted(objects, column, false):
    """iIoU: hits and misses of each object by the class's average size over its own; fsum is the same in any order."""
    sizes = [AVERAGE_SIZES[_BY_ID[label_id].name] for label_id in objects[:, 0].tolist()]
    pixels, found = objects[:, 1].tolist(), objects[:, column].tolist()
    hits = math.fsum(right * size / whole for right, size, whole in zip(found, sizes, pixels, strict=True))
    return _ratio(hits, math.fsum(sizes) + false)


def _ratio(part, whole):
    return part / whole if whole else math.nan


def _mean(values):
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _unique(ids):
    """Distinct ids, the place of each pixel's among them, and how often each occurs; quicker than sorting 16-bit numbers."""
    counts = np.bincount(ids, minlength=1)
    distinct = np.flatnonzero(counts)
    place_of = np.zeros(len(counts), np.int64)
    place_of[distinct] = np.arange(len(distinct))
    return distinct, place_of[ids], counts[distinct]


def _maps(maps):
    """A list of maps; a single one, (height, width), counts as one."""
    if not isinstance(maps, (list, tuple)):
        return [maps] if _array(maps).ndim == 2 else list(maps)
    return list(maps)


def _array(ids):
    return as_ids(ids, "label maps").cpu().numpy()
