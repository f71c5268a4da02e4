"""The base class of all dataset builders: columns, listing, checks. Each dataset's own module says where its files are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..errors import DataError
from .archive import DataFolder
from .class_counts import is_published
from .features import LabelMap, RgbImage
from .label_space import LabelSpace, find_label_space
from .listing import ListedSample, Sample, check_same_sizes, listing_digest, locate

MAX_LEVELS_UP = 3  # folders above the given one that are searched for the dataset


@dataclass
class SegmentationConfig(datasets.BuilderConfig):
    """What to load: `data_dir`, `split`, `label_space` (a registered name, or a label table's file).

    `listing_digest` changes with the files, so that `datasets` does not return an old version from its cache.
    """

    split: str = "train"
    label_space: str = ""
    listing_digest: str = ""


class SegmentationBuilder(datasets.GeneratorBasedBuilder):
    """A dataset with the columns `image` (RGB), `label_map` (train ids, 255 ignored) and `image_id`.

    Subclasses define:
        TITLE: the dataset's name in messages.
        LABEL_SPACES: names of the label spaces that the label maps can be translated to, the default first; empty if any can.
        SPLITS: the splits.
        UNLABELLED_SPLITS: further splits, whose label maps are not public.
        HINT: the contents of the right folder, for messages.
        PUBLISHED_COUNTS: the number of images in each split according to the publisher (see `published_count`).
        recognises(data_folder): whether the dataset is directly in this folder.
        list_images(data_folder, split): the images of an unlabelled split; an AbsentSplitError if the split is missing.
        list_split(data_folder, split, label_space): its images with label maps; an AbsentSplitError if the split is missing.
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
    def recognises(data_folder: DataFolder) -> bool:
        raise NotImplementedError

    @staticmethod
    def list_split(data_folder: DataFolder, split: str, label_space: str) -> list[ListedSample]:
        raise NotImplementedError

    @staticmethod
    def list_images(data_folder: DataFolder, split: str) -> list[ListedSample]:
        raise NotImplementedError

    @classmethod
    def default_label_space(cls, data_dir: Path) -> str:
        return cls.LABEL_SPACES[0]

    @classmethod
    def accepts_label_space(cls, label_space: str) -> bool:
        """Whether the label maps can be translated to it."""
        return not cls.LABEL_SPACES or label_space in cls.LABEL_SPACES

    @classmethod
    def splits(cls, data_dir: Path, label_space: str) -> tuple[str, ...]:
        """The splits that can be requested."""
        return cls.SPLITS

    @classmethod
    def published_count(cls, data_folder: DataFolder, split: str, space: LabelSpace) -> int | None:
        """The publisher's number of images in the split; None if it is unknown or the label space is not the publisher's."""
        return cls.PUBLISHED_COUNTS.get(split) if is_published(space) else None

    @classmethod
    def open_folder(cls, data_dir: Path) -> DataFolder:
        """The dataset's folder; a DataError if it is missing, empty, or a folder above or below the right one."""
        data_folder = DataFolder(data_dir)
        found = data_folder if cls.recognises(data_folder) else cls.find_packed(data_folder)
        if found is None:
            raise DataError(cls._not_found_message(data_folder))
        return found

    @classmethod
    def find_packed(cls, data_folder: DataFolder) -> DataFolder | None:
        """The dataset in a top folder of an archive: many people pack the folder itself rather than its contents.

        Raises:
            DataError: there are two such folders.
        """
        found = [folder for folder in data_folder.packed_folders() if cls.recognises(data_folder.subfolder(folder))]
        if len(found) > 1:
            raise DataError(
                f"{data_folder.root} holds archives with {' and '.join(f'{folder}/' for folder in found)}, and it is not clear "
                "which one is meant: give each archive a folder of its own."
            )
        return data_folder.subfolder(found[0]) if found else None

    @classmethod
    def list_samples(cls, data_dir: Path, split: str, label_space: str) -> list[Sample]:
        """The split's images with their label maps, in the dataset's order.

        Raises:
            DataError: as `open_folder`; the split is missing; a file has no partner.
        """
        data_folder = cls.open_folder(data_dir)
        if split in cls.UNLABELLED_SPLITS:
            return locate(data_folder, cls.list_images(data_folder, split))
        return locate(data_folder, cls.list_split(data_folder, split, label_space))

    @classmethod
    def digest(cls, data_dir: Path, split: str, label_space: str) -> str:
        return listing_digest(cls.list_samples(data_dir, split, label_space))

    @classmethod
    def _not_found_message(cls, data_folder: DataFolder) -> str:
        if data_folder.is_empty:
            return f"{cls.TITLE}'s data folder {data_folder.root} is empty: put the dataset there, or give another folder."
        return f"{data_folder.root} is not {cls.TITLE}: {cls._suggestion(data_folder)}"

    @classmethod
    def _suggestion(cls, data_folder: DataFolder) -> str:
        """What the folder should contain, and the folder that is probably meant."""
        hint = f"{cls.HINT} should lie there."
        folders = [data_folder.root / name for name in data_folder.folders()]
        below = [folder for folder in folders if folder.is_dir() and cls._is_recognised(folder)]
        if len(below) > 1:
            return f"{hint} But {', '.join(map(str, below))} look right: give one of them."
        if found := below or cls._recognised_above(data_folder):
            return f"{hint} But {found[0]} looks right: give that folder."
        if packed := data_folder.unreadable_archives():
            return f"{hint} {packed[0].name} is compressed as a whole, so images cannot be read out of it: unpack it."
        return f"{hint} Give the folder that holds them."

    @classmethod
    def _recognised_above(cls, data_folder: DataFolder) -> list[Path]:
        """The folder above the given one that is probably meant; an empty list if there is none."""
        given = data_folder.root.resolve()  # Path(".").parents is empty
        levels = given.parents[:MAX_LEVELS_UP]
        return [folder for folder in levels if cls._is_recognised(folder) and cls._is_part_of(given, folder)][:1]

    @classmethod
    def _is_part_of(cls, given: Path, above: Path) -> bool:
        """Whether `given`, which is not the dataset, is probably a part of the dataset in the folder above."""
        return True

    @classmethod
    def _is_recognised(cls, folder: Path) -> bool:
        try:
            return cls.recognises(DataFolder(folder))
        except (DataError, PermissionError):  # a damaged archive or a protected folder that the user did not ask for
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
        if not samples:
            raise DataError(
                f"The split {config.split!r} of {self.TITLE} in {config.data_dir} lists no image: choose another split."
            )
        # The argument must be a list: `datasets` divides lists among workers and processes when streaming.
        return [datasets.SplitGenerator(name=stored_split(config.split), gen_kwargs={"samples": samples})]

    def _generate_examples(self, samples: list[Sample]) -> Iterator[tuple[str, dict[str, Any]]]:
        for sample in samples:
            label_map = None if sample.label_map is None else {"path": sample.label_map, "bytes": sample.annotation}
            yield sample.image_id, {"image": sample.image, "label_map": label_map, "image_id": sample.image_id}


def stored_split(split: str) -> str:
    """The split's name in `datasets`, which allows only letters, digits and `_`: `val_2020` for `val-2020`."""
    return re.sub(r"\W", "_", split)
