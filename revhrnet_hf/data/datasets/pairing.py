"""Pairs images with label maps in two folders of a user's own files, and reads the list files that name some of the pairs.

A pair's *id* is the image's path below its folder, without ending, for example `north/x`. Names are compared in Unicode's
composed form (NFC), because macOS writes an umlaut as a letter and a mark, most other systems as one character.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import NamedTuple

from ...errors import DataError, first_few
from ...images import SUFFIXES
from ...text import natural_order
from ..archive import DataFolder
from ..listing import MAX_NAMED, ListedSample, listed_paths

LOSSLESS = (".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff")  # of label maps
LOSSY = tuple(suffix for suffix in SUFFIXES if suffix not in LOSSLESS)

# A label map's name may be its image's name with one of these suffixes, in lower case. A label table sets another (label_suffix).
LABEL_SUFFIXES = (
    "_mask", "_masks", "_label", "_labels", "_l", "_gt", "_seg", "_segmentation", "_annotation", "-mask", "-label", "-gt",
)  # fmt: skip


class Affix(NamedTuple):
    """What stands before and behind an id in the names of files: `mask_` in mask_x.png, `_gt` in x_gt.png."""

    prefix: str = ""
    suffix: str = ""

    @classmethod
    def of(cls, prefix: str | None, suffix: str | None) -> "Affix | None":
        """Of two fields of a label table; None if neither is given."""
        return None if prefix is None and suffix is None else cls(prefix or "", suffix or "")

    def id_in(self, stem: str) -> str | None:
        """The id in a file's path without ending; None if the name does not begin or end so."""
        folder, slash, name = stem.rpartition("/")
        if len(name) < len(self.prefix) + len(self.suffix) or not (name.startswith(self.prefix) and name.endswith(self.suffix)):
            return None
        return folder + slash + name[len(self.prefix) : len(name) - len(self.suffix)]

    def stem_of(self, image_id: str) -> str:
        folder, slash, name = image_id.rpartition("/")
        return f"{folder}{slash}{self.prefix}{name}{self.suffix}"


def pair_files(
    data_folder: DataFolder, images: str, labels: str, image_affix: Affix | None = None, label_affix: Affix | None = None
) -> dict[str, ListedSample]:
    """Id → pair, sorted by id, of every image below the folder `images` and every label map below the folder `labels`.

    If a file has no partner, the pair has the path where the partner should be.

    Args:
        image_affix, label_affix: the beginnings and ends of the names; files without them are skipped. If None, names are
            compared as they are; those of label maps may have one of `LABEL_SUFFIXES` or the image's ending (`x.jpg.png`).

    Raises:
        DataError: two files have the same id, a label map is in a lossy format, or there are no images.
    """
    if images == labels and label_affix is None:
        raise DataError(
            f"Images and label maps are both in {data_folder.expected(images)}: say in the label table what label maps are "
            "called, such as label_suffix: _mask or label_prefix: mask_."
        )
    image_affix = image_affix or Affix()
    image_files = _by_id(data_folder, images, labels, image_affix, label_affix if images == labels else None)
    label_files, label_affix = _label_maps_by_id(data_folder, labels, images, image_files, label_affix)
    lossy = [file for file in label_files.values() if file.lower().endswith(LOSSY)]
    if lossy:
        raise DataError(
            f"The label map {data_folder.expected(lossy[0])} ({len(lossy)} such in {labels}/) is in a format that changes the "
            "ids when it compresses: save label maps as PNG, from the originals."
        )
    ids = sorted({*image_files, *label_files}, key=natural_order)
    if not ids:
        raise DataError(
            f"{data_folder.expected(images)} and {data_folder.expected(labels)} hold no images ({', '.join(SUFFIXES)}): put "
            "them there."
        )
    return {
        i: ListedSample(
            image_files.get(i, _joined(images, f"{image_affix.stem_of(i)}.*")),
            label_files.get(i, _joined(labels, f"{label_affix.stem_of(i)}.png")),
            i,
        )
        for i in ids
    }


