"""Label tables: YAML files in which users define the meaning of the ids in their own label maps.

For label maps that hold 0, 1 and 2, and 255 for ignored pixels, one line is enough:

    names: [road, car, person]

All fields:

    name: car_park                            # the label space; default: the name of the file, or of its folder for labels.yaml
    names:                                    # the classes in the order of their train ids
      road: 7                                 # the id in the label maps
      car: [26, 27]                           # several ids that are one class
      person: {ids: 24, colours: [220, 20, 60]}
      lawn: {colours: ["#00ff00", "#00aa00"]} # label maps coded by colour; the first colour is used for display
    ignore: [0, 255, "#000000"]               # ids and colours that are not scored; default: 255 if a class has an id
    images: photos/{split}                    # folders of images and of label maps, both or neither (see datasets/folder.py)
    labels: masks/{split}                     # in "{split}/*/rgb" and "{split}/*/gt", `*` is a folder of any name, once in each
    image_suffix: _sat                        # the ends of the file names: x_sat.jpg and x_mask.png are a pair
    label_suffix: _mask
    image_prefix: img                         # the beginnings of the file names: img01.jpg and mask01.png are a pair
    label_prefix: mask
    labelme: {road: 7, "street car": 26}      # labels of labelme's shapes → ids; label maps are drawn from its JSON files
    val_fraction: 0.2                         # hold out this share of the images as the split val ...
    val_seed: 0                               # ... chosen by their names and this number
    untinted: [lawn]                          # classes that overlays show without colour; default: one called background

A colour is `[red, green, blue]` (0–255) or `"#rrggbb"` in quotes. Classes without a colour get one from a palette for
colour-blind people. An id or a colour that is not in the table is an error when a label map with it is read.

A table has at least two classes. In a binary task one of them is the background: `names: [background, person]` if the masks hold
0 and 1, `names: {background: 0, person: 255}` if they hold 0 and 255.

CVAT's `labelmap.txt` (a line `label:red,green,blue:parts:actions` for each class) is a label table too. `names: labelmap.txt`
takes the classes from the one beside the YAML file, or from the one in an archive there.
"""

import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
import yaml.constructor

from ..errors import DataError, did_you_mean
from ..images import Colour
from .archive import DataFolder, location_name, read_text, split_location
from .limits import MEBIBYTE
from .palette import default_palette

FIELDS = (
    "name", "names", "ignore", "images", "labels", "image_suffix", "label_suffix", "image_prefix", "label_prefix", "labelme",
    "val_fraction", "val_seed", "untinted",
)  # fmt: skip
CLASS_FIELDS = ("ids", "colours")
USUAL_NAME = "labels.yaml"
CVAT_NAME = "labelmap.txt"
CVAT_LINE = re.compile(r"(?:(?P<name>.+?): *(?P<colour>\d+ *, *\d+ *, *\d+)|(?P<uncoloured>[^:]+):)(?::[^:]*){0,2}")
MAX_BYTES = MEBIBYTE // 4  # a table of 255 classes with many ids and colours takes a tenth of it
MAX_ENTRIES = 50_000  # values in a label table, including those that aliases repeat
DEEPEST = 20  # levels of lists and mappings; a table needs four
# The loader of libyaml, if PyYAML has it, is ten times as fast.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
SPLIT, ANY = "{split}", "*"  # in folders: the split's name, and a name that is the same for images and label maps
IGNORED = 255
MAX_CLASSES = 255
FEWEST_CLASSES = 2
LARGEST_ID = 65535  # of 16-bit PNGs
Owner = TypeVar("Owner")  # a class, by its train id or by its name
Error = Callable[[str], DataError]  # message → the error that says where


