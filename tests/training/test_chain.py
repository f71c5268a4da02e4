"""Chains on drawn scenes: stage after stage, the classifier is transferred, finished stages stay, interrupted ones resume."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import revhrnet_hf
from revhrnet_hf.data import get_label_space
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.models.configuration_revhrnet import DEFAULT_BACKBONE
from revhrnet_hf.synthetic import write_camvid, write_cityscapes, write_mapillary_vistas
from revhrnet_hf.training import chain
from revhrnet_hf.training import data as training_data
from revhrnet_hf.training.chain import check_chain, run_chain
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    counts = {"train": 8, "val": 2}
    write_mapillary_vistas(folder / "mapillary_vistas", counts, size=(96, 128))
    write_cityscapes(folder / "cityscapes", counts, size=(96, 128))
    write_camvid(folder / "camvid", counts, size=(96, 128))
    return folder


@pytest.fixture
def recipes(weights):
    """Makes the recipes of a chain over the datasets of these names."""

    def make(*names, **settings):
        common = {
            "variant": "w18",
            "backbone": "test_resnet",
            "backbone_weights": str(weights),
            "num_modules": [1, 1, 1],
            "num_blocks": 1,
            "head": "concat",
            "initializer": "he",
            "batch_norm_momentum": 0.1,
            "crop_size": [64, 96],
            "base_size": 128,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.05,
            "num_workers": 0,
            "log_every": 1,
            "trackers": [],
        }
        return [Recipe(dataset=name, **{**common, **settings}) for name in names]

    return make


def folders_of(data, names):
    return {name: data / name for name in names}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_three_stages(data, recipes, tmp_path, capsys):
    names = ["mapillary_vistas", "cityscapes", "camvid"]
    results = run_chain(recipes(*names), folders_of(data, names), tmp_path)
    said = capsys.readouterr().out
    assert "stage 2 of 3: cityscapes" in said
    assert "  road ← Crosswalk - Plain + Road + " in said
    folders = [tmp_path / "1_mapillary_vistas", tmp_path / "2_cityscapes", tmp_path]
    classes = [65, 19, 11]
    for folder, num_labels, scores in zip(folders, classes, results, strict=True):
        model = revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained(folder / "best")
        assert model.config.num_labels == num_labels
        assert log_of(folder)[-1]["mean_iou"] == scores["mean_iou"]
    history = model.config.training_history
    assert [entry["dataset"] for entry in history] == names
    assert [entry["images"] for entry in history] == [8, 8, 8]
    assert history[2]["scores"]["mean_iou"] == json.loads((tmp_path / "best" / "scores.json").read_text())["mean_iou"]
    assert str(tmp_path) not in json.dumps(history)

    # The second stage began with the first one's best weights: its frozen backbone has them, and the log its rows.
    first, second = (load_file(folder / "best" / "model.safetensors") for folder in folders[:2])
    assert all(torch.equal(first[name], second[name]) for name in first if ".backbone." in name)
    begun = log_of(folders[1])[0]
    assert begun["classifier_rows"]["sidewalk"] == ["Curb", "Bike Lane", "Curb Cut", "Pedestrian Area", "Sidewalk"]

    # All is finished: nothing is trained again.
    assert run_chain(recipes(*names), folders_of(data, names), tmp_path, resume=True) == [None, None, None]


def test_interrupted_chain_ends_as_one_that_was_not(data, recipes, tmp_path, monkeypatch):
    names = ["mapillary_vistas", "camvid"]
    folders = folders_of(data, names)
    run_chain(recipes(*names), folders, tmp_path / "whole")

    train_epoch = Stage.train_epoch

    def interrupted(self, epoch, progress):
        if self.recipe.dataset == "camvid" and epoch == 1:
            raise KeyboardInterrupt
        train_epoch(self, epoch, progress)

    monkeypatch.setattr(Stage, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_chain(recipes(*names), folders, tmp_path / "broken")
    monkeypatch.undo()
    first, second = run_chain(recipes(*names), folders, tmp_path / "broken", resume=True)
    assert first is None
    assert second is not None
    whole, broken = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    configs = [json.loads((tmp_path / name / "last" / "config.json").read_text()) for name in ("whole", "broken")]
    for config in configs:
        assert all(stage.pop("seconds") > 0 for stage in config["training_history"])
    assert configs[0] == configs[1]


# As `lock_file`, without the package, whose import takes seconds.
HOLD = """
import fcntl, sys
held = open(sys.argv[1], "r+b")
fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def test_overwrite_keeps_a_run_that_is_at_work_in_a_later_stage(data, recipes, tmp_path):
    """Of the earlier stages nothing is deleted either; without such a run all of the old chain goes."""
    names = ["cityscapes", "camvid"]
    run_chain(recipes(*names, epochs=1), folders_of(data, names), tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    at_work = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert at_work.stdout.readline() == b"held\n"
    with pytest.raises(CheckpointError, match=f"Another run is at work in {tmp_path}:"):
        run_chain(recipes(*names, epochs=1), folders_of(data, names), tmp_path, overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
    at_work.communicate()

    class Killed(Stage):
        def run(self):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(chain, "Stage", Killed)
        run_chain(recipes(*names, epochs=1), folders_of(data, names), tmp_path, overwrite=True)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        ".lock",
        "1_cityscapes",
        "1_cityscapes/.lock",
    ]


def test_without_transfer_the_rows_are_random(data, recipes, tmp_path):
    run_chain(recipes("cityscapes", epochs=1), folders_of(data, ["cityscapes"]), tmp_path / "first")
    rows = []
    for transfer in (True, False):
        (recipe,) = recipes("camvid", init_from=str(tmp_path / "first" / "best"), transfer_classifier=transfer)
        rows.append(Stage(recipe, data / "camvid", tmp_path / str(transfer)).learner.model.head[3].weight.detach())
    before = load_file(tmp_path / "first" / "best" / "model.safetensors")["head.3.weight"]
    road = get_label_space("camvid11").label2id["Road"]
    assert torch.equal(rows[0][road], before[0])
    assert not torch.equal(rows[1][road], before[0])


def test_all_is_looked_at_before_the_first_stage_begins(data, recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "Stage", None)  # nothing may be trained
    names = ["mapillary_vistas", "camvid"]
    with pytest.raises(DataError, match="nowhere does not exist"):
        run_chain(recipes(*names), {"mapillary_vistas": data / "mapillary_vistas", "camvid": Path("nowhere")}, tmp_path / "out")
    first, second = recipes(*names)
    second.precision = "bf16"
    with pytest.raises(RecipeError, match="same precision"):
        run_chain([first, second], folders_of(data, names), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "best").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds best, where a run would write, and no run"):
        run_chain(recipes(*names), folders_of(data, names), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trackers": ["paper"]}, "Recipe field trackers: unknown 'paper'"),
        ({"class_weights": [1.0]}, "class_weights must have one value a class: it has 1, and 'camvid11' has 11"),
        ({"batch_size": 64}, "batch_size 64 is more than the 8 images"),
        ({"variant": "w64"}, "known are w18, w32, w48"),
        ({"head": "single"}, "init_from {folder}/1_cityscapes/best is of another network than the recipe's: "),
        ({"trainable_backbone": "all", "layer_decay": 0.75}, "layer_decay is for plain vision transformers"),
    ],
    ids=str,
)
def test_a_later_stage_is_looked_at_before_the_first_begins(data, recipes, tmp_path, settings, said):
    (first,), (second,) = recipes("cityscapes"), recipes("camvid", **settings)
    said = "stage 2 of 2, camvid: .*" + re.escape(said.format(folder=tmp_path))
    with pytest.raises(RecipeError, match=said):
        check_chain([first, second], folders_of(data, ["cityscapes", "camvid"]), tmp_path, resume=False, overwrite=False)


