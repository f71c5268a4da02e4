"""Stored annotations and MATLAB files from untrusted sources."""

import base64
import io
import json
import struct
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from revhrnet_hf.data import LabelMap, matlab
from revhrnet_hf.data.annotation import annotation_size, draw_annotation, labelled_pixels, read_matlab, self_contained
from revhrnet_hf.data.label_space import LabelSpace, get_label_space
from revhrnet_hf.data.translation import in_classes_of
from revhrnet_hf.errors import DataError

OBJECTS, SEGMENTS = {"objects": []}, {"segments": []}


def packed(**record):
    return json.dumps(record).encode()


@pytest.mark.parametrize("kind", [OBJECTS, SEGMENTS])
@pytest.mark.parametrize("use", [annotation_size, self_contained, "draw", "count"])
def test_more_pixels_than_pillow_opens_are_refused_at_once(kind, use):
    annotation = packed(height=30_000, width=30_000, **kind)
    assert len(annotation) < 90
    spaces = get_label_space("coco81" if kind is OBJECTS else "coco_panoptic133")
    uses = {"draw": lambda a, s: draw_annotation(a, spaces, s), "count": lambda a, s: labelled_pixels(a, spaces, s)}
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"annotation the_file: 30000×30000 pixels are more than 179 megapixels.*REVHRNET_MAX_MEGAPIXELS"
        ):
            uses.get(use, use)(annotation, "the_file")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_limit_on_pixels_can_be_raised(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("REVHRNET_MAX_MEGAPIXELS", "0.0003")
    assert annotation_size(packed(height=1, width=300, **OBJECTS), "x") == (300, 1)
    with pytest.raises(DataError, match="301×1 pixels are more than"):
        annotation_size(packed(height=1, width=301, **OBJECTS), "x")


@pytest.mark.parametrize(("limit", "allowed"), [(100, False), (101, True), (None, True)])
def test_limit_on_pixels_is_pillows(monkeypatch, limit, allowed):
    """Pillow opens up to twice its limit."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    annotation = packed(height=1, width=201, **OBJECTS)
    if allowed:
        assert annotation_size(annotation, "x") == (201, 1)
        return
    with pytest.raises(DataError, match="201×1 pixels are more than 0 megapixels"):
        annotation_size(annotation, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None}, "has the width None; it must be the image's width, a whole number of 1 or more"),
        ({"height": True}, "has the height True"),
        ({"height": 0}, "has the height 0"),
        ({"height": 6.0}, r"has the height 6\.0"),
        ({"objects": {}}, "has no list of objects"),
        ({"objects": [1]}, "1 is among the annotations"),
        ({"objects": [{"id": 3, "category_id": [1]}]}, r"annotation 3 has the category id \[1\]"),
        ({"objects": [{"id": 3, "category_id": True}]}, "annotation 3 has the category id True"),
        ({"objects": [{"id": 3}]}, "annotation 3 has the category id None"),
        ({"segments": 7}, "has no list of segments"),
    ],
)
def test_odd_annotation_is_named(change, message):
    record = {"height": 6, "width": 8, "objects": []} | change
    with pytest.raises(DataError, match=rf"the_file.*{message}|{message}"):
        LabelMap(label_space="coco81").decode_example({"path": "the_file", "bytes": packed(**record)})


def png_of(ids, kind="PNG"):
    buffer = io.BytesIO()
    ids = np.asarray(ids)
    PIL.Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


IDS = [[7, 7, 300], [0, 70_000, 7]]
LISTED = {"height": 2, "width": 3, "segments": [[7, 1], [300, 3], [70_000, 200]]}


def draw_panoptic(**record):
    return draw_annotation(packed(**{**LISTED, **record}), get_label_space("coco_panoptic133"), "the_file")


def test_segments_are_drawn():
    space = get_label_space("coco_panoptic133")
    train_ids = {0: 255, 7: space.raw_ids[1], 300: space.raw_ids[3], 70_000: space.raw_ids[200]}
    inside = base64.b64encode(png_of(IDS)).decode()
    assert draw_panoptic(png_base64=inside).tolist() == [[train_ids[i] for i in row] for row in IDS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": [[7]]}, r"\[7\] is among the segments"),
        ({"segments": [[2**24, 1]]}, "is among the segments"),
        ({"segments": [[-1, 1]]}, "is among the segments"),
        ({"segments": [[[7], 1]]}, "is among the segments"),
        ({"segments": [[7, 12]]}, "segment 7 has the category id 12"),
        ({"segments": [[7, 1]]}, "holds the segment ids 300, 70000"),
        ({"height": 3}, "is of 3×2 pixels, but the panoptic JSON says 3×3"),
        ({"png_base64": "?"}, "cannot be read"),
        ({"png_base64": 5}, "has no PNG of its segments"),
        ({"png_base64": base64.b64encode(png_of(IDS)[:40]).decode()}, "damaged or not a PNG"),
        ({"png_base64": base64.b64encode(png_of(IDS, "BMP")).decode()}, "damaged or not a PNG"),
    ],
)
def test_odd_segments_are_named(change, message):
    with pytest.raises(DataError, match=rf"the_file.*{message}|{message}.*"):
        draw_panoptic(**{"png_base64": base64.b64encode(png_of(IDS)).decode(), **change})


def test_png_of_an_annotation_is_taken_in(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of(IDS))
    annotation = packed(**LISTED, png=str(tmp_path / "a.png"))
    inside = self_contained(annotation, "the_file")
    (tmp_path / "a.png").unlink()
    assert json.loads(inside) == {**LISTED, "png_base64": base64.b64encode(png_of(IDS)).decode()}
    with pytest.raises(DataError, match="cannot be read"):
        self_contained(annotation, "the_file")


def test_only_a_png_is_taken_in_and_nothing_is_fetched(tmp_path, monkeypatch):
    """Otherwise a malicious dataset could copy a private key into a dataset that its user publishes, or open a URL."""
    monkeypatch.setattr("fsspec.open", lambda *args, **options: pytest.fail("it called out"))
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    for png in (str(tmp_path / "id_rsa"), "http://localhost/a.png", "zip://a.png::http://localhost/a.zip", "file:///etc/passwd"):
        with pytest.raises(DataError, match=r"the_file.* (damaged or not a PNG|has no PNG)"):
            self_contained(packed(**LISTED, png=png), "the_file")
        with pytest.raises(DataError, match=r"the_file.* (damaged or not a PNG|has no PNG)"):
            draw_panoptic(png=png)


def matlab_file(value, compressed=False, **others):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"before": np.arange(5), "GTcls": value, **others}, do_compression=compressed)
    return buffer.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]),
    st.booleans(),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_matlab_files_read_as_scipy_reads_them(dtype, compressed, shape, seed, first):
    label_map = np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
    fields = {"Boundaries": [1.0, 2.0, 3.0], "Name": "text"}
    value = {"Segmentation": label_map, **fields} if first else {**fields, "Segmentation": label_map}
    data = matlab_file(value, compressed, after="x")
    expected = scipy.io.loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    assert read_matlab(data).dtype == expected.dtype
    assert np.array_equal(read_matlab(data), expected)


def test_matlab_file_of_the_other_byte_order():
    """Written by a big-endian machine: int16 [[1, 2], [3, 4]], column by column."""

    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def array(flags, shape, name, *parts):
        head = element(6, struct.pack(">II", flags, 0)), element(5, struct.pack(">2i", *shape)), element(1, name)
        return element(14, b"".join((*head, *parts)))

    values = array(10, (2, 2), b"", element(3, struct.pack(">4h", 1, 3, 2, 4)))
    names = struct.pack(">HHi", 4, 5, 13) + element(1, b"Segmentation\0")
    data = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI" + array(2, (1, 1), b"GTcls", names, values)
    assert np.array_equal(scipy.io.loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0], [[1, 2], [3, 4]])
    assert np.array_equal(read_matlab(data), [[1, 2], [3, 4]])


def test_matlab_file_that_unpacks_to_too_much(monkeypatch):
    data = matlab_file({"Segmentation": np.zeros((2000, 1000), np.uint8)}, compressed=True)
    assert read_matlab(data).shape == (2000, 1000)
    monkeypatch.setattr(matlab, "MOST", 1 << 20)
    with pytest.raises(ValueError, match=r"no field GTcls\.Segmentation: it unpacks to more than 1 MB"):
        read_matlab(data)


def test_matlab_bomb():
    bomb = zlib.compress(bytes(65 << 20), 1)
    data = matlab_file({"a": 1})[:128] + struct.pack("<II", 15, len(bomb)) + bomb
    with pytest.raises(DataError, match=r"the_file cannot be read .*unpacks to more than 64 MB"):
        LabelMap(label_space="voc21").decode_example({"path": "the_file", "bytes": data})


@pytest.mark.parametrize(
    "value", [{"Segmentation": "text"}, {"Segmentation": np.zeros((0, 3))}, {"Segmentation": np.zeros((2, 2, 2))}, {"a": 1}, 5]
)
def test_matlab_file_without_a_label_map(value):
    with pytest.raises(ValueError, match=r"GTcls\.Segmentation"):
        read_matlab(matlab_file(value))


def test_label_map_of_matlabs_usual_numbers():
    """MATLAB writes floating-point numbers by default."""
    feature = LabelMap(label_space="voc21")
    whole, broken = np.array([[0.0, 20.0], [255.0, 7.0]]), np.array([[0.0, np.nan], [255.0, 7.0]])
    decoded = feature.decode_example({"path": "the_file", "bytes": matlab_file({"Segmentation": whole})})
    assert np.asarray(decoded).tolist() == whole.tolist()
    with pytest.raises(DataError, match="the_file holds 1 pixels that are no ids, for example nan"):
        feature.decode_example({"path": "the_file", "bytes": matlab_file({"Segmentation": broken})})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("road", "car"), [1, 0, 255, 255]),  # there is no background: what no object covers is ignored
        (("road", "background", "car"), [2, 0, 1, 1]),
        (("background", "road"), [255, 1, 0, 0]),  # nor a car
    ],
)
def test_objects_in_the_classes_of_another_dataset(names, expected):
    """Its first class is not the background, and is drawn."""
    own = LabelSpace("own", ("background", "car", "road"), ((0, 0, 0),) * 3, {7: 1, 8: 2, 9: 0})
    other = LabelSpace("other", names, ((0, 0, 0),) * len(names), dict(enumerate(range(len(names)))))
    joined = in_classes_of(own, other)
    assert LabelSpace.from_json(joined.to_json()) == joined
    boxes = [
        {"id": k, "category_id": category, "segmentation": [[k, 0, k + 1, 0, k + 1, 1, k, 1]]}
        for k, category in enumerate((7, 8, 9))
    ]
    drawn = draw_annotation(packed(height=1, width=4, objects=boxes), joined, "x")
    assert drawn.tolist() == [expected]
