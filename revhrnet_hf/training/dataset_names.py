"""The datasets that a recipe names, each with a name of its own.

A published dataset has the name of its loader (`cityscapes`). Folders of own images and datasets of the Hub can have any name;
then the recipe names the loader too:

    dataset: {name: photos, loader: folder}
    more_datasets:
      - {name: scans, loader: folder, split: all}
      - coco

This is the same as `dataset: photos`, `loader: folder` and `more_datasets: ["scans:all,loader=folder", coco]`, as written on the
command line. Folders on the command line (`--data_dir photos=A scans=B`), tables, results and folders of stages use the names.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RecipeError

OPTIONS = ("loader", "label_space", "image_column", "label_column")
ENTRY = re.compile(r"(?P<name>[^:,=]+)(?::(?P<split>[^,]+))?(?P<options>(?:,[^,=]+=[^,]+)*)")


@dataclass(frozen=True)
class NamedDataset:
    """A dataset of a recipe.

    Attributes:
        name: its name in the recipe, on the command line and in results.
        split: the split to train on; None: the recipe's.
        loader: as for `load_segmentation_dataset`; None: `name` is the loader's.
        label_space, image_column, label_column: as for `load_segmentation_dataset`.
    """

    name: str
    split: str | None = None
    loader: str | None = None
    label_space: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    @classmethod
    def of_text(cls, text: str) -> "NamedDataset":
        """From `NAME`, `NAME:SPLIT` or `NAME:SPLIT,loader=LOADER,label_space=…`; anything else is a RecipeError."""
        match = ENTRY.fullmatch(text)
        options = [option.split("=", 1) for option in match["options"].split(",")[1:]] if match else []
        unknown = [key for key, _ in options if key not in OPTIONS]
        if match is None or unknown or len(dict(options)) < len(options):
            raise RecipeError(
                f"Recipe field more_datasets: {text!r} is not NAME or NAME:SPLIT, with ,KEY=VALUE behind it for "
                f"{', '.join(OPTIONS)} where needed, such as scans:all,loader=folder"
            )
        return cls(match["name"], match["split"], **dict(options))

    @classmethod
    def of_mapping(cls, field: str, mapping: Mapping[str, Any]) -> "NamedDataset":
        """From `{name: scans, loader: folder}`; a RecipeError names a key that is unknown, missing or not text."""
        keys = ("name", "split", *OPTIONS)
        for key, value in mapping.items():
            if key not in keys or not isinstance(value, str):
                raise RecipeError(f"Recipe field {field}: {key}: {value!r} is not one of {', '.join(keys)} with a text")
        if "name" not in mapping:
            raise RecipeError(f"Recipe field {field}: {dict(mapping)!r} has no name, such as {{name: scans, loader: folder}}")
        return cls(**mapping)

    def __str__(self) -> str:
        options = "".join(f",{key}={value}" for key in OPTIONS if (value := getattr(self, key)) is not None)
        return f"{self.name}{'' if self.split is None else f':{self.split}'}{options}"


def as_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, with fields and text in place of datasets that are written as mappings.

    Raises:
        RecipeError: a mapping has a wrong key or value, or contradicts a field.
    """
    fields = dict(settings)
    if isinstance(fields.get("dataset"), Mapping):
        said = asdict(NamedDataset.of_mapping("dataset", fields.pop("dataset")))
        said["dataset"], said["train_split"] = said.pop("name"), said.pop("split")
        for key, value in said.items():
            if value is not None and fields.setdefault(key, value) != value:
                raise RecipeError(f"Recipe field {key} is said twice: {fields[key]!r}, and {value!r} within dataset")
    if isinstance(fields.get("more_datasets"), list):
        fields["more_datasets"] = [
            str(NamedDataset.of_mapping("more_datasets", entry)) if isinstance(entry, Mapping) else entry
            for entry in fields["more_datasets"]
        ]
    return fields


def check_one_loader(datasets: list[NamedDataset]) -> None:
    """Raises a RecipeError for a name that stands for two datasets."""
    first: dict[str, NamedDataset] = {}
    for dataset in datasets:
        known = first.setdefault(dataset.name, dataset)
        if (known.loader or known.name) != (dataset.loader or dataset.name):
            raise RecipeError(
                f"The dataset {dataset.name!r} has the loader {known.loader or known.name!r} and "
                f"{dataset.loader or dataset.name!r}: give each dataset a name of its own"
            )
