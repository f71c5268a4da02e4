"""Trains and scores the runs of a study, each in a process of its own; a finished run is never done twice."""

import json
import logging
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any
from zipfile import BadZipFile

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from revhrnet_hf.adapters import add_adapters
from revhrnet_hf.data import label_space_of
from revhrnet_hf.errors import CheckpointError, DivergedError, RecipeError, RunStopped, first_few
from revhrnet_hf.evaluation.checkpoint import find_checkpoint, load_for_inference
from revhrnet_hf.evaluation.evaluator import Recorder, evaluate_images, score_records
from revhrnet_hf.evaluation.records import class_totals_by_image
from revhrnet_hf.evaluation.results import digest_of_data, digest_of_table, digest_of_weights
from revhrnet_hf.hub.model_table import count_multiply_adds, count_saved_bytes
from revhrnet_hf.io import LOG_FILE, read_values, sha256_of, whole_file, write_json
from revhrnet_hf.models.recompute import NONE, NORMS, RecomputedModule
from revhrnet_hf.training.chain import data_dirs_by_name, run_chain
from revhrnet_hf.training.data import load_split
from revhrnet_hf.training.output_dir import BEST
from revhrnet_hf.training.recipe import LORA, RANDOM, Recipe
from revhrnet_hf.versions import versions

from .plan import Run, Study, same_settings, scored_on

logger = logging.getLogger(f"revhrnet_hf.{__name__}")  # the messages of the package's loggers are printed

RESULT, TOTALS = "result.json", "totals.npz"
TIMES = "_times.json"  # after the study's name; see times.py
DIVERGED = -1.0  # the mIoU of a learning rate with which the loss was no number


def read_result(run: Run, output_dir: Path) -> dict[str, Any] | None:
    """The result of a run; None if it is not finished.

    Raises:
        CheckpointError: it was made with other settings, or cannot be read.
    """
    path = output_dir / run.folder / RESULT
    if not path.exists():
        return None
    result = read_values(path)
    if changed := same_settings(run, result):
        raise CheckpointError(
            f"{path} is the result of other settings ({changed}): choose another --output_dir, or move {path.parent} away"
        )
    return result


