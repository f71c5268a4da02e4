import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import Cityscapes, LabelSpace, get_label_space, load_segmentation_dataset
from revhrnet_hf.data.datasets.cityscapes import CATEGORIES, IMAGES, LABELS, instances_location
from revhrnet_hf.errors import DataError

SPLITS = ("train", "val", "train_extra", "train_coarse", "val_coarse")


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("cityscapes", data_dir, split, **options)


def pixels(row):
    return row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()


def file_of(data_dir, pattern):
    """The first file, in the dataset's order."""
    return min(data_dir.glob(pattern))


def save_ids(file, ids):
    PIL.Image.fromarray(ids).save(file)


def test_labels_are_the_published_table(published_table):
    table = published_table("cityscapes_labels.json")
    for label, row in zip(LABELS, table, strict=True):
        assert (label.name, label.raw_id, label.category) == (row["name"], row["id"], row["category"])
        assert (label.has_instances, list(label.colour)) == (row["hasInstances"], row["color"])
        assert label.train_id == (255 if row["ignoreInEval"] else row["trainId"])


def test_label_space_is_the_published_table(published_table):
    table = published_table("cityscapes_labels.json")
    space = get_label_space("cityscapes")
    scored = {row["trainId"]: row for row in table if not row["ignoreInEval"]}
    assert space.id2label == {train_id: scored[train_id]["name"] for train_id in range(19)}
    assert [list(colour) for colour in space.colours] == [scored[train_id]["color"] for train_id in range(19)]
    # −1, the licence plate, is 255 in an image of 8 bits.
    assert space.raw_ids == {row["id"] % 256: 255 if row["ignoreInEval"] else row["trainId"] for row in table}
    assert {category: len(names) for category, names in CATEGORIES.items()} == {
        category: sum(row["category"] == category for row in scored.values())
        for category in ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    }
    assert all(row["name"] in CATEGORIES[row["category"]] for row in scored.values())


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", [("train", "gtFine")]),
        ("trainval", [("train", "gtFine"), ("val", "gtFine")]),
        ("train_extra", [("train_extra", "gtCoarse")]),
        ("train_coarse", [("train", "gtCoarse")]),
        ("val_coarse", [("val", "gtCoarse")]),
    ],
)
def test_every_pixel_is_translated(mini_cityscapes, published_table, split, parts):
    train_id_of = {row["id"]: row["trainId"] for row in published_table("cityscapes_labels.json")}
    files = [file for folder, kind in parts for file in sorted((mini_cityscapes / IMAGES / folder).rglob("*.png"))]
    kinds = {folder: kind for folder, kind in parts}
    rows = list(load(mini_cityscapes, split))
    assert len(rows) == len(files) > 0
    for row, file in zip(rows, files, strict=True):
        folder, city = file.parts[-3:-1]
        stem = row["image_id"]
        assert file.name == f"{stem}_leftImg8bit.png"
        assert stem.startswith(f"{city}_")
        kind = kinds[folder]
        raw = PIL.Image.open(mini_cityscapes / kind / folder / city / f"{stem}_{kind}_labelIds.png")
        expected = [train_id_of[raw_id] for raw_id in np.asarray(raw).ravel().tolist()]
        assert np.asarray(row["label_map"]).ravel().tolist() == expected
        assert np.array_equal(np.asarray(row["image"]), np.asarray(PIL.Image.open(file)))


def test_licence_plates_and_unscored_ids_are_ignored(mini_cityscapes):
    raw = np.full((48, 96), 7, np.uint8)
    raw[0, :36] = [*range(34), 255, 7]
    save_ids(file_of(mini_cityscapes, "gtFine/train/aachen/*_labelIds.png"), raw)
    label_map = np.asarray(load(mini_cityscapes)[0]["label_map"])
    unscored = [*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 34]
    assert np.flatnonzero(label_map[0] == 255).tolist() == unscored
    assert np.unique(label_map).tolist() == [*range(19), 255]


