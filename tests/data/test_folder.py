import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import DataError

TABLE = "names:\n  road: 7\n  car: [26, 27]\nignore: [0, 255]\n"
TRAIN_ID = {7: 0, 26: 1, 27: 1, 0: 255, 255: 255}


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("folder", data_dir, split, **options)


def write_pair(images, labels, name, suffix=".jpg", seed=0):
    rng = np.random.default_rng(seed)
    for folder, shape, high in ((images, (6, 8, 3), 256), (labels, (6, 8), 5)):
        file = folder / (name + (suffix if folder == images else ".png"))
        file.parent.mkdir(parents=True, exist_ok=True)
        array = rng.integers(0, high, shape, dtype=np.uint8)
        PIL.Image.fromarray(array if folder == images else np.array([7, 26, 27, 0, 255], np.uint8)[array]).save(file)


def write_set(data_dir, images="{split}/images", labels="{split}/labels", table=TABLE):
    data_dir.mkdir()
    for split, names in (("train", ["a", "b", "north/a"]), ("dev", ["c"])):
        for seed, name in enumerate(names):
            write_pair(data_dir / images.format(split=split), data_dir / labels.format(split=split), name, seed=seed)
    if table is not None:
        (data_dir / "labels.yaml").write_text(table)
    return data_dir


@pytest.fixture
def own(tmp_path):
    return write_set(tmp_path / "own")


def check_pixels(data_dir, dataset, images, labels):
    assert dataset.column_names == ["image", "label_map", "image_id"]
    assert dataset["image_id"][:] == ["a", "b", "north/a"]
    for row in dataset:
        picture = PIL.Image.open(data_dir / images / f"{row['image_id']}.jpg")
        assert row["image"].tobytes() == picture.convert("RGB").tobytes()
        raw = np.asarray(PIL.Image.open(data_dir / labels / f"{row['image_id']}.png"))
        assert np.asarray(row["label_map"]).tolist() == [[TRAIN_ID[raw_id] for raw_id in line] for line in raw.tolist()]


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        ("{split}/images", "{split}/labels", False),
        ("images/{split}", "labels/{split}", False),
        ("photos/2024/{split}", "masks_{split}/ids", True),
    ],
)
def test_layouts(tmp_path, images, labels, named):
    table = f"{TABLE}images: {images}\nlabels: {labels}\n" if named else TABLE
    data_dir = write_set(tmp_path / "own", images, labels, table)
    dataset = load(data_dir)
    check_pixels(data_dir, dataset, images.format(split="train"), labels.format(split="train"))
    assert label_space_of(dataset).names == ("road", "car")
    assert load(data_dir, "dev")["image_id"][:] == ["c"]


def test_table_elsewhere_and_registered_space(own, tmp_path):
    (own / "labels.yaml").rename(tmp_path / "table.yaml")
    assert label_space_of(load(own, label_space=tmp_path / "table.yaml")).name == "table"
    for file in (own / "train" / "labels").rglob("*.png"):
        PIL.Image.fromarray(np.full((6, 8), 11, np.uint8)).save(file)
    dataset = load(own, label_space="camvid11")
    assert label_space_of(dataset).name == "camvid11"
    assert set(dataset[0]["label_map"].tobytes()) == {255}


def test_zip_and_streaming_give_the_same(own, tmp_path):
    def rows(dataset):
        return [(row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()) for row in dataset]

    expected = rows(load(own))
    assert rows(load(own, streaming=True)) == expected
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for file in own.rglob("*.*"):
            archive.write(file, file.relative_to(own))
    (tmp_path / "packed").mkdir()
    (tmp_path / "own.zip").rename(tmp_path / "packed" / "own.zip")
    assert rows(load(tmp_path / "packed")) == expected
    assert rows(load(tmp_path / "packed" / "own.zip")) == expected


def test_changed_table_is_seen(own):
    assert label_space_of(load(own)).names == ("road", "car")
    (own / "labels.yaml").write_text(TABLE.replace("road", "lane"))
    assert label_space_of(load(own)).names == ("lane", "car")


