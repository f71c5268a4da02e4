"""People's own data: a folder of images, a folder of label maps, and a label table that says what the ids mean.

These layouts are found without a word, where SPLIT is any name (train, val, …):

    DATA_DIR/SPLIT/images/…    DATA_DIR/SPLIT/labels/…    DATA_DIR/labels.yaml
    DATA_DIR/images/SPLIT/…    DATA_DIR/labels/SPLIT/…    DATA_DIR/labels.yaml
    DATA_DIR/images/…          DATA_DIR/labels/…          DATA_DIR/labels.yaml

In the last, the images of each split are named in a list file (SPLIT.txt in DATA_DIR, splits/ or ImageSets/Segmentation/), or
the label table holds out a share of them (`val_fraction: 0.2`). The folders may be called otherwise (`IMAGE_FOLDERS`,
`LABEL_FOLDERS`), so that exports in VOC's layout and CVAT's "Segmentation mask 1.1", with its labelmap.txt for a label table, are
read as they are. Any other layout is named in the label table (`images: photos/{split}`, `labels: masks/{split}`;
label_table.py shows its form).

An image and its label map have the same path below these folders, but for the ending and a suffix: `images/train/city/x.jpg` and
`labels/train/city/x.png` or `labels/train/city/x_mask.png` (pairing.py). All of it may lie in a zip or tar file, in which one
folder may hold it.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...errors import AbsentSplitError, DataError
from ..archive import DataTree
from ..builder import SegmentationBuilder
from ..label_space import find_label_space
from ..label_table import CVAT_NAME, SPLIT, USUAL_NAME, LabelTable, is_label_table, read_label_table
from ..listing import Listed
from .pairing import held_out, images_below, pair_files, read_split_list

# In lower case; written otherwise they are found as well.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "ann_dir", "segmentationclass", "segmentationclasspng")
LIST_FOLDERS = ("splits", "lists", "ImageSets/Segmentation")  # of which every *.txt is a split's list
# In the data folder itself there may be other texts.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval", "default")
HELD_OUT_FROM = ("train", "training", "default")
VAL = "val"


@dataclass(frozen=True)
class Source:
    """Where a split's files lie.

    Attributes:
        images, labels: folders of images and of label maps.
        listed_in: the list file that names the split's images; None: all that are there.
        not_in: list files whose images are not taken.
        held_out: with `val_fraction`, whether these are the images held out (True) or the others (False); None: all.
    """

    images: str
    labels: str
    listed_in: str | None = None
    not_in: tuple[str, ...] = ()
    held_out: bool | None = None


class Folder(SegmentationBuilder):
    """Images and label maps in two folders, with a label table."""

    TITLE = "Data of your own"
    LABEL_SPACES = ()
    HINT = f"{USUAL_NAME}, and images/ with labels/, in each split's folder or with a folder for each split,"

    @staticmethod
    def recognises(tree: DataTree) -> bool:
        return _table_of(tree) is not None or _is_laid_out(tree)

    @classmethod
    def open_tree(cls, data_dir: Path) -> DataTree:
        # A label table may name folders that nobody else could recognise.
        tree = DataTree(data_dir)
        return tree if _is_laid_out(tree) else cls.packed_in(tree) or tree

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        """The folder's own label table."""
        tree = DataTree(data_dir)
        if not cls.recognises(tree) and cls.packed_in(tree) is None:
            raise DataError(cls._not_here(tree))
        location = _table_beside(tree, cls.open_tree(data_dir))
        if location is None:
            if right := cls._right_above(tree):
                raise DataError(f"{tree.root} holds no {USUAL_NAME}. But {right[0]} looks right: give that folder.")
            raise DataError(
                f"{tree.expected(USUAL_NAME)} is missing, so that nobody knows what the ids in the label maps mean: write it "
                "(one line, such as names: [road, car, person], is enough), or name a label table or a label space (label_space)."
            )
        return location

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        tree = cls.open_tree(data_dir)
        table = _layout_table(data_dir, tree, label_space)
        if sources := _sources(tree, table):
            return tuple(sorted(sources))
        raise DataError(cls._no_split(tree, table))

    @classmethod
    def _no_split(cls, tree: DataTree, table: LabelTable | None) -> str:
        if unsplit := _unsplit(tree, table):
            if _table_of(tree) is None and (right := cls._right_above(tree)):
                return f"{tree.root} is not divided into splits. But {right[0]} looks right: give that folder."
            return (
                f"{tree.expected(unsplit[0].images)} and {tree.expected(unsplit[0].labels)} are not divided into splits: put "
                f"val_fraction: 0.2 into the label table to hold out a fifth as {VAL}, or name each split's images in train.txt "
                f"and val.txt, one a line, in {tree.root}."
            )
        if table is not None and table.images is not None:
            return (
                f"{tree.root} holds no split: {table.images}/ with {table.labels}/ should lie there, for so the label table says"
                + (f" ({SPLIT} being any name)." if SPLIT in table.images else ".")
            )
        if not cls.recognises(tree):
            return cls._not_here(tree)
        return (
            f"{tree.root} holds no split: {SPLIT}/images/ with {SPLIT}/labels/ or images/{SPLIT}/ with labels/{SPLIT}/ should "
            f"lie there ({SPLIT} being any name), or images/ with labels/ and list files; a label table names other folders."
        )

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        """Changes with the label table, too."""
        definition = find_label_space(label_space).to_json()
        listing = super().digest(data_dir, split, label_space)
        return f"{listing}-{hashlib.sha256(definition.encode()).hexdigest()[:16]}"

    @classmethod
    def list_split(cls, tree: DataTree, split: str, label_space: str) -> list[Listed]:
        table = _layout_table(tree.root, tree, label_space)
        sources = _sources(tree, table).get(split)
        if not sources:
            raise AbsentSplitError(f"{tree.root} has no split {split!r}.")
        pairs = _pairs(tree, sources[0], table)
        for other in sources[1:]:
            if _files(pairs) != _files(_pairs(tree, other, table)):
                raise DataError(
                    f"{tree.root} holds the split {split!r} twice, in {' and '.join(_told_apart(sources[0], other))}: take one "
                    f"of them away, or name the folders in the label table (images, labels)."
                )
        return pairs

    @classmethod
    def _not_here(cls, tree: DataTree) -> str:
        if tree.is_empty:
            return f"The data folder {tree.root} is empty: put images and label maps there, or give another folder."
        return f"{tree.root} holds no images with label maps in a layout that is found: {cls._where_else(tree)}"

    @classmethod
    def _is_part_of(cls, given: Path, above: Path) -> bool:
        """Whether `given` is a folder of the data above it, rather than any folder that lies there."""
        below = given.relative_to(above).as_posix()
        tree = DataTree(above)
        if _table_of(tree) is None:
            return False
        folders = [folder for sources in _found(tree).values() for source in sources for folder in (source.images, source.labels)]
        return any(folder == below or folder.startswith(f"{below}/") for folder in folders)


