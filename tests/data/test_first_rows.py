"""Files cut short against the first rows of the whole file, as Pillow decodes it."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data.first_rows import cut_short

HEIGHT, WIDTH = 75, 53
# Noise: neighbouring rows are unrelated, so that a single wrong row is noticed.
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)


def encoded(mode="RGB", **options):
    channels = {"L": NOISE[..., 0], "P": NOISE[..., 0], "I;16": NOISE.view(np.uint16)[..., 0]}
    image = PIL.Image.fromarray(channels.get(mode, NOISE[..., : len(mode)]), mode="CMYK" if mode == "CMYK" else None)
    if mode == "P":
        image.putpalette([7, 50, 200] * 256)
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def pixels(data):
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def cut(data, rows):
    with PIL.Image.open(io.BytesIO(data)) as image:
        return cut_short(data, image, rows)


JPEG = [{"subsampling": subsampling, "quality": quality} for subsampling in (0, 1, 2) for quality in (20, 95)]
JPEG += [{"restart_marker_rows": 1}, {"restart_marker_blocks": 3}, {"optimize": True}, {"comment": b"\xff\xc0\xff\xd9"}]


@pytest.mark.parametrize(
    "options",
    [{"format": "PNG", "mode": mode} for mode in ("L", "P", "RGB", "RGBA", "I;16")]
    + [{"format": "JPEG"} | options for options in JPEG]
    + [{"format": "JPEG", "mode": mode} for mode in ("L", "CMYK")],
    ids=str,
)
def test_rows_are_those_of_the_whole_file(options):
    data = encoded(**options)
    whole = pixels(data)
    for rows in range(1, HEIGHT + 3):
        found = pixels(cut(data, rows))
        assert min(rows, HEIGHT) <= len(found) <= min(rows + 8, HEIGHT)
        assert np.array_equal(found[:rows], whole[:rows])


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def interlaced():
    """A grey PNG in the seven passes of Adam7 (PNG specification, section 8.2)."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, down, across in passes for row in NOISE[y::down, x::across, 0])
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animated():
    frames = [PIL.Image.fromarray(NOISE[..., i]) for i in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [interlaced(), animated(), encoded(format="JPEG", progressive=True), encoded(format="BMP"), encoded(format="TIFF")],
    ids=["interlaced", "animated", "progressive", "bmp", "tiff"],
)
def test_other_files_stay_whole(data):
    assert len(pixels(data)) == HEIGHT
    assert cut(data, 9) is data


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_ends_too_early_stays_whole(kind):
    exif = PIL.Image.Exif()
    exif[0x010E] = "\xff\xd9 IEND"  # an end mark inside the header does not count
    data = encoded(format=kind, exif=exif)
    assert len(cut(data, 9)) == len(data)
    for end in (len(data) // 2, len(data) - 60):
        with pytest.raises(OSError, match="truncated"):
            pixels(cut(data[:end], 9))


@pytest.mark.parametrize("between", [b"\0\0\0", b"\xff\xff\xff"], ids=bytes.hex)
def test_bytes_between_the_segments_of_a_jpeg_change_nothing(between):
    """Pillow steps over them; what cannot be followed segment by segment is decoded whole."""
    data = encoded(format="JPEG")
    frame = data.index(b"\xff\xc0")
    odd = data[:frame] + between + data[frame:]
    assert np.array_equal(pixels(cut(odd, 9))[:9], pixels(data)[:9])


@pytest.mark.parametrize("header", [b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"\xff\xd8\xff\xc0\0"], ids=bytes.hex)
def test_a_jpeg_whose_segments_lead_beyond_it_stays_whole(header):
    opened = SimpleNamespace(format="JPEG", height=HEIGHT)
    for data in (header, header + b"\xff\xd9"):
        assert cut_short(data, opened, 9) is data
