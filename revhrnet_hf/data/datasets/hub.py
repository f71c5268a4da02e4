"""Datasets stored by `datasets`: on the Hub, in a copy of a Hub repository, or in a folder written by `save_to_disk`.

A dataset that this package loaded and saved needs nothing else, because its features define the classes. Any other dataset with a
column of images and a column of label maps needs a label table.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError

from ...errors import AbsentSplitError, DataError, first_few
from ...images import ImageFile, unreadable_is_data_error
from ..features import LabelMap, RgbImage
from ..label_space import find_label_space
from ..listing import MAX_NAMED, mismatch
from .own_files import OwnFiles

IMAGE, LABEL_MAP, IMAGE_ID = "image", "label_map", "image_id"
UNNAMED = "train"  # the name that `datasets` gives to the only split of a dataset without split names
SAVED_SET, SAVED_SPLITS = "state.json", "dataset_dict.json"
FILE = RgbImage(decode=False)  # an image as stored
STREAMS = 64  # shards of a saved dataset when streaming; at most as many processes can read

AnyDataset = datasets.Dataset | datasets.IterableDataset


def load_stored(
    source: str | Path, split: str, label_space: str | Path | None, streaming: bool, image_column: str, label_column: str
) -> AnyDataset:
    """Loads one split of a stored dataset, with the columns `image`, `label_map` and `image_id`.

    Args:
        source: a name on the Hub or a folder.
        label_space: the meaning of the ids in the label maps; None for a dataset that this package saved.
        image_column, label_column: the names of these columns there. A column `image_id` is kept. Without one, the ids are the
            rows' numbers, or hashes of the images' content for rows streamed from the Hub, which have no number.

    Raises:
        DataError: there is no such dataset, split or column, its label space is unknown or differs, or a row lacks its image or
            label map. (In a stream, rows are checked when they are read.)
    """
    saved = _is_saved(source)
    stored = _stored(source, streaming)
    if split not in stored:
        raise AbsentSplitError(f"The dataset {source} has no split {split!r}; splits there: {', '.join(stored)}.")
    dataset = stored[split]
    features = dataset.features
    if features is None:
        raise DataError(f"{source} does not say which columns it has before it is read: load it without streaming.")
    if image_column == label_column:
        raise DataError(
            f"image_column and label_column are both {image_column!r}: name the column of images and that of label maps; the "
            f"columns of {source}: {', '.join(features)}."
        )
    for column in (image_column, label_column):
        _check_image_column(source, features, column)
    feature = _label_map_feature(source, features[label_column], label_space)
    foreign = not isinstance(features[label_column], LabelMap)
    columns = list(dict.fromkeys([image_column, label_column, *([IMAGE_ID] if IMAGE_ID in features else [])]))
    own = OwnFiles(source, None if saved else dataset.info.builder_name)
    dataset = dataset.select_columns(columns).cast_column(image_column, RgbImage())
    if (image_column, label_column) != (IMAGE, LABEL_MAP):
        # In two steps, because the names may be swapped.
        renamed = dataset.rename_columns({image_column: "given_image", label_column: "given_label_map"})
        dataset = renamed.rename_columns({"given_image": IMAGE, "given_label_map": LABEL_MAP})
    complete = _complete_mapped if isinstance(dataset, datasets.Dataset) else _complete_streamed
    dataset = complete(dataset, feature, foreign, own)
    return dataset.to_iterable_dataset(num_shards=min(STREAMS, len(dataset))) if saved and streaming else dataset


def stored_splits(source: str | Path) -> tuple[str, ...]:
    """The splits of a stored dataset."""
    return tuple(_stored(source, streaming=False))


def _is_saved(source: str | Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    folder = Path(source).expanduser()
    return (folder / SAVED_SET).is_file() or (folder / SAVED_SPLITS).is_file()


def _stored(source: str | Path, streaming: bool) -> Mapping[str, AnyDataset]:
    """Split → dataset."""
    return _load_saved(Path(source).expanduser()) if _is_saved(source) else _load_published(str(source), streaming)


def _load_saved(folder: Path) -> Mapping[str, datasets.Dataset]:
    try:
        stored = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"The dataset saved in {folder} cannot be read ({error}): save it again.") from error
    return stored if isinstance(stored, datasets.DatasetDict) else {str(stored.split or UNNAMED): stored}


def _load_published(source: str, streaming: bool) -> Mapping[str, AnyDataset]:
    try:
        return datasets.load_dataset(source, streaming=streaming)
    # Errors of the network, the name, the repository's files, and its configuration.
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"The dataset {source} cannot be loaded ({error}): give its name on the Hub, or a folder that holds a copy of it or "
            "was written by save_to_disk."
        ) from error


def _check_image_column(source: str | Path, features: datasets.Features, column: str) -> None:
    if column not in features:
        raise DataError(
            f"{source} has no column {column!r}; its columns: {', '.join(features)}. Say which hold the images and the label "
            "maps (image_column, label_column)."
        )
    if not isinstance(features[column], datasets.Image):
        raise DataError(f"The column {column!r} of {source} is {features[column]!r}, not one of images (Image): name another.")


def _label_map_feature(source: str | Path, stored: datasets.Image, given: str | Path | None) -> LabelMap:
    if not isinstance(stored, LabelMap):
        if given is None:
            raise DataError(
                f"{source} does not define the ids in its label maps: give label_space, a label table (a YAML file; one line, "
                "such as names: [road, car, person], is enough) or the name of a label space."
            )
        return LabelMap.of(find_label_space(given))
    if given is not None and find_label_space(given) != stored.space:
        raise DataError(
            f"The label maps of {source} are stored in label space {stored.label_space!r}, not {given}: leave it out."
        )
    return stored


def _complete_mapped(dataset: datasets.Dataset, feature: LabelMap, foreign: bool, own: OwnFiles) -> datasets.Dataset:
    for column, kind in ((IMAGE, "image"), (LABEL_MAP, "label map")):
        _check_present(dataset, column, kind)
        own.check_column(dataset, column)
    if foreign:
        dataset = _with_named_label_maps(dataset).cast_column(LABEL_MAP, feature)
    if dataset.features.get(IMAGE_ID) != datasets.Value("string"):
        has_ids = IMAGE_ID in dataset.features
        ids = [str(i) for i in dataset[IMAGE_ID]] if has_ids else [f"{row:06d}" for row in range(len(dataset))]
        dataset = (dataset.remove_columns(IMAGE_ID) if has_ids else dataset).add_column(IMAGE_ID, ids)
    return dataset.select_columns([IMAGE, LABEL_MAP, IMAGE_ID])


def _check_present(dataset: datasets.Dataset, column: str, kind: str) -> None:
    """Raises a DataError for rows whose value is null or has neither bytes nor a path."""
    stored = dataset.data.column(column)
    parts = [pc.is_null(pc.struct_field(stored, part)) for part in ("bytes", "path")]
    empty = pc.or_(pc.is_null(stored), pc.and_(*parts))
    rows = pc.indices_nonzero(empty).to_pylist()
    if not rows:
        return
    raise DataError(
        f"{len(rows)} of the split's {len(dataset)} rows have no {kind}: row {first_few(rows, MAX_NAMED)}, counted from 0. Take "
        "another split, or drop these rows."
    )


def holds_decoded(dataset: datasets.Dataset) -> bool:
    """Whether a label map has no file name, which means to LabelMap that it already holds train ids."""
    return pc.any(pc.is_null(pc.struct_field(dataset.data.column(LABEL_MAP), "path"))).as_py()


def _with_named_label_maps(dataset: datasets.Dataset) -> datasets.Dataset:
    """Gives each label map without a file name its row number as a name; otherwise LabelMap would not translate it."""
    if not holds_decoded(dataset):
        return dataset
    label_maps = dataset.select_columns(LABEL_MAP).cast_column(LABEL_MAP, FILE)
    # Not in the dataset's folder, which may be read-only.
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
    features = datasets.Features({IMAGE: RgbImage(), LABEL_MAP: feature, IMAGE_ID: datasets.Value("string")})
    # cast, rather than the argument `features` of `map`, with which the columns would count as decoded.
    return dataset.map(_completed, fn_kwargs={"foreign": foreign, "own": own}).cast(features)


def _completed(row: dict[str, Any], foreign: bool, own: OwnFiles) -> dict[str, Any]:
    image, label_map = row[IMAGE], row[LABEL_MAP]
    for column in (IMAGE, LABEL_MAP):
        if row[column] is not None:
            own.check_value(row[column], column)
    if _is_empty(image):
        label_path = "of an unknown name" if _is_empty(label_map) or not label_map["path"] else label_map["path"]
        which = f"image_id {row[IMAGE_ID]}" if IMAGE_ID in row else f"the label map {label_path}"
        raise DataError(f"The row with {which} has no image: drop such rows.")
    # Not the row's number: each process counts its own rows.
    image_id = str(row[IMAGE_ID]) if IMAGE_ID in row else _content_id(image)
    if _is_empty(label_map):
        raise DataError(f"The image {image_id} has no label map: take another split, or drop such rows.")
    _check_same_size(image_id, image, label_map)
    label_map = _named(label_map, f"of image {image_id}") if foreign else label_map
    return {IMAGE: image, LABEL_MAP: label_map, IMAGE_ID: image_id}


def _is_empty(value: dict[str, Any] | None) -> bool:
    return value is None or (value["bytes"] is None and value["path"] is None)


def _check_same_size(image_id: str, image: dict[str, Any], label_map: dict[str, Any]) -> None:
    """Raises a DataError if a row holds the bytes of image and label map, and they have different sizes.

    Only headers are read. Annotations and unreadable files are not checked here, but when they are decoded.
    """
    if None in (image["bytes"], label_map["bytes"]):
        return
    try:
        with unreadable_is_data_error("Image", image_id):
            opened, labels = ImageFile(image["bytes"]), ImageFile(label_map["bytes"])
    except DataError:
        return
    if labels.size not in (opened.size, opened.stored_size):
        raise DataError(mismatch(f"image {image_id}", opened.size, opened.orientation, "its label map", labels.size))


def _named(label_map: dict[str, Any], name: str) -> dict[str, Any]:
    return {"bytes": label_map["bytes"], "path": label_map["path"] or name}


def _content_id(image: dict[str, Any]) -> str:
    return hashlib.sha256(image["bytes"] or image["path"].encode()).hexdigest()[:16]
