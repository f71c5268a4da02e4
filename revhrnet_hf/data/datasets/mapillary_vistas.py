"""Mapillary Vistas: 25,000 street images from all over the world (Neuhold et al., 2017), 20,000 of them with public labels.

The publisher's layout, unpacked or in the publisher's zip file, where FOLDER is training or validation:

- v1.2: `FOLDER/images/X.jpg`, `FOLDER/labels/X.png`, `config.json`,
- v2.0: `FOLDER/images/X.jpg`, `FOLDER/{v1.2,v2.0}/labels/X.png`, `config_v1.2.json`, `config_v2.0.json`.

Label maps are palette images; a pixel's index is the label's position in the list of `config.json`. The requested label space
decides which version of the labels is read.
"""

from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

from ...errors import AbsentSplitError, DataError
from ..archive import DataFolder
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, LabelSpace
from ..listing import ListedSample
from .mapillary_labels import LABELS_V12, LABELS_V20, VistasLabel

V12, V20 = "v1.2", "v2.0"
LABELS = {V12: LABELS_V12, V20: LABELS_V20}
FOLDERS = {"train": "training", "val": "validation"}
UNLABELLED_FOLDERS = {"test": "testing"}
IGNORED = 255
VOID = "void--unlabeled"


def _label_space(name: str, labels: tuple[VistasLabel, ...]) -> LabelSpace:
    """Every label except `VOID`, the last one, is a class, so that ids and train ids are the same."""
    classes = [label for label in labels if label.name != VOID]
    return LabelSpace(
        name=name,
        names=tuple(label.readable for label in classes),
        colours=tuple(label.colour for label in classes),
        raw_ids={raw_id: IGNORED if label.name == VOID else raw_id for raw_id, label in enumerate(labels)},
    )


VISTAS_V12 = _label_space("mapillary_vistas_v1.2", LABELS_V12)
# The publisher's benchmark leaves out seven more labels (ambiguous ones and groups): `VistasLabel.evaluate`.
VISTAS_V20 = _label_space("mapillary_vistas_v2.0", LABELS_V20)
SPACE_OF_VERSION = {V12: VISTAS_V12.name, V20: VISTAS_V20.name}
VERSION_OF_SPACE = {name: version for version, name in SPACE_OF_VERSION.items()}
LABEL_SPACES.update({space.name: space for space in (VISTAS_V12, VISTAS_V20)})


