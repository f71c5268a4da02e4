"""Cityscapes' own four scores: IoU and iIoU (instance-level IoU) over classes and over categories.

The definitions are the publisher's (Cordts et al., 2016; https://www.cityscapes-dataset.com/benchmarks/#scene-labeling-task), and
the numbers equal those of `cityscapesscripts`. The iIoU weights the pixels of each true object by the average object size of the
class over the object's own size, so that far objects count as much as near ones. False positives are counted in pixels, as in
the IoU.
"""

import math
from collections.abc import Iterable

import datasets
import numpy as np

from ..data.datasets.cityscapes import CATEGORIES, CITYSCAPES, IGNORED, LABELS, SCORED, instances_location
from ..data.label_space import LabelSpace
from ..errors import DataError
from .confusion import ConfusionMatrix, as_ids

NUM_IDS = 1 + max(label.raw_id for label in LABELS)
INSTANCE_FACTOR = 1000  # instance id = label id × 1000 + number

# Average object sizes in pixels, from the training set; these numbers stand in the publisher's evaluation.
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
# Categories in which every label has instances. In their iIoU the labels that are not scored (caravan, trailer) are correct too.
_THING_CATEGORIES = [
    category for category, ids in _IDS_OF_CATEGORY.items() if all(_BY_ID[label_id].has_instances for label_id in ids)
]


