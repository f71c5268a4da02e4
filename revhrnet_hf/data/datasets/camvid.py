"""CamVid: 701 frames of driving in Cambridge (Brostow et al., 2009), in the two forms in which it is distributed.

- *SegNet form*, 480×360: `train/X.png`, `trainannot/X.png` with raw ids 0–11, `train.txt`; the same for val and test.
- *Original form*, 960×720: `701_StillsRaw_full/X.png`, `LabeledApproved_full/X_L.png` in 32 colours, or the publisher's two
  zip files. Its split is SegNet's, read from `train.txt`, `val.txt` and `test.txt` beside the two folders.

A copy on Kaggle (`train/X.png`, `train_labels/X_L.png`) is divided in another way, so that its scores cannot be compared with
published ones: it is refused here, and can be read as a user's own data.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import ClassVar

from ...errors import AbsentSplitError, DataError
from ..archive import DataFolder, leads_outside
from ..builder import SegmentationBuilder
from ..label_space import LABEL_SPACES, LabelSpace
from ..listing import ListedSample, check_no_repeats, listed_paths

SEGNET_VOID = 11
VOID = "Void"
STILLS, LABELS = "701_StillsRaw_full", "LabeledApproved_full"
ListForm = Callable[[DataFolder, str], list[ListedSample]]
PARTS = ("train", "val", "test")
SPLIT_PARTS = {part: (part,) for part in PARTS} | {"trainval": ("train", "val")}

# (name, colour, members) in the order of train ids. SegNet merged the members, classes of the original form; others are void.
CLASSES = (
    ("Sky", (128, 128, 128), ("Sky",)),
    ("Building", (128, 0, 0), ("Archway", "Bridge", "Building", "Tunnel", "Wall")),
    ("Pole", (192, 192, 128), ("Column_Pole", "TrafficCone")),
    ("Road", (128, 64, 128), ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv")),
    ("Pavement", (0, 0, 192), ("Sidewalk", "ParkingBlock", "RoadShoulder")),
    ("Tree", (128, 128, 0), ("Tree", "VegetationMisc")),
    ("SignSymbol", (192, 128, 128), ("SignSymbol", "Misc_Text", "TrafficLight")),
    ("Fence", (64, 64, 128), ("Fence",)),
    ("Car", (64, 0, 128), ("Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus")),
    ("Pedestrian", (64, 64, 0), ("Animal", "CartLuggagePram", "Child", "Pedestrian")),
    ("Bicyclist", (0, 128, 192), ("Bicyclist", "MotorcycleScooter")),
)

COLOURS_32 = {
    "Void": (0, 0, 0),
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}


def _camvid11() -> LabelSpace:
    train_id_of = {member: train_id for train_id, (_, _, members) in enumerate(CLASSES) for member in members}
    return LabelSpace(
        name="camvid11",
        names=tuple(name for name, _, _ in CLASSES),
        colours=tuple(colour for _, colour, _ in CLASSES),
        raw_ids={train_id: train_id for train_id in range(len(CLASSES))} | {SEGNET_VOID: 255},
        raw_colours={colour: train_id_of.get(name, 255) for name, colour in COLOURS_32.items()},
    )


def _camvid32() -> LabelSpace:
    """The original form's classes; Void is ignored."""
    names = tuple(name for name in COLOURS_32 if name != VOID)
    colours = {colour: names.index(name) if name != VOID else 255 for name, colour in COLOURS_32.items()}
    return LabelSpace("camvid32", names, tuple(COLOURS_32[name] for name in names), raw_ids={}, raw_colours=colours)


CAMVID11, CAMVID32 = _camvid11(), _camvid32()
LABEL_SPACES.update({space.name: space for space in (CAMVID11, CAMVID32)})


