"""Two processes (gloo, on CPUs) learn and score what one does, and none waits for one that is gone."""

import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.errors import DataError, RecipeError, TrainingError
from revhrnet_hf.evaluation import evaluate_dataset, load_checkpoint
from revhrnet_hf.training import agreement, evaluation_hook, processes
from revhrnet_hf.training.agreement import SharedErrors, _told
from revhrnet_hf.training.output_dir import claim_output_dir
from revhrnet_hf.training.processes import out_of_memory, peak_resident_bytes, set_tf32
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

# Three images to score on; classes that weigh differently and padded crops, so that passes have different pixels that count.
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
    """Those of the run on two processes are those of its checkpoint in one, each image counted once."""
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
def test_adapters_on_two_processes(runs, tmp_path):
    """LoRA learns the same on two processes as on one, but for the order of sums."""
    settings = UNEVEN | {"trainable_backbone": "lora"}
    for status, said in runs.start_several(2, tmp_path / "two", "camvid", **settings):
        assert status == 0, said
    status, said = runs.start(tmp_path / "one", "camvid", gradient_accumulation_steps=2, **settings)
    assert status == 0, said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
def test_resumed_by_another_number(two, runs, log_of, tmp_path):
    """A signal to one of two processes stops both; two end as two would have; one resumes with a note."""
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
    assert "note: saved by 2 process(es), resumed by 1" in said
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


# What one process alone comes upon, while the other waits for it: in the first epoch's second step of five, or at its end.
FAULTS = {
    "an image that cannot be read": (("camvid", 1, "loading", "DataError", 1), "planted"),
    "the last image of an epoch": (("camvid", 4, "loading", "DataError", 0), "planted"),
    "a label map in scoring": (("camvid", 5, "evaluating", "DataError", 1), "planted"),
    "the log": (("camvid", 2, "logging", "CheckpointError", 0), "planted"),
    "the log of the scores": (("camvid", 5, "logging", "CheckpointError", 0), "planted"),
    "a full disk": (("camvid", 3, "saving", 10_000, 0), "Cannot write .*last: .*--resume"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_all_hear_of_an_error(runs, tmp_path, name):
    """Both end with it at once, though the timeout is long, and nothing of the steps that were taken meanwhile is saved.

    Scoring begins when all have taken all steps, which are then saved.
    """
    fault, message = FAULTS[name]
    how = {"epochs": 2, "log_every": 1, "save_every": 3, "timeout": 600}
    said = runs.start_several(2, tmp_path / "run", "camvid", fault=fault, **how)
    for process, (status, text) in enumerate(said):
        assert status == 1, text
        assert "Traceback" not in text
        others = "" if process == fault[4] else f"Process {fault[4]}: "
        assert re.match(rf"error: {others}{message}", text.strip().splitlines()[-1]), text
    state = tmp_path / "run" / "last" / "training_state.json"
    assert state.exists() == (fault[1] > 3)
    if state.exists():
        assert json.loads(state.read_text())["step"] == (5 if name == "a label map in scoring" else 3)


@pytest.mark.slow
def test_all_hear_of_an_error_at_the_start(runs, tmp_path):
    """Of what the main process alone looks at: a folder in which another run is at work, and a log that has lost lines."""
    folder = tmp_path / "run"
    settings = {"epochs": 1, "timeout": 600}
    _, lock = claim_output_dir(folder, Recipe(dataset="camvid"), resume=False, overwrite=False)
    refused = runs.start_several(2, folder, "camvid", **settings)
    assert [status for status, _ in refused] == [1, 1], refused
    assert refused[0][1].startswith(f"error: Another run is at work in {folder}"), refused
    assert refused[1][1].startswith(f"error: Process 0: Another run is at work in {folder}"), refused
    lock.close()

    fault = ("camvid", 2, "step", "SIGTERM")
    for status, said in runs.start_several(2, folder, "camvid", fault=fault, log_every=1, **settings):
        assert status == 143, said
    (folder / "log.jsonl").write_text("")
    refused = runs.start_several(2, folder, "camvid", resume=True, log_every=1, **settings)
    assert [status for status, _ in refused] == [1, 1], refused
    assert all(re.search(r"log\.jsonl has 0 lines, and the run to resume had \d", said) for _, said in refused), refused


@pytest.mark.slow
def test_dry_run_on_two_machines(runs, streets, tmp_path):
    """The second machine lacks the first one's temporary folder, and transfers from a copy of the checkpoint."""
    settings = {"batch_size": 4, "epochs": 1, "dry": True, "machines": True}
    (status, said), (other_status, other_said) = runs.start_several(2, tmp_path / "out", *streets, **settings)
    assert (status, other_status) == (0, 0), (said, other_said)
    assert said.count("s/step") == 1
    assert not Path("/of_another_machine").exists()


def test_errors_of_others_keep_their_kind(monkeypatch):
    """So that a program that calls us can tell them apart; what is no error of the user's says what it was."""
    for error, kind, said in (
        (DataError("x.png is broken"), DataError, "Process 1: x.png is broken"),
        (PermissionError(13, "Permission denied", "log.jsonl"), TrainingError, "Process 1: log.jsonl: Permission denied"),
        (KeyError("a"), TrainingError, "Process 1: KeyError: 'a'"),
    ):
        told = [None, _told(error)]
        monkeypatch.setattr(agreement, "gather_object", lambda own: told)  # noqa: B023
        shared = SharedErrors(SimpleNamespace(num_processes=2, process_index=0), timeout=1)
        with pytest.raises(kind, match=re.escape(said)) as raised:
            shared.raise_together()
        assert type(raised.value) is kind


def test_own_error_is_raised_as_it_is(monkeypatch):
    """Not before all know, and the first one where several came."""
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, *own])
    shared = SharedErrors(SimpleNamespace(num_processes=2, process_index=0), timeout=1)
    first = KeyError("first")
    with shared.hold():
        raise first
    with pytest.raises(KeyError) as raised, shared.together():
        raise DataError("second")
    assert raised.value is first
    with shared.together():
        pass  # it is not raised again
    alone = SharedErrors(SimpleNamespace(num_processes=1), timeout=1)
    with pytest.raises(KeyError), alone.hold():
        raise first