@dataclass
class LabelTable:
    """The content of a label table.

    Attributes:
        name: the label space's name.
        names, colours: the classes' names and display colours (RGB, 0–255), in the order of their train ids.
        raw_ids, raw_colours: id and colour in the label maps → train id, or 255 if it is not scored.
        images, labels: folders of images and of label maps, with `{split}` in both or in neither, and perhaps with `*` once in
            each for any name; None if not given.
        image_suffix, label_suffix: the ends of the file names, before the ending; None if not given.
        image_prefix, label_prefix: the beginnings of the file names; None if not given.
        labelme: label of a shape in labelme's files → id; None if the label maps are images.
        val_fraction: the share of the images that is held out as the split val; None for no such split.
        val_seed: the seed for the choice of these images.
        untinted: names of the classes that overlays show without colour; None if not given.
    """

    name: str
    names: list[str] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    raw_ids: dict[int, int] = field(default_factory=dict)
    raw_colours: dict[Colour, int] = field(default_factory=dict)
    images: str | None = None
    labels: str | None = None
    image_suffix: str | None = None
    label_suffix: str | None = None
    image_prefix: str | None = None
    label_prefix: str | None = None
    labelme: dict[str, int] | None = None
    val_fraction: float | None = None
    val_seed: int = 0
    untinted: tuple[str, ...] | None = None


def is_label_table(given: str | Path) -> bool:
    """Whether `given` is the path of a label table, rather than the name of a registered label space."""
    name = location_name(str(given))
    return name.endswith((".yaml", ".yml")) or name == CVAT_NAME


def read_label_table(path: str | Path) -> LabelTable:
    """Reads a label table, which may be in an archive (see archive.py).

    Raises:
        DataError: the file is missing, too long, not YAML (or not CVAT's format), or invalid; the message names the line.
    """
    source = str(path)
    text = read_text(source, MAX_BYTES)
    if location_name(source) == CVAT_NAME:
        return _read_cvat(text, source)
    try:
        _check_nesting(text, source)
        root = yaml.compose(text, Loader=LOADER)
        if root is None:
            raise DataError(f"The label table {source} is empty: it needs at least names: [first class, second class].")
        _check_aliases(root, source)
        return _Reader(source).table(root)
    except yaml.YAMLError as error:
        raise DataError(f"The label table {source} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise DataError(
            f"The label table {source} is nested too deeply: a class, its ids and colours need three levels."
        ) from error


