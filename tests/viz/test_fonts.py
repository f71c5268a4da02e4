"""Names that are not plain ASCII are drawn with their letters, by a font of the system or by matplotlib's."""

import numpy as np
import pytest
from PIL import ImageFont

from revhrnet_hf.evaluation.worst_images import heading
from revhrnet_hf.viz import fonts
from revhrnet_hf.viz.figures import legend
from revhrnet_hf.viz.fonts import font_for

UMLAUTS, KANJI = "Gebäude, Straße, forêt, дорога", "道路"


@pytest.fixture
def only_matplotlib(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())


def test_plain_text_has_the_same_font_everywhere():
    assert font_for("road (untinted) · mIoU 72.5 %", 16).getname() == ImageFont.load_default(16).getname()


def test_letters_of_other_scripts(only_matplotlib):
    font = font_for(UMLAUTS, 16)
    assert font.getname() == ("DejaVu Sans", "Book") and font.size == 16
    assert font_for("", 16).getname() == ImageFont.load_default(16).getname()
    # No font here has these letters: the others are drawn.
    assert font_for(f"{UMLAUTS} {KANJI}", 16).getname() == font.getname()


def test_a_font_of_the_system_comes_first(monkeypatch, only_matplotlib):
    found, asked = fonts._font(font_for(UMLAUTS, 16).path, 16), []
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("a.ttf", "b.ttf", "c.ttf"))
    monkeypatch.setattr(fonts, "_font", lambda name, size: asked.append(name) or (found if name == "b.ttf" else None))
    font_for("plain", 16)
    assert asked == []
    assert font_for(UMLAUTS, 16) is found and asked == ["a.ttf", "b.ttf"]


def test_names_differ_where_only_such_letters_do(only_matplotlib):
    """As boxes of the same width they would not."""
    one, other = (np.asarray(legend([name], [(9, 9, 9)])) for name in ("ü", "ö"))
    assert one.shape == other.shape and (one != other).any()
    one, other = (np.asarray(heading(name, 320)) for name in ("ü", "ö"))
    assert (one != other).any()
