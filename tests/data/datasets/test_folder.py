import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.archive import DataFolder
from revhrnet_hf.data.datasets.folder import Folder
from revhrnet_hf.data.label_space import find_label_space
from revhrnet_hf.errors import DataError
from revhrnet_hf.images import SUFFIXES

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
        image = PIL.Image.open(data_dir / images / f"{row['image_id']}.jpg")
        assert row["image"].tobytes() == image.convert("RGB").tobytes()
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


def write_sequences(data_dir, splits, more=""):
    """Two folders a split with files of the same names, and one without label maps."""
    for seed, (split, place, name) in enumerate((split, place, name) for split in splits for place in "mn" for name in "ab"):
        write_pair(data_dir / split / place / "rgb", data_dir / split / place / "gt", name, seed=seed)
    (data_dir / splits[0] / "o" / "rgb").mkdir(parents=True)
    (data_dir / "labels.yaml").write_text(TABLE + 'images: "{split}/*/rgb"\nlabels: "{split}/*/gt"\n' + more)


def test_a_star_stands_for_folders_of_any_name(tmp_path):
    write_sequences(tmp_path, ["train", "val"])
    for split in ("train", "val"):
        rows = load(tmp_path, split)
        assert rows["image_id"][:] == ["m/a", "m/b", "n/a", "n/b"]
        for row in rows:
            place, name = row["image_id"].split("/")
            raw = np.asarray(PIL.Image.open(tmp_path / split / place / "gt" / f"{name}.png"))
            assert np.asarray(row["label_map"]).tolist() == [[TRAIN_ID[raw_id] for raw_id in line] for line in raw.tolist()]


def test_a_share_of_what_a_star_finds_is_held_out(tmp_path):
    write_sequences(tmp_path, ["x", "y"], "val_fraction: 0.25\n")
    found = {split: load(tmp_path, split)["image_id"][:] for split in ("train", "val")}
    assert [len(ids) for ids in found.values()] == [6, 2]
    expected = [f"{split}/{place}/{name}" for split in "xy" for place in "mn" for name in "ab"]
    assert sorted(found["train"] + found["val"]) == expected


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


@pytest.mark.parametrize("lacking", ["images", "labels"])
def test_folder_of_one_kind_is_no_split_of_a_table_either(tmp_path, lacking):
    own = write_set(tmp_path / "own", "p/{split}", "m/{split}", TABLE + "images: p/{split}\nlabels: m/{split}\n")
    shutil.rmtree(own / {"images": "p", "labels": "m"}[lacking] / "train")
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
    with pytest.raises(DataError, match=r"holds no split: according to the label table, p/\{split\}/ with m/\{split\}/ should"):
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
    ("folder", "kind"), [("labels", r"Image .*b\.jpg \(exp.*b\.png"), ("images", r"Label .*b\.png \(exp.*b\.\*")]
)
def test_file_without_partner_is_named(own, folder, kind):
    next((own / "train" / folder).glob("b.*")).unlink()
    with pytest.raises(DataError, match=f"{kind}"):
        load(own)


def test_images_that_differ_in_the_suffix_only(own):
    shutil.copy(own / "train" / "images" / "a.jpg", own / "train" / "images" / "a.PNG")
    with pytest.raises(DataError, match=r"a\.PNG and .*a\.jpg are both called .a. and differ only in ending"):
        load(own)


