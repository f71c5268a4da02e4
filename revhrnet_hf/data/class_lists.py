"""Class names in the small files that annotation tools and other datasets put beside their masks."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from ..images import Colour
from .archive import DataFolder
from .label_table import CVAT_NAME, assign, read_label_table

MAX_BYTES = 262_144
COLOUR_LINE = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.+)")  # CamVid's label_colors.txt
NUMBERED_LINE = re.compile(r"(\d+)(\s*[:=,;]\s*|[.)]?\s+)(\S.*)")  # `0: sky`, `0,sky`, `0. sky`, `0 sky`
DELIMITERS = ",;\t"  # of CSV files; where the comma is for decimals, spreadsheets write semicolons
IGNORED_NAMES = {"__ignore__", "_ignore_", "ignore", "void", "unlabeled", "unlabelled"}


@dataclass
class ClassList:
    """Names of classes by what stands for them in the masks.

    Attributes:
        source: the file.
        by_id, by_colour: id or colour → name.
        in_order: whether the file gives no ids, and `by_id` has them by the order of the names.
    """

    source: str
    by_id: dict[int, str] = field(default_factory=dict)
    by_colour: dict[Colour, str] = field(default_factory=dict)
    in_order: bool = False

    def add(self, value: int | Colour, name: str, where: str) -> None:
        """Enters a class by its id or colour. A line may be there twice.

        Raises:
            DataError: another class has the id or colour, or a channel is not from 0 to 255; the message begins with `where`.
        """

        def error(message: str) -> DataError:
            return DataError(f"{where}, the class {name!r}: {message}")

        names = self.by_colour if isinstance(value, tuple) else self.by_id
        if names.get(value) != name:
            assign(names, value, name, lambda other: f"the class {other!r}", error)


def find_class_list(data_folder: DataFolder) -> ClassList | None:
    """The first file with class names in the folder or in a folder of it; None if there is none.

    Raises:
        DataError: such a file cannot be understood.
    """
    for folder in ("", *data_folder.folders()):
        prefix = f"{folder}/" if folder else ""
        for name in data_folder.files(folder):
            if read := _reader(name):
                found = read(data_folder, prefix + name)
                if found.by_id or found.by_colour:
                    return found
    return None


def _reader(name: str) -> Callable[[DataFolder, str], ClassList] | None:
    name = name.lower()
    if name == CVAT_NAME:
        return _read_cvat
    if name in ("_classes.csv", "class_dict.csv", "classes.csv", "class_dict_seg.csv"):
        return _read_csv
    if name in ("label_colors.txt", "label_colours.txt"):
        return _read_colours
    return _read_names if name in ("classes.txt", "labels.txt", "class_names.txt") else None


def _read_cvat(data_folder: DataFolder, file: str) -> ClassList:
    table = read_label_table(data_folder.location(file))
    by_colour = {colour: table.names[train_id] for colour, train_id in table.raw_colours.items()}
    by_id = {} if by_colour else dict(enumerate(table.names))
    return ClassList(file, by_id, by_colour)


def _read_csv(data_folder: DataFolder, file: str) -> ClassList:
    """`Pixel Value, Class` of Roboflow, or `name,r,g,b`; the columns are found by their titles."""
    text = data_folder.read_text(file, MAX_BYTES)
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text), skipinitialspace=True, delimiter=delimiter)
    titles, *rows = [[cell.strip() for cell in row] for row in rows if row] or [[]]
    places = {title.lower(): place for place, title in enumerate(titles)}
    name = next((places[title] for title in ("class", "name", "class_name", "label") if title in places), None)
    value = next((places[title] for title in ("pixel value", "id", "value", "index") if title in places), None)
    channels = [
        next((places[title] for title in names if title in places), None)
        for names in (("r", "red"), ("g", "green"), ("b", "blue"))
    ]
    if name is None or (value is None and None in channels):
        raise DataError(
            f"{data_folder.expected(file)} needs the columns `Pixel Value, Class` or `name,r,g,b`, and has {', '.join(titles)}."
        )
    found, where = ClassList(file), data_folder.expected(file)
    for row in rows:
        try:
            raw_id = None if value is None else int(row[value])
            colour = None if None in channels else tuple(int(row[channel]) for channel in channels)
            called = row[name]
        except (ValueError, IndexError) as error:
            raise DataError(f"{where}: the line {', '.join(row)!r} has no numbers where they belong.") from error
        for stands_for in (raw_id, colour):
            if stands_for is not None:
                found.add(stands_for, called, where)
    return found


def _read_colours(data_folder: DataFolder, file: str) -> ClassList:
    found = ClassList(file)
    for line in _lines(data_folder, file):
        if match := COLOUR_LINE.fullmatch(line):
            found.add(tuple(map(int, match.groups()[:3])), match[4].strip(), data_folder.expected(file))
    return found


def _read_names(data_folder: DataFolder, file: str) -> ClassList:
    """One name a line, or all in one with commas, the first for id 0. labelme begins with `__ignore__`, no class, for id -1.

    If every line begins with a number, or with three for a colour, that stands for the class in the masks.
    """
    names = list(_lines(data_folder, file))
    if names and all(map(COLOUR_LINE.fullmatch, names)):
        return _read_colours(data_folder, file)
    if len(names) == 1:
        names = [name.strip() for name in names[0].split(",") if name.strip()]
    if (found := _numbered(names, file, data_folder.expected(file))) is not None:
        return found
    if names and names[0] in IGNORED_NAMES - {"void"} and names[0].startswith("_"):
        names = names[1:]
    return ClassList(file, dict(enumerate(names)), in_order=True)


def _numbered(names: list[str], file: str, where: str) -> ClassList | None:
    """The classes of `file`, if each name has its id before it; None if they have none, or there are no names.

    Raises:
        DataError: some names have an id and others none, or two have the same. (In `2 wheels` the number is part of the name,
            if other names begin without one.)
    """
    matches = [NUMBERED_LINE.fullmatch(name) for name in names]
    if names and all(matches):
        found = ClassList(file)
        for match in matches:
            found.add(int(match[1]), match[3], where)
        return found
    if any(match is not None and match[2].strip() for match in matches):
        plain = names[matches.index(None)]
        raise DataError(
            f"{where} has numbers before some names and none before {plain!r}: write the id before each name, or before none "
            "(the first name then has the id 0)."
        )
    return None


def _lines(data_folder: DataFolder, file: str) -> Iterator[str]:
    for line in data_folder.read_text(file, MAX_BYTES).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