@pytest.mark.parametrize("stray", [34, 254])
def test_stray_ids_name_the_file(mini_cityscapes, stray):
    file = file_of(mini_cityscapes, "gtFine/train/aachen/*_labelIds.png")
    save_ids(file, np.full((48, 96), stray, np.uint8))
    with pytest.raises(DataError, match=rf"{file.name} holds the ids {stray}, .*'cityscapes'.*has 0–33, 255"):
        load(mini_cityscapes)[0]


def test_negative_ids_are_no_class():
    space = LabelSpace("toy", ("a",), ((0, 0, 0),), {0: 0})
    with pytest.raises(DataError, match=r"x holds the ids -7, -1, "):
        space.train_ids(np.array([[0, -1, -7]], np.int32), "x")


def test_publishers_zip_files_hold_the_same(mini_cityscapes, tmp_path):
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    for name, folders in {
        "leftImg8bit_trainvaltest.zip": ("leftImg8bit/train", "leftImg8bit/val"),
        "leftImg8bit_trainextra.zip": ("leftImg8bit/train_extra",),
        "gtFine_trainvaltest.zip": ("gtFine",),
        "gtCoarse.zip": ("gtCoarse",),
    }.items():
        with zipfile.ZipFile(zipped / name, "w") as archive:
            archive.writestr("README", "text")
            for folder in folders:
                for file in sorted((mini_cityscapes / folder).rglob("*.*")):
                    archive.write(file, file.relative_to(mini_cityscapes))
    for split in SPLITS:
        unpacked = [pixels(row) for row in load(mini_cityscapes, split)]
        assert [pixels(row) for row in load(zipped, split)] == unpacked
        assert [pixels(row) for row in load(zipped, split, streaming=True)] == unpacked
    # The images are unpacked, the label maps are not.
    shutil.copytree(mini_cityscapes / IMAGES, zipped / IMAGES)
    for archive in zipped.glob("leftImg8bit*.zip"):
        archive.unlink()
    assert [pixels(row) for row in load(zipped, "val")] == [pixels(row) for row in load(mini_cityscapes, "val")]


@pytest.mark.parametrize("below", ["leftImg8bit", "gtFine/train", "leftImg8bit/train/aachen", ".."])
def test_wrong_level_suggests_the_right_one(mini_cityscapes, below):
    with pytest.raises(DataError, match=f"leftImg8bit/ and gtFine/.* should lie there.* But {mini_cityscapes} looks right"):
        load((mini_cityscapes / below).resolve())


def test_damaged_archive_far_above_is_not_the_error(mini_cityscapes):
    (mini_cityscapes.parent / "other.zip").write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"{mini_cityscapes} looks right"):
        load(mini_cityscapes / "leftImg8bit" / "train")


@pytest.mark.parametrize("lost", [("gtFine", "gtCoarse"), ("leftImg8bit",)])
def test_images_or_label_maps_alone_are_not_the_dataset(mini_cityscapes, lost):
    for folder in lost:
        shutil.rmtree(mini_cityscapes / folder)
    with pytest.raises(DataError, match=r"is not Cityscapes: leftImg8bit/ and gtFine/ .* should lie there"):
        load(mini_cityscapes)


def test_test_images_alone(mini_cityscapes):
    (mini_cityscapes / "leftImg8bit" / "val").rename(mini_cityscapes / "leftImg8bit" / "test")
    for folder in ("gtFine", "gtCoarse"):
        shutil.rmtree(mini_cityscapes / folder)
    images = load(mini_cityscapes, "test", unlabelled=True)
    assert len(images) == len(list((mini_cityscapes / "leftImg8bit" / "test").rglob("*.png"))) > 0
    with pytest.raises(DataError, match=r"has no split 'train' \(it needs leftImg8bit/train/ and gtFine/train/\)"):
        load(mini_cityscapes, "train")


def test_absent_split_lists_those_there(mini_cityscapes):
    shutil.rmtree(mini_cityscapes / "gtFine" / "train")
    for split in ("train", "trainval"):
        with pytest.raises(DataError, match=rf"no split '{split}' .*splits there: val, train_extra, train_coarse, val_coarse\."):
            load(mini_cityscapes, split)


