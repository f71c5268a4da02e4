"""The font of the text that is drawn with Pillow."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# Files of fonts as systems ship them; Pillow looks in the system's folders. The last four have Chinese, Japanese or Korean
# letters.
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf",
    "Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "malgun.ttf",
)  # fmt: skip
WITHOUT_A_GLYPH = "\uffff"  # no character, so that fonts draw what they draw for any that they lack


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of this size in pixels that has all letters of a text, or as many as any font here.

    Text that Pillow's own font can draw (ASCII) looks the same on every machine. Other text needs a font of the system, or
    matplotlib's, which has Latin, Greek, Cyrillic and Arabic letters. A letter that no font has is drawn as a box: Chinese,
    Japanese and Korean ones need one of the last four of `SYSTEM_FONTS`. Letters are joined and ordered as their script has it
    only where Pillow has Raqm (`PIL.features.check("raqm")`).
    """
    letters = sorted({letter for letter in text if letter.isprintable() and not letter.isspace()})
    best, fewest = None, len(letters) + 1
    for font in _fonts(size):
        box = _drawn(font, WITHOUT_A_GLYPH)
        lacking = sum(_drawn(font, letter) == box for letter in letters)
        if lacking < fewest:
            best, fewest = font, lacking
        if not lacking:
            break
    return best


def _fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield ImageFont.load_default(size=size)
    for name in SYSTEM_FONTS:
        if font := _font(name, size):
            yield font
    if matplotlib := find_spec("matplotlib"):
        bundled = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if font := _font(str(bundled), size):
            yield font


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
