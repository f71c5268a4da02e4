"""Checkpoints of a run: what is in them, which are kept, and which one a run goes on from.

A checkpoint folder is a model folder (it loads with the Auto classes) with the recipe, the versions, the scores, checksums, and,
but for `best`, the training state: `training_state.json` and the optimizer's tensors in `optimizer.safetensors`. `last` is the
newest; those before it are called `checkpoint-STEP`.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import CheckpointError, first_few
from ..hub.model_card import EXAMPLE_FILE, write_model_card
from ..images import save_image
from ..io import LOG_FILE, lock_file, recover_folder, write_json
from ..versions import versions
from .integrity import damage, refuse_pickles, write_checkpoint
from .recipe import Recipe
from .run_files import carry_over, checkpoint_files, entries_of_others, is_checkpoint, remove_files, result_files, tracker_files

LAST, BEST = "last", "best"
LOCK_FILE = ".lock"
TRACKER_FOLDER = "tensorboard"

# What a run writes into its output folder. The lock file says whether what has these names there is a run's own; its text is
# replaced in place, which needs no room on a full disk.
RUN_ENTRIES = re.compile(rf"{LAST}|{BEST}|checkpoint-\d+|({LAST}|checkpoint-\d+)\.damaged(\.\d+)?|log\.jsonl|{TRACKER_FOLDER}")
RUN_BEGUN = b"A run of revhrnet_hf writes into this folder; it has no checkpoint yet.\n"
RUN_SAVED = b"A run of revhrnet_hf writes into this folder; it has checkpoints.      \n"

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
    "log_images",
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
    bad_images: list[int] = field(default_factory=list)  # that could not be used so far, with on_bad_sample: skip
    scaler: dict[str, Any] | None = None  # state_dict of fp16's loss scaler
    num_processes: int = 1
    data: dict[str, Any] | None = None  # what is trained and scored on (dataset_checks.py); None in states of older versions


def save_last(output_dir: Path, keep: int, fill: Callable[[Path], None]) -> None:
    """Write `last`; the `keep - 1` checkpoints before it stay beside it. Of older ones only the run's own files go."""
    last = output_dir / LAST
    before = output_dir / f"checkpoint-{_step_of(last)}" if last.exists() else None
    write_checkpoint(last, fill, keep_old_as=before)
    for folder in earlier_checkpoints(output_dir)[keep - 1 :]:
        if files := checkpoint_files(folder):  # none through a link
            remove_files(folder, files)


