import contextlib
import json
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pycocotools.coco
import pycocotools.mask
import pytest
import torch
from datasets.table import embed_table_storage

from revhrnet_hf.data import Coco, LabelMap, get_label_space, load_segmentation_dataset
from revhrnet_hf.data.datasets import coco
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import draw_scenes, write_coco
from revhrnet_hf.synthetic.objects import COCO_STUFF, COCO_THINGS
from revhrnet_hf.synthetic.scene import SCENE_CLASSES

SIZE, COUNTS = (60, 80), {"train": 3, "val": 4}
PERSON, DOG, UMBRELLA = 1, 18, 28
# VOC's names that differ from COCO's.
VOC_NAME_IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def load(data_dir, split="val", label_space=None, **options):
    return load_segmentation_dataset("coco", data_dir, split, label_space, **options)


def ids_of(row):
    assert row["label_map"].mode == "L"
    return np.asarray(row["label_map"])


def pixels(dataset):
    return [(row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()) for row in dataset]


@pytest.fixture(scope="module")
def drawn_coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures") / "coco"
    write_coco(folder, COUNTS, SIZE)
    return folder


@pytest.fixture
def mini_coco(drawn_coco, tmp_path):
    return Path(shutil.copytree(drawn_coco, tmp_path / "coco"))


@pytest.fixture
def real_coco(shared_dir):
    return shared_dir / "data" / "coco_sample"


@pytest.fixture
def published_categories(fixture_rows):
    return [{**row, "isthing": row["thing"], "color": row["colour"]} for row in fixture_rows("coco_panoptic")]


