"""`revhrnet new` on folders as people have them: each layout is drawn, and what the loader reads is compared with the drawing."""

import csv
import json
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from revhrnet_hf.commands import _new, new, train
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.archive import DataFolder
from revhrnet_hf.data.datasets.labelme import images_without_file, labelme_files, labelme_pairs
from revhrnet_hf.data.layout import find_layout
from revhrnet_hf.errors import DataError, RecipeError
from revhrnet_hf.synthetic import write_cityscapes
from revhrnet_hf.training.recipe import read_chain

HEIGHT, WIDTH = 48, 64
COLOURS = [(0, 0, 0), (128, 64, 0), (0, 200, 10)]
NAMES = ["background", "road", "tree"]


def truth(number, classes=3):
    """Stripes of classes, other ones in each image; (height, width) of 0 to classes - 1."""
    rng = np.random.default_rng(number)
    return np.kron(rng.permutation(np.arange(12) % classes).reshape(3, 4), np.ones((16, 16), dtype=int)).astype(np.uint8)


def image_of(ids):
    noise = np.random.default_rng(int(ids.sum())).integers(0, 40, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.asarray(COLOURS)[ids % 3] // 2 + 60 + noise).astype(np.uint8))


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def as_ids(ids):
    return Image.fromarray(ids)


def as_palette(ids):
    image = Image.fromarray(ids, "P")
    image.putpalette([channel for colour in COLOURS for channel in colour])
    return image


def as_colours(ids):
    return Image.fromarray(np.asarray(COLOURS, dtype=np.uint8)[ids])


def as_binary(ids):
    return Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8))


def draw(folder, image_name, mask_name, encode, numbers, classes=3):
    for number in numbers:
        ids = truth(number, classes)
        save(image_of(ids), folder / image_name.format(number))
        save(encode(ids), folder / mask_name.format(number))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def roboflow(folder):
    for split, numbers in (("train", range(5)), ("valid", range(5, 8))):
        draw(folder / split, "IMG_{}.rf.ab12.jpg", "IMG_{}.rf.ab12_mask.png", as_ids, numbers)
        (folder / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, road\n2, tree\n3, never drawn\n")
    return {"train": range(5), "valid": range(5, 8)}, NAMES


def cvat(folder):
    draw(folder, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", as_colours, range(6))
    draw(folder, "JPEGImages/{}.jpg", "SegmentationObject/{}.png", as_colours, range(6))
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(NAMES, COLOURS, strict=True)]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "default.txt").write_text("\n".join(map(str, range(6))))
    return {"train": range(6), "val": None}, NAMES


def voc(folder):
    draw(folder, "JPEGImages/{}.jpg", "SegmentationClass/{}.png", as_palette, range(6))
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(map(str, numbers)))
    return {"train": range(4), "val": range(4, 6)}, ["class_0", "class_1", "class_2"]


def carvana(folder):
    draw(folder, "train/car_{}.jpg", "train_masks/car_{}_mask.gif", as_binary, range(6), classes=2)
    return {"train": range(6), "val": None}, ["background", "object"]


def deepglobe(folder):
    draw(folder, "train/{}_sat.jpg", "train/{}_mask.png", as_colours, range(6))
    rows = [[name, *colour] for name, colour in zip(NAMES, COLOURS, strict=True)]
    write_csv(folder / "class_dict.csv", [["name", "r", "g", "b"], *rows])
    return {"train": range(6), "val": None}, NAMES


def camvid_style(folder):
    for split, numbers in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
        draw(folder, f"{split}/{{}}.png", f"{split}annot/{{}}.png", as_ids, numbers)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return {"train": range(4), "val": range(4, 6)}, NAMES


