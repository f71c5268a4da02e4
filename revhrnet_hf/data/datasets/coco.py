"""COCO 2017 (Lin et al., 2014) and its panoptic annotations (Kirillov et al., 2019), in the publishers' layout.

- `train2017/X.jpg`, `val2017/X.jpg`, or `train2017.zip`, `val2017.zip`; also in a folder `images/`;
- `annotations/instances_{train,val}2017.json`, or `annotations_trainval2017.zip`: polygons, and run lengths for crowds;
- for `coco_panoptic133`, `annotations/panoptic_{train,val}2017.json`, and the PNGs in `panoptic_{train,val}2017/` or
  `panoptic_{train,val}2017.zip`, beside the JSON or in the data folder.

Exports of annotation tools in COCO's format are read as well (`OWN_LAYOUTS`). The annotations of an image are stored as its label
map and drawn whenever the example is read.
"""

import hashlib
import posixpath
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, ClassVar, NamedTuple

from tqdm.auto import tqdm

from ...errors import AbsentSplitError, DataError, first_few
from ...images import Colour
from ..annotation import category_train_id, labelled_pixels, pack_annotation, shapes, shown
from ..archive import DataFolder, leads_outside
from ..builder import SegmentationBuilder
from ..coco_categories import BACKGROUND, category_names, group_names, is_background, is_coco_file, json_object, listed_categories
from ..label_space import LABEL_SPACES, LabelSpace, find_label_space
from ..label_table import SPLIT
from ..listing import LONG_CHECK, MAX_NAMED, ListedSample, files_digest, image_size
from .pascal_voc import VOC21

ANNOTATIONS = "annotations"
UNPRINTED = ("Cc", "Cs")  # Unicode's categories of control characters and surrogates
FEWEST_LABELLED = 1000  # pixels; see _drop_nearly_empty
# VOC's classes 1–20 as COCO categories.
VOC_CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)


class Category(NamedTuple):
    """A category of COCO. Ids up to 90 are things, which have instances; the others are panoptic stuff."""

    id: int
    name: str
    colour: Colour
    supercategory: str

    @property
    def is_thing(self) -> bool:
        return self.id <= 90


