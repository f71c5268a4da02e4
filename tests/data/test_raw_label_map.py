"""Label-map files of every mode, written by Pillow or byte by byte: the table decides how they are read."""

import io
import itertools
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import LabelMap, LabelSpace, get_label_space
from revhrnet_hf.data.raw_label_map import raw_content
from revhrnet_hf.errors import DataError
from revhrnet_hf.models.rgb import FORMATS

CLASSES = ("a", "b", "c")
COLOURS = ((200, 0, 0), (0, 200, 0), (7, 7, 7))
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def table(ids=None, colours=None):
    """A label space of three classes by their raw ids, their raw colours or both."""
    return LabelSpace("t", CLASSES, COLOURS, ids or {}, raw_colours=colours or {})


IDS = table({0: 2, 1: 0, 2: 1, 3: 0, 255: 255})  # translating twice or not at all gives other ids
BY_COLOUR = table(colours=dict(zip(COLOURS, (0, 1, 2), strict=True)) | {BLACK: 255})
BOTH = table({1: 0, 2: 1, 3: 2}, dict(zip(COLOURS, (0, 1, 2), strict=True)) | {BLACK: 255})
IDS_AT = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def saved(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data, space):
    """By the decoded and by the opened label map, which must agree in every part."""
    feature, value = LabelMap.of(space), {"path": "map.png", "bytes": data}
    whole = feature.decode_example(value)
    assert whole.mode == "L"
    opened = feature.open(value)
    assert opened.size == whole.size
    for box in boxes(whole.size):
        assert np.array_equal(opened.crop(box), whole.crop(box)), box
    return np.asarray(whole).tolist()


def boxes(size):
    """Every (left, top, right, bottom) in an image of this size."""
    for (left, right), (top, bottom) in itertools.product(*(itertools.combinations(range(side + 1), 2) for side in size)):
        yield left, top, right, bottom


def train_ids(space, raw):
    return [[space.raw_ids[int(raw_id)] for raw_id in row] for row in raw]


def png(rows, bits, colour_type, palette=b""):
    """A PNG with samples of few bits, as Pillow does not write them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = rows.shape
    packed = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in rows.astype(np.uint8)
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    colours = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + header + colours + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


def grey_and_alpha(values):
    return PIL.Image.merge("LA", [PIL.Image.fromarray(values), PIL.Image.fromarray(255 - values)])


GREY = {
    "8 bits": saved(PIL.Image.fromarray(IDS_AT)),
    "1 bit": png(IDS_AT % 2, 1, 0),
    "2 bits": png(IDS_AT, 2, 0),
    "4 bits": png(IDS_AT, 4, 0),
    "16 bits": saved(PIL.Image.fromarray(IDS_AT.astype(np.uint16))),
    "PGM up to 2": b"P5 3 2 2\n" + IDS_AT.tobytes(),
    "PGM up to 3": b"P5 3 2 3\n" + IDS_AT.tobytes(),
    "PGM up to 255": b"P5 3 2 255\n" + IDS_AT.tobytes(),
    "PGM up to 1000": b"P5 3 2 1000\n" + IDS_AT.astype(">u2").tobytes(),
    "PGM up to 65535": b"P5 3 2 65535\n" + IDS_AT.astype(">u2").tobytes(),
    "plain PGM up to 2": b"P2 3 2 2\n0 1 2 2 1 0\n",
    "plain PGM up to 300": b"P2 3 2 300\n0 1 2 2 1 0\n",
    "PPM up to 3": b"P6 3 2 3\n" + np.repeat(IDS_AT[..., None], 3, 2).tobytes(),
    "RGB": saved(PIL.Image.fromarray(np.repeat(IDS_AT[..., None], 3, 2))),
    "RGBA": saved(PIL.Image.fromarray(np.dstack([IDS_AT] * 3 + [255 - IDS_AT]))),
    "LA": saved(grey_and_alpha(IDS_AT)),
    "GIF": saved(PIL.Image.fromarray(IDS_AT), "GIF"),
    "BMP": saved(PIL.Image.fromarray(IDS_AT), "BMP"),
    "1-bit BMP": saved(PIL.Image.fromarray(IDS_AT % 2 > 0), "BMP"),
    "TIFF": saved(PIL.Image.fromarray(IDS_AT), "TIFF"),
    "1-bit TIFF": saved(PIL.Image.fromarray(IDS_AT % 2 > 0), "TIFF"),
    "32-bit TIFF": saved(PIL.Image.fromarray(IDS_AT.astype(np.int32)), "TIFF"),
    "float TIFF": saved(PIL.Image.fromarray(IDS_AT.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize(("kind", "data"), GREY.items(), ids=GREY)
def test_grey_values_are_the_files_numbers(kind, data):
    assert read(data, IDS) == train_ids(IDS, IDS_AT % 2 if "1 bit" in kind or "1-bit" in kind else IDS_AT)


def test_a_gif_of_grey_holds_grey_values_whatever_its_palettes_order():
    values = np.array([[0, 2], [2, 0]], np.uint8)
    data = saved(PIL.Image.fromarray(values), "GIF")
    assert np.asarray(PIL.Image.open(io.BytesIO(data))).max() == 1  # the encoder renumbers
    assert read(data, IDS) == train_ids(IDS, values)


def test_a_png_of_a_grey_palette_holds_the_places_in_it():
    """Unlike a GIF: here the order of the palette is the writer's."""
    image = PIL.Image.fromarray(IDS_AT, "P")
    image.putpalette([grey for grey in (90, 10, 50) for _ in range(3)])
    assert read(saved(image), IDS) == train_ids(IDS, IDS_AT)