class CamVid(SegmentationBuilder):
    """CamVid in either form, which the folders' names tell."""

    TITLE = "CamVid"
    LABEL_SPACES = (CAMVID11.name, CAMVID32.name)
    SPLITS = tuple(SPLIT_PARTS)
    HINT = f"the SegNet form (train/, trainannot/ …) or the original form ({STILLS}/, {LABELS}/)"
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {"train": 367, "val": 101, "test": 233}

    @staticmethod
    def recognises(data_folder: DataFolder) -> bool:
        return _form_of(data_folder) is not None

    @classmethod
    def _not_found_message(cls, data_folder: DataFolder) -> str:
        if any(map(_is_kaggles, (data_folder, *map(data_folder.subfolder, data_folder.folders())))):
            return (
                f"{data_folder.root} is the copy of CamVid on Kaggle (train/, train_labels/), which is divided in another way: "
                f"read it as your own data. `revhrnet new {data_folder.root}` writes what is needed to train on it."
            )
        return super()._not_found_message(data_folder)

    @classmethod
    def _is_part_of(cls, given: Path, above: Path) -> bool:
        # Folders called train are common, so the given folder's own name must be one of CamVid's.
        return given.relative_to(above).parts[0] in (STILLS, LABELS, *PARTS, *(f"{part}annot" for part in PARTS))

    @staticmethod
    def list_split(data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        form = _form_of(data_folder)
        if label_space == CAMVID32.name and form is _list_segnet:
            raise DataError(
                f"{data_folder.root} is CamVid in SegNet's form, which has 11 classes: for {CAMVID32.name!r} give the folder of "
                f"the original form ({STILLS}/, {LABELS}/)."
            )
        listed = [item for part in SPLIT_PARTS[split] for item in form(data_folder, part)]
        check_no_repeats([item.image_id for item in listed], f"{data_folder.root}: {' + '.join(SPLIT_PARTS[split])}")
        return listed


def _is_kaggles(data_folder: DataFolder) -> bool:
    return any(data_folder.has_folder(f"{part}_labels") for part in PARTS) and not any(
        data_folder.has_folder(folder) for folder in (STILLS, LABELS, *(f"{part}annot" for part in PARTS))
    )


def _form_of(data_folder: DataFolder) -> ListForm | None:
    if _is_kaggles(data_folder):
        return None
    if data_folder.has_folder(STILLS) or data_folder.has_folder(LABELS):
        return _list_original
    if any(data_folder.has_folder(folder) for part in PARTS for folder in (part, f"{part}annot")):
        return _list_segnet
    return None


def _list_segnet(data_folder: DataFolder, part: str) -> list[ListedSample]:
    images, label_maps = part, f"{part}annot"
    if not data_folder.has_folder(images) or not data_folder.has_folder(label_maps):
        present = [p for p in PARTS if data_folder.has_folder(p) and data_folder.has_folder(f"{p}annot")]
        raise AbsentSplitError(
            f"CamVid in {data_folder.root} has no split {part!r} (it needs {part}/ and {part}annot/); "
            f"splits there: {', '.join(present) or 'none'}."
        )
    list_file = f"{part}.txt"
    if data_folder.has_file(list_file):
        return [_segnet_item(line, data_folder.expected(list_file)) for line in _lines(data_folder, list_file)]
    stems = sorted({*data_folder.stems(images, ".png"), *data_folder.stems(label_maps, ".png")})
    if not stems:
        raise DataError(f"CamVid's folder {data_folder.root / images} holds no PNG: put the images there.")
    return [ListedSample(f"{images}/{stem}.png", f"{label_maps}/{stem}.png", stem) for stem in stems]


def _segnet_item(line: str, list_file: str) -> ListedSample:
    """`/SegNet/CamVid/train/X.png /SegNet/CamVid/trainannot/X.png`: only the last two parts of each path are used."""
    paths = ["/".join(PurePosixPath(entry).parts[-2:]) for entry in listed_paths(line)]
    if len(paths) != 2:
        raise DataError(f"{list_file}: the line {line!r} must name an image and a label map, with a blank between.")
    if any(map(leads_outside, paths)):
        raise DataError(f"{list_file}: the line {line!r} leads outside the data folder: correct it.")
    return ListedSample(*paths, image_id=PurePosixPath(paths[0]).stem)


def _list_original(data_folder: DataFolder, part: str) -> list[ListedSample]:
    list_file = f"{part}.txt"
    if not data_folder.has_file(list_file):
        present = [f"{p}.txt" for p in PARTS if data_folder.has_file(f"{p}.txt")]
        raise AbsentSplitError(
            f"CamVid's original form does not say which frames are {part!r}: put SegNet's {part}.txt (one frame a "
            f"line) into {data_folder.root}, beside {STILLS}/ (lists there: {', '.join(present) or 'none'})."
        )
    # The publisher's zip file of the label maps holds no folder.
    is_flat = not data_folder.has_folder(LABELS) and data_folder.files("", ["_L.png"])
    labels = "" if is_flat else f"{LABELS}/"
    stems = [PurePosixPath(listed_paths(line)[0]).stem for line in _lines(data_folder, list_file)]
    return [ListedSample(f"{STILLS}/{stem}.png", f"{labels}{stem}_L.png", stem) for stem in stems]


def _lines(data_folder: DataFolder, list_file: str) -> list[str]:
    lines = [line for line in data_folder.read_text(list_file).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{data_folder.expected(list_file)} is empty: it must name the split's images, one a line.")
    return lines