CATEGORIES = (
    Category(1, "person", (220, 20, 60), "person"),
    Category(2, "bicycle", (119, 11, 32), "vehicle"),
    Category(3, "car", (0, 0, 142), "vehicle"),
    Category(4, "motorcycle", (0, 0, 230), "vehicle"),
    Category(5, "airplane", (106, 0, 228), "vehicle"),
    Category(6, "bus", (0, 60, 100), "vehicle"),
    Category(7, "train", (0, 80, 100), "vehicle"),
    Category(8, "truck", (0, 0, 70), "vehicle"),
    Category(9, "boat", (0, 0, 192), "vehicle"),
    Category(10, "traffic light", (250, 170, 30), "outdoor"),
    Category(11, "fire hydrant", (100, 170, 30), "outdoor"),
    Category(13, "stop sign", (220, 220, 0), "outdoor"),
    Category(14, "parking meter", (175, 116, 175), "outdoor"),
    Category(15, "bench", (250, 0, 30), "outdoor"),
    Category(16, "bird", (165, 42, 42), "animal"),
    Category(17, "cat", (255, 77, 255), "animal"),
    Category(18, "dog", (0, 226, 252), "animal"),
    Category(19, "horse", (182, 182, 255), "animal"),
    Category(20, "sheep", (0, 82, 0), "animal"),
    Category(21, "cow", (120, 166, 157), "animal"),
    Category(22, "elephant", (110, 76, 0), "animal"),
    Category(23, "bear", (174, 57, 255), "animal"),
    Category(24, "zebra", (199, 100, 0), "animal"),
    Category(25, "giraffe", (72, 0, 118), "animal"),
    Category(27, "backpack", (255, 179, 240), "accessory"),
    Category(28, "umbrella", (0, 125, 92), "accessory"),
    Category(31, "handbag", (209, 0, 151), "accessory"),
    Category(32, "tie", (188, 208, 182), "accessory"),
    Category(33, "suitcase", (0, 220, 176), "accessory"),
    Category(34, "frisbee", (255, 99, 164), "sports"),
    Category(35, "skis", (92, 0, 73), "sports"),
    Category(36, "snowboard", (133, 129, 255), "sports"),
    Category(37, "sports ball", (78, 180, 255), "sports"),
    Category(38, "kite", (0, 228, 0), "sports"),
    Category(39, "baseball bat", (174, 255, 243), "sports"),
    Category(40, "baseball glove", (45, 89, 255), "sports"),
    Category(41, "skateboard", (134, 134, 103), "sports"),
    Category(42, "surfboard", (145, 148, 174), "sports"),
    Category(43, "tennis racket", (255, 208, 186), "sports"),
    Category(44, "bottle", (197, 226, 255), "kitchen"),
    Category(46, "wine glass", (171, 134, 1), "kitchen"),
    Category(47, "cup", (109, 63, 54), "kitchen"),
    Category(48, "fork", (207, 138, 255), "kitchen"),
    Category(49, "knife", (151, 0, 95), "kitchen"),
    Category(50, "spoon", (9, 80, 61), "kitchen"),
    Category(51, "bowl", (84, 105, 51), "kitchen"),
    Category(52, "banana", (74, 65, 105), "food"),
    Category(53, "apple", (166, 196, 102), "food"),
    Category(54, "sandwich", (208, 195, 210), "food"),
    Category(55, "orange", (255, 109, 65), "food"),
    Category(56, "broccoli", (0, 143, 149), "food"),
    Category(57, "carrot", (179, 0, 194), "food"),
    Category(58, "hot dog", (209, 99, 106), "food"),
    Category(59, "pizza", (5, 121, 0), "food"),
    Category(60, "donut", (227, 255, 205), "food"),
    Category(61, "cake", (147, 186, 208), "food"),
    Category(62, "chair", (153, 69, 1), "furniture"),
    Category(63, "couch", (3, 95, 161), "furniture"),
    Category(64, "potted plant", (163, 255, 0), "furniture"),
    Category(65, "bed", (119, 0, 170), "furniture"),
    Category(67, "dining table", (0, 182, 199), "furniture"),
    Category(70, "toilet", (0, 165, 120), "furniture"),
    Category(72, "tv", (183, 130, 88), "electronic"),
    Category(73, "laptop", (95, 32, 0), "electronic"),
    Category(74, "mouse", (130, 114, 135), "electronic"),
    Category(75, "remote", (110, 129, 133), "electronic"),
    Category(76, "keyboard", (166, 74, 118), "electronic"),
    Category(77, "cell phone", (219, 142, 185), "electronic"),
    Category(78, "microwave", (79, 210, 114), "appliance"),
    Category(79, "oven", (178, 90, 62), "appliance"),
    Category(80, "toaster", (65, 70, 15), "appliance"),
    Category(81, "sink", (127, 167, 115), "appliance"),
    Category(82, "refrigerator", (59, 105, 106), "appliance"),
    Category(84, "book", (142, 108, 45), "indoor"),
    Category(85, "clock", (196, 172, 0), "indoor"),
    Category(86, "vase", (95, 54, 80), "indoor"),
    Category(87, "scissors", (128, 76, 255), "indoor"),
    Category(88, "teddy bear", (201, 57, 1), "indoor"),
    Category(89, "hair drier", (246, 0, 122), "indoor"),
    Category(90, "toothbrush", (191, 162, 208), "indoor"),
    Category(92, "banner", (255, 255, 128), "textile"),
    Category(93, "blanket", (147, 211, 203), "textile"),
    Category(95, "bridge", (150, 100, 100), "building"),
    Category(100, "cardboard", (168, 171, 172), "raw-material"),
    Category(107, "counter", (146, 112, 198), "furniture-stuff"),
    Category(109, "curtain", (210, 170, 100), "textile"),
    Category(112, "door-stuff", (92, 136, 89), "furniture-stuff"),
    Category(118, "floor-wood", (218, 88, 184), "floor"),
    Category(119, "flower", (241, 129, 0), "plant"),
    Category(122, "fruit", (217, 17, 255), "food-stuff"),
    Category(125, "gravel", (124, 74, 181), "ground"),
    Category(128, "house", (70, 70, 70), "building"),
    Category(130, "light", (255, 228, 255), "furniture-stuff"),
    Category(133, "mirror-stuff", (154, 208, 0), "furniture-stuff"),
    Category(138, "net", (193, 0, 92), "structural"),
    Category(141, "pillow", (76, 91, 113), "textile"),
    Category(144, "platform", (255, 180, 195), "ground"),
    Category(145, "playingfield", (106, 154, 176), "ground"),
    Category(147, "railroad", (230, 150, 140), "ground"),
    Category(148, "river", (60, 143, 255), "water"),
    Category(149, "road", (128, 64, 128), "ground"),
    Category(151, "roof", (92, 82, 55), "building"),
    Category(154, "sand", (254, 212, 124), "ground"),
    Category(155, "sea", (73, 77, 174), "water"),
    Category(156, "shelf", (255, 160, 98), "furniture-stuff"),
    Category(159, "snow", (255, 255, 255), "ground"),
    Category(161, "stairs", (104, 84, 109), "furniture-stuff"),
    Category(166, "tent", (169, 164, 131), "building"),
    Category(168, "towel", (225, 199, 255), "textile"),
    Category(171, "wall-brick", (137, 54, 74), "wall"),
    Category(175, "wall-stone", (135, 158, 223), "wall"),
    Category(176, "wall-tile", (7, 246, 231), "wall"),
    Category(177, "wall-wood", (107, 255, 200), "wall"),
    Category(178, "water-other", (58, 41, 149), "water"),
    Category(180, "window-blind", (183, 121, 142), "window"),
    Category(181, "window-other", (255, 73, 97), "window"),
    Category(184, "tree-merged", (107, 142, 35), "plant"),
    Category(185, "fence-merged", (190, 153, 153), "structural"),
    Category(186, "ceiling-merged", (146, 139, 141), "ceiling"),
    Category(187, "sky-other-merged", (70, 130, 180), "sky"),
    Category(188, "cabinet-merged", (134, 199, 156), "furniture-stuff"),
    Category(189, "table-merged", (209, 226, 140), "furniture-stuff"),
    Category(190, "floor-other-merged", (96, 36, 108), "floor"),
    Category(191, "pavement-merged", (96, 96, 96), "ground"),
    Category(192, "mountain-merged", (64, 170, 64), "solid"),
    Category(193, "grass-merged", (152, 251, 152), "plant"),
    Category(194, "dirt-merged", (208, 229, 228), "ground"),
    Category(195, "paper-merged", (206, 186, 171), "raw-material"),
    Category(196, "food-other-merged", (152, 161, 64), "food-stuff"),
    Category(197, "building-other-merged", (116, 112, 0), "building"),
    Category(198, "rock-merged", (0, 114, 143), "solid"),
    Category(199, "wall-other-merged", (102, 102, 156), "wall"),
    Category(200, "rug-merged", (250, 141, 255), "textile"),
)
THINGS = tuple(category for category in CATEGORIES if category.is_thing)

