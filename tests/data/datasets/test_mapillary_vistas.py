import json
import shutil

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import MapillaryVistas, get_label_space, label_space_of, load_segmentation_dataset
from revhrnet_hf.data.datasets.mapillary_vistas import LABELS
from revhrnet_hf.errors import DataError

# Label space → the release with its labels, version of the labels.
VERSIONS = {"mapillary_vistas_v1.2": "v1.2", "mapillary_vistas_v2.0": "v2.0"}


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("mapillary_vistas", data_dir, split, **options)


def pixels(row):
    return row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()


def indices(file):
    label_map = PIL.Image.open(file)
    assert label_map.mode == "P"
    return np.asarray(label_map)


def rewrite_config(file, change):
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_labels_are_the_published_tables(published_table):
    for version, labels in LABELS.items():
        table = published_table(f"mapillary_vistas_{version}_labels.json")
        assert [row["id"] for row in table] == list(range(len(labels)))
        for label, row in zip(labels, table, strict=True):
            given = {"readable": label.readable, "color": list(label.colour)}
            flags = {"name": label.name, "instances": label.instances, "evaluate": label.evaluate}
            assert row == {"id": row["id"]} | given | (flags if version == "v1.2" else {})


def test_labels_are_counted_as_their_publisher_counts_them():
    # The publisher counts 66 and 124 labels, of which 37 and 70 are scored by instances.
    assert [len(labels) for labels in LABELS.values()] == [66, 124]
    assert [sum(label.instances and label.evaluate for label in labels) for labels in LABELS.values()] == [37, 70]
    for labels in LABELS.values():
        assert len({label.name for label in labels}) == len(labels)


@pytest.mark.parametrize(("name", "void"), [("mapillary_vistas_v1.2", 65), ("mapillary_vistas_v2.0", 123)])
def test_only_the_last_label_is_no_class(published_table, name, void):
    space = get_label_space(name)
    table = published_table(f"mapillary_vistas_{VERSIONS[name]}_labels.json")
    assert table[void]["readable"] == "Unlabeled"
    assert space.id2label == {row["id"]: row["readable"] for row in table[:void]}
    assert space.colours == tuple(tuple(row["color"]) for row in table[:void])
    assert space.raw_ids == {**{raw_id: raw_id for raw_id in range(void)}, void: 255}


@pytest.mark.parametrize(
    ("release", "label_space", "below"),
    [
        ("v1.2", None, "labels"),
        ("v1.2", "mapillary_vistas_v1.2", "labels"),
        ("v2.0", None, "v1.2/labels"),
        ("v2.0", "mapillary_vistas_v1.2", "v1.2/labels"),
        ("v2.0", "mapillary_vistas_v2.0", "v2.0/labels"),
    ],
)
@pytest.mark.parametrize(("split", "folder"), [("train", "training"), ("val", "validation")])
def test_label_space_decides_which_labels_are_read(mini_vistas, release, label_space, below, split, folder):
    data_dir = mini_vistas(release)
    files = sorted((data_dir / folder / below).iterdir())
    rows = list(load(data_dir, split, label_space=label_space))
    assert [row["image_id"] for row in rows] == [file.stem for file in files]
    assert len(rows) > 0
    void = 123 if below.startswith("v2.0") else 65
    for row, file in zip(rows, files, strict=True):
        raw = indices(file)
        assert np.array_equal(np.asarray(row["label_map"]), np.where(raw == void, 255, raw))
        image = PIL.Image.open(data_dir / folder / "images" / f"{file.stem}.jpg")
        assert np.array_equal(np.asarray(row["image"]), np.asarray(image))


def test_both_versions_show_the_same_scenes(mini_vistas):
    data_dir = mini_vistas("v2.0")
    old, new = (load(data_dir, label_space=name) for name in VERSIONS)
    for old_row, new_row in zip(old, new, strict=True):
        assert old_row["image"].tobytes() == new_row["image"].tobytes()
        old_map, new_map = (np.asarray(row["label_map"]) for row in (old_row, new_row))
        cars = [get_label_space(name).label2id["Car"] for name in VERSIONS]
        assert np.array_equal(old_map == cars[0], new_map == cars[1])
        assert not np.array_equal(old_map, new_map)


@pytest.mark.parametrize(("release", "label_space"), [("v1.2", "mapillary_vistas_v1.2"), ("v2.0", "mapillary_vistas_v2.0")])
def test_publishers_zip_file_holds_the_same(mini_vistas, tmp_path, release, label_space):
    data_dir = mini_vistas(release)
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    archive = shutil.make_archive(zipped / f"mapillary-vistas-dataset_public_{release}", "zip", data_dir)
    for split in ("train", "val"):
        unpacked = [pixels(row) for row in load(data_dir, split, label_space=label_space)]
        for place in (zipped, archive):
            assert [pixels(row) for row in load(place, split, label_space=label_space)] == unpacked
        assert [pixels(row) for row in load(zipped, split, label_space=label_space, streaming=True)] == unpacked


@pytest.mark.parametrize("config", [True, False])
def test_labels_of_v12_are_not_those_of_v20(mini_vistas, config):
    data_dir = mini_vistas("v1.2")
    if not config:
        (data_dir / "config.json").unlink()
        assert len(load(data_dir)) == 4
    message = r"training/labels are of Mapillary Vistas v1\.2 \(66 labels\), but .*'mapillary_vistas_v2.0' is for v2\.0"
    with pytest.raises(DataError, match=rf"{message}: ask for label_space='mapillary_vistas_v1.2'"):
        load(data_dir, label_space="mapillary_vistas_v2.0")


