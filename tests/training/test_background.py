"""Checkpoints that are written beside the next steps: the state at the moment of saving, whole, whatever happens meanwhile."""

import signal
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training import checkpoint
from revhrnet_hf.training.background import HostCopies, Writer
from revhrnet_hf.training.checkpoint_files import damage
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from .test_resume import tensors


def small_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).to(memory_format=torch.channels_last)
    network[0].requires_grad_(False)
    return network


class TestHostCopies:
    def test_copies_stay_as_they_were(self):
        network, copies = small_network(), HostCopies()
        twin, before = copies.of_network(network), {name: x.clone() for name, x in network.state_dict().items()}
        network(torch.randn(2, 3, 5, 5))
        with torch.no_grad():
            network[2].weight.add_(1)
        state = twin.state_dict()
        assert list(state) == list(before) and all(torch.equal(state[name], before[name]) for name in before)
        again = copies.of_network(network)
        assert again is twin and all(torch.equal(x, again.state_dict()[name]) for name, x in network.state_dict().items())
        assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in network.parameters()]
        assert twin[0].weight.stride() == network[0].weight.stride()
        assert network[1].num_batches_tracked == 1

    def test_a_network_of_the_package_is_saved_alike(self, tiny_model, tmp_path):
        twin = HostCopies().of_network(tiny_model)
        for name, model in (("own", tiny_model), ("copy", twin)):
            model.save_pretrained(tmp_path / name)
        files = sorted(path.name for path in (tmp_path / "own").iterdir())
        assert len(files) > 2
        for name in files:
            assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name

    def test_tensors(self, tmp_path):
        copies, state = HostCopies(), {"a:step": torch.tensor(3.0), "a:momentum": torch.randn(2, 3)}
        first = copies.of_tensors(state)
        save_file(first, tmp_path / "file")
        state["a:step"] += 1
        assert first["a:step"] == 3
        assert copies.of_tensors(state)["a:step"] is first["a:step"] and first["a:step"] == 4
        assert load_file(tmp_path / "file")["a:step"] == 3


class TestWriter:
    def test_an_error_comes_out_once(self):
        writer = Writer()
        writer.wait()

        def fail():
            raise CheckpointError("Cannot write")

        writer.start(fail)
        with pytest.raises(CheckpointError, match="Cannot write"):
            writer.wait()
        writer.wait()
        writer.start(fail)
        writer._thread.join()
        with pytest.raises(CheckpointError, match="Cannot write"):
            writer.raise_error()

    def test_waits(self):
        go, done, writer = threading.Event(), [], Writer()
        writer.start(lambda: go.wait(30) and done.append(1))
        assert not done
        go.set()
        writer.wait()
        assert done == [1]


@pytest.fixture
def stage(runs, streets, tmp_path):
    """A stage that saves in the background, before its first step."""
    settings = {**runs.settings, "ema_decay": 0.9, "save_in_background": True}
    stage = Stage(Recipe(dataset="camvid", **settings), streets["camvid"], tmp_path / "run")
    stage.log.start({})
    stage.learner.model.train()
    stage.data.start_at(0, 0)
    return stage


def test_what_is_written_is_the_state_of_the_save(stage, monkeypatch):
    """Two more steps are made before the thread writes anything."""
    steps = stage.data.steps()
    stage.train_step(next(steps))
    network = {name: x.clone() for name, x in stage.learner.network.state_dict().items()}
    averages = {name: x.clone() for name, x in stage.learner.averaged.state_dict().items()}
    optimizer = checkpoint.optimizer_tensors(stage.learner.network, stage.learner.optimizer.optimizer)
    optimizer = {name: x.clone() for name, x in optimizer.items()}
    go, save_model_folder = threading.Event(), checkpoint.save_model_folder
    monkeypatch.setattr(checkpoint, "save_model_folder", lambda *given: go.wait(60) and save_model_folder(*given))
    stage.save()
    for _ in range(2):
        stage.train_step(next(steps))
    last = stage.output_dir / "last"
    assert not last.exists()
    go.set()
    stage.checkpoints.writer.wait()
    assert damage(last) is None
    for file, expected in (("model", network), ("averaged", averages), ("optimizer", optimizer)):
        found = load_file(last / f"{file}.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in found), file
        assert file == "model" or found.keys() == expected.keys()
    state, _ = checkpoint.load_training_state(last)
    assert (state.step, len(state.losses), stage.state.step) == (1, 1, 3)


def test_an_error_of_the_thread_ends_the_run(stage, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_training_state", full)
    steps = stage.data.steps()
    stage.train_step(next(steps))
    stage.save()
    stage.checkpoints.writer._thread.join()
    with pytest.raises(CheckpointError, match=r"Cannot write .*last: No space left on device; nothing was saved before"):
        stage.train_step(next(steps))


@pytest.mark.slow
def test_killed_stopped_and_resumed(runs, log_of, tmp_path):
    """SIGKILL in and beside the thread's work, and SIGTERM, which waits for it: all tensors are those of an undisturbed run."""
    settings = {"save_every": 1, "ema_decay": 0.9, "log_every": 3, "num_workers": 1}
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert runs.start(whole, "camvid", **settings)[0] == 0
    faults = [
        (2, "step", "SIGKILL"),
        (5, "evaluating", "SIGKILL"),
        (7, "step", "SIGTERM"),
        (10, "saving", "SIGKILL"),
        (10, "moving", "SIGKILL"),
    ]
    for number, (step, where, name) in enumerate(faults):
        how = {"resume": number > 0, "fault": ("camvid", step, where, name), "save_in_background": True}
        status, said = runs.start(folder, "camvid", **how, **settings)
        assert status == (-signal.SIGKILL if name == "SIGKILL" else 128 + signal.SIGTERM), (step, where, said)
        if name == "SIGTERM":
            assert damage(folder / "last") is None and "after step 8 of 10; saved in" in said
            assert checkpoint.load_training_state(folder / "last")[0].step == 8
    status, said = runs.start(folder, "camvid", resume=True, save_in_background=True, **settings)
    assert status == 0, said
    for name in ("last", "best"):
        ours, plain = tensors(folder / name), tensors(whole / name)
        assert ours.keys() == plain.keys() and all(torch.equal(ours[key], plain[key]) for key in ours), name
        assert damage(folder / name) is None
    assert log_of(folder) == log_of(whole)
