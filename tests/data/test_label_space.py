import pickle

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import LabelSpace, get_label_space
from revhrnet_hf.errors import DataError

SPACE = LabelSpace("toy", ("a", "b"), ((10, 20, 30), (1, 2, 3)), {7: 0, 300: 1, 0: 255}, raw_colours={(9, 8, 7): 1})


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_ids_are_translated_as_one_by_one(dtype):
    raw = np.random.default_rng(0).choice([7, 300, 0], size=(13, 17)).astype(dtype)
    expected = [[SPACE.raw_ids[int(raw_id)] for raw_id in row] for row in raw]
    train_ids = SPACE.train_ids(raw, "x.png")
    assert train_ids.dtype == np.uint8
    assert train_ids.tolist() == expected


def test_colours_are_translated_as_one_by_one():
    space = get_label_space("camvid11")
    colours = np.array(list(space.raw_colours), np.uint8)
    raw = colours[np.random.default_rng(0).integers(len(colours), size=(9, 11))]
    expected = [[space.raw_colours[tuple(pixel)] for pixel in row] for row in raw.tolist()]
    assert space.train_ids(raw, "x.png").tolist() == expected


@pytest.mark.parametrize("stray", [8, 301, 65535])
def test_unknown_ids_name_file_and_ids(stray):
    with pytest.raises(DataError, match=rf"street/x\.png holds the ids {stray}, .*'toy'.*has 0, 7, 300"):
        SPACE.train_ids(np.array([[7, stray], [stray, 300]], np.uint16), "street/x.png")


# (255, 255, 255) is above every known colour, (0, 0, 0) below, (9, 8, 8) next to one.
@pytest.mark.parametrize("stray", [(255, 255, 255), (0, 0, 0), (9, 8, 8)])
def test_unknown_colours_name_file_and_colours(stray):
    with pytest.raises(DataError, match=rf"x\.png holds the colours \({stray[0]}, {stray[1]}, {stray[2]}\)"):
        SPACE.train_ids(np.array([[(9, 8, 7), stray]], np.uint8), "x.png")


def test_many_unknown_ids_are_counted():
    with pytest.raises(DataError, match=r"20, 21, .*, 27 and 12 more"):
        SPACE.train_ids(np.arange(20, 40, dtype=np.uint8).reshape(4, 5), "x.png")


def test_colour_map_for_a_space_of_ids_says_so():
    space = LabelSpace("ids", ("a",), ((0, 0, 0),), {0: 0})
    with pytest.raises(DataError, match=r"x\.png is a colour image"):
        space.train_ids(np.zeros((2, 2, 3), np.uint8), "x.png")


def test_palette_paints_train_ids_in_their_colours():
    image = PIL.Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    image.putpalette(SPACE.palette)
    assert np.asarray(image.convert("RGB")).tolist() == [[[10, 20, 30], [1, 2, 3], [0, 0, 0]]]
    assert len(SPACE.palette) == 768


def test_label2id_inverts_id2label():
    space = get_label_space("camvid11")
    assert [space.label2id[space.id2label[i]] for i in range(space.num_classes)] == list(range(11))


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match=r"'camvid12'.*camvid11"):
        get_label_space("camvid12")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colours": ((0, 0, 0),)}, "2 names but 1 colours"),
        ({"raw_ids": {0: 2}}, r"train ids \[2\]"),
        ({"ignore_index": 1}, "ignore_index 1"),
        ({"ignore_index": 256}, "ignore_index 256"),
    ],
)
def test_contradictory_tables_are_refused(changes, message):
    table = {"names": ("a", "b"), "colours": ((0, 0, 0), (1, 1, 1)), "raw_ids": {0: 0}}
    with pytest.raises(DataError, match=message):
        LabelSpace("bad", **{**table, **changes})


def test_pickles_and_hashes():
    SPACE.train_ids(np.array([[7]], np.uint8), "x.png")
    assert pickle.loads(pickle.dumps(SPACE)) == SPACE
    assert hash(SPACE) == hash(pickle.loads(pickle.dumps(SPACE)))


FEW = LabelSpace("few", ("a", "b"), ((0, 0, 0), (1, 1, 1)), {0: 0, 7: 1, 255: 255})


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "u2", "u4", "u8", "i2", "i4", "i8"])
def test_ids_of_every_type_of_number(dtype):
    assert FEW.train_ids(np.array([[0, 7], [255, 7]], dtype), "x").tolist() == [[0, 1], [255, 1]]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.nan, "f4"),
        (np.nan, "f2"),
        (np.inf, "f8"),
        (-np.inf, "f8"),
        (6.5, "f8"),
        (1e300, "f8"),
        (2**64 - 1, "u8"),
        (2**63, "u8"),
    ],
)
def test_numbers_that_are_no_ids(value, dtype):
    """A cast makes −9223372036854775808 of NaN, 6 of 6.5, and `take` 0 of 2⁶⁴ − 1."""
    raw = np.array([[0, 7, 7], [7, 0, 7]], dtype)
    raw[1, 1] = value
    with pytest.raises(DataError, match=r"Label map the_file holds 1 pixels that are no ids, for example \S+; ids are whole"):
        FEW.train_ids(raw, "the_file")


@pytest.mark.parametrize(("value", "dtype"), [(-1.0, "f8"), (8.0, "f4"), (2.0**40, "f8"), (-1, "i8"), (8, "u8")])
def test_whole_numbers_without_a_class(value, dtype):
    with pytest.raises(DataError, match=rf"the_file holds the ids {int(value)}, which label space 'few' does not have"):
        FEW.train_ids(np.array([[0, value]], dtype), "the_file")


@pytest.mark.parametrize("raw", [np.array([["7"]]), np.array([[7j]]), np.array([[None]])])
def test_values_that_are_no_numbers(raw):
    with pytest.raises(DataError, match="the_file holds values of type"):
        FEW.train_ids(raw, "the_file")


def test_tiff_of_floating_point_numbers():
    values = np.array([[0, 7], [255, 7]], np.float32)
    decoded = FEW.translate_image(PIL.Image.fromarray(values), "x")
    assert (decoded.mode, np.asarray(decoded).tolist()) == ("L", [[0, 1], [255, 1]])
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="for example nan"):
        FEW.translate_image(PIL.Image.fromarray(values), "x")
