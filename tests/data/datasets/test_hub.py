import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import PIL.ExifTags
import PIL.Image
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem

from revhrnet_hf.data import LabelMap, LabelSpace, RgbImage, get_label_space, label_space_of, load_segmentation_dataset
from revhrnet_hf.data.datasets import hub as stored_module
from revhrnet_hf.data.datasets.own_files import OwnFiles
from revhrnet_hf.errors import DataError

from ... import forked

TABLE = "name: cars\nnames:\n  road: 1\n  car: 2\n  tree: 0\n"  # translating twice would show: 1 → 0 → 2
TRAIN_ID = np.array([2, 0, 1], np.uint8)


def load(source, split="train", **options):
    return load_segmentation_dataset("hub", source, split, **options)


def rows(dataset):
    return [(row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()) for row in dataset]


@pytest.fixture
def table(tmp_path):
    (tmp_path / "cars.yaml").write_text(TABLE)
    return tmp_path / "cars.yaml"


@pytest.fixture
def own(tmp_path, table):
    """Three images with a label table that nobody has registered."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for k in range(count):
            for folder, shape, high in (("images", (5, 7, 3), 256), ("labels", (5, 7), 3)):
                file = tmp_path / "own" / folder / split / f"{split}{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(file)
    return {split: load_segmentation_dataset("folder", tmp_path / "own", split, table) for split in ("train", "val")}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`push_to_hub` as it is, with a folder in place of the Hub; returns the folder."""
    folder = tmp_path / "hub"
    folder.mkdir()

    class Hub:
        def __init__(self, **settings):
            pass

        def repo_info(self, repo_id, **settings):
            return SimpleNamespace(id=repo_id, sha="0")

        def preupload_lfs_files(self, additions, **settings):
            self.write(additions)

        def create_commit(self, repo_id, operations, **settings):
            self.write(operation for operation in operations if not Path(str(operation.path_or_fileobj)).is_absolute())

        def write(self, additions):
            for addition in additions:
                file = folder / addition.path_in_repo
                file.parent.mkdir(exist_ok=True)
                with addition.as_file() as content:
                    file.write_bytes(content.read())

    monkeypatch.setattr(datasets.arrow_dataset, "HfApi", Hub)
    local = DirFileSystem(path=str(folder), fs=fsspec.filesystem("file"))
    monkeypatch.setattr(datasets.arrow_dataset, "DirFileSystem", lambda **settings: local)
    return folder


