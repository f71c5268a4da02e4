"""Data sets that `datasets` has stored: on the Hub, in a copy of a Hub repository, or in a folder written by `save_to_disk`.

Ours come back as they were, for their features say everything. Any other data set with a column of pictures and a column of label
maps will do too, given a label table for the ids in its label maps.
"""

import hashlib
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError

from ...errors import AbsentSplitError, DataError
from ...images import ImageFile, unreadable_is_data_error
from ..features import LabelMap, Picture
from ..label_space import find_label_space
from .own_files import OwnFiles

IMAGE, LABEL_MAP, IMAGE_ID = "image", "label_map", "image_id"
UNNAMED = "train"  # what `datasets` calls the only split of a data set that names none
SAVED_SET, SAVED_SPLITS = "state.json", "dataset_dict.json"
FILE = Picture(decode=False)  # an image as stored
STREAMS = 64  # shards of a saved data set that is streamed, for as many processes at most

AnyDataset = datasets.Dataset | datasets.IterableDataset


def load_stored(
    source: str | Path, split: str, label_space: str | Path | None, streaming: bool, image_column: str, label_column: str
) -> AnyDataset:
    """One split of a stored data set, in our three columns.

    Args:
        source: a name on the Hub or a folder.
        label_space: what the ids in the label maps mean; None for a data set of ours, which knows it.
        image_column, label_column: what these columns are called there. A column `image_id` is taken over; without one, ids are
            made of the rows' numbers, or of the pictures' content where rows of the Hub are streamed and have no number.

    Raises:
        DataError: there is no such data set, split or column, or its label space is unknown or another.
    """
    folder = Path(source).expanduser()
    saved = (folder / SAVED_SET).is_file() or (folder / SAVED_SPLITS).is_file()
    dataset = _load_saved(folder, split) if saved else _load_published(str(source), split, streaming)
    features = dataset.features
    if features is None:
        raise DataError(f"{source} does not say which columns it has before it is read: load it without streaming.")
    for column in (image_column, label_column):
        _check_picture_column(source, features, column)
    feature = _label_map_feature(source, features[label_column], label_space)
    foreign = not isinstance(features[label_column], LabelMap)
    columns = [image_column, label_column, *([IMAGE_ID] if IMAGE_ID in features else [])]
    own = OwnFiles(source, None if saved else dataset.info.builder_name)
    dataset = dataset.select_columns(columns).cast_column(image_column, Picture())
    for column, ours in ((image_column, IMAGE), (label_column, LABEL_MAP)):
        dataset = dataset if column == ours else dataset.rename_column(column, ours)
    complete = _complete_mapped if isinstance(dataset, datasets.Dataset) else _complete_streamed
    dataset = complete(dataset, feature, foreign, own)
    return dataset.to_iterable_dataset(num_shards=min(STREAMS, len(dataset))) if saved and streaming else dataset


def _load_saved(folder: Path, split: str) -> datasets.Dataset:
    try:
        stored = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"The data set saved in {folder} cannot be read ({error}): save it again.") from error
    splits = stored if isinstance(stored, datasets.DatasetDict) else {str(stored.split or UNNAMED): stored}
    if split not in splits:
        raise AbsentSplitError(f"The data set saved in {folder} has no split {split!r}; splits there: {', '.join(splits)}.")
    return splits[split]


def _load_published(source: str, split: str, streaming: bool) -> AnyDataset:
    try:
        stored = datasets.load_dataset(source, streaming=streaming)
    # Of the network, the name, the repository's files, and its configuration.
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"The data set {source} cannot be loaded ({error}): give its name on the Hub, or a folder that holds a copy of it or "
            "was written by save_to_disk."
        ) from error
    if split not in stored:
        raise AbsentSplitError(f"The data set {source} has no split {split!r}; splits there: {', '.join(stored)}.")
    return stored[split]


def _check_picture_column(source: str | Path, features: datasets.Features, column: str) -> None:
    if column not in features:
        raise DataError(
            f"{source} has no column {column!r}; its columns: {', '.join(features)}. Say which hold the pictures and the label "
            "maps (image_column, label_column)."
        )
    if not isinstance(features[column], datasets.Image):
        raise DataError(f"The column {column!r} of {source} is {features[column]!r}, not one of pictures (Image): name another.")


def _label_map_feature(source: str | Path, stored: datasets.Image, given: str | Path | None) -> LabelMap:
    if not isinstance(stored, LabelMap):
        if given is None:
            raise DataError(
                f"{source} does not say what the ids in its label maps mean: give label_space, a label table (a YAML file; one "
                "line, such as names: [road, car, person], is enough) or the name of a label space."
            )
        return LabelMap.of(find_label_space(given))
    if given is not None and find_label_space(given) != stored.space:
        raise DataError(
            f"The label maps of {source} are stored in label space {stored.label_space!r}, not {given}: leave it out."
        )
    return stored