def _table_of(tree: DataTree) -> str | None:
    """The label table's location; CVAT's is taken where there is no other."""
    return tree.location(USUAL_NAME) or tree.location(CVAT_NAME)


def _table_beside(tree: DataTree, inner: DataTree) -> str | None:
    """The same of a tree and of the folder in its archive that holds the data."""
    return tree.location(USUAL_NAME) or _table_of(inner) or tree.location(CVAT_NAME)


def _layout_table(data_dir: Path, tree: DataTree, label_space: str) -> LabelTable | None:
    """The table that may name folders: the one that is given, else the data folder's own."""
    location = label_space if is_label_table(label_space) else _table_beside(DataTree(data_dir), tree)
    return None if location is None else read_label_table(location)


def _is_laid_out(tree: DataTree) -> bool:
    return bool(_found(tree) or _unsplit(tree, None))


def _sources(tree: DataTree, table: LabelTable | None) -> dict[str, list[Source]]:
    """Where each split lies; several places where it is not clear which is meant."""
    if table is not None and table.images is not None and SPLIT in table.images:
        sources = {split: [source] for split, source in _by_pattern(tree, table.images, table.labels)}
    elif table is not None and table.images is not None:
        sources = _listed_splits(tree, _unsplit(tree, table))
    else:
        sources = _found(tree)
    return sources if table is None or table.val_fraction is None else _with_held_out(tree, table, sources)


def _found(tree: DataTree) -> dict[str, list[Source]]:
    """The splits in the layouts that need no word."""
    sources = defaultdict(list)
    for split in tree.folders():
        if not _is_wrapper(tree, split):
            for images, labels in _folder_pairs(tree, split):
                sources[split].append(Source(images, labels))
    unsplit = _unsplit(tree, None)
    by_list = _listed_splits(tree, unsplit)
    for both in unsplit:
        inside = set(tree.folders(both.images)) & set(tree.folders(both.labels))
        # With lists, any other folder in there sorts the images by something else.
        for split in sorted(inside & set(by_list) if by_list else inside):
            sources[split].append(Source(f"{both.images}/{split}", f"{both.labels}/{split}"))
    for split, listed in by_list.items():
        sources[split] += listed
    return dict(sources)


def _is_wrapper(tree: DataTree, folder: str) -> bool:
    """Whether a folder in an archive holds all of the data rather than one split."""
    if not tree.archives or folder.lower() in SPLIT_NAMES or folder not in tree.packed_folders():
        return False
    inner = tree.below(folder)
    divided = any(split.lower() in SPLIT_NAMES for both in _unsplit(inner, None) for split in inner.folders(both.images))
    return divided or _table_of(inner) is not None or bool(_lists(inner))


