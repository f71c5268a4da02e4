"""Label spaces and the tables between them against `tests/fixtures`: the publishers' lists, and each class's partner typed again.

A fixture reads from the source class to its partner, in the order of the publisher's list; the code reads the other way round. So
an entry that is wrong in one of the two is seen here, without anything outside the repository.
"""

import json

import numpy as np
import PIL.Image
import pytest
from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES

from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.data.annotation import draw_annotation, labelled_pixels
from revhrnet_hf.data.archive import DataFolder
from revhrnet_hf.data.datasets import coco
from revhrnet_hf.data.datasets.cityscapes import CATEGORIES, LABELS
from revhrnet_hf.data.datasets.mapillary_vistas import LABELS as VISTAS_LABELS
from revhrnet_hf.data.datasets.pascal_voc import voc_colour
from revhrnet_hf.data.label_space import LABEL_SPACES
from revhrnet_hf.data.translation import TABLES, in_classes_of, translate


def test_every_label_space_is_held_by_a_fixture():
    checked = {"camvid11", "camvid32", "cityscapes", "coco81", "coco_panoptic133", "voc21"}
    assert set(LABEL_SPACES) == checked | {f"mapillary_vistas_{version}" for version in ("v1.2", "v2.0")}


def test_camvid(fixture_rows):
    eleven, all_32 = fixture_rows("camvid11"), fixture_rows("camvid32")
    space = get_label_space("camvid11")
    assert space.id2label == {row["train_id"]: row["name"] for row in eleven}
    assert space.colours == tuple(row["colour"] for row in eleven)
    assert space.raw_ids == {**{train_id: train_id for train_id in range(11)}, 11: 255}
    train_id_of = {row["name"]: row["train_id"] for row in eleven}
    assert space.raw_colours == {row["colour"]: train_id_of.get(row["camvid11"], 255) for row in all_32}

    space, classes = get_label_space("camvid32"), [row for row in all_32 if row["name"] != "Void"]
    assert space.names == tuple(row["name"] for row in classes)
    assert space.colours == tuple(row["colour"] for row in classes)
    assert space.raw_colours == {row["colour"]: train_id for train_id, row in enumerate(classes)} | {(0, 0, 0): 255}
    assert space.raw_ids == {}


def test_cityscapes(fixture_rows):
    rows = fixture_rows("cityscapes")
    fields = ("name", "id", "category", "has_instances", "colour")
    assert [(label.name, label.raw_id, label.category, label.has_instances, label.colour) for label in LABELS] == [
        tuple(row[field] for field in fields) for row in rows
    ]
    scored = {row["train_id"]: row for row in rows if not row["ignored"]}
    space = get_label_space("cityscapes")
    assert space.id2label == {train_id: scored[train_id]["name"] for train_id in range(19)}
    assert space.colours == tuple(scored[train_id]["colour"] for train_id in range(19))
    # −1, the licence plate, is 255 in an image of 8 bits.
    assert space.raw_ids == {row["id"] % 256: 255 if row["ignored"] else row["train_id"] for row in rows}
    categories = {}
    for train_id in range(19):
        categories.setdefault(scored[train_id]["category"], []).append(scored[train_id]["name"])
    assert {category: list(names) for category, names in CATEGORIES.items()} == categories


def test_cityscapes_fixture_is_the_publishers_own_list(fixture_rows):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    for row, label in zip(fixture_rows("cityscapes"), labels, strict=True):
        assert (row["name"], row["id"], row["category"], row["colour"]) == (label.name, label.id, label.category, label.color)
        assert (row["has_instances"], row["ignored"]) == (label.hasInstances, label.ignoreInEval)
        assert row["train_id"] == label.trainId


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_mapillary_vistas(fixture_rows, version):
    rows, labels = fixture_rows(f"mapillary_vistas_{version}"), VISTAS_LABELS[version]
    assert [row["id"] for row in rows] == list(range(len(labels)))
    assert [(label.readable, label.colour) for label in labels] == [(row["readable"], row["colour"]) for row in rows]
    if version == "v1.2":  # the list of v2.0 has only these fields
        fields = ("name", "instances", "evaluate")
        assert [tuple(getattr(label, field) for field in fields) for label in labels] == [
            tuple(row[field] for field in fields) for row in rows
        ]
    *classes, void = rows
    assert void["readable"] == "Unlabeled"
    space = get_label_space(f"mapillary_vistas_{version}")
    assert space.id2label == {row["id"]: row["readable"] for row in classes}
    assert space.colours == tuple(row["colour"] for row in classes)
    assert space.raw_ids == {**{row["id"]: row["id"] for row in classes}, void["id"]: 255}