def test_weights_are_neither_read_nor_counted_before_the_first_stage_begins(data, recipes, tmp_path, monkeypatch):
    monkeypatch.setattr("revhrnet_hf.training.class_weights.class_pixel_counts", None)
    (first,) = recipes("cityscapes", backbone_weights="nothing.pth", class_weights="auto")
    settings = {"class_weights": "effective_number", "effective_number_beta": 0.9, "trainable_backbone": "lora"}
    (second,) = recipes("camvid", backbone_weights="nothing.pth", **settings)
    folders, _ = check_chain([first, second], folders_of(data, ["cityscapes", "camvid"]), tmp_path, resume=False, overwrite=False)
    assert folders == [tmp_path / "1_cityscapes", tmp_path]


def test_data_of_the_first_stage_are_loaded_once(data, recipes, tmp_path, monkeypatch):
    """They were listed for the checks of all stages, just before the first begins; a later stage may begin days after them."""
    loaded, learnt, load = [], [], training_data.load_segmentation_dataset

    def noted(name, data_dir, split, **options):
        loaded.append((name, split))
        return load(name, data_dir, split, **options)

    def ended(self):
        learnt.append(self.data.sets[0].images["image_id"])
        (self.output_dir / "best").mkdir()
        self.learner.model.save_pretrained(self.output_dir / "best")
        self.learner.image_processor.save_pretrained(self.output_dir / "best")

    monkeypatch.setattr(training_data, "load_segmentation_dataset", noted)
    monkeypatch.setattr(Stage, "run", ended)
    names = ["cityscapes", "camvid"]
    run_chain(recipes(*names), folders_of(data, names), tmp_path)
    splits = [[(name, split) for split in ("train", "val")] for name in names]
    assert loaded == [*splits[0], *splits[1], *splits[1]]
    assert learnt == [load(name, data / name, "train")["image_id"] for name in names]


def test_recipes_may_be_used_twice(data, recipes, tmp_path, monkeypatch):
    """The second chain begins from its own first stage, and not from that of the first chain."""
    begun = []

    class Noted:
        def __init__(self, recipe, data_dirs, folder, *_):
            begun.append((folder, recipe.init_from))

        def run(self):
            pass

    monkeypatch.setattr(chain, "Stage", Noted)
    names = ["cityscapes", "camvid"]
    both = recipes(*names)
    for folder in (tmp_path / "a", tmp_path / "b"):
        run_chain(both, folders_of(data, names), folder)
        assert begun[-2:] == [(folder / "1_cityscapes", None), (folder, str(folder / "1_cityscapes" / "best"))]


def test_hrnet_from_scratch(data, recipes, tmp_path):
    """The baseline by the same recipes; its ImageNet weights are asked for unless it is told to begin at random."""
    settings = {"architecture": "hrnetv2", "variant": "w18-small-v1", "num_blocks": None, "num_modules": None, "epochs": 1}
    settings |= {"backbone": DEFAULT_BACKBONE, "head": "single"}  # without effect here, so other values are errors
    with pytest.raises(RecipeError, match=r"Cannot fetch timm's weights 'hrnet_w18_small"):
        run_chain(recipes("camvid", **settings, backbone_weights=None), folders_of(data, ["camvid"]), tmp_path / "a")
    run_chain(recipes("camvid", **settings, backbone_weights="random"), folders_of(data, ["camvid"]), tmp_path / "b")
    config = json.loads((tmp_path / "b" / "best" / "config.json").read_text())
    assert (config["model_type"], config["stream_channels"]) == ("hrnetv2", [16, 32, 64, 128])
