"""People's own data in COCO's format, as annotation tools export it."""

import json
import zipfile

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.audit import audit_dataset
from revhrnet_hf.data.label_space import LabelSpace
from revhrnet_hf.errors import DataError

SIZE = 20, 10  # width, height
CATS_AND_DOGS = [{"id": 3, "name": "dog", "supercategory": "pets"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
CAT_BOX, DOG_BOX = (2, 1, 8, 6), (10, 3, 18, 9)  # left, top, right, bottom
LAYOUTS = {  # annotations, images, an image's name in the file
    "CVAT": ("annotations/instances_{}.json", "images/{}/{}.png", "{}.png"),
    "CVAT of one subset": ("annotations/instances_{}.json", "images/{1}.png", "{}.png"),
    "Datumaro": ("annotations/{}.json", "images/{}/{}.png", "{}.png"),
    "Roboflow": ("{}/_annotations.coco.json", "{}/{}.png", "{}.png"),
    "FiftyOne": ("{}/labels.json", "{}/data/{}.png", "{}.png"),
    "labelme2coco": ("{}.json", "photos/{1}.png", "photos/{}.png"),
    "Label Studio on Windows": ("{}.json", "images/{1}.png", "images\\{}.png"),
    "as COCO itself": ("annotations/instances_{}2017.json", "{}2017/{}.png", "{}.png"),
}


def polygon(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number, image, category, box, **changes):
    left, top, right, bottom = box
    bbox = [left, top, right - left, bottom - top]
    return {"id": number, "image_id": image, "category_id": category, "segmentation": [polygon(*box)], "bbox": bbox, **changes}


def write_split(folder, layout, split, categories=CATS_AND_DOGS, annotations=None, encoding="utf-8", **image):
    """One image, `SPLIT-x.png`, with a cat and a dog."""
    file, image_file, name = LAYOUTS[layout]
    stem = f"{split}-x"
    record = {"id": 0, "file_name": name.format(stem), "width": SIZE[0], "height": SIZE[1], **image}
    record = {key: value for key, value in record.items() if value is not None}
    if annotations is None:
        annotations = [annotation(5, 0, 1, CAT_BOX), annotation(6, 0, 3, DOG_BOX)]
    content = {"images": [record], "annotations": annotations, "categories": categories}
    for path in (folder / file.format(split), folder / image_file.format(split, stem)):
        path.parent.mkdir(parents=True, exist_ok=True)
    (folder / file.format(split)).write_text(json.dumps(content), encoding=encoding)
    PIL.Image.new("RGB", SIZE, (9, 9, 9)).save(folder / image_file.format(split, stem))
    return folder


def drawn(*boxes):
    """(height, width) of zeros, and in each box its value."""
    ids = np.zeros(SIZE[::-1], int)
    for value, (left, top, right, bottom) in boxes:
        ids[top:bottom, left:right] = value
    return ids


def load(folder, split="train", label_space=None):
    return load_segmentation_dataset("coco", folder, split, label_space)


def ids_of(dataset, row=0):
    return np.asarray(dataset[row]["label_map"])


CAT_AND_DOG = drawn((1, CAT_BOX), (2, DOG_BOX))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_of_the_tools(tmp_path, layout, packed):
    folder = tmp_path / "pets"
    splits = ["train", "val"] if "COCO" in layout else ["train", "valid"]
    for split in splits:
        write_split(folder, layout, split)
    if packed:
        (tmp_path / "packed").mkdir()
        with zipfile.ZipFile(tmp_path / "packed" / "pets.zip", "w") as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, file.relative_to(folder))
        folder = tmp_path / "packed"
    for split in splits:
        dataset = load(folder, split)
        space = label_space_of(dataset)
        assert space.names == ("background", "cat", "dog")
        assert space.raw_ids == {1: 1, 3: 2}
        assert space.name == "pets"
        assert np.array_equal(ids_of(dataset), CAT_AND_DOG)
        assert dataset[0]["image_id"].endswith(f"{split}-x")
    report = audit_dataset("coco", folder)
    assert list(report.splits) == splits
    assert report.splits["train"].pixels.tolist() == [(ids == CAT_AND_DOG).sum() for ids in (0, 1, 2, 255)]


def test_wrong_split_names_those_there(tmp_path):
    folder = write_split(tmp_path / "pets", "Roboflow", "valid")
    with pytest.raises(DataError, match=r"Unknown split of coco: 'val' .*; known: valid"):
        load(folder, "val")


def test_files_of_other_kinds_are_no_annotations(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not COCO: .*instances_SPLIT\.json"):
        load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_byte_order_mark(tmp_path, encoding):
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", encoding=encoding))), CAT_AND_DOG)


def test_other_encoding_is_named(tmp_path):
    folder = write_split(tmp_path, "CVAT", "train", encoding="utf-16")
    with pytest.raises(DataError, match=r"instances_train\.json is not text in UTF-8"):
        load(folder)


@pytest.mark.parametrize("absent", [("width",), ("height",), ("width", "height")])
def test_size_that_the_file_does_not_say_is_the_images(tmp_path, absent):
    folder = write_split(tmp_path, "Roboflow", "train", **dict.fromkeys(absent))
    assert np.array_equal(ids_of(load(folder)), CAT_AND_DOG)


def test_size_of_an_absent_image(tmp_path):
    folder = write_split(tmp_path, "Roboflow", "train", width=None)
    (folder / "train" / "train-x.png").unlink()
    with pytest.raises(DataError, match=r"without its \w+, 1 of 1: .*_annotations\.coco\.json#0 \(expected .*train-x\.png\)"):
        load(folder)


def test_ids_of_images_as_text(tmp_path):
    things = [annotation("a", "x", 1, CAT_BOX), annotation("b", "x", 3, DOG_BOX)]
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=things, id="x"))), CAT_AND_DOG)


