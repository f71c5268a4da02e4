"""Class weights by counting: the papers' formulas in Python's numbers, and on their way into a run's recipe and config."""

import json
import statistics

import numpy as np
import pytest
import yaml

from revhrnet_hf.training.class_weights import effective_number, median_frequency
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

BASE = {
    "dataset": "camvid",
    "variant": "w18",
    "backbone": "test_resnet",
    "backbone_weights": "random",
    "num_modules": [1, 1, 1],
    "num_blocks": 1,
    "crop_size": [32, 48],
    "base_size": 64,
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.05,
    "num_workers": 0,
    "log_every": 1,
    "log_images": 0,
    "trackers": [],
}

# (images, classes); the last class does not occur, and nothing is labelled in the last image.
PIXELS = np.array([[90, 10, 0, 0], [50, 0, 50, 0], [97, 1, 2, 0], [0, 0, 0, 0]])


def test_median_frequency():
    shares = [237 / 300, 11 / 200, 52 / 200]
    expected = [statistics.median(shares) / share for share in shares]
    assert median_frequency(PIXELS) == pytest.approx([*expected, 1.0])


@pytest.mark.parametrize("beta", [None, 0.9, 0.999])
def test_effective_number(beta):
    b = beta if beta is not None else 299 / 300
    weights = [(1 - b) / (1 - b**count) for count in (237, 11, 52)]
    expected = [3 * weight / sum(weights) for weight in weights]
    assert effective_number(PIXELS, beta) == pytest.approx([*expected, 1.0])


def test_effective_number_of_billions_of_pixels():
    """Where β in float32 would be 1."""
    found = effective_number(np.array([[3 * 10**9, 10**6]]), None)
    exact = [-1 / np.expm1(-count / 3.001e9) for count in (3e9, 1e6)]
    assert found == pytest.approx(np.array(exact) / np.mean(exact), rel=1e-6)


def test_no_beta_weights_all_alike():
    assert effective_number(PIXELS, 0.0) == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("method", ["auto", "effective_number"])
def test_run_has_the_numbers(streets, tmp_path, method):
    """In the recipe and the config of its checkpoint; resuming counts to the same numbers."""
    recipe = Recipe(**BASE, class_weights=method)
    stage = Stage(recipe, streets, tmp_path / "run")
    weights = stage.recipe.class_weights
    assert len(weights) == 11 and len(set(weights)) > 3 and stage.learner.recipe.class_weights == weights
    counts = np.concatenate(
        [
            [np.bincount(np.asarray(row["label_map"]).ravel(), minlength=256)[:11] for row in entry.images]
            for entry in stage.data.sets
        ]
    )
    expected = median_frequency(counts) if method == "auto" else effective_number(counts, None)
    assert weights == pytest.approx(expected, rel=1e-5)
    stage.run()
    last = tmp_path / "run" / "last"
    assert yaml.safe_load((last / "recipe.yaml").read_text())["class_weights"] == weights
    assert json.loads((last / "config.json").read_text())["semantic_loss_class_weights"] == weights
    assert Stage(recipe, streets, tmp_path / "run", resume=True).finished
    assert Recipe.from_yaml(last / "recipe.yaml").class_weights == weights


def test_log_has_each_term(streets, tmp_path):
    """Two passes a step: the terms of the last step, with their weights, are the loss."""
    weights = {"cross_entropy": 1.0, "lovasz": 0.5, "auxiliary": 0.4}
    recipe = Recipe(**BASE, loss=dict(list(weights.items())[:2]), auxiliary_loss_weight=0.4, gradient_accumulation_steps=2)
    stage = Stage(recipe, streets, tmp_path)
    stage.run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == stage.total_steps
    for line in steps:
        assert list(line["loss_terms"]) == list(weights)
        assert line["loss"] == pytest.approx(sum(weights[name] * value for name, value in line["loss_terms"].items()), rel=1e-5)