COCO81 = LabelSpace(
    name="coco81",
    names=("background", *(category.name for category in THINGS)),
    colours=((0, 0, 0), *(category.colour for category in THINGS)),
    raw_ids={category.id: train_id for train_id, category in enumerate(THINGS, start=1)},
)
VOC_ID_OF_CATEGORY = {category.id: 0 for category in THINGS} | {category: k for k, category in enumerate(VOC_CATEGORIES, start=1)}
"""COCO category → VOC's id; categories that VOC lacks are background."""
COCO_PANOPTIC133 = LabelSpace(
    name="coco_panoptic133",
    names=tuple(category.name for category in CATEGORIES),
    colours=tuple(category.colour for category in CATEGORIES),
    raw_ids={category.id: train_id for train_id, category in enumerate(CATEGORIES)},
)
for _space in (COCO81, COCO_PANOPTIC133):
    LABEL_SPACES[_space.name] = _space


class Layout(NamedTuple):
    """The path of a split's annotations, and possible folders of its images: the first that holds any of them is used.

    `{split}` stands for the split's name.
    """

    annotations: str
    images: tuple[str, ...]


PUBLISHED = Layout(f"{ANNOTATIONS}/instances_{{split}}2017.json", ("{split}2017", "images/{split}2017"))
ANY_IMAGES = ("images/{split}", "{split}", "images", "")
OWN_LAYOUTS = (
    Layout(f"{ANNOTATIONS}/instances_{{split}}.json", ANY_IMAGES),  # CVAT, Datumaro
    Layout("{split}/_annotations.coco.json", ("{split}",)),  # Roboflow
    Layout("{split}/labels.json", ("{split}/data",)),  # FiftyOne
    Layout(f"{ANNOTATIONS}/{{split}}.json", ANY_IMAGES),
    Layout("{split}.json", ANY_IMAGES),  # labelme2coco, Label Studio
)
USUAL_SPLITS = ("train", "val", "valid", "validation", "test", "trainval", "default")
"""Names of splits for annotation files whose name has no other mark, such as `train.json`."""


