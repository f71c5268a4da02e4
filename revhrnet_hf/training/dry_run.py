"""A rehearsal of a chain: each stage is built, trains a few steps, scores and saves for real, in a temporary folder.

The time and room that this takes is multiplied by how often the recipes do it.
"""

import json
import math
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object

from ..text import aligned, size_on_disk
from .agreement import SharedErrors
from .chain import beginning_from, check_chain
from .checkpoint_files import damage
from .data import DataDirs
from .dataset_checks import refuse_other_data
from .output_dir import BEST, LAST, check_same_recipe
from .processes import TIMEOUT, peak_memory_gib, start_processes
from .recipe import Recipe
from .trainer import Stage

STEPS = 6  # the first, which is slower, is not timed
IMAGES = 4  # scored by each process


@dataclass
class Estimate:
    """The time, memory and disk space that one stage will take.

    Attributes:
        build_seconds: once, to load data and network.
        step_seconds, image_seconds, save_seconds: of a step; of scoring one image (by all processes together); of a checkpoint.
        steps, evaluations, images, saves: how many there are; images are those of one evaluation.
        memory_gib: peak of one process, as in `log.jsonl`.
        disk_gib: of all checkpoints that are kept, and of one that is being written.
        bank_gib, bank_steps, bank_step_seconds: of the feature bank, the steps that read it instead of images, and each of these.
    """

    dataset: str
    build_seconds: float
    step_seconds: float
    image_seconds: float
    save_seconds: float
    steps: int
    evaluations: int
    images: int
    saves: int
    memory_gib: float
    disk_gib: float
    bank_gib: float = 0.0
    bank_steps: int = 0
    bank_step_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        scoring = self.evaluations * self.images * self.image_seconds
        training = (self.steps - self.bank_steps) * self.step_seconds + self.bank_steps * self.bank_step_seconds
        return self.build_seconds + training + scoring + self.saves * self.save_seconds


def dry_run(
    recipes: list[Recipe],
    data_dirs: DataDirs,
    output_dir: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    timeout: float = TIMEOUT,
    bank_dir: str | Path | None = None,
) -> list[Estimate]:
    """Rehearse each stage of a chain and print what it will take; `output_dir` and `bank_dir` stay as they are. Errors as for
    `run_chain`."""
    accelerator = start_processes(recipes[0], timeout)
    errors = SharedErrors(accelerator, timeout)
    estimates, best = [], None
    with ExitStack() as stack:
        with errors.together():
            # The splits are loaded again, because their loading counts among a stage's seconds.
            folders, _ = check_chain(recipes, data_dirs, Path(output_dir), resume, overwrite, bank_dir, accelerator.num_processes)
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="revhrnet-dry-run-"))
        (place,) = broadcast_object_list([own])
        for position, recipe in enumerate(recipes):
            recipe = replace(beginning_from(best, recipe), trackers=[], log_images=0)
            shared, own_folder = Path(place) / str(position), Path(own) / str(position)
            to_resume = folders[position] / LAST if resume else None
            before, (estimate, best) = best, _rehearse(recipe, data_dirs, shared, own_folder, timeout, to_resume)
            estimates.append(estimate)
            if before is not None and before.is_relative_to(own):
                shutil.rmtree(before.parent)  # all processes have read it
        accelerator.wait_for_everyone()
    accelerator.print(format_estimates(estimates, output_dir, bank_dir))
    return estimates


def _rehearse(
    recipe: Recipe, data_dirs: DataDirs, folder: Path, own_folder: Path, timeout: float, to_resume: Path | None
) -> tuple[Estimate, Path]:
    """What the stage will take, and its best checkpoint, at a place that this process can read.

    Args:
        folder: the stage's output folder, in the main process's temporary folder.
        own_folder: for the checkpoint, where this process, on another machine, does not see that folder.
        to_resume: a checkpoint from which the run would be resumed, if it is there.
    """
    started = time.perf_counter()
    stage = Stage(recipe, data_dirs, folder, timeout=timeout)
    with stage.errors.together():
        if to_resume is not None and to_resume.exists():
            _check_resumable(to_resume, stage)
        stage.log.start({})
    bank_gib = _open_small_bank(stage)
    built = time.perf_counter() - started
    images = len(stage.evaluation.dataset)
    step_seconds, bank_step_seconds = _seconds_of_training(stage), _seconds_of_reading_the_bank(stage)
    image_seconds, save_seconds = _seconds_of_scoring_and_saving(stage)
    with stage.errors.together():
        best = _readable_here(folder / BEST, own_folder, stage.accelerator.is_main_process)
    estimate = Estimate(
        dataset=recipe.dataset,
        build_seconds=built,
        step_seconds=step_seconds,
        image_seconds=image_seconds,
        save_seconds=save_seconds,
        steps=stage.total_steps,
        evaluations=math.ceil(recipe.epochs / recipe.eval_every) + recipe.eval_at_start,
        images=images,
        saves=_saves(stage),
        memory_gib=peak_memory_gib(stage.accelerator.device),
        disk_gib=(recipe.keep_checkpoints + 1) * _gib(folder / LAST) + _gib(best),
        bank_gib=bank_gib,
        bank_steps=(recipe.epochs - recipe.feature_bank) * stage.data.batches.steps if recipe.feature_bank else 0,
        bank_step_seconds=bank_step_seconds,
    )
    return estimate, best


def _check_resumable(checkpoint: Path, stage: Stage) -> None:
    """Raises a CheckpointError if the run of a whole checkpoint was started with another recipe or on other data."""
    if damage(checkpoint) is not None:  # the run is resumed from an earlier one
        return
    check_same_recipe(checkpoint / "recipe.yaml", stage.recipe)
    data = json.loads((checkpoint / "training_state.json").read_text(encoding="utf-8")).get("data")
    if data is not None:
        refuse_other_data(data, stage.fingerprint)


