"""Which label map belongs to which image, in two folders of people's own files, and which of the pairs a list file names.

A pair's *id* is the image's path below its folder without ending, for example `north/x`. Names are compared in Unicode's composed
form (NFC): macOS writes an umlaut as a letter and a mark, most other systems as one character.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from ...errors import DataError
from ..archive import DataTree
from ..listing import MAX_NAMED, Listed

LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")
LOSSY = (".jpg", ".jpeg", ".webp", ".jp2")
IMAGES = (*LOSSLESS, *LOSSY, ".ppm")

# What a label map's name has after its image's, in lower case; a label table's label_suffix says another.
LABEL_SUFFIXES = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_l",
    "_gt",
    "_seg",
    "_segmentation",
    "_annotation",
    "-mask",
    "-label",
    "-gt",
)


def pair_files(
    tree: DataTree, images: str, labels: str, image_suffix: str | None = None, label_suffix: str | None = None
) -> dict[str, Listed]:
    """Every image below the folder `images` and every label map below the folder `labels`, by id and sorted by it.

    A file without a partner has the path where the partner should be.

    Args:
        image_suffix, label_suffix: what the names have before their endings; files without are passed over. If None, names are
            taken as they are, and those of label maps also with one of `LABEL_SUFFIXES` or with the image's ending (`x.jpg.png`).

    Raises:
        DataError: two files have the same id, a label map is in a lossy format, or there are no images at all.
    """
    if images == labels and label_suffix is None:
        raise DataError(
            f"Images and label maps are both in {tree.expected(images)}: say in the label table what label maps are called, such "
            "as label_suffix: _mask."
        )
    image_files = _by_id(tree, images, labels, image_suffix or "")
    if images == labels:
        image_files = {i: file for i, file in image_files.items() if not i.endswith(label_suffix)}
    label_files, suffix = _label_maps_by_id(tree, labels, images, image_files, label_suffix)
    lossy = [file for file in label_files.values() if file.lower().endswith(LOSSY)]
    if lossy:
        raise DataError(
            f"The label map {tree.expected(lossy[0])} ({len(lossy)} such in {labels}/) is in a format that changes the ids "
            "when it compresses: save label maps as PNG, from what they were drawn in."
        )
    ids = sorted({*image_files, *label_files})
    if not ids:
        raise DataError(
            f"{tree.expected(images)} and {tree.expected(labels)} hold no images ({', '.join(IMAGES)}): put them there."
        )
    return {
        i: Listed(
            image_files.get(i, _joined(images, f"{i}{image_suffix or ''}.*")),
            label_files.get(i, _joined(labels, f"{i}{suffix}.png")),
            i,
        )
        for i in ids
    }


def _by_id(tree: DataTree, folder: str, without: str, suffix: str) -> dict[str, str]:
    """Id → file, of the images below `folder` whose names end with `suffix`."""
    files: dict[str, str] = {}
    for file in images_below(tree, folder, without):
        stem = _stem(file, folder)
        if stem.endswith(suffix):
            _claim(tree, files, stem.removesuffix(suffix), file)
    return files


def _label_maps_by_id(
    tree: DataTree, folder: str, without: str, images: dict[str, str], suffix: str | None
) -> tuple[dict[str, str], str]:
    """Id → label map, and the suffix that most of them have."""
    if suffix is not None:
        return _by_id(tree, folder, without, suffix), suffix
    files: dict[str, str] = {}
    suffixes = Counter()
    for file in images_below(tree, folder, without):
        stem = _stem(file, folder)
        image_id = next((name for name in _possible_ids(stem) if name in images), stem)
        _claim(tree, files, image_id, file)
        suffixes[stem.removeprefix(image_id)] += image_id in images
    return files, suffixes.most_common(1)[0][0] if suffixes else ""


def _possible_ids(stem: str) -> Iterator[str]:
    """The ids that a label map's name may mean, the name itself first."""
    yield stem
    for ending in (*LABEL_SUFFIXES, *IMAGES):
        if stem.lower().endswith(ending):
            yield stem[: -len(ending)]


def _claim(tree: DataTree, files: dict[str, str], image_id: str, file: str) -> None:
    if image_id in files:
        raise DataError(
            f"{tree.expected(files[image_id])} and {tree.expected(file)} are both called {image_id!r}, for they differ in ending "
            "or suffix only: take one away, or say in the label table which suffix counts (image_suffix, label_suffix)."
        )
    files[image_id] = file


def images_below(tree: DataTree, folder: str, without: str | None = None) -> Iterator[str]:
    """Paths of the image files in `folder` and its sub-folders, but for the sub-folder `without`."""
    for name in tree.files(folder):
        if name.lower().endswith(IMAGES):
            yield _joined(folder, name)
    for name in tree.folders(folder):
        below = _joined(folder, name)
        if below != without:
            yield from images_below(tree, below, without)


def held_out(ids: list[str], fraction: float, seed: int) -> set[str]:
    """A share of the ids, at least one and not all, that depends on their names and the seed only.

    Their order is that of a hash of seed and name, so that on another machine they are the same, and that further images move
    few of them from one side to the other.

    Raises:
        DataError: there are fewer than two.
    """
    if len(ids) < 2:
        raise DataError(f"val_fraction needs two images or more to choose from, and there is {len(ids)}.")
    count = min(max(round(fraction * len(ids)), 1), len(ids) - 1)
    return set(sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed}\0{image_id}".encode()).digest())[:count])