def beside(folder):
    """In one folder, undivided, and inside a folder as unpacking leaves it."""
    draw(folder / "photos", "{} a.jpg", "{} a_label.png", as_palette, range(6))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def odd_suffixes(folder):
    draw(folder, "images/{}_leftImg.png", "masks/{}_groundtruth_v2.png", as_ids, range(6))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def jfif(folder):
    """Images of a kind that is seldom named so, which must not be overlooked beside the masks."""
    draw(folder, "images/{}.jfif", "masks/{}.png", as_ids, range(6))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def images_and_masks(folder):
    for split, numbers in (("training", range(4)), ("validation", range(4, 6))):
        draw(folder, f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png", as_binary, numbers, classes=2)
    return {"training": range(4), "validation": range(4, 6)}, ["background", "object"]


def kaggle(folder):
    """Names of hashes, masks of 0 and 255 in RGBA, and a table that has nothing to do with classes."""
    names = {number: f"c{number}a0f{number}b9d" for number in range(6)}
    for number, name in names.items():
        ids = truth(number, 2)
        save(image_of(ids), folder / "images" / f"{number}_{name}.png")
        save(as_binary(ids).convert("RGBA"), folder / "masks" / f"{number}_{name}.png")
    write_csv(folder / "train.csv", [["id", "rle_mask"], *([name, "1 2"] for name in names.values())])
    return {"train": range(6), "val": None}, ["background", "object"]


def prefixes(folder):
    draw(folder, "image_{:03d}.jpg", "mask_{:03d}.png", as_ids, range(6))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def glued_prefixes(folder):
    draw(folder, "train/img{}.png", "train/label{}.png", as_ids, range(4))
    draw(folder, "val/img{}.png", "val/label{}.png", as_ids, range(4, 6))
    return {"train": range(4), "val": range(4, 6)}, ["class_0", "class_1", "class_2"]


def prefixes_in_two_folders(folder):
    draw(folder, "frames/frame_{}.jpg", "annotations_png/seg_{}.png", as_ids, range(6))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def shapes_of(ids):
    """The truth's squares of 16 pixels as labelme's polygons and rectangles; those of class 0 are left out."""
    for (row, column), train_id in np.ndenumerate(ids[::16, ::16]):
        left, top = 16 * column, 16 * row
        box = {"points": [[left, top], [left + 15, top + 15]], "shape_type": "rectangle"}
        around = {"points": [[left, top], [left + 15, top], [left + 15, top + 15.0], [left, top + 15]], "shape_type": "polygon"}
        if train_id:
            common = {"label": NAMES[train_id], "group_id": None, "description": "", "flags": {}}
            yield common | (box if train_id == 1 else around)


def write_labelme(folder, numbers):
    for number in numbers:
        ids = truth(number)
        save(image_of(ids), folder / f"IMG_{number}.JPG")
        content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes_of(ids)), "imagePath": f"IMG_{number}.JPG"}
        size = {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (folder / f"IMG_{number}.json").write_text(json.dumps(content | size, indent=2))


def labelme(folder):
    write_labelme(folder, range(6))
    save(image_of(truth(7)), folder / "IMG_7.JPG")  # not annotated yet
    (folder / "settings.json").write_text('{"theme": "dark"}')
    return {"train": range(6), "val": None}, NAMES


def labelme_in_splits(folder):
    write_labelme(folder / "train", range(4))
    write_labelme(folder / "val", range(4, 6))
    (folder / "labels.txt").write_text("__ignore__\n_background_\ntree\nroad\n")
    return {"train": range(4), "val": range(4, 6)}, NAMES[:1] + NAMES[:0:-1]


def with_test_images(folder, images, masks, test_images, number="{}"):
    """Images and masks to train on, and as many images for a test, numbered alike and without masks."""
    draw(folder, f"{images}/{number}.jpg", f"{masks}/{number}.png", as_ids, range(6))
    for seed, file in enumerate((folder / images).iterdir(), start=100):
        save(image_of(truth(seed)), folder / test_images / file.name.replace("train", "test"))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def kaggle_with_test(folder):
    return with_test_images(folder, "train_images", "train_masks", "test_images")


def names_with_splits(folder):
    return with_test_images(folder, "train/img", "train/gt", "test/img", "train_{:04d}")


def masks_of_no_split(folder):
    """The masks' folder does not say whose they are."""
    return with_test_images(folder, "training", "truth", "test")


def nnu_net(folder):
    return with_test_images(folder, "imagesTr", "labelsTr", "imagesTs", "case_{:03d}")


def capitals(folder):
    """A split Test that is not to be trained on."""
    for split, numbers in (("Train", range(6)), ("Test", range(6, 9))):
        draw(folder, f"images/{split}/{{}}.jpg", f"masks/{split}/{{}}.png", as_ids, numbers)
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def years(folder):
    for split, numbers in (("train2017", range(4)), ("val2017", range(4, 6))):
        draw(folder, f"images/{split}/{{}}.jpg", f"masks/{split}/{{}}.png", as_ids, numbers)
    return {"train2017": range(4), "val2017": range(4, 6)}, ["class_0", "class_1", "class_2"]


def beside_in_several(folder):
    for place, numbers in (("north", range(2)), ("south", range(2, 4)), ("west/coast", range(4, 6))):
        draw(folder / place, "{}.jpg", "{}_mask.png", as_ids, numbers)
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def two_trees(folder):
    for place, numbers in (("north", range(3)), ("south", range(3, 6))):
        draw(folder, f"raw/photos/{place}/{{}}.jpg", f"truth/{place}/{{}}.png", as_ids, numbers)
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def two_folders_each(folder):
    for place, numbers in zip("abcd", (range(1), range(1, 3), range(3, 5), range(5, 6)), strict=True):
        draw(folder, f"{place}/pics/{{}}.jpg", f"{place}/gt/{{}}.png", as_ids, numbers)
    draw(folder, "test/pics/{}.jpg", "test/gt/{}.png", as_ids, range(2))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def labelme_of_cameras(folder):
    for place, numbers in (("train/cam1", range(2)), ("train/cam2", range(2, 4)), ("val/cam1", range(4, 6))):
        write_labelme(folder / place, numbers)
    return {"train": range(4), "val": range(4, 6)}, ["background", "road", "tree"]


def write_lists(folder, name="{}", **splits):
    for split, numbers in splits.items():
        (folder / f"{split}.txt").write_text("\n".join(map(name.format, numbers)))


def lists_beside_odd_folders(folder):
    draw(folder, "photos/{}.jpg", "truth/{}.png", as_ids, range(6))
    write_lists(folder, train=range(4), val=range(4, 6))
    return {"train": range(4), "val": range(4, 6)}, ["class_0", "class_1", "class_2"]


def list_of_a_test(folder):
    """The other images are to train on."""
    draw(folder, "photos/{}.jpg", "truth/{}.png", as_ids, range(9))
    write_lists(folder, test=range(6, 9))
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def labelme_with_lists(folder):
    write_labelme(folder, range(6))
    write_lists(folder, "IMG_{}.JPG", training=[0, 2, 4, 5], dev=[1, 3])
    return {"training": [0, 2, 4, 5], "dev": [1, 3]}, NAMES


def cities(folder):
    for city, numbers in (("city_a", range(4)), ("city_b", range(4, 6))):
        draw(folder, f"{city}/images/{{}}.jpg", f"{city}/masks/{{}}.png", as_ids, numbers)
    return {"train": range(6), "val": None}, ["class_0", "class_1", "class_2"]


def split_named_twice(folder):
    splits = {"train": range(4), "val": range(4, 6)}
    for split, numbers in splits.items():
        draw(folder, f"{split}/{split}_images/{{}}.jpg", f"{split}/{split}_masks/{{}}.png", as_ids, numbers)
    (folder / "val" / "train_images").mkdir()  # is of neither split
    return splits, ["class_0", "class_1", "class_2"]


def uavid(folder):
    """Sequences with folders of images and of masks; those of the test have no masks."""
    for place, numbers in (("train/seq1", range(3)), ("train/seq2", range(3, 5)), ("val/seq16", range(5, 7))):
        draw(folder, f"uavid_{place}/Images/{{:06d}}.png", f"uavid_{place}/Labels/{{:06d}}.png", as_colours, numbers)
    save(image_of(truth(7)), folder / "uavid_test" / "seq21" / "Images" / "000007.png")
    rows = [[name, *colour] for name, colour in zip(NAMES, COLOURS, strict=True)]
    write_csv(folder / "class_dict.csv", [["name", "r", "g", "b"], *rows])
    return {"train": range(5), "val": range(5, 7)}, NAMES


def areas_above_splits(folder):
    for place, numbers in (("Rural/Train", range(2)), ("Urban/Train", range(2, 4)), ("Rural/Val", range(4, 6))):
        draw(folder, f"{place}/images_png/{{}}.png", f"{place}/masks_png/{{}}.png", as_ids, numbers)
    return {"Train": range(4), "Val": range(4, 6)}, ["class_0", "class_1", "class_2"]


def two_words_for_a_split(folder):
    for split, word, numbers in (("train", "training", range(3)), ("val", "validation", range(3, 6))):
        draw(folder, f"{split}/{word}_images/{{}}.jpg", f"{split}/{word}_masks/{{}}.png", as_ids, numbers)
    return {"training": range(3), "validation": range(3, 6)}, ["class_0", "class_1", "class_2"]


def bdd100k(folder):
    """Masks of ids beside drawings of them, and more images of which some are called the same."""
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for kind, encode in (("colormaps", as_colours), ("masks", as_ids)):
            draw(folder, f"images/10k/{split}/{{}}.jpg", f"labels/sem_seg/{kind}/{split}/{{}}.png", encode, numbers)
        for number in range(2, 12):
            save(image_of(truth(number + 20)), folder / "images" / "100k" / split / f"{number}.jpg")
    return {"train": range(4), "val": range(4, 6)}, ["class_0", "class_1", "class_2"]


LAYOUTS = [
    roboflow, cvat, voc, carvana, deepglobe, camvid_style, beside, odd_suffixes, images_and_masks, kaggle, prefixes,
    glued_prefixes, prefixes_in_two_folders, labelme, labelme_in_splits, kaggle_with_test, names_with_splits, masks_of_no_split,
    nnu_net, capitals, years, cities, beside_in_several,
    two_trees, two_folders_each, split_named_twice, labelme_of_cameras, lists_beside_odd_folders, list_of_a_test,
    labelme_with_lists, uavid, areas_above_splits, two_words_for_a_split, bdd100k, jfif,
]  # fmt: skip


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def recipe_of(out):
    (recipe,) = read_chain(out / "mine.yaml")
    return recipe


def loaded(folder, out, split):
    return load_segmentation_dataset("folder", folder, split, label_space=out / "labels.yaml")


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_layouts(write, tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "photos_recipe"
    folder.mkdir()
    splits, names = write(folder)
    before = contents(folder)
    new.main([str(folder)])
    assert contents(folder) == before
    assert sorted(path.name for path in out.iterdir()) == ["labels.yaml", "masks.png", "mine.yaml"]
    recipe = recipe_of(out)
    assert recipe.label_space == str(out / "labels.yaml")
    assert [recipe.train_split, recipe.eval_split] == list(splits)
    drawn = {number: truth(number, len(names)) for numbers in splits.values() for number in numbers or ()}
    seen = []
    for split, numbers in splits.items():
        rows = loaded(folder, out, split)
        assert label_space_of(rows).names == tuple(names)
        found = [int(re.search(r"\d+", row["image_id"].rpartition("/")[2])[0]) for row in rows]
        for number, row in zip(found, rows, strict=True):
            expected = np.array([names.index(name) for name in NAMES])[drawn[number]] if NAMES[1] in names else drawn[number]
            assert np.array_equal(np.asarray(row["label_map"]), expected)
        assert numbers is None or None in splits.values() or found == list(numbers)
        seen += found
    assert sorted(seen) == sorted(drawn)  # each image in one split
    said = capsys.readouterr().out
    assert "revhrnet train --recipe" in said and all(name in said for name in names)
    with Image.open(out / "masks.png") as sheet:
        assert sheet.width > 1000


@pytest.mark.parametrize(
    ("write", "images"),
    [
        (kaggle_with_test, "{split}_images"),
        (names_with_splits, "{split}/img"),
        (masks_of_no_split, "training"),
        (nnu_net, "imagesTr"),
    ],
)
def test_images_for_a_test_are_not_given_the_masks(write, images, tmp_path):
    write(tmp_path / "photos")
    assert find_layout(DataFolder(tmp_path / "photos")).images == images


def test_one_kind_of_masks_is_not_the_images_of_another(tmp_path):
    """Cityscapes' folders hold masks of ids, of colours and of instances."""
    write_cityscapes(tmp_path / "photos", {"train": 3, "val": 2}, (48, 96))
    shutil.rmtree(tmp_path / "photos" / "gtCoarse")
    layout = find_layout(DataFolder(tmp_path / "photos"))
    assert (layout.images, layout.labels) == ("leftImg8bit/{split}", "gtFine/{split}")
    assert (layout.image_suffix, layout.label_suffix) == ("_leftImg8bit", "_gtFine_labelIds")


@pytest.mark.parametrize(
    ("images", "labels", "masks", "drawn"),
    [
        ("photos/{}", "gt/{}", "_labelIds", "_color"),
        ("rgb/{}", "gt/{}", "_gt", "_color"),
        ("photos/{}", "truth/{}", "_mask", "_vis"),
        ("photos/{}", "annotations/{}", "_label", "_label_color"),
        ("left/{}", "semantic/{}", "_ids", "_colour"),
        ("{}_rgb", "{}", "_labelIds", "_color"),
    ],
)
def test_what_is_drawn_from_masks_is_neither_images_nor_masks(images, labels, masks, drawn, tmp_path):
    folder = tmp_path / "photos"
    draw(folder, f"{images}.jpg", f"{labels}{masks}.png", as_ids, range(6))
    draw(folder, f"{images}.jpg", f"{labels}{drawn}.png", as_colours, range(6))
    new.main([str(folder)])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    found = table["images"], table["labels"], table.get("image_suffix"), table["label_suffix"]
    parts = PurePosixPath(images), PurePosixPath(labels)
    above = [str(path.parent) for path in parts]
    assert found == (*above, "_rgb" if "_rgb" in images else None, masks)
    for row in loaded(folder, tmp_path / "photos_recipe", "train"):
        number = int(re.search(r"\d+", row["image_id"])[0])
        assert np.array_equal(np.asarray(row["label_map"]), truth(number, 3))


def test_files_of_two_sequences_with_the_same_names_are_kept_apart(tmp_path, capsys):
    folder = tmp_path / "LoveDA"
    for split, count in (("Train", 3), ("Val", 2)):
        for area, classes in (("Rural", 3), ("Urban", 2)):
            names = f"{split}/{area}/images_png/{{}}.png", f"{split}/{area}/masks_png/{{}}.png"
            draw(folder, *names, as_ids, range(count), classes)
    new.main([str(folder)])
    table = yaml.safe_load((tmp_path / "LoveDA_recipe" / "labels.yaml").read_text())
    assert (table["images"], table["labels"]) == ("{split}/*/images_png", "{split}/*/masks_png")
    assert "Left out" not in capsys.readouterr().out
    for split, count in (("Train", 3), ("Val", 2)):
        rows = loaded(folder, tmp_path / "LoveDA_recipe", split)
        assert rows["image_id"][:] == [f"{area}/{number}" for area in ("Rural", "Urban") for number in range(count)]
        for row in rows:
            area, number = row["image_id"].split("/")
            assert np.array_equal(np.asarray(row["label_map"]), truth(int(number), 3 if area == "Rural" else 2))


def test_a_folder_that_the_loader_would_read_too_prevents_a_pattern(tmp_path):
    """Of seq3, too few images and masks are pairs, so that reading all sequences would be an error."""
    for place in ("seq1", "seq2"):
        draw(tmp_path / "photos", f"train/{place}/rgb/{{}}.jpg", f"train/{place}/gt/{{}}.png", as_ids, range(6))
    draw(tmp_path / "photos", "train/seq3/rgb/a{}.jpg", "train/seq3/gt/b{}.png", as_ids, range(6))
    layout = find_layout(DataFolder(tmp_path / "photos"))
    assert "*" not in layout.images and layout.splits == ("train",)


def test_masks_go_with_the_images_beside_them(tmp_path):
    """Two sequences are numbered alike, and one of them lacks masks: those of the other are not taken instead."""
    draw(tmp_path / "photos", "seq1/rgb/{}.jpg", "seq1/gt/{}.png", as_ids, range(8))
    draw(tmp_path / "photos", "seq2/rgb/{}.jpg", "seq2/gt/{}.png", as_ids, range(8))
    for number in range(5, 8):
        (tmp_path / "photos" / "seq1" / "gt" / f"{number}.png").unlink()
    layout = find_layout(DataFolder(tmp_path / "photos"))
    assert layout.images.endswith("/rgb") and layout.labels == layout.images.replace("rgb", "gt")


def other_names_in_a_split(folder):
    draw(folder, "train/pics/{}.jpg", "train/gt/{}.png", as_ids, range(3))
    draw(folder, "val/photos/{}.jpg", "val/truth/{}.png", as_ids, range(4))
    return "{split}/pics", r"val/photos/ \(4 files\), val/truth/ \(4 files\)"


def previews(folder):
    """Images without masks are in no pool."""
    for place in ("north", "south"):
        draw(folder / place, "{}.jpg", "{}_mask.png", as_ids, range(3 if place == "south" else 2))
    draw(folder, "previews/{}.jpg", "previews/{}.png", as_ids, range(1))
    (folder / "previews" / "0.png").unlink()
    return "south", r"north/ \(4 files\), previews/ \(1 file\)"


def images_of_a_test(folder):
    """Beside a layout that needs no label table."""
    draw(folder, "train/images/{}.jpg", "train/masks/{}.png", as_ids, range(3))
    draw(folder, "test/images/{}.jpg", "test/masks/{}.png", as_ids, range(2))
    shutil.rmtree(folder / "test" / "masks")
    return None, r"test/images/ \(2 files\)"


def lists_beside_split_folders(folder):
    draw(folder, "a/pics/{}.jpg", "a/gt/{}.png", as_ids, range(3))
    draw(folder, "b/pics/{}.jpg", "b/gt/{}.png", as_ids, range(3, 6))
    write_lists(folder, train=range(4))
    return "{split}/pics", r"train\.txt \(a list\)"


@pytest.mark.parametrize("write", [other_names_in_a_split, previews, images_of_a_test, lists_beside_split_folders])
def test_what_is_left_out_is_named(write, tmp_path, capsys):
    images, left_out = write(tmp_path / "photos")
    new.main([str(tmp_path / "photos")])
    text = (tmp_path / "photos_recipe" / "labels.yaml").read_text()
    assert yaml.safe_load(text).get("images") == images
    for said in (text, capsys.readouterr().out):
        assert re.search(f"Left out, because this table does not describe them: {left_out}\\.", said)


def test_nothing_is_left_out(tmp_path, capsys):
    cities(tmp_path / "photos")
    new.main([str(tmp_path / "photos")])
    assert "Left out" not in capsys.readouterr().out


def test_splits_that_are_not_used_are_named(tmp_path, capsys):
    for split in ("train", "val", "extra"):
        draw(tmp_path / "photos", f"{split}/pics/{{}}.jpg", f"{split}/gt/{{}}.png", as_ids, range(3))
    new.main([str(tmp_path / "photos")])
    assert "neither trained on nor scored: extra\n" in capsys.readouterr().out


def test_masks_of_another_split_are_not_taken(tmp_path):
    draw(tmp_path / "photos", "test_images/{}.jpg", "train_masks/{}.png", as_ids, range(4))
    with pytest.raises(DataError, match="but no masks that go with them by name"):
        new.main([str(tmp_path / "photos")])


def test_a_zip_file_and_a_list_of_names(tmp_path):
    cvat(tmp_path / "export")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for name, data in contents(tmp_path / "export").items():
            archive.writestr(name, data)
    shutil.rmtree(tmp_path / "export")
    new.main([str(tmp_path / "export.zip"), "--output_dir", str(tmp_path / "mine"), "--val_fraction", "0.5"])
    splits = [
        load_segmentation_dataset("folder", tmp_path / "export.zip", split, label_space=tmp_path / "mine" / "labels.yaml")
        for split in ("train", "val")
    ]
    assert [len(rows) for rows in splits] == [3, 3]
    assert label_space_of(splits[0]).names == tuple(NAMES)


@pytest.mark.parametrize("write", [images_and_masks, cvat, cities, two_trees, capitals])
@pytest.mark.parametrize("given", ["photos.zip", ""])
def test_a_zip_file_of_a_folder(write, given, tmp_path):
    """The folder in the archive is not part of the table's folders, because the loader opens it."""
    write(tmp_path / "data" / "photos")
    with zipfile.ZipFile(tmp_path / "data" / "photos.zip", "w") as archive:
        for name, data in contents(tmp_path / "data" / "photos").items():
            archive.writestr(f"photos/{name}", data)
    maps = []
    for data in (tmp_path / "data" / "photos", tmp_path / "data" / given):
        out = tmp_path / f"recipe_{len(maps)}"
        new.main([str(data), "--output_dir", str(out)])
        maps.append([row["label_map"].tobytes() for row in loaded(data, out, recipe_of(out).eval_split)])
        shutil.rmtree(tmp_path / "data" / "photos", ignore_errors=True)
    assert maps[0] == maps[1]


@pytest.mark.parametrize("above", ["road-segmentation", "labelled", "annotated/masks_and_images"])
def test_a_folder_above_that_sounds_like_masks(above, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "photos_recipe"
    splits, _ = images_and_masks(folder / above)
    new.main([str(folder)])
    assert yaml.safe_load((out / "labels.yaml").read_text())["images"] == f"{above}/{{split}}/images"
    assert [len(loaded(folder, out, split)) for split in splits] == [4, 2]


def test_labels_that_may_be_meant_otherwise_are_named(tmp_path, capsys):
    folder = tmp_path / "photos"
    write_labelme(folder, range(4))
    for number, label in enumerate(("Road", "road", "Ignore")):
        file = folder / f"IMG_{number}.json"
        content = json.loads(file.read_text())
        content["shapes"].append({"label": label, "shape_type": "rectangle", "points": [[0, 0], [9, 9]]})
        file.write_text(json.dumps(content))
    new.main([str(folder), "--val_fraction", "0.5"])
    said = capsys.readouterr().out
    assert "Shapes with the label Ignore are ignored pixels; if it is a class, give it an id of its own." in said
    assert "'Road' and 'road' are different classes; if they are one, give them one id." in said
    assert "# Shapes with the label Ignore" in (tmp_path / "photos_recipe" / "labels.yaml").read_text()


def draw_soft_edges(folder):
    """Binary masks that were resized: the values between 0 and 255 are no classes."""
    for number in range(4):
        hard = np.kron(truth(number, 2) * 255, np.ones((8, 8), dtype=np.uint8))
        save(Image.fromarray(hard), folder / "images" / f"{number}.png")
        soft = Image.fromarray(hard).resize((500, 380), Image.Resampling.BILINEAR).resize((512, 384), Image.Resampling.BILINEAR)
        save(soft, folder / "masks" / f"{number}.png")


@pytest.mark.parametrize("spoil", ["resized", "jpeg"])
def test_thin_lines_with_soft_edges_are_no_classes(spoil, tmp_path):
    """Most pixels of a thin object lie at its edge, so its masks are not black and white with soft edges."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for number in range(3):
        save(Image.fromarray(rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)), folder / "images" / f"{number}.png")
        mask = Image.new("L", (160, 160))
        for _ in range(25):
            ImageDraw.Draw(mask).line([tuple(point) for point in rng.integers(0, 160, (2, 2)).tolist()], fill=255, width=2)
        if spoil == "jpeg":
            mask.save(tmp_path / "mask.jpg", quality=80)
            mask = Image.open(tmp_path / "mask.jpg")
        else:
            mask = mask.resize((120, 120), Image.Resampling.BILINEAR).resize((160, 160), Image.Resampling.BILINEAR)
        save(mask, folder / "masks" / f"{number}.png")
    with pytest.raises(DataError, match="which are no classes: they were resized or drawn with soft edges"):
        new.main([str(folder)])
    assert not (tmp_path / "photos_recipe").exists()


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        (None, "", {"background": 0, "object": 255}),
        ("classes.txt", "nothing\nperson\n", {"nothing": 0, "person": 255}),
        ("labels.txt", "__ignore__\n_background_\nperson\n", {"_background_": 0, "person": 255}),
        ("_classes.csv", "Pixel Value, Class\n0, nothing\n1, person\n", {"nothing": 0, "person": 255}),
        ("_classes.csv", "Pixel Value, Class\n0, nothing\n255, person\n", {"nothing": 0, "person": 255}),
        ("class_dict.csv", "name,r,g,b\nnothing,0,0,0\nperson,255,255,255\n", {"nothing": (0, 0, 0), "person": (255,) * 3}),
    ],
)
def test_soft_edges_are_ignored(file, text, names, tmp_path, capsys):
    folder = tmp_path / "photos"
    draw_soft_edges(folder)
    if file is not None:
        (folder / file).write_text(text)
    new.main([str(folder)])
    assert "Masks of 0 and 255 with soft edges" in capsys.readouterr().out
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    if file == "class_dict.csv":
        assert table["names"] == {name: {"colours": list(colour)} for name, colour in names.items()}
        assert table["ignore"] == [[level] * 3 for level in range(1, 255)]
    else:
        assert table["names"] == names and table["ignore"] == list(range(1, 255))
    row = loaded(folder, tmp_path / "photos_recipe", "train")[0]
    mask = np.asarray(Image.open(folder / "masks" / f"{row['image_id']}.png"))
    assert np.array_equal(np.asarray(row["label_map"]), np.select([mask == 0, mask == 255], [0, 1], 255))


def test_soft_edges_with_a_list_of_other_classes(tmp_path, capsys):
    """Values that a list names are no edges; 255 is a class then, and the output shows that it has no name."""
    folder = tmp_path / "photos"
    draw_soft_edges(folder)
    (folder / "_classes.csv").write_text("Pixel Value, Class\n0, nothing\n128, street\n9, never drawn\n")
    mask = np.array(Image.open(folder / "masks" / "0.png"))
    mask[:9] = 128
    save(Image.fromarray(mask), folder / "masks" / "0.png")
    new.main([str(folder)])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    drawn = {name: value for name, value in table["names"].items() if value != 9}
    assert drawn == {"nothing": 0, "street": 128, "class_255": 255}
    assert "_classes.csv does not name 255." in capsys.readouterr().out


def as_own_palette(ids):
    """As programs save colour masks with few colours: a palette of the colours that the file holds, in their order."""
    used, places = np.unique(ids, return_inverse=True)
    image = Image.fromarray(places.reshape(ids.shape).astype(np.uint8), "P")
    image.putpalette([channel for value in used for channel in COLOURS[value]])
    return image


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palette_for_each_file(ending, tmp_path, capsys):
    """The index 1 is another class in some files: the colours count."""
    folder = tmp_path / "photos"
    for number in range(4):
        ids = np.where(truth(number) == 1, 1 if number % 2 else 2, truth(number)).astype(np.uint8)
        save(image_of(ids), folder / "images" / f"{number}.png")
        save(as_own_palette(ids), folder / "masks" / f"{number}.{ending}")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    new.main([str(folder)])
    said = capsys.readouterr().out
    assert re.search(rf"1 is #00c80a in \S+0\.{ending} and #804000 in \S+1\.{ending}, so the masks' colours are", said)
    assert "classes.txt does not name colours: the names below are to be replaced." in said
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    assert [entry["colours"] for entry in table["names"].values()] == [[0, 0, 0], [0, 200, 10], [128, 64, 0]]
    for row in loaded(folder, tmp_path / "photos_recipe", "train"):
        drawn = np.array(Image.open(folder / "masks" / f"{row['image_id']}.{ending}").convert("RGB"))
        expected = np.select([drawn[..., 1] == 0, drawn[..., 1] == 200], [0, 1], 2)
        assert np.array_equal(np.asarray(row["label_map"]), expected)


def as_bits(ids):
    return Image.fromarray(ids > 0)


def as_deep(ids):
    return Image.fromarray(np.where(ids > 0, 65535, 0).astype(np.uint16))


def draw_two_kinds(folder, one, other, classes=2):
    draw(folder, "images/{}.jpg", "masks/{}.png", one, (0, 2), classes)
    draw(folder, "images/{}.jpg", "masks/{}.png", other, (1, 3), classes)


def test_masks_of_one_bit_beside_masks_of_eight(tmp_path, capsys):
    """White is 1 in the former and 255 in the latter."""
    folder = tmp_path / "photos"
    draw_two_kinds(folder, as_bits, as_binary)
    (folder / "classes.txt").write_text("nothing\nperson\n")
    new.main([str(folder)])
    said = capsys.readouterr().out
    assert re.search(r"#ffffff is 1 in \S+0\.png and 255 in \S+1\.png, so the masks' colours are the classes", said)
    for split in ("train", "val"):
        rows = loaded(folder, tmp_path / "photos_recipe", split)
        assert label_space_of(rows).names == ("nothing", "person")
        for row in rows:
            assert np.array_equal(np.asarray(row["label_map"]), truth(int(row["image_id"]), 2))


def as_soft(ids):
    return Image.fromarray(np.where(ids > 0, 255, np.arange(WIDTH, dtype=np.uint8)[None] // 8).astype(np.uint8))


@pytest.mark.parametrize("other", [as_deep, as_soft], ids=lambda other: other.__name__)
def test_numbers_that_contradict_each_other(other, tmp_path):
    """16 bits have no colours to take instead; in the others 1 and white are both there, so either may be the object."""
    draw_two_kinds(tmp_path / "photos", as_bits, other)
    with pytest.raises(DataError, match=r"#ffffff is .* in \S+\.png and .* in \S+\.png, so it is not known which.* hold ids"):
        new.main([str(tmp_path / "photos")])


@pytest.mark.parametrize(("one", "other", "classes"), [(as_palette, as_ids, 3), (as_bits, as_ids, 2), (as_palette, as_bits, 2)])
def test_the_same_ids_in_two_kinds_of_files(one, other, classes, tmp_path, capsys):
    """Grey values of 8 bits and a palette may stand for the same ids. A palette and 1 bit show different colours."""
    folder = tmp_path / "photos"
    draw_two_kinds(folder, one, other, classes)
    new.main([str(folder)])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    said = "so the masks' colours are the classes" in capsys.readouterr().out
    if other is as_bits:
        assert said and len(table["names"]) == 3
    else:
        assert not said and list(table["names"].values()) == list(range(classes))


@pytest.mark.parametrize(
    ("values", "listed", "names"),
    [
        ([0, 255], "person", {"background": 0, "person": 255}),
        ([0, 1], "person", {"background": 0, "person": 1}),
        ([0, 1, 2], "cat\ndog", {"background": 0, "cat": 1, "dog": 2}),
        ([0, 255], "nothing, person", {"nothing": 0, "person": 255}),  # all in one line
        ([0, 2, 255], "cat\ndog", {"background": 0, "dog": 2}),  # 255 is ignored
        ([0, 1, 2], "cat\ndog\nbird", {"cat": 0, "dog": 1, "bird": 2}),  # a name for each
        ([0, 1, 2], "Background\ndog", {"Background": 0, "dog": 1, "class_2": 2}),  # it has a background
        ([0, 1, 2, 3], "cat\ndog", {"cat": 0, "dog": 1, "class_2": 2, "class_3": 3}),  # two more
    ],
)
def test_a_list_of_objects_without_the_background(values, listed, names, tmp_path, capsys):
    """As detectors have it: the first name is that of the id 1."""
    for number in range(4):
        for folder, pixels in (("images", np.zeros((8, 8, 3))), ("masks", np.resize(values, (8, 8)))):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / folder / f"{number}.png")
    (tmp_path / "photos" / "classes.txt").write_text(f"{listed}\n")
    new.main([str(tmp_path / "photos")])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    assert table["names"] == names
    assert ("0 is taken for the background" in capsys.readouterr().out) == ("background" in names)


def test_ids_and_colours_in_one_table_of_classes(tmp_path):
    draw(tmp_path / "photos", "images/{}.jpg", "masks/{}.png", as_colours, range(4))
    rows = [[number, name, *colour] for number, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True))]
    write_csv(tmp_path / "photos" / "class_dict.csv", [["id", "name", "r", "g", "b"], *rows])
    new.main([str(tmp_path / "photos")])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    assert list(table["names"]) == NAMES


def test_images_that_no_list_names_need_no_mask(tmp_path, capsys):
    """As most of VOC's."""
    voc(tmp_path / "photos")
    for number in range(6, 20):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "JPEGImages" / f"{number}.jpg")
    new.main([str(tmp_path / "photos")])
    rows = loaded(tmp_path / "photos", tmp_path / "photos_recipe", "train")
    assert sorted(rows["image_id"]) == ["0", "1", "2", "3"] and "splits train, val" in capsys.readouterr().out


def test_folders_with_a_dot_in_their_names_get_recipes_of_their_own(tmp_path):
    for year in (2023, 2024):
        images_and_masks(tmp_path / f"lake.{year}")
        new.main([str(tmp_path / f"lake.{year}")])
    assert {path.name for path in tmp_path.iterdir() if path.name.endswith("_recipe")} == {"lake.2023_recipe", "lake.2024_recipe"}


def test_photos_instead_of_masks_are_refused_before_all_are_read(tmp_path, monkeypatch):
    rng, read = np.random.default_rng(0), []
    for number in range(9):
        for folder in ("images", "masks"):
            (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{number}.png")
    raw_content = _new.raw_content
    monkeypatch.setattr(_new, "raw_content", lambda mask: read.append(mask) or raw_content(mask))
    with pytest.raises(DataError, match=r"more than 256 colours.* which are no classes"):
        new.main([str(tmp_path / "photos")])
    assert len(read) == 2


def test_two_listed_names_in_hard_masks(tmp_path):
    images_and_masks(tmp_path / "photos")
    (tmp_path / "photos" / "classes.txt").write_text("nothing\nperson\n")
    new.main([str(tmp_path / "photos")])
    table = yaml.safe_load((tmp_path / "photos_recipe" / "labels.yaml").read_text())
    assert table["names"] == {"nothing": 0, "person": 255}


@pytest.mark.parametrize("encode", [as_ids, as_colours], ids=lambda encode: encode.__name__)
def test_void_is_ignored_whether_masks_hold_ids_or_colours(encode, tmp_path, capsys):
    """CamVid's class_dict.csv has a class Void. If only one other class is left, such a name is the background's."""
    for classes, names in ((3, ["Void", "Road", "Tree"]), (2, ["Void", "Road"])):
        folder, out = tmp_path / f"photos{classes}", tmp_path / f"photos{classes}_recipe"
        draw(folder, "images/{}.jpg", "masks/{}.png", encode, range(4), classes)
        keys = [[k] for k in range(classes)] if encode is as_ids else COLOURS[:classes]
        titles = ["name", "id"] if encode is as_ids else ["name", "r", "g", "b"]
        write_csv(folder / "class_dict.csv", [titles, *([name, *key] for name, key in zip(names, keys, strict=True))])
        new.main([str(folder)])
        said = capsys.readouterr().out
        rows = loaded(folder, out, "train")
        drawn = [truth(int(row["image_id"]), classes) for row in rows]
        note = "Void in class_dict.csv is taken for ignored pixels; if it is a class, move it to names."
        if classes == 3:
            assert note in said and f"# {note}" in (out / "labels.yaml").read_text()
            assert label_space_of(rows).names == ("Road", "Tree")
            drawn = [np.array([255, 0, 1])[ids] for ids in drawn]
        else:
            assert "taken for ignored" not in said and label_space_of(rows).names == ("Void", "Road")
        assert all(np.array_equal(np.asarray(row["label_map"]), ids) for row, ids in zip(rows, drawn, strict=True))


def test_what_is_there_is_kept(tmp_path, capsys):
    carvana(tmp_path / "photos")
    command = [str(tmp_path / "photos"), "--output_dir", str(tmp_path / "mine")]
    new.main(command)
    table = tmp_path / "mine" / "labels.yaml"
    table.write_text(table.read_text().replace("object", "car"))
    (tmp_path / "mine" / "masks.png").unlink()
    before = contents(tmp_path / "mine")
    capsys.readouterr()
    new.main(command)
    assert {name: data for name, data in contents(tmp_path / "mine").items() if name != "masks.png"} == before
    assert capsys.readouterr().out.count("kept:") == 2
    assert label_space_of(loaded(tmp_path / "photos", tmp_path / "mine", "val")).names == ("background", "car")


@pytest.mark.parametrize("option", ["--val_fraction 0.4", "--seed 0"])
def test_a_table_that_is_there_is_not_divided_anew(option, tmp_path):
    cities(tmp_path / "photos")
    new.main([str(tmp_path / "photos")])
    before = contents(tmp_path / "photos_recipe")
    with pytest.raises(RecipeError, match=rf"{option.split()[0]}: .*labels\.yaml divides the images already"):
        new.main([str(tmp_path / "photos"), *option.split()])
    assert contents(tmp_path / "photos_recipe") == before


def test_a_folder_with_splits_is_not_divided_anew(tmp_path):
    folder = tmp_path / "photos"
    camvid_style(folder)
    for own in (False, True):  # without and with a label table of its own
        if own:
            (folder / "labels.yaml").write_text('names: [a, b, c]\nimages: "{split}"\nlabels: "{split}annot"\n')
        with pytest.raises(RecipeError, match=r"--val_fraction and --seed: .* divides the images already"):
            new.main([str(folder), "--val_fraction", "0.3", "--seed", "1"])
        assert not (tmp_path / "photos_recipe").exists()


def test_the_folders_own_table(tmp_path):
    """It is used as it is if it leads to two splits, and is copied with a share to hold out if not."""
    images_and_masks(tmp_path / "a")
    (tmp_path / "a" / "labels.yaml").write_text("names: {nothing: 0, thing: 255}\n")
    new.main([str(tmp_path / "a")])
    assert not (tmp_path / "a_recipe" / "labels.yaml").exists()
    assert "label_space" not in yaml.safe_load((tmp_path / "a_recipe" / "mine.yaml").read_text())
    carvana(tmp_path / "b")
    (tmp_path / "b" / "labels.yaml").write_text("names: {nothing: 0, thing: 255}\nimages: train\nlabels: train_masks\n")
    new.main([str(tmp_path / "b"), "--seed", "3"])
    table = yaml.safe_load((tmp_path / "b_recipe" / "labels.yaml").read_text())
    assert (table["val_fraction"], table["val_seed"], list(table["names"])) == (0.2, 3, ["nothing", "thing"])


@pytest.mark.parametrize("top", ["", "photos/"])
def test_an_own_table_in_an_archive(top, tmp_path):
    carvana(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, data in contents(tmp_path / "photos").items():
            archive.writestr(top + name, data)
        archive.writestr(f"{top}labels.yaml", "names: {nothing: 0, Möbel: 255}\nimages: train\nlabels: train_masks\n")
    new.main([str(tmp_path / "photos.zip"), "--output_dir", str(tmp_path / "mine")])
    assert label_space_of(loaded(tmp_path / "photos.zip", tmp_path / "mine", "val")).names == ("nothing", "Möbel")


@pytest.mark.parametrize("is_zipped", [False, True])
def test_an_own_table_with_the_names_of_cvat(is_zipped, tmp_path):
    folder = tmp_path / "photos"
    cvat(folder)
    (folder / "labels.yaml").write_text("names: labelmap.txt\n")
    if is_zipped:
        folder = Path(shutil.make_archive(str(folder), "zip", tmp_path, "photos"))
        shutil.rmtree(tmp_path / "photos")
    new.main([str(folder)])
    out = tmp_path / "photos_recipe"
    rows = loaded(folder, out, "train")
    assert label_space_of(rows).names == tuple(NAMES)
    for row in rows:
        assert np.array_equal(np.asarray(row["label_map"]), truth(int(row["image_id"])))


def no_images(folder):
    folder.mkdir()
    (folder / "readme.txt").write_text("x")
    return "holds no images"


def images_only(folder):
    draw(folder, "a/{}.jpg", "elsewhere/{}.png", as_ids, range(3))
    shutil.rmtree(folder / "elsewhere")
    return "but no masks that go with them by name"


def labelme_with(shape, said):
    def write(folder):
        write_labelme(folder, range(3))
        content = json.loads((folder / "IMG_1.json").read_text())
        content["shapes"].append({"label": "road", "shape_type": "polygon", "points": [[0, 0], [9, 0], [9, 9]], **shape})
        (folder / "IMG_1.json").write_text(json.dumps(content))
        return rf"IMG_1\.json: shape \d+ {said}"

    return write


labelme_kind = labelme_with({"shape_type": "oval"}, r"is a oval, which is not read \(polygon, rectangle")
labelme_points = labelme_with({"points": [[0, 0], [9, 9]]}, r"is a polygon, which has 3 or more points \[x, y\]")
labelme_numbers = labelme_with({"points": [[0, 0], [9, 1e300], [4, 4]]}, "is a polygon, which has 3 or more points")
labelme_label = labelme_with({"label": 7}, "is .*, and a shape has a label")
labelme_kind.__name__, labelme_points.__name__ = "labelme_kind", "labelme_points"
labelme_numbers.__name__, labelme_label.__name__ = "labelme_numbers", "labelme_label"


def labelme_of_another_size(folder):
    write_labelme(folder, range(3))
    content = json.loads((folder / "IMG_1.json").read_text())
    (folder / "IMG_1.json").write_text(json.dumps(content | {"imageWidth": 2 * WIDTH}))
    drawn_on = rf"{2 * WIDTH}×{HEIGHT}"
    return rf"its shapes in .*IMG_1\.json were drawn on {drawn_on}, as that file says: bring back the image that was annotated"


def mask_of_another_size(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", as_ids, range(5))
    save(as_ids(truth(2)[:-16]), folder / "masks" / "2.png")
    return rf"images/2\.jpg is {WIDTH}×{HEIGHT} pixels .* is {WIDTH}×{HEIGHT - 16}: bring both to one size"


def without_partner(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", as_ids, range(5))
    (folder / "images" / "3.jpg").unlink()
    return r"Label map without its image, 1 of 5: .*masks/3\.png"


def image_without_mask(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", as_ids, range(5))
    (folder / "masks" / "1.png").unlink()
    return r"Image without its label map, 1 of 5: .*images/1\.jpg"


def image_twice(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", as_ids, range(5))
    save(image_of(truth(2)), folder / "images" / "2.png")
    return r"images/2\.jpg and .*images/2\.png are both called '2'"


def masks_as_jpeg(folder):
    draw(folder, "images/{}.jpg", "masks/{}.jpg", as_ids, range(5))
    return "in a format that changes the ids"


def photographs_as_masks(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", image_of, range(3))
    return "colours, for example .*, which are no classes"


def one_class(folder):
    draw(folder, "images/{}.jpg", "masks/{}.png", lambda ids: as_ids(ids * 0), range(3))
    return r"hold one class only \(0\)"


@pytest.mark.parametrize(
    "write",
    [
        no_images,
        images_only,
        labelme_kind,
        labelme_points,
        labelme_numbers,
        labelme_label,
        labelme_of_another_size,
        mask_of_another_size,
        without_partner,
        image_without_mask,
        image_twice,
        masks_as_jpeg,
        photographs_as_masks,
        one_class,
    ],
    ids=lambda write: write.__name__,
)
def test_errors(write, tmp_path):
    said = write(tmp_path / "photos")
    with pytest.raises(DataError, match=said):
        new.main([str(tmp_path / "photos")])
    assert not (tmp_path / "photos_recipe").exists()


def test_no_split_to_train_on(tmp_path):
    """The advice is none that ends in another error: val_fraction beside a split val."""
    for split in ("val", "test"):
        draw(tmp_path / "photos", f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png", as_ids, range(3))
    with pytest.raises(
        DataError, match=r"the splits test, val, and training needs one called train and one called val: rename them$"
    ):
        new.main([str(tmp_path / "photos")])


@pytest.mark.parametrize(("options", "said"), [("--val_fraction 1", "between 0 and 1"), ("--images 0", "1 or more")])
def test_options(tmp_path, options, said):
    with pytest.raises(RecipeError, match=said):
        new.main([str(tmp_path), *options.split()])


@pytest.mark.slow
@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_the_recipe_is_accepted(write, tmp_path, capsys):
    """By `revhrnet train --dry_run`, at a small size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    write(folder)
    new.main([str(folder)])
    small = "--crop_size 32 32 --base_size 64 --eval_size 64 --num_blocks 1 --num_workers 0 --precision no --batch_size 2"
    data = ["--data_dir", str(folder), "--output_dir", str(tmp_path / "run"), "--backbone_weights", "random", "--dry_run"]
    train.main(["--recipe", str(tmp_path / "photos_recipe" / "mine.yaml"), *data, *small.split()])
    assert "peak memory" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_label_that_comes_later(tmp_path):
    """A label that is not in the table is an error that names the file; two labels may be one class, and one may be ignored."""
    write_labelme(tmp_path / "photos", range(4))
    new.main([str(tmp_path / "photos")])
    file = tmp_path / "photos" / "IMG_2.json"
    file.write_text(file.read_text().replace('"road"', '"raod"'))
    table = tmp_path / "photos_recipe" / "labels.yaml"
    with pytest.raises(DataError, match=r"IMG_2\.json: shape \d+ has the label 'raod' \(did you mean road\?\), which the label"):
        loaded(tmp_path / "photos", tmp_path / "photos_recipe", "train")
    table.write_text(table.read_text().replace("labelme: {", "labelme: {raod: 255, "))
    maps = {}
    for split in ("train", "val"):
        maps |= {row["image_id"]: np.asarray(row["label_map"]) for row in loaded(tmp_path / "photos", table.parent, split)}
    ignored = truth(2) == 1
    assert np.array_equal(maps["IMG_2"], np.where(ignored, 255, truth(2))) and np.array_equal(maps["IMG_1"], truth(1))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line", ["IMG_{0}", "IMG_{0}.JPG", "IMG_{0}.JPG\tIMG_{0}.json", "./IMG_{0}.JPG IMG_{0}.json"])
def test_lists_of_labelmes_files(line, packed, tmp_path):
    """A list may name the JSON file as well, as it may name a mask."""
    folder = tmp_path / "photos"
    write_labelme(folder, range(4))
    lists = {"train": (2, 0, 3), "val": (1,)}
    for split, numbers in lists.items():
        (folder / f"{split}.txt").write_text("".join(line.format(number) + "\n" for number in numbers))
    table = tmp_path / "labels.yaml"
    table.write_text("names: [background, road, tree]\nlabelme: {road: 1, tree: 2}\nimages: .\nlabels: .\n")
    if packed:
        folder = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    for split, numbers in lists.items():
        rows = loaded(folder, tmp_path, split)
        assert rows["image_id"][:] == [f"IMG_{number}" for number in numbers]
        assert all(np.array_equal(np.asarray(row["label_map"]), truth(k)) for row, k in zip(rows, numbers, strict=True))


def test_a_list_that_pairs_other_files_of_labelme(tmp_path):
    """The shapes are those of the file that the list names; the images lie in another folder than the files."""
    write_labelme(tmp_path / "photos", range(3))
    (tmp_path / "shapes").mkdir()
    for file in (tmp_path / "photos").glob("*.json"):
        content = json.loads(file.read_text())
        (tmp_path / "shapes" / file.name).write_text(json.dumps(content | {"imagePath": f"../photos/{content['imagePath']}"}))
        file.unlink()
    (tmp_path / "train.txt").write_text("IMG_0.JPG IMG_2.json\nphotos/IMG_1.JPG\n")
    folders = "images: photos\nlabels: shapes\n"
    (tmp_path / "labels.yaml").write_text(f"names: [background, road, tree]\nlabelme: {{road: 1, tree: 2}}\n{folders}")
    rows = loaded(tmp_path, tmp_path, "train")
    assert [np.array_equal(np.asarray(row["label_map"]), truth(k)) for row, k in zip(rows, (2, 1), strict=True)] == [True, True]


def test_labelmes_files_are_read_sparingly(tmp_path, monkeypatch):
    """The images in them are not kept, and a folder is listed once, not for each file."""
    write_labelme(tmp_path, range(6))
    for file in tmp_path.glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"imageData": "A" * 1000}))
    data_folder = DataFolder(tmp_path)
    files = labelme_files(data_folder)
    assert len(files) == 6 and all(len(json.dumps(content)) < 3000 and "imageData" not in content for content in files.values())
    listed = []
    list_files = data_folder.files
    monkeypatch.setattr(data_folder, "files", lambda *given: listed.append(given) or list_files(*given))
    pairs = labelme_pairs(data_folder, "", {name: number for number, name in enumerate(NAMES)})
    assert [pair.image for pair in pairs.values()] == [f"IMG_{number}.JPG" for number in range(6)]
    assert images_without_file(data_folder, ["IMG_3.JPG", "x.jpg"], files) == ["x.jpg"]
    assert len(listed) == 3


@pytest.mark.slow
def test_the_recipe_trains(tmp_path):
    """As it stands but for sizes; also with the label table found from another folder than the recipe's."""
    roboflow(tmp_path / "photos")
    new.main([str(tmp_path / "photos"), "--output_dir", str(tmp_path / "mine")])
    tiny = (
        "--epochs 1 --eval_every 1 --crop_size 32 32 --base_size 64 --eval_size 64 --num_blocks 1 --num_workers 0 --precision no"
    )
    data = ["--data_dir", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "run"), "--backbone_weights", "random"]
    train.main(["--recipe", str(tmp_path / "mine" / "mine.yaml"), *data, *tiny.split(), "--trackers", "tensorboard"])
    assert (tmp_path / "run" / "best" / "config.json").exists()
    assert Path(tmp_path / "run" / "log.jsonl").read_text().count("\n") >= 2
