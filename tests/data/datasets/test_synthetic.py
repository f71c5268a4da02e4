import json
import re

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.data.datasets.cityscapes import LABELS
from revhrnet_hf.data.datasets.mapillary_vistas import LABELS as VISTAS_LABELS
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import draw_scenes, write_camvid, write_cityscapes, write_mapillary_vistas
from revhrnet_hf.synthetic.scene import SCARCE, SCENE_CLASSES, draw_street_scene

SIZE = (48, 64)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(params=[write_camvid, write_cityscapes, write_mapillary_vistas])
def write(request):
    return request.param


def test_same_seed_same_bytes(tmp_path, write):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / name, {"train": 2}, SIZE, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "c").keys()
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_an_image_does_not_depend_on_how_many_others_there_are(tmp_path, write):
    write(tmp_path / "few", {"val": 2}, SIZE)
    write(tmp_path / "many", {"train": 1, "val": 3}, SIZE)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    images = [name for name in few if name.endswith((".png", ".jpg"))]
    assert len(images) >= 4
    assert all(few[name] == many[name] for name in images)
    images = [many[name] for name in many if name.endswith((".png", ".jpg"))]
    assert len(set(images)) == len(images)


def test_segnet_form_is_laid_out_like_the_real_one(mini_camvid, real_camvid):
    ours, theirs = ({path.name for path in folder.iterdir()} for folder in (mini_camvid, real_camvid))
    assert ours == theirs
    ours, theirs = ((folder / "val.txt").read_text().split()[:2] for folder in (mini_camvid, real_camvid))
    assert [part.rpartition("/")[0] for part in ours] == [part.rpartition("/")[0] for part in theirs]
    for folder in ("train", "trainannot"):
        ours, theirs = (PIL.Image.open(next((root / folder).iterdir())) for root in (mini_camvid, real_camvid))
        assert (ours.mode, ours.format) == (theirs.mode, theirs.format)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_occurs_in_eight_images(tmp_path, seed):
    write_camvid(tmp_path / "mini", {"train": 8, "val": 8}, (120, 160), seed)
    for split in ("train", "val"):
        rows = load_segmentation_dataset("camvid", tmp_path / "mini", split)
        counts = sum(np.bincount(np.asarray(row["label_map"]).ravel(), minlength=256) for row in rows)
        assert np.flatnonzero(counts[:11] < 20).tolist() == []


@pytest.mark.parametrize("scarce", SCARCE)
def test_the_scarce_thing_is_in_the_image(scarce):
    scenes = [draw_street_scene(np.random.default_rng(seed), (60, 80), scarce) for seed in range(10)]
    seen = [(scene.classes == SCENE_CLASSES.index(scarce)).any() for scene in scenes]
    # Sometimes another thing hides it.
    assert sum(seen) >= 8


def test_flat_colour_does_not_give_the_classes_away(tmp_path):
    """The nearest mean colour must label far fewer pixels than a network that sees shapes can."""
    scenes = [draw_street_scene(np.random.default_rng(k), (60, 80), SCARCE[k % 8]) for k in range(8)]
    colours = np.concatenate([scene.image.reshape(-1, 3) for scene in scenes]).astype(float)
    classes = np.concatenate([scene.classes.ravel() for scene in scenes])
    present = np.unique(classes)
    means = np.stack([colours[classes == c].mean(0) for c in present])
    nearest = present[((colours[:, None] - means) ** 2).sum(-1).argmin(1)]
    recalls = [(nearest[classes == c] == c).mean() for c in present]
    assert np.mean(recalls) < 0.5


def test_a_folder_that_holds_files_is_left_alone(tmp_path, write):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="already holds files"):
        write(tmp_path, {"train": 1}, SIZE)
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def names_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_cityscapes_is_laid_out_like_the_real_one(mini_cityscapes):
    frame = r"(?P<city>[a-z]+)/(?P=city)_\d{6}_\d{6}"
    annotation = r"(labelIds\.png|instanceIds\.png|color\.png|polygons\.json)"
    patterns = {
        rf"leftImg8bit/(train|val|train_extra)/{frame}_leftImg8bit\.png": 9,
        rf"gtFine/(train|val)/{frame}_gtFine_{annotation}": 7 * 4,
        rf"gtCoarse/(train|val|train_extra)/{frame}_gtCoarse_{annotation}": 9 * 4,
    }
    names = names_in(mini_cityscapes)
    assert {pattern: sum(bool(re.fullmatch(pattern, name)) for name in names) for pattern in patterns} == patterns
    assert len(names) == sum(patterns.values())
    assert len(list((mini_cityscapes / "gtFine/train").iterdir())) == 3
    modes = {"leftImg8bit": "RGB", "labelIds": "L", "instanceIds": "I;16", "color": "RGBA"}
    for kind, mode in modes.items():
        assert PIL.Image.open(next(mini_cityscapes.rglob(f"*_{kind}.png"))).mode == mode