def _by_id(data_folder: DataFolder, folder: str, without: str, affix: Affix, other: Affix | None = None) -> dict[str, str]:
    """Id → file, for the images below `folder` whose names have `affix`, and not that of the `other` kind of files."""
    files: dict[str, str] = {}
    for file in images_below(data_folder, folder, without):
        stem = _stem(file, folder)
        image_id = affix.id_in(stem)
        if image_id is not None and (other is None or other.id_in(stem) is None):
            _claim(data_folder, files, image_id, file)
    return files


def _label_maps_by_id(
    data_folder: DataFolder, folder: str, without: str, images: dict[str, str], affix: Affix | None
) -> tuple[dict[str, str], Affix]:
    """Id → label map; and the most common affix."""
    if affix is not None:
        return _by_id(data_folder, folder, without, affix), affix
    files: dict[str, str] = {}
    suffixes = Counter()
    for file in images_below(data_folder, folder, without):
        stem = _stem(file, folder)
        image_id = next((name for name in _possible_ids(stem) if name in images), stem)
        _claim(data_folder, files, image_id, file)
        suffixes[stem.removeprefix(image_id)] += image_id in images
    return files, Affix("", suffixes.most_common(1)[0][0] if suffixes else "")


def _possible_ids(stem: str) -> Iterator[str]:
    """The possible ids of a label map, its name itself first."""
    yield stem
    for ending in (*LABEL_SUFFIXES, *SUFFIXES):
        if stem.lower().endswith(ending):
            yield stem[: -len(ending)]


def _claim(data_folder: DataFolder, files: dict[str, str], image_id: str, file: str) -> None:
    if image_id in files:
        raise DataError(
            f"{data_folder.expected(files[image_id])} and {data_folder.expected(file)} are both called {image_id!r} and "
            "differ only in ending or suffix: take one away, or set the suffix in the label table (image_suffix, label_suffix)."
        )
    files[image_id] = file


def images_below(data_folder: DataFolder, folder: str, without: str | None = None) -> Iterator[str]:
    """Paths of the image files in `folder` and its sub-folders, except the sub-folder `without`."""
    for name in data_folder.files(folder):
        if name.lower().endswith(SUFFIXES):
            yield _joined(folder, name)
    for name in data_folder.folders(folder):
        below = _joined(folder, name)
        if below != without:
            yield from images_below(data_folder, below, without)


def held_out(ids: list[str], fraction: float, seed: int) -> set[str]:
    """Chooses a share of the ids, at least one and not all, which depends only on their names and the seed.

    The ids with the smallest hashes of seed and name are chosen. So the choice is the same on any machine, and it changes little
    when images are added.

    Raises:
        DataError: there are fewer than two ids.
    """
    if len(ids) < 2:
        raise DataError(f"val_fraction needs two images or more to choose from, and there is {len(ids)}.")
    count = min(max(round(fraction * len(ids)), 1), len(ids) - 1)
    return set(sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed}\0{image_id}".encode()).digest())[:count])