def test_coco(fixture_rows):
    rows = fixture_rows("coco_panoptic")
    assert [(category.id, category.name, category.is_thing, category.supercategory) for category in coco.CATEGORIES] == [
        (row["id"], row["name"], row["thing"], row["supercategory"]) for row in rows
    ]
    space = get_label_space("coco_panoptic133")
    assert space.names == tuple(row["name"] for row in rows)
    assert space.colours == tuple(row["colour"] for row in rows)
    assert space.raw_ids == {row["id"]: train_id for train_id, row in enumerate(rows)}

    space, things = get_label_space("coco81"), [row for row in rows if row["thing"]]
    assert len(things) == 80
    assert space.names == ("background", *(row["name"] for row in things))
    assert space.colours == ((0, 0, 0), *(row["colour"] for row in things))
    assert space.raw_ids == {row["id"]: train_id for train_id, row in enumerate(things, start=1)}


def test_voc(fixture_rows):
    rows = fixture_rows("voc21")
    space = get_label_space("voc21")
    assert space.id2label == {row["id"]: row["name"] for row in rows}
    assert space.colours == tuple(row["colour"] for row in rows)
    assert space.raw_ids == {**{row["id"]: row["id"] for row in rows}, 255: 255}
    # The border's colour is the palette's last.
    assert space.raw_colours == {**{row["colour"]: row["id"] for row in rows}, (224, 224, 192): 255}


def test_voc_palette_is_that_of_the_development_kit():
    """VOCcode's `VOClabelcolormap`, written out bit by bit."""
    for index in range(256):
        colour, rest = [0, 0, 0], index
        for shift in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= (rest >> channel & 1) << shift
            rest >>= 3
        assert voc_colour(index) == tuple(colour)


def test_names_are_those_of_torchvision():
    """A third list of COCO's ids and of VOC's classes, from a library."""
    assert get_label_space("voc21").names[1:] == tuple(_VOC_CATEGORIES[1:])
    by_id = {index: name for index, name in enumerate(_COCO_CATEGORIES) if index and name != "N/A"}
    assert {category.id: category.name for category in coco.THINGS} == by_id


def test_vocs_classes_in_coco_are_those_of_torchvisions_reference(fixture_rows):
    """`references/segmentation/coco_utils.py` lists VOC's classes as COCO's category ids in this order."""
    assert coco.VOC_CATEGORIES == (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
    voc_id_of = {row["name"]: row["id"] for row in fixture_rows("voc21")}
    things = [row for row in fixture_rows("coco_panoptic") if row["thing"]]
    assert {row["id"]: voc_id_of[row["voc21"]] for row in things} == coco.VOC_ID_OF_CATEGORY


# Source → target: the fixture, and its columns with the source's and the target's class.
TRANSLATIONS = {
    ("mapillary_vistas_v2.0", "mapillary_vistas_v1.2"): ("mapillary_vistas_v2.0", "readable", "mapillary_vistas_v1.2"),
    ("mapillary_vistas_v1.2", "cityscapes"): ("mapillary_vistas_v1.2", "readable", "cityscapes"),
    ("mapillary_vistas_v1.2", "camvid11"): ("mapillary_vistas_v1.2", "readable", "camvid11"),
    ("cityscapes", "camvid11"): ("cityscapes", "name", "camvid11"),
    ("camvid32", "camvid11"): ("camvid32", "name", "camvid11"),
    ("coco81", "voc21"): ("coco_panoptic", "name", "voc21"),
}


def partners(fixture_rows, source, target):
    fixture, own, other = TRANSLATIONS[source, target]
    names = get_label_space(source).names
    typed = {row[own]: row[other] or None for row in fixture_rows(fixture) if row[own] in names}
    return typed | ({"background": "background"} if source == "coco81" else {})


@pytest.mark.parametrize(("source", "target"), TABLES, ids=" → ".join)
def test_each_class_has_the_partner_that_was_typed_again(fixture_rows, source, target):
    if (source, target) == ("coco_panoptic133", "coco81"):
        typed = {row["name"]: row["name"] if row["thing"] else "background" for row in fixture_rows("coco_panoptic")}
    else:
        typed = partners(fixture_rows, source, target)
    assert translate(get_label_space(source), get_label_space(target)) == typed


@pytest.mark.parametrize(("source", "target"), TRANSLATIONS, ids=" → ".join)
def test_read_backwards_only_a_single_class_is_a_partner(fixture_rows, source, target):
    typed = partners(fixture_rows, source, target)
    expected = {}
    for name in get_label_space(target).names:
        sources = [own for own, partner in typed.items() if partner == name]
        expected[name] = sources[0] if len(sources) == 1 else None
    # A class with the same name on both sides is the partner even if other classes are merged into it.
    expected |= {name: name for name in expected if typed.get(name) == name}
    assert translate(get_label_space(target), get_label_space(source)) == expected


@pytest.mark.parametrize(("source", "target"), TRANSLATIONS, ids=" → ".join)
def test_raw_ids_and_colours_reach_the_partners_train_ids(fixture_rows, source, target):
    """What a label map of the source holds, pixel by pixel, in the target's classes."""
    own, other = get_label_space(source), get_label_space(target)
    typed = partners(fixture_rows, source, target)
    joined = in_classes_of(own, other)
    for table, translated in ((own.raw_ids, joined.raw_ids), (own.raw_colours, joined.raw_colours)):
        assert table.keys() == translated.keys()
        for raw, train_id in table.items():
            partner = None if train_id == 255 else typed[own.names[train_id]]
            assert translated[raw] == (255 if partner is None else other.names.index(partner)), raw
    assert (joined.names, joined.ignore_index) == (other.names, 255)


def test_coco_files_are_drawn_in_vocs_ids(fixture_rows, tmp_path):
    """One box of each thing, read through the loader: bird is 3 and boat 4, not the other way round."""
    things = [row for row in fixture_rows("coco_panoptic") if row["thing"]]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    PIL.Image.new("RGB", (160, 2)).save(tmp_path / "val2017" / "1.jpg")
    boxes = [
        {
            "id": row["id"],
            "image_id": 1,
            "iscrowd": 0,
            "category_id": row["id"],
            "segmentation": [[2 * k, 0, 2 * k + 2, 0, 2 * k + 2, 2, 2 * k, 2]],
        }
        for k, row in enumerate(things)
    ]
    images = [{"id": 1, "file_name": "1.jpg", "width": 160, "height": 2}]
    coco_json = {"images": images, "annotations": boxes, "categories": []}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(coco_json))
    voc_id_of = {row["name"]: row["id"] for row in fixture_rows("voc21")}
    for space, expected in (("coco81", range(1, 81)), ("voc21", [voc_id_of[row["voc21"]] for row in things])):
        (row,) = load_segmentation_dataset("coco", tmp_path, "val", label_space=space)
        assert np.array_equal(np.asarray(row["label_map"]), np.repeat([expected], 2, 0).repeat(2, 1)), space


