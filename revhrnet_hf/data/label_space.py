"""Label spaces: the class names, colours and ids of a dataset, and the table that translates raw ids to train ids.

A *raw id* is the value of a pixel in a label file: a number, or a colour if the publisher codes classes by colour. A *train id*
is the index of the network's output channel. Pixels that are not scored hold `ignore_index`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from ..errors import DataError, did_you_mean, first_few
from ..images import Colour
from .coco_categories import BACKGROUND, is_coco_file, read_own_categories
from .label_table import is_label_table, read_label_table
from .palette import default_palette

MAX_NAMED = 8
UNKNOWN = -1
LARGEST_ID = 1 << 53  # float64 holds every whole number up to this one
SINGLE_BAND = ("1", "L", "LA", "P")  # Pillow's modes for one value of at most 8 bits a pixel

Reading = dict[int, int | None]  # value in a label map → train id; None if the label space does not have it


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset.

    Attributes:
        name: key in the registry, for example `"camvid11"`.
        names: class names in the order of their train ids.
        colours: one RGB colour (0–255) for each class, to show label maps.
        raw_ids: raw id → train id, or `ignore_index` for ids that are not scored.
        ignore_index: the train id of ignored pixels.
        raw_colours: raw RGB colour → train id, if the publisher's label maps are coded by colour.
        untinted: names of the classes that overlays show without colour; None: the class called background, if there is one.
        counted_apart: so many train ids from `num_classes` on are ignored as well. Only `ClassCounter` uses them, to count
            ignored ids and colours one by one.
        background: the train id of pixels that no object covers, where label maps are drawn from objects.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    raw_ids: Mapping[int, int] = field(hash=False)
    ignore_index: int = 255
    raw_colours: Mapping[Colour, int] = field(default_factory=dict, hash=False)
    untinted: tuple[str, ...] | None = None
    counted_apart: int = 0
    background: int = 0

    def __post_init__(self):
        if len(self.names) != len(self.colours):
            raise DataError(
                f"Label space {self.name!r} has {len(self.names)} names but {len(self.colours)} colours: give one colour a class."
            )
        used = self.num_classes + self.counted_apart
        if not used <= self.ignore_index <= 255:
            raise DataError(
                f"Label space {self.name!r}: ignore_index {self.ignore_index} must lie between the number of classes "
                f"({used}) and 255."
            )
        train_ids = {*self.raw_ids.values(), *self.raw_colours.values()} - {self.ignore_index}
        if strays := sorted(train_ids - set(range(used))):
            raise DataError(
                f"Label space {self.name!r} maps to the train ids {strays}, but it has only the classes "
                f"0–{self.num_classes - 1}: correct its tables."
            )

    @classmethod
    def from_yaml(cls, path: str | Path) -> "LabelSpace":
        """The label space of a user's label table; label_table.py shows the form.

        Raises:
            DataError: the file is missing, not YAML or invalid (the message names the line), or it has the name of another label
                space.
        """
        table = read_label_table(path)
        space = cls(
            name=table.name,
            names=tuple(table.names),
            colours=tuple(table.colours),
            raw_ids=table.raw_ids,
            raw_colours=table.raw_colours,
            untinted=table.untinted,
        )
        if LABEL_SPACES.get(space.name, space) != space:
            raise DataError(f"Label table {path}: {space.name!r} is already the name of another label space: change name.")
        return space

    @classmethod
    def from_coco(cls, location: str) -> "LabelSpace":
        """Background and the categories of a COCO-format file, in the order of their ids, which are the raw ids.

        Raises:
            DataError: the file is missing or damaged, or its categories cannot be classes.
        """
        own = read_own_categories(location)
        return cls(
            name=f"{own.name}_coco" if own.name in LABEL_SPACES else own.name,
            names=(BACKGROUND, *own.classes.values()),
            colours=((0, 0, 0), *default_palette(len(own.classes))),
            raw_ids={key: 0 for key in own.background} | {key: k for k, key in enumerate(own.classes, start=1)},
        )

    def to_json(self) -> str:
        """The label space as one line of JSON, which `from_json` reads."""
        return json.dumps(
            {
                "name": self.name,
                "names": self.names,
                "colours": self.colours,
                "raw_ids": sorted(self.raw_ids.items()),
                "ignore_index": self.ignore_index,
                "raw_colours": sorted(self.raw_colours.items()),
                # Only where it is given, so that the text of other label spaces is as in earlier versions.
                **({} if self.untinted is None else {"untinted": self.untinted}),
                **({"counted_apart": self.counted_apart} if self.counted_apart else {}),
                **({"background": self.background} if self.background else {}),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "LabelSpace":
        """Reads the text of `to_json`; raises a DataError for any other text."""
        try:
            table = json.loads(text)
            return cls(
                name=table["name"],
                names=tuple(table["names"]),
                colours=tuple(tuple(colour) for colour in table["colours"]),
                raw_ids={raw_id: train_id for raw_id, train_id in table["raw_ids"]},
                ignore_index=table["ignore_index"],
                raw_colours={tuple(colour): train_id for colour, train_id in table["raw_colours"]},
                untinted=tuple(table["untinted"]) if "untinted" in table else None,
                counted_apart=table.get("counted_apart", 0),
                background=table.get("background", 0),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(f"No label space can be read from the JSON {text[:80]!r} ({error!r}).") from error

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: train_id for train_id, name in enumerate(self.names)}

    @property
    def palette(self) -> list[int]:
        """Red, green, blue of the train ids 0–255 for `PIL.Image.Image.putpalette`; black for ids without a class."""
        flat = [channel for colour in self.colours for channel in colour]
        return flat + [0] * (768 - len(flat))

    @cached_property
    def of_train_ids(self) -> "LabelSpace":
        """The label space with the same classes for label maps that already hold train ids."""
        train_ids = {*range(self.num_classes), self.ignore_index}
        return replace(self, raw_ids={train_id: train_id for train_id in train_ids}, raw_colours={})

    def train_ids(self, raw: np.ndarray, source: str) -> np.ndarray:
        """Translates raw ids or colours to train ids.

        Args:
            raw: (height, width) raw ids: integers, or floating-point numbers with whole values (from MATLAB and some TIFF
                files); or (height, width, 3) uint8 raw colours.
            source: the label map's name in error messages, usually its file.

        Returns:
            (height, width) uint8; ignored pixels hold `ignore_index`, or a train id that is `counted_apart`.

        Raises:
            DataError: `raw` holds ids or colours that are not in the table (the message names them), or numbers that are no ids.
        """
        return self._from_colours(raw, source) if raw.ndim == 3 else self._from_ids(whole_ids(raw, source), source)

    def translate_image(
        self, raw: PIL.Image.Image, source: str, max_value: int = 255, is_black_and_white_gif: bool = False
    ) -> PIL.Image.Image:
        """Translates a label map as Pillow reads it from a file to train ids.

        In a grey image the values are the ids, in a palette image the indices. If the table lacks one of them, or has only
        colours, the displayed colours are used instead. In a colour image the colours are used, or if the whole image is grey,
        the grey values as ids. Transparency is ignored.

        All values in the image decide together how it is read; `translate_part` is for a part of a label map.

        Args:
            raw: an image of any mode; Pillow has scaled grey values to 8 or 16 bits.
            source: the label map's name in error messages.
            max_value: the number in the file that Pillow has scaled to 255 (65535 in mode I); 3 for a file with 2 bits.
            is_black_and_white_gif: whether the indices 0 and 1 may also be the grey values 0 and 255: a GIF stores both in the
                same way. The table must decide which it is.

        Returns:
            An image of mode L.

        Raises:
            DataError: as `train_ids`; or ids and colours contradict each other.
        """
        if raw.mode in SINGLE_BAND:
            values, max_value = single_band(raw, max_value)
            return self._from_values(values, self._readings(values, max_value, is_black_and_white_gif), source)
        if raw.mode in ("I", "F") or raw.mode.startswith("I;16"):
            values = np.asarray(raw)
            values = values if max_value in (255, 65535) else np.rint(values * (max_value / 65535)).astype(np.int64)
            return PIL.Image.fromarray(self.train_ids(values, source))
        rgb = raw if raw.mode == "RGB" else raw.convert("RGB")
        values = np.asarray(rgb)
        if (train_ids := self._known_colours(values)) is not None:
            return PIL.Image.fromarray(train_ids)
        if self.raw_ids and _is_grey(rgb):
            grey, _ = single_band(rgb.getchannel(0), max_value)
            return PIL.Image.fromarray(self.train_ids(np.asarray(grey), source))
        return PIL.Image.fromarray(self.train_ids(values, source))

    def translate_part(
        self, part: PIL.Image.Image, source: str, max_value: int = 255, is_black_and_white_gif: bool = False
    ) -> PIL.Image.Image | None:
        """`translate_image` for a part of a label map, with the train ids that the part has in the whole label map.

        The arguments and errors are those of `translate_image`; unknown values outside the part are no error.

        Returns:
            An image of mode L; None if the part does not tell how the whole label map is read.
        """
        if part.mode in SINGLE_BAND:
            values, max_value = single_band(part, max_value)
            readings = self._readings(values, max_value, is_black_and_white_gif)
            return None if readings.are_ambiguous else self._from_values(values, readings, source)
        if not part.mode.startswith(("I", "F")) and self._is_ambiguous_rgb(part, max_value):
            return None
        return self.translate_image(part, source, max_value, is_black_and_white_gif)

    def _is_ambiguous_rgb(self, part: PIL.Image.Image, max_value: int) -> bool:
        """Whether all colours are known, but are also grey values of known ids, and the train ids differ."""
        rgb = part if part.mode == "RGB" else part.convert("RGB")
        if not (self.raw_ids and self.raw_colours and _is_grey(rgb)):
            return False
        if (by_colour := self._known_colours(np.asarray(rgb))) is None:
            return False
        numbers, _ = single_band(rgb.getchannel(0), max_value)
        by_id = self._id_table.take(np.asarray(numbers), mode="clip")
        return bool((by_id != UNKNOWN).all() and (by_id != by_colour).any())

    def _readings(self, image: PIL.Image.Image, max_value: int, is_black_and_white_gif: bool) -> "Readings":
        """How the values in an image of mode L or P can be read."""
        used = [value for value, pixels in enumerate(image.histogram()) if pixels]
        displayed = displayed_colours(image, used, max_value)
        return Readings(
            displayed,
            by_id={value: self.raw_ids.get(value) for value in used},
            by_colour={value: self.raw_colours.get(displayed[value]) for value in used},
            by_grey={value: self.raw_ids.get(displayed[value][0]) for value in used} if is_black_and_white_gif else {},
        )

    def _from_values(self, image: PIL.Image.Image, readings: "Readings", source: str) -> PIL.Image.Image:
        """Translates an image of mode L or P. For large label maps Pillow is several times as fast as NumPy."""
        displayed, by_id, by_colour, by_grey = readings
        if _is_complete(by_id):
            self._check_agreement(source, by_id, by_colour, displayed, "colour", neutral=self.ignore_index)
            if _is_complete(by_grey):
                self._check_agreement(source, by_id, by_grey, displayed, "grey value", neutral=None)
            chosen = by_id
        elif _is_complete(by_colour):
            chosen = by_colour
        elif _is_complete(by_grey):
            chosen = by_grey
        elif self.raw_ids:
            return PIL.Image.fromarray(self.train_ids(np.asarray(image), source))  # raises an error that names the unknown ids
        else:
            colours = np.zeros((256, 3), np.uint8)
            colours[list(displayed)] = list(displayed.values())
            return PIL.Image.fromarray(self.train_ids(colours[np.asarray(image)], source))
        return image.point([chosen.get(value, 0) for value in range(256)], "L")

    def _check_agreement(
        self,
        source: str,
        by_id: Reading,
        other: Reading,
        displayed: dict[int, Colour],
        kind: str,
        neutral: int | None,
    ) -> None:
        """Raises a DataError if another reading gives other classes; the train id `neutral` contradicts no other."""
        by_id, other = self._as_scored(by_id), self._as_scored(other)
        differing = [value for value in by_id if other[value] not in (None, neutral, by_id[value])]
        if not differing:
            return
        names = {train_id: repr(name) for train_id, name in enumerate(self.names)} | {self.ignore_index: "ignored"}
        readings = "; ".join(
            f"{value} is {names[by_id[value]]} as an id, but its {kind} {displayed[value]} is {names[other[value]]}"
            for value in differing[:MAX_NAMED]
        )
        raise DataError(
            f"Label map {source} can be read in two ways, which contradict each other in label space {self.name!r}: {readings}. "
            "Give the label space only the ids or only the colours, whichever this label map was drawn with, or save it as a PNG "
            "whose palette is the label space's."
        )

    def _as_scored(self, reading: Reading) -> Reading:
        """With one train id for all that is ignored, so that label maps are read alike whether it is counted apart or not."""
        ignored = range(self.num_classes, self.num_classes + self.counted_apart)
        return {value: self.ignore_index if train_id in ignored else train_id for value, train_id in reading.items()}

    def _from_ids(self, raw: np.ndarray, source: str) -> np.ndarray:
        if not self.raw_ids:
            raise DataError(
                f"Label map {source} holds ids, but label space {self.name!r} has colours only: use label maps in its colours, "
                "or give the classes' ids."
            )
        # mode="clip" maps every larger id to the table's last entry, which is UNKNOWN.
        train_ids = self._id_table.take(raw, mode="clip")
        if raw.dtype.kind == "i":
            train_ids[raw < 0] = UNKNOWN
        self._check_known(train_ids, raw, source, "ids", id_ranges(self.raw_ids))
        return train_ids.astype(np.uint8)

    def _from_colours(self, raw: np.ndarray, source: str) -> np.ndarray:
        if not self.raw_colours:
            raise DataError(
                f"Label map {source} is a colour image, but label space {self.name!r} has ids only: use the dataset's label "
                "maps of ids (single-channel or palette PNG); or, in a label table of your own, give each class its colour in "
                'the field colours:, such as road: {colours: "#804080"}.'
            )
        train_ids = self._look_up_colours(raw)
        self._check_known(train_ids, raw, source, "colours", f"{len(self.raw_colours)} colours")
        return train_ids.astype(np.uint8)

    def _known_colours(self, raw: np.ndarray) -> np.ndarray | None:
        """The train ids of (height, width, 3) `raw`; None if the label space lacks one of its colours."""
        if not self.raw_colours:
            return None
        train_ids = self._look_up_colours(raw)
        return None if (train_ids == UNKNOWN).any() else train_ids.astype(np.uint8)

    def _look_up_colours(self, raw: np.ndarray) -> np.ndarray:
        known_codes, code_train_ids = self._colour_table
        codes = _colour_codes(raw)
        nearest = np.searchsorted(known_codes, codes).clip(max=len(known_codes) - 1)
        return np.where(known_codes[nearest] == codes, code_train_ids[nearest], UNKNOWN)

    def _check_known(self, train_ids: np.ndarray, raw: np.ndarray, source: str, kind: str, known: str) -> None:
        unknown = train_ids == UNKNOWN
        if not unknown.any():
            return
        values = np.unique(raw[unknown], axis=0).tolist()
        shown = first_few((tuple(value) if isinstance(value, list) else value for value in values), MAX_NAMED)
        raise DataError(
            f"Label map {source} holds the {kind} {shown}, which label space {self.name!r} does not have "
            f"(it has {known}): {self._remedy(kind)}."
        )

    def _remedy(self, kind: str) -> str:
        if self.name in LABEL_SPACES:
            return "correct the file, or load the dataset with the label space of its label maps"
        field = "" if kind == "ids" else " (field colours:)"
        return f"add them to the label table (labels.yaml), to a class{field} or under ignore:, or correct the file"

    @cached_property
    def _id_table(self) -> np.ndarray:
        table = np.full(max(self.raw_ids) + 2, UNKNOWN, dtype=np.int16)
        for raw_id, train_id in self.raw_ids.items():
            table[raw_id] = train_id
        return table

    @cached_property
    def _colour_table(self) -> tuple[np.ndarray, np.ndarray]:
        colours = np.array(list(self.raw_colours), dtype=np.uint8)
        codes = _colour_codes(colours)
        order = codes.argsort()
        return codes[order], np.array(list(self.raw_colours.values()), dtype=np.int16)[order]


def whole_ids(raw: np.ndarray, source: str) -> np.ndarray:
    """Converts ids to integers; a cast alone would turn NaN into −9223372036854775808 and 1.7 into 1.

    Raises:
        DataError: `raw` holds NaN, an infinite or fractional number, or values that are no numbers.
    """
    if raw.dtype.kind in "iub" and raw.dtype != np.uint64:  # numpy's `take` would wrap large uint64 values
        return raw
    if raw.dtype.kind not in "fu":
        raise DataError(f"Label map {source} holds values of type {raw.dtype}; it must hold ids, whole numbers: save it again.")
    raw = raw.astype(np.float64) if raw.dtype.kind == "f" else raw
    strays = raw[~((raw == np.trunc(raw)) & (np.abs(raw) <= LARGEST_ID))]
    if strays.size:
        raise DataError(
            f"Label map {source} holds {strays.size} pixels that are no ids, for example {strays[0]}; ids are whole numbers: "
            "replace NaN by an id that the label space ignores, and save the label map as integers."
        )
    return raw.astype(np.int64)


def id_ranges(ids: Iterable[int]) -> str:
    """The ids as text, consecutive ones as ranges: `0–10, 255`."""
    ids = set(ids)
    starts = sorted(i for i in ids if i - 1 not in ids)
    ends = sorted(i for i in ids if i + 1 not in ids)
    return ", ".join(str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True))


def single_band(raw: PIL.Image.Image, max_value: int) -> tuple[PIL.Image.Image, int]:
    """Converts mode 1, L, LA or P to L or P with the file's own grey values; also returns the largest possible value."""
    if raw.mode == "P":
        return raw, max_value
    if raw.mode == "1":
        raw, max_value = raw.convert("L"), 1
    elif raw.mode == "LA":
        raw = raw.getchannel("L")
    if max_value == 255:
        return raw, max_value
    return raw.point([(2 * value * max_value + 255) // 510 for value in range(256)]), max_value


def displayed_colours(image: PIL.Image.Image, used: list[int], max_value: int) -> dict[int, Colour]:
    """Value → the colour in which a viewer shows it."""
    if image.mode == "L":
        return {value: ((2 * value * 255 + max_value) // (2 * max_value),) * 3 for value in used}
    palette = image.getpalette("RGB") or []
    palette += [0] * (768 - len(palette))
    return {value: tuple(palette[3 * value : 3 * value + 3]) for value in used}


class Readings(NamedTuple):
    """The ways to read the values in an image of mode L or P.

    Attributes:
        displayed: value → the colour in which a viewer shows it.
        by_id: the value is the id.
        by_colour: the displayed colour is the raw colour.
        by_grey: the displayed grey value is the id; empty unless the image is a black and white GIF.
    """

    displayed: dict[int, Colour]
    by_id: Reading
    by_colour: Reading
    by_grey: Reading

    @property
    def are_ambiguous(self) -> bool:
        """Whether the label space has all values in several of the ways, and one of the values has different train ids."""
        ways = self.by_id, self.by_colour, self.by_grey
        if sum(map(_is_complete, ways)) < 2:
            return False
        return any(len({way.get(value) for way in ways} - {None}) > 1 for value in self.displayed)


def _is_grey(rgb: PIL.Image.Image) -> bool:
    red, green, blue = (band.tobytes() for band in rgb.split())
    return red == green == blue


def _is_complete(reading: Reading) -> bool:
    return bool(reading) and None not in reading.values()


def _colour_codes(colours: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 → (…) int32, one number for each colour."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


LABEL_SPACES: dict[str, LabelSpace] = {}
"""Name → label space; each dataset's module adds its own."""


class Classes(NamedTuple):
    """The classes of a model that are those of no registered label space; they may be more than the ids of a label map."""

    name: str
    names: tuple[str, ...]


def known_label_space(names: Iterable[str]) -> LabelSpace | None:
    """The registered label space with these class names in this order, if there is one."""
    names = tuple(names)
    return next((label_space for label_space in LABEL_SPACES.values() if label_space.names == names), None)


def classes_of_names(names: Iterable[str]) -> LabelSpace | Classes:
    """The registered label space with these class names in this order, else the names alone."""
    names = tuple(names)
    return known_label_space(names) or Classes("unnamed", names)


def get_label_space(name: str) -> LabelSpace:
    """The label space called `name`; an unknown name is a DataError that lists the known ones."""
    if name not in LABEL_SPACES:
        raise DataError(
            f"Unknown label space {name!r}{did_you_mean(name, LABEL_SPACES)}; known are {', '.join(sorted(LABEL_SPACES))}."
        )
    return LABEL_SPACES[name]


def find_label_space(given: str | Path) -> LabelSpace:
    """A registered label space by its name, or one from a label table's file (.yaml, .yml) or COCO annotations (.json)."""
    if is_coco_file(str(given)):
        return LabelSpace.from_coco(str(given))
    return LabelSpace.from_yaml(given) if is_label_table(given) else get_label_space(str(given))
