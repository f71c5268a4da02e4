"""A run is resumed on the data that it began with, and what it is scored on is labelled and new to it."""

import copy
import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.dataset_checks import refuse_other_data, refuse_unlabelled
from revhrnet_hf.training.dry_run import dry_run
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage


@pytest.fixture
def camvid(streets, tmp_path):
    return shutil.copytree(streets["camvid"], tmp_path / "camvid")


@pytest.fixture
def recipe(runs):
    return Recipe(dataset="camvid", **runs.settings)


def remove_images(folder, split, *numbers):
    for number in numbers:
        edit_list(
            folder / f"{split}.txt",
            lambda text, name=f"{number:05d}.png": "".join(line for line in text.splitlines(keepends=True) if name not in line),
        )


def rename_image(folder, split, number, name):
    old = f"mini_{split}_{number:05d}.png"
    for part in (split, f"{split}annot"):
        (folder / part / old).rename(folder / part / name)
    edit_list(folder / f"{split}.txt", lambda text: text.replace(old, name))


def edit_list(path, edit):
    path.write_text(edit(path.read_text()))


def state_of(folder):
    return json.loads((folder / "last" / "training_state.json").read_text())


def test_resumed_on_other_data(recipe, camvid, tmp_path):
    """More images, fewer, others, others to score on: refused with the difference, and nothing is touched."""
    stage = Stage(recipe, camvid, tmp_path / "run")
    stage.log.start({})
    stage.save()
    stage.lock.close()
    ids = [f"mini_train_{number:05d}" for number in range(10)]
    (train,) = state_of(tmp_path / "run")["data"]["trained_on"]
    assert train == {"split": "camvid:train", "images": 10, "ids": hashlib.sha256(json.dumps(ids).encode()).hexdigest()}

    changes = {
        "camvid:train had 10 images, has 8": lambda folder: remove_images(folder, "train", 1, 3),
        "camvid:val had 3 images, has 2": lambda folder: remove_images(folder, "val", 2),
        r"camvid:train has 10 images as before, but other ones": lambda folder: rename_image(folder, "train", 3, "zebra.png"),
        r"camvid:val has 3 images as before, but other ones": lambda folder: rename_image(folder, "val", 0, "zebra.png"),
    }
    before = state_of(tmp_path / "run")
    for number, (said, change) in enumerate(changes.items()):
        other = shutil.copytree(camvid, tmp_path / f"camvid{number}")
        change(other)
        with pytest.raises(CheckpointError, match=f"started on other data: {said}"):
            Stage(recipe, other, tmp_path / "run", resume=True)
        assert state_of(tmp_path / "run") == before
    moved = shutil.copytree(camvid, tmp_path / "moved")  # the same data at another place are the same
    assert Stage(recipe, moved, tmp_path / "run", resume=True).state.data == before["data"]


def test_other_classes():
    """The names in their order, and what ids mean them."""
    before = {
        "trained_on": [],
        "scored_on": {"split": "camvid:val", "images": 3, "ids": "a"},
        "classes": {"names": ["road", "tree", "car"], "table": "b"},
    }
    refuse_other_data(before, copy.deepcopy(before))
    for classes, said in (
        ({"names": ["road", "tree", "bus"], "table": "c"}, r"classes: gone \['car'\], new \['bus'\]"),
        ({"names": ["tree", "road", "car"], "table": "c"}, "the classes have another order"),
        ({"names": ["road", "tree", "car"], "table": "c"}, "the label table gives the classes other ids or colours"),
    ):
        with pytest.raises(CheckpointError, match=said):
            refuse_other_data(before, {**before, "classes": classes})


def test_another_table_of_a_further_dataset():
    def data(table):
        split = {"split": "scans:all", "images": 3, "ids": "a"} | ({} if table is None else {"table": table})
        return {
            "trained_on": [{"split": "photos:train", "images": 2, "ids": "b"}, split],
            "scored_on": {"split": "photos:val", "images": 3, "ids": "a"},
            "classes": {"names": ["road"], "table": "b"},
        }

    refuse_other_data(data("x"), data("x"))
    refuse_other_data(data(None), data("x"))  # an earlier version did not note it
    with pytest.raises(CheckpointError, match="the label table of scans:all gives the classes other ids or colours"):
        refuse_other_data(data("x"), data("y"))


