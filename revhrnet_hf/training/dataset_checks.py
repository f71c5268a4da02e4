"""Checks of a run's data: it is resumed on the data that it began with, and what it is scored on is labelled and new to it."""

import hashlib
import json
import logging
from typing import Any

import numpy as np
from datasets import Dataset

from ..data import label_space_of
from ..data.class_index import files_in_table
from ..errors import CheckpointError, DataError
from .data import TrainingSet

logger = logging.getLogger(__name__)


def fingerprint(train_sets: list[TrainingSet], eval_set: Dataset, eval_split: str) -> dict[str, Any]:
    """Identifies the data: for each split the number of images and a digest of their ids in order; the classes."""
    space, (first, *others) = label_space_of(eval_set), train_sets
    return {
        "trained_on": [
            _of_split(f"{first.name}:{first.split}", first.images),
            *({**_of_split(f"{entry.name}:{entry.split}", entry.images), "table": _table_of(entry.images)} for entry in others),
        ],
        "scored_on": _of_split(f"{first.name}:{eval_split}", eval_set),
        "classes": {"names": list(space.names), "table": _table_of(eval_set)},
    }


def _table_of(dataset: Dataset) -> str:
    """A digest of what the ids and colours in label maps mean."""
    space = label_space_of(dataset)
    return _digest((space.names, sorted(space.raw_ids.items()), sorted(space.raw_colours.items()), space.ignore_index))


def _of_split(name: str, dataset: Dataset) -> dict[str, Any]:
    return {"split": name, "images": len(dataset), "ids": _digest(dataset.select_columns("image_id")[:]["image_id"])}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def refuse_other_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises a CheckpointError if the data of a run to resume differ from those that it began with; it says how.

    The order of the epochs, the learning rates and the best score would fit neither of them.
    """
    splits = [*zip(before["trained_on"], now["trained_on"], strict=True), (before["scored_on"], now["scored_on"])]
    # Runs of earlier versions did not note the tables of further datasets.
    said = [_difference(old, new) for old, new in splits if old != {name: new[name] for name in old}]
    old, new = before["classes"], now["classes"]
    if old["names"] != new["names"]:
        gone = [name for name in old["names"] if name not in new["names"]]
        come = [name for name in new["names"] if name not in old["names"]]
        said.append(f"classes: gone {gone}, new {come}" if gone or come else "the classes have another order")
    elif old != new:
        said.append("the label table gives the classes other ids or colours")
    if said:
        raise CheckpointError(
            f"The run to resume was started on other data: {'; '.join(said)}. Bring these back, or start a new run "
            "(init_from can give it these weights)"
        )


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    if old["images"] != new["images"]:
        return f"{new['split']} had {old['images']} images, has {new['images']}"
    if old["ids"] == new["ids"]:
        return f"the label table of {new['split']} gives the classes other ids or colours"
    return f"{new['split']} has {new['images']} images as before, but other ones or in another order (their ids differ)"


def refuse_unlabelled(eval_set: Dataset, name: str, ignore_index: int) -> None:
    """Raises a DataError if no pixel of the split has a class: there would be no score, and no best checkpoint.

    Label maps are read up to the first one with a labelled pixel.
    """
    for row in range(len(eval_set)):
        if (np.asarray(eval_set[row]["label_map"]) != ignore_index).any():
            return
    raise DataError(
        f"{name}: no pixel of its {len(eval_set)} label maps has a class, so that nothing can be scored. Is the split published "
        "without labels? Does the label table ignore an id that is meant to be a class?"
    )


def warn_of_learnt_images(train_sets: list[TrainingSet], eval_set: Dataset, name: str) -> None:
    """Logs a warning if images of the evaluation split, called `name`, are trained on, as with trainval and val.

    Images are compared by their files; those that a dataset has stored inside itself are not.
    """
    learnt = _files_of_rows(eval_set) & set().union(*(_files_of_rows(entry.images) for entry in train_sets))
    if learnt:
        logger.warning(
            f"{len(learnt)} of the {len(eval_set)} images of {name}, on which scores are taken, are trained on as well: "
            "scores are higher than on images that are new to the network, and the best checkpoint is chosen by them"
        )


def _files_of_rows(images: Dataset) -> set[str]:
    """The files of the images of a split; of a part such as train[::4], whose table may be that of the whole split, its own."""
    file_of = dict(zip(images.data.column("image_id").to_pylist(), files_in_table(images, "image"), strict=True))
    ids = images.select_columns("image_id")[:]["image_id"]
    return {file for file in map(file_of.get, ids) if file is not None}
