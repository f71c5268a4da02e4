"""A recipe to begin with: what follows from images and machine, and that it is a valid recipe whatever they are."""

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from revhrnet_hf.training.first_recipe import GIBIBYTE, Images, Machine, first_recipe, recipe_text
from revhrnet_hf.training.recipe import Recipe

LAPTOP = Machine(cores=2, memory=16 * GIBIBYTE, has_avx512=False)
SERVER = Machine(16, 128 * GIBIBYTE, True, "a GPU", 80 * GIBIBYTE, True)
SMALL_GPU = Machine(8, 32 * GIBIBYTE, True, "an old GPU", 4 * GIBIBYTE, False)


def fields(count, size, machine):
    text = recipe_text(first_recipe(Images([size] * count, "train", "val", "labels.yaml"), machine), "A title")
    return yaml.safe_load(text)


@given(
    st.integers(1, 20_000),
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.sampled_from([LAPTOP, SERVER, SMALL_GPU, Machine(1, GIBIBYTE, False)]),
)
@settings(deadline=None, max_examples=60)
def test_it_is_a_recipe(count, size, machine):
    found = fields(count, size, machine)
    recipe = Recipe.from_dict(found)
    assert recipe.label_space == "labels.yaml" and recipe.batch_size <= max(2, count)
    assert all(edge % 32 == 0 for edge in (*recipe.crop_size, recipe.base_size))
    assert max(recipe.crop_size) <= recipe.base_size == recipe.eval_size
    assert recipe.eval_every == recipe.save_every_epochs <= recipe.epochs


def test_what_follows_from_the_images():
    small, large = fields(367, (480, 360), LAPTOP), fields(367, (4000, 3000), LAPTOP)
    assert (small["base_size"], small["crop_size"]) == (704, [416, 544])  # as the recipe camvid: 720 and [416, 576]
    assert large["base_size"] == 768 and fields(367, (4000, 3000), SERVER)["base_size"] == 1280
    assert fields(10, (480, 360), LAPTOP)["epochs"] > fields(5000, (480, 360), LAPTOP)["epochs"] >= 10
    assert fields(40, (360, 480), LAPTOP)["crop_size"] == small["crop_size"][::-1]


def test_what_follows_from_the_machine():
    precisions = [fields(100, (640, 480), machine)["precision"] for machine in (LAPTOP, SERVER, SMALL_GPU)]
    assert precisions == ["no", "bf16", "fp16"]
    batches = [fields(100, (1280, 960), machine)["batch_size"] for machine in (LAPTOP, SERVER, SMALL_GPU)]
    assert batches[0] == 4 and batches[1] == 12 and batches[2] < batches[1]


def test_every_size_has_its_reason():
    text = recipe_text(first_recipe(Images([(640, 480)] * 50, "training", "valid", None), LAPTOP), "Two\nlines")
    assert text.startswith("# Two\n# lines\n")
    assert "train_split: training" in text and "eval_split: valid" in text and "label_space" not in text
    for field in ("base_size", "crop_size", "batch_size", "epochs", "precision", "variant"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{field}:")]
        assert len(line.partition("  # ")[2]) > 10


def test_this_machine(monkeypatch):
    machine = Machine.this()
    assert machine.cores >= 1 and machine.memory > GIBIBYTE and "CPU core" in str(machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not Machine.this().has_avx512


@pytest.mark.parametrize("name", ["no", "bf16"])
def test_the_word_no_stays_a_word(name):
    machine = Machine(2, 8 * GIBIBYTE, name == "bf16")
    assert fields(10, (64, 64), machine)["precision"] == name
