import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.data.miniature import write_camvid
from revhrnet_hf.data.street_scene import SCARCE, SCENE_CLASSES, draw_street_scene
from revhrnet_hf.errors import DataError

SIZE = (48, 64)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_camvid(tmp_path / name, {"train": 2}, SIZE, seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "c").keys()
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_picture_does_not_depend_on_how_many_others_there_are(tmp_path):
    write_camvid(tmp_path / "few", {"val": 2}, SIZE)
    write_camvid(tmp_path / "many", {"train": 1, "val": 3}, SIZE)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    pictures = [name for name in few if name.endswith(".png")]
    assert len(pictures) == 4
    assert all(few[name] == many[name] for name in pictures)
    assert len({many[name] for name in many if name.endswith(".png")}) == 8


def test_segnet_form_is_laid_out_like_the_real_one(mini_camvid, real_camvid):
    ours, theirs = ({path.name for path in folder.iterdir()} for folder in (mini_camvid, real_camvid))
    assert ours == theirs
    ours, theirs = ((folder / "val.txt").read_text().split()[:2] for folder in (mini_camvid, real_camvid))
    assert [part.rpartition("/")[0] for part in ours] == [part.rpartition("/")[0] for part in theirs]
    for folder in ("train", "trainannot"):
        ours, theirs = (PIL.Image.open(next((root / folder).iterdir())) for root in (mini_camvid, real_camvid))
        assert (ours.mode, ours.format) == (theirs.mode, theirs.format)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_occurs_in_eight_pictures(tmp_path, seed):
    write_camvid(tmp_path / "mini", {"train": 8, "val": 8}, (120, 160), seed)
    for split in ("train", "val"):
        rows = load_segmentation_dataset("camvid", tmp_path / "mini", split)
        counts = sum(np.bincount(np.asarray(row["label_map"]).ravel(), minlength=256) for row in rows)
        assert np.flatnonzero(counts[:11] < 20).tolist() == []


@pytest.mark.parametrize("scarce", SCARCE)
def test_the_scarce_thing_is_in_the_picture(scarce):
    scenes = [draw_street_scene(np.random.default_rng(seed), (60, 80), scarce) for seed in range(10)]
    seen = [(scene.classes == SCENE_CLASSES.index(scarce)).any() for scene in scenes]
    # Now and then something else stands before it.
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


def test_a_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="already holds files"):
        write_camvid(tmp_path, {"train": 1}, SIZE)
    assert contents(tmp_path) == {"mine.txt": b"keep"}
