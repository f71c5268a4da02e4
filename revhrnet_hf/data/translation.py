"""Tables between label spaces: which classes correspond. They are used to transfer classifiers and to score across datasets.

Each table maps a class of the target space to its partners, classes of the source space. Classes under `None` have no partner.
The tables follow the publishers' definitions: Cityscapes' sidewalk includes curbs, cycle paths and traffic islands; its traffic
signs are fronts only; its bridges, guard rails, caravans and trailers are not scored. CamVid's eleven classes are SegNet's groups
of the 32 classes.

Two tables are combined if one ends in the space that the other starts from: Mapillary Vistas v2.0 → v1.2 → Cityscapes.
"""

from dataclasses import replace
from functools import cache
from itertools import chain

from ..errors import DataError
from .datasets.camvid import CLASSES
from .datasets.coco import CATEGORIES
from .datasets.mapillary_vistas import VISTAS_V12, VISTAS_V20
from .label_space import Classes, LabelSpace

Table = dict[str | None, tuple[str, ...]]

# v2.0 splits most classes of v1.2, and adds a few.
VISTAS_V20_TO_V12: Table = {
    **{name: (name,) for name in VISTAS_V20.names if name in VISTAS_V12.names},
    "Barrier": ("Barrier", "Ambiguous Barrier", "Concrete Block", "Temporary Barrier"),
    "Parking": ("Parking", "Parking Aisle"),
    "Road": ("Road", "Road Shoulder"),
    "Service Lane": ("Service Lane", "Driveway"),
    "Sidewalk": ("Sidewalk", "Traffic Island"),
    "Building": ("Building", "Garage"),
    "Person": ("Person", "Person Group"),
    "Lane Marking - Crosswalk": ("Lane Marking - Crosswalk", "Lane Marking (only) - Crosswalk"),
    "Lane Marking - General": (
        "Lane Marking - Dashed Line", "Lane Marking - Straight Line", "Lane Marking - Zigzag Line", "Lane Marking - Ambiguous",
        "Lane Marking - Arrow (Left)", "Lane Marking - Arrow (Other)", "Lane Marking - Arrow (Right)",
        "Lane Marking - Arrow (Split Left or Straight)", "Lane Marking - Arrow (Split Right or Straight)",
        "Lane Marking - Arrow (Straight)", "Lane Marking - Give Way (Row)", "Lane Marking - Give Way (Single)",
        "Lane Marking - Hatched (Chevron)", "Lane Marking - Hatched (Diagonal)", "Lane Marking - Other",
        "Lane Marking - Stop Line", "Lane Marking - Symbol (Bicycle)", "Lane Marking - Symbol (Other)", "Lane Marking - Text",
        "Lane Marking (only) - Dashed Line", "Lane Marking (only) - Other", "Lane Marking (only) - Test",
    ),
    "Billboard": (
        "Signage - Advertisement", "Signage - Ambiguous", "Signage - Back", "Signage - Information", "Signage - Other",
        "Signage - Store",
    ),
    "Pole": ("Pole", "Pole Group"),
    "Traffic Light": (
        "Traffic Light - General (Single)", "Traffic Light - Pedestrians", "Traffic Light - General (Upright)",
        "Traffic Light - General (Horizontal)", "Traffic Light - Cyclists", "Traffic Light - Other",
    ),
    "Traffic Sign (Back)": ("Traffic Sign (Back)", "Traffic Sign - Direction (Back)", "Traffic Sign - Temporary (Back)"),
    "Traffic Sign (Front)": (
        "Traffic Sign (Front)", "Traffic Sign - Direction (Front)", "Traffic Sign - Parking",
        "Traffic Sign - Temporary (Front)",
    ),
    None: (
        "Road Median", "Road Side", "Lane Separator", "Parking Meter", "Traffic Cone", "Traffic Sign - Ambiguous",
        "Vehicle Group", "Water Valve", "Dynamic", "Ground", "Static",
    ),
}  # fmt: skip

