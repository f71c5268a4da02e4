"""People's own data: a folder of pictures, a folder of label maps, and a label table that says what the ids mean.

Two layouts are found without a word, where SPLIT is any name (train, val, …):

    DATA_DIR/SPLIT/images/…    DATA_DIR/SPLIT/labels/…    DATA_DIR/labels.yaml
    DATA_DIR/images/SPLIT/…    DATA_DIR/labels/SPLIT/…    DATA_DIR/labels.yaml

Any other is named in the label table (`images: photos/{split}`, `labels: masks/{split}`; label_table.py shows its form). A
picture and its label map have the same path below these folders, but for the suffix: `images/train/city/x.jpg` and
`labels/train/city/x.png`.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import AbsentSplitError, DataError
from .builder import SegmentationBuilder
from .label_space import find_label_space
from .label_table import SPLIT, USUAL_NAME, is_label_table, read_label_table
from .listing import Listed
from .tree import DataTree

Layout = tuple[str, str]  # folders of pictures and of label maps

LAYOUTS: tuple[Layout, ...] = ((f"{SPLIT}/images", f"{SPLIT}/labels"), (f"images/{SPLIT}", f"labels/{SPLIT}"))
LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm")
LOSSY = (".jpg", ".jpeg", ".webp", ".jp2")
PICTURES = (*LOSSLESS, *LOSSY, ".ppm")


class Folder(SegmentationBuilder):
    """Pictures and label maps in two folders, with a label table."""

    TITLE = "A data set of your own"
    LABEL_SPACES = ()
    HINT = f"{USUAL_NAME}, and SPLIT/images/ with SPLIT/labels/ or images/SPLIT/ with labels/SPLIT/,"

    @staticmethod
    def recognises(tree: DataTree) -> bool:
        return tree.has_file(USUAL_NAME) or any(_splits_of(tree, layout) for layout in LAYOUTS)

    @classmethod
    def open_tree(cls, data_dir: Path) -> DataTree:
        # A label table may name folders that nobody else could recognise.
        return DataTree(data_dir)

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        """The folder's own label table."""
        tree = super().open_tree(data_dir)
        location = tree.location(USUAL_NAME)
        if location is None:
            raise DataError(
                f"{tree.expected(USUAL_NAME)} is missing, so that nobody knows what the ids in the label maps mean: write it "
                "(one line, such as names: [road, car, person], is enough), or name a label table or a label space (label_space)."
            )
        return location

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        tree = cls.open_tree(data_dir)
        layouts = _layouts(label_space)
        splits = tuple(sorted({split for layout in layouts for split in _splits_of(tree, layout)}))
        if not splits:
            expected = " or ".join(f"{images}/ with {labels}/" for images, labels in layouts)
            raise DataError(
                f"{tree.root} holds no split: {expected} should lie there ({SPLIT} being any name)."
                if cls.recognises(tree)
                else cls._not_here(tree)
            )
        return splits

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        """Changes with the label table, too."""
        definition = find_label_space(label_space).to_json()
        listing = super().digest(data_dir, split, label_space)
        return f"{listing}-{hashlib.sha256(definition.encode()).hexdigest()[:16]}"

    @staticmethod
    def list_split(tree: DataTree, split: str, label_space: str) -> list[Listed]:
        found = [layout for layout in _layouts(label_space) if split in _splits_of(tree, layout)]
        if not found:
            raise AbsentSplitError(f"{tree.root} has no split {split!r}.")
        if len(found) > 1:
            both = " and ".join(images.replace(SPLIT, split) for images, _ in found)
            raise DataError(f"{tree.root} holds the split {split!r} twice, in {both}: take one of them away.")
        return _listed(tree, *(folder.replace(SPLIT, split) for folder in found[0]))


def _layouts(label_space: str) -> tuple[Layout, ...]:
    """The one that the label table names, or the usual ones."""
    if is_label_table(label_space):
        table = read_label_table(label_space)
        if table.images is not None:
            return ((table.images, table.labels),)
    return LAYOUTS


def _splits_of(tree: DataTree, layout: Layout) -> list[str]:
    """The splits of which both folders are there."""
    images, labels = layout
    before, after = images.split(SPLIT)
    above, _, prefix = before.rpartition("/")
    suffix = after.partition("/")[0]
    names = [re.fullmatch(f"{re.escape(prefix)}(.+){re.escape(suffix)}", folder) for folder in tree.folders(above)]
    splits = [match[1] for match in names if match]
    return [split for split in splits if all(tree.has_folder(folder.replace(SPLIT, split)) for folder in (images, labels))]


def _listed(tree: DataTree, images: str, labels: str) -> list[Listed]:
    pictures, label_maps = _by_id(tree, images), _by_id(tree, labels)
    lossy = [file for file in label_maps.values() if file.lower().endswith(LOSSY)]
    if lossy:
        raise DataError(
            f"The label map {tree.expected(lossy[0])} ({len(lossy)} such in {labels}/) is in a format that changes the ids "
            "when it compresses: save label maps as PNG, from what they were drawn in."
        )
    ids = sorted({*pictures, *label_maps})
    if not ids:
        raise DataError(
            f"{tree.root / images} and {tree.root / labels} hold no pictures ({', '.join(PICTURES)}): put them there."
        )
    return [Listed(pictures.get(i, f"{images}/{i}.*"), label_maps.get(i, f"{labels}/{i}.png"), i) for i in ids]


def _by_id(tree: DataTree, folder: str) -> dict[str, str]:
    """Path below `folder` without suffix → file."""
    files: dict[str, str] = {}
    for file in _pictures_below(tree, folder):
        image_id = str(PurePosixPath(file).relative_to(folder).with_suffix(""))
        if image_id in files:
            raise DataError(
                f"{tree.expected(files[image_id])} and {tree.expected(file)} differ in the suffix only: take one away."
            )
        files[image_id] = file
    return files


def _pictures_below(tree: DataTree, folder: str) -> Iterator[str]:
    for name in tree.files(folder):
        if name.lower().endswith(PICTURES):
            yield f"{folder}/{name}"
    for below in tree.folders(folder):
        yield from _pictures_below(tree, f"{folder}/{below}")
