import random
import shutil
import tarfile
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import scipy.io

from revhrnet_hf.data import PascalVoc, get_label_space, load_segmentation_dataset
from revhrnet_hf.data.archive import DataFolder
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import draw_scenes, write_pascal_voc
from revhrnet_hf.synthetic.objects import VOC_NAMES
from revhrnet_hf.synthetic.scene import SCENE_CLASSES

SIZE, COUNTS = (60, 80), {"train": 4, "val": 3}
TRAIN = [f"2010_{k:06d}" for k in range(4)]
VAL = [f"2012_{k:06d}" for k in range(3)]
SBD_ONLY = [f"2008_{k:06d}" for k in range(4)]
VOC21 = get_label_space("voc21")


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("pascal_voc", data_dir, split, **options)


def pixels(dataset):
    return [(row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()) for row in dataset]


@pytest.fixture(scope="module")
def drawn_voc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures") / "voc"
    write_pascal_voc(folder, COUNTS, SIZE, form="sbd")
    return folder


@pytest.fixture
def mini_voc(drawn_voc, tmp_path):
    """VOCdevkit/ and SBD's benchmark_RELEASE/; the test may break it."""
    return Path(shutil.copytree(drawn_voc, tmp_path / "voc"))


@pytest.fixture
def voc2012(mini_voc):
    return mini_voc / "VOCdevkit" / "VOC2012"


@pytest.fixture
def sbd(mini_voc):
    return mini_voc / "benchmark_RELEASE" / "dataset"


@cache
def drawn_ids(split):
    table = np.array([VOC21.names.index(VOC_NAMES.get(name, "background")) for name in SCENE_CLASSES])
    return [table[scene.classes] for scene in draw_scenes(split, 4, SIZE, seed=0)]


def with_border(ids):
    """A background pixel beside an object, also across a corner, is border."""
    framed = np.pad(ids, 1, mode="edge")
    neighbours = [framed[dy : dy + ids.shape[0], dx : dx + ids.shape[1]] for dy in range(3) for dx in range(3)]
    return np.where((ids == 0) & (np.max(neighbours, axis=0) > 0), 255, ids)


def test_colours_are_those_of_voc():
    colours = dict(zip(VOC21.names, VOC21.colours, strict=True))
    assert VOC21.num_classes == 21
    assert colours["background"] == (0, 0, 0)
    assert colours["aeroplane"] == (128, 0, 0)
    assert colours["bottle"] == (128, 0, 128)
    assert colours["cat"] == (64, 0, 0)
    assert colours["person"] == (192, 128, 128)
    assert colours["pottedplant"] == (0, 64, 0)
    assert colours["tvmonitor"] == (0, 64, 128)
    assert VOC21.raw_colours[224, 224, 192] == VOC21.raw_ids[255] == 255


