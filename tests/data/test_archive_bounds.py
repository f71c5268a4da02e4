"""Damaged, hostile and unusual archives and folders: limits on memory, file descriptors and depth."""

import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from revhrnet_hf.data import archive, limits, load_segmentation_dataset
from revhrnet_hf.data.archive import DataFolder, archive_location, read_location, split_location
from revhrnet_hf.errors import DataError

MB = 1 << 20


def write_zip(file, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def write_tar(file, members):
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


WRITERS = {"zip": write_zip, "tar": write_tar}


def patched(file, signature, offset, form, value):
    """Changes a field of every header with this signature."""
    data, start = bytearray(file.read_bytes()), -1
    while (start := data.find(signature, start + 1)) >= 0:
        struct.pack_into(form, data, start + offset, value)
    file.write_bytes(data)


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def peak_of(read):
    tracemalloc.start()
    try:
        read()
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def open_files(below):
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.islink(link) and (target := os.readlink(link)).startswith(str(below))]


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list a process's open files")


@needs_proc
@pytest.mark.parametrize("kind", WRITERS)
def test_file_descriptors_do_not_add_up(tmp_path, kind):
    for number in range(archive.MAX_OPEN + 20):
        WRITERS[kind](tmp_path / f"shard{number:03}.{kind}", {f"{number}.txt": b"%d" % number})
    shards = DataFolder(tmp_path)
    for _ in range(3):
        for number in range(archive.MAX_OPEN + 20):
            assert shards.read_text(f"{number}.txt") == str(number)
    assert len(open_files(tmp_path)) <= (archive.MAX_OPEN if kind == "zip" else 0)


@needs_proc
def test_replaced_archive_is_closed(tmp_path):
    archive._cached_archive.cache_clear()
    for number in range(2 * archive.MAX_OPEN):
        write_zip(tmp_path / "new.zip", {"a.txt": b"x" * number})
        os.replace(tmp_path / "new.zip", tmp_path / "data.zip")
        assert read_location(f"zip://a.txt::{tmp_path}/data.zip") == b"x" * number
    assert len(open_files(tmp_path)) <= archive.MAX_OPEN


@needs_proc
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_process_closes_what_it_inherits(tmp_path):
    location = f"zip://a.txt::{write_zip(tmp_path / 'data.zip', {'a.txt': b'whole'})}"
    assert read_location(location) == b"whole"
    assert len(open_files(tmp_path)) == 1
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(sending, b"%d " % len(open_files(tmp_path)) + read_location(location))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiving, 100) == b"0 whole"
    os.close(receiving)
    os.close(sending)


@pytest.mark.parametrize("kind", WRITERS)
def test_threads_read_many_archives(tmp_path, kind, monkeypatch):
    for number in range(100):
        WRITERS[kind](tmp_path / f"{number}.{kind}", {"a.txt": b"%d" % number * 1000})
    locations = [archive_location(tmp_path / f"{number}.{kind}", "a.txt") for number in range(100)] * 3
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read_location, locations)) == [b"%d" % number * 1000 for number in range(100)] * 3


def test_bomb_is_refused_before_it_is_unpacked(tmp_path):
    location = f"zip://a.png::{write_zip(tmp_path / 'data.zip', {'a.png': bytes(65 * MB)})}"

    def read():
        with pytest.raises(DataError, match=r"a\.png in .*data\.zip has 0\.06 MB and would unpack to 65 MB, more than the limit"):
            read_location(location)

    assert peak_of(read) < 4 * MB
    assert read_location(location, 1000) == bytes(1000)


def test_limit_on_members_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SMALL", 1000)
    location = f"zip://a.txt::{write_zip(tmp_path / 'data.zip', {'a.txt': bytes(2 * MB)})}"
    with pytest.raises(DataError, match=r"more than the limit .*unpack it, or set the environment variable REVHRNET_MAX_MEMBER"):
        read_location(location)
    monkeypatch.setenv("REVHRNET_MAX_MEMBER_MB", "1")
    with pytest.raises(DataError, match=r"more than the limit of 1 MB"):
        read_location(location)
    monkeypatch.setenv("REVHRNET_MAX_MEMBER_MB", "2")
    assert read_location(location) == bytes(2 * MB)
    monkeypatch.setenv("REVHRNET_MAX_MEMBER_MB", "much")
    with pytest.raises(DataError, match=r"REVHRNET_MAX_MEMBER_MB is 'much': give a whole number of megabytes"):
        read_location(location)


@pytest.mark.parametrize(
    ("packed", "unpacked", "refused"),
    [(1, 64 * MB, False), (1, 64 * MB + 1, True), (MB, 100 * MB, False), (MB, 100 * MB + 1, True), (900 * MB, 2049 * MB, True)],
)
def test_limit_on_members(packed, unpacked, refused):
    if not refused:
        limits.check_member_size("a", "b.zip", packed, unpacked)
        return
    with pytest.raises(DataError, match="more than the limit"):
        limits.check_member_size("a", "b.zip", packed, unpacked)


