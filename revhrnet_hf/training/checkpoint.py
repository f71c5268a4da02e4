"""Checkpoints of a run: written beside and moved into place, and what a run needs to go on exactly where it stopped.

A checkpoint folder is a model folder (it loads with the Auto classes) with the recipe, the versions, the scores, and, in `last`,
the training state: `training_state.json` and the optimizer's tensors in `optimizer.safetensors`.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ..errors import CheckpointError
from ..evaluation import write_json
from ..report.model_card import EXAMPLE_FILE, write_model_card
from ..report.pictures import save_picture
from ..versions import versions
from .recipe import Recipe

LAST, BEST = "last", "best"
LOG_FILE = "log.jsonl"
TRACKER_FOLDER = "tensorboard"

# Fields that may change between a run and its continuation: they do not change what is learnt from there on.
FREE_TO_CHANGE = {"num_workers", "eval_every", "eval_at_start", "log_every", "trackers", "init_from"}


@dataclass
class TrainingState:
    """Where a run is; order and augmentation follow from these and the recipe's seed."""

    epoch: int = 0  # finished
    step: int = 0  # optimizer steps done
    best_mean_iou: float | None = None
    seconds: float = 0.0  # of training and evaluation
    log_lines: int = 0  # of log.jsonl when this state was saved
    grad_scale: float | None = None  # of the fp16 scaler


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Replace `target` by what `fill` writes: at any moment the old folder or the new one is there, whole.

    The move of a folder over another is two renames; `recover` mends a run that was killed between them.
    """
    fresh, old = target.with_name(target.name + ".new"), target.with_name(target.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        fill(fresh)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    for path in fresh.rglob("*"):
        _flush(path)
    _flush(fresh)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    fresh.rename(target)
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def recover(output_dir: Path) -> None:
    """Undo what a killed `write_folder` left: an old folder comes back if no new one took its place."""
    for name in (LAST, BEST):
        old, target = output_dir / f"{name}.old", output_dir / name
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(output_dir / f"{name}.new", ignore_errors=True)


def save_model_folder(
    folder: Path, model, image_processor, recipe: Recipe, scores: dict[str, Any] | None, example: Image.Image | None = None
) -> None:
    """A folder that loads with the Auto classes, what it was made from, and its card; `example` is the card's picture."""
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_json(folder / "versions.json", versions())
    if scores is not None:
        write_json(folder / "scores.json", scores)
    if example is not None:
        save_picture(example, folder / EXAMPLE_FILE)
    write_model_card(folder)


def save_training_state(folder: Path, state: TrainingState, optimizer_tensors: dict[str, torch.Tensor]) -> None:
    save_file(optimizer_tensors, folder / "optimizer.safetensors")
    write_json(folder / "training_state.json", asdict(state))


def save_averages(folder: Path, averaged: torch.nn.Module) -> None:
    """The moving average of the weights, which `last` keeps beside the weights themselves."""
    save_file({name: tensor.contiguous() for name, tensor in averaged.state_dict().items()}, folder / "averaged.safetensors")


def load_averages(folder: Path, averaged: torch.nn.Module) -> None:
    averaged.load_state_dict(load_file(folder / "averaged.safetensors"))


def load_training_state(folder: Path) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    try:
        state = TrainingState(**json.loads((folder / "training_state.json").read_text(encoding="utf-8")))
        return state, load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no training state to resume from: {error}") from error


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimizer keeps of each parameter, such as momentum, under `PARAMETER:WHAT`."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{what}": tensor.contiguous()  # safetensors knows no channels-last
        for parameter, state in optimizer.state.items()
        for what, tensor in state.items()
        if tensor is not None
    }


def restore_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameter, _, what = name.rpartition(":")
        parameter = parameters[parameter]
        # In the parameter's own memory format, but for a counter of steps, which AdamW keeps on the CPU.
        like = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
        optimizer.state[parameter][what] = like.copy_(tensor)


def claim_output_dir(output_dir: Path, recipe: Recipe, resume: bool, overwrite: bool) -> bool:
    """Make `output_dir` ready for a run; True if there is a checkpoint to go on from.

    Raises:
        CheckpointError: the folder holds a run and neither `resume` nor `overwrite` is asked for; or the run to resume was
            started with another recipe.
    """
    refuse_second_run(output_dir, resume, overwrite)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"Cannot make the output folder {output_dir}: {error.strerror}") from error
    recover(output_dir)
    if resume and (output_dir / LAST).exists():
        _check_same_recipe(output_dir / LAST / "recipe.yaml", recipe)
        return True
    remove_run(output_dir)
    return False


def refuse_second_run(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raises a CheckpointError if the folder holds a run and it is not said what to do with it."""
    if resume and overwrite:
        raise CheckpointError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"{output_dir} is a file; --output_dir must be a folder")
    has_run = any((output_dir / f"{name}{ending}").exists() for name in (LAST, BEST) for ending in ("", ".old"))
    if has_run and not (resume or overwrite):
        raise CheckpointError(
            f"{output_dir} already holds a run: go on with it by --resume, start anew by --overwrite, or choose another folder"
        )


def remove_run(output_dir: Path) -> None:
    for name in (LAST, BEST, TRACKER_FOLDER):
        shutil.rmtree(output_dir / name, ignore_errors=True)
    (output_dir / LOG_FILE).unlink(missing_ok=True)


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    before, now = asdict(Recipe.from_yaml(path)), asdict(recipe)
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        lines = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
        raise CheckpointError(
            f"The run in {path.parent} was started with another recipe: {lines}. Resume with the same, or start a new run"
        )
