"""`load_segmentation_dataset`: loads a dataset from the folder that its publisher ships as a `datasets.Dataset`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets

from ..errors import AbsentSplitError, DataError, did_you_mean
from .builder import SegmentationBuilder, stored_split
from .datasets.camvid import CamVid
from .datasets.cityscapes import Cityscapes
from .datasets.coco import Coco
from .datasets.folder import Folder
from .datasets.hub import IMAGE, LABEL_MAP, holds_decoded, load_stored
from .datasets.mapillary_vistas import MapillaryVistas
from .datasets.pascal_voc import PascalVoc
from .features import LabelMap
from .folder_listing import listed_once
from .label_space import LABEL_SPACES, LabelSpace, find_label_space
from .split_slice import SplitSlice
from .translation import are_joined, in_classes_of

DATASETS: dict[str, type[SegmentationBuilder]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "mapillary_vistas": MapillaryVistas,
    "pascal_voc": PascalVoc,
    "folder": Folder,
}
STORED = "hub"


@listed_once()
def load_segmentation_dataset(
    name: str,
    data_dir: str | Path,
    split: str,
    label_space: str | Path | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    unlabelled: bool = False,
    loader: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a dataset from its folder or from the Hub.

    The images remain files, which are read with each example; the `datasets` cache holds only their paths.

    Args:
        name: the dataset, for example `"camvid"`; `"folder"` for your own images and label maps (datasets/folder.py describes
            the layouts); `"hub"` for any dataset on the Hub, in a copy of its repository, or saved with `save_to_disk`. With
            `loader`, a name of your own.
        data_dir: the folder in the publisher's layout; zip and tar files in it are read without unpacking. With `"hub"`, the name
            on the Hub, or the folder.
        split: for example `"train"`, `"val"`, `"trainval"`; or a part of one, such as `"train[:10%]"`, `"train[100:200]"` or
            `"train[::4]"`.
        label_space: the classes to translate to: a label space of the dataset, or one that a table joins to it (translation.py;
            classes without a partner are ignored); the default one if None. With `"folder"` and `"hub"`, the classes of the label
            maps: a label table (a YAML file; label_table.py shows the form) or a name.
        streaming: return an `IterableDataset`, which writes no cache.
        unlabelled: allow splits without public label maps (`"test"` of Cityscapes, Mapillary Vistas and PASCAL VOC); `label_map`
            is None there.
        image_column, label_column: only with `"hub"`: the names of these columns there; `"image"` and `"label_map"` if None.
        loader: how to load the dataset, if `name` is a name of your own: one of the names above. The notes on `"folder"` and
            `"hub"` then apply to the loader.

    Returns:
        Columns `image` (PIL, RGB), `label_map` (PIL, mode L: train ids, 255 ignored) and `image_id` (str).

    Raises:
        DataError: the name, split or label space is unknown, a slice selects no image or is asked of a stream, or a file in the
            folder is missing or does not fit.
    """
    part = _part_of_split(name, data_dir, split, label_space, loader)
    if not part.is_whole:
        if streaming:
            raise DataError(f"{split!r}: a part of a split cannot be streamed; load {part.name!r}, and use its take() and skip()")
        options = (label_space, streaming, image_column, label_column, unlabelled, loader)
        whole = load_segmentation_dataset(name, data_dir, part.name, *options)
        return _selected(whole, part, split)
    loader = loader_of(name, loader)
    if loader == STORED:
        return load_stored(data_dir, split, label_space, streaming, image_column or IMAGE, label_column or LABEL_MAP)
    check_no_columns(name, image_column, label_column)
    if label_space is not None and (usual := _joined_usual_space(loader, Path(data_dir), str(label_space))):
        return in_classes(
            load_segmentation_dataset(name, data_dir, split, usual, streaming, unlabelled=unlabelled, loader=loader),
            LABEL_SPACES[str(label_space)],
        )
    builder_class, data_dir, label_space = find_builder(loader, data_dir, label_space)
    splits = builder_class.splits(data_dir, label_space)
    if unlabelled:
        splits += builder_class.UNLABELLED_SPLITS
    elif split in builder_class.UNLABELLED_SPLITS:
        raise AbsentSplitError(
            f"{name}'s {split!r} has no label maps, its publisher keeps them; splits with labels: {', '.join(splits)}."
        )
    check_known(f"split of {name}", split, splits)
    return _load_split(builder_class, data_dir, split, label_space, streaming)


def _part_of_split(name: str, data_dir: str | Path, split: str, label_space: str | Path | None, loader: str | None) -> SplitSlice:
    """The part that `split` asks for; the whole split if it is the name of one, which may have brackets in a folder of images."""
    loader = loader_of(name, loader)
    if "[" in split and loader in DATASETS and not DATASETS[loader].LABEL_SPACES:
        builder_class, data_dir, label_space = find_builder(loader, data_dir, label_space)
        if split in builder_class.splits(data_dir, label_space):
            return SplitSlice(split)
    return SplitSlice.of_text(split)