def test_member_that_claims_to_be_small(tmp_path):
    """If the whole member is read at once, zipfile unpacks everything and then cuts the result."""
    file = write_zip(tmp_path / "data.zip", {"a.png": bytes(64 * MB)})
    patched(file, CENTRAL, 24, "<I", 100)
    patched(file, LOCAL, 22, "<I", 100)

    def read():
        with pytest.raises(OSError, match="CRC"):
            read_location(f"zip://a.png::{file}")

    assert peak_of(read) < 4 * MB


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_cannot_be_bounded_are_refused(tmp_path, method):
    write_zip(tmp_path / "data.zip", {"a.txt": bytes(1000)}, method)
    with pytest.raises(DataError, match=r"a\.txt.* cannot be read \(it is not compressed with deflate: unpack"):
        DataFolder(tmp_path).read_text("a.txt")


@pytest.mark.parametrize("name", ["a/" * 200 + "x", "b" * 5000])
@pytest.mark.parametrize("kind", WRITERS)
def test_names_that_no_file_can_have(tmp_path, kind, name):
    """Each folder in a name takes memory: 40 names of 65,000 characters would take gigabytes."""
    WRITERS[kind](tmp_path / f"data.{kind}", {name: b""})
    with pytest.raises(DataError, match=rf"data\.{kind} holds a name of {len(name)} characters"):
        DataFolder(tmp_path).has_file("x")


