"""Part b: the host waits for the device nowhere in a training step."""

import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from .children import in_child
from .record import Check, Difference
from .stages import Setup, begun_stage, next_passes

WARM_UP, STEPS = 3, 3
HALF = {"precision": "fp16"}
CASES: dict[str, dict] = {
    "SGD, float32": {},
    "AdamW, bf16, average": {"optimizer": "adamw", "precision": "bf16", "ema_decay": 0.9},
    "SGD, fp16 with its scaler, clipping, average": {**HALF, "max_grad_norm": 1.0, "ema_decay": 0.9},
    "OHEM, class weights, two passes": {
        "ohem_threshold": 0.9, "ohem_min_kept": 1000, "class_weights": [1.0] * 10 + [2.0], "gradient_accumulation_steps": 2,
    },
    "AdamW, fp16, modules recomputed": {**HALF, "optimizer": "adamw", "recompute": "modules"},
    "fine-tuned backbone, bf16": {"trainable_backbone": "all", "precision": "bf16"},
    "saved beside the steps": {"save_in_background": True, "ema_decay": 0.9},
}  # fmt: skip
QUICK = ("SGD, float32", "OHEM, class weights, two passes")


def checks(setup: Setup) -> list[Check]:
    return [
        Check("no waits in a step", case, partial(work, setup, case), needs=5)
        for case, settings in CASES.items()
        if setup.is_gpu or (settings.get("precision") != "fp16" and (case in QUICK or not setup.quick))
    ]


def work(setup: Setup, case: str) -> dict:
    folder = setup.folder / "waits" / "".join(filter(str.isalnum, case))
    found = in_child(waits_of, setup.recipe(**CASES[case]), setup.streets, folder)
    waits = found.pop("waits")
    if not setup.is_gpu:
        return {**found, "said": "steps were run; on a CPU there is nothing to wait for"}
    said = "; ".join(waits) or f"host {1000 * found['host seconds']:.0f} of {1000 * found['seconds a step']:.0f} ms"
    return {"differences": [Difference("waits", len(waits), 0)], "said": said, **found}


def waits_of(recipe: Recipe, data_dir: Path, folder: Path) -> dict:
    """The places at which three steps wait for the device, and the seconds that the host and the device need for a step."""
    stage = begun_stage(recipe, data_dir, folder)
    batches = next_passes(stage)
    for _ in range(WARM_UP):  # make the optimizer's state, try cuDNN's algorithms, take memory
        stage.train_step(next(batches))
    if recipe.save_in_background:
        stage.save()
    is_gpu = stage.accelerator.device.type == "cuda"
    waits = places_of_waits(lambda: steps(stage, batches)) if is_gpu else steps(stage, batches) or []
    times = host_and_whole_seconds(stage, batches, is_gpu)
    stage.checkpoints.writer.wait()
    return {"waits": waits, **times}


def steps(stage: Stage, batches) -> None:
    for _ in range(STEPS):
        stage.train_step(next(batches))


def places_of_waits(call: Callable[[], object]) -> list[str]:
    """Where `call` waits for the GPU: none if torch has no error, else all places at which torch then warns."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        return []
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = f"{Path(place.filename).name}:{place.lineno}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return list(dict.fromkeys([first, *warned_places(call)]))


def warned_places(call: Callable[[], object]) -> list[str]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(entry.filename).name}:{entry.lineno}" for entry in caught if "synchronizing" in str(entry.message)]


def host_and_whole_seconds(stage: Stage, batches, is_gpu: bool) -> dict[str, float]:
    """Of a step: the time in which the host gives it to the device, and that in which it is done; its batches are there."""
    passes = [next(batches) for _ in range(STEPS)]
    wait = torch.cuda.synchronize if is_gpu else lambda: None
    wait()
    started = time.perf_counter()
    for each in passes:
        stage.train_step(each)
    given = time.perf_counter() - started
    wait()
    return {"host seconds": given / STEPS, "seconds a step": (time.perf_counter() - started) / STEPS}