def test_an_edited_table_of_a_further_dataset_is_noticed(recipe, camvid, tmp_path):
    folder = tmp_path / "scans"
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
        image = Image.new("RGB" if kind == "images" else "L", (64, 48))
        image.save(folder / kind / "train" / "a.png")
    (folder / "labels.yaml").write_text("names: [Road, Car]\n")
    recipe = replace(recipe, more_datasets=["scans,loader=folder"], dataset_shares=None)
    folders = {"camvid": camvid, "scans": folder}
    stage = Stage(recipe, folders, tmp_path / "run")
    stage.log.start({})
    stage.save()
    stage.lock.close()
    Stage(recipe, folders, tmp_path / "run", resume=True).lock.close()
    (folder / "labels.yaml").write_text("names: [Car, Road]\n")
    with pytest.raises(CheckpointError, match="the label table of scans:train gives the classes other ids"):
        Stage(recipe, folders, tmp_path / "run", resume=True)


def test_state_of_an_older_version(recipe, camvid, tmp_path):
    """It does not say what its data were, and is resumed."""
    stage = Stage(recipe, camvid, tmp_path / "run")
    stage.state.data = None
    stage.log.start({})
    stage.save()
    stage.lock.close()
    assert state_of(tmp_path / "run")["data"] is None
    assert Stage(recipe, camvid, tmp_path / "run", resume=True).state.data is not None


def ignore_all(folder, split, besides=()):
    void = label_space_of(load_segmentation_dataset("camvid", folder, split)).raw_ids
    (raw_id,) = (raw for raw, train_id in void.items() if train_id == 255)
    for number, path in enumerate(sorted((folder / f"{split}annot").glob("*.png"))):
        ids = np.full(np.asarray(Image.open(path)).shape, raw_id, np.uint8)
        if number in besides:
            ids[-1, -1] = 0
        Image.fromarray(ids).save(path)


def test_nothing_to_score_on(recipe, camvid, tmp_path):
    """Before anything is written. One pixel, in the last label map, suffices."""
    ignore_all(camvid, "val")
    with pytest.raises(DataError, match=r"camvid:val: no pixel of its 3 label maps has a class, so that nothing can be scored"):
        Stage(recipe, camvid, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    ignore_all(camvid, "val", besides=[2])
    refuse_unlabelled(load_segmentation_dataset("camvid", camvid, "val"), "camvid:val", 255)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 2, "gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("dry", [False, True])
def test_one_value_a_channel(recipe, camvid, tmp_path, dry, settings):
    """BatchNorm has no variance of one value: the crop and the batch are named, in training and in a dry run."""
    small = Recipe(**{**vars(recipe), "crop_size": [32, 32], "base_size": 64, **settings})
    said = rf"crop_size 32 32 with 1 image\(s\) in a forward pass \(batch_size {settings['batch_size']}, gradient_acc"
    with pytest.raises(RecipeError, match=said):
        (dry_run if dry else run_chain)([small], {"camvid": camvid}, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"train_split": "train[::4]", "eval_split": "train[1::4]"}, None),
        ({"train_split": "trainval"}, "3 of the 3 images of camvid:val"),
        ({"eval_split": "train[2:]"}, "8 of the 8 images of camvid:train[2:]"),
        ({"train_split": "train[::4]", "eval_split": "train[::2]"}, "3 of the 5 images of camvid:train[::2]"),
        ({"more_datasets": ["camvid:val"]}, "3 of the 3 images of camvid:val"),
    ],
    ids=str,
)
def test_images_that_are_scored_and_trained_on(recipe, camvid, tmp_path, caplog, settings, said):
    Stage(replace(recipe, **settings), camvid, tmp_path / "run")
    warnings = [message for message in caplog.messages if "trained on as well" in message]
    assert [message.partition(",")[0] for message in warnings] == ([] if said is None else [said])
