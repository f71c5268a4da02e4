"""Runs on a disk, a small tmpfs, that fills: one clear message, what was saved stays whole, and with more room they resume."""

import itertools
import json

import pytest

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training.checkpoint_files import damage
from revhrnet_hf.training.log import RunLog
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from .test_resume import assert_same, scalars

BLOCK = 4096


def size_of(folder):
    """Bytes that the files take in whole blocks."""
    return sum(blocks(path) for path in folder.rglob("*") if path.is_file())


def blocks(path):
    return -(-path.stat().st_size // BLOCK) * BLOCK


def test_full_at_each_file(runs, streets, small_disk):
    """The disk fills before and within each file of a checkpoint: weights, optimizer, card, image, checksums and all others."""
    run = small_disk.folder / "run"
    stage = Stage(Recipe(dataset="camvid", **{**runs.settings, "ema_decay": 0.9}), streets["camvid"], run)
    stage.log.start({})
    stage.learner.model.train()
    stage.train_step(next(stage.data.steps()))
    scores = stage.evaluate(epoch=0)
    stage.save(scores)
    used = size_of(run)
    room = set()
    for name in ("best", "last"):
        files = sorted((path for path in (run / name).rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
        before = itertools.accumulate(map(blocks, files), initial=0)
        room |= {start + blocks(file) // 2 // BLOCK * BLOCK for start, file in zip(before, files, strict=False)}
    assert len(room) > 20
    for more in sorted(room):
        small_disk.resize(used + more)
        stage.state.best_mean_iou = None  # so that it writes both
        with pytest.raises(CheckpointError) as refusal:
            stage.save(scores)
        assert str(refusal.value).startswith(f"Cannot write {run}/"), more
        assert "No space left on device" in str(refusal.value), more
        assert str(refusal.value).endswith("what was saved before is whole. Make room, then resume with --resume")
        assert sorted(path.name for path in run.iterdir()) == [".lock", "best", "last", "log.jsonl", "report.html"]
        assert (damage(run / "best"), damage(run / "last")) == (None, None)
    small_disk.resize(used + size_of(run / "last") + 4 * BLOCK)
    stage.save(scores)
    assert damage(run / "last") is None


def test_log(small_disk):
    """A line that was half written is gone when the run is resumed."""
    small_disk.resize(BLOCK)
    first = RunLog(small_disk.folder, [], is_main=True)
    first.start({})
    with pytest.raises(CheckpointError, match=r"Cannot write .*log\.jsonl: No space left on device\. .*--resume"):
        for step in itertools.count(1):
            first.write(0, step, {"loss": 1 / step})
    written = (small_disk.folder / "log.jsonl").read_text()
    assert written.count("\n") == step - 1
    assert not written.endswith("\n")
    small_disk.resize(2 * BLOCK)
    second = RunLog(small_disk.folder, [], is_main=True)
    second.start({}, lines=step - 2, again_from=step - 1)
    for again in range(step - 1, step + 3):
        second.write(0, again, {"loss": 1 / again})
    lines = [json.loads(line) for line in (small_disk.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, step + 3))


@pytest.mark.slow
def test_whole_run(runs, small_disk, log_of, tmp_path):
    """A run that fills the disk by its best checkpoint, after the first epoch, resumes when there is room."""
    settings = {"save_every": 2, "num_workers": 2, "trackers": ["tensorboard"], "log_images": 1, "ema_decay": 0.9}
    whole, folder = tmp_path / "whole", small_disk.folder / "run"
    status, said = runs.start(whole, "camvid", **settings)
    assert status == 0, said
    small_disk.resize(size_of(whole / "last") * 2 + size_of(whole / "best") // 2 // BLOCK * BLOCK)
    for resume in (False, True):  # it is still full
        status, said = runs.start(folder, "camvid", resume=resume, **settings)
        assert status == 1, said
        assert said.strip().splitlines()[-1].startswith(f"error: Cannot write {folder}/best: "), said
        assert "No space left on device" in said
        assert "Make room, then resume with --resume" in said
        assert "Traceback" not in said
        assert {path.name for path in folder.iterdir()} == {".lock", "last", "checkpoint-2", "log.jsonl", "tensorboard"}
        assert (damage(folder / "last"), damage(folder / "checkpoint-2")) == (None, None)
    small_disk.resize(64 * 2**20)
    status, said = runs.start(folder, "camvid", resume=True, **settings)
    assert status == 0, said
    assert "resumed after step 4 of 10" in said
    assert_same(whole, folder, log_of)
    assert scalars(whole) == scalars(folder)
