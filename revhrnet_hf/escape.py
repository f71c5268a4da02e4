"""Names from elsewhere (of classes, files, images, checkpoints) made harmless where they are shown: on terminals, in Markdown."""

import io
import re
from typing import TextIO

# Control characters but tab and line feed; marks that reverse the direction of text; line separators.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# What a progress bar writes: back to the start of the line, or to the line above.
PROGRESS_BAR = ("\r", "\x1b[A")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#])")
AUTOMATIC_LINK = re.compile(r"(?i)(://|www\.|mailto:|@)")
BACKTICKS = re.compile("`+")


def printable(text: str, kept: tuple[str, ...] = ()) -> str:
    r"""The text with control characters as they are written in Python (`\x1b`), so that it cannot steer a terminal.

    Args:
        text: any.
        kept: sequences that are let through.
    """
    pattern = re.compile("|".join([*(f"({re.escape(sequence)})" for sequence in kept), UNPRINTABLE.pattern]))
    return pattern.sub(lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), text)


def markdown(text: object) -> str:
    """The text on one line of Markdown, as itself: no markup, HTML, table cell or link begins in it."""
    line = " ".join(printable(str(text)).split())
    escaped = MARKDOWN.sub(r"\\\1", line).replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")
    return AUTOMATIC_LINK.sub(lambda found: found[0].replace(":", "&#58;").replace(".", "&#46;").replace("@", "&#64;"), escaped)


def code(text: object) -> str:
    """The text on one line of Markdown as a span of code, which nothing in it can end."""
    line = " ".join(printable(str(text)).split())
    mark = _longer_run(line, 1)
    return f"{mark}{line}{mark}" if mark == "`" else f"{mark} {line} {mark}"


def fenced(text: str, language: str) -> str:
    """A block of code in Markdown, which nothing in it can end."""
    fence = _longer_run(text, 3)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def _longer_run(text: str, at_least: int) -> str:
    """More backticks than stand side by side in the text."""
    return "`" * max([at_least, *(len(run) + 1 for run in BACKTICKS.findall(text))])


class PrintableStream(io.TextIOBase):
    """A text stream that writes to another one what `printable` makes of it."""

    def __init__(self, stream: TextIO, kept: tuple[str, ...] = ()):
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._stream.write(printable(text, self._kept))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    @property
    def errors(self) -> str | None:
        return self._stream.errors

    @property
    def buffer(self):
        return self._stream.buffer
