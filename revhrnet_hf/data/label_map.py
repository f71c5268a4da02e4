"""The two picture columns of every data set, as `datasets` features: `Picture` (RGB) and `LabelMap` (train ids).

Both store what `datasets.Image` stores, a path or bytes, and decode when an example is read. The path may lead into a zip or tar
file (see tree.py). Pictures stay as they lie in the file, even where EXIF says that a viewer should turn them: label maps were
drawn on the pixels as stored.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import torch
from datasets.features.features import register_feature

from ..errors import DataError
from .annotation import JSON_START, MATLAB_START, draw_annotation, read_matlab, self_contained
from .first_rows import cut_short
from .label_space import LABEL_SPACES, LabelSpace, get_label_space
from .tree import location_name, read_location


class StoredFile(datasets.Image):
    """What `Picture` and `LabelMap` share: the stored file's bytes, and their copy into a data set that is to travel."""

    def embed_storage(self, storage: pa.StructArray, *args, **kwargs) -> pa.StructArray:
        """As for `datasets.Image`, with members of archives as well: the files' bytes go into the table, with their names."""
        values = [value and _embedded(value) for value in storage.to_pylist()]
        return pa.array(values, type=self.pa_type)


@dataclass
class Picture(StoredFile):
    """A picture; decodes to a PIL image of mode RGB, whatever the file's mode.

    Raises:
        DataError: on decoding, if the file is missing, truncated or no picture; the message names it.
    """

    mode: str | None = "RGB"
    _type: str = field(default="Picture", init=False, repr=False)

    def decode_example(self, value: dict | PIL.Image.Image, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):
            return value
        with _unreadable_is_data_error("Picture", value):
            return _in_mode(_open_picture(_stored_bytes(value)), self.mode)

    def open(self, value: dict) -> "PictureFile":
        """The stored picture, not yet decoded."""
        return PictureFile(value, self.mode)


@dataclass
class LabelMap(StoredFile):
    """A label map; decodes to a PIL image of mode L that holds train ids, ignored pixels `ignore_index`.

    The file holds raw ids (grey or palette PNG; of a palette the indices count) or raw colours (RGB PNG), which the
    label space translates; or it is no picture but an annotation (see annotation.py). A value without a path is a label map
    that was decoded before, which is how `Dataset.map` stores PIL images that it is handed: it holds train ids and is not
    translated again.

    Make one with `LabelMap.of(label_space)`, and read its `space`.

    Attributes:
        label_space: the label space's name.
        definition: None for a registered label space; for any other its whole table as JSON, which travels with the data set,
            so that other processes, the cache, and whoever loads it from the Hub know the classes. (Text, because
            `datasets` takes dicts in a feature for features.)

    Raises:
        DataError: on decoding, if the file is unreadable or holds an id outside the label space; the message names it.
    """

    label_space: str = ""
    definition: str | None = None
    _type: str = field(default="LabelMap", init=False, repr=False)

    @classmethod
    def of(cls, space: LabelSpace) -> "LabelMap":
        registered = LABEL_SPACES.get(space.name) == space
        return cls(label_space=space.name, definition=None if registered else space.to_json())

    @property
    def space(self) -> LabelSpace:
        return get_label_space(self.label_space) if self.definition is None else _defined(self.definition)

    def decode_example(self, value: dict | PIL.Image.Image, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):
            return value
        with _unreadable_is_data_error("Label map", value):
            return _train_ids(_stored_bytes(value), self._translation(value), _source(value))

    def open(self, value: dict) -> "LabelMapFile | PIL.Image.Image":
        """The stored label map, not yet decoded; an annotation is drawn at once."""
        with _unreadable_is_data_error("Label map", value):
            drawn = _stored_bytes(value).startswith((JSON_START, MATLAB_START))
        return self.decode_example(value) if drawn else LabelMapFile(value, self._translation(value))

    def _translation(self, value: dict) -> LabelSpace:
        return self.space if value["path"] else self.space.of_train_ids


