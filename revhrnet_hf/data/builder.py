"""What the builder of every dataset shares: columns, listing, checks. A dataset's own module says where its files lie."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..errors import DataError
from .archive import DataTree
from .class_counts import is_published
from .features import LabelMap, RgbImage
from .label_space import LabelSpace, find_label_space
from .listing import Listed, Sample, check_same_sizes, listing_digest, locate

MAX_LEVELS_UP = 3  # as far above the given folder as the right one is looked for


@dataclass
class SegmentationConfig(datasets.BuilderConfig):
    """What to load: `data_dir`, `split`, `label_space` (a registered name, or a label table's file).

    `listing_digest` stands for the files as they are now, so that a changed folder is never answered from the cache.
    """

    split: str = "train"
    label_space: str = ""
    listing_digest: str = ""


class SegmentationBuilder(datasets.GeneratorBasedBuilder):
    """A dataset with the columns `image` (RGB), `label_map` (train ids, 255 ignored) and `image_id`.

    Sub-classes say:
        TITLE: its name in messages.
        LABEL_SPACES: names of the label spaces that its label maps can be translated to, the usual one first; empty if any can.
        SPLITS: its splits.
        UNLABELLED_SPLITS: further ones, whose label maps the publisher keeps.
        HINT: what lies in the right folder, for messages.
        PUBLISHED_COUNTS: images by split, where its publisher says how many there are (`published_count`).
        recognises(tree): whether the dataset lies directly in this tree.
        list_images(tree, split): the images of an unlabelled split; an AbsentSplitError if it is not there.
        list_split(tree, split, label_space): its images with their label maps; an AbsentSplitError if the split is not there.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = SegmentationConfig
    TITLE: ClassVar[str]
    LABEL_SPACES: ClassVar[tuple[str, ...]]
    SPLITS: ClassVar[tuple[str, ...]]
    UNLABELLED_SPLITS: ClassVar[tuple[str, ...]] = ()
    HINT: ClassVar[str]
    PUBLISHED_COUNTS: ClassVar[dict[str, int]] = {}

    @staticmethod
    def recognises(tree: DataTree) -> bool:
        raise NotImplementedError

    @staticmethod
    def list_split(tree: DataTree, split: str, label_space: str) -> list[Listed]:
        raise NotImplementedError

    @staticmethod
    def list_images(tree: DataTree, split: str) -> list[Listed]:
        raise NotImplementedError

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        return cls.LABEL_SPACES[0]

    @classmethod
    def takes_label_space(cls, label_space: str) -> bool:
        """Whether the label maps can be translated to it."""
        return not cls.LABEL_SPACES or label_space in cls.LABEL_SPACES

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        """The splits that can be asked for."""
        return cls.SPLITS

    @classmethod
    def published_count(cls, tree: DataTree, split: str, space: LabelSpace) -> int | None:
        """How many images the publisher says the split has in this label space; None where that is not the publisher's."""
        return cls.PUBLISHED_COUNTS.get(split) if is_published(space) else None

    @classmethod
    def open_tree(cls, data_dir: Path) -> DataTree:
        """Raises a DataError if the folder is missing, empty or of another level."""
        tree = DataTree(data_dir)
        right = tree if cls.recognises(tree) else cls.packed_in(tree)
        if right is None:
            raise DataError(cls._not_here(tree))
        return right

    @classmethod
    def packed_in(cls, tree: DataTree) -> DataTree | None:
        """The folder at the top of an archive that holds the dataset, for many people pack the folder and not what is in it.

        Raises:
            DataError: there are two such folders.
        """
        right = [folder for folder in tree.packed_folders() if cls.recognises(tree.below(folder))]
        if len(right) > 1:
            raise DataError(
                f"{tree.root} holds archives with {' and '.join(f'{folder}/' for folder in right)}, each of which may be meant: "
                "give each archive a folder of its own."
            )
        return tree.below(right[0]) if right else None

    @classmethod
    def list_samples(cls, data_dir: Path, split: str, label_space: str) -> list[Sample]:
        """The split's images with their label maps, in the dataset's order.

        Raises:
            DataError: the folder is missing, empty or of another level; the split is absent; a file has no partner.
        """
        tree = cls.open_tree(data_dir)
        if split in cls.UNLABELLED_SPLITS:
            return locate(tree, cls.list_images(tree, split))
        return locate(tree, cls.list_split(tree, split, label_space))

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        return listing_digest(cls.list_samples(data_dir, split, label_space))

    @classmethod
    def _not_here(cls, tree: DataTree) -> str:
        if tree.is_empty:
            return f"{cls.TITLE}'s data folder {tree.root} is empty: put the dataset there, or give another folder."
        return f"{tree.root} is not {cls.TITLE}: {cls._where_else(tree)}"

    @classmethod
    def _where_else(cls, tree: DataTree) -> str:
        """What should lie in the folder, and which folder is probably meant."""
        said = f"{cls.HINT} should lie there."
        below = [
            folder for folder in (tree.root / name for name in tree.folders()) if folder.is_dir() and cls._looks_right(folder)
        ]
        if len(below) > 1:
            return f"{said} But {', '.join(map(str, below))} look right: give one of them."
        if right := below or cls._right_above(tree):
            return f"{said} But {right[0]} looks right: give that folder."
        if packed := tree.unreadable_archives():
            return f"{said} {packed[0].name} is compressed as a whole, so images cannot be read out of it: unpack it."
        return f"{said} Give the folder that holds them."

    @classmethod
    def _right_above(cls, tree: DataTree) -> list[Path]:
        """The folder above the given one that is probably meant, or none."""
        given = tree.root.resolve()  # "." has no parent of its own
        levels = given.parents[:MAX_LEVELS_UP]
        return [folder for folder in levels if cls._looks_right(folder) and cls._is_part_of(given, folder)][:1]

    @classmethod
    def _is_part_of(cls, given: Path, above: Path) -> bool:
        """Whether `given`, which is not the dataset, is likely to be meant as part of the dataset that lies above it."""
        return True

    @classmethod
    def _looks_right(cls, folder: Path) -> bool:
        try:
            return cls.recognises(DataTree(folder))
        # A damaged archive or a closed folder elsewhere is not what the user asked about.
        except (DataError, PermissionError):
            return False

    def _info(self) -> datasets.DatasetInfo:
        columns = {
            "image": RgbImage(),
            "label_map": LabelMap.of(find_label_space(self.config.label_space)),
            "image_id": datasets.Value("string"),
        }
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        config = self.config
        samples = check_same_sizes(self.list_samples(Path(config.data_dir), config.split, config.label_space))
        # A list is what `datasets` shards over workers and processes when streaming.
        return [datasets.SplitGenerator(name=stored_split(config.split), gen_kwargs={"samples": samples})]

    def _generate_examples(self, samples: list[Sample]) -> Iterator[tuple[str, dict[str, Any]]]:
        for sample in samples:
            label_map = None if sample.label_map is None else {"path": sample.label_map, "bytes": sample.annotation}
            yield sample.image_id, {"image": sample.image, "label_map": label_map, "image_id": sample.image_id}


def stored_split(split: str) -> str:
    """What `datasets` calls a split, which takes letters, digits and `_` only: `val_2020` for `val-2020`."""
    return re.sub(r"\W", "_", split)
