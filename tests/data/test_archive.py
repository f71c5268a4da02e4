import io
import shutil
import subprocess
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch

from revhrnet_hf.data import archive as archive_module
from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.data.archive import DataFolder, location_name, read_location, split_location
from revhrnet_hf.errors import DataError


def load(data_dir, split="trainval", **options):
    return load_segmentation_dataset("camvid", data_dir, split, **options)


def rows(dataset):
    return [(row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()) for row in dataset]


def pack_zip(folder, archive, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(archive, "w", method) as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder))
    return archive


def pack_tar(folder, archive, mode="w"):
    with tarfile.open(archive, mode) as packed:
        packed.add(folder, ".")  # as in `tar -cf X.tar .`: every name begins with ./
    return archive


PACKERS = {"zip": pack_zip, "tar": pack_tar}


@pytest.fixture(params=PACKERS)
def packed(request, mini_camvid, tmp_path):
    """A folder that contains only the miniature's archive."""
    folder = tmp_path / "packed"
    folder.mkdir()
    PACKERS[request.param](mini_camvid, folder / f"camvid.{request.param}")
    return folder


def test_archive_gives_what_the_folder_gives(packed, mini_camvid):
    expected = rows(load(mini_camvid))
    assert len(expected) == 8
    assert rows(load(packed)) == expected
    assert rows(load(next(packed.iterdir()))) == expected
    assert rows(load(packed, streaming=True)) == expected
    assert [file.name for file in packed.parent.rglob("*.png") if packed in file.parents] == []


def test_archive_of_the_systems_own_tar(packed, mini_camvid):
    """An archive written by the tar command, with its members in the order of the disk."""
    for file in packed.iterdir():
        file.unlink()
    subprocess.run(["tar", "-cf", packed / "camvid.tar", "-C", mini_camvid, "train", "trainannot", "train.txt"], check=True)
    assert rows(load(packed, "train")) == rows(load(mini_camvid, "train"))


def test_images_in_one_archive_label_maps_in_another(mini_camvid, tmp_path):
    expected = rows(load(mini_camvid, "val"))
    (tmp_path / "two").mkdir()
    for folder, archive, pack in (("val", "images.zip", pack_zip), ("valannot", "labels.TAR", pack_tar)):
        (tmp_path / folder).mkdir()
        (mini_camvid / folder).rename(tmp_path / folder / folder)
        pack(tmp_path / folder, tmp_path / "two" / archive)
    assert rows(load(tmp_path / "two", "val")) == expected


def test_an_open_zip_has_no_buffer(mini_camvid, tmp_path):
    """Whose lock a fork would copy while another thread holds it: the child would wait for it forever."""
    opened = archive_module._open_archive(str(pack_zip(mini_camvid, tmp_path / "camvid.zip")))
    assert isinstance(opened._zip.fp, io.RawIOBase)


def test_forked_workers_share_an_archive(packed, mini_camvid):
    expected, dataset = rows(load(mini_camvid)), load(packed)
    assert rows(dataset) == expected  # the archive is open in this process when the workers start
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _ in range(3):
        assert rows(loader) == expected


@pytest.mark.slow
def test_spawned_workers_share_archives(mini_camvid, tmp_path):
    files = sorted(mini_camvid.rglob("*.png"))
    archives = [pack(mini_camvid, tmp_path / f"camvid.{kind}") for kind, pack in PACKERS.items()]
    locations = [DataFolder(archive).location(str(file.relative_to(mini_camvid))) for archive in archives for file in files]
    loader = torch.utils.data.DataLoader(
        locations, batch_size=None, collate_fn=read_location, num_workers=2, multiprocessing_context="spawn"
    )
    assert list(loader) == [file.read_bytes() for file in files] * 2


def test_threads_share_an_archive(packed, mini_camvid):
    data_folder = DataFolder(packed)
    files = sorted(mini_camvid.rglob("*.png")) * 20
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda file: read_location(data_folder.location(str(file.relative_to(mini_camvid)))), files))
    assert read == [file.read_bytes() for file in files]


def test_unpacked_file_wins(packed, mini_camvid):
    (packed / "val.txt").write_text("/SegNet/CamVid/val/mini_val_00001.png /SegNet/CamVid/valannot/mini_val_00001.png\n")
    assert rows(load(packed, "val")) == rows(load(mini_camvid, "val"))[1:2]


