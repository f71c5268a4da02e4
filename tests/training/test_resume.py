"""A run that is killed, stopped or damaged is resumed and ends as one that was left alone."""

import json
import random
import shutil
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from revhrnet_hf.training.checkpoint_files import damage

from .conftest import CLOCK

STAGES = ("cityscapes", "camvid")
# Checkpoints fall between log lines, and both between the ends of epochs of 5 steps.
DEMANDING = {
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 5.0,
    "num_workers": 2,
    "ema_decay": 0.9,
    "save_every": 2,
    "log_every": 3,
    "trackers": ["tensorboard"],
}


def tensors(folder):
    return {(path.name, name): tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def scalars(folder):
    """What TensorBoard shows: (step, value) by tag."""
    events = EventAccumulator(str(folder / "tensorboard" / "revhrnet"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in CLOCK]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def without_clock(file):
    """The content of a JSON file but for the seconds that training took."""
    content = json.loads(file.read_text())
    for entry in (content, *content.get("training_history", [])):
        entry.pop("seconds", None)
    return content


def assert_same(one, other, log_of):
    """Every tensor, state, score and log line of two runs of one stage."""
    for name in ("last", "best"):
        a, b = tensors(one / name), tensors(other / name)
        assert a.keys() == b.keys()
        differing = [key for key in a if not torch.equal(a[key], b[key])]
        assert not differing, differing[:5]
        for file in ("config.json", "scores.json", *(["training_state.json"] if name == "last" else [])):
            assert without_clock(one / name / file) == without_clock(other / name / file), file
    assert log_of(one) == log_of(other)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """An undisturbed chain."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, said = runs.start(folder, *STAGES, scaler=True, **DEMANDING)
    assert status == 0, said
    return folder


def kill_points(seed):
    """Places in the order in which a chain of 2 × 10 steps comes to them."""
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, 20), 4))
    for step in steps:
        yield STAGES[step >= 10], step % 10, draw.choice(["step", "pass"])


@pytest.mark.slow
def test_killed_again_and_again(runs, whole, log_of, tmp_path):
    """SIGKILL at random steps of both stages, between forward passes, in saving, between two renames, in an evaluation."""
    folder = tmp_path / "run"
    points = [
        ("cityscapes", 4, "saving"),
        ("cityscapes", 5, "evaluating"),
        *kill_points(seed=5),
        ("camvid", 8, "moving"),
        ("camvid", 10, "evaluating"),
    ]
    points.sort(key=lambda point: (STAGES.index(point[0]), point[1]))
    for number, point in enumerate(points):
        status, said = runs.start(folder, *STAGES, resume=number > 0, fault=(*point, "SIGKILL"), scaler=True, **DEMANDING)
        assert status == -signal.SIGKILL, (point, said)
    status, said = runs.start(folder, *STAGES, resume=True, scaler=True, **DEMANDING)
    assert status == 0, said
    assert_same(whole, folder, log_of)
    assert_same(whole / "1_cityscapes", folder / "1_cityscapes", log_of)
    for stage in (".", "1_cityscapes"):
        assert scalars(whole / stage) == scalars(folder / stage)
    assert len(scalars(whole)["loss"]) == 4
    assert json.loads((whole / "last" / "training_state.json").read_text())["scaler"]["_growth_tracker"] == 10 % 3


@pytest.mark.slow
def test_killed_with_adapters(runs, log_of, tmp_path):
    """LoRA with fp16's scaler, saved beside the next steps: weights and adapters are separate again after a resume, from
    `init_from`'s weights in the second stage too."""
    settings = {"trainable_backbone": "lora", "lora_rank": 2, **DEMANDING, "epochs": 1}
    settings |= {"save_in_background": True, "scaler": True}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    status, said = runs.start(whole, *STAGES, **settings)
    assert status == 0, said
    for number, point in enumerate([("cityscapes", 5, "saving"), ("camvid", 3, "step"), ("camvid", 5, "evaluating")]):
        status, said = runs.start(folder, *STAGES, resume=number > 0, fault=(*point, "SIGKILL"), **settings)
        assert status == -signal.SIGKILL, (point, said)
    status, said = runs.start(folder, *STAGES, resume=True, **settings)
    assert status == 0, said
    for stage in (".", "1_cityscapes"):
        assert_same(whole / stage, folder / stage, log_of)
    separate = load_file(whole / "last" / "lora.safetensors")
    first = load_file(whole / "1_cityscapes" / "best" / "model.safetensors")
    layers = {name.partition(".base_layer.")[0] for name in separate if ".base_layer." in name}
    assert len(layers) > 10
    for layer in layers:  # frozen: the weights that the stage began with
        assert torch.equal(separate[f"{layer}.base_layer.weight"], first[f"{layer}.weight"])
    averaged = {key: x for key, x in load_file(whole / "last" / "averaged.safetensors").items() if "lora_B" in key}
    assert any(x.abs().sum() > 0 for x in averaged.values())
    del separate, first
    (folder / "last" / "lora.safetensors").unlink()  # a file of the state like any other: the checkpoint before it is used
    assert damage(folder / "last") == "lora.safetensors is missing"


@pytest.mark.slow
def test_stopped_by_signals(runs, whole, log_of, tmp_path):
    """SIGINT and SIGTERM, also in saving and in evaluations, to the training process and to its workers before it: all is saved,
    the exit status says so, `--resume` is named."""
    folder = tmp_path / "run"
    faults = [
        ("cityscapes", 4, "saving", "SIGINT", "stopped after step 5 of 10"),  # saved first, then one step on
        ("cityscapes", 5, "evaluating", "SIGTERM", "stopped after step 5 of 10"),
        ("cityscapes", 7, "pass", "SIGINT to all", "stopped after step 8 of 10"),
        ("cityscapes", 10, "saving", "SIGTERM", "stopped after step 10 of 10"),
        ("camvid", 6, "pass", "SIGTERM to all", "stopped after step 7 of 10"),
        ("camvid", 10, "evaluating", "SIGINT to all", "stopped after step 10 of 10"),
    ]
    for number, (*fault, expected) in enumerate(faults):
        status, said = runs.start(folder, *STAGES, resume=number > 0, fault=fault, scaler=True, **DEMANDING)
        name = fault[3].split()[0]
        assert status == 128 + signal.Signals[name], (fault, said)
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"{name}: {expected}; saved in "), last
        assert last.endswith("To resume, run the same command with --resume")
        assert "Traceback" not in said
    status, said = runs.start(folder, *STAGES, resume=True, scaler=True, **DEMANDING)
    assert status == 0, said
    assert_same(whole, folder, log_of)
    assert_same(whole / "1_cityscapes", folder / "1_cityscapes", log_of)
    assert scalars(whole) == scalars(folder)


@pytest.mark.slow
def test_stopped_after_an_epoch_without_a_checkpoint(runs, log_of, tmp_path):
    """It is saved then."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    settings = {"epochs": 2, "save_every_epochs": 2}
    status, said = runs.start(whole, "camvid", **settings)
    assert status == 0, said
    status, said = runs.start(folder, "camvid", fault=("camvid", 5, "saving best", "SIGTERM"), **settings)
    assert status == 143 and f"stopped after step 5 of 10; saved in {folder / 'last'}" in said
    status, said = runs.start(folder, "camvid", resume=True, **settings)
    assert status == 0, said
    assert_same(whole, folder, log_of)


@pytest.mark.slow
def test_stopped_before_the_first_step(runs, log_of, tmp_path):
    """In the evaluation of what the weights to begin with can do, of either stage."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    settings = {"epochs": 1, "eval_at_start": True, "num_workers": 1}
    status, said = runs.start(whole, *STAGES, **settings)
    assert status == 0, said
    for data in STAGES:
        fault = (data, 0, "evaluating", "SIGTERM")
        status, said = runs.start(folder, *STAGES, resume=True, fault=fault, **settings)
        assert status == 143, said
        last = said.strip().splitlines()[-1]
        assert last == "SIGTERM: stopped before the first step. To resume, run the same command with --resume"
    status, said = runs.start(folder, *STAGES, resume=True, **settings)
    assert status == 0, said
    assert_same(whole, folder, log_of)
    assert_same(whole / "1_cityscapes", folder / "1_cityscapes", log_of)


@pytest.fixture(scope="module")
def five_steps(runs, tmp_path_factory):
    """A run with checkpoints after 2, 4 and 5 steps."""
    folder = tmp_path_factory.mktemp("five") / "run"
    status, said = runs.start(folder, "camvid", epochs=1, save_every=2, keep_checkpoints=3)
    assert status == 0, said
    assert {path.name for path in folder.iterdir()} == {
        "best",
        "last",
        "checkpoint-2",
        "checkpoint-4",
        "log.jsonl",
        "report.html",
        ".lock",
    }
    return folder


class TestDamage:
    """What is damaged is named, and the checkpoint before is used."""

    def resumed(self, runs, folder):
        return runs.start(folder, "camvid", epochs=1, save_every=2, keep_checkpoints=3, resume=True)

    @pytest.fixture
    def copy(self, five_steps, tmp_path):
        return shutil.copytree(five_steps, tmp_path / "run")

    def test_sums_are_those_of_sha256sum(self, five_steps):
        for name in ("last", "best", "checkpoint-4"):
            subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=five_steps / name, check=True)

    def test_the_one_before_is_used(self, runs, five_steps, copy, log_of):
        flip_bit(copy / "last" / "optimizer.safetensors")
        with (copy / "checkpoint-4" / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        status, said = self.resumed(runs, copy)
        assert status == 0, said
        assert f"warning: {copy / 'last'} is damaged: optimizer.safetensors is not what was written" in said
        assert f"warning: {copy / 'checkpoint-4'} is damaged: model.safetensors is not" in said
        assert "checkpoint-2 is used instead" in said
        assert "resumed after step 2 of 5" in said
        assert (copy / "last.damaged").is_dir()
        assert_same(five_steps, copy, log_of)

    def test_none_is_whole(self, runs, copy):
        (copy / "last" / "training_state.json").unlink()
        for name in ("checkpoint-4", "checkpoint-2"):
            (copy / name / "SHA256SUMS").write_text("")
        before = sorted(path.name for path in copy.iterdir())
        for _ in range(2):  # nothing is moved, so that the second try is no new run
            status, said = self.resumed(runs, copy)
            assert status == 1
            assert said.startswith("error: No checkpoint to resume from is whole: ")
            assert f"{copy / 'last'}: training_state.json is missing" in said
        assert sorted(path.name for path in copy.iterdir()) == before

    def test_pickle_is_refused(self, runs, copy, tmp_path):
        class Planted:
            def __reduce__(self):
                return (open, (str(tmp_path / "executed"), "w"))

        torch.save(Planted(), copy / "last" / "pytorch_model.bin")
        (copy / "last" / "model.safetensors").unlink()
        status, said = self.resumed(runs, copy)
        assert status == 1
        assert "pytorch_model.bin was not written by this program" in said
        assert not (tmp_path / "executed").exists()

    def test_another_recipe(self, runs, copy):
        status, said = runs.start(copy, "camvid", epochs=1, learning_rate=0.5, crop_size=[32, 32], num_workers=1, resume=True)
        assert status == 1
        assert "crop_size was [32, 48], is [32, 32]; learning_rate was 0.05, is 0.5. Resume with the same" in said
        assert "num_workers" not in said

    def test_disk_full(self, runs, five_steps, tmp_path, log_of):
        """The third checkpoint does not fit: the second stays whole, nothing is left over, and the run can be resumed."""
        folder = tmp_path / "run"
        settings = {"epochs": 1, "save_every": 2, "keep_checkpoints": 3}
        largest = max(path.stat().st_size for path in five_steps.rglob("*.safetensors"))
        status, said = runs.start(folder, "camvid", fault=("camvid", 4, "saving", largest // 2), **settings)
        assert status == 1
        assert f"error: Cannot write {folder / 'last'}: " in said
        assert "too large" in said.lower()
        assert "what was saved before is whole. Make room, then resume with --resume" in said
        assert "Traceback" not in said
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "last"]
        assert damage(folder / "last") is None
        status, said = runs.start(folder, "camvid", resume=True, **settings)
        assert status == 0, said
        assert_same(five_steps, folder, log_of)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