def _check_nesting(text: str, source: str) -> None:
    """Raises a DataError for very deeply nested lists: PyYAML's composer would crash the process."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise DataError(
                f"The label table {source}, line {event.start_mark.line + 1}, is nested more than {DEEPEST} levels deep: a "
                "class, its ids and its colours need four."
            )


def _check_aliases(root: yaml.Node, source: str) -> None:
    """Raises a DataError for too many values: with aliases (`*x`) inside aliases, a few lines can stand for billions."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = MAX_ENTRIES + 1  # in case the node contains itself
            below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            counts[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(map(count, below))
        return counts[id(node)]

    if count(root) > MAX_ENTRIES:
        raise DataError(
            f"The label table {source} stands for more than {MAX_ENTRIES:,} values, or contains itself: name only ids that the "
            "label maps hold, and write aliases (*name) out."
        )


def _read_cvat(text: str, source: str) -> LabelTable:
    """Reads CVAT's table: the classes in the order of the lines. If no class has a colour, the line numbers are the ids."""
    table = LabelTable(_usual_name(source))
    coloured = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue

        def error(message: str, number: int = number) -> DataError:
            return DataError(f"Label table {source}, line {number}: {message}")

        match = CVAT_LINE.fullmatch(line.strip())
        if match is None:
            raise error(f"{line[:80]!r} is not of CVAT's form label:red,green,blue:parts:actions.")
        name, train_id = match["name"] or match["uncoloured"], len(table.names)
        if name in table.names:
            raise error(f"the class {name!r} is there twice.")
        if train_id == MAX_CLASSES:
            raise error(f"{name!r} is one class too many: there can be {MAX_CLASSES}.")
        table.names.append(name)
        if match["colour"]:
            colour = tuple(map(int, match["colour"].split(",")))
            assign(table.raw_colours, colour, train_id, lambda train_id: f"the class {table.names[train_id]!r}", error)
            coloured.append(name)
        table.colours.append(colour if match["colour"] else default_palette(train_id + 1)[train_id])
    if coloured and coloured != table.names:
        without = next(name for name in table.names if name not in coloured)
        raise DataError(f"Label table {source}: {coloured[0]!r} has a colour and {without!r} has none: give all classes one.")
    if not coloured:
        table.raw_ids = {train_id: train_id for train_id in range(len(table.names))} | {IGNORED: IGNORED}
    _check_class_count(table, f"Label table {source}: ")
    return table


def assign(owners: dict[Any, Owner], value: int | Colour, owner: Owner, called: Callable[[Owner], str], error: Error) -> None:
    """Enters the class, or what else, that an id or colour stands for.

    Args:
        owners: id or colour → what it stands for.
        called: how a message calls an owner.
        error: makes an error, which says where, of a message.

    Raises:
        DataError: the id or colour has an owner already, or the colour a channel out of range.
    """
    is_colour = isinstance(value, tuple)
    if is_colour and not 0 <= min(value) <= max(value) <= 255:
        raise error(f"a colour is red,green,blue, each from 0 to 255, not {','.join(map(str, value))}.")
    if value in owners:
        kind = "colour" if is_colour else "id"
        raise error(f"the {kind} {value} belongs to {called(owners[value])} already: correct one of the two.")
    owners[value] = owner


def _check_class_count(table: LabelTable, where: str) -> None:
    if len(table.names) < FEWEST_CLASSES:
        only = table.names[0] if table.names and table.names[0] != "background" else "person"
        raise DataError(
            f"{where}there {'is one class' if table.names else 'are no classes'}, and two are the fewest. A binary task has the "
            f"background as a class of its own: names: [background, {only}] where the masks hold 0 and 1, "
            f"names: {{background: 0, {only}: 255}} where they hold 0 and 255."
        )


class _Reader:
    """Reads YAML nodes rather than values, because only nodes have line numbers and show repeated keys."""

    def __init__(self, source: str):
        self.source = source
        self.result = LabelTable(_usual_name(source))

    def table(self, root: yaml.Node) -> LabelTable:
        fields = {self._known_field(key, FIELDS): value for key, value in self._entries(root, "a label table")}
        if "names" not in fields:
            raise self._error(root, "the field names is missing: give the classes, for example names: [road, car, person].")
        if "name" in fields:
            self.result.name = self._text(fields["name"], "name")
        if self._is_cvat(fields["names"]):
            self._read_cvat_classes(fields["names"])
        else:
            self._read_names(fields["names"])
        if not self.result.names:
            raise self._error(fields["names"], "names is empty: give the classes, for example names: [road, car, person].")
        _check_class_count(self.result, self._where(fields["names"]))
        self._read_ignored(fields.get("ignore"))
        self._read_folders(root, fields)
        for name in ("image_suffix", "label_suffix", "image_prefix", "label_prefix"):
            if name in fields:
                setattr(self.result, name, self._affix(fields[name], name))
        if "labelme" in fields:
            entries = self._entries(fields["labelme"], "labelme")
            self.result.labelme = {key.value: self._id(value, f"labelme: {key.value!r}") for key, value in entries}
        self._read_val(fields)
        if "untinted" in fields:
            self.result.untinted = tuple(self._class_name(item) for item in _items(fields["untinted"]))
        return self.result

    def _class_name(self, node: yaml.Node) -> str:
        name = self._text(node, "untinted")
        if name not in self.result.names:
            raise self._error(node, f"untinted: there is no class {name!r}{did_you_mean(name, self.result.names)}.")
        return name

    def _is_cvat(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.value == CVAT_NAME

    def _read_cvat_classes(self, node: yaml.Node) -> None:
        beside = read_label_table(self._cvat_location(node))
        self.result.names, self.result.colours = beside.names, beside.colours
        self.result.raw_colours = beside.raw_colours
        # Only the field `ignore` decides about 255.
        self.result.raw_ids = {raw_id: train_id for raw_id, train_id in beside.raw_ids.items() if train_id != IGNORED}

    def _cvat_location(self, node: yaml.Node) -> str:
        """The location of labelmap.txt: beside this table, else in the data folder or an archive there."""
        file, member = split_location(self.source)
        folder = PurePosixPath((member or "").replace("\\", "/").lstrip("/")).parent
        data_folder = DataFolder(Path(file).parent)
        if unpacked := data_folder.location(str(folder / CVAT_NAME)) or data_folder.location(CVAT_NAME):
            return unpacked
        packed = [data_folder.location(f"{top}/{CVAT_NAME}") for top in data_folder.packed_folders()]
        found = [location for location in packed if location is not None]
        if not found:
            message = f"there is no {CVAT_NAME} in {data_folder.root}, nor in an archive there: put it beside the table."
            raise self._error(node, message)
        if len(found) > 1:
            raise self._error(node, f"there are {' and '.join(found)}: put the right one beside the table.")
        return found[0]

    def _affix(self, node: yaml.Node, what: str) -> str:
        affix = self._text(node, what)
        if what.endswith("_suffix") and ("/" in affix or "." in affix):
            raise self._error(node, f"{what}: {affix!r} must be the end of a name before its ending (_mask in x_mask.png).")
        if "/" in affix:
            raise self._error(node, f"{what}: {affix!r} must be the beginning of a name, without folders (mask_ in mask_x.png).")
        return affix

    def _read_val(self, fields: dict[str, yaml.Node]) -> None:
        if "val_fraction" in fields:
            fraction = self._value(fields["val_fraction"])
            if type(fraction) is not float or not 0 < fraction < 1:
                raise self._error(
                    fields["val_fraction"], f"val_fraction is a share between 0 and 1, such as 0.2, not {_shown(fraction)}."
                )
            self.result.val_fraction = fraction
        if "val_seed" in fields:
            seed = self._value(fields["val_seed"])
            if type(seed) is not int or self.result.val_fraction is None:
                raise self._error(fields["val_seed"], "val_seed is a whole number, and belongs to val_fraction.")
            self.result.val_seed = seed

    def _read_names(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.SequenceNode):
            entries = [(item, None) for item in node.value]
        else:
            entries = self._entries(node, "names (a list of classes, or class: id)")
        for train_id, (key, value) in enumerate(entries):
            if value is not None and type(self._value(key)) is int:
                raise self._error(key, f"{key.value}: comes before its class: write the class first, such as road: {key.value}.")
            name = self._text(key, "a class name")
            if name in self.result.names:
                raise self._error(key, f"the class {name!r} is there twice.")
            if train_id == MAX_CLASSES:
                raise self._error(key, f"{name!r} is one class too many: there can be {MAX_CLASSES}.")
            self.result.names.append(name)
            self.result.colours.append(default_palette(train_id + 1)[train_id])
            if value is None:
                self._assign_id(key, train_id, train_id)
            else:
                self._read_class(name, value, train_id)

    def _read_class(self, name: str, node: yaml.Node, train_id: int) -> None:
        fields = {"ids": node}
        if isinstance(node, yaml.MappingNode):
            fields = {self._known_field(key, CLASS_FIELDS): value for key, value in self._entries(node, f"class {name!r}")}
        if not fields:
            raise self._error(node, f"the class {name!r} has neither ids nor colours: give the id that it has in the label maps.")
        for item in _items(fields["ids"]) if "ids" in fields else ():
            self._assign_id(item, self._id(item, f"the class {name!r}"), train_id)
        colours = [(item, self._colour(item)) for item in _colour_items(fields["colours"])] if "colours" in fields else []
        for item, colour in colours:
            self._assign_colour(item, colour, train_id)
        if colours:
            self.result.colours[train_id] = colours[0][1]

    def _read_ignored(self, node: yaml.Node | None) -> None:
        if node is None:
            # With an id in a table of colours, palette indices and grey values would be taken for ids.
            if self.result.raw_ids or not self.result.raw_colours:
                self.result.raw_ids.setdefault(IGNORED, IGNORED)
            return
        for item in _items(node):
            value = self._value(item)
            if isinstance(value, str | list):
                self._assign_colour(item, self._colour(item), IGNORED)
            else:
                self._assign_id(item, self._id(item, "ignore"), IGNORED)

    def _read_folders(self, root: yaml.Node, fields: dict[str, yaml.Node]) -> None:
        if ("images" in fields) != ("labels" in fields):
            raise self._error(root, "images and labels belong together: name both folders, or none.")
        if "images" in fields:
            self.result.images = self._folder(fields["images"], "images")
            self.result.labels = self._folder(fields["labels"], "labels")
            if (SPLIT in self.result.images) != (SPLIT in self.result.labels):
                raise self._error(
                    root, f"images and labels: either both hold {SPLIT}, where the split's name stands, or neither."
                )
            counts = {folder.count(ANY) for folder in (self.result.images, self.result.labels)}
            if counts not in ({0}, {1}) or (counts == {1} and SPLIT not in self.result.images):
                raise self._error(
                    root, f"images and labels: {ANY}, a folder of any name, stands once in each, and only beside {SPLIT}."
                )

    def _folder(self, node: yaml.Node, what: str) -> str:
        folder = self._text(node, what).replace("\\", "/").rstrip("/").removeprefix("./")
        folder = "" if folder == "." else folder
        if folder.startswith("/") or ".." in folder.split("/"):
            raise self._error(node, f"{what}: {folder!r} leads outside the data folder: give a path within it.")
        return folder

    def _assign_id(self, node: yaml.Node, raw_id: int, train_id: int) -> None:
        assign(self.result.raw_ids, raw_id, train_id, self._owner, partial(self._error, node))

    def _assign_colour(self, node: yaml.Node, colour: Colour, train_id: int) -> None:
        assign(self.result.raw_colours, colour, train_id, self._owner, partial(self._error, node))

    def _owner(self, train_id: int) -> str:
        return "ignore" if train_id == IGNORED else f"the class {self.result.names[train_id]!r}"

    def _entries(self, node: yaml.Node, what: str) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what} must be lines of the form field: value.")
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, f"{what}: a field's name is text, not a list or mapping.")
            if key.value in seen:
                raise self._error(key, f"{_shown(key.value)} is there twice.")
            seen.add(key.value)
            yield key, value

    def _known_field(self, key: yaml.Node, known: tuple[str, ...]) -> str:
        if key.value not in known:
            raise self._error(
                key, f"unknown field {_shown(key.value)}{did_you_mean(str(key.value), known)}; known: {', '.join(known)}."
            )
        return key.value

    def _text(self, node: yaml.Node, what: str) -> str:
        value = self._value(node)
        if not isinstance(value, str) or not value:
            raise self._error(node, f"{what} must be text, but is {_shown(value)}: put it in quotes.")
        return value

    def _id(self, node: yaml.Node, what: str) -> int:
        value = self._value(node)
        if type(value) is not int or not 0 <= value <= LARGEST_ID:
            raise self._error(node, f"{what}: an id is a whole number from 0 to {LARGEST_ID}, not {_shown(value)}.")
        return value

    def _colour(self, node: yaml.Node) -> Colour:
        value = self._value(node)
        if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
            return tuple(bytes.fromhex(value[1:]))
        if isinstance(value, list) and [type(channel) for channel in value] == [int] * 3 and 0 <= min(value) <= max(value) <= 255:
            return tuple(value)
        raise self._error(
            node,
            f'a colour is [red, green, blue], each from 0 to 255, or "#rrggbb" (the quotes are needed), not {_shown(value)}.',
        )

    def _value(self, node: yaml.Node) -> object:
        try:
            return yaml.constructor.SafeConstructor().construct_document(node)
        # The exceptions of PyYAML for invalid numbers, dates and binary data.
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise self._error(node, f"this value cannot be read ({error}): put it in quotes if it is text.") from error

    def _error(self, node: yaml.Node, message: str) -> DataError:
        return DataError(self._where(node) + message)

    def _where(self, node: yaml.Node) -> str:
        return f"Label table {self.source}, line {node.start_mark.line + 1}: "


def _shown(value: object) -> str:
    """A value as it is shown in a message, shortened."""
    return SHORT.repr(value)


def _usual_name(source: str) -> str:
    name = location_name(source)
    return Path(source).absolute().parent.name if name == USUAL_NAME else Path(name).stem


def _items(node: yaml.Node) -> list[yaml.Node]:
    """The entries of a list; any other node counts as a list with one entry."""
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _colour_items(node: yaml.Node) -> list[yaml.Node]:
    """The entries of a list of colours; a list that begins with a number is a single colour."""
    if isinstance(node, yaml.SequenceNode) and node.value and node.value[0].tag == "tag:yaml.org,2002:int":
        return [node]
    return _items(node)