def test_config_of_the_other_version_decides_in_the_old_layout(mini_vistas):
    new = mini_vistas("v2.0")
    flat = mini_vistas("v1.2")
    shutil.copy(new / "config_v2.0.json", flat / "config.json")
    for folder in ("training", "validation"):
        shutil.rmtree(flat / folder / "labels")
        shutil.copytree(new / folder / "v2.0" / "labels", flat / folder / "labels")
    message = r"training/labels are of Mapillary Vistas v2\.0 \(124 labels\), but .*'mapillary_vistas_v1.2' is for v1\.2"
    with pytest.raises(DataError, match=rf"{message}: ask for label_space='mapillary_vistas_v2.0'"):
        load(flat, label_space="mapillary_vistas_v1.2")
    flat_rows, new_rows = (load(data_dir, label_space="mapillary_vistas_v2.0") for data_dir in (flat, new))
    assert [pixels(row) for row in flat_rows] == [pixels(row) for row in new_rows]


def test_release_without_the_labels_asked_for(mini_vistas):
    data_dir = mini_vistas("v2.0")
    for folder in ("training", "validation"):
        shutil.rmtree(data_dir / folder / "v1.2")
    with pytest.raises(DataError, match=r"training/v2\.0/labels are of .* ask for label_space='mapillary_vistas_v2.0'"):
        load(data_dir, label_space="mapillary_vistas_v1.2")
    # What is not asked for is what is there, and the tables join it to others.
    usual = load(data_dir)
    assert label_space_of(usual).name == "mapillary_vistas_v2.0" and len(usual) == 4
    assert label_space_of(load(data_dir, label_space="cityscapes")).names == get_label_space("cityscapes").names


def test_config_that_contradicts_its_name(mini_vistas):
    data_dir = mini_vistas("v2.0")
    shutil.copy(data_dir / "config_v1.2.json", data_dir / "config_v2.0.json")
    with pytest.raises(DataError, match=r"config_v2\.0\.json lists the labels of v1\.2, not of v2\.0"):
        load(data_dir, label_space="mapillary_vistas_v2.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["labels"].reverse(), "lists 66 labels that are neither.*label 0 is 'Unlabeled' instead of 'Bird'"),
        (lambda config: config["labels"].pop(), "lists 65 labels that are neither.*label 65 is None instead of 'Unlabeled'"),
        (
            lambda config: config["labels"].append({"readable": "Drone"}),
            "lists 67 labels that are neither.*label 66 is 'Drone' instead of None",
        ),
        (lambda config: config.pop("labels"), r"is not Mapillary Vistas' list of labels \(KeyError\('labels'\)\)"),
        (lambda config: config.update(labels=["Bird"]), r"is not Mapillary Vistas' list of labels \(TypeError"),
    ],
)
def test_foreign_config(mini_vistas, change, message):
    data_dir = mini_vistas("v1.2")
    rewrite_config(data_dir / "config.json", change)
    with pytest.raises(DataError, match=rf"config\.json {message}"):
        load(data_dir)


def test_broken_config(mini_vistas):
    data_dir = mini_vistas("v1.2")
    (data_dir / "config.json").write_text('{"labels": [')
    with pytest.raises(DataError, match=r"config\.json is no JSON \(Expecting value"):
        load(data_dir)


def test_labels_of_the_other_version_are_found_by_their_ids(mini_vistas):
    data_dir = mini_vistas("v1.2")
    file = min((data_dir / "training/labels").iterdir())
    stray = PIL.Image.fromarray(np.full((48, 64), 66, np.uint8))
    stray.putpalette([0, 0, 0] * 256)
    stray.save(file)
    with pytest.raises(DataError, match=rf"{file.name} holds the ids 66, which label space 'mapillary_vistas_v1.2' .*has 0–65"):
        load(data_dir)[0]


@pytest.mark.parametrize("below", ["training", "validation/images", "training/v2.0/labels", ".."])
def test_wrong_level_suggests_the_right_one(mini_vistas, below):
    data_dir = mini_vistas("v2.0")
    with pytest.raises(DataError, match=f"training/ and validation/ .* should lie there.* But {data_dir} looks right"):
        load((data_dir / below).resolve())


def test_absent_split_lists_those_there(mini_vistas):
    data_dir = mini_vistas("v1.2")
    shutil.rmtree(data_dir / "training/images")
    with pytest.raises(DataError, match=r"no split 'train' \(it needs training/images/ .*splits there: val\."):
        load(data_dir)


@pytest.mark.parametrize(("folder", "kind"), [("v1.2/labels", "Image"), ("images", "Label map")])
def test_file_without_partner_is_named(mini_vistas, folder, kind):
    file = min((mini_vistas("v2.0") / "training" / folder).iterdir())
    file.unlink()
    with pytest.raises(DataError, match=rf"{kind} without its .*, 1 of 4: .*expected {file}"):
        load(file.parents[len(folder.split("/")) + 1])


def test_stray_files_are_passed_over(mini_vistas):
    data_dir = mini_vistas("v1.2")
    ids = load(data_dir)["image_id"][:]
    for name in ("images/._a.jpg", "images/Thumbs.db", "labels/list.txt"):
        (data_dir / "training" / name).write_bytes(b"stray")
    assert load(data_dir)["image_id"][:] == ids


def test_folders_without_images(mini_vistas):
    data_dir = mini_vistas("v1.2")
    for folder in ("images", "labels"):
        shutil.rmtree(data_dir / "validation" / folder)
        (data_dir / "validation" / folder).mkdir()
    with pytest.raises(DataError, match=r"validation/images holds no \.jpg"):
        load(data_dir, "val")


def test_counts_are_those_published():
    assert MapillaryVistas.PUBLISHED_COUNTS == {"train": 18000, "val": 2000}
