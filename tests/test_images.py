"""Every room that opens an image sees the same pixels, and those are what a viewer shows."""

import base64
import io
import struct
import sys
import zlib

import datasets
import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from PIL.Image import Resampling

from revhrnet_hf import images
from revhrnet_hf.data import RgbImage
from revhrnet_hf.data.features import as_stored
from revhrnet_hf.errors import DataError
from revhrnet_hf.images import ImageFile, decode_image, orient_to_fit, read_image, to_rgb
from revhrnet_hf.models import RevHRNetImageProcessor, RevHRNetImageProcessorPil
from revhrnet_hf.models.rgb import open_upright
from revhrnet_hf.pipelines import load_rgb

from . import forked
from .image_files import COMBINATIONS, ORIENTATION, UPRIGHT, encoded, image_of


def whole_crop(value):
    """The training path: `RgbImageFile`, decoded row by row, scaled by 1."""
    file = RgbImage().open(value)
    return file.resize(file.size, Resampling.BILINEAR, (0, 0, *file.size))


def from_dataset(data):
    rows = datasets.Dataset.from_dict({"image": [data]}, features=datasets.Features({"image": datasets.Image()}))
    return rows.cast_column("image", RgbImage())[0]["image"]


def processed(processor_class, image):
    [values] = processor_class(do_rescale=False, do_normalize=False)(image)["pixel_values"]
    return np.asarray(values).transpose(1, 2, 0).astype(np.uint8)


ROOMS = {
    "evaluation": lambda path, data: RgbImage().decode_example({"path": str(path), "bytes": None}),
    "training": lambda path, data: whole_crop({"path": str(path), "bytes": None}),
    "hub": lambda path, data: from_dataset(data),
    "prediction": lambda path, data: read_image(path),
    "pipeline, file": lambda path, data: load_rgb(str(path)),
    "pipeline, PIL": lambda path, data: load_rgb(PIL.Image.open(path)),
    "pipeline, base64": lambda path, data: load_rgb(base64.b64encode(data).decode()),
    "processor, torchvision": lambda path, data: processed(RevHRNetImageProcessor, str(path)),
    "processor, Pillow": lambda path, data: processed(RevHRNetImageProcessorPil, path),
    "processor, base64": lambda path, data: processed(RevHRNetImageProcessor, base64.b64encode(data).decode()),
}


ROUNDED = ("LA", "RGBA", "P with transparency", "CMYK")  # converted with rounding; Pillow may differ by 1


@pytest.mark.parametrize(("kind", "mode"), COMBINATIONS, ids=str)
def test_every_room_sees_what_a_viewer_shows(kind, mode, tmp_path):
    image, options, stored = image_of(mode)
    if kind == "JPEG":
        options["quality"] = 95
        plain = PIL.Image.open(io.BytesIO(encoded(image, kind, **options)))
        stored = np.asarray(plain.convert("RGB"))
    for turn, upright in UPRIGHT.items():
        data = encoded(image, kind, turn, **options)
        path = tmp_path / f"{turn}.bin"  # the name does not tell the format
        path.write_bytes(data)
        seen = {room: np.asarray(read(path, data)) for room, read in ROOMS.items()}
        assert seen["prediction"].dtype == np.uint8
        np.testing.assert_allclose(seen["prediction"], upright(stored), atol=1 if mode in ROUNDED else 0)
        for room, pixels in seen.items():
            assert np.array_equal(pixels, seen["prediction"]), (turn, room)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.sampled_from(COMBINATIONS),
    st.sampled_from(sorted(UPRIGHT)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 1000),
    st.data(),
)
def test_a_training_crop_is_cut_out_of_the_evaluated_image(combination, turn, height, width, seed, draw):
    kind, mode = combination
    image, options, _ = image_of(mode, height, width, seed)
    value = {"path": "x", "bytes": encoded(image, kind, turn, **options)}
    whole, file = RgbImage().decode_example(value), RgbImage().open(value)
    assert file.size == whole.size == ((height, width) if turn > 4 else (width, height))
    right, bottom = draw.draw(st.integers(1, whole.width)), draw.draw(st.integers(1, whole.height))
    box = draw.draw(st.integers(0, right - 1)), draw.draw(st.integers(0, bottom - 1)), right, bottom
    size = draw.draw(st.integers(1, 30)), draw.draw(st.integers(1, 30))
    assert np.array_equal(file.resize(size, Resampling.BILINEAR, box), whole.resize(size, Resampling.BILINEAR, box))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("turn", UPRIGHT)
