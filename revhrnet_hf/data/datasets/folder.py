"""A user's own data: a folder of images, a folder of label maps, and a label table that defines the ids.

These layouts are recognised, where SPLIT is any name (train, val, …):

    DATA_DIR/SPLIT/images/…    DATA_DIR/SPLIT/labels/…    DATA_DIR/labels.yaml
    DATA_DIR/images/SPLIT/…    DATA_DIR/labels/SPLIT/…    DATA_DIR/labels.yaml
    DATA_DIR/images/…          DATA_DIR/labels/…          DATA_DIR/labels.yaml

In the last layout, a list file names the images of each split (SPLIT.txt in DATA_DIR, splits/ or ImageSets/Segmentation/), or the
label table holds out a share of them (`val_fraction: 0.2`). In the others, it holds out a share of train, or of all splits that
are not for validation or test. The folders may have other names (`IMAGE_FOLDERS`, `LABEL_FOLDERS`), so that exports in VOC's
layout and CVAT's "Segmentation mask 1.1", with its labelmap.txt as label table, can be read. Any other layout is named in the
label table (`images: photos/{split}`, `labels: masks/{split}`; label_table.py shows its form). If a split has several folders of
images, each with its label maps, a `*` stands for their names (`{split}/*/rgb`, `{split}/*/gt`), which are put before the ids.

An image and its label map have the same path below these folders, except for the ending and a suffix: `images/train/city/x.jpg`
and `labels/train/city/x.png` or `labels/train/city/x_mask.png` (pairing.py). With `labelme` in the label table, label maps are
drawn from labelme's JSON files (labelme.py). All files may be in a zip or tar file, also inside one folder of it.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...errors import AbsentSplitError, DataError
from ..archive import DataFolder
from ..builder import SegmentationBuilder
from ..label_space import find_label_space
from ..label_table import ANY, CVAT_NAME, SPLIT, USUAL_NAME, LabelTable, is_label_table, read_label_table
from ..listing import ListedSample
from .labelme import labelme_pairs
from .pairing import Affix, held_out, images_below, pair_files, read_split_list

# In lower case; folders with capitals are found as well.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "jpegimages")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "ann_dir", "segmentationclass", "segmentationclasspng")
LIST_FOLDERS = ("splits", "lists", "ImageSets/Segmentation")  # every *.txt in them is a split's list
TRAINED_ON = ("train", "training")
SCORED_ON = ("val", "valid", "validation", "dev", "eval")
TESTS = ("test", "testing")
HELD_OUT_FROM = (*TRAINED_ON, "default")
# In the data folder itself, only *.txt files with these names are lists.
SPLIT_NAMES = (*TRAINED_ON, *SCORED_ON, *TESTS, "trainval", "default")
YEAR = re.compile(r"[ _.-]?(?:19|20)\d\d$")  # behind a split's name: train2017
VAL = "val"


@dataclass(frozen=True)
class SplitSource:
    """Where a split's files are.

    Attributes:
        images, labels: folders of images and of label maps.
        listed_in: the list file that names the split's images; None for all images in the folder.
        not_in: list files of images that are excluded.
        without: names of folders in `images` and `labels` that are excluded, because they are splits of their own.
        part: name that tells these folders from others of the same split, put before the ids; empty if there are no others.
        held_out: with `val_fraction`, whether the split has the held-out images (True) or the others (False); None for all.
    """

    images: str
    labels: str
    listed_in: str | None = None
    not_in: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    part: str = ""
    held_out: bool | None = None


class Folder(SegmentationBuilder):
    """Images and label maps in two folders, with a label table."""

    TITLE = "Data of your own"
    LABEL_SPACES = ()
    HINT = f"{USUAL_NAME}, and images/ with labels/, in each split's folder or with a folder for each split,"

    @staticmethod
    def recognises(data_folder: DataFolder) -> bool:
        return _table_of(data_folder) is not None or _is_laid_out(data_folder)

    @classmethod
    def open_folder(cls, data_dir: Path) -> DataFolder:
        # Not an error if the layout is not recognised: a label table may name the folders.
        data_folder = DataFolder(data_dir)
        return data_folder if _is_laid_out(data_folder) else cls.find_packed(data_folder) or data_folder

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        """The folder's own label table."""
        data_folder = DataFolder(data_dir)
        if not cls.recognises(data_folder) and cls.find_packed(data_folder) is None:
            raise DataError(cls._not_found_message(data_folder))
        location = _table_beside(data_folder, cls.open_folder(data_dir))
        if location is None:
            if found := cls._recognised_above(data_folder):
                raise DataError(f"{data_folder.root} holds no {USUAL_NAME}. But {found[0]} looks right: give that folder.")
            raise DataError(
                f"{data_folder.expected(USUAL_NAME)} is missing, so the meaning of the ids in the label maps is unknown: write "
                "it (one line, such as names: [road, car, person], is enough), or name a label table or label space "
                "(label_space)."
            )
        return location

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        data_folder = cls.open_folder(data_dir)
        table = _layout_table(data_dir, data_folder, label_space)
        if sources := _sources(data_folder, table):
            return tuple(sorted(sources))
        raise DataError(cls._no_split(data_folder, table))

    @classmethod
    def _no_split(cls, data_folder: DataFolder, table: LabelTable | None) -> str:
        if unsplit := _unsplit_sources(data_folder, table):
            if _table_of(data_folder) is None and (found := cls._recognised_above(data_folder)):
                return f"{data_folder.root} is not divided into splits. But {found[0]} looks right: give that folder."
            return (
                f"{data_folder.expected(unsplit[0].images)} and {data_folder.expected(unsplit[0].labels)} are not divided into "
                f"splits: put val_fraction: 0.2 into the label table to hold out a fifth as {VAL}, or name each split's images "
                f"in train.txt and val.txt, one a line, in {data_folder.root}."
            )
        if table is not None and table.images is not None:
            return (
                f"{data_folder.root} holds no split: according to the label table, {table.images}/ with {table.labels}/ should "
                "lie there" + (f" ({SPLIT} being any name)." if SPLIT in table.images else ".")
            )
        if not cls.recognises(data_folder):
            return cls._not_found_message(data_folder)
        return (
            f"{data_folder.root} holds no split: {SPLIT}/images/ with {SPLIT}/labels/ or images/{SPLIT}/ with labels/{SPLIT}/ "
            f"should lie there ({SPLIT} being any name), or images/ with labels/ and list files; a label table names other "
            "folders."
        )

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        """Changes with the files, and with the label table."""
        definition = find_label_space(label_space).to_json()
        listing = super().digest(data_dir, split, label_space)
        return f"{listing}-{hashlib.sha256(definition.encode()).hexdigest()[:16]}"

    @classmethod
    def list_split(cls, data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        table = _layout_table(data_folder.root, data_folder, label_space)
        sources = _sources(data_folder, table).get(split)
        if not sources:
            raise AbsentSplitError(f"{data_folder.root} has no split {split!r}.")
        parts = defaultdict(list)
        for source in sources:
            parts[source.part].append(source)
        pairs = []
        for part, (first, *others) in parts.items():
            found = _pairs(data_folder, first, table)
            for other in others:
                if _files(found) != _files(_pairs(data_folder, other, table)):
                    raise DataError(
                        f"{data_folder.root} holds the split {split!r} twice, in {' and '.join(_differences(first, other))}: "
                        f"take one of them away, or name the folders in the label table (images, labels)."
                    )
            pairs += [pair._replace(image_id=f"{part}/{pair.image_id}") for pair in found] if part else found
        return pairs if sources[0].held_out is None else _share(pairs, table, sources[0].held_out)

    @classmethod
    def _not_found_message(cls, data_folder: DataFolder) -> str:
        if data_folder.is_empty:
            return f"The data folder {data_folder.root} is empty: put images and label maps there, or give another folder."
        return f"{data_folder.root} holds no images with label maps in a known layout: {cls._suggestion(data_folder)}"

    @classmethod
    def _is_part_of(cls, given: Path, above: Path) -> bool:
        """Whether `given` is a folder of images or label maps in the data above, rather than any other folder there."""
        below = given.relative_to(above).as_posix()
        data_folder = DataFolder(above)
        if _table_of(data_folder) is None:
            return False
        sources = [source for sources in _usual_sources(data_folder).values() for source in sources]
        folders = [folder for source in sources for folder in (source.images, source.labels)]
        return any(folder == below or folder.startswith(f"{below}/") for folder in folders)


def find_split(splits: Iterable[str], names: Iterable[str]) -> str | None:
    """The split that has one of the names, the first name first; None if there is none.

    Capitals do not count (`Train`), nor does a year (`train2017`) if only one split is called so.
    """
    splits = list(splits)
    for name in names:
        if found := [split for split in splits if split.lower() == name]:
            return name if name in found else found[0]
    with_year = [split for split in splits if _without_year(split) in names]
    return with_year[0] if len(with_year) == 1 else None


def _without_year(split: str) -> str:
    return YEAR.sub("", split.lower())


def _table_of(data_folder: DataFolder) -> str | None:
    """The location of the label table, else of CVAT's; None if there is neither."""
    return data_folder.location(USUAL_NAME) or data_folder.location(CVAT_NAME)


def _table_beside(data_folder: DataFolder, inner: DataFolder) -> str | None:
    """The same for a data folder and the folder inside its archive that holds the data."""
    return data_folder.location(USUAL_NAME) or _table_of(inner) or data_folder.location(CVAT_NAME)


def _layout_table(data_dir: Path, data_folder: DataFolder, label_space: str) -> LabelTable | None:
    """The label table that may name folders: the given one, else that of the data folder."""
    location = label_space if is_label_table(label_space) else _table_beside(DataFolder(data_dir), data_folder)
    return None if location is None else read_label_table(location)


def _is_laid_out(data_folder: DataFolder) -> bool:
    return bool(_usual_sources(data_folder) or _unsplit_sources(data_folder, None))


def _sources(data_folder: DataFolder, table: LabelTable | None) -> dict[str, list[SplitSource]]:
    """Split → its source; several if it is not clear which one is meant."""
    if table is not None and table.images is not None and SPLIT in table.images:
        sources = sources_by_pattern(data_folder, table.images, table.labels)
    elif table is not None and table.images is not None:
        sources = _listed_splits(data_folder, _unsplit_sources(data_folder, table))
    else:
        sources = _usual_sources(data_folder)
    return sources if table is None or table.val_fraction is None else _with_held_out(data_folder, table, sources)


def sources_without_table(data_folder: DataFolder) -> tuple[list[SplitSource], bool]:
    """The places of images and label maps in a layout that needs no label table, and whether they are divided into splits."""
    divided = [source for sources in _usual_sources(data_folder).values() for source in sources]
    return (divided, True) if divided else (_unsplit_sources(data_folder, None), False)


def _usual_sources(data_folder: DataFolder) -> dict[str, list[SplitSource]]:
    """Split → its sources in the layouts that are recognised without a label table."""
    sources = defaultdict(list)
    for split in data_folder.folders():
        if not _is_wrapper(data_folder, split):
            for images, labels in _folder_pairs(data_folder, split):
                sources[split].append(SplitSource(images, labels))
    unsplit = _unsplit_sources(data_folder, None)
    by_list = _listed_splits(data_folder, unsplit)
    for source in unsplit:
        inside = set(data_folder.folders(source.images)) & set(data_folder.folders(source.labels))
        # If there are lists, folders with other names are not splits.
        for split in sorted(inside & set(by_list) if by_list else inside):
            sources[split].append(SplitSource(f"{source.images}/{split}", f"{source.labels}/{split}"))
    for split, listed in by_list.items():
        sources[split] += listed
    return dict(sources)


def _is_wrapper(data_folder: DataFolder, folder: str) -> bool:
    """Whether a folder in an archive holds all the data rather than one split."""
    if not data_folder.archives or folder.lower() in SPLIT_NAMES or not data_folder.is_packed(folder):
        return False
    inner = data_folder.subfolder(folder)
    splits = [split for source in _unsplit_sources(inner, None) for split in inner.folders(source.images)]
    is_divided = any(split.lower() in SPLIT_NAMES for split in splits)
    return is_divided or _table_of(inner) is not None or bool(list_files(inner))


def _folder_pairs(data_folder: DataFolder, folder: str) -> list[tuple[str, str]]:
    """Pairs of a folder of images and one of label maps in `folder`. Among several, empty folders are left out."""
    prefix = f"{folder}/" if folder else ""
    names = data_folder.folders(folder)

    def with_name_in(usual: tuple[str, ...]) -> list[str]:
        found = [f"{prefix}{name}" for name in names if name.lower() in usual]
        filled = [name for name in found if next(images_below(data_folder, name), None)] if len(found) > 1 else found
        return filled or found[:1]

    return [(images, labels) for images in with_name_in(IMAGE_FOLDERS) for labels in with_name_in(LABEL_FOLDERS)]


def _unsplit_sources(data_folder: DataFolder, table: LabelTable | None) -> list[SplitSource]:
    """The folders that hold the images and label maps of all splits."""
    if table is None or table.images is None:
        return [SplitSource(images, labels) for images, labels in _folder_pairs(data_folder, "")]
    named = SPLIT not in table.images and all(
        not folder or data_folder.has_folder(folder) for folder in (table.images, table.labels)
    )
    return [SplitSource(table.images, table.labels)] if named else []


def list_files(data_folder: DataFolder) -> dict[str, list[str]]:
    """Split → the list files with its name."""
    lists = defaultdict(list)
    for name in data_folder.files("", [".txt"]):
        if PurePosixPath(name).stem.lower() in SPLIT_NAMES:
            lists[PurePosixPath(name).stem].append(name)
    for folder in LIST_FOLDERS:
        for name in data_folder.files(folder, [".txt"]):
            lists[PurePosixPath(name).stem].append(f"{folder}/{name}")
    return dict(lists)


def _listed_splits(data_folder: DataFolder, unsplit: list[SplitSource]) -> dict[str, list[SplitSource]]:
    if not unsplit:
        return {}
    return {
        split: [replace(source, listed_in=file) for source in unsplit for file in files]
        for split, files in list_files(data_folder).items()
    }


def _with_held_out(
    data_folder: DataFolder, table: LabelTable, sources: dict[str, list[SplitSource]]
) -> dict[str, list[SplitSource]]:
    """Adds the split val: a share of train's images, else of all that no list names and no split for validation or test has."""
    if taken := next((split for split in sources if split.lower() == VAL), None):
        raise DataError(
            f"{data_folder.root} has a split {taken!r} ({_list_or_folder(sources[taken][0])}), and the label table's "
            "val_fraction would make one too: take one of them away."
        )
    parent = find_split(sources, HELD_OUT_FROM)
    unsplit = _unsplit_sources(data_folder, table)
    if parent is not None:
        pool, in_pool = sources[parent], {parent}
    elif unsplit:
        pool, in_pool = _undivided_pool(unsplit, sources)
    else:
        pool, in_pool = _pool_of_splits(sources)
    if not pool:
        raise _no_pool(data_folder, sources)
    others = {split: found for split, found in sources.items() if split not in in_pool}
    train = parent if parent == "training" else "train"
    return {
        **others,
        train: [replace(source, held_out=False) for source in pool],
        VAL: [replace(source, held_out=True) for source in pool],
    }


def _undivided_pool(unsplit: list[SplitSource], sources: dict[str, list[SplitSource]]) -> tuple[list[SplitSource], set[str]]:
    """The images that belong to no list and to no split for validation or test, and the names of folders that are no splits."""
    lists = tuple(source.listed_in for listed in sources.values() for source in listed if source.listed_in)
    above = tuple(f"{source.images}/" for source in unsplit)
    inside = {
        split
        for split, found in sources.items()
        if not found[0].listed_in and any(source.images.startswith(above) for source in found)
    }
    aside = _not_to_train_on(inside)
    return [replace(source, not_in=lists, without=tuple(sorted(aside))) for source in unsplit], inside - aside


def _pool_of_splits(sources: dict[str, list[SplitSource]]) -> tuple[list[SplitSource], set[str]]:
    """The images of all splits that are not for validation or test, or of the only split; and the names of these splits."""
    splits = set(sources) - _not_to_train_on(sources) if len(sources) > 1 else set(sources)
    parts = {split: split if len(splits) > 1 else "" for split in sorted(splits)}
    pool = [
        replace(source, part="/".join(filter(None, (part, source.part))))
        for split, part in parts.items()
        for source in sources[split]
    ]
    return pool, splits


def _not_to_train_on(splits: Iterable[str]) -> set[str]:
    return {split for split in splits if _without_year(split) in (*SCORED_ON, *TESTS)}


def _no_pool(data_folder: DataFolder, sources: dict[str, list[SplitSource]]) -> DataError:
    if sources:
        return DataError(
            f"{data_folder.root} has the splits {', '.join(sorted(sources))}, and none to train on, from which the label table's "
            "val_fraction could hold out images: call one of them train."
        )
    return DataError(
        f"{data_folder.root} holds no images for the label table's val_fraction: images/ with labels/ should lie there."
    )


def _pairs(data_folder: DataFolder, source: SplitSource, table: LabelTable | None) -> list[ListedSample]:
    if table is not None and table.labelme is not None:
        pairs = labelme_pairs(data_folder, source.labels, table.labelme)
    else:
        pairs = pair_files(data_folder, source.images, source.labels, *_affixes(table))

    def listed(file: str) -> list[ListedSample]:
        return read_split_list(data_folder, file, source.images, source.labels, pairs)

    chosen = list(pairs.values()) if source.listed_in is None else listed(source.listed_in)
    elsewhere = {pair.image_id for file in source.not_in for pair in listed(file)}
    apart = tuple(f"{folder}/" for folder in source.without)
    return [pair for pair in chosen if pair.image_id not in elsewhere and not pair.image_id.startswith(apart)]


def _share(pairs: list[ListedSample], table: LabelTable, is_held_out: bool) -> list[ListedSample]:
    val = held_out([pair.image_id for pair in pairs], table.val_fraction, table.val_seed)
    return [pair for pair in pairs if (pair.image_id in val) == is_held_out]


def _affixes(table: LabelTable | None) -> tuple[Affix | None, Affix | None]:
    if table is None:
        return None, None
    return Affix.of(table.image_prefix, table.image_suffix), Affix.of(table.label_prefix, table.label_suffix)


def _files(pairs: list[ListedSample]) -> set[tuple[str, str]]:
    return {(pair.image, pair.label_map) for pair in pairs}


def _list_or_folder(source: SplitSource) -> str:
    return source.listed_in or source.images


def _differences(one: SplitSource, other: SplitSource) -> tuple[str, str]:
    """The list or folder of each source in which the two differ."""
    parts = [(_list_or_folder(source), source.images, source.labels) for source in (one, other)]
    return next(pair for pair in zip(*parts, strict=True) if pair[0] != pair[1])


def split_pattern(folder: str) -> re.Pattern[str]:
    """Matches what `folder` describes: `{split}` is the group `split`, alike wherever it stands, and `*` is the group `part`."""
    escaped = re.escape(SPLIT)
    pattern = re.escape(folder).replace(escaped, "(?P<split>[^/]+)", 1).replace(escaped, "(?P=split)")
    return re.compile(pattern.replace(re.escape(ANY), "(?P<part>[^/]+)"))


def part_of(match: re.Match[str]) -> str:
    """What `*` stands for; empty if the pattern has none."""
    return match.groupdict().get("part", "")


def filled(folder: str, split: str, part: str) -> str:
    """The folder that `folder` describes, for a split and for what `*` stands for."""
    return folder.replace(SPLIT, split).replace(ANY, part)


def sources_by_pattern(data_folder: DataFolder, images: str, labels: str) -> dict[str, list[SplitSource]]:
    """Split → its sources, for a label table's folders with `{split}`: wherever both folders exist."""
    sources = defaultdict(list)
    for folder in _folders_like(data_folder, images):
        if match := split_pattern(images).fullmatch(folder):
            source = SplitSource(folder, filled(labels, match["split"], part_of(match)), part=part_of(match))
            if data_folder.has_folder(source.images) and data_folder.has_folder(source.labels):
                sources[match["split"]].append(source)
    return dict(sources)


def _folders_like(data_folder: DataFolder, folder: str) -> list[str]:
    """The folders of which each name is like that in `folder`."""
    found = [""]
    for name in folder.split("/"):
        if SPLIT in name or ANY in name:
            like = split_pattern(name)
            found = [f"{above}/{below}" for above in found for below in data_folder.folders(above[1:]) if like.fullmatch(below)]
        else:
            found = [f"{above}/{name}" for above in found]
    return [path[1:] for path in found]
