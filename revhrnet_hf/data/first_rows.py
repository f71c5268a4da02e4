"""Cuts a PNG or JPEG file short, so that the rows below a crop are not decoded. Decoders work from the top down.

The header is changed to a smaller height. The pixels equal those of the whole file, bit for bit.
"""

import struct
import zlib

import PIL.Image

PNG_HEADER = slice(12, 29)  # b"IHDR", width, height, bit depth, colour type, compression, filter, interlace
PNG_END, JPEG_END = b"\0\0\0\0IEND\xaeB`\x82", b"\xff\xd9"
SEQUENTIAL = (0xC0, 0xC1)  # JPEG frames that are decoded in one pass from the top down
SEGMENTS = (0xC4, *range(0xDB, 0xF0), 0xFE)  # segments that may precede the frame: tables, application data, comments
# Colour that is stored at a half or a quarter of the resolution is interpolated between rows, over at most this many rows.
JPEG_CONTEXT = 8


def cut_short(data: bytes, image: PIL.Image.Image, rows: int) -> bytes:
    """The file of the image's upper part, at least `rows` high; `data` itself if it cannot be cut.

    A file is not cut if its rows come in several passes (interlaced PNG, progressive JPEG) or if its end mark is missing:
    decoding the whole file then fails, as it should.

    Args:
        data: the file's bytes.
        image: the image that Pillow opened from the file; it need not be loaded.
        rows: the number of rows that are needed.
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
    return _replaced(data, frame + 5, struct.pack(">H", rows))  # after the marker, the segment's length and the sample's bits


def _sequential_frame(data: bytes) -> int | None:
    """The position of the frame's marker; None for another kind of frame, or if there are other bytes between the segments.

    Pillow skips such bytes. The file is then decoded as a whole.
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
    """`data` with `part` written over it at `start`. It is copied only once, because it may be megabytes."""
    whole = memoryview(data)
    return b"".join((whole[:start], part, whole[start + len(part) :]))
