"""The image columns of every dataset, as features of `datasets`: `RgbImage` (RGB) and `LabelMap` (train ids).

Both store a path or bytes, as `datasets.Image` does, and decode when an example is read. The path may lead into a zip or tar file
(see archive.py). Both are turned upright according to EXIF, as in a viewer. If a label map fits only the stored orientation of
its image, the image's path is marked (`as_stored`), and the image is not turned.
"""

import math
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import torch
from datasets.features.features import register_feature

from ..errors import DataError
from ..images import ImageFile, Size, unreadable_is_data_error
from ..models.rgb import as_rgb
from .annotation import JSON_START, MATLAB_START, draw_annotation, read_matlab, self_contained
from .archive import location_name, read_location
from .first_rows import cut_short
from .label_space import LABEL_SPACES, LabelSpace, get_label_space
from .raw_label_map import translate_file

AS_STORED = ".//"  # mark before the file name: it does not change the path, and no other location contains it


class StoredFile(datasets.Image):
    """The base of `RgbImage` and `LabelMap`: how their files are stored in a dataset."""

    def encode_example(self, value: Any) -> dict:
        """As in `datasets.Image`, but keeps given bytes even if a file has the name that comes with them."""
        if isinstance(value, dict) and value.get("bytes") is not None:
            return {"bytes": value["bytes"], "path": value.get("path")}
        return super().encode_example(value)

    def embed_storage(self, storage: pa.StructArray, *args, **kwargs) -> pa.StructArray:
        """Copies the files' bytes and names into the table, as in `datasets.Image`, including members of archives."""
        values = [value and self_contained_file(value) for value in storage.to_pylist()]
        return pa.array(values, type=self.pa_type)


@dataclass
class RgbImage(StoredFile):
    """An image; decodes to a PIL image of mode RGB, whatever the file's mode (see images.py).

    Raises:
        DataError: on decoding, if the file is missing, truncated or not an image; the message names it.
    """

    mode: str | None = "RGB"
    _type: str = field(default="RgbImage", init=False, repr=False)

    def decode_example(self, value: dict | PIL.Image.Image, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):
            return value
        with unreadable_is_data_error("Image", _source(value)):
            return ImageFile(_stored_bytes(value)).rgb(_is_as_stored(value))

    def open(self, value: dict) -> "RgbImageFile":
        """The stored image; its pixels are decoded later."""
        return RgbImageFile(value, _stored_bytes_of("Image", value))


@dataclass
class LabelMap(StoredFile):
    """A label map; decodes to a PIL image of mode L with train ids, in which ignored pixels are `ignore_index`.

    The file holds raw ids (grey values or palette indices) or raw colours, which the label space translates
    (`LabelSpace.translate_image`); or it is an annotation (see annotation.py). A value without a path is a label map that was
    decoded before, because `Dataset.map` stores PIL images so: it holds train ids and is not translated again.

    Create one with `LabelMap.of(label_space)`; its `space` is the label space.

    Attributes:
        label_space: the label space's name.
        definition: None for a registered label space; otherwise the whole label space as JSON. It is stored with the dataset, so
            that other processes, the cache and users of a copy on the Hub know the classes. (It is text because `datasets`
            interprets dicts inside a feature as features.)

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
        return _train_ids(_stored_bytes_of("Label map", value), self._translation(value), _source(value))

    def open(self, value: dict) -> "LabelMapFile | PIL.Image.Image":
        """The stored label map; its pixels are decoded later, except that an annotation is drawn now."""
        data = _stored_bytes_of("Label map", value)
        if data.startswith((JSON_START, MATLAB_START)):
            return _train_ids(data, self._translation(value), _source(value))
        return LabelMapFile(value, data, self._translation(value))

    def _translation(self, value: dict) -> LabelSpace:
        return self.space if value["path"] else self.space.of_train_ids


class OpenedFile:
    """An image file of which only the header has been read. Decoding stops below the lowest row that is needed.

    So damage below that row is not noticed. The subclasses offer the methods of a PIL image that a training crop needs.

    Args:
        value: the stored value.
        data: its bytes.

    Raises:
        DataError: in each method, if the file cannot be read; the message names it.
    """

    kind: str

    def __init__(self, value: dict, data: bytes):
        self._source = _source(value)
        with self._named():
            self._file = ImageFile(data)
        self._set_as_stored(_is_as_stored(value))

    @property
    def orientation(self) -> int:
        """The file's EXIF orientation; 1 is upright."""
        return self._file.orientation

    def _set_as_stored(self, as_stored: bool) -> None:
        self._as_stored = as_stored
        self.size = self.width, self.height = self._file.stored_size if as_stored else self._file.size

    def _first_rows(self, rows: int) -> bytes:
        """The file cut to its first `rows` rows or a few more; the whole file if it must be turned."""
        if self._file.orientation != 1 and not self._as_stored:
            return self._file.data
        return cut_short(self._file.data, self._file.header, rows)

    def _named(self):
        return unreadable_is_data_error(self.kind, self._source)


