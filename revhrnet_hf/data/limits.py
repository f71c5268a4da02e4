"""Limits on the memory that one file may take, against files that are small on the disk and huge once read.

Each limit is far above the needs of published datasets. The error messages say how to raise it.
"""

import os

from ..errors import DataError
from ..images import check_size

MEBIBYTE = 1 << 20
MEMBER_VARIABLE, TEXT_VARIABLE = "REVHRNET_MAX_MEMBER_MB", "REVHRNET_MAX_TEXT_MB"
# A member of an archive may always unpack to SMALL bytes, above that to RATIO times its packed size, and never to more than
# LARGEST. (Packing reduces JSON to a tenth, PNG hardly, a zip bomb to a thousandth.)
SMALL, RATIO, LARGEST = 64 * MEBIBYTE, 100, 2048 * MEBIBYTE
LIST_BYTES = 64 * MEBIBYTE  # more than a list of a million images
JSON_BYTES = 2048 * MEBIBYTE  # COCO's training annotations take 470 MB


def check_member_size(member: str, archive: str, packed: int, unpacked: int) -> None:
    """Raises a DataError if a member of an archive would unpack to more bytes than the limit."""
    most = _from_environment(MEMBER_VARIABLE) or min(max(SMALL, RATIO * packed), LARGEST)
    if unpacked > most:
        raise DataError(
            f"{member} in {archive} has {_megabytes(packed)} and would unpack to {_megabytes(unpacked)}, more than the limit of "
            f"{_megabytes(most)}: if you trust the archive, unpack it, or set the environment variable {MEMBER_VARIABLE}."
        )


def max_text_bytes(default: int) -> int:
    """The largest size of a text file in bytes: `default`, or the user's setting."""
    return _from_environment(TEXT_VARIABLE) or default


def text_too_long(source: str, most: int) -> DataError:
    return DataError(
        f"{source} has more than {_megabytes(most)} of text, the limit: if you trust the file, set the environment variable "
        f"{TEXT_VARIABLE} to a larger number of megabytes."
    )


def check_pixels(width: int, height: int, source: str) -> None:
    """Raises a DataError if a label map that is to be drawn has more pixels than an image may have."""
    try:
        check_size((width, height))
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _from_environment(variable: str) -> int | None:
    """The user's setting, given in megabytes, as bytes; None without one."""
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"The environment variable {variable} is {text!r}: give a whole number of megabytes, 1 or more.")
    return int(text) * MEBIBYTE


def _megabytes(size: int) -> str:
    return f"{round(size / MEBIBYTE, 2):g} MB"