def test_a_black_and_white_gif_must_be_readable_in_one_way_only():
    data = saved(PIL.Image.fromarray(np.array([[0, 255]], np.uint8)), "GIF")
    assert read(data, table({0: 0, 1: 1})) == [[0, 1]]
    assert read(data, table({0: 0, 255: 1})) == [[0, 1]]
    message = r"map\.png can be read in two ways.*1 is 'b' as an id, but its grey value \(255, 255, 255\) is ignored"
    with pytest.raises(DataError, match=message):
        read(data, table({0: 0, 1: 1, 255: 255}))


def test_indices_count_and_not_an_arbitrary_palette():
    image = PIL.Image.fromarray(IDS_AT)
    image.putpalette([9, 9, 9, 50, 60, 70, 255, 255, 255])
    for kind in ("PNG", "TIFF", "BMP"):
        assert read(saved(image, kind), IDS) == train_ids(IDS, IDS_AT)
    for bits in (2, 4):
        assert read(png(IDS_AT, bits, 3, bytes([9, 9, 9, 50, 60, 70, 255, 255, 255])), IDS) == train_ids(IDS, IDS_AT)


def palette_image(values, colours):
    image = PIL.Image.fromarray(values)
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def test_colours_count_where_the_table_has_no_ids_or_not_these():
    image = palette_image(IDS_AT, [COLOURS[2], BLACK, COLOURS[0]])
    for kind in ("PNG", "GIF", "TIFF"):
        assert read(saved(image, kind), BY_COLOUR) == [[2, 255, 0], [0, 255, 2]]
    assert read(saved(image), BOTH) == [[2, 255, 0], [0, 255, 2]]  # id 0 is unknown
    with pytest.raises(DataError, match=r"map\.png holds the colours \(1, 2, 3\), which"):
        read(saved(palette_image(IDS_AT, [COLOURS[0], COLOURS[1], (1, 2, 3)])), BY_COLOUR)
    with pytest.raises(DataError, match=r"map\.png holds the ids 0, which"):
        read(saved(palette_image(IDS_AT, [(1, 2, 3), COLOURS[0], COLOURS[1]])), BOTH)


def test_black_and_white_masks_of_a_table_of_colours():
    space = table(colours={BLACK: 0, WHITE: 1})
    for image in (PIL.Image.fromarray(np.array([[0, 255]], np.uint8)), PIL.Image.fromarray(np.array([[False, True]]))):
        for mode in ("L", "1", "LA", "RGB"):
            assert read(saved(image.convert(mode)), space) == [[0, 1]], mode
    assert read(png(np.array([[0, 3]]), 2, 0), space) == [[0, 1]]


