"""Label tables: the YAML file in which people say what the ids in their own label maps mean.

For label maps that hold 0, 1 and 2, and 255 where nothing is scored, one line will do:

    names: [road, car, person]

Everything that can be said:

    name: car_park                            # of the label space; else the file's name, or its folder's for labels.yaml
    names:                                    # the classes in the order of their train ids
      road: 7                                 # the id in the label maps
      car: [26, 27]                           # several ids that are one class
      person: {ids: 24, colours: [220, 20, 60]}
      lawn: {colours: ["#00ff00", "#00aa00"]} # label maps coded by colour; in images the first colour is shown
    ignore: [0, 255, "#000000"]               # ids and colours that are not scored; 255 where nothing is said
    images: photos/{split}                    # folders of images and of label maps, both or none of them (see datasets/folder.py)
    labels: masks/{split}
    image_suffix: _sat                        # what their file names end with: x_sat.jpg and x_mask.png are a pair
    label_suffix: _mask
    val_fraction: 0.2                         # hold out this share of the images as the split val ...
    val_seed: 0                               # ... chosen by their names and this number

A colour is `[red, green, blue]` (0–255) or `"#rrggbb"` in quotes. Classes without one are shown in a palette that colour-blind
people can tell apart. An id or a colour that the table does not name is an error when a label map that holds it is read.

There are two classes or more. For a binary task one of them is the background: `names: [background, person]` where masks hold 0
and 1, and `names: {background: 0, person: 255}` where they hold 0 and 255.

CVAT's `labelmap.txt` (a line `label:red,green,blue:parts:actions` for each class) is a label table too; `names: labelmap.txt`
takes the classes from the one beside the YAML file, or from the one in an archive that lies there.
"""

import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml
import yaml.constructor

from ..errors import DataError
from ..images import Colour
from .archive import DataTree, location_name, read_text, split_location
from .palette import default_palette

FIELDS = ("name", "names", "ignore", "images", "labels", "image_suffix", "label_suffix", "val_fraction", "val_seed")
CLASS_FIELDS = ("ids", "colours")
USUAL_NAME = "labels.yaml"
CVAT_NAME = "labelmap.txt"
CVAT_LINE = re.compile(r"(?:(?P<name>.+?): *(?P<colour>\d+ *, *\d+ *, *\d+)|(?P<uncoloured>[^:]+):)(?::[^:]*){0,2}")
MEBIBYTE = 1 << 20
MAX_BYTES = MEBIBYTE // 4  # of a label table; 255 classes of many ids and colours take a tenth of it
MAX_ENTRIES = 50_000  # values in a label table, each counted as often as it is referred to
DEEPEST = 20  # levels of lists and mappings; a table needs four
# libyaml is ten times as fast, where PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
SPLIT = "{split}"
IGNORED = 255
MAX_CLASSES = 255
FEWEST_CLASSES = 2
LARGEST_ID = 65535  # of 16-bit PNGs


@dataclass
class LabelTable:
    """What a label table says.

    Attributes:
        name: of the label space.
        names, colours: of the classes, in the order of their train ids; colours to show, RGB 0–255.
        raw_ids, raw_colours: id and colour in the label maps → train id, or 255 for what is not scored.
        images, labels: folders of images and of label maps, with `{split}` in both or in neither; None where the table names
            none.
        image_suffix, label_suffix: what the names of their files have before the ending; None where the table says nothing.
        val_fraction: share of the images that is held out as the split val; None where none is.
        val_seed: changes which those are.
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
    val_fraction: float | None = None
    val_seed: int = 0


def is_label_table(given: str | Path) -> bool:
    """Whether `given` names a label table's file (rather than a registered label space)."""
    name = location_name(str(given))
    return name.endswith((".yaml", ".yml")) or name == CVAT_NAME


def read_label_table(path: str | Path) -> LabelTable:
    """Reads a label table, which may lie in an archive (see archive.py).

    Raises:
        DataError: the file is missing, too long or not YAML (of CVAT's, not such lines), or something in it cannot be; the
            message names the line.
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
    """Raises a DataError for lists within lists beyond all measure, on which PyYAML's composer would end the process."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise DataError(
                f"The label table {source}, line {event.start_mark.line + 1}, is nested more than {DEEPEST} levels deep: a "
                "class, its ids and its colours need four."
            )


