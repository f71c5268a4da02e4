"""Checkpoints of a run: what is in them, which are kept, and which one a run goes on from.

A checkpoint folder is a model folder (it loads with the Auto classes) with the recipe, the versions, the scores, checksums, and,
but for `best`, the training state: `training_state.json` and the optimizer's tensors in `optimizer.safetensors`. `last` is the
newest; those before it are called `checkpoint-STEP`.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from ..errors import CheckpointError
from ..evaluation import write_json
from ..report.model_card import EXAMPLE_FILE, write_model_card
from ..report.pictures import save_picture
from ..versions import versions
from .integrity import damage, refuse_pickles, write_checkpoint
from .recipe import Recipe

LAST, BEST = "last", "best"
LOG_FILE = "log.jsonl"
LOCK_FILE = ".lock"
TRACKER_FOLDER = "tensorboard"

# Fields that may change between a run and its continuation: they do not change what is learnt from there on.
FREE_TO_CHANGE = {
    "num_workers",
    "eval_every",
    "eval_at_start",
    "early_stopping_patience",
    "recompute",
    "save_every",
    "keep_checkpoints",
    "log_every",
    "log_pictures",
    "trackers",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "init_from",
}


@dataclass
class TrainingState:
    """Where a run is; order, augmentation and schedule follow from these and the recipe."""

    epoch: int = 0  # finished, with their evaluation
    step: int = 0  # optimizer steps done
    best_mean_iou: float | None = None
    seconds: float = 0.0  # of training and evaluation
    evaluations_since_best: int = 0
    log_lines: int = 0  # of log.jsonl when this state was saved
    losses: list[list[float]] = field(default_factory=list)  # since the last log line: of each step, each forward pass's share
    bad_pictures: list[int] = field(default_factory=list)  # that could not be used so far, with on_bad_sample: skip
    scaler: dict[str, Any] | None = None  # state_dict of fp16's loss scaler
    num_processes: int = 1


def save_last(output_dir: Path, keep: int, fill: Callable[[Path], None]) -> None:
    """Write `last`; the `keep - 1` checkpoints before it stay beside it."""
    last = output_dir / LAST
    before = output_dir / f"checkpoint-{_step_of(last)}" if last.exists() else None
    write_checkpoint(last, fill, keep_old_as=before)
    for folder in earlier_checkpoints(output_dir)[keep - 1 :]:
        shutil.rmtree(folder)


def earlier_checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-STEP`, newest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def _step_of(folder: Path) -> int:
    return json.loads((folder / "training_state.json").read_text(encoding="utf-8"))["step"]


def recover(output_dir: Path) -> None:
    """Undo what a killed `write_checkpoint` left: the old folder comes back if no new one took its place."""
    old, best = output_dir / f"{BEST}.old", output_dir / BEST
    if old.exists() and not best.exists():
        old.rename(best)
    shutil.rmtree(old, ignore_errors=True)
    earlier = earlier_checkpoints(output_dir)
    if earlier and not (output_dir / LAST).exists():
        earlier[0].rename(output_dir / LAST)
    for name in (LAST, BEST):
        shutil.rmtree(output_dir / f"{name}.new", ignore_errors=True)


def choose_whole(output_dir: Path) -> None:
    """Make `last` the newest checkpoint that is whole. Damaged ones are named in a warning and become `NAME.damaged`.

    Raises:
        CheckpointError: none is whole, or there is a file in one that loading might unpickle.
    """
    damaged = {}
    for folder in (output_dir / LAST, *earlier_checkpoints(output_dir)):
        refuse_pickles(folder)
        what = damage(folder)
        if what is None:
            break
        damaged[folder] = what
    else:
        said = "; ".join(f"{folder}: {what}" for folder, what in damaged.items())
        raise CheckpointError(f"No checkpoint to resume from is whole: {said}. Start anew with --overwrite")
    for broken, what in damaged.items():
        aside = broken.with_name(f"{broken.name}.damaged")
        print(f"warning: {broken} is damaged: {what}. {folder.name} is used instead; it stays as {aside.name}", file=sys.stderr)
        shutil.rmtree(aside, ignore_errors=True)
        broken.rename(aside)
    if damaged:
        folder.rename(output_dir / LAST)


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
    except (OSError, ValueError, TypeError, SafetensorError) as error:
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
    strays = sorted({name.rpartition(":")[0] for name in tensors} - parameters.keys())
    if strays:
        raise CheckpointError(f"The optimizer's state is of another network: it has {strays[0]}, which this one has not")
    for name, tensor in tensors.items():
        parameter, _, what = name.rpartition(":")
        parameter = parameters[parameter]
        # In the parameter's own memory format, but for a counter of steps, which AdamW keeps on the CPU.
        like = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
        optimizer.state[parameter][what] = like.copy_(tensor)


def claim_output_dir(output_dir: Path, recipe: Recipe, resume: bool, overwrite: bool) -> tuple[bool, IO]:
    """Make `output_dir` ready for a run that has it to itself.

    Returns:
        Whether there is a checkpoint to go on from, which is then in `last`; and the folder's lock, to be closed at the end.

    Raises:
        CheckpointError: the folder cannot be written to; another run is at work in it; it holds a run and neither `resume` nor
            `overwrite` is asked for; no checkpoint is whole; or the run to resume was started with another recipe.
    """
    refuse_second_run(output_dir, resume, overwrite)
    lock = _lock(output_dir)
    recover(output_dir)
    if resume and (output_dir / LAST).exists():
        choose_whole(output_dir)
        _check_same_recipe(output_dir / LAST / "recipe.yaml", recipe)
        return True, lock
    remove_run(output_dir)
    return False, lock


def _lock(output_dir: Path) -> IO:
    """Keeps other processes out until it is closed or this process ends, in whatever way."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = open(output_dir / LOCK_FILE, "w")  # noqa: SIM115
    except OSError as error:
        raise CheckpointError(f"Cannot write to the output folder {output_dir}: {error.strerror}") from error
    try:
        if fcntl is not None:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which loader workers would hold as well
    except BlockingIOError as error:
        raise CheckpointError(
            f"Another run is at work in {output_dir}: wait for it or end it, or choose another --output_dir"
        ) from error
    except OSError as error:
        print(f"warning: {output_dir} cannot be locked ({error.strerror}): start no second run in it", file=sys.stderr)
    return lock


def refuse_second_run(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raises a CheckpointError if the folder holds a run and it is not said what to do with it."""
    if resume and overwrite:
        raise CheckpointError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"{output_dir} is a file; --output_dir must be a folder")
    places = (output_dir / LAST, output_dir / BEST, output_dir / f"{BEST}.old", *earlier_checkpoints(output_dir))
    has_run = any(place.exists() for place in places)
    if has_run and not (resume or overwrite):
        raise CheckpointError(
            f"{output_dir} already holds a run: go on with it by --resume, start anew by --overwrite, or choose another folder"
        )


def remove_run(output_dir: Path) -> None:
    damaged = output_dir.glob("*.damaged")
    for folder in (*(output_dir / name for name in (LAST, BEST, TRACKER_FOLDER)), *earlier_checkpoints(output_dir), *damaged):
        shutil.rmtree(folder, ignore_errors=True)
    (output_dir / LOG_FILE).unlink(missing_ok=True)


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    before, now = asdict(Recipe.from_yaml(path)), asdict(recipe)
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        lines = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
        raise CheckpointError(
            f"The run in {path.parent} was started with another recipe: {lines}. Resume with the same, or start a new run"
        )
