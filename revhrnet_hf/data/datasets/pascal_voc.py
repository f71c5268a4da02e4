"""PASCAL VOC 2012 (Everingham et al., 2015), and the additional label maps of SBD (Hariharan et al., 2011).

- `VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`, or `VOCtrainval_11-May-2012.tar`: palette PNGs whose
  indices are the classes; 255 is the border.
- SBD, `benchmark_RELEASE/dataset/{cls,train.txt,val.txt}`: `cls/X.mat` for images in VOC's `JPEGImages`. Or, instead of the
  `.mat` files, the same label maps as PNGs: `SegmentationClassAug/X.png` beside `SegmentationClass`.
"""

import posixpath
from pathlib import PurePosixPath
from typing import ClassVar

from ...errors import AbsentSplitError, DataError
from ...images import Colour
from ..archive import DataFolder
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, LabelSpace
from ..listing import ListedSample, check_no_repeats, listed_paths

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255

BASES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
LISTS, IMAGES = "ImageSets/Segmentation", "JPEGImages"
LABELS, LABELS_AUG = "SegmentationClass", "SegmentationClassAug"
AUG_LISTS = ("trainaug.txt", "train_aug.txt")
SBD_FOLDERS = ("benchmark_RELEASE", "SBD/benchmark_RELEASE", "SBD", "VOCaug")


def voc_colour(index: int) -> Colour:
    """VOC's palette: the index's bits 0, 1, 2 are red's, green's and blue's highest bits, bits 3, 4, 5 the next ones."""
    channels = (sum((index >> (3 * k + channel) & 1) << (7 - k) for k in range(3)) for channel in range(3))
    return tuple(channels)


VOC21 = LabelSpace(
    name="voc21",
    names=NAMES,
    colours=tuple(voc_colour(index) for index in range(len(NAMES))),
    raw_ids={index: index for index in range(len(NAMES))} | {BORDER: 255},
    raw_colours={voc_colour(index): index for index in range(len(NAMES))} | {voc_colour(BORDER): 255},
)
LABEL_SPACES[VOC21.name] = VOC21


