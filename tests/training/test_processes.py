"""Two processes (gloo, on CPUs) learn and score what one does, and none waits for one that is gone."""

import json
import shutil
import time

import pytest
from safetensors.torch import load_file

from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.evaluation import evaluate_dataset, load_checkpoint

# Three pictures to score on; classes that weigh differently and padded crops, so that passes have different pixels that count.
UNEVEN = {"batch_size": 4, "epochs": 2, "log_every": 1, "class_weights": [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], "max_grad_norm": 5.0}


def losses(folder):
    return [line["loss"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if "loss" in line]


@pytest.fixture(scope="module")
def two(runs, tmp_path_factory):
    """A run on two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    for status, said in runs.start_several(2, folder, "camvid", ema_decay=0.5, **UNEVEN):
        assert status == 0, said
    return folder


@pytest.mark.slow
def test_same_scores_to_the_last_digit(two, streets):
    """Those of the run on two processes are those of its checkpoint in one, each picture counted once."""
    logged = json.loads((two / "last" / "scores.json").read_text())
    model, image_processor = load_checkpoint(two / "last")
    model.load_state_dict(averages(two / "last"))
    dataset = load_segmentation_dataset("camvid", streets["camvid"], "val")
    confusion = evaluate_dataset(model, image_processor, dataset, 11)
    scores = confusion.scores(model.config.id2label.values())
    assert logged["labelled_pixels"] == scores["labelled_pixels"] > 0
    assert logged["mean_iou"] == scores["mean_iou"]
    assert logged["per_category_accuracy"] == [None if a != a else a for a in scores["per_category_accuracy"]]


def averages(folder):
    tensors = load_file(folder / "averaged.safetensors")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items() if name != "n_averaged"}


@pytest.mark.slow
def test_same_losses_as_one_process(two, runs, tmp_path):
    """The same global batch, split into two forward passes after each other, gives the same curve: means are over all pixels."""
    status, said = runs.start(tmp_path / "one", "camvid", gradient_accumulation_steps=2, **UNEVEN)
    assert status == 0, said
    assert losses(two) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(two)) == 4


@pytest.mark.slow
def test_resumed_by_another_number(two, runs, log_of, tmp_path):
    """A signal to one of two processes stops both; two end as two would have, one goes on with a note."""
    folder = tmp_path / "stopped"
    for number, (step, where) in enumerate([(0, "step"), (2, "evaluating")]):
        fault = ("camvid", step, where, "SIGTERM")
        for status, said in runs.start_several(2, folder, "camvid", fault=fault, resume=number > 0, ema_decay=0.5, **UNEVEN):
            assert status == 143, said
            assert "SIGTERM: stopped after step 2 of 4; saved in " in said
            assert "Traceback" not in said
    shutil.copytree(folder, tmp_path / "as_one")
    for status, said in runs.start_several(2, folder, "camvid", resume=True, **UNEVEN, ema_decay=0.5):
        assert status == 0, said
    assert log_of(folder) == log_of(two)
    status, said = runs.start(tmp_path / "as_one", "camvid", resume=True, **UNEVEN, ema_decay=0.5)
    assert status == 0, said
    assert "note: saved by 2 process(es), going on with 1" in said
    refused = runs.start_several(3, tmp_path / "as_one", "camvid", resume=True, **UNEVEN, ema_decay=0.5)
    assert [status for status, _ in refused] == [1, 1, 1]
    assert "batch_size 4 cannot be split evenly over 3 processes" in refused[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGKILL", "SIGSTOP"])
def test_one_is_gone(runs, tmp_path, what):
    """A process that has been killed ends the other one's run at once, one that stands still after the timeout."""
    begun = time.monotonic()
    fault = ("camvid", 3, "step", what)
    (status, said), _ = runs.start_several(2, tmp_path / "run", "camvid", fault=fault, timeout=10, **UNEVEN)
    assert status == 1, said
    assert "error: Process 0 got no answer from another one" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert time.monotonic() - begun < 90