class OpenedFile:
    """A picture file whose header was read; of its rows only those down to the lowest that is needed are decoded.

    So damage below them goes unnoticed. To a training crop its heirs answer as a decoded PIL picture would.

    Raises:
        DataError: in each method, if the file cannot be read; the message names it.
    """

    kind: str

    def __init__(self, value: dict):
        self._value = value
        with self._named():
            self._data = _stored_bytes(value)
            self._header = PIL.Image.open(io.BytesIO(self._data))
        self.size = self.width, self.height = self._header.size

    def _rows(self, rows: int) -> PIL.Image.Image:
        """As stored, the first `rows` or more."""
        return _open_picture(cut_short(self._data, self._header, rows))

    def _named(self):
        return _unreadable_is_data_error(self.kind, self._value)


class PictureFile(OpenedFile):
    kind = "Picture"

    def __init__(self, value: dict, mode: str | None):
        super().__init__(value)
        self._mode = mode

    def resize(self, size: tuple[int, int], resample: PIL.Image.Resampling, box: tuple[float, ...]) -> PIL.Image.Image:
        """`PIL.Image.Image.resize` of the decoded picture, with the bilinear filter."""
        reach = max(1, (box[3] - box[1]) / size[1])  # of the filter, in pixels of the picture
        with self._named():
            return _in_mode(self._rows(math.ceil(box[3] + reach)), self._mode).resize(size, resample, box)


class LabelMapFile(OpenedFile):
    kind = "Label map"

    def __init__(self, value: dict, translation: LabelSpace):
        super().__init__(value)
        self._translation = translation

    def crop(self, box: tuple[int, int, int, int]) -> PIL.Image.Image:
        """Of mode L: the train ids within the box (left, top, right, bottom). What is outside may hold unknown ids."""
        with self._named():
            return self._translation.translate_picture(self._rows(box[3]).crop(box), _source(self._value))


class OpenedRows(torch.utils.data.Dataset):
    """The rows of a data set with `image` and `label_map` opened and not decoded."""

    def __init__(self, dataset: datasets.Dataset):
        self._features = {column: dataset.features[column] for column in ("image", "label_map")}
        for column, feature in self._features.items():
            dataset = dataset.cast_column(column, replace(feature, decode=False))
        self._stored = dataset

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self._stored[place]
        return row | {column: feature.open(row[column]) for column, feature in self._features.items()}


@lru_cache(maxsize=16)
def _defined(definition: str) -> LabelSpace:
    """One object for each table, which keeps its look-up table from one label map to the next."""
    return LabelSpace.from_json(definition)


def _embedded(value: dict) -> dict:
    path = value["path"]
    with _unreadable_is_data_error("File", value):
        data = _stored_bytes(value)
        if data.startswith(JSON_START):
            data = self_contained(data, _source(value))
    return {"bytes": data, "path": path and location_name(path)}


def _stored_bytes(value: dict) -> bytes:
    return read_location(value["path"]) if value["bytes"] is None else value["bytes"]


def _train_ids(data: bytes, label_space: LabelSpace, source: str) -> PIL.Image.Image:
    """Of an annotation or a picture, which is seen from how the bytes begin."""
    if data.startswith(JSON_START):
        return PIL.Image.fromarray(draw_annotation(data, label_space, source))
    if data.startswith(MATLAB_START):
        return PIL.Image.fromarray(label_space.train_ids(read_matlab(data), source))
    return label_space.translate_picture(_open_picture(data), source)


def read_picture(location: str) -> PIL.Image.Image:
    """The picture file at a location (see tree.py) as it is stored; a DataError names one that cannot be read."""
    with _unreadable_is_data_error("Picture", {"path": location}):
        return _open_picture(read_location(location))


def _open_picture(data: bytes) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(data))
    image.load()  # a truncated file is an error here and not later
    return image


def _in_mode(picture: PIL.Image.Image, mode: str | None) -> PIL.Image.Image:
    return picture if picture.mode == mode else picture.convert(mode)  # which would copy it


def _source(value: dict) -> str:
    return value["path"] or "(stored inside the data set)"


@contextmanager
def _unreadable_is_data_error(kind: str, value: dict) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise  # says already what is wrong and where
    # What Pillow raises for broken files: OSError covers missing, unidentified and truncated ones.
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise DataError(
            f"{kind} {_source(value)} cannot be read ({error}): it is missing, truncated or not a picture. "
            "Fetch the file again, or take it out of the data set."
        ) from error


with warnings.catch_warnings():
    # `datasets` calls its register_feature experimental, on every import, to users who never called it.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(Picture, "Picture")
    register_feature(LabelMap, "LabelMap")
