"""Files, folders, patterns and addresses as images and videos with names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation.sources import find_sources


def seen(sources):
    return [(source.name.as_posix(), source.is_video) for source in sources]


def test_videos_are_named_themselves(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.MP4").touch()
    (tmp_path / "notes.txt").touch()
    assert seen(find_sources([tmp_path])) == [("a", False)]
    assert seen(find_sources([tmp_path / "b.MP4", tmp_path])) == [("b", True), ("a", False)]
    assert seen(find_sources([tmp_path / "*"])) == [("a", False), ("b", True)]


@pytest.mark.parametrize(
    ("address", "name", "is_video"),
    [
        ("https://example.org/a/street.JPG?size=9#top", "street", False),
        ("http://example.org/clip.mp4", "clip", True),
        ("http://example.org", "image", False),
        ("http://example.org/a/", "a", False),
        ("http://example.org/..%2f..%2fetc%2f.passwd", "passwd", False),
        ("http://example.org/x%00%0a%1b[31my.png", "x_31my", False),
        ("HTTP://example.org/CON%5cZ%C3%BCrich%20Nord.png", "Zürich_Nord", False),
    ],
)
def test_names_of_addresses(address, name, is_video):
    assert seen(find_sources([address, address])) == [(name, is_video)]


@given(st.text(max_size=300))
def test_no_address_leads_out_of_the_output_folder(path):
    [source] = find_sources([f"http://example.org/{path}"])
    assert len(source.name.parts) == 1 and not source.name.is_absolute()
    assert (
        str(source.name) not in ("", ".", "..") and not str(source.name).startswith((".", "-")) and len(str(source.name)) <= 110
    )
    assert str(source.name).isprintable()


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://example.org/a.png", "s3://bucket/a.png"])
def test_other_schemes_are_refused(address):
    with pytest.raises(DataError, match=r"is not fetched: addresses begin with http:// or https://"):
        find_sources([address])


def test_what_is_no_address_is_refused():
    with pytest.raises(DataError, match=r"^http://\[::1/a.png is not an address that can be fetched: Invalid IPv6 URL"):
        find_sources(["http://[::1/a.png"])


def test_links_to_one_file_have_results_of_their_own(tmp_path):
    """As in folders of tools that keep files of the same content once. By two ways to one folder a file is found once."""
    images, way = tmp_path / "images", tmp_path / "way"
    images.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "content.png")
    for name in ("a.png", "b.png"):
        (images / name).symlink_to(tmp_path / "content.png")
    way.symlink_to(images)
    out = tmp_path / "out"
    assert [name for name, _ in seen(find_sources([images, way, way / "*.png", images / ".." / "images"], without=out))] == [
        "a",
        "b",
    ]


def test_a_link_to_itself_is_no_traceback(tmp_path):
    """`Path.resolve` raises a RuntimeError for it."""
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert [name for name, _ in seen(find_sources([tmp_path], without=out))] == ["a", "loop"]
    assert [name for name, _ in seen(find_sources([tmp_path / "*.png"], without=out))] == ["a"]
