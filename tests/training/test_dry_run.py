"""A rehearsal leaves nothing behind, and says what the run then does."""

import json

import pytest
from transformers import AutoModelForSemanticSegmentation

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.dry_run import Estimate, dry_run, format_estimates
from revhrnet_hf.training.recipe import Recipe


def test_against_the_run(runs, streets, tmp_path, capsys):
    settings = {**runs.settings, "epochs": 3, "save_every": 2, "eval_every": 2, "eval_at_start": True, "optimizer": "adamw"}
    recipes = [Recipe(dataset=name, **settings) for name in streets]
    estimates = dry_run(recipes, streets, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    assert "  Road ← road" in said  # the hand-over was tried too
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


def test_faults_of_later_stages_are_found(runs, streets, tmp_path):
    first, second = (Recipe(dataset=name, **runs.settings) for name in streets)
    second.num_blocks = 2
    with pytest.raises(RecipeError, match="is of another network than the recipe's"):
        dry_run([first, second], streets, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_estimate_adds_up(tmp_path):
    one = Estimate("coco", 10.0, 0.5, 0.25, 2.0, steps=1000, evaluations=3, pictures=40, saves=5, memory_gib=3.0, disk_gib=1e9)
    assert one.seconds == 10 + 500 + 3 * 40 * 0.25 + 10
    said = format_estimates([one, one], tmp_path / "not" / "there")
    assert "together 18 min 20 s; peak memory 3.00 GiB" in said
    assert "(TOO LITTLE)" in said