def test_the_exact_suffix_comes_before_one_in_capitals(tmp_path):
    write_names(tmp_path, ["a/x.png", "a/x.PNG", "a/y.PNG", "a/z.Png", "a.d/t"])
    pack_names(tmp_path / "more.zip", ["b/x.JPG", "b/X.txt"])
    data_folder = DataFolder(tmp_path)
    for name in ("a/x.png", "a/x.PNG"):
        assert data_folder.location(name) == str(tmp_path / name)
    assert data_folder.location("a/y.png") == str(tmp_path / "a/y.PNG")
    assert [*map(data_folder.location, ("a/z.png", "a/Y.png", "b/x.txt", "a.d/T"))] == [None] * 4
    assert data_folder.location("b/x.jpg") == f"zip://b/x.JPG::{tmp_path / 'more.zip'}"
    assert data_folder.files("a", [".png"]) == ["x.PNG", "x.png", "y.PNG"] and data_folder.stems("a", ".png") == ["x", "y"]


def test_pairs_deleted_beside_the_kept_archive_stay_deleted(packed, mini_camvid):
    """The folder was unpacked beside its archive, and a pair was deleted; only the remaining files are listed."""
    for folder in ("val", "valannot"):
        shutil.copytree(mini_camvid / folder, packed / folder)
        (packed / folder / "mini_val_00001.png").unlink()
    data_folder = DataFolder(packed)
    assert data_folder.files("val") == data_folder.files("valannot") == ["mini_val_00000.png", "mini_val_00002.png"]
    with pytest.raises(DataError, match=r"Label map .*1 of 3: .*mini_val_00001\.png"):
        load(packed, "val")
    assert rows(load(packed, "train")) == rows(load(mini_camvid, "train"))  # train is only in the archive


def pack_names(archive, names):
    with zipfile.ZipFile(archive, "w") as packed:
        for name in names:
            packed.writestr(name, b"x")