@pytest.fixture
def one_image(tmp_path):
    """Writes a COCO of one image, 20 wide and 10 high, with these annotations; gives its folder."""

    def write(*annotations, categories=(), **image):
        folder = tmp_path / "one"
        (folder / "annotations").mkdir(parents=True)
        (folder / "val2017").mkdir()
        PIL.Image.new("RGB", (20, 10)).save(folder / "val2017" / "7.jpg")
        images = [{"id": 7, "file_name": "7.jpg", "height": 10, "width": 20, **image}]
        numbered = [{"id": 90 + k, "image_id": 7, "iscrowd": 0, **annotation} for k, annotation in enumerate(annotations)]
        content = {"images": images, "annotations": numbered, "categories": list(categories)}
        (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
        return folder

    return write


def box(category_id, left, top, right, bottom):
    return {"category_id": category_id, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_label_spaces_are_the_published_tables(published_categories):
    by_id = {category["id"]: category for category in published_categories}
    things = [category for category in published_categories if category["isthing"]]
    all_133, of_81, voc = (get_label_space(name) for name in ("coco_panoptic133", "coco81", "voc21"))
    assert all_133.names == tuple(category["name"] for category in published_categories)
    assert all_133.colours == tuple(tuple(category["color"]) for category in published_categories)
    assert of_81.names == ("background", *(category["name"] for category in things))
    assert of_81.colours[1:] == tuple(tuple(category["color"]) for category in things)
    for space in (all_133, of_81):
        assert {space.names[train_id] for train_id in space.raw_ids.values()} == set(space.names) - {"background"}
        assert all(space.names[train_id] == by_id[raw_id]["name"] for raw_id, train_id in space.raw_ids.items())
    in_voc = {by_id[category]["name"]: voc.names[voc_id] for category, voc_id in coco.VOC_ID_OF_CATEGORY.items() if voc_id}
    assert in_voc == {VOC_NAME_IN_COCO.get(name, name): name for name in get_label_space("voc21").names[1:]}
    assert set(coco.VOC_ID_OF_CATEGORY) == {category["id"] for category in things}
    published = {(category["id"], category["supercategory"], bool(category["isthing"])) for category in published_categories}
    assert {(category.id, category.supercategory, category.is_thing) for category in coco.CATEGORIES} == published


def train_id_of(category_id, space):
    return coco.VOC_ID_OF_CATEGORY[category_id] if space.name == "voc21" else space.raw_ids[category_id]


def brute_force(api, image_id, space):
    """Claims counted class by class from pycocotools' own masks."""
    image = api.imgs[image_id]
    claimed = np.zeros((space.num_classes, image["height"], image["width"]), bool)
    for annotation in api.imgToAnns[image_id]:
        claimed[train_id_of(annotation["category_id"], space)] |= api.annToMask(annotation).astype(bool)
    claimed[0] = False
    expected = claimed.argmax(0)
    expected[claimed.sum(0) > 1] = 255
    return expected, claimed.any(0).sum()


def published_api(data_dir, split):
    with contextlib.redirect_stdout(None):
        return pycocotools.coco.COCO(data_dir / "annotations" / f"instances_{split}2017.json")


@pytest.mark.parametrize("label_space", ["coco81", "voc21"])
def test_real_label_maps_are_pycocotools_masks(real_coco, label_space):
    dataset, api = load(real_coco, "val", label_space), published_api(real_coco, "val")
    assert sorted(map(int, dataset["image_id"])) == sorted(api.imgs)
    for row in dataset.select(range(0, 96, 4)):
        expected, _ = brute_force(api, int(row["image_id"]), get_label_space(label_space))
        assert np.array_equal(ids_of(row), expected), row["image_id"]
        assert row["image"].size == row["label_map"].size


def test_real_train_images_with_few_labelled_pixels_are_dropped_for_voc_only(real_coco):
    api, space = published_api(real_coco, "train"), get_label_space("voc21")
    assert len(load(real_coco, "train")) == len(api.imgs) == 129
    areas = {image_id: brute_force(api, image_id, space)[1] for image_id in api.imgs}
    kept = [int(image_id) for image_id in load(real_coco, "train", "voc21")["image_id"]]
    assert kept == [image_id for image_id in api.imgs if areas[image_id] > 1000]
    assert 0 < len(kept) < 129


def test_real_image_without_annotations_is_all_background(real_coco):
    api = published_api(real_coco, "train")
    (bare,) = set(api.imgs) - set(api.imgToAnns)
    rows = {int(row["image_id"]): row for row in load(real_coco, "train").select_columns(["image_id", "label_map"])}
    assert not ids_of(rows[bare]).any()


def test_only_different_classes_of_the_space_make_a_pixel_ignored(one_image):
    folder = one_image(
        box(PERSON, 0, 0, 8, 8),
        box(PERSON, 4, 4, 12, 10),
        box(DOG, 10, 6, 20, 10),
        box(UMBRELLA, 0, 0, 2, 2),
        box(UMBRELLA, 18, 0, 20, 2),
    )
    person = np.zeros((10, 20), bool)
    person[:8, :8] = person[4:10, 4:12] = True
    dog, umbrella = np.zeros_like(person), np.zeros_like(person)
    dog[6:10, 10:20] = True
    umbrella[:2, :2] = umbrella[:2, 18:20] = True
    for name, classes in (
        ("coco81", {"person": person, "dog": dog, "umbrella": umbrella}),
        ("voc21", {"person": person, "dog": dog}),
    ):
        expected = np.zeros((10, 20), int)
        for class_name, mask in classes.items():
            expected[mask] = get_label_space(name).names.index(class_name)
        expected[sum(mask.astype(int) for mask in classes.values()) > 1] = 255
        assert (expected == 255).any()
        assert np.array_equal(ids_of(load(folder, label_space=name)[0]), expected)


def test_crowd_counts_as_its_class(one_image):
    mask = np.random.default_rng(0).random((10, 20)) < 0.4
    mask[0, 0] = True
    # Column by column: the number of consecutive 0s, then of 1s, and so on; the first run may be empty.
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    folder = one_image({"category_id": DOG, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": counts}})
    dog = get_label_space("coco81").names.index("dog")
    assert np.array_equal(ids_of(load(folder)[0]), np.where(mask, dog, 0))


@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 1.0])
def test_run_lengths_in_text_form(density):
    mask = np.random.default_rng(1).random((200, 300)) < density
    encoded = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    thing = {"id": 1, "category_id": PERSON, "segmentation": {"size": [200, 300], "counts": encoded["counts"].decode()}}
    stored = json.dumps({"height": 200, "width": 300, "objects": [thing]}).encode()
    decoded = LabelMap(label_space="coco81").decode_example({"path": "crowd", "bytes": stored})
    assert np.array_equal(np.asarray(decoded), mask)


def drawn_ids(split, names, space):
    table = np.array([space.label2id.get(names.get(name), space.label2id.get("background", 255)) for name in SCENE_CLASSES])
    return [table[scene.classes] for scene in draw_scenes(split, COUNTS[split], SIZE, seed=0)]


@pytest.mark.parametrize(("label_space", "names"), [("coco81", COCO_THINGS), ("coco_panoptic133", COCO_THINGS | COCO_STUFF)])
def test_miniature_holds_what_was_drawn(drawn_coco, label_space, names):
    expected = drawn_ids("val", names, get_label_space(label_space))
    dataset = load(drawn_coco, label_space=label_space)
    assert len(dataset) == 4
    for row, ids in zip(dataset, expected, strict=True):
        assert np.array_equal(ids_of(row), ids)
    seen = set(np.unique(np.stack(expected))) - {0, 255}
    assert len(seen) >= (4 if label_space == "coco81" else 10)


def test_miniature_is_laid_out_like_the_real_one(drawn_coco, real_coco):
    for split in ("train", "val"):
        ours, theirs = (
            json.loads((root / "annotations" / f"instances_{split}2017.json").read_text()) for root in (drawn_coco, real_coco)
        )
        assert ours.keys() == theirs.keys()
        assert ours["annotations"][0].keys() == theirs["annotations"][0].keys()
        assert ours["images"][0].keys() <= theirs["images"][0].keys()
        assert {(c["id"], c["name"], c["supercategory"]) for c in ours["categories"]} == {
            (c["id"], c["name"], c["supercategory"]) for c in theirs["categories"]
        }
        crowds = [[a for a in content["annotations"] if a["iscrowd"]] for content in (ours, theirs)]
        assert all(set(a["segmentation"]) == {"counts", "size"} for content in crowds for a in content)
        assert all(crowds)
        assert len(ours["images"][0]["file_name"]) == len(theirs["images"][0]["file_name"])
    api = published_api(drawn_coco, "val")
    for annotation in api.anns.values():
        mask = api.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (rows.min(), columns.min()) == (top, left)
        assert (rows.max() + 1, columns.max() + 1) == (top + height, left + width)
        assert mask.sum() == annotation["area"]


def test_panoptic_ids_use_all_three_colours(drawn_coco):
    folder = drawn_coco / "annotations"
    content = json.loads((folder / "panoptic_val2017.json").read_text())
    for annotation in content["annotations"]:
        colours = np.asarray(PIL.Image.open(folder / "panoptic_val2017" / annotation["file_name"])).astype(int)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        areas = dict(zip(*np.unique(ids, return_counts=True), strict=True))
        areas.pop(0, None)
        assert areas == {segment["id"]: segment["area"] for segment in annotation["segments_info"]}
        assert max(areas) > 256**2


def pack(archive, *folders):
    with zipfile.ZipFile(archive, "w") as zipped:
        for folder in folders:
            for file in sorted(folder.rglob("*")):
                zipped.write(file, f"{folder.name}/{file.relative_to(folder)}")
    for folder in folders:
        shutil.rmtree(folder)


@pytest.mark.parametrize("label_space", ["coco81", "coco_panoptic133"])
@pytest.mark.parametrize("streaming", [False, True])
def test_folder_and_publishers_zip_files_give_the_same(drawn_coco, mini_coco, label_space, streaming):
    pack(mini_coco / "val2017.zip", mini_coco / "val2017")
    pack(mini_coco / "annotations" / "panoptic_val2017.zip", mini_coco / "annotations" / "panoptic_val2017")
    if label_space == "coco81":
        pack(mini_coco / "annotations_trainval2017.zip", mini_coco / "annotations")
    packed = load(mini_coco, label_space=label_space, streaming=streaming)
    assert pixels(packed) == pixels(load(drawn_coco, label_space=label_space))


def test_panoptic_annotations_alone(drawn_coco, mini_coco):
    for file in (mini_coco / "annotations").glob("instances_*"):
        file.unlink()
    assert Coco.default_label_space(mini_coco) == "coco_panoptic133"
    assert pixels(load(mini_coco)) == pixels(load(drawn_coco, label_space="coco_panoptic133"))


def test_images_in_a_folder_of_that_name(drawn_coco, mini_coco):
    (mini_coco / "images").mkdir()
    for split in ("train", "val"):
        (mini_coco / f"{split}2017").rename(mini_coco / "images" / f"{split}2017")
    for label_space in ("coco81", "coco_panoptic133"):
        assert pixels(load(mini_coco, label_space=label_space)) == pixels(load(drawn_coco, label_space=label_space))


@pytest.mark.parametrize("place", ["panoptic_val2017", "panoptic_val2017.zip"])
def test_panoptic_label_maps_in_the_data_folder(drawn_coco, mini_coco, place):
    (mini_coco / "annotations" / "panoptic_val2017").rename(mini_coco / "panoptic_val2017")
    if place.endswith("zip"):
        pack(mini_coco / place, mini_coco / "panoptic_val2017")
    assert pixels(load(mini_coco, label_space="coco_panoptic133")) == pixels(load(drawn_coco, label_space="coco_panoptic133"))


def test_streaming_workers_share_the_images_out(mini_coco):
    streamed = load(mini_coco, streaming=True).select_columns("image_id")
    loader = torch.utils.data.DataLoader(streamed, batch_size=None, num_workers=2)
    assert sorted(row["image_id"] for row in loader) == load(mini_coco)["image_id"][:]


@pytest.mark.parametrize("label_space", ["coco81", "coco_panoptic133"])
def test_saved_dataset_holds_the_same_without_the_files(mini_coco, tmp_path, label_space):
    dataset = load(mini_coco, label_space=label_space)
    expected = pixels(dataset)
    dataset.save_to_disk(tmp_path / "saved")
    # push_to_hub does this to each shard.
    dataset.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(tmp_path / "pushed.parquet")
    shutil.rmtree(mini_coco)
    for back in (datasets.load_from_disk(tmp_path / "saved"), datasets.Dataset.from_parquet(str(tmp_path / "pushed.parquet"))):
        assert back.features == dataset.features
        assert pixels(back) == expected


def test_json_is_not_read_again_until_something_changes(mini_coco, monkeypatch):
    for label_space in ("coco81", "coco_panoptic133"):
        load(mini_coco, label_space=label_space)
    with monkeypatch.context() as patched:
        patched.setattr(coco._AnnotationFile, "read", None)
        for label_space in ("coco81", "coco_panoptic133"):
            assert len(load(mini_coco, label_space=label_space)) == 4
    (mini_coco / "annotations" / "panoptic_val2017" / "000000500002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images .* no panoptic PNG: 500002 \(expected .*/000000500002\.png\)"):
        load(mini_coco, label_space="coco_panoptic133")
    (mini_coco / "val2017" / "000000500003.jpg").unlink()
    with pytest.raises(DataError, match=r"Label map without its image, 1 of 4: .*#500003 \(expected .*/000000500003\.jpg\)"):
        load(mini_coco)


def test_published_counts():
    assert Coco.PUBLISHED_COUNTS == {"train": 118_287, "val": 5_000}


@pytest.mark.parametrize("below", ["val2017", "annotations"])
def test_sub_folder_suggests_the_right_one(mini_coco, below):
    with pytest.raises(DataError, match=f"is not COCO: .*{mini_coco} looks right"):
        load(mini_coco / below)


def test_absent_split_and_absent_panoptic_are_named(mini_coco):
    (mini_coco / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(
        DataError, match=r"instances_val2017\.json is missing.*there: instances_train2017\.json, panoptic_train2017"
    ):
        load(mini_coco)
    shutil.rmtree(mini_coco / "annotations" / "panoptic_val2017")
    with pytest.raises(DataError, match=r"no panoptic label maps: panoptic_val2017/ or panoptic_val2017\.zip"):
        load(mini_coco, label_space="coco_panoptic133")
    shutil.rmtree(mini_coco / "train2017")
    with pytest.raises(DataError, match=r"no images of the split 'train': train2017/, train2017\.zip or images/train2017/"):
        load(mini_coco, "train")


def first(key, **changes):
    """Changes the first record of a list in the JSON."""
    return lambda content: content[key][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first("annotations", image_id=12), r"annotation 90 belongs to image 12, which is not among the file's images"),
        (first("annotations", category_id=12), r"annotation 90 has the category id 12, which label space 'coco81' does not have"),
        (first("annotations", category_id="1"), r"annotation 90 has the category_id '1'; it must be of type int"),
        (first("annotations", category_id=True), r"annotation 90 has the category_id True; it must be of type int"),
        (first("annotations", segmentation="x"), r"annotation 90 has a segmentation that is neither polygons nor run lengths"),
        (first("annotations", segmentation={"size": [10, 20]}), r"annotation 90 has a segmentation that is neither"),
        (first("annotations", segmentation=[[[[[[[1, 2]]]]]]]), r"annotation 90 has a segmentation that is neither"),
        (
            first("images", file_name="../secret.jpg"),
            r"image 7: its file_name '\.\./secret\.jpg' leads outside of the data folder",
        ),
        (first("images", file_name="/etc/secret.jpg"), r"image 7: its file_name '/etc/secret\.jpg' leads outside"),
        (first("images", file_name="a\\..\\..\\b.jpg"), r"image 7: its file_name .* leads outside"),
        (first("images", file_name=""), r"image 7: its file_name '' leads outside"),
        (first("images", file_name="a\0b.jpg"), r"image 7: its file_name 'a\\x00b\.jpg' holds unprintable characters"),
        (first("images", file_name="\ud800.jpg"), r"image 7: its file_name '\\ud800\.jpg' holds unprintable characters"),
        (first("images", height=0), r"image 7 has the height 0: it must be 1 or more"),
        (first("images", width="20"), r"image 7 has the width '20'; it must be of type int"),
        (first("images", id=None), r"an entry of images has the id None; it must be of type int \| str"),
        (first("images", height=20, width=10), r"7\.jpg is 20×10 pixels .* but its shapes in .*#7 were drawn on 10×20"),
        (lambda content: content["images"].append(content["images"][0]), r"image 7 is there twice"),
        (
            lambda content: content["images"].append({**content["images"][0], "id": 8, "file_name": "7.png"}),
            r"the images 7 and 8 are both called '7', except for the suffix",
        ),
        (lambda content: content.pop("annotations"), r"has no list 'annotations' of objects"),
        (lambda content: content.update(images={}), r"has no list 'images' of objects"),
        (lambda content: content["categories"].append({"id": 1, "name": "cat"}), r"category 1 is 'cat', but COCO's is 'person'"),
        (lambda content: content["categories"].append([1, "cat"]), r"no list 'categories' of objects"),
        (lambda content: content["categories"].append({"id": 1}), r"\{'id': 1\} is among its categories"),
        (lambda content: content.update(categories=["cat"]), r"'categories'"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_json_names_file_and_record(one_image, change, message, streaming):
    folder = one_image(box(PERSON, 0, 0, 4, 4))
    assert ids_of(load(folder)[0]).sum() == 16
    change_json(folder / "annotations" / "instances_val2017.json", change)
    with pytest.raises(DataError, match=message) as caught:
        load(folder, label_space="coco81", streaming=streaming)
    assert "annotations/instances_val2017.json" in str(caught.value)


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2]", '"text"'])
def test_broken_json_is_named(one_image, text):
    folder = one_image()
    (folder / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(DataError, match=r"instances_val2017\.json (is no JSON|holds a (list|str))"):
        load(folder)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3]], r"annotation 90: a polygon has 3 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], r"annotation 90: a polygon has 7 numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], r"annotation 90: a polygon lies far outside of the image of 20×10 pixels"),
        ([[0, 0, float("nan"), 0, 5, 5]], r"annotation 90: a polygon lies far outside"),
        ({"size": [10, 20], "counts": [3, 2]}, r"annotation 90: its run lengths are for 5 pixels .* \[10, 20\]"),
        ({"size": [10, 20], "counts": [300, -100]}, r"annotation 90: its run lengths are for 200 pixels"),
        ({"size": [20, 10], "counts": [200]}, r"annotation 90: its run lengths are .*\[20, 10\].*\[10, 20\]"),
        ({"size": [10, 20], "counts": "99"}, r"annotation 90: its run lengths are for 18 pixels"),
        ({"size": [10, 20], "counts": "é"}, r"annotation 90: its run lengths hold 'é'"),
        # The sum of these wraps to 200 in 64 bits.
        ({"size": [10, 20], "counts": [2**63 - 1] * 2 + [202]}, rf"annotation 90: its run lengths are for {2**64 + 200} pixels"),
        ({"size": [10, 20], "counts": [10**30]}, rf"annotation 90: its run lengths are for {10**30} pixels"),
        ({"size": [10, 20], "counts": "o" * 100}, r"annotation 90: one of its run lengths has more than 64 bits"),
        ({"size": [10, 20], "counts": "X6o"}, r"annotation 90: its run lengths end within a number"),
        ({"size": [10, 20], "counts": [199.5, 0.5]}, r"annotation 90 has a segmentation that is neither"),
        ({"size": [10, 20], "counts": [True, 199]}, r"annotation 90 has a segmentation that is neither"),
        ({"size": [10, 20], "counts": ["200"]}, r"annotation 90 has a segmentation that is neither"),
        ({"size": [10, 20], "counts": []}, r"annotation 90: its run lengths are for 0 pixels"),
        ({"size": "10×20", "counts": [200]}, r"annotation 90: its run lengths are .*'10×20'"),
        ([["0", "0", "5", "0", "5", "5"]], r"annotation 90 has a segmentation that is neither"),
        ([[0, 0, 5, 0, 5, None]], r"annotation 90 has a segmentation that is neither"),
        ([[0, 0, 10**400, 0, 5, 5]], r"annotation 90: a polygon lies far outside"),
    ],
)
def test_segmentation_that_cannot_be_drawn_is_named_when_it_is_read(one_image, segmentation, message):
    dataset = load(one_image({"category_id": PERSON, "segmentation": segmentation}))
    with pytest.raises(DataError, match=rf"^\S*instances_val2017\.json#7: {message}"):
        dataset[0]