def test_the_stored_image_is_there_where_only_it_fits(kind, turn, tmp_path):
    image, _, _ = image_of("RGB")
    data = encoded(image, kind, turn)
    plain = np.asarray(PIL.Image.open(io.BytesIO(encoded(image, kind))))
    (tmp_path / "a.png").write_bytes(data)
    path = str(tmp_path / "a.png")
    assert ImageFile(data).orientation == turn
    for room in (lambda value: RgbImage().decode_example(value), whole_crop):
        assert np.array_equal(room({"path": as_stored(path), "bytes": None}), plain)
    upright = read_image(path)
    assert upright.getexif().get(ORIENTATION, 1) == 1  # so that it is not turned again
    assert np.array_equal(to_rgb(upright), UPRIGHT[turn](plain))
    if turn > 4:
        assert np.array_equal(orient_to_fit(upright, image.size), plain)
        file = RgbImage().open({"path": path, "bytes": None})
        file.orient_to_fit(image.size)
        assert file.size == image.size and np.array_equal(file.resize(file.size, Resampling.BILINEAR, (0, 0, *file.size)), plain)
    for size in (upright.size, (5, 5)):
        assert orient_to_fit(upright, size) is upright


def test_an_upright_image_is_decoded_by_rows_and_a_turned_one_whole(monkeypatch):
    decoded = []
    load = PIL.ImageFile.ImageFile.load
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: decoded.append(self.height) or load(self))
    image, _, _ = image_of("RGB", 90, 40)
    for turn, most in ((1, 20), (3, 90)):
        decoded.clear()
        for kind in ("PNG", "JPEG"):
            RgbImage().open({"path": "x", "bytes": encoded(image, kind, turn)}).resize((5, 5), Resampling.BILINEAR, (0, 0, 5, 5))
        assert min(decoded) <= max(decoded) <= most and (turn == 1 or max(decoded) == 90)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    image, _, stored = image_of("RGB")
    data, exif = encoded(image, "PNG"), PIL.Image.Exif()
    exif[ORIENTATION] = 6
    end = data.rindex(b"IEND") - 4
    late = data[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + data[end:]
    (tmp_path / "late.png").write_bytes(late)
    for room, read in ROOMS.items():
        assert np.array_equal(read(tmp_path / "late.png", late), UPRIGHT[6](stored)), room
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>')
    told = data[:end] + xmp + data[end:]
    (tmp_path / "told.png").write_bytes(told)
    for room, read in ROOMS.items():
        assert np.array_equal(read(tmp_path / "told.png", told), UPRIGHT[3](stored)), room


def tiff_tags(*entries):
    """EXIF of these (tag, type, count, value bytes)."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0") for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0"


MALFORMED = {
    "another tag beyond the end": (tiff_tags((0x0112, 3, 1, b"\x06\0"), (0x010E, 2, 99, b"\xff\xff\xff\x7f")), 6),
    "another tag of unknown type": (tiff_tags((0x010F, 77, 1, b"\x01"), (0x0112, 3, 1, b"\x06\0")), 6),
    "a bad pointer to more tags": (tiff_tags((0x0112, 3, 1, b"\x06\0"), (0x8769, 4, 1, b"\xff\xff\xff\xff")), 6),
    "text for a number": (tiff_tags((0x0112, 2, 2, b"6\0")), 1),
    "no such orientation": (tiff_tags((0x0112, 3, 1, b"\x09\0")), 1),
    "zero": (tiff_tags((0x0112, 3, 1, b"\0\0")), 1),
    "two of them": (tiff_tags((0x0112, 3, 2, b"\x06\0\x06\0")), 6),
    "cut short": (tiff_tags((0x0112, 3, 1, b"\x06\0"))[:20], 1),
    "no EXIF": (b"Exif\0\0nonsense", 1),
}


@pytest.mark.parametrize(("exif", "turn"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_metadata_turn_nothing_and_hide_nothing(kind, exif, turn, tmp_path):
    image, _, _ = image_of("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **options)
    plain = np.asarray(PIL.Image.open(io.BytesIO(encoded(image, kind, **options))))
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    for room, read in ROOMS.items():
        assert np.array_equal(read(tmp_path / "a.jpg", stream.getvalue()), UPRIGHT[turn](plain)), room


@pytest.mark.parametrize(
    "content",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xd7\xcd\xc6\x9a" + bytes(60), b"DDS " + bytes(200), b"%PDF-1.4\n"],
    ids=["EPS", "WMF", "DDS", "PDF"],
)
def test_only_the_allowed_decoders_start(content, tmp_path, monkeypatch):
    """Whatever the file is called: EPS would start Ghostscript."""
    PIL.Image.init()

    def never(*_):
        raise AssertionError("a decoder that is not allowed was started")

    for kind, (_, accept) in list(PIL.Image.OPEN.items()):
        if kind not in images.FORMATS:
            monkeypatch.setitem(PIL.Image.OPEN, kind, (never, accept))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for room in ROOMS.keys() - {"pipeline, PIL"}:
        with pytest.raises(ValueError) as caught:
            ROOMS[room](path, content)
        assert "AssertionError" not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"P5 3", b"GIF89a", b"II*\0"]
)
def test_what_cannot_be_read_is_named(content, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(content)
    for read in (read_image, lambda path: decode_image(content, str(path))):
        with pytest.raises(DataError, match=r"Image .*broken\.jpg cannot be read.* leave it out"):
            read(tmp_path / "broken.jpg")
    for value in ({"path": str(tmp_path / "broken.jpg"), "bytes": None}, {"path": "broken.jpg", "bytes": content}):
        with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
            RgbImage().decode_example(value)
        with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
            RgbImage().open(value).resize((1, 1), Resampling.BILINEAR, (0, 0, 1, 1))


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
    st.sampled_from([c for c in COMBINATIONS if c[1] in ("L", "RGB", "P", "1")] + [("WEBP", "RGB"), ("GIF", "P"), ("PPM", "L")]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.02, 1),
)
def test_a_damaged_file_is_an_image_or_a_data_error(combination, changes, kept):
    kind, mode = combination
    data = bytearray(encoded(image_of(mode)[0], kind, 6))
    for place, value in changes:
        data[int(place * min(len(data) - 1, 200))] = value
    value = {"path": "damaged", "bytes": bytes(data[: max(1, int(kept * len(data)))])}
    hypothesis.assume(_claimed_pixels(value["bytes"]) < 10**6)
    for read in (RgbImage().decode_example, whole_crop):
        try:
            assert read(value).mode == "RGB"
        except DataError as error:
            assert "damaged" in str(error)


def _claimed_pixels(data):
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.width * image.height
    except Exception:
        return 0


def test_the_limit_on_pixels_is_said_and_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setenv(images.MEGAPIXELS_VARIABLE, "0.001")
    path = tmp_path / "large.png"
    PIL.Image.new("L", (50, 60)).save(path)
    for read in (read_image, lambda path: RgbImage().decode_example({"path": str(path), "bytes": None})):
        with pytest.raises(DataError, match=r"large\.png cannot be read: it has 0 megapixels.*--max_megapixels") as caught:
            read(path)
        assert "truncated" not in str(caught.value)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10**6)  # the image processors read the variable too
    with pytest.raises(ValueError, match=r"large\.png': .*3000.* raise the limit with .* REVHRNET_MAX_MEGAPIXELS$"):
        open_upright(str(path))
    images.allow_megapixels(0.0031)
    assert read_image(path).size == open_upright(str(path)).size == (50, 60)
    monkeypatch.setenv(images.MEGAPIXELS_VARIABLE, "many")
    with pytest.raises(DataError, match="REVHRNET_MAX_MEGAPIXELS=many is no number of megapixels"):
        read_image(path)
    with pytest.raises(ValueError, match="REVHRNET_MAX_MEGAPIXELS=many is no number of megapixels"):
        open_upright(str(path))


@pytest.mark.parametrize("value", [-1, 65536])
def test_grey_that_is_no_brightness_is_refused(value, tmp_path):
    PIL.Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=rf"deep\.tif cannot be read .*from {min(0, value)} to {max(0, value)}"):
        read_image(tmp_path / "deep.tif")
    PIL.Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(DataError, match=r"nan\.tif cannot be read"):
        read_image(tmp_path / "nan.tif")


@pytest.mark.parametrize(("values", "clear"), [([0, 1, 200], False), ([0, 255], False), ([0, 256], True), ([0, 0], True)])
def test_32_bit_numbers_whose_range_is_not_clear_are_refused(values, clear, tmp_path):
    """8-bit grey in an image of 32 bits, as `convert("I")` makes it, would be black."""
    image = PIL.Image.fromarray(np.array([values], np.int32))
    image.save(tmp_path / "deep.tif")
    if clear:
        assert np.asarray(read_image(tmp_path / "deep.tif"))[0, :, 0].tolist() == [round(value / 257) for value in values]
        return
    with pytest.raises(
        DataError, match=rf"deep\.tif cannot be read .*up to {max(values)}, which may be of 0 to 255 or of 0 to 65535"
    ):
        read_image(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="convert them to 8 or 16 bits"):
        to_rgb(image)


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_dark_images_of_16_bits_are_dark(suffix, tmp_path):
    PIL.Image.fromarray(np.array([[0, 100, 200]], np.uint16)).save(tmp_path / f"dark.{suffix}")
    assert np.asarray(read_image(tmp_path / f"dark.{suffix}"))[0, :, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize(("bits", "white"), [(12, "greatest"), (16, "zero")])
def test_tiff_files_say_which_values_are_black_and_white(room, turn, bits, white, tmp_path):
    """Pillow writes neither 12 bits nor 16 bits of which 0 is white, so its file is changed by hand."""
    grey = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    values = np.rint(grey / 255 * (2**bits - 1)).astype(np.uint16)
    if white == "zero":
        values = 2**bits - 1 - values
    stream = io.BytesIO()
    PIL.Image.fromarray(values).save(stream, "TIFF", tiffinfo={ORIENTATION: turn})
    pixels = values.tobytes()
    if bits == 12:  # two values in three bytes
        first, second = values.reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
        pixels = packed.tobytes().ljust(len(pixels), b"\0")
    content = stream.getvalue().replace(values.tobytes(), pixels)
    for tag, before, after in ((258, 16, bits), (262, 1, 1 if white == "greatest" else 0)):
        entry = struct.pack("<HHI", tag, 3, 1)
        content = content.replace(entry + struct.pack("<H", before), entry + struct.pack("<H", after))
    (tmp_path / "x.tif").write_bytes(content)
    found = ROOMS[room](tmp_path / "x.tif", content)
    expected = UPRIGHT[turn](grey)
    assert np.array_equal(np.asarray(found), np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize(("kind", "several"), [("TIFF", True), ("GIF", True), ("WEBP", True), ("PNG", True), ("MPO", False)])
def test_of_several_images_in_a_file_the_first_is_read_and_the_others_are_said(kind, several, tmp_path, caplog):
    first, others = PIL.Image.new("RGB", (8, 6), "red"), [PIL.Image.new("RGB", (8, 6), colour) for colour in ("lime", "blue")]
    first.save(tmp_path / "x", kind, save_all=True, append_images=others)
    colour = np.asarray(read_image(tmp_path / "x"))[0, 0]
    assert colour[0] > 250 and max(colour[1:]) < 5
    said = f"{tmp_path}/x holds 3 images: only the first one is read, of 8×6 pixels"
    assert [record.getMessage() for record in caplog.records] == [said] * several


def test_smaller_copies_and_masks_in_a_tiff_file_are_no_other_images(tmp_path, caplog):
    """As in GeoTIFF files with overviews."""
    pages = [PIL.Image.new("L", (8 // 2**number, 8 // 2**number), number) for number in range(3)]
    for page, kind in zip(pages[1:], (1, 4), strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with PIL.Image.open(tmp_path / "x.tif") as written:
        assert written.n_frames == 3
        written.seek(2)
        assert written.tag_v2[254] == 4
    assert read_image(tmp_path / "x.tif").size == (8, 8)
    assert not caplog.records


def test_pillow_without_avif_reads_the_other_formats():
    """AVIF is a format of Pillow 11.3 and newer, and open(formats=…) raises a KeyError for one that is unknown."""
    program = """
import base64, io, PIL
PIL._plugins.remove("AvifImagePlugin")
import PIL.Image
PIL.Image.OPEN.pop("AVIF", None)
from revhrnet_hf.models.rgb import FORMATS, open_upright
stream = io.BytesIO()
PIL.Image.new("L", (3, 2)).save(stream, "BMP")
print(open_upright(base64.b64encode(stream.getvalue()).decode()).size, "AVIF" in FORMATS)
"""
    done = forked.run([sys.executable, "-c", program], capture_output=True, text=True, preloaded=forked.BARE)
    assert done.stdout.split("\n")[0] == "(3, 2) False", done.stderr


def test_float_shares_are_brightness(tmp_path):
    PIL.Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "clear"), [([0, 0.5, 1.2], False), ([0, 3, 12], True), ([0.5, 99.5], True), ([0, 0.5, 1], True)]
)
def test_floating_point_values_whose_range_is_not_clear_are_refused(values, clear):
    """A tile of 0 to 1 with one pixel above 1 would be black beside others."""
    image = PIL.Image.fromarray(np.array([values], dtype=np.float32))
    if clear:
        shown = np.asarray(to_rgb(image))[0, :, 0]
        assert shown.tolist() == np.rint(np.array(values) * (255 if max(values) <= 1 else 1)).tolist()
        return
    with pytest.raises(DataError, match=r"fractions up to 1\.2, which may be of 0 to 1 or of 0 to 255: scale them"):
        to_rgb(image)