def _check_aliases(root: yaml.Node, source: str) -> None:
    """An alias (`*x`) refers to a value that may hold aliases itself, so that a few lines stand for billions of values."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = MAX_ENTRIES + 1  # for a node that contains itself
            below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            counts[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(map(count, below))
        return counts[id(node)]

    if count(root) > MAX_ENTRIES:
        raise DataError(
            f"The label table {source} stands for more than {MAX_ENTRIES:,} values, or for itself: name ids only that the label "
            "maps hold, and write aliases (*name) out."
        )


def _read_cvat(text: str, source: str) -> LabelTable:
    """CVAT's table: the classes in the order of their lines; ids are the lines' numbers where no class has a colour."""
    table = LabelTable(_usual_name(source))
    coloured = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue

        def wrong(message: str, number: int = number) -> DataError:
            return DataError(f"Label table {source}, line {number}: {message}")

        match = CVAT_LINE.fullmatch(line.strip())
        if match is None:
            raise wrong(f"{line[:80]!r} is not of CVAT's form label:red,green,blue:parts:actions.")
        name, train_id = match["name"] or match["uncoloured"], len(table.names)
        if name in table.names:
            raise wrong(f"the class {name!r} stands twice.")
        if train_id == MAX_CLASSES:
            raise wrong(f"{name!r} is one class too many: there can be {MAX_CLASSES}.")
        table.names.append(name)
        if match["colour"]:
            colour = tuple(map(int, match["colour"].split(",")))
            if max(colour) > 255:
                raise wrong(f"a colour is red,green,blue, each from 0 to 255, not {match['colour']}.")
            if colour in table.raw_colours:
                raise wrong(f"the colour {colour} belongs to the class {table.names[table.raw_colours[colour]]!r} already.")
            table.raw_colours[colour] = train_id
            coloured.append(name)
        table.colours.append(colour if match["colour"] else default_palette(train_id + 1)[train_id])
    if coloured and coloured != table.names:
        without = next(name for name in table.names if name not in coloured)
        raise DataError(f"Label table {source}: {coloured[0]!r} has a colour and {without!r} has none: give all classes one.")
    if not coloured:
        table.raw_ids = {train_id: train_id for train_id in range(len(table.names))} | {IGNORED: IGNORED}
    _check_class_count(table, f"Label table {source}: ")
    return table


def _check_class_count(table: LabelTable, where: str) -> None:
    if len(table.names) < FEWEST_CLASSES:
        only = table.names[0] if table.names and table.names[0] != "background" else "person"
        raise DataError(
            f"{where}there {'is one class' if table.names else 'are no classes'}, and two are the fewest. A binary task has the "
            f"background as a class of its own: names: [background, {only}] where the masks hold 0 and 1, "
            f"names: {{background: 0, {only}: 255}} where they hold 0 and 255."
        )


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
        if self._is_cvat(fields["names"]):
            self._take_cvat(fields["names"])
        else:
            self._read_names(fields["names"])
        if not self.result.names:
            raise self._wrong(fields["names"], "names is empty: give the classes, for example names: [road, car, person].")
        _check_class_count(self.result, self._where(fields["names"]))
        self._read_ignored(fields.get("ignore"))
        self._read_folders(root, fields)
        for name in ("image_suffix", "label_suffix"):
            if name in fields:
                setattr(self.result, name, self._suffix(fields[name], name))
        self._read_val(fields)
        return self.result

    def _is_cvat(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.value == CVAT_NAME

    def _take_cvat(self, node: yaml.Node) -> None:
        beside = read_label_table(self._cvat_location(node))
        self.result.names, self.result.colours = beside.names, beside.colours
        self.result.raw_colours = beside.raw_colours
        # 255 is `ignore`'s to give.
        self.result.raw_ids = {raw_id: train_id for raw_id, train_id in beside.raw_ids.items() if train_id != IGNORED}

    def _cvat_location(self, node: yaml.Node) -> str:
        """Where the labelmap.txt is that is meant: beside this table, else in the data folder or an archive there."""
        file, member = split_location(self.source)
        folder = PurePosixPath((member or "").replace("\\", "/").lstrip("/")).parent
        tree = DataTree(Path(file).parent)
        usual = tree.location(str(folder / CVAT_NAME)) or tree.location(CVAT_NAME)
        packed = [tree.location(f"{top}/{CVAT_NAME}") for top in tree.packed_folders()] if usual is None else [usual]
        found = [location for location in packed if location is not None]
        if not found:
            raise self._wrong(node, f"there is no {CVAT_NAME} in {tree.root}, nor in an archive there: put it beside the table.")
        if len(found) > 1:
            raise self._wrong(node, f"there are {' and '.join(found)}: put the one that counts beside the table.")
        return found[0]

    def _suffix(self, node: yaml.Node, what: str) -> str:
        suffix = self._text(node, what)
        if "/" in suffix or "." in suffix:
            raise self._wrong(node, f"{what}: {suffix!r} must be what a name has before its ending, such as _mask of x_mask.png.")
        return suffix

    def _read_val(self, fields: dict[str, yaml.Node]) -> None:
        if "val_fraction" in fields:
            fraction = self._value(fields["val_fraction"])
            if type(fraction) is not float or not 0 < fraction < 1:
                raise self._wrong(
                    fields["val_fraction"], f"val_fraction is a share between 0 and 1, such as 0.2, not {_shown(fraction)}."
                )
            self.result.val_fraction = fraction
        if "val_seed" in fields:
            seed = self._value(fields["val_seed"])
            if type(seed) is not int or self.result.val_fraction is None:
                raise self._wrong(fields["val_seed"], "val_seed is a whole number, and belongs to val_fraction.")
            self.result.val_seed = seed

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
            self.result.colours.append(default_palette(train_id + 1)[train_id])
            if value is None:
                self._claim_id(key, train_id, train_id)
            else:
                self._read_class(name, value, train_id)

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
            if (SPLIT in self.result.images) != (SPLIT in self.result.labels):
                raise self._wrong(
                    root, f"images and labels: either both hold {SPLIT}, where the split's name stands, or neither."
                )

    def _folder(self, node: yaml.Node, what: str) -> str:
        folder = self._text(node, what).replace("\\", "/").rstrip("/").removeprefix("./")
        folder = "" if folder == "." else folder
        if folder.count(SPLIT) > 1:
            raise self._wrong(node, f"{what}: {folder!r} must hold {SPLIT} once at most, where the split's name stands.")
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
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(key, f"{what}: a field's name is text, not a list or mapping.")
            if key.value in seen:
                raise self._wrong(key, f"{_shown(key.value)} stands twice.")
            seen.add(key.value)
            yield key, value

    def _known(self, key: yaml.Node, known: tuple[str, ...]) -> str:
        if key.value not in known:
            raise self._wrong(key, f"unknown field {_shown(key.value)}; known: {', '.join(known)}.")
        return key.value

    def _text(self, node: yaml.Node, what: str) -> str:
        value = self._value(node)
        if not isinstance(value, str) or not value:
            raise self._wrong(node, f"{what} must be text, but is {_shown(value)}: put it in quotes.")
        return value

    def _id(self, node: yaml.Node, what: str) -> int:
        value = self._value(node)
        if type(value) is not int or not 0 <= value <= LARGEST_ID:
            raise self._wrong(node, f"{what}: an id is a whole number from 0 to {LARGEST_ID}, not {_shown(value)}.")
        return value

    def _colour(self, node: yaml.Node) -> Colour:
        value = self._value(node)
        if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
            return tuple(bytes.fromhex(value[1:]))
        if isinstance(value, list) and [type(channel) for channel in value] == [int] * 3 and 0 <= min(value) <= max(value) <= 255:
            return tuple(value)
        raise self._wrong(
            node,
            f'a colour is [red, green, blue], each from 0 to 255, or "#rrggbb" (the quotes are needed), not {_shown(value)}.',
        )

    def _value(self, node: yaml.Node) -> object:
        try:
            return yaml.constructor.SafeConstructor().construct_document(node)
        # What PyYAML lets through for numbers, dates and binary data that are none.
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
            raise self._wrong(node, f"this value cannot be read ({error}): put it in quotes if it is text.") from error

    def _wrong(self, node: yaml.Node, message: str) -> DataError:
        return DataError(self._where(node) + message)

    def _where(self, node: yaml.Node) -> str:
        return f"Label table {self.source}, line {node.start_mark.line + 1}: "


def _shown(value: object) -> str:
    """`value` for a message, shortened."""
    return SHORT.repr(value)


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