def test_jpeg_label_maps_are_refused(own):
    label_map = own / "train" / "labels" / "b.png"
    PIL.Image.open(label_map).save(label_map.with_suffix(".JPG"), format="JPEG")
    label_map.unlink()
    with pytest.raises(DataError, match=r"b\.JPG \(1 such in train/labels/\) is in a format that changes the ids"):
        load(own)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_have_the_suffixes_that_predict_reads(own, suffix):
    image = own / "train" / "images" / "b.jpg"
    image.rename(image.with_suffix(suffix))  # the content decides how it is read
    assert load(own)["image_id"][:] == ["a", "b", "north/a"]
    assert load(own)[1]["image"].size == (8, 6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_label_maps_have_lossless_suffixes(own, suffix):
    label_map = own / "train" / "labels" / "b.png"
    label_map.rename(label_map.with_suffix(suffix))
    if suffix in (".bmp", ".gif", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"):
        assert len(load(own)) == 3
    else:
        with pytest.raises(DataError, match=rf"b\{suffix} \(1 such in train/labels/\) is in a format that changes the ids"):
            load(own)


def test_other_files_are_passed_over(own):
    for name in ("Thumbs.db", ".DS_Store", "._a.jpg", "notes.txt"):
        (own / "train" / "images" / name).write_bytes(b"x")
    assert len(load(own)) == 3


def test_empty_split(own):
    for file in [*(own / "dev").rglob("c.*")]:
        file.unlink()
    with pytest.raises(DataError, match="hold no images"):
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


def ids_of(data_dir, *splits, **options):
    return {split: load(data_dir, split, **options)["image_id"][:] for split in splits}


def write_files(data_dir, images, labels, label_name="{}.png", names="abcdefghij", table="names: [road, car]\n"):
    """Pairs whose label map holds nothing but the pair's number, modulo 2."""
    for number, name in enumerate(names):
        for folder, file, array in (
            (images, f"{name}.jpg", np.full((4, 6, 3), 5 * number, np.uint8)),
            (labels, label_name.format(name), np.full((4, 6), number % 2, np.uint8)),
        ):
            (data_dir / folder / file).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(array).save(data_dir / folder / file)
    if table:
        (data_dir / "labels.yaml").write_text(table)
    return data_dir


def check_pairs(dataset, names="abcdefghij"):
    """Each image has its own label map."""
    assert len(dataset) > 0
    for row in dataset:
        number = names.index(row["image_id"])
        assert abs(int(np.asarray(row["image"]).mean()) - 5 * number) <= 2
        assert set(row["label_map"].tobytes()) == {number % 2}


@pytest.mark.parametrize("images", ["images", "JPEGImages", "imgs", "img_dir", "Image"])
@pytest.mark.parametrize("labels", ["masks", "annotations", "SegmentationClass", "Labels", "ann_dir"])
@pytest.mark.parametrize("layout", ["{split}/{folder}", "{folder}/{split}"])
def test_folders_by_other_names(tmp_path, images, labels, layout):
    places = [layout.format(split="train", folder=folder) for folder in (images, labels)]
    data_folder = DataFolder(write_files(tmp_path / "own", *places, names="ab"))
    assert [tuple(pair) for pair in Folder.list_split(data_folder, "train", str(tmp_path / "own" / "labels.yaml"))] == [
        (f"{places[0]}/{i}.jpg", f"{places[1]}/{i}.png", i, None) for i in "ab"
    ]


@pytest.mark.parametrize("label_name", ["{}_mask.png", "{}_L.png", "{}.jpg.png", "{}-label.png", "{}_GT.png"])
def test_suffixes_of_label_maps(tmp_path, label_name):
    own = write_files(tmp_path / "own", "train/images", "train/masks", label_name)
    dataset = load(own)
    check_pairs(dataset)
    assert dataset["image_id"][:] == list("abcdefghij")
    (own / "train" / "masks" / label_name.format("c")).unlink()
    with pytest.raises(DataError, match=rf"without its label map, 1 of 10: .*c\.jpg \(expected .*/{label_name.format('c')}\)"):
        load(own)


def test_name_itself_goes_before_a_suffix(tmp_path):
    own = write_files(tmp_path / "own", "train/images", "train/masks", names=["a", "a_mask", "a_mask_mask", "b"])
    check_pairs(load(own), ["a", "a_mask", "a_mask_mask", "b"])


def test_two_label_maps_of_an_image_are_refused(tmp_path):
    own = write_files(tmp_path / "own", "train/images", "train/masks")
    shutil.copy(own / "train/masks/b.png", own / "train/masks/b_mask.png")
    with pytest.raises(DataError, match=r"masks/b\.png and .*masks/b_mask\.png are both called 'b'.*label_suffix"):
        load(own)
    (own / "labels.yaml").write_text("names: [road, car]\nlabel_suffix: _mask\n")
    with pytest.raises(DataError, match=r"without its label map, 9 of 10: .*a\.jpg \(expected .*a_mask\.png"):
        load(own)


def test_suffixes_that_the_table_names(tmp_path):
    """As DeepGlobe has it: both kinds in one folder, each with its suffix; and a third kind of file, which is passed over."""
    table = "names: [road, car]\nimages: '{split}'\nlabels: '{split}'\nimage_suffix: _sat\nlabel_suffix: _mask\n"
    own = write_files(tmp_path / "own", "train", "train", "{}_mask.png", table=table)
    for file in (own / "train").glob("*.jpg"):
        shutil.copy(file, file.with_name(f"{file.stem}_colour.png"))
        file.rename(file.with_name(f"{file.stem}_sat.jpg"))
    check_pairs(load(own))
    (own / "labels.yaml").write_text(table.replace("image_suffix: _sat\nlabel_suffix: _mask\n", ""))
    with pytest.raises(DataError, match=r"Images and label maps are both in .*own/train: say .*label_suffix: _mask"):
        load(own)


def test_frames_follow_each_other_as_they_are_numbered(tmp_path):
    """Blocks of consecutive frames (`--interval_block`) and parts such as train[:80%] go by this order."""
    write_files(tmp_path, "images/train", "masks/train", names=[f"frame_{number}" for number in (10, 2, 1, 11, 9)])
    assert ids_of(tmp_path, "train")["train"] == [f"frame_{number}" for number in (1, 2, 9, 10, 11)]


def test_names_in_either_form_of_unicode(tmp_path):
    own = write_files(tmp_path / "own", "train/images", "train/masks", names=["Stra\u00dfe", "f\u00fcr"])
    composed = own / "train" / "masks" / "f\u00fcr.png"
    composed.rename(composed.with_name("fu\u0308r.png"))
    (own / "splits").mkdir()
    assert load(own)["image_id"][:] == ["Stra\u00dfe", "f\u00fcr"]
    check_pairs(load(own), ["Stra\u00dfe", "f\u00fcr"])


def test_hidden_files_in_a_dataset_is_skipped(tmp_path):
    own = write_files(tmp_path / "own", "images/train", "labels/train")
    for place in ("images/train", "labels/train", "images", "."):
        for litter in (
            "._a.png",
            "Thumbs.db",
            "desktop.ini",
            ".ipynb_checkpoints/a-checkpoint.png",
            "@eaDir/a.png",
            "__MACOSX/a.png",
        ):
            (own / place / litter).parent.mkdir(exist_ok=True)
            (own / place / litter).write_bytes(b"no image")
    assert ids_of(own, "train") == {"train": list("abcdefghij")}
    with pytest.raises(DataError, match="known: train"):
        load(own, "@eaDir")


def test_val_fraction(tmp_path):
    own = write_files(tmp_path / "own", "images", "masks", names=[f"{k:03d}" for k in range(50)])
    with pytest.raises(
        DataError, match=r"images and .*masks are not divided into splits: put val_fraction: 0\.2 .*train\.txt and"
    ):
        load(own)
    table = "names: [road, car]\nval_fraction: 0.2\n"
    (own / "labels.yaml").write_text(table)
    first = ids_of(own, "train", "val")
    assert len(first["val"]) == 10 and sorted(first["train"] + first["val"]) == [f"{k:03d}" for k in range(50)]
    # By the definition in pairing.py: the first fifth in the order of a hash of seed and name.
    order = sorted(first["train"] + first["val"], key=lambda i: hashlib.sha256(f"0\0{i}".encode()).hexdigest())
    assert first["val"] == sorted(order[:10])
    (own / "labels.yaml").write_text(f"{table}val_seed: 1\n")
    assert ids_of(own, "val")["val"] != first["val"]
    check_pairs(load(own, "val"), [f"{k:03d}" for k in range(50)])


def test_val_fraction_holds_one_out_at_least_and_never_all(tmp_path):
    for fraction, count in ((0.01, 1), (0.99, 2)):
        table = f"names: [road, car]\nval_fraction: {fraction}\n"
        own = write_files(tmp_path / str(count), "images", "masks", names="abc", table=table)
        assert len(load(own, "val")) == count
    with pytest.raises(DataError, match="needs two images or more"):
        load(write_files(tmp_path / "one", "images", "masks", names="a", table=table))


def test_val_fraction_takes_from_train_and_leaves_test_alone(tmp_path):
    table = "names: [road, car]\nval_fraction: 0.5\n"
    own = write_files(tmp_path / "own", "images/train", "labels/train", table=table)
    write_files(own, "images/test", "labels/test", names="xyz", table=None)
    found = ids_of(own, "train", "val", "test")
    assert sorted(found["train"] + found["val"]) == list("abcdefghij") and found["test"] == ["x", "y", "z"]
    write_files(own, "images/val", "labels/val", names="xyz", table=None)
    with pytest.raises(
        DataError, match=r"has a split 'val' \(images/val\), and the label table's val_fraction would make one too"
    ):
        load(own)


def test_val_fraction_with_folders_that_are_no_splits(tmp_path):
    table = "names: [road, car]\nval_fraction: 0.5\n"
    own = write_files(tmp_path / "own", "images", "labels", names=["north/a", "north/b", "south/a"], table=table)
    found = ids_of(own, "train", "val")
    assert sorted(found["train"] + found["val"]) == ["north/a", "north/b", "south/a"]
    with pytest.raises(DataError, match="known: train, val"):
        load(own, "north")


HALF = "names: [road, car]\nval_fraction: 0.5\n"


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("train2017", "test2017"), ("TRAINING", "Testing")])
@pytest.mark.parametrize("layout", ["{folder}/{split}", "{split}/{folder}"])
def test_val_fraction_knows_train_by_any_spelling(tmp_path, train, test, layout):
    own = tmp_path / "own"
    for split, names in ((train, "abcd"), (test, "xyz")):
        folders = [layout.format(split=split, folder=folder) for folder in ("images", "masks")]
        write_files(own, *folders, names=names, table=HALF)
    found = ids_of(own, "train", "val", test)
    assert sorted(found["train"] + found["val"]) == list("abcd") and found[test] == ["x", "y", "z"]
    with pytest.raises(DataError, match=f"known: {test}, train, val"):
        load(own, train)


