import io
import zipfile

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data.archive import archive_location, read_location
from revhrnet_hf.data.listing import image_size
from revhrnet_hf.errors import DataError


def zipped(tmp_path, name, data):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr(name, data)
    return archive_location(tmp_path / "images.zip", name)


def encoded(width, height, kind, **options):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    PIL.Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def test_only_the_beginning_of_a_zipped_image_is_read(tmp_path):
    png = encoded(300, 200, "PNG")
    location = zipped(tmp_path, "a.png", png)
    damaged = (tmp_path / "images.zip").read_bytes().replace(png[-5000:-4000], bytes(1000))
    (tmp_path / "images.zip").write_bytes(damaged)
    assert image_size(location) == (300, 200)
    assert read_location(location, 20) == png[:20]
    with pytest.raises(OSError, match="CRC"):
        read_location(location)


@pytest.mark.parametrize("most", [None, 0, 7, 10**9])
def test_beginning_of_a_plain_file(tmp_path, most):
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    assert read_location(str(file), most) == b"0123456789"[:most]


def test_size_behind_much_metadata(tmp_path):
    jpeg = encoded(30, 20, "JPEG", icc_profile=bytes(200_000))
    assert jpeg.index(b"\xff\xc0") > 1 << 16
    assert image_size(zipped(tmp_path, "a.jpg", jpeg)) == (30, 20)


def test_zipped_file_that_is_no_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"zip://a\.jpg::.* cannot be read"):
        image_size(zipped(tmp_path, "a.jpg", b"text"))
