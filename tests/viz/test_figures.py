"""Figures pixel by pixel, against values worked out by hand and against Pillow's own reading of the files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerConfig

from revhrnet_hf import RevHRNetConfig
from revhrnet_hf.data.palette import default_palette
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.viz.figures import (
    colourise,
    label_map_strip,
    legend,
    names_and_palette,
    overlay,
    palette_png,
    triptych,
    untinted_of,
    with_legend,
)

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
NAMES = ["road", "sky", "car"]
COLOURS = [(128, 64, 128), (70, 130, 180), (0, 0, 142)]
LABEL_MAP = np.array([[0, 1, 2], [2, 255, 0]])


def colours_in(image):
    return {colour for _, colour in image.getcolors(maxcolors=1 << 24)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_colourise_gives_each_id_its_colour(dtype):
    image = colourise(LABEL_MAP.astype(dtype), COLOURS)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    expected = [[COLOURS[0], COLOURS[1], COLOURS[2]], [COLOURS[2], (0, 0, 0), COLOURS[0]]]
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_ignored_pixels_stand_out_from_a_black_class():
    assert colourise(LABEL_MAP, [(0, 0, 0), *COLOURS[1:]]).getpixel((1, 1)) == (255, 255, 255)


def test_as_many_classes_as_a_palette_holds():
    config = SegformerConfig(num_labels=256)
    names, colours = names_and_palette(config)
    assert names[255] == "LABEL_255" and colours == [tuple(colour) for colour in default_palette(256)]
    with pytest.raises(CheckpointError, match="257 classes; a palette PNG holds at most 256"):
        names_and_palette(SegformerConfig(num_labels=257))


@pytest.mark.parametrize("stranger", [3, -1, 300])
def test_an_id_without_colour_is_named(stranger):
    with pytest.raises(ValueError, match=f"class id {stranger} has no colour: there are 3"):
        colourise(np.array([[0, stranger]]), COLOURS)


def test_palette_png_read_back_holds_the_train_ids_and_shows_the_colours():
    file = io.BytesIO()
    palette_png(LABEL_MAP, COLOURS).save(file, "PNG")
    image = Image.open(file)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), LABEL_MAP)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(colourise(LABEL_MAP, COLOURS)))


def test_palette_png_refuses_what_eight_bits_cannot_hold():
    with pytest.raises(ValueError, match=r"0 to 255.*300"):
        palette_png(np.array([[0, 300]]), COLOURS)
    with pytest.raises(ValueError, match="257 colours"):
        palette_png(np.array([[0]]), default_palette(257))


def test_overlay_mixes_by_opacity_and_leaves_ignored_pixels():
    image = Image.new("RGB", (3, 2), (200, 100, 0))
    values = np.asarray(overlay(image, LABEL_MAP, COLOURS, opacity=0.25), dtype=int)
    np.testing.assert_allclose(values[0, 0], 0.75 * np.array([200, 100, 0]) + 0.25 * np.array(COLOURS[0]), atol=1)
    assert values[1, 1].tolist() == [200, 100, 0]
    np.testing.assert_array_equal(np.asarray(overlay(image, LABEL_MAP, COLOURS, opacity=0)), np.asarray(image))


@pytest.mark.parametrize(
    ("untinted", "expected"),
    [(None, {0}), ([], set()), ([1, 2], {1, 2})],  # None, as in checkpoints from before the field
)
def test_untinted_classes_of_a_model(untinted, expected):
    classes = dict(enumerate(["Background", "sky", "car"]))
    assert untinted_of(RevHRNetConfig(id2label=classes, untinted=untinted)) == expected
    assert untinted_of(SegformerConfig(id2label=classes)) == {0}


def test_overlay_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2×3, its image 3×2"):
        overlay(Image.new("RGB", (2, 3)), LABEL_MAP, COLOURS)
    with pytest.raises(ValueError, match="opacity"):
        overlay(Image.new("RGB", (3, 2)), LABEL_MAP, COLOURS, opacity=50)


def test_legend_shows_only_the_classes_present_and_no_name_is_cut():
    image = legend(NAMES, COLOURS, present=[2, 0], width=300)
    shown = colours_in(image)
    assert COLOURS[0] in shown and COLOURS[2] in shown and COLOURS[1] not in shown
    assert image.width == 300
    # A name far wider than the legend makes it wider; the last columns stay white.
    wide = legend(["a really long class name " * 4], COLOURS, width=50)
    assert wide.width > 400
    assert (np.asarray(wide)[:, -4:] == 255).all()
    assert (np.asarray(wide)[:, -60:-4] < 128).any()


@pytest.mark.parametrize("width", [40, 300, 2000])
@pytest.mark.parametrize("num_labels", [1, 2, 19, 133])
def test_legend_has_a_whole_swatch_for_every_class(width, num_labels):
    colours = default_palette(num_labels)
    image = legend([f"class {i}" for i in range(num_labels)], colours, width=width, font_size=16)
    counts = {colour: count for count, colour in image.getcolors(maxcolors=1 << 24)}
    # 16-pixel text has 26-pixel lines: swatches of about 20 × 20, edge not counted.
    assert all(counts[colour] > 300 for colour in colours)


def test_triptych_shows_image_truth_and_prediction_side_by_side():
    image = Image.new("RGB", (240, 120), (10, 200, 30))
    truth, prediction = np.zeros((120, 240), int), np.full((120, 240), 2)
    truth[:10] = 255
    small = (Image.new("RGB", (60, 30), (1, 2, 3)), np.zeros((30, 60), int), np.zeros((30, 60), int))
    shown = triptych([(image, truth, prediction), small], NAMES, COLOURS)
    assert shown.width > 3 * 240
    titles = 20  # 12-pixel text
    for column, colour in enumerate([(10, 200, 30), COLOURS[0], COLOURS[2]]):
        assert shown.getpixel((column * 242 + 120, titles + 60)) == colour
    assert shown.getpixel((120, titles + 122 + 60)) == (1, 2, 3)  # the smaller row, scaled to the same width
    below = shown.crop((0, titles + 2 * 122, *shown.size))
    assert {COLOURS[0], COLOURS[2], (0, 0, 0)} <= colours_in(below)  # black: ignored
    assert COLOURS[1] not in colours_in(below)
    with pytest.raises(ValueError, match="at least one row"):
        triptych([], NAMES, COLOURS)


def test_label_maps_of_different_sizes_stand_side_by_side():
    upright, lying = np.zeros((20, 10), int), np.full((30, 60), 2)
    image = label_map_strip([upright, lying], NAMES, COLOURS, height=120)
    assert colours_in(image.crop((0, 0, 60, 120))) == {COLOURS[0]}  # 20×10 at a height of 120
    assert colours_in(image.crop((60, 0, 62, 120))) == {(255, 255, 255)}
    assert colours_in(image.crop((62, 0, 302, 120))) == {COLOURS[2]}
    assert image.width == 302
    below = colours_in(image.crop((0, 120, *image.size)))
    assert {COLOURS[0], COLOURS[2]} <= below and COLOURS[1] not in below


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real CamVid is not here")
def test_real_camvid_image():
    label_file = sorted((CAMVID / "valannot").iterdir())[0]
    with Image.open(CAMVID / "val" / label_file.name) as image, Image.open(label_file) as annotation:
        label_map = np.asarray(annotation)
        colours = default_palette(11)
        laid_over = overlay(image, label_map, colours, opacity=1, ignore_index=11)
        road = label_map == 3
        assert road.mean() > 0.1
        assert (np.asarray(laid_over)[road] == colours[3]).all()
        np.testing.assert_array_equal(np.asarray(laid_over)[label_map == 11], np.asarray(image)[label_map == 11])
        assert with_legend(laid_over, [str(i) for i in range(11)], colours, list(range(11))).height > image.height