def write_names(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


LAID_OUT = ["images/train/a.png", "images/train/north/b.png", "images/train/south/c.png", "notes/list.json", "table.yaml"]


@pytest.mark.parametrize(
    ("unpacked", "still_packed"),
    [
        ([], LAID_OUT),
        (["images/train/a.png"], ["notes/list.json", "table.yaml"]),  # north and south were deleted
        (["images/train/south/c.png"], ["notes/list.json", "table.yaml"]),
        (["table.yaml"], LAID_OUT[:-1]),
        (["notes/other.json"], LAID_OUT),  # one of several texts, not an image
        (["images/val/a.png"], LAID_OUT),  # not from the archive
        (["other/train/north/b.png"], LAID_OUT),
    ],
)
def test_what_an_archive_beside_its_unpacked_files_still_gives(tmp_path, unpacked, still_packed):
    pack_names(tmp_path / "data.zip", LAID_OUT)
    write_names(tmp_path, unpacked)
    data_folder = DataFolder(tmp_path)
    assert [name for name in LAID_OUT if str(data_folder.location(name)).startswith("zip://")] == still_packed


def test_folders_of_another_archive_are_not_taken_for_unpacked(tmp_path):
    """Cityscapes' train_extra is unpacked, train and val are in an archive; images are unpacked, their label maps are not."""
    pack_names(tmp_path / "a.zip", ["left/train/aachen/x.png", "left/val/bonn/y.png"])
    pack_names(tmp_path / "b.zip", ["train/labels/z.png"])
    write_names(tmp_path, ["left/train_extra/konz/z.png", "train/images/z.png"])
    data_folder = DataFolder(tmp_path)
    assert data_folder.folders("left") == ["train", "train_extra", "val"]
    assert data_folder.folders("train") == ["images", "labels"] and data_folder.files("train/labels") == ["z.png"]


SYSTEM_NAMES = ("._a.png", ".a.png", ".DS_Store", "Thumbs.db", "thumbs.DB", "desktop.ini")
SYSTEM_FOLDERS = ("@eaDir", ".ipynb_checkpoints", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN")


@pytest.mark.parametrize("is_packed", [False, True])
def test_hidden_files_is_skipped(tmp_path, is_packed):
    names = [f"x/{name}" for name in SYSTEM_NAMES] + [f"x/{folder}/a.png" for folder in SYSTEM_FOLDERS]
    if is_packed:
        pack_names(tmp_path / "data.zip", names)
    else:
        write_names(tmp_path, names)
    (tmp_path / "._data.zip").write_bytes(b"no archive")
    assert is_packed or DataFolder(tmp_path).folders() == ["x"]
    assert DataFolder(tmp_path).files("x") == DataFolder(tmp_path).folders("x") == []
    write_names(tmp_path, ["y/b.png"])
    assert DataFolder(tmp_path).files("y") == ["b.png"]


def test_folder_of_hidden_files_is_empty(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert DataFolder(tmp_path).is_empty


def test_zip_with_backslashes(tmp_path):
    pack_names(tmp_path / "data.zip", ["own\\", "own\\labels.yaml", "own\\images\\a.png"])
    data_folder = DataFolder(tmp_path)
    assert (data_folder.folders(), data_folder.folders("own"), data_folder.files("own")) == (["own"], ["images"], ["labels.yaml"])
    location = data_folder.location("own/images/a.png")
    assert read_location(location) == b"x" and location_name(location) == "a.png"


def test_subfolder(tmp_path):
    pack_names(tmp_path / "data.zip", ["own/images/a.png"])
    data_folder = DataFolder(tmp_path)
    assert data_folder.packed_folders() == ["own"]
    inner = data_folder.subfolder("own")
    assert inner.folders() == ["images"] and inner.files("images") == ["a.png"] and inner.has_folder("images")
    assert inner.location("images/a.png") == data_folder.location("own/images/a.png")
    assert inner.expected("b.png") == str(tmp_path / "own" / "b.png")


def test_an_archive_holds_what_the_folder_holds(packed, mini_camvid):
    unpacked, data_folder = DataFolder(mini_camvid), DataFolder(packed)
    assert data_folder.folders() == unpacked.folders() == ["train", "trainannot", "val", "valannot"]
    assert data_folder.files("") == [
        "camvid.zip" if data_folder.archives[0].suffix == ".zip" else "camvid.tar",
        "train.txt",
        "val.txt",
    ]
    for folder in ("train", "valannot", "nowhere"):
        assert data_folder.files(folder, [".png"]) == unpacked.files(folder, [".png"])
        assert data_folder.has_folder(folder) == unpacked.has_folder(folder)
    assert data_folder.read_text("val.txt") == (mini_camvid / "val.txt").read_text()
    assert not data_folder.has_file("val") and not data_folder.has_file("val/none.png")
    with pytest.raises(DataError, match=r"val/none\.png is missing"):
        data_folder.read_text("val/none.png")


def test_locations():
    assert split_location("zip://x/y.png::/d/a.zip") == ("/d/a.zip", "x/y.png")
    assert split_location("tar://x::y.png::/d/a.tar") == ("/d/a.tar", "x::y.png")
    assert split_location("/d/x.png") == ("/d/x.png", None)
    assert split_location("zip://x.png::a.zip") == ("a.zip", "x.png")
    assert split_location("/d::e/x.png") == ("/d::e/x.png", None)
    assert location_name("tar://x/y.png::/d/a.tar") == "y.png"
    assert location_name("/d/x.png") == "x.png"


def test_beginning_of_a_file(packed, mini_camvid):
    whole = (mini_camvid / "val" / "mini_val_00000.png").read_bytes()
    for location in (DataFolder(folder).location("val/mini_val_00000.png") for folder in (packed, mini_camvid)):
        assert read_location(location, 100) == whole[:100]
        assert read_location(location, 10**9) == read_location(location) == whole


def test_differing_sizes_are_seen_in_archives(mini_camvid, tmp_path):
    """Also if the size comes so late in the file that its first bytes do not contain it."""
    comment = PIL.PngImagePlugin.PngInfo()
    comment.add(b"prVt", bytes(100_000))
    odd = mini_camvid / "valannot" / "mini_val_00001.png"
    PIL.Image.open(odd).crop((0, 0, 30, 20)).save(odd, pnginfo=comment)
    for kind, pack in PACKERS.items():
        (tmp_path / kind).mkdir()
        pack(mini_camvid, tmp_path / kind / f"camvid.{kind}")
        with pytest.raises(DataError, match=r"mini_val_00001\.png.* is 64×48 .*mini_val_00001\.png.* is 30×20"):
            load(tmp_path / kind, "val")


def test_hidden_files_of_macos_are_skipped(mini_camvid, tmp_path):
    expected = rows(load(mini_camvid, "train"))
    (mini_camvid / "train.txt").unlink()
    for litter in ("__MACOSX/train/._mini_train_00000.png", "train/._mini_train_00000.png", "__MACOSX/trainannot/._a.png"):
        (mini_camvid / litter).parent.mkdir(parents=True, exist_ok=True)
        (mini_camvid / litter).write_bytes(b"\0\5\26\7")
    (tmp_path / "zipped").mkdir()
    pack_zip(mini_camvid, tmp_path / "zipped" / "camvid.zip")
    (tmp_path / "zipped" / "._camvid.zip").write_bytes(b"\0\5\26\7")
    for data_dir in (mini_camvid, tmp_path / "zipped"):
        assert rows(load(data_dir, "train")) == expected
        assert "__MACOSX" not in DataFolder(data_dir).folders()


def test_changed_archive_is_seen(packed, mini_camvid):
    assert len(load(packed, "val")) == 3
    (archive,) = packed.iterdir()
    (mini_camvid / "val.txt").write_text("".join((mini_camvid / "val.txt").read_text().splitlines(keepends=True)[:2]))
    archive.unlink()
    PACKERS[archive.suffix[1:]](mini_camvid, archive)
    assert len(load(packed, "val")) == 2
    odd = mini_camvid / "val" / "mini_val_00000.png"
    PIL.Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(odd)
    archive.unlink()
    PACKERS[archive.suffix[1:]](mini_camvid, archive)
    assert not np.asarray(load(packed, "val")[0]["image"]).any()


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archive_is_named(mini_camvid, tmp_path, kind, share):
    (tmp_path / "packed").mkdir()
    archive = PACKERS[kind](mini_camvid, tmp_path / "packed" / f"camvid.{kind}")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(share * len(whole))] if share else b"<html>404 not found</html>" * 40)
    with pytest.raises(DataError, match=rf"The archive .*camvid\.{kind} is damaged .*fetch it again"):
        load(tmp_path / "packed")


def test_damaged_member_is_named(mini_camvid, tmp_path):
    (tmp_path / "packed").mkdir()
    archive = pack_zip(mini_camvid, tmp_path / "packed" / "camvid.zip", zipfile.ZIP_STORED)
    image = (mini_camvid / "val" / "mini_val_00001.png").read_bytes()
    data = archive.read_bytes()
    assert data.count(image) == 1
    archive.write_bytes(data.replace(image, image[:900] + bytes([image[900] ^ 1]) + image[901:]))
    with pytest.raises(DataError, match=r"zip://val/mini_val_00001\.png::.*camvid\.zip cannot be read \(Bad CRC-32"):
        load(tmp_path / "packed", "val")
    assert len(load(tmp_path / "packed", "train")) == 5


def test_encrypted_zip_is_named(mini_camvid, tmp_path):
    (tmp_path / "packed").mkdir()
    archive = pack_zip(mini_camvid, tmp_path / "packed" / "camvid.zip")
    data = bytearray(archive.read_bytes())
    # Bit 0 of the flags in every local (PK 3 4) and central (PK 1 2) header says "encrypted".
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            data[start + flags] |= 1
            start = data.find(signature, start + 4)
    archive.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.txt::.*camvid\.zip cannot be read \(.*encrypted"):
        load(tmp_path / "packed")


@pytest.mark.parametrize("suffix", [".tgz", ".tar.gz"])
def test_compressed_tar_is_to_be_unpacked(mini_camvid, tmp_path, suffix):
    (tmp_path / "packed").mkdir()
    pack_tar(mini_camvid, tmp_path / "packed" / f"camvid{suffix}", "w:gz")
    with pytest.raises(DataError, match=rf"camvid{suffix} is compressed as a whole.*unpack it"):
        load(tmp_path / "packed")


def test_gzip_that_is_called_tar_is_damaged(mini_camvid, tmp_path):
    (tmp_path / "packed").mkdir()
    pack_tar(mini_camvid, tmp_path / "packed" / "camvid.tar", "w:gz")
    with pytest.raises(DataError, match=r"camvid\.tar is damaged"):
        load(tmp_path / "packed")


def test_file_that_is_no_archive(mini_camvid):
    with pytest.raises(DataError, match=r"train\.txt is neither a folder nor a zip or tar file"):
        load(mini_camvid / "train.txt")


def test_absent_member_is_named(packed, mini_camvid):
    location = DataFolder(packed).location("val/mini_val_00000.png")
    with pytest.raises(FileNotFoundError, match=r"no member val/none\.png"):
        read_location(location.replace("mini_val_00000", "none"))


def test_damaged_member_of_a_whole_zip(tmp_path):
    """The list of members is intact, the content of one of them is not."""
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.txt", bytes(range(256)) * 40)
    content = bytearray(archive.read_bytes())
    content[60:64] = bytes(byte ^ 0xFF for byte in content[60:64])
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt.* cannot be read"):
        DataFolder(tmp_path).read_text("a.txt")


def write_export(archive, members):
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)


@pytest.mark.parametrize("second", ["b.zip", "b.tar"])
def test_archives_that_disagree_on_a_file(tmp_path, second):
    write_export(tmp_path / "a.zip", {"m/p.png": b"old", "m/q.png": b"q", "README": b"1"})
    if second.endswith("zip"):
        write_export(tmp_path / second, {"m/p.png": b"new", "m/q.png": b"q", "README": b"2"})
    else:
        for name, content in {"m/p.png": b"new", "m/q.png": b"q", "README": b"2"}.items():
            (tmp_path / "packed" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "packed" / name).write_bytes(content)
        pack_tar(tmp_path / "packed", tmp_path / second)
        shutil.rmtree(tmp_path / "packed")
    data_folder = DataFolder(tmp_path)
    assert data_folder.read_text("m/q.png") == "q"  # the same in both
    for _ in range(2):
        with pytest.raises(DataError, match=rf"a\.zip and .*{second} are both 'm/p\.png' and differ"):
            data_folder.location("m/p.png")


@pytest.mark.parametrize("name", ["/abs.png", "//m/abs.png", "\\abs.png", "/m/abs.png", "/m/n/abs.png"])
def test_members_that_begin_with_a_slash_lie_below_the_folder(tmp_path, name):
    write_export(tmp_path / "a.zip", {name: b"content", "m/x.png": b"x"})
    data_folder = DataFolder(tmp_path)
    assert data_folder.read_text(name.replace("\\", "/").lstrip("/")) == "content"


def pack_links(folder, links):
    """A tar file with the file photos/a.txt, the folder photos, and these links: (type, name, target)."""
    with tarfile.open(folder / "data.tar", "w") as packed:
        (folder / "a.txt").write_text("hello")
        packed.add(folder / "a.txt", "./photos/a.txt")
        (folder / "a.txt").unlink()
        for kind, name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            packed.addfile(member)
    return DataFolder(folder)


@pytest.mark.parametrize(
    "links",
    [
        [(tarfile.LNKTYPE, "./photos/b.txt", "./photos/a.txt")],  # as tar packs a file that has two names
        [(tarfile.SYMTYPE, "photos/b.txt", "a.txt")],
        [(tarfile.SYMTYPE, "photos/b.txt", "../photos/./a.txt")],
        [(tarfile.SYMTYPE, "photos/b.txt", "../c.txt"), (tarfile.LNKTYPE, "c.txt", "photos/a.txt")],
        [(tarfile.SYMTYPE, "photos/b.txt", "a.txt"), (tarfile.SYMTYPE, "photos/all", "../photos")],  # a folder above itself
    ],
    ids=str,
)
def test_links_in_a_tar_file_are_followed(tmp_path, links):
    data_folder = pack_links(tmp_path, links)
    assert data_folder.files("photos", [".txt"]) == ["a.txt", "b.txt"]
    assert data_folder.read_text("photos/b.txt") == "hello"
    assert read_location(data_folder.location("photos/b.txt"), 2) == b"he"


@pytest.mark.parametrize("target", ["/etc/hostname", "../../photos/a.txt", "none.txt", "b.txt"])
def test_links_that_lead_to_no_file_of_the_tar_file(tmp_path, target):
    data_folder = pack_links(tmp_path, [(tarfile.SYMTYPE, "photos/b.txt", target)])
    assert data_folder.files("photos") == ["a.txt", "b.txt"]
    with pytest.raises(
        DataError, match=rf"photos/b\.txt.* cannot be read \(it is a link to {target}, which is no file .*unpack it"
    ):
        data_folder.read_text("photos/b.txt")


@pytest.mark.parametrize("name", ["images", "set/images", "photos2"])
def test_links_to_folders_of_a_tar_file(tmp_path, name):
    data_folder = pack_links(tmp_path, [(tarfile.SYMTYPE, name, "../photos" if "/" in name else "photos")])
    with pytest.raises(DataError, match=rf"data\.tar holds a link to a folder, '{name}' to 'photos', .*: unpack it"):
        data_folder.folders()