class RgbImageFile(OpenedFile):
    kind = "Image"

    def orient_to_fit(self, size: Size) -> None:
        """Switches to the stored orientation if only that has the (width, height) of the label map."""
        if size not in (self.size, self._file.size) and size == self._file.stored_size:
            self._set_as_stored(True)

    def resize(self, size: Size, resample: PIL.Image.Resampling, box: tuple[float, ...]) -> PIL.Image.Image:
        """`PIL.Image.Image.resize` of the decoded image, with the bilinear filter."""
        reach = max(1, (box[3] - box[1]) / size[1])  # of the filter, in the image's pixels
        with self._named():
            pixels = self._file.pixels(self._as_stored, self._first_rows(math.ceil(box[3] + reach)))
            return as_rgb(pixels).resize(size, resample, box)


class LabelMapFile(OpenedFile):
    kind = "Label map"

    def __init__(self, value: dict, data: bytes, translation: LabelSpace):
        super().__init__(value, data)
        self._translation = translation

    def crop(self, box: tuple[int, int, int, int]) -> PIL.Image.Image:
        """The train ids in the box (left, top, right, bottom), mode L: those of the whole label map.

        Unknown ids outside the box are an error only if the box can be read in several ways: then the whole file is decoded.
        """
        with self._named():
            return translate_file(self._file, self._translation, self._source, self._first_rows(box[3]), box)


class OpenedRows(torch.utils.data.Dataset):
    """The rows of a dataset with `image` and `label_map` opened but not decoded."""

    def __init__(self, dataset: datasets.Dataset):
        self._features = {column: dataset.features[column] for column in ("image", "label_map")}
        for column, feature in self._features.items():
            dataset = dataset.cast_column(column, replace(feature, decode=False))
        self._stored = dataset

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._stored[index]
        return row | {column: feature.open(row[column]) for column, feature in self._features.items()}


@lru_cache(maxsize=16)
def _defined(definition: str) -> LabelSpace:
    """One object for each definition: it caches its look-up table."""
    return LabelSpace.from_json(definition)


def as_stored(location: str) -> str:
    """The location with the mark of an image that must not be turned."""
    folders, slash, name = location.rpartition("/")
    return f"{folders}{slash}{AS_STORED}{name}"


def read_upright(location: str) -> PIL.Image.Image:
    """The upright image at a location (see archive.py), in the file's own mode; a DataError names an unreadable file."""
    with unreadable_is_data_error("Image", location):
        return ImageFile(read_location(location)).pixels()


def self_contained_file(value: dict) -> dict:
    """A stored value with the file's bytes (an annotation includes the PNG that it refers to) and its name without folders.

    Raises:
        DataError: the file cannot be read; the message names it.
    """
    path = value["path"]
    data = _stored_bytes_of("File", value)
    if data.startswith(JSON_START):
        with unreadable_is_data_error("File", _source(value)):
            data = self_contained(data, _source(value))
    name = path and AS_STORED * _is_as_stored(value) + location_name(_location(value))
    return {"bytes": data, "path": name}


def _stored_bytes_of(kind: str, value: dict) -> bytes:
    with unreadable_is_data_error(kind, _source(value)):
        return _stored_bytes(value)


def _stored_bytes(value: dict) -> bytes:
    if value["bytes"] is not None:
        return value["bytes"]
    if value["path"] is None:
        raise DataError("A row of the dataset holds neither an image nor the path of one: drop such rows.")
    return read_location(_location(value))


def _is_as_stored(value: dict) -> bool:
    return bool(value["path"]) and f"/{AS_STORED}" in f"/{value['path']}"


def _location(value: dict) -> str | None:
    return value["path"].replace(AS_STORED, "") if _is_as_stored(value) else value["path"]


def _source(value: dict) -> str:
    return _location(value) or "(stored inside the dataset)"


def _train_ids(data: bytes, label_space: LabelSpace, source: str) -> PIL.Image.Image:
    """The train ids of an image or an annotation; the first bytes tell which it is."""
    with unreadable_is_data_error("Label map", source):
        if data.startswith(JSON_START):
            return PIL.Image.fromarray(draw_annotation(data, label_space, source))
        if data.startswith(MATLAB_START):
            return PIL.Image.fromarray(label_space.train_ids(read_matlab(data), source))
        return translate_file(ImageFile(data), label_space, source)


with warnings.catch_warnings():
    # `register_feature` warns that it is experimental, which does not concern users of this package.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(RgbImage, "RgbImage")  # not RGBImage: the Hub's metadata convert it to rgb_image and back
    register_feature(RgbImage, "Picture")  # the name in datasets that version 0.1.0 saved
    register_feature(LabelMap, "LabelMap")