@pytest.mark.parametrize(
    ("lost", "kind"), [("gtFine/train/*/*_labelIds.png", "Image"), ("leftImg8bit/train/*/*.png", "Label map")]
)
def test_file_without_partner_is_named(mini_cityscapes, lost, kind):
    file = file_of(mini_cityscapes, lost)
    file.unlink()
    with pytest.raises(DataError, match=rf"{kind} without its .*, 1 of 5: .*expected {file}"):
        load(mini_cityscapes)


def test_label_maps_of_train_ids_alone_are_refused(mini_cityscapes):
    for file in mini_cityscapes.glob("gtFine/train/*/*_labelIds.png"):
        file.rename(file.with_name(file.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(DataError, match=r"aachen_000000_000019_gtFine_labelTrainIds\.png\) but no \*_gtFine_labelIds\.png: put"):
        load(mini_cityscapes)


def test_label_maps_of_train_ids_beside_the_publishers_do_not_matter(mini_cityscapes):
    before = [pixels(row) for row in load(mini_cityscapes)]
    for file in mini_cityscapes.glob("gtFine/train/*/*_labelIds.png"):
        shutil.copy(file, file.with_name(file.name.replace("labelIds", "labelTrainIds")))
    assert [pixels(row) for row in load(mini_cityscapes)] == before


def test_stray_files_are_passed_over(mini_cityscapes):
    ids = load(mini_cityscapes)["image_id"][:]
    city = mini_cityscapes / IMAGES / "train" / "aachen"
    for name in ("Thumbs.db", "._aachen_000000_000019_leftImg8bit.png", "preview.png"):
        (city / name).write_bytes(b"stray")
    (city.parent / "trainImages.txt").write_text("stray")
    assert load(mini_cityscapes)["image_id"][:] == ids


def test_folder_without_images(mini_cityscapes):
    for folder in (mini_cityscapes / "leftImg8bit/val", mini_cityscapes / "gtFine/val"):
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(DataError, match=r"leftImg8bit/val holds no CITY/\*_leftImg8bit\.png"):
        load(mini_cityscapes, "val")


def test_counts_are_those_published():
    assert Cityscapes.PUBLISHED_COUNTS["train"] + Cityscapes.PUBLISHED_COUNTS["val"] == 3475
    assert Cityscapes.PUBLISHED_COUNTS["train_extra"] == 19998
    assert set(Cityscapes.PUBLISHED_COUNTS) <= set(Cityscapes.SPLITS)


def extract_all(data_dir):
    """Moves the folders to where Windows unpacks the publisher's zip files."""
    for name, split, unpacked in (
        ("leftImg8bit", "train_extra", "leftImg8bit_trainextra"),
        ("leftImg8bit", "", "leftImg8bit_trainvaltest"),
        ("gtFine", "", "gtFine_trainvaltest"),
        ("gtCoarse", "", "gtCoarse_all"),
    ):
        target = data_dir / unpacked / name / split
        target.parent.mkdir(parents=True)
        (data_dir / name / split).rename(target)
    (data_dir / "gtCoarse_all").rename(data_dir / "gtCoarse")


def test_each_zip_file_unpacked_into_a_folder_of_its_own(mini_cityscapes):
    expected = {split: [pixels(row) for row in load(mini_cityscapes, split)] for split in SPLITS}
    extract_all(mini_cityscapes)
    for split in SPLITS:
        assert [pixels(row) for row in load(mini_cityscapes, split)] == expected[split]
    shutil.rmtree(mini_cityscapes / "gtFine_trainvaltest")
    with pytest.raises(DataError, match=r"it needs leftImg8bit/val/ and gtFine/val/\); splits there: train_extra, train_coarse"):
        load(mini_cityscapes, "val")


def test_the_instance_map_of_a_label_map_with_its_suffix_in_capitals(tmp_path):
    for kind in ("labelIds", "instanceIds"):
        save_ids(tmp_path / f"x_gtFine_{kind}.PNG", np.zeros((2, 2), np.uint8))
    assert instances_location(str(tmp_path / "x_gtFine_labelIds.PNG")) == str(tmp_path / "x_gtFine_instanceIds.PNG")
