"""Reads one field of a structure in a MATLAB file of version 5, the format of SBD's label maps.

scipy's `loadmat` is not used: a damaged file can crash it (segmentation fault), and it unpacks the whole file. The format is
described in https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf. A file is a header and *elements*; an element is a
type, a size in bytes and data. An array is an element that contains elements: flags with its class, its dimensions, its name, and
its values; in a structure, the fields' names and one array for each field.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .limits import MEBIBYTE

MOST = 64 * MEBIBYTE  # bytes to which an element may unpack; SBD's take 0.2 MB
HEADER, BYTE_ORDER = 128, slice(126, 128)
MATRIX, COMPRESSED = 14, 15  # types of elements
STRUCTURE, NUMBERS = 2, range(6, 16)  # classes of arrays
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


class Array(NamedTuple):
    """An array whose values have not been read; `parts` are the elements after its name."""

    kind: int
    shape: tuple[int, ...]
    name: bytes
    parts: Iterator[tuple[int, memoryview]]


def read_structure_field(data: bytes, structure: str, field: str) -> np.ndarray:
    """The numbers in `structure.field`, of the file's own type and shape.

    Raises:
        ValueError: the file is damaged, unpacks to more than the limit, or has no such field of numbers.
    """
    try:
        return _find(data, structure.encode(), field.encode())
    except (ValueError, struct.error, zlib.error, LookupError, OverflowError, TypeError) as error:
        raise ValueError(f"no field {structure}.{field}: {error or repr(error)}") from error


def _find(data: bytes, structure: bytes, field: bytes) -> np.ndarray:
    order = "<" if data[BYTE_ORDER] == b"IM" else ">"
    for kind, content in _elements(memoryview(data)[HEADER:], order, padded=False):
        found = _unpacked(content, order) if kind == COMPRESSED else content if kind == MATRIX else None
        if found is None:
            continue
        array = _array(found, order)
        if array.name == structure and array.kind == STRUCTURE:
            return _numbers(_field(array, field, order), order)
    raise ValueError("there is no such structure")


def _elements(data: memoryview, order: str, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Types and data. In an array, elements begin at multiples of 8 bytes, and an element of up to 4 bytes has a short form."""
    start = 0
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            content, start = data[start + 4 : start + 4 + size], start + 8
        else:
            content, start = data[start + 8 : start + 8 + size], start + 8 + size + (-size % 8 if padded else 0)
        if len(content) < size:
            raise IndexError("it ends too early")
        yield kind, content


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = next(parts, None)
    if found is None:
        raise IndexError("it ends too early")
    return found


def _unpacked(data: memoryview, order: str) -> memoryview | None:
    """The array in a compressed element, or None if the element holds something else."""
    stream = zlib.decompressobj()
    content = stream.decompress(data, MOST)
    if stream.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {MOST // MEBIBYTE} MB: save it again without compression")
    kind, array = _next(_elements(memoryview(content), order))
    return array if kind == MATRIX else None


def _array(data: memoryview, order: str) -> Array:
    parts = _elements(data, order)
    (_, flags), (_, shape), (_, name) = (_next(parts) for _ in range(3))
    (kind,) = struct.unpack_from(f"{order}I", flags)
    return Array(kind & 0xFF, tuple(np.frombuffer(shape, f"{order}i4").tolist()), bytes(name), parts)


def _field(array: Array, field: bytes, order: str) -> Array:
    """A field of a single structure; a ValueError for an array of structures."""
    if array.shape != (1, 1):
        raise ValueError(f"the structure has the shape {array.shape} instead of (1, 1)")
    (length,) = struct.unpack_from(f"{order}i", _next(array.parts)[1])
    names = bytes(_next(array.parts)[1])
    if length < 1:
        raise ValueError(f"names of fields have {length} bytes")
    fields = [names[start : start + length].rstrip(b"\0") for start in range(0, len(names), length)]
    if field not in fields:
        raise ValueError("the structure has other fields only")
    for _ in range(fields.index(field)):
        _next(array.parts)
    return _array(_next(array.parts)[1], order)


def _numbers(array: Array, order: str) -> np.ndarray:
    if array.kind not in NUMBERS or min(array.shape, default=0) < 1:
        raise ValueError(f"the field is no array of numbers, but of class {array.kind} and shape {array.shape}")
    kind, content = _next(array.parts)
    return np.frombuffer(content, f"{order}{DTYPES[kind]}").reshape(array.shape, order="F")
