"""Label tables: the YAML file in which people say what the ids in their own label maps mean.

For label maps that hold 0, 1 and 2, and 255 where nothing is scored, one line will do:

    names: [road, car, person]

Everything that can be said:

    name: car_park                            # of the label space; else the file's name, or its folder's for labels.yaml
    names:                                    # the classes in the order of their train ids
      road: 7                                 # the id in the label maps
      car: [26, 27]                           # several ids that are one class
      person: {ids: 24, colours: [220, 20, 60]}
      lawn: {colours: ["#00ff00", "#00aa00"]} # label maps coded by colour; in pictures the first colour is shown
    ignore: [0, 255, "#000000"]               # ids and colours that are not scored; 255 where nothing is said
    images: photos/{split}                    # folders of pictures and of label maps, both or none of them (see folder.py)
    labels: masks/{split}

A colour is `[red, green, blue]` (0–255) or `"#rrggbb"` in quotes. Classes without one are shown in a palette that colour-blind
people can tell apart. An id or a colour that the table does not name is an error when a label map that holds it is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
import yaml.constructor

from ..errors import DataError
from .tree import location_name, read_location

Colour = tuple[int, int, int]

FIELDS = ("name", "names", "ignore", "images", "labels")
CLASS_FIELDS = ("ids", "colours")
USUAL_NAME = "labels.yaml"
SPLIT = "{split}"
IGNORED = 255
MAX_CLASSES = 255
LARGEST_ID = 65535  # of 16-bit PNGs

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), without black, which stands for "no class".
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Shares of white (positive) and of black (negative) that are mixed into every further seven colours.
TINTS = (0.0, 0.5, -0.5, 0.75, -0.7)


def default_colours(count: int) -> tuple[Colour, ...]:
    """Okabe and Ito's seven colours, then the same lighter and darker; after 35 they begin again."""
    return tuple(_tinted(OKABE_ITO[k % 7], TINTS[k // 7 % len(TINTS)]) for k in range(count))


def _tinted(colour: Colour, tint: float) -> Colour:
    towards = 255 if tint > 0 else 0
    return tuple(round(channel + abs(tint) * (towards - channel)) for channel in colour)


@dataclass
class LabelTable:
    """What a label table says.

    Attributes:
        name: of the label space.
        names, colours: of the classes, in the order of their train ids; colours to show, RGB 0–255.
        raw_ids, raw_colours: id and colour in the label maps → train id, or 255 for what is not scored.
        images, labels: folders of pictures and of label maps, with `{split}` in each; None where the table names none.
    """

    name: str
    names: list[str] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    raw_ids: dict[int, int] = field(default_factory=dict)
    raw_colours: dict[Colour, int] = field(default_factory=dict)
    images: str | None = None
    labels: str | None = None


def is_label_table(given: str | Path) -> bool:
    """Whether `given` names a YAML file (rather than a registered label space)."""
    return location_name(str(given)).endswith((".yaml", ".yml"))


def read_label_table(path: str | Path) -> LabelTable:
    """Reads a label table, which may lie in an archive (see tree.py).

    Raises:
        DataError: the file is missing or no YAML, or something in it cannot be; the message names the line.
    """
    source = str(path)
    try:
        text = read_location(source).decode("utf-8")
    except OSError as error:
        raise DataError(f"The label table {source} cannot be read ({error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"The label table {source} is no text in UTF-8 ({error}).") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            raise DataError(f"The label table {source} is empty: it needs at least names: [first class, second class].")
        return _Reader(source).table(root)
    except yaml.YAMLError as error:
        raise DataError(f"The label table {source} is no YAML: {' '.join(str(error).split())}") from error


class _Reader:
    """Reads YAML's nodes rather than values: only they know their lines, and that a key stands twice."""

    def __init__(self, source: str):
        self.source = source
        self.result = LabelTable(_usual_name(source))

    def table(self, root: yaml.Node) -> LabelTable:
        fields = {self._known(key, FIELDS): value for key, value in self._entries(root, "a label table")}
        if "names" not in fields:
            raise self._wrong(root, "the field names is missing: give the classes, for example names: [road, car, person].")
        if "name" in fields:
            self.result.name = self._text(fields["name"], "name")
        self._read_names(fields["names"])
        self._read_ignored(fields.get("ignore"))
        self._read_folders(root, fields)
        return self.result

    def _read_names(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.SequenceNode):
            entries = [(item, None) for item in node.value]
        else:
            entries = self._entries(node, "names (a list of classes, or class: id)")
        for train_id, (key, value) in enumerate(entries):
            if value is not None and type(self._value(key)) is int:
                raise self._wrong(key, f"{key.value}: comes before its class: write the class first, such as road: {key.value}.")
            name = self._text(key, "a class name")
            if name in self.result.names:
                raise self._wrong(key, f"the class {name!r} stands twice.")
            if train_id == MAX_CLASSES:
                raise self._wrong(key, f"{name!r} is one class too many: there can be {MAX_CLASSES}.")
            self.result.names.append(name)
            self.result.colours.append(default_colours(train_id + 1)[train_id])
            if value is None:
                self._claim_id(key, train_id, train_id)
            else:
                self._read_class(name, value, train_id)
        if not self.result.names:
            raise self._wrong(node, "names is empty: give the classes, for example names: [road, car, person].")

    def _read_class(self, name: str, node: yaml.Node, train_id: int) -> None:
        said = {"ids": node}
        if isinstance(node, yaml.MappingNode):
            said = {self._known(key, CLASS_FIELDS): value for key, value in self._entries(node, f"class {name!r}")}
        if not said:
            raise self._wrong(node, f"the class {name!r} has neither ids nor colours: give the id that it has in the label maps.")
        for item in _items(said["ids"]) if "ids" in said else ():
            self._claim_id(item, self._id(item, f"the class {name!r}"), train_id)
        colours = [(item, self._colour(item)) for item in _colour_items(said["colours"])] if "colours" in said else []
        for item, colour in colours:
            self._claim_colour(item, colour, train_id)
        if colours:
            self.result.colours[train_id] = colours[0][1]

    def _read_ignored(self, node: yaml.Node | None) -> None:
        if node is None:
            self.result.raw_ids.setdefault(IGNORED, IGNORED)
            return
        for item in _items(node):
            value = self._value(item)
            if isinstance(value, str | list):
                self._claim_colour(item, self._colour(item), IGNORED)
            else:
                self._claim_id(item, self._id(item, "ignore"), IGNORED)

    def _read_folders(self, root: yaml.Node, fields: dict[str, yaml.Node]) -> None:
        if ("images" in fields) != ("labels" in fields):
            raise self._wrong(root, "images and labels belong together: name both folders, or none.")
        if "images" in fields:
            self.result.images = self._folder(fields["images"], "images")
            self.result.labels = self._folder(fields["labels"], "labels")

    def _folder(self, node: yaml.Node, what: str) -> str:
        folder = self._text(node, what).removesuffix("/").removeprefix("./")
        if folder.count(SPLIT) != 1:
            raise self._wrong(node, f"{what}: {folder!r} must hold {SPLIT} once, where the split's name stands.")
        if folder.startswith("/") or ".." in folder.split("/"):
            raise self._wrong(node, f"{what}: {folder!r} leads outside the data folder: give a path within it.")
        return folder

    def _claim_id(self, node: yaml.Node, raw_id: int, train_id: int) -> None:
        if raw_id in self.result.raw_ids:
            raise self._wrong(node, f"the id {raw_id} belongs to {self._owner(self.result.raw_ids[raw_id])} already.")
        self.result.raw_ids[raw_id] = train_id

    def _claim_colour(self, node: yaml.Node, colour: Colour, train_id: int) -> None:
        if colour in self.result.raw_colours:
            raise self._wrong(node, f"the colour {colour} belongs to {self._owner(self.result.raw_colours[colour])} already.")
        self.result.raw_colours[colour] = train_id

    def _owner(self, train_id: int) -> str:
        return "ignore" if train_id == IGNORED else f"the class {self.result.names[train_id]!r}"

    def _entries(self, node: yaml.Node, what: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, f"{what} must be lines of the form field: value.")
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise self._wrong(key, f"{key.value!r} stands twice.")
            seen.add(key.value)
            yield key, value

    def _known(self, key: yaml.Node, known: tuple[str, ...]) -> str:
        if key.value not in known:
            raise self._wrong(key, f"unknown field {key.value!r}; known: {', '.join(known)}.")
        return key.value

    def _text(self, node: yaml.Node, what: str) -> str:
        value = self._value(node)
        if not isinstance(value, str) or not value:
            raise self._wrong(node, f"{what} must be text, but is {value!r}: put it in quotes.")
        return value

    def _id(self, node: yaml.Node, what: str) -> int:
        value = self._value(node)
        if type(value) is not int or not 0 <= value <= LARGEST_ID:
            raise self._wrong(node, f"{what}: an id is a whole number from 0 to {LARGEST_ID}, not {value!r}.")
        return value

    def _colour(self, node: yaml.Node) -> Colour:
        value = self._value(node)
        if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
            return tuple(bytes.fromhex(value[1:]))
        if isinstance(value, list) and [type(channel) for channel in value] == [int] * 3 and 0 <= min(value) <= max(value) <= 255:
            return tuple(value)
        raise self._wrong(
            node, f'a colour is [red, green, blue], each from 0 to 255, or "#rrggbb" (the quotes are needed), not {value!r}.'
        )

    def _value(self, node: yaml.Node) -> object:
        return yaml.constructor.SafeConstructor().construct_document(node)

    def _wrong(self, node: yaml.Node, message: str) -> DataError:
        return DataError(f"Label table {self.source}, line {node.start_mark.line + 1}: {message}")


def _usual_name(source: str) -> str:
    name = location_name(source)
    return Path(source).absolute().parent.name if name == USUAL_NAME else Path(name).stem


def _items(node: yaml.Node) -> list[yaml.Node]:
    """One or several: the list's entries, or the node alone."""
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _colour_items(node: yaml.Node) -> list[yaml.Node]:
    """A list that begins with a number is one colour."""
    if isinstance(node, yaml.SequenceNode) and node.value and node.value[0].tag == "tag:yaml.org,2002:int":
        return [node]
    return _items(node)
