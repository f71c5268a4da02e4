"""The sheet of masks over images: what is where, and that ignored pixels show the image."""

import numpy as np
import pytest
from PIL import Image

from revhrnet_hf.viz.contact_sheet import GAP, TEXT, THUMBNAIL, contact_sheet

COLOURS = [(255, 0, 0), (0, 0, 255)]


def sheet_of(*rows):
    return np.asarray(contact_sheet(rows, ["road", "sky"], COLOURS, opacity=0.5)).astype(int)


def test_images_and_masks_side_by_side():
    label_map = np.repeat(np.array([[0, 1, 255]], dtype=np.uint8), 100, axis=1).repeat(30, axis=0)
    image = Image.new("RGB", (300, 30), (100, 200, 100))
    sheet = sheet_of(("first", image, label_map), ("second", image, label_map), ("third", image, label_map))
    height = 32  # 30 rows at the width of a thumbnail
    for left, top in ((GAP, 0), (2 * GAP + 2 * (THUMBNAIL + GAP) + GAP, 0), (GAP, height + 2 * TEXT)):
        row = sheet[top + 2 * TEXT + height // 2, left + GAP :]
        assert row[THUMBNAIL // 2].tolist() == [100, 200, 100]
        places = [THUMBNAIL + GAP + round(THUMBNAIL * share) for share in (1 / 6, 1 / 2, 5 / 6)]
        assert [row[place].tolist() for place in places] == [[177, 100, 50], [50, 100, 177], [100, 200, 100]]


def test_a_long_title_stays_within_its_image():
    image, label_map = Image.new("RGB", (64, 64)), np.zeros((64, 64), np.uint8)
    sheet = sheet_of(("x" * 500, image, label_map), ("", image, label_map))
    assert (sheet[: 2 * TEXT, 2 * THUMBNAIL + 3 * GAP + 4 :] == 255).all()
    assert (sheet[: 2 * TEXT, :THUMBNAIL] < 255).any()


def test_no_images():
    with pytest.raises(ValueError, match="one image at least"):
        contact_sheet([], ["a", "b"], COLOURS)
