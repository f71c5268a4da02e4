"""A label table for masks of which only the files are known: the ids or colours in them, with names where a file gives some."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import yaml

from ..errors import DataError, first_few
from ..images import Colour
from .class_lists import IGNORED_NAMES, ClassList
from .datasets.labelme import BACKGROUND_LABELS, UNLABELLED
from .label_table import FEWEST_CLASSES, IGNORED, MAX_CLASSES
from .layout import Layout
from .listing import MAX_NAMED
from .mask_numbers import find_differing
from .raw_label_map import RawContent

WHITE = 255  # the object in a binary mask
HARD = 0.9  # of the pixels must be black or white in masks whose other values are soft edges
FEW_VALUES = 8  # fewer values between black and white are classes, as are values that are all small
BACKGROUND = "background"
MOST_VALUES = 256  # ids or colours in all masks together, with those of soft edges; more are no classes
MOST_IN_A_MASK = 64  # ids; datasets with more classes have far fewer in one image
RawValue = int | Colour


@dataclass
class MaskContents:
    """All ids and colours in a folder's masks.

    Attributes:
        files: the number of masks.
        pixels, masks: id or colour → its pixels, and the masks that hold it.
        are_ids: whether the masks hold ids.
        notes: sentences about why their colours are taken, although the files hold ids.
    """

    files: int
    are_ids: bool
    notes: list[str] = field(default_factory=list)
    pixels: Counter[RawValue] = field(default_factory=Counter)
    masks: Counter[RawValue] = field(default_factory=Counter)

    @classmethod
    def of(cls, contents: Iterable[tuple[str, RawContent]], by_colour: bool = False) -> "MaskContents":
        """Adds the contents of files up.

        Args:
            contents: location and content of each.
            by_colour: take the colours also where the files hold ids, as palette PNGs do.

        Raises:
            DataError: some masks have only ids, others only colours; the numbers in the files contradict each other, and their
                colours cannot be taken; or there are too many colours for classes.
        """
        contents = list(contents)
        without_ids = [location for location, content in contents if content.ids is None]
        without_colours = [location for location, content in contents if content.colours is None]
        if without_ids and without_colours:
            raise DataError(
                f"Some masks hold colours ({first_few(without_ids, MAX_NAMED)}) and others ids of more than 8 bits "
                f"({first_few(without_colours, MAX_NAMED)}): save all of them in one way."
            )
        by_colour = bool(without_ids) or (by_colour and not without_colours)
        differing = None if by_colour else find_differing(contents)
        if differing is not None and (without_colours or not differing.is_clear):
            raise DataError(
                f"{differing}, so it is not known which of the masks hold ids: save all of them in one way, as grey images of 8 "
                "bits or with one palette."
            )
        are_ids = not by_colour and differing is None
        added = cls(len(contents), are_ids)
        if differing is not None:
            added.notes.append(f"{differing}, so the masks' colours are the classes, not the numbers in the files.")
        for _, content in contents:
            found = content.ids if are_ids else content.colours
            added.pixels.update(found)
            added.masks.update(found.keys())
        most = max(contents, key=lambda entry: len(entry[1].ids if are_ids else entry[1].colours))
        many = any(_are_levels(content.ids) for _, content in contents) if are_ids else len(added.pixels) > MAX_CLASSES
        if len(added.pixels) > MOST_VALUES or (many and not _soft_edges(added)):
            raise no_classes(f"{len(added.pixels)} {'ids' if are_ids else 'colours'}", most[0])
        return added

    def share(self, value: RawValue) -> float:
        """The share of all pixels, 0 to 1."""
        return self.pixels[value] / max(1, self.pixels.total())


def _are_levels(ids: Iterable[int]) -> bool:
    """Whether the ids of one mask are grey levels: too many for classes, or several near black and several near white."""
    ids = list(ids)
    return len(ids) > MOST_IN_A_MASK or min(sum(i < 56 for i in ids), sum(200 <= i <= WHITE for i in ids)) > FEW_VALUES


def no_classes(values: str, location: str) -> DataError:
    return DataError(
        f"The masks hold {values}, for example {location}, which are no classes: they were resized or drawn with soft edges, or "
        "are images. Save masks without interpolation, as PNG."
    )


@dataclass
class ProposedTable:
    """The classes of a label table that is to be written.

    Attributes:
        names: id or colour in the masks → the class's name.
        ignored: ids or colours that are not scored.
        unseen: the same for classes of the list that occur in no mask.
        notes: sentences about what was guessed.
        labelme: label of a shape in labelme's files → id; None if the masks are images.
    """

    contents: MaskContents
    names: dict[RawValue, str]
    ignored: list[RawValue]
    unseen: dict[RawValue, str]
    notes: list[str]
    labelme: dict[str, int] | None = None

    def to_yaml(self, name: str, layout: Layout, val_fraction: float | None, seed: int) -> str:
        """The label table's text, with a comment about each class."""
        lines = [f"# {note}" for note in self.notes]
        lines += [
            f"name: {_scalar(name)}",
            "names:  # the classes in the order of their train ids; give them the names that you want",
        ]
        entries = [(f"  {_scalar(given)}: {_raw_text(value)}", self._seen(value)) for value, given in self.names.items()]
        width = max(len(entry) for entry, _ in entries)
        lines += [f"{entry:<{width}}  # {comment}" for entry, comment in entries]
        lines += [f"  # {_scalar(given)}: {_raw_text(value)}  # in no mask" for value, given in self.unseen.items()]
        if self.contents.are_ids or self.ignored:
            lines.append(f"ignore: [{', '.join(map(_yaml_value, self.ignored))}]")
        if self.labelme is not None:
            entries = ", ".join(f"{_scalar(label)}: {raw_id}" for label, raw_id in self.labelme.items())
            lines.append("# The labels of labelme's shapes, and the ids that they are drawn with; pixels without a shape are 0.")
            lines.append(f"labelme: {{{entries}}}")
        for field_name in ("images", "labels", "image_suffix", "label_suffix", "image_prefix", "label_prefix"):
            value = getattr(layout, field_name)
            if value is not None:
                lines.append(f"{field_name}: {_scalar(value or '.')}")
        if val_fraction is not None:
            lines.append("# Chosen by the files' names and the seed. Frames of one video are alike: divide those yourself.")
            lines += [f"val_fraction: {val_fraction}", f"val_seed: {seed}"]
        return "\n".join(lines) + "\n"

    def _seen(self, value: RawValue) -> str:
        contents = self.contents
        return f"{100 * contents.share(value):.2f} % of the pixels, in {contents.masks[value]} of {contents.files} masks"