class CityscapesMetric:
    """IoU class, iIoU class, IoU category and iIoU category, equal to the publisher's evaluation.

    It keeps one confusion matrix, and four numbers for each object. Those of several processes add up exactly: sum
    `confusion.matrix`, and concatenate `objects`.
    """

    def __init__(self):
        self.confusion = ConfusionMatrix(NUM_IDS, ignore_index=IGNORED)
        self.objects: list[np.ndarray] = []

    def add_batch(self, predictions, references, instances, image_ids: Iterable | None = None) -> None:
        """Add the maps of one image, (height, width), or of several images: lists of maps, or stacked maps.

        Args:
            predictions: label ids (`labelIds`: road is 7), not train ids.
            references: true label ids; −1 (licence plate) and 255 are not scored.
            instances: instance ids as in the publisher's 16-bit `instanceIds` files.
            image_ids: names of the images, for errors.

        Raises:
            DataError: shapes or numbers of maps differ, a label id is outside 0…33, or a label without instances has one.
        """
        predictions, references, instances = map(_maps, (predictions, references, instances))
        ids = [None] * len(predictions) if image_ids is None else list(image_ids)
        if not len(predictions) == len(references) == len(instances) == len(ids):
            raise DataError(
                f"{len(predictions)} predictions, {len(references)} references, {len(instances)} instance maps and {len(ids)} "
                "image names were given: give the same number of each"
            )
        for prediction, reference, instance, image_id in zip(predictions, references, instances, ids, strict=True):
            prediction, reference, instance = _array(prediction), _array(reference), _array(instance)
            # The objects come first: if the instance map is bad, nothing of this image is kept.
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
    """Counts the pixels of each true object of a scored class.

    Args:
        prediction: (height, width) label ids.
        instances: (height, width) instance ids; ids up to 1000 are areas and groups, not objects.

    Returns:
        (objects, 4) int64: label id; all pixels; pixels predicted as the label; pixels predicted as any label of its category.

    Raises:
        DataError: the shapes differ, or an instance is of a label that has none.
    """
    prefix = "" if image_id is None else f"image {image_id}: "
    if prediction.shape != instances.shape:
        raise DataError(f"{prefix}predictions of shape {prediction.shape} and instances of shape {instances.shape} differ")
    # 1000 × label + 0 is an object too, but not 1000 itself.
    inside = instances > INSTANCE_FACTOR
    found, predicted = instances[inside].astype(np.int64), prediction[inside]
    ids, places, sizes = _unique(found)
    labels = [_label_of_object(instance_id, prefix) for instance_id in ids.tolist()]
    correct = np.bincount(places, predicted == found // INSTANCE_FACTOR, len(ids)).astype(np.int64)
    in_category = {
        category: np.bincount(places, np.isin(predicted, _IDS_OF_CATEGORY[category]), len(ids)).astype(np.int64)
        for category in _THING_CATEGORIES
    }
    counted = [
        (label.raw_id, sizes[place], correct[place], in_category[label.category][place])
        for place, label in enumerate(labels)
        if label.train_id != IGNORED
    ]
    return np.array(counted, np.int64).reshape(-1, 4)


def _label_of_object(instance_id: int, prefix: str):
    label = _BY_ID.get(instance_id // INSTANCE_FACTOR)
    if label is None or not label.has_instances:
        raise DataError(
            f"{prefix}the instance map holds {instance_id}, but label {instance_id // INSTANCE_FACTOR} has no instances: "
            "give the publisher's instanceIds (label id × 1000 + number)"
        )
    return label


def instance_locations(dataset_name: str, dataset: datasets.Dataset, label_space: LabelSpace) -> list[str] | None:
    """The location of the instance map of each row of the Cityscapes dataset.

    Returns:
        None for another dataset or other classes, and where an image has no label map or no instance map.
    """
    if dataset_name != "cityscapes" or label_space.name != CITYSCAPES.name:
        return None
    stored = dataset.cast_column("label_map", datasets.Image(decode=False))["label_map"]
    locations = [None if value is None else instances_location(value["path"]) for value in stored]
    return None if None in locations else locations


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
        `category_iiou`. A score is NaN where a class occurs neither in truth nor in prediction, and an iIoU also for classes and
        categories without instances. Means leave NaN out.
    """
    class_iou, class_iiou = _class_scores(matrix, objects)
    category_iou, category_iiou = _category_scores(matrix, objects)
    return {
        "iou_class": _mean(class_iou),
        "iiou_class": _mean(class_iiou),
        "iou_category": _mean(category_iou),
        "iiou_category": _mean(category_iiou),
        "class_iou": class_iou,
        "class_iiou": class_iiou,
        "category_iou": category_iou,
        "category_iiou": category_iiou,
    }


def _class_scores(matrix, objects):
    """IoU and iIoU by class name."""
    # Pixels whose true label is not scored do not count. Predicting such a label on other pixels is an error.
    truth = matrix[[label.raw_id for label in SCORED]]
    iou, iiou = {}, {}
    for label in SCORED:
        hits = int(matrix[label.raw_id, label.raw_id])
        false = int(truth[:, label.raw_id].sum()) - hits
        iou[label.name] = _ratio(hits, int(matrix[label.raw_id].sum()) + false)
        own = objects[objects[:, 0] == label.raw_id]
        iiou[label.name] = _instance_iou(own, 2, false) if label.has_instances else math.nan
    return iou, iiou


def _category_scores(matrix, objects):
    """IoU and iIoU by category name."""
    iou, iiou = {}, {}
    for category in CATEGORIES:
        scored = [label.raw_id for label in SCORED if label.category == category]
        others = [label.raw_id for label in SCORED if label.category != category]
        hits = int(matrix[np.ix_(scored, scored)].sum())
        false = int(matrix[np.ix_(others, scored)].sum())
        iou[category] = _ratio(hits, int(matrix[scored].sum()) + false)
        ids = _IDS_OF_CATEGORY[category]
        own = objects[np.isin(objects[:, 0], ids)]
        false = int(matrix[np.ix_(others, ids)].sum())
        iiou[category] = _instance_iou(own, 3, false) if category in _THING_CATEGORIES else math.nan
    return iou, iiou


def _instance_iou(objects, column, false):
    """The iIoU: each object's pixels weighted by the class's average size over its own. fsum gives the same sum in any order."""
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
    """Distinct ids, the position of each pixel's id among them, and how often each occurs. `np.unique` is slower: it sorts."""
    counts = np.bincount(ids, minlength=1)
    distinct = np.flatnonzero(counts)
    place_of = np.zeros(len(counts), np.int64)
    place_of[distinct] = np.arange(len(distinct))
    return distinct, place_of[ids], counts[distinct]


def _maps(maps):
    """The maps as a list; a single map, (height, width), becomes a list of one."""
    if not isinstance(maps, (list, tuple)):
        return [maps] if _array(maps).ndim == 2 else list(maps)
    return list(maps)


def _array(ids):
    return as_ids(ids, "label maps").cpu().numpy()