def earlier_checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-STEP`, newest first; not what is left of one that is gone, with files of others in it."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    found = [path for path in found if is_checkpoint(path)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def _step_of(folder: Path) -> int:
    return json.loads((folder / "training_state.json").read_text(encoding="utf-8"))["step"]


def recover(output_dir: Path) -> None:
    """Undo what a killed `write_checkpoint` left: the old folder comes back if no new one took its place."""
    for name in (LAST, BEST):
        recover_folder(output_dir / name, carry_over)
    earlier = earlier_checkpoints(output_dir)
    if earlier and not (output_dir / LAST).exists():
        earlier[0].rename(output_dir / LAST)


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
        names = (f"{broken.name}.damaged{number}" for number in ("", *(f".{n}" for n in range(2, 1000))))
        aside = next(path for path in map(broken.with_name, names) if not os.path.lexists(path))
        print(f"warning: {broken} is damaged: {what}. {folder.name} is used instead; it stays as {aside.name}", file=sys.stderr)
        broken.rename(aside)
    if damaged:
        folder.rename(output_dir / LAST)


def save_model_folder(
    folder: Path, model, image_processor, recipe: Recipe, scores: dict[str, Any] | None, example: Image.Image | None = None
) -> None:
    """A folder that loads with the Auto classes, what it was made from, and its card; `example` is the card's image."""
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    write_json(folder / "versions.json", versions())
    if scores is not None:
        write_json(folder / "scores.json", scores)
    if example is not None:
        save_image(example, folder / EXAMPLE_FILE)
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
        values = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
        if "bad_pictures" in values:  # its name in 0.1.0
            values["bad_images"] = values.pop("bad_pictures")
        return TrainingState(**values), load_file(folder / "optimizer.safetensors")
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


def claim_output_dir(output_dir: Path, recipe: Recipe, resume: bool, overwrite: bool) -> tuple[bool, IO[bytes]]:
    """Make `output_dir` ready for a run that has it to itself. Only what a run has written there is ever deleted.

    Returns:
        Whether there is a checkpoint to resume from, which is then in `last`; and the folder's lock, to be closed at the end.

    Raises:
        CheckpointError: the folder cannot be written to; another run is at work in it; it holds a run and neither `resume` nor
            `overwrite` is asked for; its run's checkpoints are missing, or none is whole; it holds files of others under a
            run's names; or the run to resume was started with another recipe.
    """
    refuse_second_run(output_dir, resume, overwrite)
    lock = _lock(output_dir)
    try:
        recover(output_dir)
        lock.seek(0)
        _check_entries(output_dir, lock.read(), resume, overwrite)
        going_on = resume and (output_dir / LAST).exists()
        if going_on:
            choose_whole(output_dir)
            _check_same_recipe(output_dir / LAST / "recipe.yaml", recipe)
        else:
            remove_run(output_dir)
        _mark(lock, RUN_SAVED if going_on else RUN_BEGUN)
    except BaseException:
        lock.close()
        raise
    return going_on, lock


def note_saved(lock: IO[bytes]) -> None:
    """Note in the lock file that the run has a checkpoint: if there is none later, somebody else has taken it away."""
    _mark(lock, RUN_SAVED)


def _mark(lock: IO[bytes], text: bytes) -> None:
    lock.seek(0)
    lock.write(text)


def _lock(output_dir: Path) -> IO[bytes]:
    """Keeps other processes out until it is closed or this process ends, in whatever way."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_file(output_dir / LOCK_FILE)
    except OSError as error:
        raise CheckpointError(f"Cannot write to the output folder {output_dir}: {error.strerror}") from error
    if lock is None:
        raise CheckpointError(f"Another run is at work in {output_dir}: wait for it or end it, or choose another --output_dir")
    return lock


def refuse_second_run(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raises a CheckpointError if a run may not begin in the folder, or be resumed there; writes nothing."""
    if resume and overwrite:
        raise CheckpointError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"{output_dir} is a file; --output_dir must be a folder")
    lock = output_dir / LOCK_FILE
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        raise CheckpointError(f"{lock} is a link or no plain file: remove it, or choose another --output_dir")
    # Closing the file lets go of a lock that this process has on it: so this comes before locking.
    _check_entries(output_dir, lock.read_bytes() if lock.exists() else b"", resume, overwrite)


def _check_entries(output_dir: Path, mark: bytes, resume: bool, overwrite: bool) -> None:
    """As `refuse_second_run`; `mark` is the text of the folder's lock file."""
    if mark not in (b"", RUN_BEGUN, RUN_SAVED):
        raise CheckpointError(
            f"{output_dir / LOCK_FILE} was not written by this program: move it away, or choose another --output_dir"
        )
    entries = run_entries(output_dir)
    names = ", ".join(path.name for path in entries)
    to_resume = [path for path in (output_dir / LAST, *earlier_checkpoints(output_dir)) if path.exists()]
    checkpoints = [*to_resume, *(path for path in [output_dir / BEST] if path.exists())]
    if entries and not (mark or any((folder / "recipe.yaml").is_file() for folder in checkpoints)):
        raise CheckpointError(
            f"{output_dir} holds {names}, where a run would write, and no run of this program has written that: move it away, or "
            "choose another --output_dir"
        )
    others = first_few(path.relative_to(output_dir) for path in entries_no_run_wrote(output_dir))
    if checkpoints and not (resume or overwrite):
        raise CheckpointError(
            f"{output_dir} already holds a run: resume it by --resume, start anew by --overwrite"
            f"{f' after moving away {others}, which no run has written' if others else ''}, or choose another folder"
        )
    if others and not (resume and to_resume):  # a run begins, and what there is of another is deleted
        raise CheckpointError(
            f"{output_dir} holds files that no run of this program has written: {others}. They would be deleted: move them away, "
            "or choose another --output_dir"
        )
    if entries and mark != RUN_BEGUN and not (to_resume or overwrite):
        raise CheckpointError(
            f"{output_dir} holds no checkpoint to resume from: {LAST}/ and checkpoint-STEP/ are missing; of its run there is "
            f"only {names}. Bring one of them back, or start anew with --overwrite"
        )


def run_entries(output_dir: Path) -> list[Path]:
    """What is in an output folder under the names that a run gives."""
    return sorted(path for path in output_dir.glob("*") if RUN_ENTRIES.fullmatch(path.name))


def _files_of(entry: Path) -> tuple[set[Path], set[Path]]:
    """What is a run's under one of the names that a run gives; and what is an evaluation's."""
    if entry.is_symlink():
        return set(), set()
    if not entry.is_dir():
        return ({entry} if entry.name == LOG_FILE else set()), set()
    if entry.name == TRACKER_FOLDER:
        return tracker_files(entry), set()
    return checkpoint_files(entry), result_files(entry)


def entries_no_run_wrote(output_dir: Path) -> list[Path]:
    """Files, links and folders under the names that a run gives, or in its folders, that neither a run nor an evaluation has
    written."""
    found = []
    for entry in run_entries(output_dir):
        files, results = _files_of(entry)
        if entry.is_dir() and not entry.is_symlink():
            found += entries_of_others(entry, files | results)
        elif not files:
            found.append(entry)
    return found


def remove_run(output_dir: Path) -> None:
    """Delete what a run and its evaluations have written, and nothing else; `refuse_second_run` knows whether it was one."""
    gone = []
    for entry in run_entries(output_dir):
        files, results = _files_of(entry)
        gone += sorted(str(path.relative_to(output_dir)) for path in results if path.suffix == ".json" and path.parent == entry)
        if entry.is_dir() and not entry.is_symlink():
            remove_files(entry, files | results)
        else:
            for file in files:
                file.unlink()
    if gone:
        print(f"note: with the run go the scores that evaluate_seg.py has written of it: {first_few(gone)}", file=sys.stderr)


def _check_same_recipe(path: Path, recipe: Recipe) -> None:
    before, now = asdict(Recipe.from_yaml(path)), asdict(recipe)
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        lines = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
        raise CheckpointError(
            f"The run in {path.parent} was started with another recipe: {lines}. Resume with the same, or start a new run"
        )