def rectangle(number, category_id, left, top, right, bottom):
    corners = [left, top, right, top, right, bottom, left, bottom]
    return {"id": number, "image_id": 1, "iscrowd": 0, "category_id": category_id, "segmentation": [corners]}


PERSON, DOG, UMBRELLA = 1, 18, 28


@pytest.mark.parametrize(
    ("rectangles", "count"),
    [
        ([(PERSON, 0, 0, 40, 25)], 1000),
        ([(PERSON, 0, 0, 40, 25), (PERSON, 0, 0, 40, 20)], 1000),  # overlapping objects of one class
        ([(PERSON, 0, 0, 40, 20), (DOG, 0, 10, 40, 25)], 1000),  # and of two
        ([(PERSON, 0, 0, 40, 25), (UMBRELLA, 0, 25, 40, 30)], 1000),  # background in VOC
        ([(PERSON, 0, 0, 40, 25), (DOG, 3, 27, 4, 28)], 1001),
        ([(PERSON, 0, 0, 37, 27)], 999),
        ([(UMBRELLA, 0, 0, 40, 30)], 0),
        ([], 0),
    ],
)
def test_labelled_pixels_of_coco_count_once_and_1000_are_too_few(tmp_path, rectangles, count):
    """torchvision's reference recipe keeps images of more than 1,000 labelled pixels; ours counts those that are covered."""
    objects = [rectangle(number, *numbers) for number, numbers in enumerate(rectangles, start=1)]
    # With an image beside it that is kept in any case.
    full = {**rectangle(99, PERSON, 0, 0, 40, 30), "image_id": 2}
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in (1, 2)]
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for number in (1, 2):
            PIL.Image.new("RGB", (40, 30)).save(tmp_path / f"{split}2017" / f"{number}.jpg")
        content = {"images": images, "annotations": [*objects, full], "categories": []}
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    data_folder, voc = DataFolder(tmp_path), get_label_space("voc21")
    annotation = coco.Coco.list_split(data_folder, "val", "voc21")[0].annotation
    assert labelled_pixels(annotation, voc, "x") == count
    assert count == (draw_annotation(annotation, voc, "x") != 0).sum()
    listed = coco.Coco.list_split(data_folder, "train", "voc21")
    assert [item.image_id for item in listed] == (["1", "2"] if count > 1000 else ["2"])
