"""`load_segmentation_dataset`: a data set's folder, as its owner ships it, to a `datasets.Dataset`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets

from ..errors import DataError
from .builder import SegmentationBuilder
from .camvid import CamVid
from .cityscapes import Cityscapes
from .coco import Coco
from .label_map import LabelMap
from .label_space import LabelSpace, get_label_space
from .mapillary_vistas import MapillaryVistas
from .pascal_voc import PascalVoc

DATASETS: dict[str, type[SegmentationBuilder]] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "mapillary_vistas": MapillaryVistas,
    "pascal_voc": PascalVoc,
}


def load_segmentation_dataset(
    name: str, data_dir: str | Path, split: str, label_space: str | None = None, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads one split of a data set from the folder in which it lies.

    Pictures stay files and are read with each example; the `datasets` cache holds only their paths.

    Args:
        name: the data set, for example `"camvid"`.
        data_dir: its folder, laid out as the owner does it; zip and tar files in it are read without unpacking.
        split: for example `"train"`, `"val"`, `"trainval"`.
        label_space: the classes to translate to; the data set's usual ones if None.
        streaming: gives an `IterableDataset`, which writes no cache at all.

    Returns:
        Columns `image` (PIL, RGB), `label_map` (PIL, mode L: train ids, 255 ignored) and `image_id` (str).

    Raises:
        DataError: an unknown name, split or label space, or a folder in which something is missing or does not fit.
    """
    _check_known("data set", name, DATASETS)
    builder_class = DATASETS[name]
    label_space = label_space or builder_class.LABEL_SPACES[0]
    _check_known(f"split of {name}", split, builder_class.SPLITS)
    _check_known(f"label space for {name}", label_space, builder_class.LABEL_SPACES)
    # Absolute: the paths that are stored must hold whatever the working directory is later.
    data_dir = Path(data_dir).expanduser().absolute()
    digest = builder_class.digest(data_dir, split, label_space)
    builder = builder_class(data_dir=str(data_dir), split=split, label_space=label_space, listing_digest=digest)
    if streaming:
        return builder.as_streaming_dataset(split)
    with _without_progress_bars():
        builder.download_and_prepare()
    return builder.as_dataset(split)


def label_space_of(dataset: datasets.Dataset | datasets.IterableDataset) -> LabelSpace:
    """The label space of the data set's `label_map` column; a data set without one is a DataError."""
    feature = (dataset.features or {}).get("label_map")
    if not isinstance(feature, LabelMap):
        raise DataError(f"The data set's column 'label_map' is {feature!r}, no LabelMap, so its classes are unknown.")
    return get_label_space(feature.label_space)


def _check_known(what: str, given: str, known: Iterable[str]) -> None:
    if given not in known:
        raise DataError(f"Unknown {what}: {given!r}; known: {', '.join(known)}.")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Writing a few paths takes no time worth a bar on the user's terminal."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
