"""A PNG or JPEG file cut short: decoders work from the top down, so whoever needs no row below a crop need not decode any.

The header is made to say that the image is less high; the pixels are those of the whole file, bit for bit.
"""

import struct
import zlib

import PIL.Image

PNG_HEADER = slice(12, 29)  # b"IHDR", width, height, bit depth, colour type, compression, filter, interlace
PNG_END, JPEG_END = b"\0\0\0\0IEND\xaeB`\x82", b"\xff\xd9"
SEQUENTIAL = (0xC0, 0xC1)  # JPEG's frames that are one pass from the top down
SEGMENTS = (0xC4, *range(0xDB, 0xF0), 0xFE)  # what may stand before the frame: tables, applications' data, comments
# Colour that is stored at a half or a quarter of the resolution is interpolated between rows, within this many of them.
JPEG_CONTEXT = 8


def cut_short(data: bytes, image: PIL.Image.Image, rows: int) -> bytes:
    """The file as one of a lower image, at least `rows` high; the same `data` if that cannot be done.

    So it is where rows come in several passes (interlaced PNG, progressive JPEG), and where the file lacks its end mark:
    decoding all of it then fails, as it should.

    Args:
        data: the file.
        image: what Pillow made of it; it need not be loaded.
        rows: how many are needed.
    """
    if image.format == "PNG" and not image.is_animated:
        return _png(data, image.height, rows)
    return _jpeg(data, image.height, rows + JPEG_CONTEXT) if image.format == "JPEG" else data


def _png(data: bytes, height: int, rows: int) -> bytes:
    header = data[PNG_HEADER]
    interlaced = header[-1]
    if rows >= height or interlaced or data.rfind(PNG_END) < 0:
        return data
    header = header[:8] + struct.pack(">I", rows) + header[12:]
    return _replaced(data, PNG_HEADER.start, header + struct.pack(">I", zlib.crc32(header)))


def _jpeg(data: bytes, height: int, rows: int) -> bytes:
    frame = _sequential_frame(data)
    if rows >= height or frame is None or data.rfind(JPEG_END, frame) < 0:
        return data
    return _replaced(data, frame + 5, struct.pack(">H", rows))  # behind the marker, the segment's length and the sample's bits


def _sequential_frame(data: bytes) -> int | None:
    """Where the marker of the frame stands; None where it is of another kind, or where segments do not follow each other.

    Pillow finds its way through much that is between segments, and then decodes the file whole.
    """
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        if data[place + 1] in SEQUENTIAL:
            return place
        if data[place + 1] not in SEGMENTS:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _replaced(data: bytes, start: int, part: bytes) -> bytes:
    """`data` with `part` in it from `start` on; copied once only, for it is megabytes."""
    whole = memoryview(data)
    return b"".join((whole[:start], part, whole[start + len(part) :]))