@pytest.fixture
def foreign():
    """A dataset as others push them: bytes without file names, other columns."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(4)]
    label_maps = [rng.integers(0, 3, (5, 7), dtype=np.uint8) for _ in range(4)]
    columns = {
        "caption": list("abcd"),
        "photo": [PIL.Image.fromarray(image) for image in images],
        "mask": [PIL.Image.fromarray(label_map) for label_map in label_maps],
    }
    features = datasets.Features({"caption": datasets.Value("string"), "photo": datasets.Image(), "mask": datasets.Image()})
    expected = [(p.tobytes(), TRAIN_ID[m].tobytes()) for p, m in zip(images, label_maps, strict=True)]
    return datasets.Dataset.from_dict(columns, features=features, split="train"), expected


@pytest.fixture
def foreign_columns(table):
    return {"image_column": "photo", "label_column": "mask", "label_space": table}


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_set_of_ours_comes_back(own, tmp_path, streaming):
    expected = rows(own["train"])
    datasets.DatasetDict(own).save_to_disk(tmp_path / "saved")
    own["train"].save_to_disk(tmp_path / "alone")
    shutil.rmtree(tmp_path / "own")
    for folder in ("saved", "alone"):
        back = load(tmp_path / folder, streaming=streaming)
        assert isinstance(back, datasets.IterableDataset if streaming else datasets.Dataset)
        assert rows(back) == expected
        assert back.column_names == ["image", "label_map", "image_id"]
        assert label_space_of(back).names == ("road", "car", "tree")


@pytest.mark.parametrize("streaming", [False, True])
def test_pushed_set_of_ours_comes_back(own, hub, tmp_path, streaming):
    expected = {split: rows(dataset) for split, dataset in own.items()}
    for split, dataset in own.items():
        dataset.push_to_hub("me/cars", split=split)
    assert "label_map" in (hub / "README.md").read_text()
    shutil.rmtree(tmp_path / "own")
    for split in own:
        back = load(hub, split, streaming=streaming)
        assert rows(back) == expected[split]
        assert back.features == own[split].features
        assert label_space_of(back).names == ("road", "car", "tree")


def test_pushed_camvid_comes_back_by_name_of_its_space(mini_camvid, hub):
    camvid = load_segmentation_dataset("camvid", mini_camvid, "val")
    camvid.push_to_hub("me/camvid", split="val")
    back = load(hub, "val")
    assert rows(back) == rows(camvid)
    assert label_space_of(back) is get_label_space("camvid11")


def test_mapped_label_maps_are_not_translated_again(own, hub, tmp_path):
    mapped = own["train"].map(lambda row: {"label_map": row["label_map"]})
    expected = rows(own["train"])
    mapped.save_to_disk(tmp_path / "saved")
    mapped.push_to_hub("me/cars", split="train")
    for source in (tmp_path / "saved", hub):
        for streaming in (False, True):
            assert rows(load(source, streaming=streaming)) == expected


def test_second_process_knows_what_was_saved(own, tmp_path):
    expected = rows(own["train"])[2]
    own["train"].save_to_disk(tmp_path / "saved")
    for path in ("own", "cars.yaml"):
        target = tmp_path / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    program = (
        "import sys, revhrnet_hf, datasets\n"
        "from revhrnet_hf.data import label_space_of, load_segmentation_dataset\n"
        "saved = load_segmentation_dataset('hub', sys.argv[1], 'train')\n"
        "print(saved[2]['image_id'], saved[2]['label_map'].tobytes().hex(), *label_space_of(saved).names)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    run = forked.run(command, preloaded=forked.BARE, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [expected[0], expected[2].hex(), "road", "car", "tree"]


@pytest.mark.parametrize("how", ["saved", "pushed", "pushed, streamed", "saved, streamed"])
def test_foreign_set_is_translated_once(foreign, foreign_columns, hub, tmp_path, how):
    stored, expected = foreign
    if "saved" in how:
        stored.save_to_disk(tmp_path / "saved")
        source = tmp_path / "saved"
    else:
        stored.push_to_hub("they/cars")
        source = hub
    before = sorted(source.rglob("*"))
    dataset = load(source, streaming="streamed" in how, **foreign_columns)
    assert dataset.column_names == ["image", "label_map", "image_id"]
    assert [row[1:] for row in rows(dataset)] == expected
    ids = [row[0] for row in rows(dataset)]
    assert len(set(ids)) == 4
    if how != "pushed, streamed":
        assert ids == ["000000", "000001", "000002", "000003"]
    assert sorted(source.rglob("*")) == before
    mapped = dataset.map(lambda row: {"label_map": row["label_map"]})
    assert [row[1:] for row in rows(mapped)] == expected


@pytest.mark.parametrize(("orientation", "fits"), [(6, True), (8, True), (1, False), (3, False)])
def test_a_streamed_row_of_two_sizes_is_an_error(orientation, fits, tmp_path):
    """A mask whose sides are swapped fits an image that its EXIF orientation turns sideways, and no other."""
    exif, data = PIL.Image.Exif(), io.BytesIO()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    PIL.Image.new("RGB", (7, 5)).save(data, "JPEG", exif=exif)
    mask = io.BytesIO()
    PIL.Image.new("L", (5, 7)).save(mask, "PNG")
    row = {"image": {"bytes": data.getvalue(), "path": None}, "label_map": {"bytes": mask.getvalue(), "path": None}}
    own = OwnFiles(tmp_path)
    if fits:
        assert stored_module._completed(row, foreign=True, own=own)["image"] == row["image"]
    else:
        with pytest.raises(DataError, match=r"image \w+ is 7×5 pixels \(width×height\) but its label map is 5×7: .*EXIF"):
            stored_module._completed(row, foreign=True, own=own)


def test_foreign_set_in_spawned_workers(foreign, foreign_columns, tmp_path):
    stored, expected = foreign
    stored.save_to_disk(tmp_path / "saved")
    dataset = load(tmp_path / "saved", **foreign_columns)
    foreign_columns["label_space"].unlink()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [row[1:] for row in rows(loader)] == expected


def test_streaming_workers_give_each_image_its_own_id(foreign, foreign_columns, hub):
    stored, expected = foreign
    stored.push_to_hub("they/cars", num_shards=2)
    dataset = load(hub, streaming=True, **foreign_columns)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    read = rows(loader)
    assert sorted(row[1:] for row in read) == sorted(expected)
    assert len({row[0] for row in read}) == 4


def test_ids_that_are_numbers_become_text(foreign, foreign_columns, hub):
    stored, _ = foreign
    stored.add_column("image_id", [30, 10, 20, 40]).push_to_hub("they/cars")
    for streaming in (False, True):
        assert [row["image_id"] for row in load(hub, streaming=streaming, **foreign_columns)] == ["30", "10", "20", "40"]


def test_stray_id_names_the_row(foreign, foreign_columns, tmp_path):
    stored, _ = foreign
    foreign_columns["label_space"].write_text("names:\n  road: 1\n  car: 2\n")
    stored.save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"Label map row 2 holds the ids 0, which"):
        load(tmp_path / "saved", **foreign_columns)[2]


def test_files_of_a_streamed_set_may_lie_elsewhere(table):
    """As in an image folder on the Hub: paths in a file system that fsspec knows, no bytes."""
    for name, array in (("a.png", np.zeros((2, 2, 3), np.uint8)), ("b.png", np.array([[0, 1], [2, 2]], np.uint8))):
        with fsspec.open(f"memory://stored/{name}", "wb") as file:
            PIL.Image.fromarray(array).save(file, format="png")
    stored = {"bytes": None, "path": "memory://stored/a.png"}
    assert RgbImage().decode_example(stored).size == (2, 2)
    stored["path"] = "memory://stored/b.png"
    assert list(LabelMap.of(LabelSpace.from_yaml(table)).decode_example(stored).tobytes()) == [2, 0, 1, 1]
    stored["path"] = "memory://stored/c.png"
    with pytest.raises(DataError, match=r"memory://stored/c\.png cannot be read"):
        RgbImage().decode_example(stored)


def test_what_is_not_said_or_not_there(foreign, foreign_columns, own, tmp_path):
    foreign[0].save_to_disk(tmp_path / "saved")
    own["val"].save_to_disk(tmp_path / "ours")
    source = tmp_path / "saved"
    wrong = [
        ({"split": "val"}, "has no split 'val'; splits there: train"),
        ({}, "has no column 'image'; its columns: caption, photo, mask"),
        ({"image_column": "caption"}, r"column 'caption' of .*saved is Value\('string'\), not one of images"),
        ({"image_column": "photo", "label_column": "labels"}, "has no column 'labels'"),
        ({"image_column": "photo", "label_column": "mask"}, "does not define the ids in its label maps: give label_space"),
        ({**foreign_columns, "label_space": "kitti"}, "Unknown label space 'kitti'"),
    ]
    for options, message in wrong:
        with pytest.raises(DataError, match=message):
            load(source, **options)
    with pytest.raises(DataError, match="stored in label space 'cars', not camvid11: leave it out"):
        load(tmp_path / "ours", "val", label_space="camvid11")
    assert len(load(tmp_path / "ours", "val", label_space=foreign_columns["label_space"])) == 1


def test_rows_without_label_map(foreign, foreign_columns, hub):
    stored, _ = foreign
    features = stored.features
    broken = stored.map(lambda row, k: {"mask": None if k == 1 else row["mask"]}, with_indices=True, features=features)
    broken.push_to_hub("they/cars")
    with pytest.raises(DataError, match=r"1 of the split's 4 rows have no label map"):
        load(hub, **foreign_columns)
    with pytest.raises(DataError, match=r"The image .* has no label map"):
        list(load(hub, streaming=True, **foreign_columns))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="nowhere cannot be loaded"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty cannot be loaded"):
        load(tmp_path / "empty")


def test_damaged_saved_set(own, tmp_path):
    own["val"].save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"saved cannot be read .*: save it again"):
        load(tmp_path / "saved", "val")


def png(array):
    data = io.BytesIO()
    PIL.Image.fromarray(array).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def as_dataset(columns):
    features = datasets.Features({name: datasets.Image() for name in columns})
    table = datasets.table.InMemoryTable(pa.table(columns, schema=features.arrow_schema))
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=features))


def saved(folder, columns):
    as_dataset(columns).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}], ids=["null", "empty"])
@pytest.mark.parametrize("column", ["image", "label_map"])
def test_a_row_without_its_image_is_named(tmp_path, table, column, empty):
    columns = {"image": [png(np.zeros((4, 5, 3), np.uint8))] * 3, "label_map": [png(np.zeros((4, 5), np.uint8))] * 3}
    columns[column] = [*columns[column][:2], empty]
    kind = column.replace("_", " ")
    message = rf"1 of the split's 3 rows have no {kind}: row 2, counted from 0"
    with pytest.raises(DataError, match=message):
        stored_module._check_present(as_dataset(columns), column, kind)
    if empty is None:  # `datasets` itself saves no other
        with pytest.raises(DataError, match=message):
            load(saved(tmp_path / "saved", columns), label_space=table)
    row = {name: values[2] for name, values in columns.items()} | {"image_id": "x7"}
    with pytest.raises(DataError, match=rf"x7 has no {kind}"):
        stored_module._completed(row, foreign=True, own=OwnFiles(tmp_path))


def test_columns_that_are_the_same_or_swapped(tmp_path, table):
    image, ids = np.full((4, 5, 3), 9, np.uint8), np.ones((4, 5), np.uint8)
    folder = saved(tmp_path / "saved", {"label_map": [png(image)], "image": [png(ids)]})
    with pytest.raises(DataError, match="image_column and label_column are both 'image'"):
        load(folder, label_space=table, image_column="image", label_column="image")
    (row,) = load(folder, label_space=table, image_column="label_map", label_column="image")
    assert np.array_equal(np.asarray(row["image"]), image) and np.asarray(row["label_map"]).max() == 0