def propose_table(contents: MaskContents, classes: ClassList | None) -> ProposedTable:
    """Names and ignored ids for the contents of masks.

    Raises:
        DataError: there are fewer than two classes.
    """
    notes = list(contents.notes)
    if classes is not None and _lacks_background(contents, classes):
        count = len(classes.by_id)
        notes.append(
            f"{classes.source} has {count} name{'s' if count > 1 else ''} and no background, and the masks have one class more: "
            "0 is taken for the background, and the names for the others. If that is wrong, correct the names below."
        )
        classes = replace(classes, by_id={0: BACKGROUND, **{raw_id + 1: name for raw_id, name in classes.by_id.items()}})
    listed = {} if classes is None else _listed(contents, classes)
    notes += [f"The names are those of {classes.source}." for _ in listed][:1]
    place = {value: number for number, value in enumerate(listed)}
    values = sorted(contents.pixels, key=lambda value: (place.get(value, len(place)), value))  # the list's order counts
    ignored: list[RawValue] = []
    if soft := _soft_edges(contents, listed):
        values = [value for value in values if value not in soft]
        levels = range(1, WHITE) if contents.are_ids else [(level,) * 3 for level in range(1, WHITE)]
        ignored = [level for level in levels if level not in values]
        share = sum(contents.share(value) for value in soft)
        notes.append(
            f"Masks of 0 and 255 with soft edges: the values between them ({100 * share:.2f} % of the pixels) are ignored."
        )
    elif contents.are_ids and IGNORED not in listed and values != [0, WHITE]:
        ignored = [IGNORED]
        values = [value for value in values if value != IGNORED]
        if IGNORED in contents.pixels:
            notes.append("255 is taken for ignored pixels, as in most datasets; if it is a class, move it to names.")
    void = [value for value in values if listed.get(value, "").casefold() in IGNORED_NAMES]
    if void and len(values) - len(void) >= FEWEST_CLASSES:  # of two classes, one called unlabelled is the background
        ignored, values = sorted({*void, *ignored}), [value for value in values if value not in void]
        called = first_few(dict.fromkeys(listed[value] for value in void))
        notes.append(f"{called} in {classes.source} is taken for ignored pixels; if it is a class, move it to names.")
    names: dict[RawValue, str] = {}
    for value in values:
        names[value] = _unique(listed.get(value) or _placeholder(value, values), names.values())
    unlisted = [value for value in values if listed and value not in listed]
    if unlisted:
        notes.append(f"{classes.source} does not name {first_few(map(_raw_text, unlisted))}.")
    elif not listed:
        kind = "ids" if contents.are_ids else "colours"
        lacking = "No file names the classes" if classes is None else f"{classes.source} does not name {kind}"
        notes.append(f"{lacking}: the names below are to be replaced.")
    if len(names) < FEWEST_CLASSES:
        raise DataError(
            f"The {contents.files} masks hold one class only ({first_few(map(_raw_text, contents.pixels))}), and two are the "
            "fewest: are these the masks?"
        )
    unseen = {value: _unique(given, names.values()) for value, given in listed.items() if value not in contents.pixels}
    return ProposedTable(contents, names, ignored, unseen, notes)