def test_colours_that_contradict_the_ids_show_both_readings():
    indices = np.array([[1, 2, 3]], np.uint8)
    right = palette_image(indices, [BLACK, *COLOURS])
    assert read(saved(right), BOTH) == [[0, 1, 2]]
    swapped = palette_image(indices, [BLACK, COLOURS[1], COLOURS[0], COLOURS[2]])
    message = r"map\.png can be read in two ways.*1 is 'a' as an id, but its colour \(0, 200, 0\) is 'b'; 2 is 'b' .* is 'a'"
    with pytest.raises(DataError, match=message):
        read(saved(swapped), BOTH)
    # A colour that is unknown or ignored names no other class.
    assert read(saved(palette_image(indices, [WHITE, BLACK, COLOURS[1], (1, 2, 3)])), BOTH) == [[0, 1, 2]]
    # Neither does a colour without a pixel.
    assert read(saved(palette_image(indices[:, :1], [COLOURS[2], COLOURS[0], COLOURS[0]])), BOTH) == [[0]]


def test_published_palettes_are_read_by_index():
    for name in ("voc21", "mapillary_vistas_v1.2", "camvid11"):
        space = get_label_space(name)
        used = np.array([list(range(space.num_classes))], np.uint8)
        assert read(saved(palette_image(used, space.colours)), space) == used.tolist()
        assert read(saved(palette_image(used, [(i, 255 - i, 3) for i in range(256)])), space) == used.tolist()


def test_grey_ids_in_colour_files_only_where_all_is_grey():
    coloured = np.repeat(IDS_AT[..., None], 3, 2).copy()
    coloured[0, 0, 0] = 9
    with pytest.raises(DataError, match=r"map\.png is a colour image, but label space 't' has ids only"):
        read(saved(PIL.Image.fromarray(coloured)), IDS)
    grey = np.full((1, 2, 3), 3, np.uint8)
    assert read(saved(PIL.Image.fromarray(grey)), BOTH) == [[2, 2]]
    grey[:] = COLOURS[2]
    assert read(saved(PIL.Image.fromarray(grey)), BOTH) == [[2, 2]]  # a known colour


@pytest.mark.parametrize(("kind", "channels"), [("RGB", 3), ("LA", 2), ("RGBA", 4)])
def test_sixteen_bits_of_colour_are_refused_and_not_halved(kind, channels):
    rows = np.zeros((1, 2, channels), ">u2")
    colour_type = {"RGB": 2, "LA": 4, "RGBA": 6}[kind]

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" + rows.tobytes())) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match=r"map\.png is a colour image of 16 bits a channel"):
        read(data, IDS)


def test_numbers_that_are_no_ids_of_classes(tmp_path):
    PIL.Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "map.tif")
    with pytest.raises(DataError, match=r"map\.tif holds the number 70000: ids of classes are at most 65535"):
        raw_content(str(tmp_path / "map.tif"))


@pytest.mark.parametrize(
    ("kind", "options", "called"),
    [
        ("JPEG", {}, "JPEG"),
        ("JPEG2000", {"irreversible": True}, "JPEG 2000"),
        ("WEBP", {"quality": 50}, "WebP"),
        ("AVIF", {"quality": 50}, "AVIF"),
        ("TIFF", {"compression": "jpeg"}, "JPEG"),
    ],
)
def test_lossy_files_are_refused_whatever_their_name(tmp_path, kind, options, called):
    if kind not in FORMATS:
        pytest.skip("Pillow before 11.3 has no AVIF")
    data = saved(PIL.Image.new("L", (8, 8), 3), kind, **options)
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(DataError, match=f"is compressed as {called}, whatever its name says, and {called} can change"):
        read(data, table(ids={3: 0}))
    with pytest.raises(DataError, match=rf"mask\.png is compressed as {called}, whatever its name says"):
        raw_content(str(tmp_path / "mask.png"))


def test_lossless_tiff_files_are_read():
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        assert read(saved(PIL.Image.new("L", (2, 1), 1), "TIFF", compression=compression), IDS) == [[0, 0]]