def _folder_pairs(tree: DataTree, folder: str) -> list[tuple[str, str]]:
    """Pairs of a folder of images and one of label maps in `folder`; more than one only where each holds images."""
    prefix = f"{folder}/" if folder else ""
    names = tree.folders(folder)

    def called(usual: tuple[str, ...]) -> list[str]:
        found = [f"{prefix}{name}" for name in names if name.lower() in usual]
        filled = [name for name in found if next(images_below(tree, name), None)] if len(found) > 1 else found
        return filled or found[:1]

    return [(images, labels) for images in called(IMAGE_FOLDERS) for labels in called(LABEL_FOLDERS)]


def _unsplit(tree: DataTree, table: LabelTable | None) -> list[Source]:
    """The two folders that hold the images and label maps of all splits."""
    if table is None or table.images is None:
        return [Source(images, labels) for images, labels in _folder_pairs(tree, "")]
    named = SPLIT not in table.images and all(not folder or tree.has_folder(folder) for folder in (table.images, table.labels))
    return [Source(table.images, table.labels)] if named else []


def _lists(tree: DataTree) -> dict[str, list[str]]:
    """Split → the list files of this name."""
    lists = defaultdict(list)
    for name in tree.files("", [".txt"]):
        if PurePosixPath(name).stem.lower() in SPLIT_NAMES:
            lists[PurePosixPath(name).stem].append(name)
    for folder in LIST_FOLDERS:
        for name in tree.files(folder, [".txt"]):
            lists[PurePosixPath(name).stem].append(f"{folder}/{name}")
    return dict(lists)


def _listed_splits(tree: DataTree, unsplit: list[Source]) -> dict[str, list[Source]]:
    if not unsplit:
        return {}
    return {split: [replace(both, listed_in=file) for both in unsplit for file in files] for split, files in _lists(tree).items()}


def _with_held_out(tree: DataTree, table: LabelTable, sources: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """The same with the split val, taken from train's images, from all that no list names, or from those of the only split."""
    whole = next((split for split in HELD_OUT_FROM if split in sources), None)
    if whole is None and len(sources) == 1 and not _unsplit(tree, table):
        whole = next(iter(sources))
    if VAL in sources:
        raise DataError(
            f"{tree.root} has a split {VAL!r} ({_place(sources[VAL][0])}), and the label table's val_fraction would make one "
            "too: take one of them away."
        )
    if whole is not None:
        pool = sources[whole]
    else:
        # Folders in there sort the images by something else than splits.
        lists = [source.listed_in for listed in sources.values() for source in listed if source.listed_in]
        pool = [replace(both, not_in=tuple(lists)) for both in _unsplit(tree, table)]
        inside = {f"{source.images}/" for source in pool}
        sources = {
            split: found
            for split, found in sources.items()
            if not any(source.images.startswith(tuple(inside)) for source in found) or found[0].listed_in
        }
    if not pool:
        raise DataError(
            f"{tree.root} holds nothing that the label table's val_fraction could take from, such as images/ with labels/."
        )
    others = {split: found for split, found in sources.items() if split != whole}
    train = whole if whole == "training" else "train"
    return {
        **others,
        train: [replace(source, held_out=False) for source in pool],
        VAL: [replace(source, held_out=True) for source in pool],
    }


def _pairs(tree: DataTree, source: Source, table: LabelTable | None) -> list[Listed]:
    suffixes = (None, None) if table is None else (table.image_suffix, table.label_suffix)
    pairs = pair_files(tree, source.images, source.labels, *suffixes)

    def listed(file: str) -> list[Listed]:
        return read_split_list(tree, file, source.images, source.labels, pairs)

    chosen = list(pairs.values()) if source.listed_in is None else listed(source.listed_in)
    elsewhere = {pair.image_id for file in source.not_in for pair in listed(file)}
    chosen = [pair for pair in chosen if pair.image_id not in elsewhere]
    if source.held_out is None:
        return chosen
    val = held_out([pair.image_id for pair in chosen], table.val_fraction, table.val_seed)
    return [pair for pair in chosen if (pair.image_id in val) == source.held_out]


def _files(pairs: list[Listed]) -> set[tuple[str, str]]:
    return {(pair.image, pair.label_map) for pair in pairs}


def _place(source: Source) -> str:
    return source.listed_in or source.images


def _told_apart(one: Source, other: Source) -> Iterator[str]:
    """What of two places differs."""
    for source in (one, other):
        same_place = _place(one) == _place(other)
        yield source.labels if same_place and one.images == other.images else source.images if same_place else _place(source)


def _by_pattern(tree: DataTree, images: str, labels: str) -> Iterator[tuple[str, Source]]:
    """The splits of which both folders are there, the table's patterns filled in."""
    before, after = images.split(SPLIT)
    above, _, prefix = before.rpartition("/")
    suffix = after.partition("/")[0]
    for folder in tree.folders(above):
        if match := re.fullmatch(f"{re.escape(prefix)}(.+){re.escape(suffix)}", folder):
            source = Source(images.replace(SPLIT, match[1]), labels.replace(SPLIT, match[1]))
            if tree.has_folder(source.images) and tree.has_folder(source.labels):
                yield match[1], source
