"""How many bytes a video file lacks at its end, by the sizes in its container: FFmpeg takes a file that was cut off for a shorter
one.

The sizes are exact, where declared durations are not: edit lists, uneven frames and longer sound all make these differ from the
last frame's time. Containers without sizes, such as MPEG streams and live recordings, count as whole.
"""

import os
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # elements of Matroska and WebM
UNKNOWN = 0xFFFFFFFF  # what a program writes into an AVI file whose size it will only know at the end
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # of MP4; QuickTime's older files have no ftyp


def missing_bytes(file: BinaryIO) -> int:
    """The bytes that a file's container says it has, and that are not there; 0 if it is whole or its container does not say.

    Args:
        file: a video of any format.
    """
    start = _read(file, 0, 8)
    if start[:4] == EBML:
        end = _end_of_matroska(file)
    elif start[:4] == b"RIFF":
        end = _end_of_avi(file)
    else:
        end = _end_of_mp4(file) if start[4:] in FIRST_BOXES else 0
    return max(0, end - file.seek(0, os.SEEK_END))


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    """The bytes at a place, fewer or none where the file ends before; a damaged file may name any place."""
    if place >= file.seek(0, os.SEEK_END):
        return b""
    file.seek(place)
    return file.read(length)


def _end_of_matroska(file: BinaryIO) -> int:
    """Where the segment, which holds all but the header (RFC 8794), ends; 0 if it does not say."""
    header, begin = _ebml_size(file, len(EBML))
    place = begin + (header or 0)
    if _read(file, place, len(SEGMENT)) != SEGMENT:
        return 0
    length, begin = _ebml_size(file, place + len(SEGMENT))
    return 0 if length is None else begin + length


def _ebml_size(file: BinaryIO, place: int) -> tuple[int | None, int]:
    """The size at a place, None if it is unknown (all its bits are set), and the place after it.

    It has 1 to 8 bytes: one more than its first byte has leading zero bits.
    """
    read = _read(file, place, 8)
    length = 9 - read[0].bit_length() if read and read[0] else 8
    value, bits = int.from_bytes(read[:length], "big"), (1 << 7 * length) - 1
    return None if value & bits == bits else value & bits, place + length


def _end_of_avi(file: BinaryIO) -> int:
    """Where the last of the file's chunks ends; a large file has several."""
    end = 0
    while (head := _read(file, end + end % 2, 8))[:4] == b"RIFF":  # chunks begin at even places
        length = int.from_bytes(head[4:], "little")
        if length == UNKNOWN:
            break
        end += end % 2 + 8 + length
    return end


def _end_of_mp4(file: BinaryIO) -> int:
    """Where the last box of media data ends (ISO/IEC 14496-12, 4.2). Others do not count: cameras append what are no boxes."""
    end, place = 0, 0
    while len(head := _read(file, place, 16)) >= 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # the size is behind the name, in 8 bytes
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: to the end of the file, wherever that is; else this is no box
            break
        place += length
        end = place if kind == b"mdat" else end
    return end