def test_a_turned_label_map_is_read_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        data = saved(PIL.Image.fromarray(IDS_AT), kind, exif=exif)
        assert read(data, IDS) == train_ids(IDS, np.rot90(IDS_AT, -1))


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    st.dictionaries(st.integers(0, 255), st.integers(0, 2), min_size=1, max_size=12),
    st.sampled_from(["L", "LA", "RGB", "RGBA", "I;16", "F", "P", "PGM", "GIF"]),
    st.data(),
)
def test_ids_are_translated_one_by_one(ids, mode, draw):
    """Whatever the mode, and a P file with any palette of colours that the table does not have."""
    space = table(ids)
    raw = np.array(draw.draw(st.lists(st.lists(st.sampled_from(sorted(ids)), min_size=3, max_size=3), min_size=1, max_size=5)))
    grey = raw.astype(np.uint8)
    if mode == "P":
        data = saved(palette_image(grey, [(k, 255 - k, 77) for k in range(256)]))
    elif mode == "PGM":
        greatest = draw.draw(st.integers(int(raw.max()) or 1, 600))
        data = f"P5 3 {len(raw)} {greatest}\n".encode() + raw.astype(">u2" if greatest > 255 else np.uint8).tobytes()
    elif mode == "GIF":
        hypothesis.assume(set(raw.ravel().tolist()) - {0, 255})
        data = saved(PIL.Image.fromarray(grey), "GIF")
    elif mode in ("I;16", "F"):
        data = saved(PIL.Image.fromarray(raw.astype(np.uint16 if mode == "I;16" else np.float32)), "TIFF")
    else:
        data = saved(PIL.Image.fromarray(grey).convert(mode))
    assert read(data, space) == train_ids(space, raw)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=3, max_size=9, unique=True),
    st.sampled_from(["RGB", "RGBA", "P", "GIF", "BMP"]),
    st.data(),
)
def test_colours_are_translated_one_by_one(colours, mode, draw):
    space = table(colours={colour: k % 3 for k, colour in enumerate(colours)})
    order = draw.draw(st.permutations(range(len(colours))))
    places = np.array(draw.draw(st.lists(st.lists(st.sampled_from(order), min_size=4, max_size=4), min_size=1, max_size=4)))
    if mode in ("P", "GIF", "BMP"):
        image = palette_image(places.astype(np.uint8), [colours[k] for k in range(len(colours))])
        data = saved(image, {"P": "PNG"}.get(mode, mode))
    else:
        data = saved(PIL.Image.fromarray(np.array(colours, np.uint8)[places]).convert(mode))
    assert read(data, space) == (places % 3).tolist()


def gif(values, colours):
    """A GIF with these colours in this order."""
    data = saved(palette_image(values, colours), "GIF", optimize=False)
    assert PIL.Image.open(io.BytesIO(data)).getpalette()[: 3 * len(colours)] == list(itertools.chain(*colours))
    return data


def test_a_part_that_can_be_read_in_two_ways_is_read_as_the_whole_file():
    data = saved(palette_image(IDS_AT, [COLOURS[2], BLACK, COLOURS[0]]))
    opened = LabelMap.of(BOTH).open({"path": "map.png", "bytes": data})
    assert np.asarray(opened.crop((1, 0, 2, 1))).tolist() == [[255]]  # not class 0, which has the id 1
    assert np.asarray(opened.crop((0, 1, 2, 2))).tolist() == [[0, 255]]  # no contradiction


def test_a_part_of_one_colour_of_a_black_and_white_gif():
    data = gif(np.array([[0, 0], [0, 1]], np.uint8), [WHITE, BLACK])
    space = LabelSpace("t", ("background", "person"), (BLACK, WHITE), {0: 0, 255: 1})
    assert read(data, space) == [[1, 1], [1, 0]]


def test_a_grey_part_of_a_colour_file_whose_greys_are_ids_too():
    space = table({1: 0, 2: 1, 7: 2}, {COLOURS[0]: 0, (7, 7, 7): 1})
    for mode in ("RGB", "RGBA"):
        grey = PIL.Image.fromarray(np.array([[7, 1], [2, 7]], np.uint8)).convert(mode)
        assert read(saved(grey), space) == [[2, 0], [1, 2]]
        coloured = PIL.Image.fromarray(np.array([[COLOURS[2], COLOURS[0]], [COLOURS[0], COLOURS[2]]], np.uint8)).convert(mode)
        assert read(saved(coloured), space) == [[1, 0], [0, 1]]