@pytest.mark.parametrize(("platform", "scale"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory(monkeypatch, platform, scale):
    """getrusage(2) counts KiB on Linux, and bytes on macOS."""
    import resource

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    assert peak_resident_bytes() == 3 * 2**20 * scale


def test_peak_memory_against_the_kernel():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_resident_bytes() == pytest.approx(1024 * int(line.split()[1]), rel=0.02)


def test_windows_has_no_resource(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=12345)))
    assert peak_resident_bytes() == 12345
    for module in Path(processes.__file__).parents[1].rglob("*.py"):
        assert not re.search(r"^(import|from) (resource|fcntl|pwd|grp|termios)\b", module.read_text(), re.MULTILINE), module


class TestOutOfMemory:
    def test_one_line_that_says_what_to_turn(self):
        recipe = Recipe(dataset="camvid", batch_size=12, crop_size=[512, 1024], gradient_accumulation_steps=2)
        said = str(out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), recipe))
        assert "a step (batch_size 12 in 2 forward pass(es), crops of 512×1024, recompute: norms)" in said
        for way in ("precision: bf16", "recompute: modules", "gradient_accumulation_steps (now 2)", "batch_size", "crop_size"):
            assert way in said
        assert "\n" not in said

    def test_what_is_turned_already_is_not_named(self):
        said = str(out_of_memory(torch.OutOfMemoryError(), Recipe(dataset="camvid", recompute="modules", precision="bf16")))
        assert "bf16" not in said and said.count("recompute") == 1

    def test_other_errors_are_others(self):
        assert out_of_memory(RuntimeError("shape mismatch"), Recipe(dataset="camvid")) is None

    def test_a_run_ends_with_it(self, runs, streets, monkeypatch, tmp_path):
        stage = Stage(Recipe(dataset="camvid", **runs.settings), streets["camvid"], tmp_path / "run")

        def fill_up(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(stage.learner, "learn", fill_up)
        with pytest.raises(RecipeError, match="The GPU's memory is not enough for a step"):
            stage.run()

    def test_an_evaluation_ends_with_it(self, runs, streets, monkeypatch, tmp_path):
        """It is resumed with smaller images to score."""
        recipe = Recipe(dataset="camvid", **runs.settings)
        stage = Stage(recipe, streets["camvid"], tmp_path / "run")

        def fill_up(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")

        stage.log.start({})
        stage.save()
        with monkeypatch.context() as patch:
            patch.setattr(evaluation_hook, "evaluate_dataset", fill_up)
            with pytest.raises(RecipeError, match=r"not enough to score an image \(eval_size: .*set eval_size.*--resume"):
                stage.evaluation.run(epoch=0, step=0)
        stage.lock.close()
        smaller = replace(recipe, eval_size=48)
        assert Stage(smaller, streets["camvid"], tmp_path / "run", resume=True).evaluation.run(epoch=0, step=0)["mean_iou"] >= 0


def test_tf32_of_convolutions_and_matrix_products():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for on in (True, False):
            set_tf32(on)
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == on
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_algorithms_are_tried_in_training_only(runs, streets, monkeypatch, tmp_path):
    found = []
    stage = Stage(Recipe(dataset="camvid", **{**runs.settings, "epochs": 1}), streets["camvid"], tmp_path / "run")
    learn, evaluate = stage.learner.learn, stage.evaluation.run
    monkeypatch.setattr(stage.learner, "learn", lambda *given: found.append(torch.backends.cudnn.benchmark) or learn(*given))
    monkeypatch.setattr(stage.evaluation, "run", lambda *given: found.append(torch.backends.cudnn.benchmark) or evaluate(*given))
    stage.run()
    assert found == [True] * 5 + [False] and not torch.backends.cudnn.benchmark