def read_split_list(
    data_folder: DataFolder, list_file: str, images: str, labels: str, pairs: dict[str, ListedSample]
) -> list[ListedSample]:
    """The pairs that a list file names, in its order.

    A line is an id; an image's file, with or without the folders above it; or an image and its label map, separated by a tab, a
    comma or blanks. Empty lines and unknown names that begin with `#` are skipped. The folders above may be those of the machine
    on which the list was written; but a path that leads to another existing file on this machine is an error.

    Raises:
        DataError: the list is empty, or a line names no image, an image that another line names too, or another existing file.
    """
    location = data_folder.expected(list_file)
    paths = _ListedPaths(data_folder, list_file)
    id_of = {name: i for i, pair in pairs.items() for name in (i, *_names(pair.image, images))}
    image_of = _NameIndex(id_of, {i: pair.image for i, pair in pairs.items()}, paths)
    annotation_of = {pair.label_map: pair.annotation for pair in pairs.values()}
    label_map_of = _NameIndex(
        {name: file for file in annotation_of for name in _names(file, labels)}, {file: file for file in annotation_of}, paths
    )
    chosen: dict[str, ListedSample] = {}
    line_of: dict[str, int] = {}
    unknown = []
    for number, line in enumerate(data_folder.read_text(list_file).removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        found = _named_pair(line, image_of, label_map_of)
        if found is None:
            unknown += [] if line.startswith("#") else [f"{line.strip()[:80]!r} (line {number})"]
            continue
        image_id, label_map = found
        if image_id in chosen:
            raise DataError(f"{location} names {image_id!r} twice, in lines {line_of[image_id]} and {number}: take one out.")
        chosen[image_id], line_of[image_id] = pairs[image_id], number
        if label_map is not None:
            chosen[image_id] = pairs[image_id]._replace(label_map=label_map, annotation=annotation_of[label_map])
    if unknown:
        raise DataError(
            f"{location} has lines that name no image in {data_folder.expected(images)}: {first_few(unknown, MAX_NAMED)}. "
            "Correct these lines, or add the files."
        )
    if not chosen:
        raise DataError(f"{location} is empty: it must name the split's images, one a line.")
    return list(chosen.values())


class _ListedPaths:
    """Checks that the paths in a list file lead to the files in the data folder that are used for them.

    Args:
        data_folder: the data folder.
        list_file: the list's path in it. Relative paths may start in its folder, the data folder or the working directory.
    """

    def __init__(self, data_folder: DataFolder, list_file: str):
        self._data_folder = data_folder
        self._list_file = list_file
        self._bases = [str(data_folder.root / PurePosixPath(list_file).parent), str(data_folder.root), os.getcwd()]
        self._is_folder = lru_cache(os.path.isdir)  # a list names few folders and many files

    def check(self, path: str, used: str) -> None:
        """Raises a DataError if `path`, with or without the ending of `used`, is an existing file other than `used`."""
        endings = ("", PurePosixPath(used).suffix)
        named = {os.path.join(base, path + ending) for base in self._bases for ending in endings}
        existing = [file for file in named if self._is_folder(os.path.dirname(file)) and os.path.isfile(file)]
        location = self._data_folder.location(used)
        if existing and not any(_is_same_file(file, location) for file in existing):
            raise DataError(
                f"{self._data_folder.expected(self._list_file)} names {path}, which leads outside the data folder, to another "
                f"file than {self._data_folder.expected(used)}: copy the files that the list names into "
                f"{self._data_folder.root}, and write their paths below it."
            )


def _is_same_file(file: str, location: str | None) -> bool:
    return location is not None and os.path.exists(location) and os.path.samefile(file, location)


@dataclass(frozen=True)
class _NameIndex:
    """Finds the image or label map that a list file names.

    Attributes:
        known: name → id of the image, or the label map.
        file_of: id or label map → its file in the data folder.
        paths: checks a path of which only the end is known.
    """

    known: dict[str, str]
    file_of: dict[str, str]
    paths: _ListedPaths

    def find(self, name: str) -> str | None:
        """The id or label map with this name, without leading folders that belong to another machine; None if unknown."""
        path = name.strip().replace("\\", "/").removeprefix("./")
        composed = unicodedata.normalize("NFC", path)
        if composed in self.known and not composed.startswith("/"):
            return self.known[composed]
        parts = [part for part in composed.split("/") if part]
        tails = ("/" + "/".join(parts[k:]) for k in range(len(parts)))
        found = next((self.known[tail] for tail in tails if tail in self.known), None)
        if found is not None:
            self.paths.check(path, self.file_of[found])
        return found


def _named_pair(line: str, image_of: _NameIndex, label_map_of: _NameIndex) -> tuple[str, str | None] | None:
    """The id that a line of a list names, and the label map if it names one; None if the line names nothing known."""
    if (image_id := image_of.find(line)) is not None:
        return image_id, None
    for parts in (line.split("\t"), line.split(","), listed_paths(line)):
        if len(parts) == 2:
            image_id, label_map = image_of.find(parts[0]), label_map_of.find(parts[1])
            if image_id is not None and label_map is not None:
                return image_id, label_map
    return None


def _names(file: str, folder: str) -> Iterator[str]:
    """Possible names of a file in a list: its path below `folder`, and below the data folder, then marked with a leading `/`."""
    path = unicodedata.normalize("NFC", file)
    below = path.removeprefix(f"{unicodedata.normalize('NFC', folder)}/")  # labelme's images may lie elsewhere
    yield from (below, path) if folder else (below,)
    if folder:
        yield f"/{path}"
        yield f"/{PurePosixPath(path).with_suffix('')}"


def _stem(file: str, folder: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(file).relative_to(folder).with_suffix("")))


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
