"""PASCAL VOC 2012 (Everingham et al., 2015), and SBD's further label maps (Hariharan et al., 2011).

- `VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`, or `VOCtrainval_11-May-2012.tar`: palette PNGs whose
  index is the class, 255 the border.
- SBD, `benchmark_RELEASE/dataset/{cls,train.txt,val.txt}`: `cls/X.mat` for images of VOC's `JPEGImages`. Or, instead of the
  `.mat` files, the PNGs that many people made of them: `SegmentationClassAug/X.png` beside `SegmentationClass`.
"""

import posixpath
from pathlib import PurePosixPath
from typing import ClassVar

from ...errors import AbsentSplitError, DataError
from ..archive import DataTree
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, Colour, LabelSpace
from ..listing import Listed, check_no_repeats

NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
BORDER = 255

BASES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
LISTS, IMAGES = "ImageSets/Segmentation", "JPEGImages"
LABELS, LABELS_AUG = "SegmentationClass", "SegmentationClassAug"
AUG_LISTS = ("trainaug.txt", "train_aug.txt")
SBD_FOLDERS = ("benchmark_RELEASE", "SBD/benchmark_RELEASE", "SBD")


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
    """PASCAL VOC 2012; `train_aug` is VOC's and SBD's images without VOC's val.

    The data folder is `VOC2012/`, `VOCdevkit/`, or the one above. `train_aug` has the members of `trainaug.txt` (`train_aug.txt`)
    if that is among VOC's lists; else (SBD train ∪ SBD val ∪ VOC train) − VOC val, if SBD lies in VOC2012 or in one of the two
    folders above it; else those of `SegmentationClassAug` − VOC val. Its label maps are those of `SegmentationClassAug` if that
    is there, else VOC's where VOC has one, and SBD's.
    """

    TITLE = "PASCAL VOC"
    LABEL_SPACES = (VOC21.name,)
    SPLITS = ("train", "val", "trainval", "train_aug")
    UNLABELLED_SPLITS = ("test",)
    HINT = f"VOCdevkit/VOC2012/ with {IMAGES}/, {LABELS}/ and {LISTS}/"
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {"train": 1_464, "val": 1_449, "trainval": 2_913, "train_aug": 10_582}

    @staticmethod
    def recognises(tree: DataTree) -> bool:
        return _base(tree) is not None

    @staticmethod
    def list_split(tree: DataTree, split: str, label_space: str) -> list[Listed]:
        base = _base(tree)
        if split == "train_aug":
            return _list_train_aug(tree, base)
        ids = _read_list(tree, f"{base}{LISTS}/{split}.txt")
        return [_item(base, image_id, f"{base}{LABELS}/{image_id}.png") for image_id in ids]

    @staticmethod
    def list_images(tree: DataTree, split: str) -> list[Listed]:
        base = _base(tree)
        listed = [_item(base, image_id, None) for image_id in _read_list(tree, f"{base}{LISTS}/{split}.txt")]
        absent = [item.image_id for item in listed if not tree.has_file(item.image)]
        if absent:
            raise DataError(
                f"{len(absent)} of {len(listed)} images of PASCAL VOC's {split!r} are not in "
                f"{tree.expected(f'{base}{IMAGES}')}, {absent[0]}.jpg first: put those of VOC2012test.tar there as well."
            )
        return listed


def _base(tree: DataTree) -> str | None:
    """Where VOC2012 lies in the tree."""
    return next((base for base in BASES if all(tree.has_folder(f"{base}{folder}") for folder in (LISTS, IMAGES))), None)


def _item(base: str, image_id: str, label_map: str | None) -> Listed:
    return Listed(f"{base}{IMAGES}/{image_id}.jpg", label_map, image_id)


def _list_train_aug(tree: DataTree, base: str) -> list[Listed]:
    sbd = _sbd(tree, base)
    ids = _train_aug_ids(tree, base, sbd)
    if tree.has_folder(f"{base}{LABELS_AUG}"):
        return [_item(base, image_id, f"{base}{LABELS_AUG}/{image_id}.png") for image_id in ids]
    own = set(tree.files(f"{base}{LABELS}"))
    if sbd is None and any(f"{image_id}.png" not in own for image_id in ids):
        raise AbsentSplitError(_no_sbd(tree, base))
    return [
        _item(base, image_id, f"{base}{LABELS}/{image_id}.png" if f"{image_id}.png" in own else f"{sbd}/cls/{image_id}.mat")
        for image_id in ids
    ]


def _train_aug_ids(tree: DataTree, base: str, sbd: str | None) -> list[str]:
    for name in AUG_LISTS:
        if tree.has_file(f"{base}{LISTS}/{name}"):
            return _read_list(tree, f"{base}{LISTS}/{name}")
    val = set(_read_list(tree, f"{base}{LISTS}/val.txt"))
    if sbd is not None:
        lists = (f"{sbd}/train.txt", f"{sbd}/val.txt", f"{base}{LISTS}/train.txt")
        return sorted({image_id for name in lists for image_id in _read_list(tree, name)} - val)
    if tree.has_folder(f"{base}{LABELS_AUG}"):
        return sorted({PurePosixPath(name).stem for name in tree.files(f"{base}{LABELS_AUG}", [".png"])} - val)
    raise AbsentSplitError(_no_sbd(tree, base))


def _sbd(tree: DataTree, base: str) -> str | None:
    """SBD's `dataset` folder, relative to the tree's root, or None."""
    levels = [posixpath.normpath(posixpath.join(base, *[".."] * up)) for up in range(3)]
    places = [posixpath.normpath(f"{level}/{folder}/dataset") for level in levels for folder in SBD_FOLDERS]
    return next((place for place in places if tree.has_folder(f"{place}/cls")), None)


def _no_sbd(tree: DataTree, base: str) -> str:
    return (
        f"{tree.root} has no label maps for PASCAL VOC's train_aug: put SBD (benchmark_RELEASE/) or the PNGs made of it "
        f"({tree.expected(f'{base}{LABELS_AUG}')}/) there, or ask for the split 'train'."
    )


def _read_list(tree: DataTree, path: str) -> list[str]:
    """Image ids, one a line; an id that is there twice is a DataError. Some lists name files instead, image and label map."""
    if not tree.has_file(path):
        folder = posixpath.dirname(path)
        present = ", ".join(tree.files(folder, [".txt"])) or "none"
        raise AbsentSplitError(
            f"{tree.expected(path)} is missing: it must name the split's images, one a line (lists there: {present})."
        )
    ids = [PurePosixPath(line.split()[0]).stem for line in tree.read_text(path).splitlines() if line.strip()]
    if not ids:
        raise DataError(f"{tree.expected(path)} is empty: it must name the split's images, one a line.")
    check_no_repeats(ids, tree.expected(path))
    return ids
