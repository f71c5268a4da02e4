"""Mapillary Vistas: 25,000 street images from all over the world (Neuhold et al., 2017), 20,000 of them with public labels.

Laid out as its publisher ships it, unpacked or still in the publisher's zip file, for FOLDER training and validation:

- v1.2: `FOLDER/images/X.jpg`, `FOLDER/labels/X.png`, `config.json`,
- v2.0: `FOLDER/images/X.jpg`, `FOLDER/{v1.2,v2.0}/labels/X.png`, `config_v1.2.json`, `config_v2.0.json`.

Label maps are palette images whose index is the label's place in the list of `config.json`. The label space that is asked for
decides which labels are read.
"""

from itertools import zip_longest
from typing import ClassVar

from ...errors import AbsentSplitError, DataError
from ..archive import DataTree
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, LabelSpace
from ..listing import Listed
from .mapillary_labels import LABELS_V12, LABELS_V20, VistasLabel

V12, V20 = "v1.2", "v2.0"
LABELS = {V12: LABELS_V12, V20: LABELS_V20}
FOLDERS = {"train": "training", "val": "validation"}
UNLABELLED_FOLDERS = {"test": "testing"}
IGNORED = 255
VOID = "void--unlabeled"


def _label_space(name: str, labels: tuple[VistasLabel, ...]) -> LabelSpace:
    """Every label but `VOID`, the last, is a class, so that ids and train ids are the same."""
    classes = [label for label in labels if label.name != VOID]
    return LabelSpace(
        name=name,
        names=tuple(label.readable for label in classes),
        colours=tuple(label.colour for label in classes),
        raw_ids={raw_id: IGNORED if label.name == VOID else raw_id for raw_id, label in enumerate(labels)},
    )


VISTAS_V12 = _label_space("mapillary_vistas_v1.2", LABELS_V12)
# The publisher's benchmark leaves out seven more (the ambiguous ones and the groups): `VistasLabel.evaluate`.
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
    def recognises(tree: DataTree) -> bool:
        below = ("images", "labels", *LABELS)
        folders = [f"{folder}/{name}" for folder in FOLDERS.values() for name in below]
        return any(map(tree.has_folder, [*folders, *(f"{folder}/images" for folder in UNLABELLED_FOLDERS.values())]))

    @staticmethod
    def list_split(tree: DataTree, split: str, label_space: str) -> list[Listed]:
        images = f"{FOLDERS[split]}/images"
        label_maps = _label_maps_folder(tree, split, label_space)
        stems = {name.removesuffix(".jpg") for name in tree.files(images, [".jpg"])}
        stems.update(name.removesuffix(".png") for name in tree.files(label_maps, [".png"]))
        if not stems:
            raise _no_images(tree, images)
        return [Listed(f"{images}/{stem}.jpg", f"{label_maps}/{stem}.png", stem) for stem in sorted(stems)]

    @staticmethod
    def list_images(tree: DataTree, split: str) -> list[Listed]:
        images = f"{UNLABELLED_FOLDERS[split]}/images"
        if not tree.has_folder(images):
            raise AbsentSplitError(f"Mapillary Vistas in {tree.root} has no split {split!r} (it needs {images}/).")
        names = tree.files(images, [".jpg"])
        if not names:
            raise _no_images(tree, images)
        return [Listed(f"{images}/{name}", None, name.removesuffix(".jpg")) for name in names]


def _no_images(tree: DataTree, folder: str) -> DataError:
    return DataError(f"Mapillary Vistas' folder {tree.root / folder} holds no .jpg: put the images there.")


def _label_maps_folder(tree: DataTree, split: str, label_space: str) -> str:
    there = _label_maps_folders(tree, split)
    if not there:
        present = [name for name in FOLDERS if _label_maps_folders(tree, name)]
        raise AbsentSplitError(
            f"Mapillary Vistas in {tree.root} has no split {split!r} (it needs {FOLDERS[split]}/images/ and labels beside it); "
            f"splits there: {', '.join(present) or 'none'}."
        )
    version = VERSION_OF_SPACE[label_space]
    if version not in there:
        [(found, folder)] = there.items()
        raise DataError(
            f"The label maps in {tree.root / folder} are of Mapillary Vistas {found} ({len(LABELS[found])} labels), but label "
            f"space {label_space!r} is for {version}: ask for label_space={SPACE_OF_VERSION[found]!r}, or put {version} there."
        )
    _check_config(tree, f"config_{version}.json", version)
    return there[version]


def _label_maps_folders(tree: DataTree, split: str) -> dict[str, str]:
    """Version → folder of its label maps, of the versions that are there."""
    folder = FOLDERS[split]
    if not tree.has_folder(f"{folder}/images"):
        return {}
    nested = {version: f"{folder}/{version}/labels" for version in LABELS if tree.has_folder(f"{folder}/{version}/labels")}
    if nested or not tree.has_folder(f"{folder}/labels"):
        return nested
    # Without a list the labels count as v1.2's, the only version that comes in this layout.
    return {_version_of_config(tree, "config.json") or V12: f"{folder}/labels"}


def _check_config(tree: DataTree, config: str, version: str) -> None:
    found = _version_of_config(tree, config) or version
    if found != version:
        raise DataError(f"{tree.expected(config)} lists the labels of {found}, not of {version}: put the publisher's file there.")


def _version_of_config(tree: DataTree, config: str) -> str | None:
    """The version whose labels the file lists, or None if there is no such file."""
    if not tree.has_file(config):
        return None
    content = tree.read_json(config)
    try:
        listed = [label["readable"] for label in content["labels"]]
    except (LookupError, TypeError) as error:
        raise DataError(
            f"{tree.expected(config)} is not Mapillary Vistas' list of labels ({error!r}): put the publisher's file there."
        ) from error
    for version, labels in LABELS.items():
        if listed == [label.readable for label in labels]:
            return version
    raise DataError(
        f"{tree.expected(config)} lists {len(listed)} labels that are neither those of v1.2 ({len(LABELS_V12)}) nor of v2.0 "
        f"({len(LABELS_V20)}), so the ids in the label maps are unknown: {_difference(listed)}. Put the publisher's file there."
    )


def _difference(listed: list[str]) -> str:
    """The first label that differs from the version whose count is nearer."""
    labels = min(LABELS.values(), key=lambda labels: abs(len(labels) - len(listed)))
    pairs = zip_longest(listed, (label.readable for label in labels))
    raw_id, found, expected = next((raw_id, *pair) for raw_id, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"label {raw_id} is {found!r} instead of {expected!r}"
