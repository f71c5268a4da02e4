"""Stages of training on drawn street scenes, which the checks run in processes of their own."""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.recipe import RANDOM, Recipe
from revhrnet_hf.training.trainer import Stage

WIDTH = {"variant": "w18", "num_modules": [1, 1, 1], "num_blocks": 1, "initializer": "he", "batch_norm_momentum": 0.1}
USUAL = {"dataset": "camvid", "backbone_weights": RANDOM, "trackers": [], "learning_rate": 0.01, "log_images": 0}
SIZES = {
    False: {"backbone": "resnet50", "crop_size": [256, 384], "base_size": 480, "batch_size": 4, "num_workers": 2},
    True: {"backbone": "test_resnet", "crop_size": [32, 48], "base_size": 64, "batch_size": 2, "num_workers": 0},
}


@dataclass(frozen=True)
class Setup:
    """What all checks share.

    Attributes:
        device: `cuda` or `cpu`.
        quick: tiny networks and images, a few steps.
        folder: for the checks' files; it is empty at first.
    """

    device: str
    quick: bool
    folder: Path

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def streets(self) -> Path:
        """A drawn CamVid."""
        folder = self.folder / "streets"
        if not folder.exists():
            counts, size = ({"train": 10, "val": 3}, (48, 64)) if self.quick else ({"train": 24, "val": 4}, (360, 480))
            write_camvid(folder, counts, size=size)
        return folder

    def recipe(self, **settings) -> Recipe:
        """A small recipe; its backbone is the paper's, with random weights, or tiny."""
        return Recipe(**{**USUAL, **WIDTH, **SIZES[self.quick], **settings})

    def synchronise(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()


def begun_stage(recipe: Recipe, data_dir: Path, folder: Path) -> Stage:
    """A stage that is ready for its first step."""
    stage = Stage(recipe, data_dir, folder)
    stage.log.start({})
    stage.learner.model.train()
    stage.data.start_at(0, 0)
    return stage


def next_passes(stage: Stage):
    """The batches of one step after the other, through all epochs that are needed."""
    epoch = 0
    while True:
        yield from stage.data.steps()
        epoch += 1
        stage.data.start_at(epoch, 0)


def use_repeatable_algorithms() -> None:
    """Two runs get the same bits as far as the device can: no choice of algorithms by time, no sums in any order."""
    from revhrnet_hf.training import trainer

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    trainer.fixed_sizes = nullcontext
