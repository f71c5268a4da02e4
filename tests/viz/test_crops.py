"""The sheet of crops: each crop beside its label map in the classes' colours, all of them, with a legend."""

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.viz.crops import PANEL_WIDTH, DrawnCrop, crop_sheet

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


@pytest.mark.parametrize("number", [1, 2, 5, 16])
def test_each_crop_is_beside_its_label_map(number):
    labels = np.full((20, 30), 255, np.uint8)
    labels[:, :15] = 1
    crops = [DrawnCrop(PIL.Image.new("RGB", (30, 20), (200, 100, 50 + number)), labels, f"image {k}") for k in range(number)]
    sheet = np.asarray(crop_sheet(crops, ["a", "b", "c"], COLOURS))
    height = round(20 * PANEL_WIDTH / 30)
    assert (sheet == (200, 100, 50 + number)).all(-1).sum() == number * PANEL_WIDTH * height
    green = (sheet == COLOURS[1]).all(-1).sum()
    # Half of each label map, and the legend's swatch.
    assert 0 < green - number * PANEL_WIDTH * height // 2 < 1000
    assert not (sheet == COLOURS[0]).all(-1).any() and not (sheet == COLOURS[2]).all(-1).any()
    assert ((sheet == 0).all(-1).sum()) >= number * PANEL_WIDTH * height // 2  # ignored
    if number == 16:
        assert 0.4 < sheet.shape[1] / sheet.shape[0] < 2.5
