"""A rehearsal of a chain: all stages are built, learn a few steps, score and save for real, in a temporary folder.

What it takes is measured there and multiplied by how often the recipes do it.
"""

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

from .chain import check_chain
from .checkpoint import BEST, LAST
from .processes import SharedErrors
from .recipe import Recipe
from .sampler import DataDirs
from .trainer import TIMEOUT, Stage, start_processes

STEPS = 6  # of which the first, which is slower, is not timed
IMAGES = 4  # that each process scores


@dataclass
class Estimate:
    """What one stage will take.

    Attributes:
        build_seconds, step_seconds, image_seconds, save_seconds: once; of a step; of scoring one image (by all processes
            together); of a checkpoint.
        steps, evaluations, images, saves: how often; images are those of one evaluation.
        memory_gib: peak of one process, as `log.jsonl` has it.
        disk_gib: of all checkpoints that are kept, and of one that is being written.
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

    @property
    def seconds(self) -> float:
        scoring = self.evaluations * self.images * self.image_seconds
        return self.build_seconds + self.steps * self.step_seconds + scoring + self.saves * self.save_seconds


def dry_run(
    recipes: list[Recipe],
    data_dirs: DataDirs,
    output_dir: str | Path,
    resume: bool = False,
    overwrite: bool = False,
    timeout: float = TIMEOUT,
) -> list[Estimate]:
    """Rehearse each stage of a chain, print what it will take, leave `output_dir` alone. Errors are those of `run_chain`."""
    accelerator = start_processes(recipes[0], timeout)
    errors = SharedErrors(accelerator, timeout)
    estimates, best = [], None
    with ExitStack() as stack:
        with errors.together():
            check_chain(recipes, data_dirs, Path(output_dir), resume, overwrite)
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="revhrnet-dry-run-"))
        (place,) = broadcast_object_list([own])
        for position, recipe in enumerate(recipes):
            recipe = replace(recipe, trackers=[], log_images=0)
            if best is not None and recipe.init_from is None:
                recipe.init_from = str(best)
            shared, own_folder = Path(place) / str(position), Path(own) / str(position)
            before, (estimate, best) = best, _rehearse(recipe, data_dirs, shared, own_folder, timeout)
            estimates.append(estimate)
            if before is not None and before.is_relative_to(own):
                shutil.rmtree(before.parent)  # all have read it
        accelerator.wait_for_everyone()
    accelerator.print(format_estimates(estimates, output_dir))
    return estimates


def _rehearse(recipe: Recipe, data_dirs: DataDirs, folder: Path, own_folder: Path, timeout: float) -> tuple[Estimate, Path]:
    """What the stage will take, and its best checkpoint, at a place that this process can read.

    Args:
        folder: the stage's output folder, in the main process's temporary folder.
        own_folder: for the checkpoint, where this process, on another machine, does not see that folder.
    """
    started = time.perf_counter()
    stage = Stage(recipe, data_dirs, folder, timeout=timeout)
    with stage.errors.together():
        stage.log.start({})
    built = time.perf_counter() - started
    step_seconds = _seconds_of_a_step(stage)
    with stage.errors.together():
        step_seconds = max(step_seconds, _seconds_of_loading(stage))

    # A copy of the recipe's evaluation in small, with as many images for each process.
    processes, images = stage.accelerator.num_processes, len(stage.eval_set)
    stage.eval_set = stage.eval_set.select(range(min(images, IMAGES * processes)))
    started = time.perf_counter()
    scores = stage.evaluate(epoch=0)
    image_seconds = (time.perf_counter() - started) / len(stage.eval_set)

    started = time.perf_counter()
    stage.save(scores)
    save_seconds = time.perf_counter() - started
    with stage.errors.together():
        best = _brought_near(folder / BEST, own_folder, stage.accelerator.is_main_process)
    between = 0
    if recipe.save_every is not None:  # those at the end of an epoch are there in any case
        between = stage.total_steps // recipe.save_every - stage.total_steps // math.lcm(recipe.save_every, stage.batches.steps)
    estimate = Estimate(
        dataset=recipe.dataset,
        build_seconds=built,
        step_seconds=step_seconds,
        image_seconds=image_seconds,
        save_seconds=save_seconds,
        steps=stage.total_steps,
        evaluations=math.ceil(recipe.epochs / recipe.eval_every) + recipe.eval_at_start,
        images=images,
        saves=recipe.epochs + between,
        memory_gib=stage.peak_memory_gib(),
        disk_gib=(recipe.keep_checkpoints + 1) * _gib(folder / LAST) + _gib(best),
    )
    return estimate, best


def _brought_near(best: Path, own_folder: Path, is_main: bool) -> Path:
    """The main process's checkpoint, at a place that this process can read: on another machine it is sent a copy."""
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
    stage.model.train()
    ends = []
    for passes in islice(stage.data_steps(), STEPS):
        stage.train_step(passes)
        if stage.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    if len(ends) == 1:  # an epoch of one step
        stage.train_step(passes)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _seconds_of_loading(stage: Stage) -> float:
    """What the loader's workers need for a step, which the first steps do not show: their images were loaded ahead."""
    # Each process here has its own workers; launchers say how many processes there are on a machine.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", stage.accelerator.num_processes))
    workers = min(stage.loader.num_workers, max(1, (os.cpu_count() or 1) // processes))
    if workers == 0:
        return 0.0
    own_share = next(iter(stage.batches))
    started = time.perf_counter()
    for index in own_share[:IMAGES]:
        stage.samples[index]
    each = (time.perf_counter() - started) / len(own_share[:IMAGES])
    return each * len(own_share) * stage.batches.passes / workers


def _gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30


def format_estimates(estimates: list[Estimate], output_dir: str | Path) -> str:
    """A table of the stages, and whether there is room for their checkpoints."""
    lines = [
        f"{'stage':<20} {'steps':>8} {'s/step':>8} {'evaluations':>11} {'s each':>8} {'saves':>6} {'s each':>7} {'time':>11} "
        f"{'memory GiB':>11} {'disk GiB':>8}"
    ]
    for number, one in enumerate(estimates, 1):
        scoring = one.images * one.image_seconds
        lines.append(
            f"{f'{number} {one.dataset}':<20} {one.steps:>8} {one.step_seconds:>8.2f} {one.evaluations:>11} {scoring:>8.1f} "
            f"{one.saves:>6} {one.save_seconds:>7.1f} {_as_time(one.seconds):>11} {one.memory_gib:>11.2f} {one.disk_gib:>8.2f}"
        )
    needed = sum(one.disk_gib for one in estimates)
    place = next(folder for folder in (Path(output_dir).absolute(), *Path(output_dir).absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**30
    memory = max(one.memory_gib for one in estimates)
    lines.append(
        f"together {_as_time(sum(one.seconds for one in estimates))}; peak memory {memory:.2f} GiB a process, without its "
        f"loader's workers; {needed:.2f} GiB of disk, of {free:.1f} GiB free at {place}{' (TOO LITTLE)' if needed > free else ''}"
    )
    return "\n".join(lines)


def _as_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
