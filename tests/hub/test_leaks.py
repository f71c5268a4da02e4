"""What must not be published is found: tokens, places on this machine, and where a photograph was taken."""

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from revhrnet_hf.hub.leaks import ABSOLUTE_PATH, leaks_of
from revhrnet_hf.images import SUFFIXES

# Invented, in the form and of the length that each provider documents.
TOKENS = [
    "hf_" + "aB3dE6" * 5 + "xyzw",  # 34 characters
    "ghp_" + "aB3dE6" * 6,
    "gho_" + "0" * 36,
    "github_pat_" + "11ABCDE" * 4,
    "glpat-" + "aB3dE6aB3dE6aB3dE6_-",
    "sk-proj-" + "aB3d" * 10,
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "SyA-aB3dE" * 3 + "01234567",
    "xoxb-" + "123456789012-abcdef",
    "npm_" + "aB3dE6" * 6,
    "WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567",
    "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0" + ".SflKxwRJSMeKKF2Q",
    "-----BEGIN OPENSSH PRIVATE " + "KEY-----",
]


@pytest.mark.parametrize("token", TOKENS)
def test_tokens(token, tmp_path):
    path = tmp_path / "notes.md"
    path.write_text(f"before {token} after")
    assert ["access token" in leak for leak in leaks_of(path, "notes.md")] == [True]
    path.write_text("hf_short sk-learn AKIA glpat- xoxb ghp_ eyJ npm_config")
    assert list(leaks_of(path, "notes.md")) == []


@pytest.mark.parametrize(
    "text",
    [
        '"/home/me/x.pth"',
        "data_dir: /mnt/sets/camvid",
        "data:/home/me",
        "<td>/mnt/sets/camvid</td>",
        "~/runs/best",
        r"C:\Users\me\run",
        r'{"x": "C:\\Users\\me"}',
        "D:/sets/camvid",
        "file:///home/me/x",
        "file:/tmp/x",
        "cd /root",
        "'/Users'",
        r"\\server\share\x",
    ],
)
def test_paths(text):
    assert ABSOLUTE_PATH.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "1/255", "https://a.org/b/c", "http://a.org:8080/home/me", "height / 4 / 2", "coco/train2017", "</b></i>", "arXiv/1",
        "km/h", "and/or/not", "s3://bucket/a/b", "zip://a/b.png::c.zip", r"re \d+\w", "a: b", r"\n\t",
    ],
)  # fmt: skip
def test_other_slashes(text):
    assert not ABSOLUTE_PATH.search(text)


def test_what_stands_beside_the_pixels(tmp_path):
    path, image = tmp_path / "example.png", Image.new("RGB", (8, 8))
    for key, keep in (("Comment", "tEXt"), ("Source", "iTXt"), ("Raw", "zTXt")):
        text = PngInfo()
        {"tEXt": text.add_text, "iTXt": text.add_itxt, "zTXt": lambda k, v, t=text: t.add_text(k, v, zip=True)}[keep](
            key, f"from /home/me/{keep}"
        )
        image.save(path, pnginfo=text)
        assert list(leaks_of(path, "example.png")) == [
            f"example.png holds the absolute path /home/me/{keep}: remove it, or write the file's name alone"
        ]
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = TOKENS[0]
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    for name in ("photo.jpg", "photo.png", "photo.webp"):
        image.save(tmp_path / name, exif=exif)
        said = " ".join(leaks_of(tmp_path / name, name))
        assert "access token" in said and "says where it was taken" in said
    image.save(path)
    assert list(leaks_of(path, "example.png")) == []


def test_pixels_are_no_text(tmp_path):
    """Random pixels hold every short string sooner or later."""
    data = (b"/home/me/x " * 400)[: 36 * 36 * 3]
    Image.frombytes("RGB", (36, 36), data).save(tmp_path / "noise.tif")
    assert b"/home/me/x" in (tmp_path / "noise.tif").read_bytes()
    assert list(leaks_of(tmp_path / "noise.tif", "noise.tif")) == []


def exif_of_a_place() -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 12.0)
    return exif


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_an_image(suffix, tmp_path):
    """Files with each of them are copied from a checkpoint's examples to the Hub and to a Space."""
    path = tmp_path / f"photo{suffix}"
    Image.new("RGB", (8, 8)).save(path, "JPEG", exif=exif_of_a_place())
    assert "says where it was taken" in " ".join(leaks_of(path, path.name))
    data = (b"/home/me/x " * 400)[: 36 * 36 * 3]
    Image.frombytes("RGB", (36, 36), data).save(path, "PPM")
    assert list(leaks_of(path, path.name)) == []


@pytest.mark.parametrize("place", ['<rdf exif:GPSLatitude="52,31.2N"/>', "<exif:GPSLatitude>52,31.2N</exif:GPSLatitude>"])
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.avif"])
def test_place_in_xmp(name, place, tmp_path):
    settings = {"xmp": place.encode()}
    if name.endswith("png"):
        settings = {"pnginfo": PngInfo()}
        settings["pnginfo"].add_itxt("XML:com.adobe.xmp", place)
    Image.new("RGB", (8, 8)).save(tmp_path / name, **settings)
    assert "says where it was taken" in " ".join(leaks_of(tmp_path / name, name))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.jpg", xmp=b'<x exif:GPSLatitude=""/>')
    assert list(leaks_of(tmp_path / "other.jpg", "other.jpg")) == []


def test_comments_of_pnm(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6\n# from /home/me/a\n4 4\n255\n" + bytes(48))
    (tmp_path / "b.pgm").write_bytes(b"P2 2 1 255\n1 2\n# from /home/me/b\n")
    for name in ("a.ppm", "b.pgm"):
        assert f"/home/me/{name[0]}" in " ".join(leaks_of(tmp_path / name, name))


def test_boxes_of_jpeg_2000(tmp_path):
    """Pillow reads neither EXIF nor XMP of such a file."""
    path = tmp_path / "photo.jp2"
    Image.new("RGB", (8, 8)).save(path)
    assert list(leaks_of(path, "photo.jp2")) == []
    data = path.read_bytes()
    place = data.index(b"jp2c") - 4
    start, pixels = data[:place], data[place:]
    exif = exif_of_a_place().tobytes().removeprefix(b"Exif\0\0")
    for kind, content, said in (
        (b"xml ", b'<x from="/home/me/x"/>', "absolute path /home/me/x"),
        (b"xml ", b'<x exif:GPSLatitude="52,3N"/>', "says where"),
        (b"uuid", b"JpgTiffExif->JP2" + exif, "says where"),
    ):
        path.write_bytes(start + (8 + len(content)).to_bytes(4) + kind + content + pixels)
        assert said in " ".join(leaks_of(path, "photo.jp2"))