def test_val_fraction_refuses_a_val_by_any_spelling(tmp_path):
    own = write_files(tmp_path / "own", "images/Val", "masks/Val", table=HALF)
    write_files(own, "images/Train", "masks/Train", table=None)
    with pytest.raises(DataError, match=r"has a split 'Val' \(images/Val\), and .*val_fraction would make one too"):
        load(own)


@pytest.mark.parametrize("test", ["test", "Test", "valid", "test_2017"])
def test_val_fraction_never_takes_from_a_split_for_scoring(tmp_path, test):
    """Beside folders that are no splits."""
    own = write_files(tmp_path / "own", "images", "masks", names=["north/a", "north/b", "south/a"], table=HALF)
    write_files(own, f"images/{test}", f"masks/{test}", names="xyz", table=None)
    found = ids_of(own, "train", "val", test)
    assert sorted(found["train"] + found["val"]) == ["north/a", "north/b", "south/a"] and found[test] == ["x", "y", "z"]


def test_val_fraction_takes_from_all_splits_if_none_is_train(tmp_path):
    own = tmp_path / "own"
    for city, names in (("city_a", "abcdefgh"), ("city_b", "a"), ("test", "xyz")):
        write_files(own, f"{city}/images", f"{city}/masks", names=names, table=HALF)
    found = ids_of(own, "train", "val", "test")
    assert sorted(found["train"] + found["val"]) == [*(f"city_a/{name}" for name in "abcdefgh"), "city_b/a"]
    assert len(found["val"]) == 4 and found["test"] == ["x", "y", "z"]
    row = next(row for split in ("train", "val") for row in load(own, split) if row["image_id"] == "city_a/b")
    assert set(row["label_map"].tobytes()) == {1}
    for city in ("city_a", "city_b"):
        (own / city).rename(own / f"test_{'2001' if city == 'city_a' else '2002'}")
    with pytest.raises(DataError, match=r"the splits test, test_2001, test_2002, and none to train on, .*call one of them train"):
        load(own)