def read_totals(run: Run, output_dir: Path) -> np.ndarray:
    """(images, 3, classes): of each image and class the correct, the true and the predicted pixels.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = output_dir / run.folder / TOTALS
    try:
        with np.load(path) as stored:
            return stored["totals"]
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): move {path.parent} away, and the run is made again") from error


def copy_records(study: Study, output_dir: Path, target: Path) -> None:
    """Copies result and totals of each finished run: enough for the table and figures, and to resume the study elsewhere."""
    for run in (*study.tuning_runs(), *study.runs(chosen_rates(study, output_dir))):
        if read_result(run, output_dir) is not None:
            (target / run.folder).mkdir(parents=True, exist_ok=True)
            for name in (TOTALS, RESULT):  # in this order: with its result a run counts as finished
                if not (output_dir / run.folder / name).exists():
                    continue  # it has diverged
                with whole_file(target / run.folder / name) as path:
                    shutil.copyfile(output_dir / run.folder / name, path)
    for times in output_dir.glob(f"*{TIMES}"):
        with whole_file(target / times.name) as path:
            shutil.copyfile(times, path)


def chosen_rates(study: Study, output_dir: Path) -> dict[str, float]:
    """The learning rate with the best mIoU for each network whose tuning runs are all finished and have not all diverged."""
    finished = {name: found for name, found in _tried(study, output_dir).items() if all(score is not None for score, _ in found)}
    return {name: max(found)[1] for name, found in finished.items() if max(found)[0] > DIVERGED}


def diverged(study: Study, output_dir: Path) -> list[str]:
    """The networks whose loss was no number with any learning rate, so that they have none."""
    return [name for name, found in _tried(study, output_dir).items() if all(score == DIVERGED for score, _ in found)]


def waiting(study: Study, output_dir: Path) -> list[str]:
    """The networks whose learning rate cannot be chosen yet; finished runs of them are not shown."""
    return [name for name, found in _tried(study, output_dir).items() if any(score is None for score, _ in found)]


def _tried(study: Study, output_dir: Path) -> dict[str, list[tuple[float | None, float]]]:
    """The mIoU, None if it is not known yet, and the learning rate of each tuning run by network."""
    scores: dict[str, list[tuple[float | None, float]]] = {}
    for run in study.tuning_runs():
        result = read_result(run, output_dir)
        scores.setdefault(run.network, []).append((result and result["mean_iou"], run.recipe.learning_rate))
    return scores


def check_classes(study: Study, data_dir: list[str]) -> None:
    """Raises a RecipeError if the study's table has a class that no dataset of its results has.

    Args:
        data_dir: as for `do_run`.
    """
    if not study.classes:
        return
    known: list[str] = []
    for run in {scored_on(asdict(run.recipe)): run for run in study.any_runs()}.values():
        folders = data_dirs_by_name(data_dir, list(run.recipes))
        known += label_space_of(load_split(run.recipe, folders[run.recipe.dataset], run.recipe.eval_split)).names
    study.check_classes(known)


def remaining(runs: Iterable[Run], output_dir: Path) -> list[Run]:
    return [run for run in runs if read_result(run, output_dir) is None]


def work_through(runs: list[Run], command: list[str], devices: list[str]) -> list[Run]:
    """Does the runs one after another, or as many at once as there are devices.

    Args:
        command: starts one run, if the run's folder follows.
        devices: GPUs by number; empty: each run uses what the machine has.

    Returns:
        The runs that failed. Their output has been printed.

    Raises:
        RecipeError: a GPU is named twice, or this program may not use so many.
    """
    free: SimpleQueue[str | None] = SimpleQueue()
    for device in _among_visible(devices) or [None]:
        free.put(device)
    running: set[subprocess.Popen] = set()

    def do(numbered: tuple[int, Run]) -> bool:
        number, run = numbered
        device = free.get()
        logger.info("run %d of %d: %s", number, len(runs), run.folder)
        environment = os.environ if device is None else {**os.environ, "CUDA_VISIBLE_DEVICES": device}
        process = subprocess.Popen([*command, run.folder], env=environment)
        running.add(process)
        try:
            status = process.wait()
            if status < 0:  # it could not say so itself
                logger.error("%s was ended by signal %d; the system does that if memory is short", run.folder, -status)
            return status == 0
        finally:
            running.discard(process)
            free.put(device)

    with ThreadPoolExecutor(max(1, len(devices))) as pool, _stopped_by_sigterm():
        try:
            done = list(pool.map(do, enumerate(runs, 1)))
        except BaseException:  # a signal: each run saves itself and ends
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return [run for run, succeeded in zip(runs, done, strict=True) if not succeeded]


def _among_visible(devices: list[str]) -> list[str]:
    """The same GPUs by the names in `CUDA_VISIBLE_DEVICES`, which a scheduler may have set; numbers count the GPUs in it.

    Raises:
        RecipeError: a GPU is named twice, or this program may not use so many.
    """
    if repeated := [device for device, count in Counter(devices).items() if count > 1]:
        raise RecipeError(f"--devices has {first_few(repeated)} twice: name each GPU once, each has one run at a time")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        visible, said = [str(number) for number in range(torch.cuda.device_count())], "PyTorch sees"
    else:
        visible = [name for name in given.split(",") if name]
        said = f"CUDA_VISIBLE_DEVICES={given} gives this program"
    for device in devices:
        if not device.isdecimal() or int(device) >= len(visible):
            wanted = "count these from 0" if visible else "leave --devices out to use the CPU"
            raise RecipeError(f"--devices {device}: {said} {len(visible)} GPUs; {wanted}")
    return [visible[int(device)] for device in devices]


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, which clusters send, stops the program as Ctrl-C does; otherwise its runs would go on without it."""

    def stop(number: int, frame: object) -> None:
        raise RunStopped("SIGTERM: the study ends with its runs; the same command resumes it", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def do_run(run: Run, data_dir: list[str], output_dir: Path) -> None:
    """Trains a run, or resumes it, scores it, and writes its result. A learning rate that diverges is a result as well.

    Args:
        data_dir: the dataset's folder, or `NAME=DIR` for each of several datasets.

    Raises:
        DataError, RecipeError, CheckpointError, TrainingError: as in training and evaluation.
    """
    folder, recipe = output_dir / run.folder, run.recipe
    folders = data_dirs_by_name(data_dir, list(run.recipes))
    dataset = load_split(recipe, folders[recipe.dataset], recipe.eval_split)
    made_with = inputs_of(run, dataset)
    refuse_other_data(made_with, output_dir)
    try:
        run_chain(list(run.recipes), folders, folder, resume=True)
    except DivergedError as error:
        if not run.is_tuning:
            raise
        logger.warning("%s: %s", run.folder, error)
        write_json(folder / RESULT, {**made_with, "mean_iou": DIVERGED})
        return
    model, image_processor = load_for_inference(folder / BEST, "cuda" if torch.cuda.is_available() else "cpu")
    space = label_space_of(dataset)
    recorder, records = Recorder(space, boundary=True), []
    evaluate_images(
        model,
        image_processor,
        dataset,
        range(len(dataset)),
        space.num_classes,
        ignore_index=space.ignore_index,
        num_workers=recipe.num_workers,
        count_on_cpu=True,
        each_image=lambda image, confusion: records.append(recorder.record(image, confusion)),
    )
    scores, _ = score_records(records, space)
    with whole_file(folder / TOTALS) as path, path.open("wb") as file:
        np.savez_compressed(file, totals=class_totals_by_image(records, space.num_classes))
    result = {
        **made_with,
        "mean_iou": scores["mean_iou"],
        "pixel_accuracy": scores["overall_accuracy"],
        "boundary_iou": scores["boundary_iou"],
        "iou": dict(zip(space.names, scores["per_category_iou"], strict=True)),
        **costs_of(model, recipe),
        **_times(folder / LOG_FILE, recipe.batch_size, len(dataset)),
    }
    write_json(folder / RESULT, result)


def inputs_of(run: Run, dataset: datasets.Dataset) -> dict[str, Any]:
    """The part of a result that is known before training: what the run is made with.

    Args:
        dataset: that the run is scored on.
    """
    return {
        "network": run.network,
        "variation": run.variation,
        "seed": run.seed,
        "recipe": asdict(run.recipe),
        "earlier_recipes": [asdict(stage) for stage in run.recipes[:-1]],
        "data": digest_of_data(dataset),
        "label_table": digest_of_table(label_space_of(dataset)),
        "init_from": _digests_of_checkpoints(run.recipes),
        "backbone_weights": _digest_of_backbone(run.recipes[0]),
        "versions": versions(),
    }


def _digests_of_checkpoints(recipes: Iterable[Recipe]) -> dict[str, str]:
    """A digest of the weights in each folder that a stage begins from; a name on the Hub has none."""
    found = {recipe.init_from: find_checkpoint(recipe.init_from) for recipe in recipes if recipe.init_from is not None}
    return {name: digest_of_weights(folder) for name, folder in found.items() if Path(folder).is_dir()}


def _digest_of_backbone(first: Recipe) -> dict[str, str]:
    """A digest of the file or folder that the first stage reads the backbone's weights from; a name or a package has none."""
    source = first.backbone_weights or first.backbone
    if first.init_from is not None or source == RANDOM:
        return {}
    if Path(source).is_dir():
        return {source: digest_of_weights(source)}
    return {source: sha256_of(Path(source))[:16]} if Path(source).is_file() else {}


def refuse_other_data(made_with: dict[str, Any], output_dir: Path) -> None:
    """Raises a CheckpointError if a run in the output folder was made with other data or weights that have the same names."""
    for path in output_dir.glob(f"*/*/*/*/{RESULT}"):  # not `rglob`: checkpoints of other runs come and go
        if others := _other_inputs(made_with, read_values(path)):
            raise CheckpointError(
                f"{path} was made with {' and '.join(others)}: a study compares results of the same data and weights. Choose "
                "another --output_dir, or bring back those of the first runs"
            )


def _other_inputs(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Which inputs of two results differ although their names are the same, in words. Results of earlier versions lack some."""
    said = []
    if all(now["recipe"][name] == then["recipe"][name] for name in ("dataset", "eval_split", "label_space")):
        words = {"data": "other images or label maps", "label_table": "a label table with other ids or colours"}
        said += [text for name, text in words.items() if then.get(name, now[name]) != now[name]]
    for field in ("init_from", "backbone_weights"):
        weights = then.get(field, {})
        said += [f"other weights in {name}" for name, is_now in now[field].items() if weights.get(name, is_now) != is_now]
    return said


def costs_of(model: PreTrainedModel, recipe: Recipe) -> dict[str, int]:
    """Parameters, multiply-adds and kept bytes for one training crop, counted on the meta device.

    `plain_kept_bytes` would be kept if no module computed anything again in the backward pass. The bytes are half of those of two
    crops, because a norm after global pooling cannot be trained on one.
    """
    crop = tuple(recipe.crop_size)
    with torch.device("meta"):
        counted = type(model)(model.config)  # as it is trained: optimized for inference, it has other parameters
        as_trained(counted, recipe)
        costs = {
            "parameters": counted.num_parameters(),
            "trained_parameters": counted.num_parameters(only_trainable=True),
            "multiply_adds": count_multiply_adds(counted.eval(), crop),
            "kept_bytes": count_saved_bytes(counted.train(), crop, images=2) // 2,
        }
        for module in counted.modules():
            if isinstance(module, RecomputedModule):
                module.recompute = NONE
        return {**costs, "plain_kept_bytes": count_saved_bytes(counted, crop, images=2) // 2}


def as_trained(network: PreTrainedModel, recipe: Recipe) -> None:
    """Gives a network the adapters and the recomputation of the recipe, as training does."""
    if recipe.trainable_backbone == LORA:
        add_adapters(network, recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)
    if recipe.recompute != NORMS:  # the networks' own default
        network.activation_checkpointing_enable({"recompute": recipe.recompute})


def _times(log: Path, batch_size: int, images: int) -> dict[str, float]:
    """Median seconds of a training step, and mean seconds of the evaluation of an image, from the log of the run."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    evaluations = [line["evaluation_seconds"] for line in lines if "evaluation_seconds" in line]
    return {"step_seconds": batch_size / median(speeds), "image_seconds": median(evaluations) / images}


def read_times(output_dir: Path, name: str) -> dict[tuple[str, str], dict[str, float]] | None:
    """Seconds of a step and of an image by network and variation, as times.py has measured them; None if it has not.

    Args:
        name: of the study's file.
    """
    path = output_dir / f"{name}{TIMES}"
    if not path.exists():
        return None
    times = read_values(path)
    return {
        (entry["network"], entry["variation"]): {name: entry[name] for name in ("step_seconds", "image_seconds")}
        for entry in times["networks"]
    }


def find_run(study: Study, output_dir: Path, folder: str) -> Run:
    for run in (*study.tuning_runs(), *study.runs(chosen_rates(study, output_dir))):
        if run.folder == folder:
            return run
    raise RecipeError(f"The study has no run {folder}")