VISTAS_V12_TO_CITYSCAPES: Table = {
    "road": (
        "Road", "Service Lane", "Crosswalk - Plain", "Lane Marking - Crosswalk", "Lane Marking - General", "Manhole", "Pothole",
        "Catch Basin",
    ),
    "sidewalk": ("Sidewalk", "Curb", "Curb Cut", "Pedestrian Area", "Bike Lane"),
    "building": ("Building",),
    "wall": ("Wall",),
    "fence": ("Fence", "Barrier"),
    "pole": ("Pole", "Utility Pole", "Street Light"),
    "traffic light": ("Traffic Light",),
    "traffic sign": ("Traffic Sign (Front)",),
    "vegetation": ("Vegetation",),
    "terrain": ("Terrain", "Sand"),
    "sky": ("Sky",),
    "person": ("Person",),
    "rider": ("Bicyclist", "Motorcyclist", "Other Rider"),
    "car": ("Car",),
    "truck": ("Truck",),
    "bus": ("Bus",),
    "train": ("On Rails",),
    "motorcycle": ("Motorcycle",),
    "bicycle": ("Bicycle",),
    None: (
        "Bird", "Ground Animal", "Guard Rail", "Parking", "Rail Track", "Bridge", "Tunnel", "Mountain", "Snow", "Water",
        "Banner", "Bench", "Bike Rack", "Billboard", "CCTV Camera", "Fire Hydrant", "Junction Box", "Mailbox", "Phone Booth",
        "Traffic Sign Frame", "Traffic Sign (Back)", "Trash Can", "Boat", "Caravan", "Other Vehicle", "Trailer", "Wheeled Slow",
        "Car Mount", "Ego Vehicle",
    ),
}  # fmt: skip

VISTAS_V12_TO_CAMVID11: Table = {
    "Sky": ("Sky",),
    "Building": ("Building", "Bridge", "Tunnel", "Wall"),
    "Pole": ("Pole", "Utility Pole", "Street Light"),
    "Road": (
        "Road", "Service Lane", "Bike Lane", "Crosswalk - Plain", "Lane Marking - Crosswalk", "Lane Marking - General",
        "Manhole", "Pothole", "Catch Basin",
    ),
    "Pavement": ("Sidewalk", "Curb", "Curb Cut", "Pedestrian Area", "Parking"),
    "Tree": ("Vegetation", "Terrain"),
    "SignSymbol": ("Traffic Sign (Front)", "Traffic Sign (Back)", "Traffic Sign Frame", "Traffic Light", "Billboard", "Banner"),
    "Fence": ("Fence", "Barrier", "Guard Rail"),
    "Car": ("Car", "Bus", "Truck", "On Rails", "Caravan", "Trailer", "Other Vehicle"),
    "Pedestrian": ("Person", "Ground Animal", "Wheeled Slow"),
    "Bicyclist": ("Bicyclist", "Motorcyclist", "Other Rider", "Bicycle", "Motorcycle"),
    None: (
        "Bird", "Rail Track", "Mountain", "Sand", "Snow", "Water", "Bench", "Bike Rack", "CCTV Camera", "Fire Hydrant",
        "Junction Box", "Mailbox", "Phone Booth", "Trash Can", "Boat", "Car Mount", "Ego Vehicle",
    ),
}  # fmt: skip

CITYSCAPES_TO_CAMVID11: Table = {
    "Sky": ("sky",),
    "Building": ("building", "wall"),
    "Pole": ("pole",),
    "Road": ("road",),
    "Pavement": ("sidewalk",),
    "Tree": ("vegetation", "terrain"),
    "SignSymbol": ("traffic light", "traffic sign"),
    "Fence": ("fence",),
    "Car": ("car", "truck", "bus", "train"),
    "Pedestrian": ("person",),
    "Bicyclist": ("rider", "motorcycle", "bicycle"),
}