@pytest.mark.parametrize("kind", ["gtFine", "gtCoarse"])
def test_polygons_drawn_in_turn_give_cityscapes_label_maps(mini_cityscapes, kind):
    """As the publisher's tools make label maps: a polygon covers those before it, each polygon of a thing is an instance."""
    label_of = {label.name: label for label in LABELS}
    files = sorted((mini_cityscapes / kind).rglob("*_polygons.json"))
    for file in files:
        annotation = json.loads(file.read_text())
        size = annotation["imgWidth"], annotation["imgHeight"]
        maps = PIL.Image.new("L", size), PIL.Image.new("I", size), PIL.Image.new("RGBA", size)
        seen = dict.fromkeys(label_of, 0)
        for thing in annotation["objects"]:
            label, polygon = label_of[thing["label"]], [tuple(point) for point in thing["polygon"]]
            assert len(polygon) >= 3
            instance = label.raw_id * 1000 + seen[label.name] if label.has_instances else label.raw_id
            seen[label.name] += 1
            for image, value in zip(maps, (label.raw_id, instance, label.colour), strict=True):
                PIL.ImageDraw.Draw(image).polygon(polygon, fill=value)
        for image, name in zip(maps, ("labelIds", "instanceIds", "color"), strict=True):
            written = PIL.Image.open(file.with_name(file.name.replace("polygons.json", f"{name}.png")))
            assert np.array_equal(np.asarray(image), np.asarray(written))
    assert len(files) >= 7


def test_cityscapes_instances_are_single_things(mini_cityscapes):
    files = sorted((mini_cityscapes / "gtFine/train").rglob("*_instanceIds.png"), key=lambda file: file.name.split("_")[1::-1])
    scenes = draw_scenes("train", 5, (48, 96), seed=0)
    things = 0
    for file, scene in zip(files, scenes, strict=True):
        instance_ids = np.asarray(PIL.Image.open(file))
        for instance_id in np.unique(instance_ids[instance_ids >= 1000]):
            drawn = np.unique(scene.objects[instance_ids == instance_id])
            assert len(drawn) == 1
            assert drawn[0] > 0
            things += 1
    assert things > 5


def test_coarse_label_maps_leave_borders_out(mini_cityscapes):
    files = list((mini_cityscapes / "gtFine").rglob("*_labelIds.png"))
    assert files
    for file in files:
        fine = np.asarray(PIL.Image.open(file))
        coarse = np.asarray(PIL.Image.open(str(file).replace("gtFine", "gtCoarse")))
        assert np.array_equal(coarse[coarse > 0], fine[coarse > 0])
        assert 0.2 < (coarse > 0).mean() < 0.95
        borders = fine[:, 1:] != fine[:, :-1]
        assert not coarse[:, 1:][borders].any()
        assert not coarse[:, :-1][borders].any()


@pytest.mark.parametrize(
    ("version", "labels_in"),
    [("v1.2", {"config.json": ("v1.2", "")}), ("v2.0", {f"config_{v}.json": (v, f"{v}/") for v in ("v1.2", "v2.0")})],
)
def test_vistas_is_laid_out_like_the_real_one(mini_vistas, published_table, version, labels_in):
    data_dir = mini_vistas(version)
    key = r"[A-Za-z0-9_-]{22}"
    folder = "(training|validation)"
    patterns = {rf"{folder}/images/{key}\.jpg": 6}
    for config, (labels_of, below) in labels_in.items():
        patterns |= {re.escape(config): 1} | {rf"{folder}/{below}{kind}/{key}\.png": 6 for kind in ("labels", "instances")}
        table = published_table(f"mapillary_vistas_{labels_of}_labels.json")
        labels = json.loads((data_dir / config).read_text())["labels"]
        assert [{name: label[name] for name in row if name != "id"} for label, row in zip(labels, table, strict=True)] == [
            {name: value for name, value in row.items() if name != "id"} for row in table
        ]
        assert all(set(label) == {"name", "readable", "color", "instances", "evaluate"} for label in labels)
    names = names_in(data_dir)
    assert {pattern: sum(bool(re.fullmatch(pattern, name)) for name in names) for pattern in patterns} == patterns
    assert len(names) == sum(patterns.values())


