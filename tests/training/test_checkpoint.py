"""Folders are replaced whole, and an output folder is never taken over by accident."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training.checkpoint import (
    TrainingState,
    claim_output_dir,
    load_training_state,
    optimizer_tensors,
    recover,
    restore_optimizer_tensors,
    save_training_state,
)
from revhrnet_hf.training.integrity import damage, write_checkpoint, write_checksums
from revhrnet_hf.training.optimization import build_optimizer
from revhrnet_hf.training.recipe import Recipe


def test_failing_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "last"
    write_checkpoint(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"Cannot write .*last: disk full; what was saved before is whole"):
        write_checkpoint(target, fail)
    assert (target / "a").read_text() == "old"
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_between_the_renames(tmp_path):
    """The old folder has been moved away, the new one has not arrived: the old one comes back."""
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "a").write_text("old")
    (tmp_path / "last.new").mkdir()
    recover(tmp_path)
    assert (tmp_path / "last" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_while_writing(tmp_path):
    """A process that writes folder after folder is killed: what is found is one of them, whole, whenever that happens."""
    program = """
import itertools, sys
from pathlib import Path
sys.modules["revhrnet_hf.evaluation"] = type(sys)("evaluation")  # not needed here, and slow to import
sys.modules["revhrnet_hf.evaluation"].write_json = None
sys.modules["revhrnet_hf.models"] = type(sys)("models"); sys.modules["revhrnet_hf.models"].__path__ = []
sys.modules["revhrnet_hf.models.configuration_revhrnet"] = type(sys)("c")
sys.modules["revhrnet_hf.models.configuration_revhrnet"].DEFAULT_BACKBONE = ""
for name, of in (("model_card", ("EXAMPLE_FILE", "write_model_card")), ("pictures", ("save_picture",))):
    sys.modules[f"revhrnet_hf.report.{name}"] = type(sys)(name)
    sys.modules[f"revhrnet_hf.report.{name}"].__dict__.update(dict.fromkeys(of))
sys.modules["revhrnet_hf"] = type(sys)("revhrnet_hf"); sys.modules["revhrnet_hf"].__path__ = [sys.argv[2]]
from revhrnet_hf.training.integrity import damage, write_checkpoint, write_checksums
def fill(folder, n):
    for name in "abcd":
        (folder / name).write_text(str(n))
print("ready", flush=True)
for n in itertools.count():
    write_checkpoint(Path(sys.argv[1]) / "best", lambda folder: fill(folder, n))
"""
    package = os.path.dirname(sys.modules["revhrnet_hf"].__file__)
    for delay in (0.05, 0.11, 0.17):
        process = subprocess.Popen([sys.executable, "-c", program, tmp_path, package], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        recover(tmp_path)
        contents = {(tmp_path / "best" / name).read_text() for name in "abcd"}
        assert len(contents) == 1
        assert damage(tmp_path / "best") is None
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


KEPT = {"sgd": ["momentum_buffer"], "adamw": ["step", "exp_avg", "exp_avg_sq"]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_state_comes_back(tmp_path, name):
    """A step after loading equals the step that would have come, also for channels-last weights."""

    def network():
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        model(torch.randn(1, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    recipe = Recipe(dataset="camvid", optimizer=name)
    model = network()
    optimizer = build_optimizer(model, recipe)
    step(model, optimizer, 1)
    save_training_state(tmp_path, TrainingState(epoch=3, step=9, best_mean_iou=0.5), optimizer_tensors(model, optimizer))
    other = network()
    other.load_state_dict(model.state_dict())
    other_optimizer = build_optimizer(other, recipe)
    state, tensors = load_training_state(tmp_path)
    restore_optimizer_tensors(other, other_optimizer, tensors)
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    assert torch.equal(model.weight, other.weight)
    assert (state.epoch, state.step, state.best_mean_iou) == (3, 9, 0.5)
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    kept = {f"{parameter}:{what}" for parameter in ("weight", "bias") for what in KEPT[name]}
    assert set(load_file(tmp_path / "optimizer.safetensors")) == kept


class TestClaim:
    recipe = Recipe(dataset="camvid")

    def run_in(self, folder, recipe=None):
        for name in ("last", "best"):
            (folder / name).mkdir(parents=True)
        (folder / "last" / "recipe.yaml").write_text((recipe or self.recipe).to_yaml())
        write_checksums(folder / "last")
        (folder / "log.jsonl").write_text("{}\n")
        (folder / "mine.txt").write_text("not ours")

    def test_fresh(self, tmp_path):
        assert claim_output_dir(tmp_path / "a" / "b", self.recipe, resume=False, overwrite=False)[0] is False
        assert claim_output_dir(tmp_path / "a" / "b", self.recipe, resume=True, overwrite=False)[0] is False

    def test_holds_a_run(self, tmp_path):
        self.run_in(tmp_path)
        with pytest.raises(CheckpointError, match=r"already holds a run: .*--resume.*--overwrite"):
            claim_output_dir(tmp_path, self.recipe, resume=False, overwrite=False)
        assert (tmp_path / "last").exists()
        assert claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[0] is True

    def test_overwrite_deletes_only_ours(self, tmp_path):
        self.run_in(tmp_path)
        assert claim_output_dir(tmp_path, self.recipe, resume=False, overwrite=True)[0] is False
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.txt"}

    def test_another_process_is_at_work(self, tmp_path):
        self.run_in(tmp_path)
        code = (
            f"from pathlib import Path; from revhrnet_hf.training.checkpoint import _lock; lock = _lock(Path({str(tmp_path)!r}))"
        )
        code += "; print('locked', flush=True); input()"
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with other:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(CheckpointError, match="Another run is at work"):
                claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)
            assert (tmp_path / "last").exists()
            other.kill()
            other.wait()
            assert claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[0] is True

    def test_other_recipe(self, tmp_path):
        self.run_in(tmp_path, Recipe(dataset="camvid", learning_rate=0.5, num_workers=7))
        with pytest.raises(CheckpointError, match=r"learning_rate was 0.5, is 0.01\. Resume") as refusal:
            claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)
        assert "num_workers" not in str(refusal.value)

    def test_impossible(self, tmp_path):
        with pytest.raises(CheckpointError, match="exclude each other"):
            claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=True)
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="is a file"):
            claim_output_dir(tmp_path / "file", self.recipe, resume=False, overwrite=False)
        with pytest.raises(CheckpointError, match="Cannot write to the output folder"):
            claim_output_dir(tmp_path / "file" / "below", self.recipe, resume=False, overwrite=False)

    def test_damaged_state(self, tmp_path):
        (tmp_path / "training_state.json").write_text('{"epoch": 1')
        with pytest.raises(CheckpointError, match="holds no training state to resume from"):
            load_training_state(tmp_path)
