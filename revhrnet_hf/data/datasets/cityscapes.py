"""Cityscapes: 5,000 finely and 20,000 coarsely labelled frames of driving in 50 cities (Cordts et al., 2016).

The publisher's layout, unpacked or in the publisher's zip files, or with each zip file unpacked into a folder of its own name
(`leftImg8bit_trainvaltest/leftImg8bit/`, as "Extract all" of Windows leaves it):

- images `leftImg8bit/{train,val,train_extra}/CITY/CITY_SEQ_FRAME_leftImg8bit.png`,
- fine label maps `gtFine/{train,val}/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png`,
- coarse ones `gtCoarse/{train,val,train_extra}/CITY/CITY_SEQ_FRAME_gtCoarse_labelIds.png`.

Label maps hold the publisher's ids, which are translated to train ids when they are read. Files of train ids that other tools
write (`labelTrainIds`) are not used.
"""

from typing import ClassVar, NamedTuple

from ...errors import AbsentSplitError, DataError
from ...images import Colour
from ..archive import DataFolder, read_location
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, LabelSpace
from ..listing import ListedSample

IMAGES, IMAGE_SUFFIX = "leftImg8bit", "_leftImg8bit.png"
OF_IDS, OF_INSTANCES = "_labelIds.", "_instanceIds."  # before the suffix, which may be in capitals
IGNORED = 255
LICENCE_PLATE_AS_WRITTEN = 255


class CityscapesLabel(NamedTuple):
    """One of the publisher's labels.

    Attributes:
        name: the publisher's name.
        raw_id: the id in label maps.
        train_id: the scored class, or 255.
        category: the publisher's group of labels; categories are scored too.
        has_instances: whether `instanceIds` distinguishes objects of this label.
        colour: RGB, 0–255.
    """

    name: str
    raw_id: int
    train_id: int
    category: str
    has_instances: bool
    colour: Colour


LABELS = tuple(
    CityscapesLabel(*row)
    for row in (
        ("unlabeled", 0, 255, "void", False, (0, 0, 0)),
        ("ego vehicle", 1, 255, "void", False, (0, 0, 0)),
        ("rectification border", 2, 255, "void", False, (0, 0, 0)),
        ("out of roi", 3, 255, "void", False, (0, 0, 0)),
        ("static", 4, 255, "void", False, (0, 0, 0)),
        ("dynamic", 5, 255, "void", False, (111, 74, 0)),
        ("ground", 6, 255, "void", False, (81, 0, 81)),
        ("road", 7, 0, "flat", False, (128, 64, 128)),
        ("sidewalk", 8, 1, "flat", False, (244, 35, 232)),
        ("parking", 9, 255, "flat", False, (250, 170, 160)),
        ("rail track", 10, 255, "flat", False, (230, 150, 140)),
        ("building", 11, 2, "construction", False, (70, 70, 70)),
        ("wall", 12, 3, "construction", False, (102, 102, 156)),
        ("fence", 13, 4, "construction", False, (190, 153, 153)),
        ("guard rail", 14, 255, "construction", False, (180, 165, 180)),
        ("bridge", 15, 255, "construction", False, (150, 100, 100)),
        ("tunnel", 16, 255, "construction", False, (150, 120, 90)),
        ("pole", 17, 5, "object", False, (153, 153, 153)),
        ("polegroup", 18, 255, "object", False, (153, 153, 153)),
        ("traffic light", 19, 6, "object", False, (250, 170, 30)),
        ("traffic sign", 20, 7, "object", False, (220, 220, 0)),
        ("vegetation", 21, 8, "nature", False, (107, 142, 35)),
        ("terrain", 22, 9, "nature", False, (152, 251, 152)),
        ("sky", 23, 10, "sky", False, (70, 130, 180)),
        ("person", 24, 11, "human", True, (220, 20, 60)),
        ("rider", 25, 12, "human", True, (255, 0, 0)),
        ("car", 26, 13, "vehicle", True, (0, 0, 142)),
        ("truck", 27, 14, "vehicle", True, (0, 0, 70)),
        ("bus", 28, 15, "vehicle", True, (0, 60, 100)),
        ("caravan", 29, 255, "vehicle", True, (0, 0, 90)),
        ("trailer", 30, 255, "vehicle", True, (0, 0, 110)),
        ("train", 31, 16, "vehicle", True, (0, 80, 100)),
        ("motorcycle", 32, 17, "vehicle", True, (0, 0, 230)),
        ("bicycle", 33, 18, "vehicle", True, (119, 11, 32)),
        # The publisher's train id is −1 as well; there is no such class.
        ("license plate", -1, 255, "vehicle", False, (0, 0, 142)),
    )
)
SCORED = tuple(sorted((label for label in LABELS if label.train_id != IGNORED), key=lambda label: label.train_id))

CATEGORIES = {
    category: tuple(label.name for label in SCORED if label.category == category)
    for category in dict.fromkeys(label.category for label in SCORED)
}
"""Category → the scored classes in it."""

CITYSCAPES = LabelSpace(
    name="cityscapes",
    names=tuple(label.name for label in SCORED),
    colours=tuple(label.colour for label in SCORED),
    raw_ids={LICENCE_PLATE_AS_WRITTEN if label.raw_id == -1 else label.raw_id: label.train_id for label in LABELS},
)
LABEL_SPACES[CITYSCAPES.name] = CITYSCAPES