def _selected(whole: datasets.Dataset, part: SplitSlice, split: str) -> datasets.Dataset:
    rows = part.rows(len(whole))
    if not rows:
        raise DataError(f"{split!r} selects none of the {len(whole)} images of {part.name!r}.")
    return whole.select(rows)


def _load_split(
    builder_class: type[SegmentationBuilder], data_dir: Path, split: str, label_space: str, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    digest = builder_class.digest(data_dir, split, label_space)
    builder = builder_class(data_dir=str(data_dir), split=split, label_space=label_space, listing_digest=digest)
    if streaming:
        return builder.as_streaming_dataset(stored_split(split))
    with _without_progress_bars():
        builder.download_and_prepare()
    return builder.as_dataset(stored_split(split))


def check_no_columns(name: str, image_column: str | None, label_column: str | None) -> None:
    if image_column or label_column:
        raise DataError(f"image_column and label_column are for the dataset {STORED!r} only: leave them out with {name!r}.")


def loader_of(name: str, loader: str | None = None) -> str:
    """The loader of a dataset: `loader`, or the dataset's name if it is None.

    Raises:
        DataError: the loader is unknown, or `name` is another loader's name or cannot be a file's name.
    """
    loaders = (*DATASETS, STORED)
    if loader is None:
        if name not in loaders:
            raise DataError(
                f"Unknown dataset: {name!r}{did_you_mean(name, loaders)}; known: {', '.join(loaders)}. A dataset with a name of "
                "its own needs a loader (one of these, mostly folder or hub) as well."
            )
        return name
    check_known("loader", loader, loaders)
    if name in loaders and name != loader:
        raise DataError(f"The dataset {name!r} has the loader {loader!r}: give it a name that is not another loader's.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise DataError(f"{name!r} cannot be a dataset's name, which has letters, digits, '.', '-' and '_' only.")
    return loader


def find_builder(name: str, data_dir: str | Path, label_space: str | Path | None) -> tuple[type[SegmentationBuilder], Path, str]:
    """The builder of a loader, the folder's absolute path, and the label space.

    Raises:
        DataError: the loader is unknown, or the dataset cannot be read with this label space.
    """
    check_known("dataset", name, DATASETS)
    builder_class = DATASETS[name]
    # Absolute, because the stored paths must be valid in any working directory.
    data_dir = Path(data_dir).expanduser().absolute()
    label_space = builder_class.default_label_space(data_dir) if label_space is None else str(label_space)
    if not builder_class.accepts_label_space(label_space):
        check_known(f"label space for {name}", label_space, builder_class.LABEL_SPACES)
    return builder_class, data_dir, label_space


def _joined_usual_space(name: str, data_dir: Path, wanted: str) -> str | None:
    """The dataset's default label space, if a table joins it to `wanted`, which is not one of the dataset's own."""
    check_known("dataset", name, DATASETS)
    own = DATASETS[name].LABEL_SPACES
    if not own or wanted in own or wanted not in LABEL_SPACES:
        return None
    usual = DATASETS[name].default_label_space(data_dir.expanduser().absolute())
    return usual if are_joined(find_label_space(usual), LABEL_SPACES[wanted]) else None


def in_classes(
    dataset: datasets.Dataset | datasets.IterableDataset, label_space: LabelSpace
) -> datasets.Dataset | datasets.IterableDataset:
    """The dataset with its label maps translated to other classes; pixels of a class without a partner are ignored.

    Raises:
        DataError: no class has a partner (translation.py), or the dataset's label maps were decoded before.
    """
    own = label_space_of(dataset)
    if own.names == label_space.names:
        return dataset
    feature = LabelMap.of(in_classes_of(own, label_space))
    if isinstance(dataset, datasets.Dataset) and holds_decoded(dataset):
        raise DataError(
            f"The dataset's label maps hold train ids of {own.name!r} already and cannot be translated to {label_space.name!r}: "
            "load them from the files that their publisher ships."
        )
    return dataset.cast_column(LABEL_MAP, feature)


def label_space_of(dataset: datasets.Dataset | datasets.IterableDataset) -> LabelSpace:
    """The label space of the dataset's `label_map` column; a dataset without one is a DataError."""
    feature = (dataset.features or {}).get("label_map")
    if not isinstance(feature, LabelMap):
        raise DataError(f"The dataset's column 'label_map' is {feature!r}, no LabelMap, so its classes are unknown.")
    return feature.space


def check_known(what: str, given: str, known: Iterable[str]) -> None:
    if given not in known:
        raise DataError(f"Unknown {what}: {given!r}{did_you_mean(given, known)}; known: {', '.join(known)}.")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets`: writing a few paths is too quick for one."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