LEFT, TOP, RIGHT, BOTTOM = CAT_BOX
CORNERS = [[LEFT, TOP], [RIGHT, TOP], [RIGHT, BOTTOM], [LEFT, BOTTOM]]
FLAT = polygon(*CAT_BOX)
# Column by column: pixels of 0 and of 1 in turn.
COUNTS = [10 * LEFT + TOP] + [BOTTOM - TOP, 10 - (BOTTOM - TOP)] * (RIGHT - LEFT - 1) + [BOTTOM - TOP]
COUNTS.append(200 - sum(COUNTS))


@pytest.mark.parametrize(
    "segmentation",
    [
        FLAT,
        [FLAT],
        [[FLAT]],
        [[[FLAT]]],
        CORNERS,
        [CORNERS],
        [[CORNERS]],
        [FLAT, []],
        [[float(value) for value in FLAT]],
        {"size": [10, 20], "counts": COUNTS},
        [{"size": [10, 20], "counts": COUNTS}],
    ],
)
def test_forms_of_a_segmentation(tmp_path, segmentation):
    things = [annotation(5, 0, 1, CAT_BOX, segmentation=segmentation), annotation(6, 0, 3, DOG_BOX)]
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=things))), CAT_AND_DOG)


def test_several_polygons_one_level_too_deep(tmp_path):
    things = [annotation(5, 0, 1, CAT_BOX, segmentation=[[polygon(0, 0, 4, 4), polygon(8, 2, 12, 6)]])]
    expected = drawn((1, (0, 0, 4, 4)), (1, (8, 2, 12, 6)))
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=things))), expected)


NOTHING = [[], None, [[]], [[[]]], {"size": [10, 20], "counts": None}, {"counts": None}, [{"size": [10, 20], "counts": None}]]


@pytest.mark.parametrize("segmentation", NOTHING)
def test_object_with_a_box_only_is_ignored_where_no_other_is(tmp_path, segmentation):
    """Nobody knows which pixels of the box are the object's, so they are neither background nor the class."""
    box_only = annotation(6, 0, 3, (5.5, 3.2, 12, 8), segmentation=segmentation)
    things = [annotation(5, 0, 1, CAT_BOX), box_only]
    expected = drawn((255, (5, 3, 12, 8)), (1, CAT_BOX))
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=things))), expected)


@pytest.mark.parametrize("segmentation", NOTHING)
@pytest.mark.parametrize("bbox", [[0, 0, 0, 0], [], None, [3, 3, 0, 4], [100, 100, 5, 5]])
def test_object_with_neither_covers_nothing(tmp_path, segmentation, bbox):
    things = [annotation(5, 0, 1, CAT_BOX), annotation(6, 0, 3, DOG_BOX, segmentation=segmentation, bbox=bbox)]
    assert np.array_equal(ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=things))), drawn((1, CAT_BOX)))


