"""labelme's shapes, held against what plain geometry says of each pixel."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from revhrnet_hf.data.annotation import draw_annotation, pack_annotation
from revhrnet_hf.data.label_space import LabelSpace
from revhrnet_hf.errors import DataError

HEIGHT, WIDTH = 40, 60
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SPACE = LabelSpace("shapes", ("background", "road", "tree"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), {0: 0, 7: 1, 9: 2, 255: 255})


def drawn(*shapes):
    annotation = pack_annotation({"height": HEIGHT, "width": WIDTH, "shapes": list(shapes)})
    return draw_annotation(annotation, SPACE, "a.json")


def distance_to_segment(start, end):
    start, along = np.array(start, float), np.subtract(end, start)
    share = np.clip(((COLUMNS - start[0]) * along[0] + (ROWS - start[1]) * along[1]) / (along @ along), 0, 1)
    return np.hypot(COLUMNS - start[0] - share * along[0], ROWS - start[1] - share * along[1])


def is_inside(points):
    """The even-odd rule, for each pixel's centre."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        crosses = (y0 > ROWS) != (y1 > ROWS)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & ((x1 - x0) * (ROWS - y0) / (y1 - y0) + x0 > COLUMNS)
    return inside


POINTS = [[5.3, 3.2], [40.7, 8.9], [52.1, 33.4], [28.0, 20.5], [9.6, 36.8]]


def test_polygon():
    found = drawn([7, "polygon", POINTS]) == 1
    edge = np.min([distance_to_segment(*pair) for pair in zip(POINTS, [*POINTS[1:], POINTS[0]], strict=True)], axis=0)
    sure = edge > 1.5
    assert sure.mean() > 0.7 and found[sure].any() and np.array_equal(found[sure], is_inside(POINTS)[sure])


@pytest.mark.parametrize(
    ("shape", "distance"),
    [
        (["circle", [[30, 20], [30, 31]]], np.hypot(COLUMNS - 30, ROWS - 20) - 11),
        (["point", [[12.0, 9.0]]], np.hypot(COLUMNS - 12, ROWS - 9) - 5),
        (["line", [[10, 10], [50, 30]]], distance_to_segment([10, 10], [50, 30]) - 5),
    ],
)
def test_round_and_long_shapes(shape, distance):
    found = drawn([7, *shape]) == 1
    ends = np.hypot(COLUMNS - 10, ROWS - 10) < 8, np.hypot(COLUMNS - 50, ROWS - 30) < 8  # a line's ends are cut straight
    sure = (np.abs(distance) > 1.5) & ~(ends[0] | ends[1] if shape[0] == "line" else False)
    assert found.any() and np.array_equal(found[sure], (distance < 0)[sure])


@pytest.mark.parametrize("corners", [[[8, 5], [20, 30]], [[20, 30], [8, 5]], [[20, 5], [8, 30]]])
def test_rectangles_by_any_two_corners(corners):
    inside = (COLUMNS >= 8) & (COLUMNS <= 20) & (ROWS >= 5) & (ROWS <= 30)
    assert np.array_equal(drawn([7, "rectangle", corners]), inside.astype(np.uint8))


def test_later_shapes_cover_earlier_ones():
    found = drawn(
        [7, "rectangle", [[0, 0], [30, 30]]], [9, "rectangle", [[10, 10], [40, 20]]], [255, "rectangle", [[15, 12], [16, 13]]]
    )
    assert (found[5, 5], found[15, 12], found[15, 35], found[12, 15], found[35, 50]) == (1, 2, 2, 255, 0)


def test_masks():
    mask = np.random.default_rng(0).random((11, 13)) > 0.5
    png = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(png, "PNG")  # labelme saves 0 and 1
    found = drawn([9, "mask", [[20, 15], [32, 25]], base64.b64encode(png.getvalue()).decode()])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[15:26, 20:33][mask] = 2
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([8, "rectangle", [[0, 0], [5, 5]]], r"a\.json .*\b8\b"),
        ([7, "polygon", [[0, 0], [5, "5"], [3, 3]]], "shape 1 is a polygon, which has 3 or more points"),
        ([7, "circle", [[0, 0]]], "shape 1 is a circle, which has 2 points"),
        ([7, "mask", [[0, 0], [5, 5]], "no base64!"], "shape 1 is a mask without a PNG in base64"),
        (["7", "polygon", POINTS], r"it must be \[id, kind, points\]"),
    ],
)
def test_errors(shape, said):
    with pytest.raises(DataError, match=said):
        drawn(shape)