@pytest.mark.parametrize(("split", "ids"), [("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL)])
def test_splits_and_their_label_maps(mini_voc, split, ids):
    dataset = load(mini_voc, split)
    assert dataset.column_names == ["image", "label_map", "image_id"]
    assert dataset["image_id"][:] == ids
    drawn = dict(zip(TRAIN + VAL, drawn_ids("train") + drawn_ids("val"), strict=False))
    for row in dataset:
        assert np.array_equal(np.asarray(row["label_map"]), with_border(drawn[row["image_id"]]))


def test_miniature_is_a_palette_image_with_vocs_colours(voc2012):
    with PIL.Image.open(voc2012 / "SegmentationClass" / f"{TRAIN[0]}.png") as label_map:
        assert label_map.mode == "P"
        assert tuple(label_map.getpalette()[:63]) == tuple(channel for colour in VOC21.colours for channel in colour)
        assert label_map.getpalette()[765:] == [224, 224, 192]
    assert not (voc2012 / "SegmentationClass" / f"{SBD_ONLY[0]}.png").exists()


def test_same_seed_same_bytes(drawn_voc, tmp_path):
    write_pascal_voc(tmp_path / "again", {"train": 1}, SIZE, form="sbd")
    again = [path for path in tmp_path.rglob(f"{TRAIN[0]}.*")] + [path for path in tmp_path.rglob(f"{SBD_ONLY[0]}.*")]
    assert sorted(file.suffix for file in again) == [".jpg", ".jpg", ".mat", ".mat", ".png"]
    for file in again:
        assert file.read_bytes() == (drawn_voc / file.relative_to(tmp_path / "again")).read_bytes()
    write_pascal_voc(tmp_path / "voc", {"val": 1}, SIZE)
    assert [path.name for path in (tmp_path / "voc").iterdir()] == ["VOCdevkit"]


def test_train_aug_has_vocs_label_maps_where_it_has_any_and_sbds_elsewhere(mini_voc):
    dataset = load(mini_voc, "train_aug")
    assert dataset["image_id"][:] == SBD_ONLY + TRAIN
    expected = drawn_ids("sbd") + [with_border(ids) for ids in drawn_ids("train")]
    for row, ids in zip(dataset, expected, strict=True):
        assert np.array_equal(np.asarray(row["label_map"]), ids)


def test_train_aug_has_the_published_size(tmp_path):
    """With as many ids as VOC2012 and SBD have: 1,464 and 1,449 of VOC, and 9,118 that only SBD has label maps of."""
    ids = [f"2008_{number:06}" for number in range(1464 + 1449 + 9118)]
    random.Random(0).shuffle(ids)
    published = {"train": ids[:1464], "val": ids[1464 : 1464 + 1449], "train_aug": ids[:1464] + ids[1464 + 1449 :]}
    lists, sbd = tmp_path / "ImageSets" / "Segmentation", tmp_path / "SBD" / "dataset"
    for folder in (lists, tmp_path / "JPEGImages", sbd / "cls"):
        folder.mkdir(parents=True)
    # SBD's split differs from VOC's: both its lists have images of VOC's train and val.
    beyond_voc = sorted(set(published["train_aug"]) - set(published["train"]))
    of_sbd = {
        "train": beyond_voc[:5000] + published["val"][::3],
        "val": beyond_voc[5000:] + published["val"][1::3] + published["train"][::2],
    }
    for folder, members in ((lists, published), (sbd, of_sbd)):
        for part in ("train", "val"):
            (folder / f"{part}.txt").write_text("\n".join(members[part]))
    listed = PascalVoc.list_split(DataFolder(tmp_path), "train_aug", "voc21")
    assert sorted(item.image_id for item in listed) == sorted(published["train_aug"])
    assert PascalVoc.PUBLISHED_COUNTS["train_aug"] == len(published["train_aug"]) == len(listed) == 10_582
    for part in ("train", "val"):
        assert PascalVoc.PUBLISHED_COUNTS[part] == len(published[part])
    assert PascalVoc.PUBLISHED_COUNTS["trainval"] == len(set(published["train"] + published["val"]))


@pytest.mark.parametrize("root", ["voc", "voc/VOCdevkit", "voc/VOCdevkit/VOC2012"])
@pytest.mark.parametrize(
    "place", ["", "VOCdevkit", "VOCdevkit/VOC2012", "VOCdevkit/SBD", "VOCdevkit/VOC2012/SBD", "VOCdevkit/VOCaug", "torchvision"]
)
def test_any_root_and_any_place_of_sbd(drawn_voc, mini_voc, root, place):
    if place == "torchvision":  # which leaves out the folder `dataset`
        shutil.move(mini_voc / "benchmark_RELEASE" / "dataset", mini_voc / "SBD")
    elif place.endswith(("SBD", "VOCaug")):
        shutil.move(mini_voc / "benchmark_RELEASE", mini_voc / place)
    elif place:
        shutil.move(mini_voc / "benchmark_RELEASE", mini_voc / place / "benchmark_RELEASE")
    root = mini_voc.parent / root
    assert pixels(load(root, "train_aug")) == pixels(load(drawn_voc, "train_aug"))


def test_segmentation_class_aug_decides_the_label_maps(mini_voc, voc2012, sbd):
    folder = voc2012 / "SegmentationClassAug"
    folder.mkdir()
    for k, image_id in enumerate([*SBD_ONLY, *TRAIN, *VAL], start=1):
        PIL.Image.fromarray(np.full(SIZE, k, np.uint8)).save(folder / f"{image_id}.png")
    expected = [(image_id, {k}) for k, image_id in enumerate(SBD_ONLY + TRAIN, start=1)]
    for with_sbd in (True, False):
        rows = [(row["image_id"], set(np.unique(row["label_map"]))) for row in load(mini_voc, "train_aug")]
        assert rows == expected, with_sbd
        if with_sbd:
            shutil.rmtree(sbd)


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
def test_a_list_of_train_aug_decides_its_members(mini_voc, voc2012, name, line):
    chosen = [SBD_ONLY[2], TRAIN[1]]
    lines = "".join(f"{line.format(image_id)}\n" for image_id in chosen)
    (voc2012 / "ImageSets" / "Segmentation" / name).write_text(lines)
    assert load(mini_voc, "train_aug")["image_id"][:] == chosen


@pytest.mark.parametrize("streaming", [False, True])
def test_publishers_tar_file_gives_the_same(drawn_voc, mini_voc, streaming):
    with tarfile.open(mini_voc / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(mini_voc / "VOCdevkit", "VOCdevkit")
    shutil.rmtree(mini_voc / "VOCdevkit")
    for split in ("val", "train_aug"):
        assert pixels(load(mini_voc, split, streaming=streaming)) == pixels(load(drawn_voc, split))


def test_label_map_converted_to_colours(mini_voc, voc2012, drawn_voc):
    for file in (voc2012 / "SegmentationClass").iterdir():
        PIL.Image.open(file).convert("RGB").save(file)
    assert pixels(load(mini_voc, "trainval")) == pixels(load(drawn_voc, "trainval"))


def test_matlab_file_as_its_owner_structures_it(mini_voc, sbd):
    ids = np.random.default_rng(0).integers(0, 21, SIZE, dtype=np.uint8)
    # A struct with another field, each wrapped once, as in MATLAB's files.
    kind = [("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)]
    struct = np.array([[(np.zeros((20, 1)), ids, np.unique(ids)[:, None])]], dtype=kind)
    for compressed in (False, True):
        scipy.io.savemat(sbd / "cls" / f"{SBD_ONLY[0]}.mat", {"GTcls": struct}, do_compression=compressed)
        for streaming in (False, True):
            row = next(iter(load(mini_voc, "train_aug", streaming=streaming)))
            assert np.array_equal(np.asarray(row["label_map"]), ids)


def test_saved_dataset_holds_matlab_label_maps(mini_voc, drawn_voc, tmp_path):
    load(mini_voc, "train_aug").save_to_disk(tmp_path / "saved")
    shutil.rmtree(mini_voc)
    assert pixels(datasets.load_from_disk(tmp_path / "saved")) == pixels(load(drawn_voc, "train_aug"))


def rewrite(file, **fields):
    scipy.io.savemat(file, fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "cannot be read"),
        (lambda file: file.write_bytes(b"no MATLAB file at all"), "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (lambda file: rewrite(file, LabelMap=np.zeros(SIZE)), r"cannot be read \(no field GTcls\.Segmentation"),
        (lambda file: rewrite(file, GTcls={"Boundaries": 1}), r"cannot be read \(no field"),
        (lambda file: rewrite(file, GTcls={"Segmentation": np.zeros((5, 7), np.uint8)}), r"80×60 .* is 7×5"),
        (lambda file: file.unlink(), r"Image without its label map, 1 of 8: .*2008_000001\.jpg .*2008_000001\.mat"),
    ],
)
def test_bad_matlab_file_is_named(mini_voc, sbd, spoil, message):
    spoil(sbd / "cls" / f"{SBD_ONLY[1]}.mat")
    with pytest.raises(DataError, match=message) as caught:
        load(mini_voc, "train_aug")
    assert f"cls/{SBD_ONLY[1]}.mat" in str(caught.value)


def test_stray_id_in_a_matlab_file_is_named_when_it_is_read(mini_voc, sbd):
    rewrite(sbd / "cls" / f"{SBD_ONLY[0]}.mat", GTcls={"Segmentation": np.full(SIZE, 21, np.uint8)})
    with pytest.raises(DataError, match=r"2008_000000\.mat holds the ids 21, which label space 'voc21'"):
        load(mini_voc, "train_aug")[0]


def test_train_aug_without_its_label_maps(mini_voc, voc2012):
    shutil.rmtree(mini_voc / "benchmark_RELEASE")
    for folder in ((), ("SegmentationClassAug", "SegmentationClassAug")):  # unpacked into a folder too many
        voc2012.joinpath(*folder).mkdir(parents=True, exist_ok=True)
        with pytest.raises(DataError, match=r"no label maps for PASCAL VOC's train_aug: put SBD .*SegmentationClassAug"):
            load(mini_voc, "train_aug")
    shutil.rmtree(voc2012 / "SegmentationClassAug")
    (voc2012 / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(SBD_ONLY))
    with pytest.raises(DataError, match="no label maps for PASCAL VOC's train_aug"):
        load(mini_voc, "train_aug")
    # A list of VOC's own images needs only VOC.
    (voc2012 / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(TRAIN))
    assert load(mini_voc, "train_aug")["image_id"][:] == TRAIN


@pytest.mark.parametrize("name", ["train.txt", "val.txt"])
def test_missing_or_empty_list_is_named(mini_voc, voc2012, name):
    file = voc2012 / "ImageSets" / "Segmentation" / name
    file.write_text("\n\n")
    with pytest.raises(DataError, match=rf"Segmentation/{name} is empty"):
        load(mini_voc, name.removesuffix(".txt"))
    file.unlink()
    for split in (name.removesuffix(".txt"), "train_aug"):
        with pytest.raises(DataError, match=rf"Segmentation/{name} is missing.*lists there: .*trainval\.txt"):
            load(mini_voc, split)


@pytest.mark.parametrize(("folder", "suffix"), [("JPEGImages", "jpg"), ("SegmentationClass", "png")])
def test_file_without_partner_is_named(mini_voc, voc2012, folder, suffix):
    (voc2012 / folder / f"{TRAIN[1]}.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"without its .*, 1 of 4: .*{TRAIN[1]}.*{folder}/{TRAIN[1]}\.{suffix}"):
        load(mini_voc)


def test_list_that_leads_outside_finds_nothing_there(mini_voc, voc2012):
    (mini_voc / "secret.jpg").write_bytes(b"")
    (voc2012 / "ImageSets" / "Segmentation" / "val.txt").write_text("../../../secret\n")
    with pytest.raises(DataError, match=r"JPEGImages/secret\.jpg"):
        load(mini_voc, "val")


@pytest.mark.parametrize("below", ["JPEGImages", "ImageSets"])
def test_sub_folder_suggests_the_right_one(voc2012, below):
    with pytest.raises(DataError, match=f"is not PASCAL VOC: .*{voc2012} looks right"):
        load(voc2012 / below)


@pytest.mark.parametrize("repeated", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png"])
def test_image_that_a_list_names_twice(mini_voc, voc2012, repeated):
    with (voc2012 / "ImageSets" / "Segmentation" / "val.txt").open("a") as names:
        names.write(repeated.format(VAL[1]) + "\n")
    with pytest.raises(DataError, match=rf"Segmentation/val\.txt names '{VAL[1]}' twice: take one out"):
        load(mini_voc, "val")
