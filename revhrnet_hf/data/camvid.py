"""CamVid: 701 frames of driving in Cambridge (Brostow et al., 2009), in the two forms that people have on disk.

- *SegNet form*, 480×360: `train/X.png`, `trainannot/X.png` with raw ids 0–11, `train.txt`; the same for val and test.
- *Original form*, 960×720: `701_StillsRaw_full/X.png`, `LabeledApproved_full/X_L.png` in 32 colours. Its split is
  SegNet's, read from `train.txt`, `val.txt` and `test.txt` beside the two folders.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..errors import DataError
from .label_map import LabelMap, Picture
from .label_space import LABEL_SPACES, LabelSpace
from .listing import Sample, check_partners, check_same_sizes

SEGNET_VOID = 11
STILLS, LABELS = "701_StillsRaw_full", "LabeledApproved_full"
ListForm = Callable[[Path, str], list[Sample]]
PARTS = ("train", "val", "test")
SPLIT_PARTS = {part: (part,) for part in PARTS} | {"trainval": ("train", "val")}

# Train id = position. Members are the original form's classes that SegNet merged; what is in none of them is void.
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


CAMVID11 = _camvid11()
LABEL_SPACES[CAMVID11.name] = CAMVID11


@dataclass
class CamVidConfig(datasets.BuilderConfig):
    """What to load: `data_dir`, `split` (train, val, test or trainval), `label_space`.

    `listing_digest` stands for the files as they are now, so that a changed folder is never answered from the cache.
    """

    split: str = "train"
    label_space: str = CAMVID11.name
    listing_digest: str = ""


class CamVid(datasets.GeneratorBasedBuilder):
    """CamVid with the columns `image` (RGB), `label_map` (train ids, 255 ignored) and `image_id` (the file's stem)."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = CamVidConfig
    LABEL_SPACES = (CAMVID11.name,)
    SPLITS = tuple(SPLIT_PARTS)

    @staticmethod
    def list_samples(data_dir: Path, split: str) -> list[Sample]:
        """The split's pictures with their label maps, in the list's order; the form is recognised from the folders.

        Raises:
            DataError: the folder is missing, empty or of another level; the split is absent; a file has no partner.
        """
        form = _form_of(data_dir)
        samples = [sample for part in SPLIT_PARTS[split] for sample in form(data_dir, part)]
        check_partners(samples)
        return samples

    def _info(self) -> datasets.DatasetInfo:
        columns = {
            "image": Picture(),
            "label_map": LabelMap(label_space=self.config.label_space),
            "image_id": datasets.Value("string"),
        }
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        samples = self.list_samples(Path(self.config.data_dir), self.config.split)
        check_same_sizes(samples)
        # A list is what `datasets` shards over workers and processes when streaming.
        return [datasets.SplitGenerator(name=self.config.split, gen_kwargs={"samples": samples})]

    def _generate_examples(self, samples: list[Sample]) -> Iterator[tuple[str, dict[str, str]]]:
        for sample in samples:
            columns = {"image": str(sample.image), "label_map": str(sample.label_map), "image_id": sample.image_id}
            yield sample.image_id, columns


def _form_of(data_dir: Path) -> ListForm:
    if not data_dir.is_dir():
        raise DataError(f"CamVid's data folder {data_dir} does not exist: give the folder that holds train/, trainannot/ …")
    if not any(data_dir.iterdir()):
        raise DataError(f"CamVid's data folder {data_dir} is empty: put the data set there, or give another folder.")
    if form := _recognise(data_dir):
        return form
    raise DataError(
        f"{data_dir} is not CamVid: neither the SegNet form (train/, trainannot/ …) nor the original form "
        f"({STILLS}/, {LABELS}/) lies there.{_better_level(data_dir)}"
    )


def _recognise(data_dir: Path) -> ListForm | None:
    if (data_dir / STILLS).is_dir() or (data_dir / LABELS).is_dir():
        return _list_original
    if any((data_dir / folder).is_dir() for part in PARTS for folder in (part, f"{part}annot")):
        return _list_segnet
    return None


def _better_level(data_dir: Path) -> str:
    below = sorted(folder for folder in data_dir.iterdir() if folder.is_dir())
    # resolve: "." has no parent of its own.
    right = [folder for folder in [*below, data_dir.resolve().parent] if _recognise(folder)]
    return f" But {right[0]} looks right: give that folder." if right else " Give the folder that holds them."


def _list_segnet(data_dir: Path, part: str) -> list[Sample]:
    images, label_maps = data_dir / part, data_dir / f"{part}annot"
    if not images.is_dir() or not label_maps.is_dir():
        present = [p for p in PARTS if (data_dir / p).is_dir() and (data_dir / f"{p}annot").is_dir()]
        raise DataError(
            f"CamVid in {data_dir} has no split {part!r} (it needs {part}/ and {part}annot/); "
            f"splits there: {', '.join(present) or 'none'}."
        )
    list_file = data_dir / f"{part}.txt"
    if list_file.is_file():
        return [_segnet_sample(data_dir, line, list_file) for line in _lines(list_file)]
    names = sorted({png.name for folder in (images, label_maps) for png in folder.glob("*.png")})
    if not names:
        raise DataError(f"CamVid's folder {images} holds no PNG: put the pictures there.")
    return [Sample(images / name, label_maps / name, Path(name).stem) for name in names]


def _segnet_sample(data_dir: Path, line: str, list_file: Path) -> Sample:
    """`/SegNet/CamVid/train/X.png /SegNet/CamVid/trainannot/X.png`: only the last two parts hold on this machine."""
    paths = [data_dir.joinpath(*Path(entry).parts[-2:]) for entry in line.split()]
    if len(paths) != 2:
        raise DataError(f"{list_file}: the line {line!r} must name a picture and a label map, with a blank between.")
    return Sample(*paths, image_id=paths[0].stem)


def _list_original(data_dir: Path, part: str) -> list[Sample]:
    list_file = data_dir / f"{part}.txt"
    if not list_file.is_file():
        present = [f"{p}.txt" for p in PARTS if (data_dir / f"{p}.txt").is_file()]
        raise DataError(
            f"CamVid's original form does not say which frames are {part!r}: put SegNet's {part}.txt (one frame a "
            f"line) into {data_dir}, beside {STILLS}/ (lists there: {', '.join(present) or 'none'})."
        )
    stems = [Path(line.split()[0]).stem for line in _lines(list_file)]
    return [Sample(data_dir / STILLS / f"{stem}.png", data_dir / LABELS / f"{stem}_L.png", stem) for stem in stems]


def _lines(list_file: Path) -> list[str]:
    lines = [line for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{list_file} is empty: it must name the split's pictures, one a line.")
    return lines
