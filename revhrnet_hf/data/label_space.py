"""Label spaces: the class names, colours and ids of a dataset, and the one table that turns raw ids into train ids.

A *raw id* is what a label PNG holds (a number, or a colour where the publisher codes classes by colour); a *train id* is
the network's output channel. Pixels that are not scored hold `ignore_index`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from ..errors import DataError
from ..images import Colour
from .coco_categories import BACKGROUND, is_coco_file, read_own_categories
from .label_table import is_label_table, read_label_table
from .palette import default_palette

MAX_NAMED = 8
UNKNOWN = -1
LARGEST_ID = 1 << 53  # beyond, floating-point numbers skip some whole ones


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset.

    Attributes:
        name: key in the registry, for example `"camvid11"`.
        names: class names in the order of their train ids.
        colours: one RGB colour (0–255) a class, for images of label maps.
        raw_ids: raw id → train id, or `ignore_index` for what is not scored.
        ignore_index: the train id of ignored pixels.
        raw_colours: raw RGB colour → train id, where the publisher's label maps are coded by colour.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    raw_ids: Mapping[int, int] = field(hash=False)
    ignore_index: int = 255
    raw_colours: Mapping[Colour, int] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        if len(self.names) != len(self.colours):
            raise DataError(
                f"Label space {self.name!r} has {len(self.names)} names but {len(self.colours)} colours: give one colour a class."
            )
        if not self.num_classes <= self.ignore_index <= 255:
            raise DataError(
                f"Label space {self.name!r}: ignore_index {self.ignore_index} must lie between the number of classes "
                f"({self.num_classes}) and 255."
            )
        train_ids = {*self.raw_ids.values(), *self.raw_colours.values()} - {self.ignore_index}
        if strays := sorted(train_ids - set(range(self.num_classes))):
            raise DataError(
                f"Label space {self.name!r} maps to the train ids {strays}, but it has only the classes "
                f"0–{self.num_classes - 1}: correct its tables."
            )

    @classmethod
    def from_yaml(cls, path: str | Path) -> "LabelSpace":
        """The label space of a label table that somebody wrote for data of their own; label_table.py shows the form.

        Raises:
            DataError: the file is missing or no YAML, something in it cannot be (the line is named), or it has the name of
                another label space.
        """
        table = read_label_table(path)
        space = cls(
            name=table.name,
            names=tuple(table.names),
            colours=tuple(table.colours),
            raw_ids=table.raw_ids,
            raw_colours=table.raw_colours,
        )
        if LABEL_SPACES.get(space.name, space) != space:
            raise DataError(f"Label table {path}: {space.name!r} is another label space already; give name: something else.")
        return space

    @classmethod
    def from_coco(cls, location: str) -> "LabelSpace":
        """Background and the categories that a COCO-format file lists, in the order of their ids; raw ids are these ids.

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
        """The whole table as one line of JSON, which `from_json` reads."""
        return json.dumps(
            {
                "name": self.name,
                "names": self.names,
                "colours": self.colours,
                "raw_ids": sorted(self.raw_ids.items()),
                "ignore_index": self.ignore_index,
                "raw_colours": sorted(self.raw_colours.items()),
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "LabelSpace":
        """Raises a DataError for a text that `to_json` has not written."""
        try:
            table = json.loads(text)
            return cls(
                name=table["name"],
                names=tuple(table["names"]),
                colours=tuple(tuple(colour) for colour in table["colours"]),
                raw_ids={raw_id: train_id for raw_id, train_id in table["raw_ids"]},
                ignore_index=table["ignore_index"],
                raw_colours={tuple(colour): train_id for colour, train_id in table["raw_colours"]},
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
        """Red, green, blue of the train ids 0–255 for `PIL.Image.Image.putpalette`, black where there is no class."""
        flat = [channel for colour in self.colours for channel in colour]
        return flat + [0] * (768 - len(flat))

    @cached_property
    def of_train_ids(self) -> "LabelSpace":
        """The same classes for label maps that hold train ids already."""
        train_ids = {*range(self.num_classes), self.ignore_index}
        return replace(self, raw_ids={train_id: train_id for train_id in train_ids}, raw_colours={})

    def train_ids(self, raw: np.ndarray, source: str) -> np.ndarray:
        """Translates a label map as its publisher stores it into train ids.

        Args:
            raw: (height, width) integers (raw ids), or floating-point numbers that are whole (MATLAB's and some TIFF files');
                or (height, width, 3) uint8 (raw colours).
            source: what the label map is called in an error, usually its file.

        Returns:
            (height, width) uint8; ignored pixels hold `ignore_index`.

        Raises:
            DataError: `raw` holds an id or colour outside the table, all of which are named, or numbers that are no ids.
        """
        return self._from_colours(raw, source) if raw.ndim == 3 else self._from_ids(whole_ids(raw, source), source)

    def translate_image(
        self, raw: PIL.Image.Image, source: str, greatest: int = 255, is_black_and_white_gif: bool = False
    ) -> PIL.Image.Image:
        """The same for a label map as it comes out of its file.

        The table decides how it is read. Of a grey image the values count as ids, of a palette image the indices; where the table
        lacks one of them, or has colours only, the colours count that a viewer shows. Of a colour image the colours count, or if
        it is grey all over, its values as ids. Transparency does not count.

        Args:
            raw: of any mode; grey values scaled to 8 or 16 bits, as Pillow does.
            source: what the label map is called in an error.
            greatest: the number in the file that Pillow has made 255, or 65535 in mode I: 3 for 2 bits.
            is_black_and_white_gif: whether its indices 0 and 1 may as well be the grey values 0 and 255, for a GIF stores either
                in the same way. The table must leave one reading only.

        Returns:
            An image of mode L.

        Raises:
            DataError: as `train_ids`; or the readings by ids and by colours contradict each other.
        """
        if raw.mode in ("1", "LA", "L", "P"):
            values, greatest = _single_band(raw, greatest)
            return self._from_values(values, source, greatest, is_black_and_white_gif)
        if raw.mode in ("I", "F") or raw.mode.startswith("I;16"):
            values = np.asarray(raw)
            values = values if greatest in (255, 65535) else np.rint(values * (greatest / 65535)).astype(np.int64)
            return PIL.Image.fromarray(self.train_ids(values, source))
        rgb = raw if raw.mode == "RGB" else raw.convert("RGB")
        values = np.asarray(rgb)
        if (train_ids := self._known_colours(values)) is not None:
            return PIL.Image.fromarray(train_ids)
        if self.raw_ids and (values == values[..., :1]).all():
            grey, _ = _single_band(rgb.getchannel(0), greatest)
            return PIL.Image.fromarray(self.train_ids(np.asarray(grey), source))
        return PIL.Image.fromarray(self.train_ids(values, source))

    def _from_values(self, image: PIL.Image.Image, source: str, greatest: int, is_black_and_white_gif: bool) -> PIL.Image.Image:
        """Of mode L or P. Large label maps are several times as fast within Pillow as by way of arrays."""
        used = [value for value, pixels in enumerate(image.histogram()) if pixels]
        shown = _shown_colours(image, used, greatest)
        by_id = {value: self.raw_ids.get(value) for value in used}
        by_colour = {value: self.raw_colours.get(shown[value]) for value in used}
        by_grey = {value: self.raw_ids.get(shown[value][0]) for value in used} if is_black_and_white_gif else {}
        if _is_complete(by_id):
            self._check_agreement(source, by_id, by_colour, shown, "colour", but=self.ignore_index)
            if _is_complete(by_grey):
                self._check_agreement(source, by_id, by_grey, shown, "grey value", but=None)
            chosen = by_id
        elif _is_complete(by_colour):
            chosen = by_colour
        elif _is_complete(by_grey):
            chosen = by_grey
        elif self.raw_ids:
            return PIL.Image.fromarray(self.train_ids(np.asarray(image), source))  # names what is unknown
        else:
            colours = np.zeros((256, 3), np.uint8)
            colours[used] = [shown[value] for value in used]
            return PIL.Image.fromarray(self.train_ids(colours[np.asarray(image)], source))
        return image.point([chosen.get(value, 0) for value in range(256)], "L")

    def _check_agreement(
        self,
        source: str,
        by_id: dict[int, int],
        other: dict[int, int | None],
        shown: dict[int, Colour],
        kind: str,
        but: int | None,
    ) -> None:
        """Raises a DataError if another reading gives other classes; the train id `but` contradicts nothing."""
        differing = [value for value in by_id if other[value] not in (None, but, by_id[value])]
        if not differing:
            return
        names = {train_id: repr(name) for train_id, name in enumerate(self.names)} | {self.ignore_index: "ignored"}
        readings = "; ".join(
            f"{value} is {names[by_id[value]]} as an id, but its {kind} {shown[value]} is {names[other[value]]}"
            for value in differing[:MAX_NAMED]
        )
        raise DataError(
            f"Label map {source} can be read in two ways, which contradict each other in label space {self.name!r}: {readings}. "
            "Give the label space only the ids or only the colours, whichever this label map was drawn with, or save it as a PNG "
            "whose palette is the label space's."
        )

    def _from_ids(self, raw: np.ndarray, source: str) -> np.ndarray:
        if not self.raw_ids:
            raise DataError(
                f"Label map {source} holds ids, but label space {self.name!r} knows colours only: use label maps in its "
                "colours, or give the classes' ids."
            )
        # mode="clip" sends every larger id to the table's last entry, which is unknown.
        train_ids = self._id_table.take(raw, mode="clip")
        if raw.dtype.kind == "i":
            train_ids[raw < 0] = UNKNOWN
        self._check_known(train_ids, raw, source, "ids", id_ranges(self.raw_ids))
        return train_ids.astype(np.uint8)

    def _from_colours(self, raw: np.ndarray, source: str) -> np.ndarray:
        if not self.raw_colours:
            raise DataError(
                f"Label map {source} is a colour image, but label space {self.name!r} knows ids only: use the dataset's label "
                "maps of ids (single-channel or palette PNG); or, in a label table of your own, give each class its colour in "
                'the field colours:, such as road: {colours: "#804080"}.'
            )
        train_ids = self._look_up_colours(raw)
        self._check_known(train_ids, raw, source, "colours", f"{len(self.raw_colours)} colours")
        return train_ids.astype(np.uint8)

    def _known_colours(self, raw: np.ndarray) -> np.ndarray | None:
        """The train ids, if the label space knows all colours of (height, width, 3) `raw`."""
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
        strays = np.unique(raw[unknown], axis=0).tolist()
        shown = ", ".join(str(tuple(stray) if isinstance(stray, list) else stray) for stray in strays[:MAX_NAMED])
        more = f" and {len(strays) - MAX_NAMED} more" if len(strays) > MAX_NAMED else ""
        raise DataError(
            f"Label map {source} holds the {kind} {shown}{more}, which label space {self.name!r} does not know "
            f"(it knows {known}): {self._remedy(kind)}."
        )

    def _remedy(self, kind: str) -> str:
        if self.name in LABEL_SPACES:
            return "correct the file, or load the dataset with the label space that it was drawn in"
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
    """Ids as integers: a cast alone turns NaN into −9223372036854775808 and 1.7 into 1.

    Raises:
        DataError: `raw` holds NaN, an infinite or fractional number, or no numbers at all.
    """
    if raw.dtype.kind in "iub" and raw.dtype != np.uint64:  # of which numpy's `take` would wrap the largest
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
    """The ids as text with runs drawn together: `0–10, 255`."""
    ids = set(ids)
    starts = sorted(i for i in ids if i - 1 not in ids)
    ends = sorted(i for i in ids if i + 1 not in ids)
    return ", ".join(str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=True))


def _single_band(raw: PIL.Image.Image, greatest: int) -> tuple[PIL.Image.Image, int]:
    """An image of mode 1, L, LA or P as L or P, with the numbers of its file for grey values; and the greatest that may occur."""
    if raw.mode == "P":
        return raw, greatest
    if raw.mode == "1":
        raw, greatest = raw.convert("L"), 1
    elif raw.mode == "LA":
        raw = raw.getchannel("L")
    if greatest == 255:
        return raw, greatest
    return raw.point([(2 * value * greatest + 255) // 510 for value in range(256)]), greatest


def _shown_colours(image: PIL.Image.Image, used: list[int], greatest: int) -> dict[int, Colour]:
    """The colour in which a viewer shows each of the values."""
    if image.mode == "L":
        return {value: ((2 * value * 255 + greatest) // (2 * greatest),) * 3 for value in used}
    palette = image.getpalette("RGB") or []
    palette += [0] * (768 - len(palette))
    return {value: tuple(palette[3 * value : 3 * value + 3]) for value in used}


def _is_complete(reading: dict[int, int | None]) -> bool:
    return bool(reading) and None not in reading.values()


def _colour_codes(colours: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 → (…) int32, one number a colour."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


LABEL_SPACES: dict[str, LabelSpace] = {}
"""Every known label space by name; each dataset's module adds its own."""


def label_space_of_names(names: Iterable[str]) -> LabelSpace:
    """The label space with these class names in this order: a known one, or one of names alone."""
    names = tuple(names)
    for label_space in LABEL_SPACES.values():
        if label_space.names == names:
            return label_space
    ids = {train_id: train_id for train_id in range(len(names))}
    return LabelSpace("unnamed", names, ((0, 0, 0),) * len(names), ids)


def get_label_space(name: str) -> LabelSpace:
    """The label space called `name`; an unknown name is a DataError that lists the known ones."""
    if name not in LABEL_SPACES:
        raise DataError(f"Unknown label space {name!r}; known are {', '.join(sorted(LABEL_SPACES))}.")
    return LABEL_SPACES[name]


def find_label_space(given: str | Path) -> LabelSpace:
    """A registered label space by its name, or that of a label table (.yaml, .yml) or of COCO annotations (.json) by its file."""
    if is_coco_file(str(given)):
        return LabelSpace.from_coco(str(given))
    return LabelSpace.from_yaml(given) if is_label_table(given) else get_label_space(str(given))