def read_split_list(tree: DataTree, list_file: str, images: str, labels: str, pairs: dict[str, Listed]) -> list[Listed]:
    """The pairs that a list file names, in its order.

    A line is an id, an image's file, with or without the folders above it, or an image and its label map with a tab or blanks
    between. Empty lines are passed over, and those that begin with `#`. Folders above may be those of the machine on which the
    list was written; a path that leads to another file here is refused.

    Raises:
        DataError: the list is empty, or a line names no image, an image that another line names too, or another existing file.
    """
    written = _Written(tree, list_file)
    id_of = {name: i for i, pair in pairs.items() for name in (i, *_names(pair.image, images))}
    image_of = _Names(id_of, {i: pair.image for i, pair in pairs.items()}, written)
    label_maps = [pair.label_map for pair in pairs.values()]
    label_map_of = _Names(
        {name: file for file in label_maps for name in _names(file, labels)}, {file: file for file in label_maps}, written
    )
    chosen: dict[str, Listed] = {}
    line_of: dict[str, int] = {}
    unknown = []
    for number, line in enumerate(tree.read_text(list_file).removeprefix("\ufeff").splitlines(), 1):
        if not line.strip():
            continue
        found = _named_pair(line, image_of, label_map_of)
        if found is None:
            unknown += [] if line.startswith("#") else [f"{line.strip()[:80]!r} (line {number})"]
            continue
        image_id, label_map = found
        if image_id in chosen:
            raise DataError(
                f"{tree.expected(list_file)} names {image_id!r} twice, in lines {line_of[image_id]} and {number}: take one out."
            )
        pair = pairs[image_id]
        chosen[image_id], line_of[image_id] = (pair if label_map is None else pair._replace(label_map=label_map)), number
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        raise DataError(
            f"{tree.expected(list_file)} names what is no image in {tree.expected(images)}: "
            f"{', '.join(unknown[:MAX_NAMED])}{more}. Correct these lines, or add the files."
        )
    if not chosen:
        raise DataError(f"{tree.expected(list_file)} is empty: it must name the split's images, one a line.")
    return list(chosen.values())


class _Written:
    """Whether the paths that a list holds lead to the files of the data folder that are taken for them.

    Args:
        tree: the data folder.
        list_file: the list's path there. Relative paths may be meant from its folder, the data folder or the working directory.
    """

    def __init__(self, tree: DataTree, list_file: str):
        self._tree = tree
        self._list_file = list_file
        self._bases = [str(tree.root / PurePosixPath(list_file).parent), str(tree.root), os.getcwd()]
        self._is_folder = lru_cache(os.path.isdir)  # a list of another machine names few folders and many files

    def check(self, path: str, taken: str) -> None:
        """Raises a DataError if `path`, with or without the ending of `taken`, is another existing file than `taken`."""
        endings = ("", PurePosixPath(taken).suffix)
        named = {os.path.join(base, path + ending) for base in self._bases for ending in endings}
        existing = [file for file in named if self._is_folder(os.path.dirname(file)) and os.path.isfile(file)]
        location = self._tree.location(taken)
        if existing and not any(_is_same_file(file, location) for file in existing):
            raise DataError(
                f"{self._tree.expected(self._list_file)} names {path}, which leads outside the data folder, to another file than "
                f"{self._tree.expected(taken)}: copy what the list names into {self._tree.root}, and write the paths below it."
            )


def _is_same_file(file: str, location: str | None) -> bool:
    return location is not None and os.path.exists(location) and os.path.samefile(file, location)


@dataclass(frozen=True)
class _Names:
    """What a list may call files.

    Attributes:
        known: name → id of an image, or label map.
        file_of: the same → its file in the data folder.
        written: checks a path of which only the end is known.
    """

    known: dict[str, str]
    file_of: dict[str, str]
    written: _Written

    def find(self, name: str) -> str | None:
        """What a name stands for; folders of another machine before those of the data folder are passed over."""
        path = name.strip().replace("\\", "/").removeprefix("./")
        composed = unicodedata.normalize("NFC", path)
        if composed in self.known and not composed.startswith("/"):
            return self.known[composed]
        parts = [part for part in composed.split("/") if part]
        tails = ("/" + "/".join(parts[k:]) for k in range(len(parts)))
        found = next((self.known[tail] for tail in tails if tail in self.known), None)
        if found is not None:
            self.written.check(path, self.file_of[found])
        return found


def _named_pair(line: str, image_of: _Names, label_map_of: _Names) -> tuple[str, str | None] | None:
    """The id that a list's line names, and the label map if the line names one; None if it names nothing."""
    if (image_id := image_of.find(line)) is not None:
        return image_id, None
    for parts in (line.split("\t"), line.split()):
        if len(parts) == 2:
            image_id, label_map = image_of.find(parts[0]), label_map_of.find(parts[1])
            if image_id is not None and label_map is not None:
                return image_id, label_map
    return None


def _names(file: str, folder: str) -> Iterator[str]:
    """What a list may call a file: its path below `folder`, and that below the data folder, with `/` before it as a mark."""
    path = unicodedata.normalize("NFC", file)
    below = str(PurePosixPath(path).relative_to(unicodedata.normalize("NFC", folder)))
    yield from (below, path) if folder else (below,)
    if folder:
        yield f"/{path}"
        yield f"/{PurePosixPath(path).with_suffix('')}"


def _stem(file: str, folder: str) -> str:
    return unicodedata.normalize("NFC", str(PurePosixPath(file).relative_to(folder).with_suffix("")))


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