def _complete_mapped(dataset: datasets.Dataset, feature: LabelMap, foreign: bool, own: OwnFiles) -> datasets.Dataset:
    for column in (IMAGE, LABEL_MAP):
        own.check_column(dataset, column)
    without = dataset.data.column(LABEL_MAP).null_count
    if without:
        raise DataError(f"{without} of the split's {len(dataset)} rows have no label map: take another split, or drop them.")
    if foreign:
        dataset = _with_named_label_maps(dataset).cast_column(LABEL_MAP, feature)
    if dataset.features.get(IMAGE_ID) != datasets.Value("string"):
        has_ids = IMAGE_ID in dataset.features
        ids = [str(i) for i in dataset[IMAGE_ID]] if has_ids else [f"{row:06d}" for row in range(len(dataset))]
        dataset = (dataset.remove_columns(IMAGE_ID) if has_ids else dataset).add_column(IMAGE_ID, ids)
    return dataset.select_columns([IMAGE, LABEL_MAP, IMAGE_ID])


def holds_decoded(dataset: datasets.Dataset) -> bool:
    """Whether a label map lacks a file name, which to LabelMap says that it holds train ids already."""
    return pc.any(pc.is_null(pc.struct_field(dataset.data.column(LABEL_MAP), "path"))).as_py()


def _with_named_label_maps(dataset: datasets.Dataset) -> datasets.Dataset:
    """LabelMap takes a label map without a file name for one that is translated already: it gets its row for a name."""
    if not holds_decoded(dataset):
        return dataset
    label_maps = dataset.select_columns(LABEL_MAP).cast_column(LABEL_MAP, FILE)
    # Not where the data set lies, which may not be ours to write to.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "label_maps"
    cache.mkdir(parents=True, exist_ok=True)
    named = label_maps.map(
        lambda row, number: {LABEL_MAP: _named(row[LABEL_MAP], f"row {number}")},
        with_indices=True,
        cache_file_name=str(cache / f"{label_maps._fingerprint}.arrow"),
        desc="naming label maps",
    )
    return datasets.concatenate_datasets([dataset.remove_columns(LABEL_MAP), named], axis=1)


def _complete_streamed(
    dataset: datasets.IterableDataset, feature: LabelMap, foreign: bool, own: OwnFiles
) -> datasets.IterableDataset:
    for column in (IMAGE, LABEL_MAP):
        dataset = dataset.cast_column(column, FILE)
    features = datasets.Features({IMAGE: Picture(), LABEL_MAP: feature, IMAGE_ID: datasets.Value("string")})
    # cast: what `map` gives with features counts as decoded.
    return dataset.map(_completed, fn_kwargs={"foreign": foreign, "own": own}).cast(features)


def _completed(row: dict[str, Any], foreign: bool, own: OwnFiles) -> dict[str, Any]:
    image, label_map = row[IMAGE], row[LABEL_MAP]
    for column in (IMAGE, LABEL_MAP):
        if row[column] is not None:
            own.check_value(row[column], column)
    # Not the row's number, which each of several processes counts for itself.
    image_id = str(row[IMAGE_ID]) if IMAGE_ID in row else _content_id(image)
    if label_map is None:
        raise DataError(f"The picture {image_id} has no label map: take another split, or drop such rows.")
    _check_same_size(image_id, image, label_map)
    label_map = _named(label_map, f"of picture {image_id}") if foreign else label_map
    return {IMAGE: image, LABEL_MAP: label_map, IMAGE_ID: image_id}


def _check_same_size(image_id: str, image: dict[str, Any], label_map: dict[str, Any]) -> None:
    """Raises a DataError unless a row's image and label map, where it holds their bytes, are of one size.

    Only headers are read; an annotation, or what cannot be read, is left to whoever decodes it.
    """
    if None in (image["bytes"], label_map["bytes"]):
        return
    try:
        with unreadable_is_data_error("Image", image_id):
            opened, labels = ImageFile(image["bytes"]), ImageFile(label_map["bytes"])
    except DataError:
        return
    if labels.size not in (opened.size, opened.stored_size):
        size, labelled = ("×".join(map(str, file.size)) for file in (opened, labels))
        raise DataError(
            f"image {image_id} is {size} pixels (width×height) but its label map is {labelled}: bring both to one size (label "
            "maps by nearest neighbour). If only the sides are swapped, look at the EXIF orientation: turn the label map, "
            "do not resize it"
        )


def _named(label_map: dict[str, Any], name: str) -> dict[str, Any]:
    return {"bytes": label_map["bytes"], "path": label_map["path"] or name}


def _content_id(image: dict[str, Any]) -> str:
    return hashlib.sha256(image["bytes"] or image["path"].encode()).hexdigest()[:16]