def test_absent_split_lists_those_there(own):
    with pytest.raises(DataError, match="Unknown split of folder: 'val'; known: dev, train"):
        load(own, "val")


def test_folder_of_one_kind_is_no_split(own):
    shutil.rmtree(own / "train" / "labels")
    with pytest.raises(DataError, match="'train'; known: dev"):
        load(own)


def test_split_in_both_layouts_is_refused(own):
    write_pair(own / "images" / "train", own / "labels" / "train", "z")
    with pytest.raises(DataError, match="the split 'train' twice, in train/images and images/train"):
        load(own)


def test_no_split_says_what_should_lie_there(own):
    shutil.rmtree(own / "train")
    shutil.rmtree(own / "dev")
    with pytest.raises(DataError, match=r"holds no split: \{split\}/images/ with \{split\}/labels/ or images/"):
        load(own)
    (own / "labels.yaml").write_text(TABLE + "images: p/{split}\nlabels: m/{split}\n")
    with pytest.raises(DataError, match=r"holds no split: p/\{split\}/ with m/\{split\}/ should"):
        load(own)


def test_missing_table_is_asked_for(own):
    (own / "labels.yaml").unlink()
    with pytest.raises(DataError, match=r"own/labels\.yaml is missing.*names: \[road, car, person\]"):
        load(own)


def test_wrong_level_suggests_the_right_one(own):
    with pytest.raises(DataError, match=f"{own} looks right"):
        load(own.parent)
    with pytest.raises(DataError, match=f"{own} looks right"):
        load(own / "dev")
    with pytest.raises(DataError, match=f"{own} looks right"):
        load(own.parent, label_space=own / "labels.yaml")


@pytest.mark.parametrize(
    ("folder", "kind"), [("labels", r"Picture .*b\.jpg \(exp.*b\.png"), ("images", r"Label .*b\.png \(exp.*b\.\*")]
)
def test_file_without_partner_is_named(own, folder, kind):
    next((own / "train" / folder).glob("b.*")).unlink()
    with pytest.raises(DataError, match=f"{kind}"):
        load(own)


def test_pictures_that_differ_in_the_suffix_only(own):
    shutil.copy(own / "train" / "images" / "a.jpg", own / "train" / "images" / "a.PNG")
    with pytest.raises(DataError, match=r"a\.PNG and .*a\.jpg differ in the suffix only"):
        load(own)


def test_jpeg_label_maps_are_refused(own):
    label_map = own / "train" / "labels" / "b.png"
    PIL.Image.open(label_map).save(label_map.with_suffix(".JPG"), format="JPEG")
    label_map.unlink()
    with pytest.raises(DataError, match=r"b\.JPG \(1 such in train/labels/\) is in a format that changes the ids"):
        load(own)


def test_other_files_are_passed_over(own):
    for name in ("Thumbs.db", ".DS_Store", "._a.jpg", "notes.txt"):
        (own / "train" / "images" / name).write_bytes(b"x")
    assert len(load(own)) == 3


def test_empty_split(own):
    for file in [*(own / "dev").rglob("c.*")]:
        file.unlink()
    with pytest.raises(DataError, match="hold no pictures"):
        load(own, "dev")


def test_label_maps_coded_by_colour(tmp_path):
    data_dir = tmp_path / "lawns"
    write_pair(data_dir / "images" / "train", data_dir / "labels" / "train", "a")
    coded = np.array([[[0, 255, 0], [0, 0, 0], [9, 9, 9]]], np.uint8)
    for folder in ("images", "labels"):
        PIL.Image.fromarray(coded).save(data_dir / folder / "train" / "a.png")
    (data_dir / "images" / "train" / "a.jpg").unlink()
    (data_dir / "labels.yaml").write_text(
        'names:\n  lawn: {colours: "#00ff00"}\n  path: {colours: [9, 9, 9]}\nignore: "#000000"\n'
    )
    assert list(load(data_dir)[0]["label_map"].tobytes()) == [0, 255, 1]


def test_home_folder_is_expanded(own, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(own).parent))
    assert len(load("~/own")) == 3