class Coco(SegmentationBuilder):
    """COCO 2017: instances as label maps of 81 classes or of VOC's 21, or the panoptic label maps of 133 classes.

    A user's own data in COCO's format, as annotation tools export it (`OWN_LAYOUTS`), are read too. The splits have the names of
    their folders or files. If the file's categories are not COCO's, they form a label space: background, then the categories in
    the order of their ids. The name of this label space is the file's location.

    A split's JSON is parsed as a whole, which takes some gigabytes of memory and about a minute for the real train split; after
    that, the `datasets` cache is used. Streaming parses it each time, and every worker keeps the split's annotations.
    """

    TITLE = "COCO"
    LABEL_SPACES = (COCO81.name, VOC21.name, COCO_PANOPTIC133.name)
    SPLITS = ("train", "val")
    HINT = (
        f"train2017/, val2017/ and {ANNOTATIONS}/ with instances_train2017.json … (or the publisher's zip files of them), or "
        f"{ANNOTATIONS}/instances_SPLIT.json with images/, or SPLIT/_annotations.coco.json beside the images,"
    )
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {"train": 118_287, "val": 5_000}

    @classmethod
    def recognises(cls, data_folder: DataFolder) -> bool:
        return _is_published(data_folder) or bool(_own_splits(data_folder))

    @classmethod
    def accepts_label_space(cls, label_space: str) -> bool:
        return super().accepts_label_space(label_space) or is_coco_file(label_space)

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        """COCO's 81 classes, the panoptic ones where there are no other annotations, or the location of annotations with other
        categories (the train split's, else the first split's)."""
        data_folder = cls.open_folder(data_dir)
        published = _is_published(data_folder)
        paths = [
            _annotations(data_folder, COCO81.name, split)
            for split in (cls.SPLITS if published else sorted(_own_splits(data_folder)))
        ]
        paths.sort(key=lambda path: "train" not in path)
        location = next((location for path in paths if (location := data_folder.location(path))), None)
        if location is None:
            return COCO_PANOPTIC133.name
        names = set(category_names(listed_categories(location), location).items())
        coco = {(category.id, category.name) for category in THINGS}
        # A subset of COCO's categories counts as COCO in COCO's layout; in another layout it is the user's own person or car.
        return COCO81.name if names == coco or (published and names <= coco) else location

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        data_folder = cls.open_folder(data_dir)
        return cls.SPLITS if _is_published(data_folder) else tuple(sorted(_own_splits(data_folder)))

    @classmethod
    def published_count(cls, data_folder: DataFolder, split: str, space: LabelSpace) -> int | None:
        # Unknown for a user's own images with COCO's categories, and for VOC's classes, for which images are dropped.
        is_complete = _is_published(data_folder) and not _drops_images(split, space)
        return super().published_count(data_folder, split, space) if is_complete else None

    @classmethod
    def list_split(cls, data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        space = find_label_space(label_space)
        source = _AnnotationFile.read(data_folder, _annotations(data_folder, label_space, split))
        source.check_categories(space)
        images = source.images()
        folder = _images_folder(data_folder, split, images)
        images = _with_sizes(images, data_folder, folder)
        if space is COCO_PANOPTIC133:
            return _list_panoptic(data_folder, split, source, images, folder)
        listed = _list_instances(source, images, folder, space)
        return _drop_nearly_empty(listed, space) if _drops_images(split, space) else listed

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        """Covers all files in the folders: COCO's JSON, which lists the split's files, takes too long to parse each time."""
        data_folder = cls.open_folder(data_dir)
        definition = hashlib.sha256(find_label_space(label_space).to_json().encode()).hexdigest()[:16]
        if not _is_published(data_folder):
            return f"{super().digest(data_dir, split, label_space)}-{definition}"
        locations = [
            _required(data_folder, _annotations(data_folder, label_space, split)),
            *_locations(data_folder, _published_images(data_folder, split)),
        ]
        if label_space == COCO_PANOPTIC133.name:
            locations += _locations(*_panoptic_folder(data_folder, split))
        return f"{files_digest(locations)}-{definition}"


def _drops_images(split: str, space: LabelSpace) -> bool:
    """Whether `_drop_nearly_empty` drops images of the split."""
    return split == "train" and space is VOC21


def _is_published(data_folder: DataFolder) -> bool:
    """Whether the files are in the publisher's layout."""
    files = [_annotations_2017(space, split) for space in Coco.LABEL_SPACES for split in Coco.SPLITS]
    return any(map(data_folder.has_file, files))


def _annotations_2017(label_space: str, split: str) -> str:
    kind = "panoptic" if label_space == COCO_PANOPTIC133.name else "instances"
    return f"{ANNOTATIONS}/{kind}_{split}2017.json"


def _annotations(data_folder: DataFolder, label_space: str, split: str) -> str:
    """The path of a split's annotations."""
    own = None if _is_published(data_folder) or label_space == COCO_PANOPTIC133.name else _own_splits(data_folder).get(split)
    return own.annotations.replace(SPLIT, split) if own else _annotations_2017(label_space, split)


def _own_splits(data_folder: DataFolder) -> dict[str, Layout]:
    """Split → its layout, for a user's own data."""
    found: dict[str, Layout] = {}
    for layout in OWN_LAYOUTS:
        for split in _splits_in(data_folder, layout):
            found.setdefault(split, layout)
    return found


def _splits_in(data_folder: DataFolder, layout: Layout) -> list[str]:
    folder, _, name = layout.annotations.rpartition("/")
    if folder == SPLIT:
        return [split for split in data_folder.folders() if data_folder.has_file(f"{split}/{name}")]
    prefix, suffix = name.split(SPLIT)
    names = [stem.removeprefix(prefix) for stem in data_folder.stems(folder, suffix) if stem.startswith(prefix)]
    return [split for split in names if split and (prefix or split in USUAL_SPLITS)]


def _images_folder(data_folder: DataFolder, split: str, images: "dict[int | str, _Image]") -> str:
    """The folder of the split's images."""
    own = None if _is_published(data_folder) else _own_splits(data_folder).get(split)
    if own is None:
        return _published_images(data_folder, split)
    folders = [folder.replace(SPLIT, split) for folder in own.images]
    names = [image.file_name for image in images.values()]
    return next((f for f in folders if any(data_folder.has_file(posixpath.join(f, name)) for name in names)), folders[0])


def _published_images(data_folder: DataFolder, split: str) -> str:
    """The folder of the split's images in the publisher's layout."""
    folders = [folder.replace(SPLIT, split) for folder in PUBLISHED.images]
    found = next(filter(data_folder.has_folder, folders), None)
    if found is None:
        raise AbsentSplitError(
            f"COCO in {data_folder.root} has no images of the split {split!r}: {folders[0]}/, {folders[0]}.zip or {folders[1]}/ "
            "should lie there."
        )
    return found


def _required(data_folder: DataFolder, path: str) -> str:
    """The file's location; a DataError if it is not there."""
    location = data_folder.location(path)
    if location is None:
        present = ", ".join(data_folder.files(ANNOTATIONS, [".json"])) or "none"
        raise AbsentSplitError(f"{data_folder.root / path} is missing: fetch COCO's annotations (JSON files there: {present}).")
    return location


def _locations(data_folder: DataFolder, folder: str) -> list[str]:
    return [data_folder.location(f"{folder}/{name}") for name in data_folder.files(folder)]


@dataclass(frozen=True)
class _AnnotationFile:
    """COCO's JSON, with checks of every record that is used."""

    location: str
    content: dict[str, Any]

    @classmethod
    def read(cls, data_folder: DataFolder, path: str) -> "_AnnotationFile":
        location = _required(data_folder, path)
        return cls(location, json_object(data_folder.read_json(path), location))

    def records(self, key: str) -> list[dict[str, Any]]:
        records = self.content.get(key)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError(f"{self.location} has no list {key!r} of objects, so it is not COCO's JSON: fetch it again.")
        return records

    def field(self, record: dict[str, Any], name: str, kind: type | UnionType, where: str) -> Any:
        value = record.get(name) if isinstance(record, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = getattr(kind, "__name__", str(kind))
            found = shown(value).encode("utf-8", "backslashreplace").decode()
            raise DataError(f"{self.location}: {where} has the {name} {found}; it must be of type {expected}.")
        return value

    def images(self) -> "dict[int | str, _Image]":
        """Id → image, in the file's order. Some tools write text for ids."""
        images, ids_of_names = {}, {}
        for record in self.records("images"):
            image_id = self.field(record, "id", int | str, "an entry of images")
            where = f"image {shown(image_id)}"
            if image_id in images:
                raise DataError(f"{self.location}: {where} is there twice: take one out.")
            image = _Image(self.file_name(record, where), self._side(record, "height", where), self._side(record, "width", where))
            other = ids_of_names.setdefault(_image_id(image.file_name), image_id)
            if other != image_id:
                raise DataError(
                    f"{self.location}: the images {shown(other)} and {shown(image_id)} are both called "
                    f"{_image_id(image.file_name)!r}, except for the suffix: take one out, or rename it."
                )
            images[image_id] = image
        return images

    def file_name(self, record: dict[str, Any], where: str) -> str:
        """The image's path with forward slashes; tools on Windows write backslashes."""
        name = self.field(record, "file_name", str, where)
        if leads_outside(name):
            raise DataError(f"{self.location}: {where}: its file_name {name!r} leads outside of the data folder: correct it.")
        if any(unicodedata.category(character) in UNPRINTED for character in name):
            raise DataError(f"{self.location}: {where}: its file_name {name!a} holds unprintable characters: correct it.")
        return posixpath.normpath(name.replace("\\", "/"))

    def image_of(self, record: dict[str, Any], images: "dict[int | str, _Image]", where: str) -> int | str:
        """The id of the image that an annotation belongs to."""
        image_id = self.field(record, "image_id", int | str, where)
        if image_id not in images:
            raise DataError(
                f"{self.location}: {where} belongs to image {shown(image_id)}, which is not among the file's images: "
                "add the image, or take the annotation out."
            )
        return image_id

    def category_of(self, record: dict[str, Any], space: LabelSpace, where: str) -> int:
        """The annotation's category, as a raw id of `space`."""
        category_id = self.field(record, "category_id", int, where)
        known = COCO81 if space is VOC21 else space
        if category_id not in known.raw_ids and (group := group_names(self.records("categories")).get(category_id)):
            raise DataError(
                f"{self.location}: {where} has the category {category_id}, {group!r}, which is no class of label space "
                f"{space.name!r}: no annotation has it in the file of the classes, and other categories name it as their "
                "supercategory. Give the annotation one of those, or give a file in which it occurs as label_space."
            )
        category_train_id(category_id, known, f"{self.location}: {where}")
        return VOC_ID_OF_CATEGORY[category_id] if space is VOC21 else category_id

    def _side(self, record: dict[str, Any], side: str, where: str) -> int | None:
        """Height or width in pixels; None if the file does not give it."""
        if record.get(side) is None:
            return None
        value = self.field(record, side, int, where)
        if value < 1:
            raise DataError(f"{self.location}: {where} has the {side} {value}: it must be 1 or more.")
        return value

    def check_categories(self, space: LabelSpace) -> None:
        """Raises a DataError if an id has another name than in the label space: users number their own classes from 0 or 1."""
        listed = category_names(self.records("categories"), self.location)
        own = space not in (COCO81, VOC21, COCO_PANOPTIC133)
        names = {key: space.names[k] for key, k in space.raw_ids.items()} if own else {c.id: c.name for c in CATEGORIES}
        for category_id, name in listed.items():
            expected = names.get(category_id, name)
            if expected == name or (expected == BACKGROUND and is_background(name)):
                continue
            remedy = (
                f"label space {space.name!r} has {expected!r} there: number the classes alike in all splits."
                if own
                else f"COCO's is {expected!r}: number the classes as COCO does, or leave label_space out."
            )
            raise DataError(f"{self.location}: its category {category_id} is {name!r}, but {remedy}")


class _Image(NamedTuple):
    """An entry of COCO's images; sizes in pixels, None if the file does not give them."""

    file_name: str
    height: int | None
    width: int | None


def _image_id(file_name: str) -> str:
    return str(PurePosixPath(file_name).with_suffix(""))


def _listed(folder: str, image: _Image, label_map: str, drawing: dict[str, Any]) -> ListedSample:
    annotation = pack_annotation({"height": image.height, "width": image.width, **drawing})
    return ListedSample(posixpath.join(folder, image.file_name), label_map, _image_id(image.file_name), annotation)


def _with_sizes(images: "dict[int | str, _Image]", data_folder: DataFolder, folder: str) -> "dict[int | str, _Image]":
    """Reads the sizes that the file does not give from the images. (A missing image is an error later.)"""
    sized = {}
    for key, image in images.items():
        location = data_folder.location(posixpath.join(folder, image.file_name)) if None in (image.height, image.width) else None
        if location is not None:
            width, height = image_size(location)
            image = image._replace(height=image.height or height, width=image.width or width)
        sized[key] = image
    return sized


def _list_instances(
    source: _AnnotationFile, images: "dict[int | str, _Image]", folder: str, space: LabelSpace
) -> list[ListedSample]:
    objects = defaultdict(list)
    for record in source.records("annotations"):
        where = f"annotation {shown(record.get('id'))}"
        objects[source.image_of(record, images, where)].append(_object(source, record, space, where))
    return [_listed(folder, image, f"{source.location}#{key}", {"objects": objects[key]}) for key, image in images.items()]


def _object(source: _AnnotationFile, record: dict[str, Any], space: LabelSpace, where: str) -> dict[str, Any]:
    thing = {
        "id": record.get("id"),
        "category_id": source.category_of(record, space, where),
        "segmentation": record.get("segmentation"),
        "iscrowd": record.get("iscrowd", 0),
    }
    drawable = shapes(thing["segmentation"], f"{source.location}: {where}")
    return thing if drawable else {**thing, "bbox": record.get("bbox")}


def _drop_nearly_empty(listed: list[ListedSample], space: LabelSpace) -> list[ListedSample]:
    """Drops images in which VOC's classes cover 1,000 pixels or fewer, because they are almost only background.

    torchvision's reference recipe for segmentation drops them too, by the sum of the areas in the annotations. Here the objects
    are drawn, and each pixel is counted once.
    """
    is_short = len(listed) < LONG_CHECK
    bar = tqdm(listed, desc="counting labelled pixels", unit="image", leave=False, disable=is_short or None)
    kept = [item for item in bar if labelled_pixels(item.annotation, space, item.label_map) > FEWEST_LABELLED]
    if not kept:
        raise DataError(
            f"In none of the {len(listed)} images of COCO's train split do VOC's classes cover more than {FEWEST_LABELLED} "
            f"pixels, which label space {space.name!r} requires: take larger images, or label space {COCO81.name!r}."
        )
    return kept


def _panoptic_folder(data_folder: DataFolder, split: str) -> tuple[DataFolder, str]:
    """The folder of the panoptic PNGs: a DataFolder and a path in it."""
    name = f"panoptic_{split}2017"
    places = [(data_folder, name), (data_folder, f"{ANNOTATIONS}/{name}")]
    if (data_folder.root / ANNOTATIONS).is_dir():
        # In the publisher's archive, the PNGs are in a zip file beside the JSON.
        places.append((DataFolder(data_folder.root / ANNOTATIONS), name))
    for place, folder in places:
        if place.has_folder(folder):
            return place, folder
    raise DataError(
        f"{data_folder.root} has no panoptic label maps: {name}/ or {name}.zip should lie there or in {ANNOTATIONS}/ (the "
        "publisher's panoptic_annotations_trainval2017.zip holds them as zip files: unpack it)."
    )


def _list_panoptic(
    data_folder: DataFolder, split: str, source: _AnnotationFile, images: "dict[int | str, _Image]", folder: str
) -> list[ListedSample]:
    records = {}
    for record in source.records("annotations"):
        where = f"the annotation of image {shown(record.get('image_id'))}"
        records[source.image_of(record, images, where)] = record
    place, png_folder = _panoptic_folder(data_folder, split)
    pngs = {key: f"{png_folder}/{source.file_name(record, f'image {key}')}" for key, record in records.items()}
    missing = [key for key in images if key not in pngs or not place.has_file(pngs[key])]
    if missing:
        named = (f"{key} (expected {place.expected(pngs[key])})" if key in pngs else key for key in missing)
        raise DataError(
            f"{source.location}: {len(missing)} of {len(images)} images have no entry in annotations or no panoptic PNG: "
            f"{first_few(named, MAX_NAMED)}. Fetch the annotations again, or take these images out."
        )
    return [
        _listed(
            folder,
            image,
            f"{place.location(pngs[key])}#{key}",
            {"png": place.location(pngs[key]), "segments": _segments(source, records[key], f"image {key}")},
        )
        for key, image in images.items()
    ]


def _segments(source: _AnnotationFile, record: dict[str, Any], image: str) -> list[tuple[int, int]]:
    """(segment id, category id) of each segment in a panoptic annotation."""
    segments = []
    for segment in source.field(record, "segments_info", list, image):
        segment_id = source.field(segment, "id", int, f"a segment of {image}")
        where = f"segment {segment_id} of {image}"
        segments.append((segment_id, source.category_of(segment, COCO_PANOPTIC133, where)))
    return segments