class PascalVoc(SegmentationBuilder):
    """PASCAL VOC 2012. The split `train_aug` has the images of VOC and SBD without those of VOC's val.

    The data folder is `VOC2012/`, `VOCdevkit/`, or the folder above. The images of `train_aug` are those in `trainaug.txt` (or
    `train_aug.txt`) if it is among VOC's lists; else (SBD train ∪ SBD val ∪ VOC train) − VOC val, if SBD is in VOC2012 or in one
    of the two folders above; else those in `SegmentationClassAug` − VOC val. Their label maps are in `SegmentationClassAug` if it
    exists; otherwise they are VOC's, and SBD's for images that VOC does not label.
    """

    TITLE = "PASCAL VOC"
    LABEL_SPACES = (VOC21.name,)
    SPLITS = ("train", "val", "trainval", "train_aug")
    UNLABELLED_SPLITS = ("test",)
    HINT = f"VOCdevkit/VOC2012/ with {IMAGES}/, {LABELS}/ and {LISTS}/"
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {"train": 1_464, "val": 1_449, "trainval": 2_913, "train_aug": 10_582}

    @staticmethod
    def recognises(data_folder: DataFolder) -> bool:
        return _base(data_folder) is not None

    @staticmethod
    def list_split(data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        base = _base(data_folder)
        if split == "train_aug":
            return _list_train_aug(data_folder, base)
        ids = _read_list(data_folder, f"{base}{LISTS}/{split}.txt")
        return [_item(base, image_id, f"{base}{LABELS}/{image_id}.png") for image_id in ids]

    @staticmethod
    def list_images(data_folder: DataFolder, split: str) -> list[ListedSample]:
        base = _base(data_folder)
        listed = [_item(base, image_id, None) for image_id in _read_list(data_folder, f"{base}{LISTS}/{split}.txt")]
        absent = [item.image_id for item in listed if not data_folder.has_file(item.image)]
        if absent:
            raise DataError(
                f"{len(absent)} of {len(listed)} images of PASCAL VOC's {split!r} are not in "
                f"{data_folder.expected(f'{base}{IMAGES}')}, {absent[0]}.jpg first: put those of VOC2012test.tar there as well."
            )
        return listed


def _base(data_folder: DataFolder) -> str | None:
    """The path of VOC2012 in the data folder; None if it is not there."""
    return next((base for base in BASES if all(data_folder.has_folder(f"{base}{folder}") for folder in (LISTS, IMAGES))), None)


def _item(base: str, image_id: str, label_map: str | None) -> ListedSample:
    return ListedSample(f"{base}{IMAGES}/{image_id}.jpg", label_map, image_id)


def _list_train_aug(data_folder: DataFolder, base: str) -> list[ListedSample]:
    sbd = _sbd(data_folder, base)
    ids = _train_aug_ids(data_folder, base, sbd)
    if data_folder.has_folder(f"{base}{LABELS_AUG}"):
        return [_item(base, image_id, f"{base}{LABELS_AUG}/{image_id}.png") for image_id in ids]
    own = set(data_folder.stems(f"{base}{LABELS}", ".png"))
    if sbd is None and not own.issuperset(ids):
        raise AbsentSplitError(_no_sbd(data_folder, base))
    return [
        _item(base, image_id, f"{base}{LABELS}/{image_id}.png" if image_id in own else f"{sbd}/cls/{image_id}.mat")
        for image_id in ids
    ]


def _train_aug_ids(data_folder: DataFolder, base: str, sbd: str | None) -> list[str]:
    for name in AUG_LISTS:
        if data_folder.has_file(f"{base}{LISTS}/{name}"):
            return _read_list(data_folder, f"{base}{LISTS}/{name}")
    val = set(_read_list(data_folder, f"{base}{LISTS}/val.txt"))
    if sbd is not None:
        lists = (f"{sbd}/train.txt", f"{sbd}/val.txt", f"{base}{LISTS}/train.txt")
        return sorted({image_id for name in lists for image_id in _read_list(data_folder, name)} - val)
    if stems := data_folder.stems(f"{base}{LABELS_AUG}", ".png"):
        return sorted({*stems} - val)
    raise AbsentSplitError(_no_sbd(data_folder, base))


def _sbd(data_folder: DataFolder, base: str) -> str | None:
    """The path of SBD's `dataset` folder, or of its contents as torchvision puts them; None if it is not there."""
    levels = [posixpath.normpath(posixpath.join(base, *[".."] * up)) for up in range(3)]
    folders = [f"{folder}{below}" for folder in SBD_FOLDERS for below in ("/dataset", "")]
    places = [posixpath.normpath(f"{level}/{folder}") for level in levels for folder in folders]
    return next((place for place in places if data_folder.has_folder(f"{place}/cls")), None)


def _no_sbd(data_folder: DataFolder, base: str) -> str:
    return (
        f"{data_folder.root} has no label maps for PASCAL VOC's train_aug: put SBD (benchmark_RELEASE/) or the PNGs made of it "
        f"({data_folder.expected(f'{base}{LABELS_AUG}')}/) there, or ask for the split 'train'."
    )


def _read_list(data_folder: DataFolder, path: str) -> list[str]:
    """Reads image ids, one in each line; a repeated id is a DataError. Some lists name files instead: image and label map."""
    if not data_folder.has_file(path):
        folder = posixpath.dirname(path)
        present = ", ".join(data_folder.files(folder, [".txt"])) or "none"
        raise AbsentSplitError(
            f"{data_folder.expected(path)} is missing: it must name the split's images, one a line (lists there: {present})."
        )
    ids = [PurePosixPath(listed_paths(line)[0]).stem for line in data_folder.read_text(path).splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{data_folder.expected(path)} is empty: it must name the split's images, one a line.")
    check_no_repeats(ids, data_folder.expected(path))
    return ids