# Categories that VOC lacks are background there, as in its own label maps.
COCO81_TO_VOC21: Table = {
    "background": (
        "background",
        *("truck", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
        *("elephant", "bear", "zebra", "giraffe"),
        *("backpack", "umbrella", "handbag", "tie", "suitcase"),
        *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
        *("skateboard", "surfboard", "tennis racket"),
        *("wine glass", "cup", "fork", "knife", "spoon", "bowl"),
        *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
        *("bed", "toilet", "laptop", "mouse", "remote", "keyboard", "cell phone"),
        *("microwave", "oven", "toaster", "sink", "refrigerator"),
        *("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
    ),
    "aeroplane": ("airplane",),
    "bicycle": ("bicycle",),
    "bird": ("bird",),
    "boat": ("boat",),
    "bottle": ("bottle",),
    "bus": ("bus",),
    "car": ("car",),
    "cat": ("cat",),
    "chair": ("chair",),
    "cow": ("cow",),
    "diningtable": ("dining table",),
    "dog": ("dog",),
    "horse": ("horse",),
    "motorbike": ("motorcycle",),
    "person": ("person",),
    "pottedplant": ("potted plant",),
    "sheep": ("sheep",),
    "sofa": ("couch",),
    "train": ("train",),
    "tvmonitor": ("tv",),
}

# The panoptic things are the 80 categories of instances; all stuff is background.
PANOPTIC133_TO_COCO81: Table = {
    "background": tuple(category.name for category in CATEGORIES if not category.is_thing),
    **{category.name: (category.name,) for category in CATEGORIES if category.is_thing},
}

CAMVID32_TO_CAMVID11: Table = {name: members for name, _, members in CLASSES}

TABLES: dict[tuple[str, str], Table] = {
    ("mapillary_vistas_v2.0", "mapillary_vistas_v1.2"): VISTAS_V20_TO_V12,
    ("mapillary_vistas_v1.2", "cityscapes"): VISTAS_V12_TO_CITYSCAPES,
    ("mapillary_vistas_v1.2", "camvid11"): VISTAS_V12_TO_CAMVID11,
    ("cityscapes", "camvid11"): CITYSCAPES_TO_CAMVID11,
    ("camvid32", "camvid11"): CAMVID32_TO_CAMVID11,
    ("coco_panoptic133", "coco81"): PANOPTIC133_TO_COCO81,
    ("coco81", "voc21"): COCO81_TO_VOC21,
}
"""(source, target) → table. In the other direction, a class has a partner if the table names exactly one."""


def translate(source: LabelSpace | Classes, target: LabelSpace) -> dict[str, str | None]:
    """For each class of `source`, in the order of its train ids: its partner in `target`, or None.

    Spaces without a table (such as a user's own) are joined by equal names; upper and lower case do not matter.

    Raises:
        DataError: no table joins the two, and they have no name in common.
    """
    if source.names == target.names:
        return {name: name for name in source.names}
    if table := _table(source.name, target.name):
        partner_of = _forwards(table)
    elif table := _table(target.name, source.name):
        partner_of = _backwards(table)
    else:
        partner_of = _by_equal_names(source, target)
    return {name: partner_of.get(name) for name in source.names}


def are_joined(source: LabelSpace | Classes, target: LabelSpace) -> bool:
    """Whether the two have the same classes or a table joins them."""
    return source.names == target.names or bool(_table(source.name, target.name) or _table(target.name, source.name))


def sources_of(source: LabelSpace | Classes, target: LabelSpace) -> list[list[int]]:
    """For each class of `target`, the train ids of `source` that are its partners; empty where there is none."""
    partner_of = translate(source, target)
    return [[train_id for train_id, name in enumerate(source.names) if partner_of[name] == wanted] for wanted in target.names]


@cache
def _table(source: str, target: str) -> Table | None:
    """The table between two spaces, or the combination of two tables through a third space."""
    if (source, target) in TABLES:
        return TABLES[source, target]
    for first, middle in TABLES:
        if first == source and (middle, target) in TABLES:
            return _combined(TABLES[source, middle], TABLES[middle, target])
    return None


def _combined(first: Table, second: Table) -> Table:
    """The table from the source of `first` to the target of `second`."""
    table = {name: tuple(chain.from_iterable(first[middle] for middle in names)) for name, names in second.items()}
    table[None] = (*table.get(None, ()), *first.get(None, ()))
    return table


def in_classes_of(source: LabelSpace, target: LabelSpace) -> LabelSpace:
    """A label space with `target`'s classes that translates `source`'s ids and colours; classes without a partner are ignored.

    Raises:
        DataError: as for `translate`.
    """
    partner_of = translate(source, target)
    train_id_of = [target.label2id.get(partner_of[name], target.ignore_index) for name in source.names]

    def translated(table):
        return {
            raw: target.ignore_index if train_id == source.ignore_index else train_id_of[train_id]
            for raw, train_id in table.items()
        }

    background = target.ignore_index if source.background == source.ignore_index else train_id_of[source.background]
    return replace(target, raw_ids=translated(source.raw_ids), raw_colours=translated(source.raw_colours), background=background)


def _forwards(table: Table) -> dict[str, str | None]:
    return {name: partner for partner, names in table.items() for name in names}


def _backwards(table: Table) -> dict[str, str | None]:
    partner_of = {partner: names[0] for partner, names in table.items() if partner is not None and len(names) == 1}
    # A class that is in both spaces, such as background, is its own partner even if the table joins more classes to it.
    same = set(table) & set(chain.from_iterable(table.values()))
    return partner_of | {name: name for name in same}


def _by_equal_names(source: LabelSpace | Classes, target: LabelSpace) -> dict[str, str | None]:
    names = {name.casefold(): name for name in target.names}
    partner_of = {name: names.get(name.casefold()) for name in source.names}
    if not any(partner_of.values()):
        raise DataError(
            f"No class of {source.name!r} has a partner in {target.name!r}: no table joins the two, and no names are equal. "
            f"Tables join {', '.join(f'{a} → {b}' for a, b in TABLES)}."
        )
    return partner_of