class MapillaryVistas(SegmentationBuilder):
    """Mapillary Vistas v1.2 and v2.0."""

    TITLE = "Mapillary Vistas"
    LABEL_SPACES = (VISTAS_V12.name, VISTAS_V20.name)
    SPLITS = tuple(FOLDERS)
    UNLABELLED_SPLITS = ("test",)
    HINT = "training/ and validation/ with images/ in each, or the publisher's zip file of these"
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {"train": 18000, "val": 2000}

    @staticmethod
    def recognises(data_folder: DataFolder) -> bool:
        below = ("images", "labels", *LABELS)
        folders = [f"{folder}/{name}" for folder in FOLDERS.values() for name in below]
        return any(map(data_folder.has_folder, [*folders, *(f"{folder}/images" for folder in UNLABELLED_FOLDERS.values())]))

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        """v1.2's classes, or v2.0's if only its label maps are there."""
        data_folder = cls.open_folder(data_dir)
        there = {version for split in FOLDERS for version in _label_maps_folders(data_folder, split)}
        return SPACE_OF_VERSION[V20 if there == {V20} else V12]

    @staticmethod
    def list_split(data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        images = f"{FOLDERS[split]}/images"
        label_maps = _label_maps_folder(data_folder, split, label_space)
        stems = {*data_folder.stems(images, ".jpg"), *data_folder.stems(label_maps, ".png")}
        if not stems:
            raise _no_images(data_folder, images)
        return [ListedSample(f"{images}/{stem}.jpg", f"{label_maps}/{stem}.png", stem) for stem in sorted(stems)]

    @staticmethod
    def list_images(data_folder: DataFolder, split: str) -> list[ListedSample]:
        images = f"{UNLABELLED_FOLDERS[split]}/images"
        if not data_folder.has_folder(images):
            raise AbsentSplitError(f"Mapillary Vistas in {data_folder.root} has no split {split!r} (it needs {images}/).")
        stems = data_folder.stems(images, ".jpg")
        if not stems:
            raise _no_images(data_folder, images)
        return [ListedSample(f"{images}/{stem}.jpg", None, stem) for stem in stems]


def _no_images(data_folder: DataFolder, folder: str) -> DataError:
    return DataError(f"Mapillary Vistas' folder {data_folder.root / folder} holds no .jpg: put the images there.")


def _label_maps_folder(data_folder: DataFolder, split: str, label_space: str) -> str:
    there = _label_maps_folders(data_folder, split)
    if not there:
        present = [name for name in FOLDERS if _label_maps_folders(data_folder, name)]
        raise AbsentSplitError(
            f"Mapillary Vistas in {data_folder.root} has no split {split!r} (it needs {FOLDERS[split]}/images/ and labels beside "
            f"it); splits there: {', '.join(present) or 'none'}."
        )
    version = VERSION_OF_SPACE[label_space]
    if version not in there:
        [(found, folder)] = there.items()
        raise DataError(
            f"The label maps in {data_folder.root / folder} are of Mapillary Vistas {found} ({len(LABELS[found])} labels), but "
            f"label space {label_space!r} is for {version}: ask for label_space={SPACE_OF_VERSION[found]!r}, or put {version} "
            "there."
        )
    _check_config(data_folder, f"config_{version}.json", version)
    return there[version]


def _label_maps_folders(data_folder: DataFolder, split: str) -> dict[str, str]:
    """Version → folder of its label maps, for the versions that are there."""
    folder = FOLDERS[split]
    if not data_folder.has_folder(f"{folder}/images"):
        return {}
    nested = {version: f"{folder}/{version}/labels" for version in LABELS if data_folder.has_folder(f"{folder}/{version}/labels")}
    if nested or not data_folder.has_folder(f"{folder}/labels"):
        return nested
    # Without a list the labels count as those of v1.2, the only version that has this layout.
    return {_version_of_config(data_folder, "config.json") or V12: f"{folder}/labels"}


def _check_config(data_folder: DataFolder, config: str, version: str) -> None:
    found = _version_of_config(data_folder, config) or version
    if found != version:
        raise DataError(
            f"{data_folder.expected(config)} lists the labels of {found}, not of {version}: put the publisher's file there."
        )


def _version_of_config(data_folder: DataFolder, config: str) -> str | None:
    """The version whose labels the file lists; None if there is no such file."""
    if not data_folder.has_file(config):
        return None
    content = data_folder.read_json(config)
    try:
        listed = [label["readable"] for label in content["labels"]]
    except (LookupError, TypeError) as error:
        raise DataError(
            f"{data_folder.expected(config)} is not Mapillary Vistas' list of labels ({error!r}): put the publisher's file there."
        ) from error
    for version, labels in LABELS.items():
        if listed == [label.readable for label in labels]:
            return version
    raise DataError(
        f"{data_folder.expected(config)} lists {len(listed)} labels that are neither those of v1.2 ({len(LABELS_V12)}) nor of "
        f"v2.0 ({len(LABELS_V20)}), so the ids in the label maps are unknown: {_difference(listed)}. Put the publisher's file "
        "there."
    )


def _difference(listed: list[str]) -> str:
    """The first difference from the version with the more similar number of labels."""
    labels = min(LABELS.values(), key=lambda labels: abs(len(labels) - len(listed)))
    pairs = zip_longest(listed, (label.readable for label in labels))
    raw_id, found, expected = next((raw_id, *pair) for raw_id, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"label {raw_id} is {found!r} instead of {expected!r}"
