"""Images of every kind come out as a person sees them; broken ones are named; files appear whole or not at all."""

import re

import numpy as np
import pytest
from PIL import Image

from revhrnet_hf.errors import DataError
from revhrnet_hf.images import find_files, find_images, read_image, save_image

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped(tmp_path):
    for name in ("a.png", "a.tiff"):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
        image = read_image(tmp_path / name)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.dstack([GREY] * 3))


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_palette(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").getpixel((4, 4)), (0, 255, 255), atol=6)
    Image.new("RGB", (8, 8), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((4, 4)) == (10, 20, 30)


def test_exif_turns_the_image_upright(tmp_path):
    lying = np.zeros((20, 30, 3), np.uint8)
    lying[:, :5] = (255, 0, 0)  # red at the left, which orientation 6 (turn clockwise) brings to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "a.png"))
    assert upright.shape == (30, 20, 3)
    assert (upright[:5] == (255, 0, 0)).all() and not upright[5:].any()


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "huge"])
def test_unreadable_image_is_named(tmp_path, monkeypatch, kind):
    path = tmp_path / "broken.png"
    if kind == "huge":  # more than twice what Pillow allows: a small file that would fill the memory
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        Image.new("L", (50, 50)).save(path)
    if kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind in ("empty", "text"):
        path.write_text("no image" if kind == "text" else "")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_image(path)


def test_find_images_lists_each_once(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    found = find_images([tmp_path / "b.png", tmp_path, tmp_path / "sub" / ".." / "b.png"])
    assert [path.name for path in found] == ["b.png", "a.jpg"]
    with pytest.raises(DataError, match=r"nowhere"):
        find_images([tmp_path / "nowhere"])
    bare = tmp_path / "bare [1]"
    bare.mkdir()
    with pytest.raises(DataError, match=r"bare \[1\] holds no images") as error:
        find_images([bare])
    (bare / "sub").mkdir()
    Image.new("RGB", (2, 2)).save(bare / "sub" / "d.png")
    [advised] = re.findall(r"the pattern '(.+)' does it", str(error.value))
    assert find_images([advised]) == [bare / "sub" / "d.png"]


@pytest.fixture
def tree(tmp_path):
    """Images of one name in sub-folders, hidden and other files, results of an earlier run."""
    for name in (
        "a.jpg",
        "north/a.jpg",
        "north/deep/a.PNG",
        "south/a.jpg",
        ".cache/a.jpg",
        "north/notes.txt",
        "out/a_labels.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    return tmp_path


def names(found):
    return [file.name.as_posix() for file in found]


def test_sub_folders_are_searched_on_request_and_keep_their_names(tree):
    assert names(find_files([tree])) == ["a"]
    found = find_files([tree], recursive=True, without=tree / "out")
    assert names(found) == ["a", "north/a", "north/deep/a", "south/a"]
    assert all(file.path == tree / file.name.with_suffix(file.path.suffix) for file in found)
    with pytest.raises(DataError, match=r"out lie in the output folder .*out, which is not read"):
        find_files([tree / "out"], without=tree / "out")
    with pytest.raises(DataError, match=r"south holds no images \(nor do its sub-folders\)"):
        (tree / "south" / "a.jpg").unlink()
        find_files([tree / "south"], recursive=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a"]),
        ("*/a.jpg", ["north/a", "south/a"]),
        ("north/**/*", ["a", "deep/a"]),
        ("**/*.jpg", ["a", "north/a", "south/a"]),
        ("[ns]*/a.?pg", ["north/a", "south/a"]),
    ],
)
def test_patterns(tree, monkeypatch, pattern, expected):
    assert names(find_files([tree / pattern])) == expected
    monkeypatch.chdir(tree)
    assert names(find_files([pattern])) == expected
    with pytest.raises(DataError, match=r"no image matches the pattern .*\*\.webp"):
        find_files(["*.webp"])


def test_wildcards_in_the_name_of_a_file_are_no_pattern(tmp_path):
    for name in ("a[1].png", "a1.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    assert names(find_files([tmp_path / "a[1].png"])) == ["a[1]"]


def test_save_image_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.png"
    save_image(Image.new("RGB", (3, 3)), path)
    before = path.read_bytes()

    class Failing:
        def save(self, file, format):
            file.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_image(Failing(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
