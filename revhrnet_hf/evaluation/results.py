"""Where an evaluation's results lie, so that two evaluations never share a file: named for the dataset and for the settings.

scores_camvid_val.json                                  whole images in float32
scores_camvid_val_window480x480_flip_bfloat16.json      otherwise
scores_folder-photos_val.json                           a folder of one's own, called photos
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from tqdm import tqdm

from ..data.archive import read_location
from ..data.features import self_contained_file
from ..data.label_space import LabelSpace
from ..data.listing import LONG_CHECK
from ..data.loading import STORED
from ..errors import RecipeError
from .settings import InferenceSettings

OWN = ("folder", STORED)  # loaders whose name says nothing about the data
MAX_STEM = 150  # bytes; file systems take 255, and endings are added
DATA = ("dataset", "loader", "split", "label_space", "label_table", "image_ids", "data")
IDENTITY = ("checkpoint", *DATA, "absent_as_zero", "dtype", "inference")
"""Fields of a record in which two evaluations differ that are not the same."""


def named_data_dir(text: str) -> tuple[str | None, str]:
    """`NAME=DIR` as (NAME, DIR); DIR alone as (None, DIR), also where it is a folder with a "=" in its name."""
    name, equals, folder = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(text).exists():
        return None, text
    if not folder:
        raise RecipeError(f"--data_dir {text}: say where the dataset lies, {name}=DIR")
    return name, folder


def dataset_name(loader: str, data_dir: str | Path, name: str | None = None) -> str:
    """A dataset's own name: the one given; that of its folder, or on the Hub, where the loader's says nothing; the loader's."""
    if name or loader not in OWN:
        return name or loader
    folder = Path(data_dir).expanduser()
    # Not the way to it, which is nobody else's business. A name on the Hub has two parts.
    return folder.resolve().name if folder.exists() else str(data_dir)


def result_stem(
    dataset: str,
    split: str,
    settings: InferenceSettings,
    *,
    loader: str | None = None,
    dtype: str = "float32",
    label_space: str | None = None,
    absent_as_zero: bool = False,
    checkpoint: str | None = None,
) -> str:
    """The name of the files of an evaluation, without an ending.

    Args:
        dataset: its own name.
        loader: is put before it, where the name was not given but is that of a folder or on the Hub.
        label_space: the name or label table that was asked for, if one was.
        checkpoint: its name on the Hub, where the files do not lie in the checkpoint's own folder.
    """
    parts = ["scores", checkpoint, f"{loader}-{dataset}" if loader else dataset, split]
    parts.append(label_space and Path(label_space).stem)
    parts += settings_parts(settings)
    parts += [dtype if dtype != "float32" else None, "absent0" if absent_as_zero else None]
    stem = "_".join(re.sub(r"[^\w.-]", "-", part) for part in parts if part)
    if len(stem.encode()) <= MAX_STEM:
        return stem
    digest = hashlib.sha256(stem.encode()).hexdigest()[:12]
    return stem.encode()[: MAX_STEM - 13].decode(errors="ignore") + f"_{digest}"


def settings_parts(settings: InferenceSettings) -> list[str]:
    """What differs from whole images, once."""
    parts = []
    if settings.window is not None:
        parts.append("window{}x{}".format(*settings.window))
        if settings.stride is not None:
            parts.append("stride{}x{}".format(*settings.stride))
    if settings.scales != (1.0,):
        parts.append("scales" + "-".join(repr(float(scale)).removesuffix(".0") for scale in settings.scales))
    if settings.flip:
        parts.append("flip")
    if settings.average != "softmax":
        parts.append(settings.average)
    if settings.batch_size > 1:
        parts.append(f"batch{settings.batch_size}")
    return parts


def digest_of_ids(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def digest_of_table(label_space: LabelSpace) -> str:
    """A short hash of what the ids and colours in label maps mean; the colours that are drawn do not count."""
    raw = (sorted(label_space.raw_ids.items()), sorted(label_space.raw_colours.items()))
    return hashlib.sha256(json.dumps([label_space.names, label_space.ignore_index, *raw]).encode()).hexdigest()[:16]


def digest_of_data(dataset: datasets.Dataset, more_files: Sequence[str] = ()) -> str:
    """A short hash of all images and label maps as they are stored, by content: the same wherever a copy of them lies.

    Every file is read, as the evaluation does anyway; nothing is decoded.

    Args:
        dataset: with the columns `image` and `label_map`.
        more_files: locations (see data/archive.py) of further files that are scored on.

    Raises:
        DataError: a file cannot be read.
    """
    columns = [dataset.select_columns(name).cast_column(name, datasets.Image(decode=False)) for name in ("image", "label_map")]
    digest = hashlib.sha256()
    rows = zip(*columns, strict=True)
    for row in tqdm(rows, "comparing files", len(dataset), unit="image", leave=False, disable=len(dataset) < LONG_CHECK):
        for value in (row[0]["image"], row[1]["label_map"]):
            # A test split has no label maps.
            stored = {"path": None, "bytes": b""} if value is None else self_contained_file(value)
            digest.update(f"{stored['path']}\0{hashlib.sha256(stored['bytes']).hexdigest()}\n".encode())
    for location in more_files:
        digest.update(hashlib.sha256(read_location(location)).digest())
    return digest.hexdigest()[:16]


def check_replaceable(output: Path, identity: dict[str, Any]) -> bool:
    """Whether the same evaluation has been written to this file before.

    Args:
        output: the JSON file.
        identity: the `IDENTITY` of what is to be written there.

    Raises:
        RecipeError: the file holds something else.
    """
    if not output.exists():
        return False
    advice = "give another --output, or --overwrite to replace it"
    try:
        before = json.loads(output.read_text(encoding="utf-8"))
        known = {**before, **before["settings"]}
        known["inference"] = {key: before["settings"][key] for key in identity["inference"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{output} is there and is no record of an evaluation: {advice}") from error
    identity = json.loads(json.dumps(identity))
    other = [key for key in IDENTITY if key in known and known[key] != identity[key]]
    if other:
        raise RecipeError(f"{output} holds the scores of another evaluation ({', '.join(other)} differ): {advice}")
    return True