def test_segmentation_and_iscrowd_may_be_absent(tmp_path):
    thing = annotation(5, 0, 1, (0, 0, 20, 10))
    del thing["segmentation"]
    assert (ids_of(load(write_split(tmp_path, "CVAT", "train", annotations=[thing]))) == 255).all()


@pytest.mark.parametrize("bbox", [[1, 2, 3], "box", [1, 2, -3, 4], [1, 2, None, 4], [float("nan"), 0, 1, 1], {"left": 1}])
def test_bad_box_is_named(tmp_path, bbox):
    folder = write_split(tmp_path, "CVAT", "train", annotations=[annotation(5, 0, 1, CAT_BOX, segmentation=[], bbox=bbox)])
    with pytest.raises(DataError, match=r"instances_train\.json#0: annotation 5: its bbox is .* correct it"):
        load(folder)[0]


def test_roboflows_group_is_no_class(tmp_path):
    group = {"id": 0, "name": "pets", "supercategory": "none"}
    space = label_space_of(load(write_split(tmp_path, "Roboflow", "train", [group, *CATS_AND_DOGS])))
    assert space.names == ("background", "cat", "dog")
    # With its own objects it is a class.
    things = [annotation(5, 0, 0, CAT_BOX)]
    folder = write_split(tmp_path / "used", "Roboflow", "train", [group, *CATS_AND_DOGS], things)
    assert label_space_of(load(folder)).names == ("background", "pets", "cat", "dog")
    assert np.array_equal(ids_of(load(folder)), drawn((1, CAT_BOX)))


def test_category_that_others_name_is_a_class_unless_it_only_groups_them(tmp_path):
    """Only one with the supercategory "none" may be a group: others are classes, also if train does not show them."""
    own = [{"id": 1, "name": "car", "supercategory": "vehicle"}, {"id": 2, "name": "vehicle", "supercategory": "thing"}]
    for split, category in (("train", 1), ("valid", 2)):
        write_split(tmp_path, "Roboflow", split, own, [annotation(5, 0, category, CAT_BOX)])
    assert label_space_of(load(tmp_path)).names == ("background", "car", "vehicle")
    assert np.array_equal(ids_of(load(tmp_path, "valid")), drawn((2, CAT_BOX)))


def test_annotation_of_a_group_is_explained(tmp_path):
    own = [{"id": 0, "name": "pets", "supercategory": "none"}, *CATS_AND_DOGS]
    write_split(tmp_path, "Roboflow", "train", own)
    write_split(tmp_path, "Roboflow", "valid", own, [annotation(5, 0, 0, CAT_BOX)])
    with pytest.raises(DataError, match=r"annotation 5 has the category 0, 'pets', which is no class .* as label_space"):
        load(tmp_path, "valid")
    given = tmp_path / "valid" / "_annotations.coco.json"
    assert np.array_equal(ids_of(load(tmp_path, "valid", str(given))), drawn((1, CAT_BOX)))


def test_ids_from_zero_and_categories_that_name_themselves(tmp_path):
    categories = [{"id": 0, "name": "cat", "supercategory": "cat"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "cow"}]
    things = [annotation(5, 0, 0, CAT_BOX), annotation(6, 0, 1, DOG_BOX)]
    dataset = load(write_split(tmp_path, "CVAT", "train", categories, things))
    assert label_space_of(dataset).names == ("background", "cat", "dog", "cow")
    assert np.array_equal(ids_of(dataset), CAT_AND_DOG)


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_background_among_the_categories(tmp_path, name):
    things = [annotation(4, 0, 0, (0, 0, 20, 10)), annotation(5, 0, 1, CAT_BOX), annotation(6, 0, 3, DOG_BOX)]
    dataset = load(write_split(tmp_path, "CVAT", "train", [{"id": 0, "name": name}, *CATS_AND_DOGS], things))
    assert label_space_of(dataset).names == ("background", "cat", "dog")
    assert np.array_equal(ids_of(dataset), CAT_AND_DOG)