def _lacks_background(contents: MaskContents, classes: ClassList) -> bool:
    """Whether a list of names has only the objects of masks in which 0 is the background, as lists for detectors have."""
    count, names = len(classes.by_id), {name.casefold().strip("_") for name in classes.by_id.values()}
    if not classes.in_order or not count or names & {BACKGROUND, *(name.strip("_") for name in IGNORED_NAMES)}:
        return False
    if _is_binary(contents):
        return count == 1
    return contents.are_ids and max(value for value in contents.pixels if value != IGNORED or len(contents.pixels) == 1) == count


def _is_binary(contents: MaskContents) -> bool:
    """Whether the masks are black and white, perhaps with soft edges."""
    return {_grey_level(value) for value in contents.pixels} == {0, WHITE} or bool(_soft_edges(contents))


def _listed(contents: MaskContents, classes: ClassList) -> dict[RawValue, str]:
    """Id or colour → name in the list. In masks of 0 and 255, a list's second class, which has the id 1, is 255."""
    listed = classes.by_id if contents.are_ids else classes.by_colour
    if not _is_binary(contents) or classes.by_id.keys() != {0, 1}:
        return dict(listed)
    levels = {WHITE * raw_id: name for raw_id, name in classes.by_id.items()}
    return levels if contents.are_ids else {(level,) * 3: name for level, name in levels.items()}


def ids_of_labels(labels: Iterable[str], classes: ClassList | None) -> tuple[dict[str, int], ClassList]:
    """Ids for the labels of labelme's shapes: 0 for the background, 255 for what is to be ignored, 1, 2, … for the others.

    Args:
        labels: as they stand in the files.
        classes: a file of class names, whose order counts; the labels that it does not name follow in alphabetical order.

    Returns:
        Label → id, and the names of the ids.

    Raises:
        DataError: there are more labels than a label map has ids.
    """
    labels = sorted(set(labels))
    listed = [name for name in (classes.by_id.values() if classes else ()) if name in labels]
    ids: dict[str, int] = {}
    named = {UNLABELLED: BACKGROUND}
    for label in dict.fromkeys([*listed, *labels]):
        if label.casefold() in BACKGROUND_LABELS:
            ids[label] = UNLABELLED
        elif label.casefold() in IGNORED_NAMES:
            ids[label] = IGNORED
        else:
            ids[label] = len(named)
            named[len(named)] = label
    if len(named) > MAX_CLASSES:
        raise DataError(f"labelme's files have {len(ids)} labels ({first_few(ids, MAX_NAMED)}), and {MAX_CLASSES} are the most.")
    return ids, ClassList(classes.source if listed else "labelme's files", by_id=named)


def notes_on_labels(ids: Mapping[str, int]) -> list[str]:
    """Sentences about labels of labelme's shapes that may be meant otherwise: ignored ones, and those that differ by case."""
    notes = []
    if ignored := [label for label, raw_id in ids.items() if raw_id == IGNORED]:
        notes.append(
            f"Shapes with the label {first_few(ignored)} are ignored pixels; if it is a class, give it an id of its own."
        )
    spellings: dict[str, list[str]] = {}
    for label in ids:
        spellings.setdefault(label.strip().casefold(), []).append(label)
    for labels in spellings.values():
        if len({ids[label] for label in labels}) > 1:
            notes.append(f"{' and '.join(map(repr, labels))} are different classes; if they are one, give them one id.")
    return notes


def _soft_edges(contents: MaskContents, listed: Container[RawValue] = ()) -> list[RawValue]:
    """The values between black and white that no list names, if nearly all pixels are black or white."""
    level_of = {value: _grey_level(value) for value in contents.pixels}
    if None in level_of.values():
        return []
    between = [value for value, level in level_of.items() if level not in (0, WHITE) and value not in listed]
    if len(between) < FEW_VALUES or not WHITE // 2 < max(level_of[value] for value in between) < WHITE:
        return []
    hard = sum(contents.share(value) for value, level in level_of.items() if level in (0, WHITE))
    return between if hard >= HARD else []


def _grey_level(value: RawValue) -> int | None:
    if isinstance(value, int):
        return value
    return value[0] if value[0] == value[1] == value[2] else None


def _placeholder(value: RawValue, values: list[RawValue]) -> str:
    if len(values) == 2:
        return BACKGROUND if value in (0, (0, 0, 0)) else "object"
    return f"class_{value}" if isinstance(value, int) else "class_{:02x}{:02x}{:02x}".format(*value)


def _unique(name: str, taken: Iterable[str]) -> str:
    taken, number, unique = set(taken), 2, name
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


def _raw_text(value: RawValue) -> str:
    return _yaml_value(value) if isinstance(value, int) else f"{{colours: {_yaml_value(value)}}}"


def _yaml_value(value: RawValue) -> str:
    return str(value) if isinstance(value, int) else f"[{', '.join(map(str, value))}]"


def _scalar(text: str) -> str:
    """Text as YAML has it on one line, in quotes where YAML would read something else."""
    plain = re.fullmatch(r"[A-Za-z_][\w -]*\w|[A-Za-z_]", text) and yaml.safe_load(text) == text
    return text if plain else yaml.safe_dump(text, default_style='"', width=10**6, allow_unicode=True).strip()