@pytest.mark.parametrize("slip", [[[3, 4]], [[1, 2, 3, 4]], [[[1, 2], [3, 4]]]])
@pytest.mark.parametrize("is_alone", [False, True])
def test_polygons_without_an_area_cover_nothing(one_image, slip, is_alone):
    """Annotation tools export such slips of the hand. An object that has nothing else is one that has only a box."""
    thing = box(PERSON, 5, 3, 12, 8)
    thing |= {"segmentation": slip if is_alone else [*thing["segmentation"], *slip], "bbox": [5, 3, 7, 5]}
    expected = np.zeros((10, 20), int)
    expected[3:8, 5:12] = 255 if is_alone else 1
    assert np.array_equal(ids_of(load(one_image(thing))[0]), expected)


def test_polygon_a_little_outside_is_cut_off_at_the_rim(one_image):
    folder = one_image(box(PERSON, 15, -3, 24, 4))
    expected = np.zeros((10, 20), int)
    expected[:4, 15:] = 1
    assert np.array_equal(ids_of(load(folder)[0]), expected)


def panoptic_change(content):
    content["annotations"][1]["segments_info"].pop(0)


def test_panoptic_id_that_the_json_does_not_list(mini_coco):
    change_json(mini_coco / "annotations" / "panoptic_val2017.json", panoptic_change)
    for dataset in (
        load(mini_coco, label_space="coco_panoptic133"),
        load(mini_coco, label_space="coco_panoptic133", streaming=True),
    ):
        with pytest.raises(DataError, match=r"000000500002\.png#500002 holds the segment ids 70001, which the panoptic JSON"):
            list(dataset)


def test_broken_panoptic_png_is_named(mini_coco):
    file = mini_coco / "annotations" / "panoptic_val2017" / "000000500001.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"000000500001\.png#500001 cannot be read"):
        load(mini_coco, label_space="coco_panoptic133")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(file_name="../x.png"), r"image 500001: its file_name '\.\./x\.png' leads outside"),
        (lambda c: c["annotations"].pop(0), r"1 of 4 images have no entry in annotations or no panoptic PNG: 500001\."),
        (lambda c: c["annotations"][0]["segments_info"][0].update(category_id=12), r"segment 70001 of image 500001 .* id 12"),
        (lambda c: c["annotations"][0].update(segments_info=5), r"image 500001 has the segments_info 5; it must be of type list"),
    ],
)
def test_bad_panoptic_json(mini_coco, change, message):
    change_json(mini_coco / "annotations" / "panoptic_val2017.json", change)
    with pytest.raises(DataError, match=message):
        load(mini_coco, label_space="coco_panoptic133")


def test_no_image_with_enough_labelled_pixels(mini_coco):
    with pytest.raises(DataError, match=r"In none of the 3 images .* more than 1000 pixels"):
        load(mini_coco, "train", "voc21")