def test_val_fraction_leaves_out_what_a_list_holds(tmp_path):
    own = write_files(tmp_path / "own", "images", "labels", table="names: [road, car]\nval_fraction: 0.5\n")
    (own / "test.txt").write_text("a\nb\n")
    found = ids_of(own, "train", "val", "test")
    assert found["test"] == ["a", "b"] and sorted(found["train"] + found["val"]) == list("cdefghij")


LINES = ["c", "a.jpg", "images/b.jpg", "./d", "/home/me/own/images/e.jpg", r"C:\own\images\f.jpg", "images\\g", ""]


@pytest.mark.parametrize("place", ["train.txt", "splits/train.txt", "ImageSets/Segmentation/train.txt", "lists/train.txt"])
def test_list_files(tmp_path, place):
    own = write_files(tmp_path / "own", "images", "labels")
    (own / place).parent.mkdir(parents=True, exist_ok=True)
    (own / place).write_bytes("\r\n".join(["\ufeff# what is trained on", *LINES]).encode())
    (own / "requirements.txt").write_text("numpy\n")
    dataset = load(own)
    assert dataset["image_id"][:] == list("cabdefg")
    check_pairs(dataset)
    with pytest.raises(DataError, match=r"known: train\.$"):
        load(own, "requirements")


@pytest.mark.parametrize("between", ["\t", " ", ","])
@pytest.mark.parametrize("above", ["/data", "/my data"])
def test_list_of_pairs_that_are_called_differently(tmp_path, between, above):
    own = write_files(tmp_path / "own", "images", "masks", names=["my cat", "dog"])
    (own / "masks" / "dog.png").rename(own / "masks" / "17.png")
    (own / "train.txt").write_text(f"my cat\n{above}/images/dog.jpg{between}{above}/masks/17.png\n")
    dataset = load(own)
    assert dataset["image_id"][:] == ["my cat", "dog"]
    check_pairs(dataset, ["my cat", "dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na.jpg\n", r"train\.txt names 'a' twice, in lines 1 and 3: take one out"),
        (
            "a\nzz\n../../secret.jpg\n",
            r"lines that name no image in .*images: 'zz' \(line 2\), '\.\./\.\./secret\.jpg' \(line 3\)",
        ),
        ("other/a.jpg\n", r"'other/a\.jpg' \(line 1\)"),  # not the a.jpg that is there
        ("\n \n", r"train\.txt is empty"),
        ("\n".join(f"z{k}" for k in range(5)), r"'z2' \(line 3\) and 2 more"),
    ],
)
def test_mistakes_in_list_files(tmp_path, text, message):
    own = write_files(tmp_path / "own", "images", "labels")
    (own / "train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load(own)


def test_ambiguity_names_both(tmp_path):
    own = write_files(tmp_path / "own", "images/train", "labels/train")
    (own / "train.txt").write_text("".join(f"images/train/{i}.jpg\n" for i in "abcdefghij"))
    assert ids_of(own, "train") == {"train": list("abcdefghij")}  # both lists are equal
    (own / "train.txt").write_text("train/a\n")
    with pytest.raises(DataError, match=r"the split 'train' twice, in images/train and train\.txt: take .* or name the folders"):
        load(own)
    (own / "train.txt").unlink()
    write_files(own, "images/train", "masks/train", table=None, names="ab")
    with pytest.raises(DataError, match="the split 'train' twice, in labels/train and masks/train"):
        load(own)
    (own / "labels.yaml").write_text("names: [road, car]\nimages: images/{split}\nlabels: labels/{split}\n")
    check_pairs(load(own))
    shutil.rmtree(own / "masks")
    (own / "masks" / "train").mkdir(parents=True)  # without label maps
    (own / "labels.yaml").write_text("names: [road, car]\n")
    check_pairs(load(own))


def test_unsplit_folders_that_the_table_names(tmp_path):
    table = "names: [road, car]\nimages: .\nlabels: out/ids\nval_fraction: 0.3\n"
    own = write_files(tmp_path / "own", ".", "out/ids", table=table)
    found = ids_of(own, "train", "val")
    assert len(found["val"]) == 3 and sorted(found["train"] + found["val"]) == list("abcdefghij")
    (own / "labels.yaml").write_text(table.replace("out/ids", "elsewhere"))
    with pytest.raises(DataError, match="holds no images for the label table's val_fraction"):
        load(own)


VOC_COLOURS = {"background": (0, 0, 0), "cat": (128, 0, 0), "dog": (0, 128, 0)}


def write_cvat(folder, lists, with_table=True):
    """An export of CVAT's "Segmentation mask 1.1" with images."""
    for number, name in enumerate("abcdef"):
        colours = np.full((4, 6, 3), list(VOC_COLOURS.values())[number % 3], np.uint8)
        for place, image in (("JPEGImages", np.full((4, 6, 3), 20 * number)), ("SegmentationClass", colours)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(image.astype(np.uint8)).save(folder / place / f"{name}.png")
    shutil.copytree(folder / "SegmentationClass", folder / "SegmentationObject")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    if with_table:
        lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in VOC_COLOURS.items()]
        (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    return folder


def zipped(folder, archive, root="", separator="/"):
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.rglob("*"):
            if file.is_file():
                packed.writestr(separator.join([*([root] if root else []), *file.relative_to(folder).parts]), file.read_bytes())
    return archive


@pytest.mark.parametrize("packing", ["folder", "zip", "zip of a folder", "zip of a folder by Windows"])
def test_export_of_cvat(tmp_path, packing):
    own = write_cvat(tmp_path / "cvat", {"train": "abcd", "val": "ef"})
    if packing != "folder":
        rooted = {"root": "task_7" if "of" in packing else "", "separator": "\\" if "Windows" in packing else "/"}
        own = zipped(own, tmp_path / "task.zip", **rooted)
    assert ids_of(own, "train", "val") == {"train": list("abcd"), "val": ["e", "f"]}
    dataset = load(own)
    assert label_space_of(dataset).names == tuple(VOC_COLOURS)
    assert [set(row["label_map"].tobytes()) for row in dataset] == [{0}, {1}, {2}, {0}]


def test_export_of_cvat_with_one_list(tmp_path):
    own = write_cvat(tmp_path / "cvat", {"default": "abcdef"})
    with pytest.raises(DataError, match="known: default"):
        load(own)
    (own / "labels.yaml").write_text("names: labelmap.txt\nval_fraction: 0.34\n")
    found = ids_of(own, "train", "val")
    assert len(found["val"]) == 2 and sorted(found["train"] + found["val"]) == list("abcdef")


def test_export_in_vocs_layout(tmp_path):
    own = write_cvat(tmp_path / "voc", {"train": "abcd", "val": "ef", "trainval": "abcdef"}, with_table=False)
    for file in (own / "SegmentationClass").iterdir():
        ids = PIL.Image.fromarray(np.full((4, 6), "abcdef".index(file.stem) % 3, np.uint8))
        ids.putpalette(sum(VOC_COLOURS.values(), ()))
        ids.save(file)
    (own / "labels.yaml").write_text("names: [background, cat, dog]\n")
    assert ids_of(own, "val", "trainval") == {"val": ["e", "f"], "trainval": list("abcdef")}
    assert [set(row["label_map"].tobytes()) for row in load(own, "val")] == [{1}, {2}]


def test_zip_of_a_folder_with_a_table_beside_it(tmp_path):
    own = write_files(tmp_path / "own", "images/train", "labels/train", table=None)
    (tmp_path / "packed").mkdir()
    zipped(own, tmp_path / "packed" / "own.zip", root="own")
    (tmp_path / "packed" / "labels.yaml").write_text("names: [road, car]\n")
    check_pairs(load(tmp_path / "packed"))
    zipped(own, tmp_path / "packed" / "other.zip", root="other")
    with pytest.raises(DataError, match=r"archives with other/ and own/, and it is not clear which one is meant"):
        load(tmp_path / "packed")


def test_zip_of_an_unsplit_folder_with_a_table_beside_it(tmp_path):
    own = write_files(tmp_path / "own", "images", "masks", table=None)
    (tmp_path / "packed").mkdir()
    zipped(own, tmp_path / "packed" / "own.zip", root="own")
    (tmp_path / "packed" / "labels.yaml").write_text("names: [road, car]\nval_fraction: 0.2\n")
    found = ids_of(tmp_path / "packed", "train", "val")
    assert len(found["val"]) == 2 and sorted(found["train"] + found["val"]) == list("abcdefghij")


def test_zip_of_a_published_dataset_with_a_folder_in_it(mini_camvid, tmp_path):
    (tmp_path / "packed").mkdir()
    zipped(mini_camvid, tmp_path / "packed" / "CamVid.zip", root="CamVid")
    expected = load_segmentation_dataset("camvid", mini_camvid, "val")
    for place in (tmp_path / "packed", tmp_path / "packed" / "CamVid.zip"):
        seen = load_segmentation_dataset("camvid", place, "val")
        assert [row["label_map"].tobytes() for row in seen] == [row["label_map"].tobytes() for row in expected]


def test_pairs_deleted_beside_the_zip_stay_deleted(tmp_path):
    own = write_files(tmp_path / "own", "images/train", "labels/train")
    zipped(own, own / "own.zip")
    for file in (own / "images/train/b.jpg", own / "labels/train/b.png"):
        file.unlink()
    assert ids_of(own, "train") == {"train": list("acdefghij")}


@pytest.mark.parametrize("split", ["val-2020", "my split", "2020.val", "wörld", "train[:2]", "a+b"])
@pytest.mark.parametrize("streaming", [False, True])
def test_any_name_of_a_split(tmp_path, split, streaming):
    own = write_files(tmp_path / "own", f"{split}/images", f"{split}/labels", names="ab")
    write_files(own, "other/images", "other/labels", names="cde", table=None)
    check_pairs(load(own, split, streaming=streaming) if not streaming else list(load(own, split, streaming=True)))
    assert [row["image_id"] for row in load(own, split, streaming=streaming)] == ["a", "b"]


def test_folder_with_colons_in_its_path(tmp_path):
    own = write_files(tmp_path / "a::b" / "own", "train/images", "train/labels")
    check_pairs(load(own))
    check_pairs(list(load(own, streaming=True)))
    check_pairs(load(zipped(own, tmp_path / "a::b" / "own.zip")))


def test_folder_that_is_something_else(tmp_path):
    """Neither a folder beside nor one that merely lies above is suggested."""
    write_files(tmp_path / "train", "images", "labels", table=None)
    (tmp_path / "labels.yaml").write_text("names: [road, car]\n")
    (tmp_path / "thesis" / "chapters").mkdir(parents=True)
    (tmp_path / "thesis" / "thesis.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "thesis")
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'thesis'} holds no images with label maps") and "looks right" not in said
    assert "is not" not in said
    for name in ("one", "two"):
        write_files(tmp_path / "thesis" / name, "train/images", "train/labels")
    with pytest.raises(DataError, match=r"thesis/one, .*thesis/two look right: give one of them"):
        load(tmp_path / "thesis")


def test_errors_say_where_an_id_or_a_colour_goes(tmp_path):
    own = write_files(tmp_path / "own", "train/images", "train/labels")
    PIL.Image.fromarray(np.full((4, 6), 9, np.uint8)).save(own / "train/labels/a.png")
    with pytest.raises(
        DataError, match=r"holds the ids 9, .*add them to the label table \(labels\.yaml\), to a class or under ignore:"
    ):
        load(own)[0]
    PIL.Image.fromarray(np.full((4, 6, 3), (9, 8, 7), np.uint8)).save(own / "train/labels/a.png")
    with pytest.raises(DataError, match=r"has ids only: .* each class its colour in the field colours:"):
        load(own)[0]
    (own / "labels.yaml").write_text('names:\n  road: {ids: 0, colours: "#000001"}\n  car: {ids: 1, colours: "#000002"}\n')
    with pytest.raises(DataError, match=r"holds the colours \(9, 8, 7\), .*to a class \(field colours:\) or under ignore:"):
        load(own)[0]


def test_folder_above_without_a_table_is_not_suggested(tmp_path):
    """Seen from above, any folder of images and masks looks like a split."""
    own = write_files(tmp_path / "own", "images", "masks", table=None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "table.yaml").write_text("names: [road, car]\n")
    with pytest.raises(DataError, match="are not divided into splits: put val_fraction") as caught:
        load(own, label_space=tmp_path / "elsewhere" / "table.yaml")
    assert "looks right" not in str(caught.value)


def listed_by(data_dir, line):
    data_dir.mkdir()
    for k, name in enumerate(("f0", "f1")):
        write_pair(data_dir / "images", data_dir / "masks", name, ".png", seed=k)
    (data_dir / "labels.yaml").write_text(TABLE)
    (data_dir / "train.txt").write_text(f"{line}\n")
    return data_dir


@pytest.mark.parametrize(
    "line",
    [
        "{0}/images/f0.png {0}/masks/f0.png",
        "{0}/images/f0.png",
        "../other/images/f0.png",
        "{0}/images/f0",
        "images/f0.png {0}/masks/f0.png",
    ],
)
def test_a_list_that_names_existing_files_elsewhere(tmp_path, line):
    write_pair(tmp_path / "other" / "images", tmp_path / "other" / "masks", "f0", ".png", seed=5)
    own = listed_by(tmp_path / "own", line.format(tmp_path / "other"))
    with pytest.raises(DataError, match=r"train\.txt names .*f0.*leads outside the data folder"):
        load(own)
    shutil.rmtree(tmp_path / "other")  # a list written on another machine
    assert load(own)["image_id"][:] == ["f0"]


def test_a_list_that_names_its_own_files_by_another_way(tmp_path):
    own = listed_by(tmp_path / "own", f"{tmp_path}/link/images/f0.png {tmp_path}/link/masks/f0.png")
    (tmp_path / "link").symlink_to(own)
    assert load(own)["image_id"][:] == ["f0"]


@pytest.mark.parametrize("top", ["", "export/"])
def test_a_table_beside_an_archive_that_holds_cvats(tmp_path, top):
    own = tmp_path / "own"
    own.mkdir()
    (own / "labels.yaml").write_text("names: labelmap.txt\n")
    with pytest.raises(DataError, match=r"line 1: there is no labelmap\.txt in .*own, nor in an archive there"):
        find_label_space(str(own / "labels.yaml"))
    with zipfile.ZipFile(own / "a.zip", "w") as packed:
        packed.writestr(f"{top}labelmap.txt", "road:1,2,3::\ncar:4,5,6::\n")
    assert find_label_space(str(own / "labels.yaml")).names == ("road", "car")


def test_links_that_lead_nowhere_are_missing_files(tmp_path):
    """Such as those into a disk that is not mounted: the images are not silently fewer."""
    own = write_files(tmp_path / "own", "images", "masks", names=["a", "b"])
    for folder in ("images", "masks"):
        (own / folder / "z.png").symlink_to(tmp_path / "gone" / folder / "z.png")
    (own / "train.txt").write_text("a\nb\nz\n")
    with pytest.raises(DataError, match=r"without its .*/z\.png"):
        load(own)