SHOWN = (BLACK, WHITE, (1, 1, 1), (2, 2, 2), *COLOURS)


def readings(raw):
    return st.dictionaries(st.sampled_from(raw), st.sampled_from([0, 1, 2, 255]), max_size=len(raw))


BOTH_KINDS = st.builds(table, readings([0, 1, 2, 255]), readings(SHOWN))
"""Tables of ids and colours that agree or not."""


@st.composite
def small_files(draw):
    """Files whose values are ids and colours of `BOTH_KINDS`."""
    kind = draw(st.sampled_from(["L", "1", "LA", "RGB", "RGBA", "P", "GIF", "black and white GIF", "TIFF", "grey"]))
    width = draw(st.integers(1, 3))
    rows = st.lists(st.integers(0, 2), min_size=width, max_size=width)
    values = np.array(draw(st.lists(rows, min_size=1, max_size=4)), np.uint8)
    if kind in ("L", "1", "LA"):
        return saved(PIL.Image.fromarray(values if kind != "1" else values * 255).convert(kind))
    shown = (BLACK, WHITE) if kind == "black and white GIF" else SHOWN[:4] if kind == "grey" else SHOWN
    colours = draw(st.lists(st.sampled_from(shown), min_size=3, max_size=3))
    if kind in ("RGB", "RGBA", "grey"):
        return saved(PIL.Image.fromarray(np.array(colours, np.uint8)[values]).convert("RGB" if kind == "grey" else kind))
    image = palette_image(values, colours)
    return saved(image, optimize=False, **({} if kind == "P" else {"kind": kind.removeprefix("black and white ")}))


@hypothesis.settings(deadline=None, max_examples=400)
@hypothesis.given(BOTH_KINDS, small_files())
def test_every_part_is_that_of_the_whole_file(space, data):
    try:
        LabelMap.of(space).decode_example({"path": "map.png", "bytes": data})
    except DataError:
        hypothesis.event("unreadable")
        return
    read(data, space)


def test_raw_content(tmp_path):
    """Ids and colours as they are in the file, counted by NumPy from the array that was saved."""
    ids = np.array([[0, 1, 1], [3, 3, 3]], dtype=np.uint8)
    palette = PIL.Image.fromarray(ids, "P")
    palette.putpalette([0, 0, 0, 10, 20, 30, 1, 1, 1, 40, 50, 60])
    colours = np.array([[[1, 2, 3], [1, 2, 3], [7, 7, 7]]], dtype=np.uint8)
    by_id, by_colour = {0: 1, 1: 2, 3: 3}, {(0, 0, 0): 1, (10, 20, 30): 2, (40, 50, 60): 3}
    greys, same = {(0, 0, 0): 1, (1, 1, 1): 2, (3, 3, 3): 3}, {0: BLACK, 1: (1, 1, 1), 3: (3, 3, 3)}
    binary = {BLACK: 1, WHITE: 5}
    deep = PIL.Image.fromarray(np.array([[0, 1000, 65535]], dtype=np.uint16))
    for name, image, content in (
        ("grey.png", PIL.Image.fromarray(ids), (by_id, greys, same)),
        ("palette.png", palette, (by_id, by_colour, {0: BLACK, 1: (10, 20, 30), 3: (40, 50, 60)})),
        ("grey.ppm", PIL.Image.fromarray(np.repeat(ids[..., None], 3, 2)), (by_id, greys, same)),
        ("colour.png", PIL.Image.fromarray(colours), (None, {(1, 2, 3): 2, (7, 7, 7): 1}, {})),
        ("deep.png", deep, ({0: 1, 1000: 1, 65535: 1}, None, {0: BLACK, 65535: WHITE})),
        ("bits.png", PIL.Image.fromarray(ids > 0), ({0: 1, 1: 5}, binary, {0: BLACK, 1: WHITE})),
        ("binary.gif", PIL.Image.fromarray((ids > 0).astype(np.uint8) * 255), ({0: 1, 255: 5}, binary, {0: BLACK, 255: WHITE})),
    ):
        image.save(tmp_path / name)
        assert raw_content(str(tmp_path / name)) == content, name
