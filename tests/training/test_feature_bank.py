"""A run with a feature bank learns what a run learns that computes the same views anew, and nothing of a bank is trusted unseen."""

import json
import os
import resource
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.training.dry_run import dry_run
from revhrnet_hf.training.feature_bank import FREE, MAPS_FILE, STATE_FILE, differences
from revhrnet_hf.training.learner import Learner
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.sampler import EpochBatches, Mixture
from revhrnet_hf.training.trainer import Stage

from .test_resume import DEMANDING, assert_same, scalars

VIEWS, EPOCHS = 2, 5
BANK = {"feature_bank": VIEWS, "epochs": EPOCHS}


@pytest.fixture
def stage(runs, streets, tmp_path):
    """Makes a stage on CamVid; of a name, in its own output folder."""

    def make(name="run", resume=False, overwrite=False, bank_dir=None, **settings):
        recipe = Recipe(dataset="camvid", **{**runs.settings, **BANK, **settings})
        return Stage(recipe, streets["camvid"], tmp_path / name, resume, overwrite, bank_dir=bank_dir)

    return make


def losses_of(stage, epochs):
    """The loss of each step, with the weights at the end."""
    losses = []
    stage.data.open_bank(0)
    stage.learner.model.train()
    for epoch in range(epochs):
        stage.data.start_at(epoch, 0)
        for passes in stage.data.steps():
            losses += stage.learner.learn(passes, len(losses)).sum(0, keepdim=True)
    return torch.stack(losses), {name: x.clone() for name, x in stage.learner.network.state_dict().items()}


def compute_anew(stage):
    """Let a stage without its bank compute the bank's views from the images, in each epoch."""
    stage.data.bank = None
    return stage


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "batch_size": 4, "rotation": 10.0, "blur": 0.5, "num_workers": 2},
        {"precision": "bf16"},
        {"backbone_dtype": "bfloat16"},
        {"rare_class_images": 0.5, "rare_class_crops": 0.5, "crop_size": [40, 56]},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)
def test_equal_to_computing_the_same_views(stage, settings):
    """Losses and weights, bit for bit, in the epochs that fill the bank and in those that read it."""
    with_bank, without = stage("bank", **settings), compute_anew(stage("anew", **settings))
    (losses, weights), (expected, expected_weights) = losses_of(with_bank, EPOCHS), losses_of(without, EPOCHS)
    assert with_bank.data.bank.filled == VIEWS * with_bank.data.batches.steps
    assert torch.equal(losses, expected)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert len(set(expected.tolist())) == len(expected)
