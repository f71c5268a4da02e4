"""Stored datasets whose rows point elsewhere: nothing but their own files is opened, decoded, saved or pushed."""

import http.server
import io
import json
import os
import threading
import zipfile

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from revhrnet_hf.data import LabelMap, RgbImage, load_segmentation_dataset
from revhrnet_hf.data.datasets.own_files import OwnFiles
from revhrnet_hf.errors import DataError

SECRET = b"-----BEGIN PRIVATE KEY-----"
COLUMNS = {"image": {"_type": "Image"}, "label_map": {"_type": "Image"}}


def png(array):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


IMAGE, LABELS = png(np.full((4, 5, 3), 9, np.uint8)), png(np.ones((4, 5), np.uint8))


@pytest.fixture
def table(tmp_path):
    (tmp_path / "t.yaml").write_text("names: [road, car]\n")
    return tmp_path / "t.yaml"


@pytest.fixture
def secret(tmp_path):
    """Also an image, so that decoding it would not fail."""
    (tmp_path / "secret.png").write_bytes(IMAGE + SECRET)
    return str(tmp_path / "secret.png")


def plant(folder, image=None, label_map=None, features=None):
    """A parquet file of one row, as anybody can push one."""
    folder.mkdir(exist_ok=True)
    good = {"image": {"bytes": IMAGE, "path": "a.png"}, "label_map": {"bytes": LABELS, "path": "b.png"}}
    row = good | {name: value for name, value in (("image", image), ("label_map", label_map)) if value}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    stored = pa.table({name: pa.array([value], kind) for name, value in row.items()})
    info = json.dumps({"info": {"features": features or COLUMNS}})
    pq.write_table(stored.replace_schema_metadata({"huggingface": info}), folder / "train-00000-of-00001.parquet")
    return folder


def load(folder, table, streaming=False):
    return load_segmentation_dataset("hub", folder, "train", table, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_holds_its_bytes_is_read(table, tmp_path, streaming):
    row = next(iter(load(plant(tmp_path / "good"), table, streaming)))
    assert row["image"].getpixel((0, 0)) == (9, 9, 9) and row["label_map"].getpixel((0, 0)) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "label_map"])
@pytest.mark.parametrize("how", ["absolute", "through ..", "link", "zip", "relative"])
def test_other_files_are_refused(how, column, streaming, table, secret, tmp_path, monkeypatch):
    folder = tmp_path / "planted"
    folder.mkdir()
    paths = {"absolute": secret, "through ..": f"{folder}/../secret.png", "link": f"{folder}/link.png", "relative": "secret.png"}
    os.symlink(secret, folder / "link.png")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x.png", SECRET)
    paths["zip"] = f"zip://x.png::{tmp_path}/other.zip"
    monkeypatch.chdir(tmp_path)
    plant(folder, **{column: {"bytes": None, "path": paths[how]}})
    with pytest.raises(DataError, match=rf"column '{column}' of .*planted points to .*none of the dataset's own files"):
        next(iter(load(folder, table, streaming)))


def test_no_address_is_called(table, tmp_path):
    calls = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            calls.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        try:
            for path in (address, f"zip://a.png::{address}", f"simplecache::{address}"):
                folder = plant(tmp_path / "planted", image={"bytes": None, "path": path})
                for streaming in (False, True):
                    with pytest.raises(DataError, match="own files"):
                        next(iter(load(folder, table, streaming)))
        finally:
            server.shutdown()
    assert calls == []


def test_ones_own_files_are_read(table, tmp_path):
    folder = plant(tmp_path / "own", image={"bytes": None, "path": str(tmp_path / "own" / "images" / "a.png")})
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(IMAGE)
    for streaming in (False, True):
        assert next(iter(load(folder, table, streaming)))["image"].size == (5, 4)
    own = OwnFiles(folder)
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("x.png", IMAGE)
    own.check_value({"bytes": None, "path": f"zip://x.png::{folder}/b.zip"}, "image")


def test_an_image_folder_is_read(table, tmp_path):
    folder = tmp_path / "photos" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(IMAGE)
    (folder / "m.png").write_bytes(LABELS)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "label_map_file_name": "m.png"}))
    for streaming in (False, True):
        row = next(iter(load(tmp_path / "photos", table, streaming)))
        assert row["image"].size == row["label_map"].size == (5, 4)


def test_files_of_a_set_on_the_hub():
    own = OwnFiles("they/cars", "imagefolder")
    own.check_value({"bytes": None, "path": "hf://datasets/they/cars@0abc/train/a.png"}, "image")
    own.check_value({"bytes": None, "path": "zip://a.png::hf://datasets/they/cars@0abc/train.zip"}, "image")
    for path in (
        "hf://datasets/they/cars2@0/a.png",
        "hf://datasets/you/private@0/a.png",
        "s3://bucket/a.png",
        "file:///etc/passwd",
    ):
        with pytest.raises(DataError, match="own files"):
            own.check_value({"bytes": None, "path": path}, "image")


def test_an_annotation_that_points_elsewhere_is_refused(table, secret, tmp_path):
    pointer = json.dumps({"height": 4, "width": 5, "segments": [], "png": secret}).encode()
    folder = plant(tmp_path / "planted", label_map={"bytes": pointer, "path": "b.json"})
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"points to .*secret\.png"):
            next(iter(load(folder, table, streaming)))


@pytest.mark.parametrize("ours", [False, True])
def test_a_name_beside_bytes_is_a_name_only(table, secret, tmp_path, ours):
    """`datasets` itself drops the bytes where the name is that of a file, and takes the file's content when the set is saved."""
    features = {"image": {"_type": "RgbImage"}, "label_map": {"_type": "LabelMap", "label_space": "camvid11"}} if ours else None
    named = {"bytes": IMAGE, "path": secret}
    folder = plant(tmp_path / "planted", image=named, label_map={"bytes": LABELS, "path": secret}, features=features)
    for streaming in (False, True):
        dataset = load(folder, None if ours else table, streaming)
        if streaming:
            dataset = datasets.Dataset.from_list(list(dataset), features=dataset.features)
        mapped = dataset.map(lambda row: {"image_id": row["image_id"] + "!"})
        mapped.save_to_disk(tmp_path / f"saved{streaming}")
        assert not any(SECRET in file.read_bytes() for file in (tmp_path / f"saved{streaming}").rglob("*.arrow"))
        assert mapped[0]["label_map"].getpixel((0, 0)) == 1


def test_bytes_win_over_a_file_of_that_name(tmp_path):
    (tmp_path / "a.png").write_bytes(SECRET)
    for feature in (RgbImage(), LabelMap(label_space="camvid11")):
        value = {"bytes": IMAGE, "path": str(tmp_path / "a.png")}
        assert feature.encode_example(value) == value