@pytest.mark.parametrize("version", ["v1.2", "v2.0"])
def test_vistas_label_maps_are_coded_like_the_real_ones(mini_vistas, version):
    folder = mini_vistas("v2.0") / "training"
    labels = VISTAS_LABELS[version]
    counts = []
    for file, scene in zip(sorted((folder / "images").iterdir()), draw_scenes("train", 4, (48, 64), seed=0), strict=True):
        label_map = PIL.Image.open(folder / version / "labels" / f"{file.stem}.png")
        instances = np.asarray(PIL.Image.open(folder / version / "instances" / f"{file.stem}.png")).astype(int)
        ids = np.asarray(label_map)
        colours = np.array([label.colour for label in labels])
        assert label_map.mode == "P"
        assert np.array_equal(np.asarray(label_map.convert("RGB")), colours[ids])
        assert np.array_equal(instances // 256, ids)
        for raw_id in np.unique(ids):
            numbers, drawn = instances[ids == raw_id] % 256, scene.objects[ids == raw_id]
            if labels[raw_id].instances:
                pairs = set(zip(numbers.tolist(), drawn.tolist(), strict=True))
                assert len(pairs) == len(set(numbers.tolist())) == len(set(drawn.tolist()))
                assert set(numbers.tolist()) == set(range(len(pairs)))
                assert drawn.all()
                counts.append(len(pairs))
            else:
                assert not numbers.any()
    assert max(counts) > 1


# Scene class → its name in Cityscapes, Mapillary Vistas v1.2 and v2.0; None is ignored.
STREET_NAMES = {
    "void": (None, None, None),
    "sky": ("sky", "Sky", "Sky"),
    "building": ("building", "Building", "Building"),
    "wall": ("wall", "Wall", "Wall"),
    "pole": ("pole", "Pole", "Pole"),
    "road": ("road", "Road", "Road"),
    "lane marking": ("road", "Lane Marking - General", "Lane Marking - Dashed Line"),
    "pavement": ("sidewalk", "Sidewalk", "Sidewalk"),
    "tree": ("vegetation", "Vegetation", "Vegetation"),
    "vegetation": ("vegetation", "Vegetation", "Vegetation"),
    "sign": ("traffic sign", "Traffic Sign (Front)", "Traffic Sign (Front)"),
    "traffic light": ("traffic light", "Traffic Light", "Traffic Light - General (Upright)"),
    "fence": ("fence", "Fence", "Fence"),
    "car": ("car", "Car", "Car"),
    "bus": ("bus", "Bus", "Bus"),
    "pedestrian": ("person", "Person", "Person"),
    "bicyclist": ("rider", "Bicyclist", "Bicyclist"),
}


@pytest.mark.parametrize(
    ("name", "label_space", "column"),
    [
        ("cityscapes", "cityscapes", 0),
        ("mapillary_vistas", "mapillary_vistas_v1.2", 1),
        ("mapillary_vistas", "mapillary_vistas_v2.0", 2),
    ],
)
def test_scenes_are_labelled_with_the_publishers_classes(tmp_path, name, label_space, column):
    if name == "cityscapes":
        write_cityscapes(tmp_path / "mini", {"train": 8}, (96, 128))
    else:
        write_mapillary_vistas(tmp_path / "mini", {"train": 8}, (96, 128), version="v2.0")
    rows = sorted(
        load_segmentation_dataset(name, tmp_path / "mini", "train", label_space=label_space),
        key=lambda row: row["image_id"].split("_")[1:],
    )
    # Cityscapes assigns its images to three cities in turn.
    scenes = list(draw_scenes("train", 8, (96, 128), seed=0))
    train_ids = {None: 255} | get_label_space(label_space).label2id
    table = np.array([train_ids[STREET_NAMES[scene_class][column]] for scene_class in SCENE_CLASSES])
    for row, scene in zip(rows, scenes, strict=True):
        assert np.array_equal(np.asarray(row["label_map"]), table[scene.classes])
    assert len(np.unique(np.concatenate([scene.classes.ravel() for scene in scenes]))) >= len(SCENE_CLASSES) - 1