def _open_small_bank(stage: Stage) -> float:
    """Let the stage fill a feature bank for its few steps; GiB of the whole one, 0 without one."""
    bank = stage.data.bank
    if bank is None:
        return 0.0
    gib = bank.size / 2**30
    bank.rehearse(STEPS)
    stage.data.open_bank(steps_done=0)
    return gib


def _seconds_of_reading_the_bank(stage: Stage) -> float:
    """Seconds of a step that reads what the steps before have kept; 0 without a bank."""
    if stage.data.bank is None:
        return 0.0
    stage.data.start_at(epoch=0, step=0)
    stage.state.step = 0
    return _seconds_of_a_step(stage)


def _seconds_of_training(stage: Stage) -> float:
    """Seconds of one step: of the network's, or of loading its images where that takes longer."""
    seconds = _seconds_of_a_step(stage)
    with stage.errors.together():
        return max(seconds, _seconds_of_loading(stage))


def _seconds_of_scoring_and_saving(stage: Stage) -> tuple[float, float]:
    """Seconds of scoring an image (by all processes together), measured on the split's first images, and of a save."""
    evaluation = stage.evaluation
    few = min(len(evaluation.dataset), IMAGES * stage.accelerator.num_processes)
    evaluation.dataset = evaluation.dataset.select(range(few))
    started = time.perf_counter()
    scores = evaluation.run(epoch=0, step=stage.state.step)  # not `stage.evaluate`: so few images may have no labelled pixel
    evaluated = time.perf_counter()
    stage.save(scores)
    stage.checkpoints.writer.wait()
    return (evaluated - started) / few, time.perf_counter() - evaluated


def _saves(stage: Stage) -> int:
    """How many checkpoints the stage writes: at ends of epochs, and those of `save_every` at other steps."""
    every, steps, total = stage.recipe.save_every, stage.data.batches.steps, stage.total_steps
    between = 0 if every is None else total // every - total // math.lcm(every, steps)
    return sum(map(stage.is_saved_after, range(1, stage.recipe.epochs + 1))) + between


def _readable_here(best: Path, own_folder: Path, is_main: bool) -> Path:
    """The main process's checkpoint, at a place that this process can read; a process on another machine is sent a copy."""
    if not any(gather_object([not best.exists()])):
        return best
    files = {path.name: path.read_bytes() for path in best.iterdir()} if is_main else None
    (files,) = broadcast_object_list([files])
    if best.exists():
        return best
    copy = own_folder / BEST
    copy.mkdir(parents=True)
    for name, content in files.items():
        (copy / name).write_bytes(content)
    return copy


def _seconds_of_a_step(stage: Stage) -> float:
    stage.learner.model.train()
    ends = []
    for passes in islice(stage.data.steps(), STEPS):
        stage.train_step(passes)
        if stage.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    if len(ends) == 1:  # an epoch of one step
        stage.train_step(passes)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _seconds_of_loading(stage: Stage) -> float:
    """The time that the loader's workers need for a step. The first steps do not show it: their images were loaded ahead."""
    # Each process here has its own workers; launchers say how many processes there are on a machine.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", stage.accelerator.num_processes))
    data = stage.data
    workers = min(data.loader.num_workers, max(1, (os.cpu_count() or 1) // processes))
    if workers == 0:
        return 0.0
    own_share = next(iter(data.batches))
    started = time.perf_counter()
    for index in own_share[:IMAGES]:
        data.loader.dataset[index]
    each = (time.perf_counter() - started) / len(own_share[:IMAGES])
    return each * len(own_share) * data.batches.passes / workers


def _gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30


COLUMNS = ("steps", "s/step", "evaluations", "s each", "saves", "s each", "time", "memory GiB", "disk GiB")


def format_estimates(estimates: list[Estimate], output_dir: str | Path, bank_dir: str | Path | None = None) -> str:
    """A table of the stages, and whether there is room for their checkpoints and feature banks."""
    rows = [["stage", *(f">{title}" for title in COLUMNS)]]
    for number, one in enumerate(estimates, 1):
        scoring = one.images * one.image_seconds
        row = [f"{number} {one.dataset}", str(one.steps), f"{one.step_seconds:.2f}", str(one.evaluations), f"{scoring:.1f}"]
        row += [str(one.saves), f"{one.save_seconds:.1f}", as_time(one.seconds), f"{one.memory_gib:.2f}", f"{one.disk_gib:.2f}"]
        rows.append(row)
    lines = aligned(rows)
    for number, one in enumerate(estimates, 1):
        if one.bank_gib:
            lines.append(
                f"stage {number}: its feature bank takes {size_on_disk(one.bank_gib)} more; {one.bank_steps} of its steps read "
                f"it and take {one.bank_step_seconds:.2f} s"
            )
    needed, banks = sum(one.disk_gib for one in estimates), sum(one.bank_gib for one in estimates)
    memory = max(one.memory_gib for one in estimates)
    room = _room(needed + banks, output_dir) if bank_dir is None else f"{_room(needed, output_dir)}; {_room(banks, bank_dir)}"
    lines.append(
        f"together {as_time(sum(one.seconds for one in estimates))}; peak memory {memory:.2f} GiB a process, without its "
        f"loader's workers; {room}"
    )
    return "\n".join(lines)


def _room(needed: float, folder: str | Path) -> str:
    """GiB that are needed in a folder, which may not be there yet, and are free."""
    place = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free / 2**30
    return f"{size_on_disk(needed)} of disk, of {free:.1f} GiB free at {place}{' (TOO LITTLE)' if needed > free else ''}"


def as_time(seconds: float) -> str:
    """Such as `3 d 4 h`, `4 h 5 min` or `5 min 6 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