def test_text_beyond_the_limit(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_bytes(b"x" * (MB + 1))
    assert len(DataFolder(tmp_path).read_text("list.txt")) == MB + 1
    monkeypatch.setenv("REVHRNET_MAX_TEXT_MB", "1")
    for read in (DataFolder(tmp_path).read_text, DataFolder(tmp_path).read_json):
        with pytest.raises(DataError, match=r"list\.txt has more than 1 MB of text.*REVHRNET_MAX_TEXT_MB"):
            read("list.txt")
    monkeypatch.delenv("REVHRNET_MAX_TEXT_MB")
    monkeypatch.setattr(archive, "LIST_BYTES", 10)
    with pytest.raises(DataError, match="has more than"):
        DataFolder(tmp_path).read_text("list.txt", 10)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": ', "", "\x00", '"\\ud8"'])
def test_text_that_is_no_json(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json is no JSON"):
        DataFolder(tmp_path).read_json("a.json")


@pytest.mark.parametrize("packed", [False, True])
def test_byte_order_mark_is_no_text(tmp_path, packed):
    data = '\ufeff{"a": [1]}\n'.encode()
    (tmp_path / "data").mkdir()
    if packed:
        write_zip(tmp_path / "data" / "x.zip", {"a.json": data})
    else:
        (tmp_path / "data" / "a.json").write_bytes(data)
    assert DataFolder(tmp_path / "data").read_text("a.json") == '{"a": [1]}\n'
    assert DataFolder(tmp_path / "data").read_json("a.json") == {"a": [1]}


@pytest.mark.parametrize("form", ["segnet", "original"])
def test_list_with_a_byte_order_mark_finds_the_first_image(mini_camvid, mini_original, form):
    folder = mini_camvid if form == "segnet" else mini_original
    expected = load_segmentation_dataset("camvid", folder, "val")["image_id"]
    listed = (folder / "val.txt").read_text()
    (folder / "val.txt").write_text(listed, encoding="utf-8-sig")
    assert load_segmentation_dataset("camvid", folder, "val")["image_id"] == expected


@pytest.mark.parametrize(
    ("signature", "offset", "form", "value"),
    [(CENTRAL, 6, "<H", 200), (CENTRAL, 8, "<H", 1 << 11), (CENTRAL, 10, "<H", 99), (CENTRAL, 42, "<I", 2**32 - 2)],
    ids=["version", "name in UTF-8", "method", "place"],
)
def test_odd_zip_is_named(tmp_path, signature, offset, form, value):
    file = write_zip(tmp_path / "data.zip", {"!.txt": b"x", "a.txt": b"y"})
    file.write_bytes(file.read_bytes().replace(b"!.txt", b"\xe9.txt"))
    patched(file, signature, offset, form, value)
    with pytest.raises(DataError, match=r"data\.zip"):
        DataFolder(tmp_path).read_text("a.txt")


@pytest.mark.parametrize("size", [10**6, 8**11 - 1])
def test_tar_whose_member_is_longer_than_itself(tmp_path, size):
    file = write_tar(tmp_path / "data.tar", {"a.txt": b"x" * 600})
    data = bytearray(file.read_bytes())
    data[124:136] = b"%011o\0" % size
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"data\.tar is damaged"):
        DataFolder(tmp_path).has_file("a.txt")


def test_tar_member_with_holes_is_refused(tmp_path):
    info = tarfile.TarInfo("a.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % 10**6, b"%011o\0" % 512  # one piece of data, at 1 MB
    header[483:495] = b"%011o\0" % (10**6 + 512)  # the file's real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "data.tar").write_bytes(bytes(header) + b"x" * 512 + bytes(10240))
    with pytest.raises(DataError, match=r"a\.txt::.*data\.tar cannot be read \(it is a sparse file: unpack the archive"):
        DataFolder(tmp_path).read_text("a.txt")


@pytest.mark.parametrize("folder", ["a::b", "::", "100%::x", "50%25", "zip:", "a%3A%3Ab", ":::"])
@pytest.mark.parametrize("kind", [*WRITERS, None])
def test_folders_with_odd_names(mini_camvid, tmp_path, folder, kind):
    expected = load_segmentation_dataset("camvid", mini_camvid, "val")[:]["image_id"]
    odd = tmp_path / folder
    members = {str(file.relative_to(mini_camvid)): file.read_bytes() for file in mini_camvid.rglob("*.*")}
    if kind is None:
        mini_camvid.rename(odd)
    else:
        odd.mkdir()
        WRITERS[kind](odd / f"c::d.{kind}", members)
    dataset = load_segmentation_dataset("camvid", odd, "val")
    assert dataset["image_id"] == expected
    assert dataset[0]["image"].size == (64, 48)


@pytest.mark.parametrize("archive", ["/d/a.zip", "/d::e/a.zip", "/d/50%/%25/%3A%3A/a.zip", "/::/a.zip", "x::.zip", "/a:/:b.zip"])
@pytest.mark.parametrize("member", ["x", "x::y", "x:", "50%25", "zip://y::/z.zip"])
def test_location_splits_into_what_it_was_made_of(archive, member):
    assert split_location(archive_location(archive, member)) == (archive, member)


def link(target, name):
    os.symlink(target, name, target_is_directory=True)


def walk(data, folder=""):
    yield from (f"{folder}/{name}".lstrip("/") for name in data.files(folder))
    for below in data.folders(folder):
        yield from walk(data, f"{folder}/{below}".lstrip("/"))


@pytest.fixture
def linked(tmp_path):
    for name in ("data/a/x", "data/b/y", "elsewhere/z"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    return tmp_path / "data"


FILES = ["a/x/file", "b/y/file"]


@pytest.mark.parametrize("target", ["..", "../..", ".", "/", "../../.."])
def test_link_to_a_folder_above_is_not_followed(linked, target):
    link(target, linked / "a" / "up")
    assert list(walk(DataFolder(linked))) == FILES


def test_links_to_each_other_end(linked):
    link("../b", linked / "a" / "to_b")
    link("../a", linked / "b" / "to_a")
    assert sorted(walk(DataFolder(linked))) == sorted([*FILES, "a/to_b/y/file", "b/to_a/x/file"])


def test_link_to_elsewhere_is_followed(linked):
    link("../../elsewhere", linked / "a" / "more")
    link("..", linked.parent / "elsewhere" / "z" / "up")
    assert list(walk(DataFolder(linked))) == ["a/more/z/file", *FILES]


def test_folders_below_a_link(linked):
    link("data", linked.parent / "linked")
    link("..", linked / "a" / "up")
    assert list(walk(DataFolder(linked.parent / "linked"))) == FILES


def test_link_to_itself_and_to_nothing(linked):
    os.symlink("loop", linked / "a" / "loop")
    os.symlink("nowhere", linked / "a" / "broken")
    os.symlink("loop.zip", linked / "loop.zip")
    # They are listed, so that the loaders miss the files, but there are none.
    data_folder, broken = DataFolder(linked), {"a/loop", "a/broken", "loop.zip"}
    assert set(walk(data_folder)) == {*FILES, *broken}
    assert not any(map(data_folder.has_file, broken))


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "\ud800", "a/" * 3000 + "b", "a//b", "."])
def test_paths_that_no_file_can_have(linked, path):
    assert DataFolder(linked).location(path) is None
    assert not DataFolder(linked).has_file(path)
    if path != ".":
        assert not DataFolder(linked).has_folder(path)


@pytest.mark.parametrize("packed", [False, True])
def test_name_in_another_encoding_is_named(tmp_path, packed):
    name = os.fsdecode(b"caf\xe9.txt")
    if packed:
        write_tar(tmp_path / "data.tar", {name: b"x"})
    else:
        (tmp_path / name).touch()
    data = DataFolder(tmp_path)
    assert name in data.files("")
    with pytest.raises(DataError, match=r"caf\\udce9\.txt.* is not UTF-8: rename it"):
        data.location(name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_closed_folder_is_named(linked):
    (linked / "a").chmod(0)
    try:
        with pytest.raises(DataError, match=r"The folder .*/a cannot be listed"):
            DataFolder(linked).files("a")
    finally:
        (linked / "a").chmod(0o700)


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz", "PHOTOS.TAR.XZ"])
def test_a_tar_file_that_is_compressed_as_a_whole(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} is compressed as a whole, .*: unpack it"):
        DataFolder(tmp_path / name)
