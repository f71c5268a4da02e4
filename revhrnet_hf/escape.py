"""Makes text of others (names of classes, files, images, checkpoints) harmless on terminals and in Markdown."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Control characters other than tab and line feed; marks that change the direction of text; line separators.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A progress bar writes these: to the start of the line, to the line above.
PROGRESS_BAR = ("\r", "\x1b[A")
MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#])")
AUTOMATIC_LINK = re.compile(r"(?i)(://|www\.|mailto:|@)")
BACKTICKS = re.compile("`+")


def printable(text: str, kept: tuple[str, ...] = ()) -> str:
    r"""Replaces control characters by Python's escapes (`\x1b`), so that the text cannot control a terminal.

    Args:
        text: any text.
        kept: sequences that are not replaced.
    """
    pattern = re.compile("|".join([*(f"({re.escape(sequence)})" for sequence in kept), UNPRINTABLE.pattern]))
    return pattern.sub(lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(), text)


def markdown(text: object) -> str:
    """Escapes a text for one line of Markdown: it starts no markup, HTML, table cell or link."""
    line = " ".join(printable(str(text)).split())
    escaped = MARKDOWN.sub(r"\\\1", line).replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")
    return AUTOMATIC_LINK.sub(lambda found: found[0].replace(":", "&#58;").replace(".", "&#46;").replace("@", "&#64;"), escaped)


def code(text: object) -> str:
    """A text as a code span in one line of Markdown; nothing in the text can end the span."""
    line = " ".join(printable(str(text)).split())
    mark = _longer_run(line, 1)
    return f"{mark}{line}{mark}" if mark == "`" else f"{mark} {line} {mark}"


def fenced(text: str, language: str) -> str:
    """A text as a code block in Markdown; nothing in the text can end the block."""
    fence = _longer_run(text, 3)
    return f"{fence}{language}\n{printable(text).rstrip()}\n{fence}"


def _longer_run(text: str, at_least: int) -> str:
    """A run of backticks that is longer than any in the text."""
    return "`" * max([at_least, *(len(run) + 1 for run in BACKTICKS.findall(text))])


@contextmanager
def _own_error() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderEndedError(*error.args) from error


class ReaderEndedError(BrokenPipeError):
    """The program that reads a stream of this one, such as `head`, has ended."""


class PrintableStream(io.TextIOBase):
    """A text stream that passes all text through `printable` and writes it to another stream.

    Where nobody reads the stream, `write` and `flush` raise a ReaderEndedError, which no other pipe does.
    """

    def __init__(self, stream: TextIO, kept: tuple[str, ...] = ()):
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        with _own_error():
            self._stream.write(printable(text, self._kept))
        return len(text)

    def flush(self) -> None:
        with _own_error():
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