class Part(NamedTuple):
    """The folders of a part of the dataset: `leftImg8bit/FOLDER` and `gtFine/FOLDER` or `gtCoarse/FOLDER`."""

    folder: str
    labels: str

    @property
    def suffix(self) -> str:
        return f"_{self.labels}_labelIds.png"


SPLIT_PARTS = {
    "train": (Part("train", "gtFine"),),
    "val": (Part("val", "gtFine"),),
    "trainval": (Part("train", "gtFine"), Part("val", "gtFine")),
    "train_extra": (Part("train_extra", "gtCoarse"),),
    "train_coarse": (Part("train", "gtCoarse"),),
    "val_coarse": (Part("val", "gtCoarse"),),
}


class Cityscapes(SegmentationBuilder):
    """Cityscapes with fine labels (train, val, trainval) and coarse ones (train_extra, train_coarse, val_coarse)."""

    TITLE = "Cityscapes"
    LABEL_SPACES = (CITYSCAPES.name,)
    SPLITS = tuple(SPLIT_PARTS)
    UNLABELLED_SPLITS = ("test",)  # its published label maps are void everywhere
    HINT = "leftImg8bit/ and gtFine/ (or gtCoarse/), or the publisher's zip files of these"
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {
        "train": 2975,
        "val": 500,
        "train_extra": 19998,
        "train_coarse": 2975,
        "val_coarse": 500,
    }

    @staticmethod
    def recognises(data_folder: DataFolder) -> bool:
        # To predict the test split no label maps are needed.
        others = ("gtFine", "gtCoarse", f"{IMAGES}/test")
        return _place(data_folder, IMAGES) is not None and any(_place(data_folder, other) is not None for other in others)

    @staticmethod
    def list_split(data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        return [item for part in SPLIT_PARTS[split] for item in _list_part(data_folder, split, part)]

    @staticmethod
    def list_images(data_folder: DataFolder, split: str) -> list[ListedSample]:
        folder = _place(data_folder, f"{IMAGES}/{split}")
        if folder is None:
            raise AbsentSplitError(f"Cityscapes in {data_folder.root} has no split {split!r} (it needs {IMAGES}/{split}/).")
        frames = _frames(data_folder, folder, IMAGE_SUFFIX)
        if not frames:
            raise _no_images(data_folder, folder)
        return [ListedSample(f"{folder}/{city}/{stem}{IMAGE_SUFFIX}", None, stem) for city, stem in frames]


def instances_location(label_map: str) -> str | None:
    """The location of the instance map beside a label map of ids (in the same archive, if in one); None if there is none."""
    location = label_map.replace(OF_IDS, OF_INSTANCES)
    try:
        read_location(location, 1)
    except OSError:
        return None
    return location


def _no_images(data_folder: DataFolder, folder: str) -> DataError:
    return DataError(f"Cityscapes' folder {data_folder.root / folder} holds no CITY/*{IMAGE_SUFFIX}: put the images there.")


def _list_part(data_folder: DataFolder, split: str, part: Part) -> list[ListedSample]:
    images, label_maps = _places(data_folder, part)
    if images is None or label_maps is None:
        present = [name for name, parts in SPLIT_PARTS.items() if all(None not in _places(data_folder, p) for p in parts)]
        raise AbsentSplitError(
            f"Cityscapes in {data_folder.root} has no split {split!r} (it needs {IMAGES}/{part.folder}/ and "
            f"{part.labels}/{part.folder}/); splits there: {', '.join(present) or 'none'}."
        )
    frames = _frames(data_folder, label_maps, part.suffix)
    if not frames and (other := _frames(data_folder, label_maps, "_labelTrainIds.png")):
        city, stem = other[0]
        raise DataError(
            f"{data_folder.root / label_maps} holds train ids ({city}/{stem}_labelTrainIds.png) but no *{part.suffix}: put the "
            f"publisher's label maps of ids there (they are in {part.labels}'s zip file); they are translated on reading."
        )
    frames = sorted({*_frames(data_folder, images, IMAGE_SUFFIX), *frames})
    if not frames:
        raise _no_images(data_folder, images)
    return [
        ListedSample(f"{images}/{city}/{stem}{IMAGE_SUFFIX}", f"{label_maps}/{city}/{stem}{part.suffix}", stem)
        for city, stem in frames
    ]


def _places(data_folder: DataFolder, part: Part) -> tuple[str | None, str | None]:
    """The folders of a part's images and label maps, as `_place` finds them."""
    return _place(data_folder, f"{IMAGES}/{part.folder}"), _place(data_folder, f"{part.labels}/{part.folder}")


def _place(data_folder: DataFolder, folder: str) -> str | None:
    """The path of one of the publisher's folders, which may be in a folder with the name of its zip file; None if missing."""
    name = folder.partition("/")[0]
    unpacked = [f"{zip_name}/{folder}" for zip_name in data_folder.folders() if zip_name.startswith(name)]
    return next(filter(data_folder.has_folder, (folder, *unpacked)), None)


def _frames(data_folder: DataFolder, folder: str, suffix: str) -> list[tuple[str, str]]:
    """City and CITY_SEQ_FRAME of each file in the cities' folders that ends with `suffix`."""
    return [(city, stem) for city in data_folder.folders(folder) for stem in data_folder.stems(f"{folder}/{city}", suffix)]
