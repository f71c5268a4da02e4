"""A rehearsal leaves nothing behind, and says what the run then does."""

import itertools
import json

import pytest
from transformers import AutoModelForSemanticSegmentation

from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.dry_run import Estimate, _seconds_of_loading, dry_run, format_estimates
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage


def test_against_the_run(runs, streets, tmp_path, capsys):
    settings = {**runs.settings, "epochs": 3, "save_every": 2, "eval_every": 2, "eval_at_start": True, "optimizer": "adamw"}
    recipes = [Recipe(dataset=name, **settings) for name in streets]
    estimates = dry_run(recipes, streets, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert "  Road ← road" in said  # the transfer was tried too
    assert "together 0 min " in said
    run_chain([Recipe(dataset=name, **settings) for name in streets], streets, tmp_path / "out")
    for estimate, folder in zip(estimates, (tmp_path / "out" / "1_cityscapes", tmp_path / "out"), strict=True):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert estimate.steps == lines[-1]["step"] == 15
        assert estimate.evaluations == sum("mean_iou" in line for line in lines) == 3
        assert estimate.saves == 3 + 6  # at the ends of epochs (5, 10, 15) and at 2 4 6 8 12 14
        kept = [folder / name for name in ("last", "checkpoint-14", "best")]
        size = sum(path.stat().st_size for checkpoint in kept for path in checkpoint.rglob("*")) / 2**30
        one_more = sum(path.stat().st_size for path in (folder / "last").rglob("*")) / 2**30
        assert estimate.disk_gib == pytest.approx(size + one_more, rel=0.02)
        assert estimate.memory_gib > 0.1
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out" / "best").config.num_labels == 11


@pytest.mark.slow
def test_two_processes(runs, streets, tmp_path):
    """One table, by the main process, of what the run on two processes then does."""
    settings = {"batch_size": 4, "epochs": 3, "eval_every": 2, "save_every": 2, "num_workers": 1}
    (status, said), (other_status, other_said) = runs.start_several(2, tmp_path / "out", *streets, dry=True, **settings)
    assert (status, other_status) == (0, 0), (said, other_said)
    assert not (tmp_path / "out").exists()
    assert (said.count("s/step"), other_said) == (1, "")
    titles, *stages, _ = said[said.index("stage  ") :].splitlines()
    assert " ".join(titles.split()) == "stage steps s/step evaluations s each saves s each time memory GiB disk GiB"
    for status, run_said in runs.start_several(2, tmp_path / "out", *streets, **settings):
        assert status == 0, run_said
    for text, folder in zip(stages, (tmp_path / "out" / "1_cityscapes", tmp_path / "out"), strict=True):
        _, _, steps, _, evaluations, _, saves, _, _, _, _, _, memory, disk = text.split()
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert int(steps) == lines[-1]["step"] == 6
        assert int(evaluations) == sum("mean_iou" in line for line in lines) == 2
        assert int(saves) == 3  # after 2, 4 and 6 steps, where the epochs end
        # Of one process: for both together it would be twice as much.
        assert float(memory) == pytest.approx(max(line.get("peak_memory_gib", 0) for line in lines), rel=0.2)
        size = sum(path.stat().st_size for name in ("last", "last", "last", "best") for path in (folder / name).rglob("*"))
        assert float(disk) == pytest.approx(size / 2**30, abs=0.01)


def test_loading_shares_the_cores(monkeypatch, runs, streets, tmp_path):
    """Two processes on two cores load as if by one worker each, however many workers the recipe asks for."""
    stage = Stage(Recipe(dataset="camvid", **{**runs.settings, "num_workers": 2}), streets["camvid"], tmp_path / "run")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    clock = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))  # any two calls are a second apart
    seconds = {}
    for processes in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        seconds[processes] = _seconds_of_loading(stage)
    assert seconds == {1: 1 / 2, 2: 1.0}


def test_faults_of_later_stages_are_found(runs, streets, tmp_path):
    first, second = (Recipe(dataset=name, **runs.settings) for name in streets)
    second.num_blocks = 2
    with pytest.raises(RecipeError, match="is of another network than the recipe's"):
        dry_run([first, second], streets, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_resume_with_another_recipe_or_on_other_data(runs, streets, tmp_path):
    """The rehearsal of a resume refuses what the resume would refuse, a later stage's too, and changes nothing."""
    settings = {**runs.settings, "epochs": 1}

    def chain(**changed):
        return [Recipe(dataset=name, **settings | (changed if name == "camvid" else {})) for name in streets]

    def state():
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    write_camvid(tmp_path / "camvid", {"train": 9, "val": 3}, size=(48, 64))
    fewer = {**streets, "camvid": str(tmp_path / "camvid")}
    run_chain(chain(), streets, tmp_path / "out")
    before = state()
    for train in (dry_run, run_chain):
        with pytest.raises(CheckpointError, match=r"started with another recipe: learning_rate was .*, is 0\.5"):
            train(chain(learning_rate=0.5), streets, tmp_path / "out", resume=True)
        with pytest.raises(CheckpointError, match="started on other data: camvid:train had 10 images, has 9"):
            train(chain(), fewer, tmp_path / "out", resume=True)
    dry_run(chain(), streets, tmp_path / "out", resume=True)
    assert state() == before


def test_estimate_adds_up(tmp_path):
    one = Estimate("coco", 10.0, 0.5, 0.25, 2.0, steps=1000, evaluations=3, images=40, saves=5, memory_gib=3.0, disk_gib=1e9)
    assert one.seconds == 10 + 500 + 3 * 40 * 0.25 + 10
    said = format_estimates([one, one], tmp_path / "not" / "there")
    assert "together 18 min 20 s; peak memory 3.00 GiB" in said
    assert "(TOO LITTLE)" in said
