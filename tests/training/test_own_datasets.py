"""Own data from its folder to a checkpoint: several folders with names of their own, mixed and in a chain."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage


def write_folder(folder, ids, table, label_name="{}.png", count=5, seed=0):
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        label_map = np.kron(rng.choice(ids, (3, 4)), np.ones((16, 16))).astype(np.uint8)
        Image.fromarray(np.stack([label_map * 20] * 3, -1)).save(folder / "images" / f"{number}.jpg")
        Image.fromarray(label_map).save(folder / "masks" / label_name.format(number))
    (folder / "labels.yaml").write_text(table)
    return folder


def small(weights, **settings):
    tiny = {"variant": "w18", "num_modules": [1, 1, 1], "num_blocks": 1, "crop_size": [32, 32], "base_size": 64}
    run = {"epochs": 1, "batch_size": 2, "num_workers": 0, "trackers": [], "initializer": "he", "log_images": 0}
    return Recipe.from_dict({"backbone": "test_resnet", "backbone_weights": str(weights), **tiny, **run, **settings})


@pytest.fixture
def folders(tmp_path):
    return {
        "photos": write_folder(tmp_path / "a", [0, 1, 2], "names: [road, car, tree]\nval_fraction: 0.4\n"),
        "scans": write_folder(tmp_path / "b", [7, 9], "names: {car: 7, road: 9}\nval_fraction: 0.4\n", "{}_mask.png", seed=1),
    }


PHOTOS, SCANS = {"name": "photos", "loader": "folder"}, {"name": "scans", "loader": "folder"}


def test_two_folders_are_mixed(weights, folders, tmp_path, capsys, caplog):
    stage = Stage(small(weights, dataset=PHOTOS, more_datasets=[SCANS]), folders, tmp_path / "out")
    assert [(entry.name, len(entry.images)) for entry in stage.data.sets] == [("photos", 3), ("scans", 3)]
    assert len(stage.evaluation.dataset) == 2 and stage.evaluation.label_space.names == ("road", "car", "tree")
    # The second folder's ids in the first one's classes: car is 1 there, road 0.
    assert {value for row in stage.data.sets[1].images for value in row["label_map"].tobytes()} == {0, 1}
    stage.run()
    (history,) = AutoConfig.from_pretrained(tmp_path / "out" / "best").training_history
    assert history["dataset"] == "photos + scans"
    assert history["recipe"]["loader"] == "folder" and history["recipe"]["more_datasets"] == ["scans,loader=folder"]
    assert "scans:train: 3 images" in capsys.readouterr().out and "no pixel" not in caplog.text


def test_two_folders_in_a_chain(weights, folders, tmp_path):
    recipes = [small(weights, dataset=dataset) for dataset in (SCANS, PHOTOS)]
    run_chain(recipes, folders, tmp_path / "out")
    assert (tmp_path / "out" / "1_scans" / "best").is_dir()
    history = AutoConfig.from_pretrained(tmp_path / "out" / "best").training_history
    assert [stage["dataset"] for stage in history] == ["scans", "photos"]
    first = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert first["classifier_rows"] == {"road": ["road"], "car": ["car"], "tree": []}


def test_a_class_without_pixels_is_said_before_the_first_step(weights, tmp_path, caplog):
    folder = write_folder(tmp_path / "a", [0, 255], "names: [background, person]\nval_fraction: 0.4\n")
    Stage(small(weights, dataset="folder"), folder, tmp_path / "out")
    (said,) = caplog.messages
    assert said.startswith("The class 'person' (id 1) has no pixel in the 3 label maps that are trained on")
    assert "names: {background: 0, person: 255}" in said