def test_person_of_ones_own(tmp_path):
    """COCO's name under COCO's id: somebody's only class, unless the files lie as COCO's do."""
    person, things = [{"id": 1, "name": "person"}], [annotation(5, 0, 1, CAT_BOX)]
    own = load(write_split(tmp_path / "own", "CVAT", "train", person, things))
    assert label_space_of(own).names == ("background", "person")
    assert label_space_of(load(tmp_path / "own", label_space="coco81")).name == "coco81"
    assert label_space_of(load(write_split(tmp_path / "coco", "as COCO itself", "train", person, things))).name == "coco81"
    chosen = str(tmp_path / "coco" / "annotations" / "instances_train2017.json")
    assert label_space_of(load(tmp_path / "coco", label_space=chosen)).names == ("background", "person")


def test_own_categories_are_not_translated_by_number(tmp_path):
    folder = write_split(tmp_path, "CVAT", "train")
    with pytest.raises(DataError, match=r"category 3 is 'dog', but COCO's is 'car'.*or leave label_space out"):
        load(folder, label_space="coco81")


def test_splits_that_number_differently_are_refused(tmp_path):
    write_split(tmp_path, "CVAT", "train")
    write_split(tmp_path, "CVAT", "val", [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}])
    load(tmp_path, "train")
    with pytest.raises(DataError, match=r"instances_val\.json: its category 1 is 'dog', but label space .* has 'cat' there"):
        load(tmp_path, "val")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([*CATS_AND_DOGS, {"id": 3, "name": "cow"}], "the category id 3 is there twice, as 'dog' and 'cow'"),
        ([*CATS_AND_DOGS, {"id": 4, "name": "cat"}], "the categories 1, 4 are all called 'cat'"),
        ([*CATS_AND_DOGS, {"id": "4", "name": "cow"}], r"\{'id': '4', 'name': 'cow'\} is among its categories"),
        ([*CATS_AND_DOGS, {"id": True, "name": "cow"}], "is among its categories"),
        ([*CATS_AND_DOGS, {"id": 10**12, "name": "cow"}], "is among its categories"),
        ([*CATS_AND_DOGS, {"id": 4, "name": ["cow"]}], "is among its categories"),
        ([*CATS_AND_DOGS, ["cow"]], r"\['cow'\] is among its categories"),
        ([*CATS_AND_DOGS, {"id": 4, "name": "cow", "supercategory": ["x"]}], None),
        ([{"id": k, "name": f"class {k}"} for k in range(1, 256)], "has 255 categories; there can be 1 to 254 and background"),
        ([{"id": k, "name": f"class {k}"} for k in range(1, 255)], None),
        ([{"id": 0, "name": "background"}], "has 0 categories"),
        ({"1": "cat"}, "no list 'categories'"),
    ],
)
def test_categories_that_cannot_be_classes(tmp_path, categories, message):
    folder = write_split(tmp_path, "CVAT", "train", categories, [])
    if message is None:
        assert not ids_of(load(folder)).any()
        return
    with pytest.raises(DataError, match=message) as caught:
        load(folder)
    assert "instances_train.json" in str(caught.value)


def test_changed_categories_are_seen(tmp_path):
    folder = write_split(tmp_path / "pets", "CVAT", "train")
    assert label_space_of(load(folder)).names == ("background", "cat", "dog")
    write_split(folder, "CVAT", "train", [{"id": 1, "name": "tiger"}, {"id": 3, "name": "wolf"}])
    assert label_space_of(load(folder)).names == ("background", "tiger", "wolf")


def test_name_of_a_known_label_space_is_not_taken(tmp_path):
    space = label_space_of(load(write_split(tmp_path / "camvid11", "CVAT", "train")))
    assert space.name == "camvid11_coco"
    assert LabelSpace.from_json(space.to_json()) == space


@pytest.mark.parametrize("layout", ["Roboflow", "as COCO itself"])
def test_an_audit_of_own_categories_knows_no_published_counts(tmp_path, layout):
    cow = [*CATS_AND_DOGS, {"id": 5, "name": "cow"}]
    for split in ("train", "val"):
        write_split(tmp_path, layout, split, cow)
    findings = audit_dataset("coco", tmp_path).findings
    assert {problem.kind for problem in findings} == {"class"}  # not a note: cow has no pixel


def test_a_split_without_images_is_named(tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path, "CVAT", split)
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": [], "annotations": []}))
    with pytest.raises(DataError, match=f"The split 'val' of COCO in {tmp_path} lists no image: choose another split"):
        load(tmp_path, "val")
