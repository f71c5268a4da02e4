"""One stage of training on Accelerate: data set → joint augmentation → model → loss → optimizer → checkpoint.

Everything random follows from the recipe's seed, the epoch and the picture's index, so that a run that was interrupted goes on as
if nothing had happened, and the number of processes and workers does not change what is learnt from.
"""

import json
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list, send_to_device, set_seed
from PIL import Image
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from ..data import TrainingSamples, TrainingTransform, label_space_of
from ..errors import RecipeError, TrainingError
from ..evaluation import evaluate_dataset, format_scores, predict_label_maps
from ..report.figures import triptych
from ..versions import hardware
from .checkpoint import (
    BEST,
    LAST,
    LOG_FILE,
    TRACKER_FOLDER,
    TrainingState,
    claim_output_dir,
    load_averages,
    load_training_state,
    optimizer_tensors,
    restore_optimizer_tensors,
    save_averages,
    save_model_folder,
    save_training_state,
    write_folder,
)
from .data import DataDirs, Mixture, folders_by_name, image_id_of, laid_end_to_end, load_sets, training_sets
from .handover import hand_over
from .network import build_model
from .recipe import Recipe

EXAMPLE_WIDTH = 480  # pixels, of each of the card's three pictures
SUMMARY = ("mean_iou", "mean_accuracy", "overall_accuracy")


class EpochBatches:
    """The order of an epoch, as a batch sampler: for each forward pass of one process, the indices of its pictures.

    A step's pictures are the next `batch_size` of a permutation (of several data sets, of their mixture's order) that depends on
    seed and epoch only; forward passes and processes share them out. The pictures left over at the end of an epoch are skipped
    (another epoch has others), as in HRNet.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        passes: int,
        num_processes: int,
        process_index: int,
        seed: int,
        mixture: Mixture | None = None,
    ):
        self.num_samples, self.batch_size, self.seed, self.mixture = num_samples, batch_size, seed, mixture
        self.passes, self.num_processes, self.process_index = passes, num_processes, process_index
        self.epoch = 0
        if batch_size % (passes * num_processes):
            raise RecipeError(
                f"batch_size {batch_size} cannot be split evenly over {num_processes} processes with {passes} forward passes "
                "a step (gradient_accumulation_steps): change one of them"
            )
        if num_samples < batch_size:
            raise RecipeError(f"batch_size {batch_size} is more than the {num_samples} pictures of the training split")

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.num_samples // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self.mixture.order(generator) if self.mixture else torch.randperm(self.num_samples, generator=generator)
        shares = order[: self.steps * self.batch_size].view(len(self), self.num_processes, -1)[:, self.process_index]
        yield from shares.tolist()


def poly_learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """HRNet's schedule: the rate of step `step` (from 0) falls to 0 at `total_steps`."""
    return recipe.learning_rate * (1 - step / total_steps) ** recipe.poly_power


def build_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, of what is trained: a frozen backbone is no part of it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(trained, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


class Stage:
    """One run of a recipe on a data set's folder, or several data sets' folders.

    Args:
        recipe: what to train.
        data_dir: folder of the recipe's data set; with `more_datasets`, folders by name.
        output_dir: gets `last/` and `best/` (checkpoints), `log.jsonl` (`epoch` counts the finished ones), trackers' files.
        resume, overwrite: what to do with a run that is already in `output_dir`; without either it is an error.

    Raises:
        DataError, RecipeError, CheckpointError, OSError: before anything is written, where it can be known by then.
    """

    def __init__(
        self,
        recipe: Recipe,
        data_dir: str | Path | DataDirs,
        output_dir: str | Path,
        resume: bool = False,
        overwrite: bool = False,
    ):
        transformers_logging.disable_progress_bar()  # of saving and loading weights, between two lines of ours
        self.recipe, self.output_dir = recipe, Path(output_dir)
        self.accelerator = Accelerator(
            mixed_precision=recipe.precision,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            log_with=recipe.trackers or None,
            project_config=ProjectConfiguration(str(output_dir), logging_dir=str(self.output_dir / TRACKER_FOLDER)),
        )
        self.train_sets, self.eval_set = load_sets(recipe, folders_by_name(recipe, data_dir))
        if len(self.train_sets) > 1:
            self.accelerator.print("\n".join(map(str, self.train_sets)))
        self.label_space = label_space_of(self.eval_set)
        set_seed(recipe.seed)
        model, self.image_processor = build_model(recipe, self.label_space)
        model.to(memory_format=torch.channels_last)  # faster convolutions, on the CPU and with mixed precision on GPUs
        self.samples, self.batches, self.loader = self._training_data()
        self.num_skipped = 0
        self.total_steps = recipe.epochs * self.batches.steps

        is_main = self.accelerator.is_main_process
        handed_over = None
        if recipe.init_from is not None and not (resume and (self.output_dir / LAST).exists()):
            handed_over = hand_over(model, self.label_space, recipe.init_from, recipe.hand_over_classifier)
        (going_on,) = broadcast_object_list([claim_output_dir(self.output_dir, recipe, resume, overwrite) if is_main else None])
        optimizer = build_optimizer(model, recipe)
        self.averaged = None
        if recipe.ema_decay is not None:
            # Its copy of the network is made before Accelerate wraps the network.
            self.averaged = AveragedModel(model, self.accelerator.device, multi_avg_fn=self._average, use_buffers=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.state = self._restore() if going_on else TrainingState()
        self.history = [] if handed_over is None else handed_over.history
        if going_on:
            self.history = AutoConfig.from_pretrained(self.output_dir / LAST).training_history[:-1]
        elif handed_over is not None:
            self.accelerator.print(handed_over)
            self._log({}, init_from=handed_over.checkpoint, classifier_rows=handed_over.rows)

    def _training_data(self) -> tuple[TrainingSamples, EpochBatches, DataLoader]:
        recipe = self.recipe
        transform = TrainingTransform(
            self.image_processor,
            crop_size=recipe.crop_size,
            base_size=recipe.base_size,
            scale_range=recipe.scale_range,
            scale_step=recipe.scale_step,
            flip=recipe.flip,
            ignore_index=self.label_space.ignore_index,
        )
        samples = TrainingSamples(laid_end_to_end(self.train_sets), transform, recipe.seed, recipe.on_bad_sample == "skip")
        lengths = tuple(len(entry.pictures) for entry in self.train_sets)
        batches = EpochBatches(
            len(samples),
            recipe.batch_size,
            recipe.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            recipe.seed,
            Mixture(lengths, tuple(recipe.dataset_shares)) if recipe.dataset_shares else None,
        )
        loader = DataLoader(
            samples,
            batch_sampler=batches,
            num_workers=recipe.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=recipe.num_workers > 0,
        )
        return samples, batches, loader

    def run(self) -> dict[str, Any] | None:
        """Train to the recipe's last epoch; the scores of the last evaluation (none if the run was already finished)."""
        accelerator, recipe = self.accelerator, self.recipe
        if self.state.epoch >= recipe.epochs:
            accelerator.print(f"{self.output_dir} is finished: all {recipe.epochs} epochs are done")
            return None
        self._start_logs()
        if recipe.eval_at_start and self.state.epoch == 0:
            self.evaluate()
        progress = tqdm(
            total=self.total_steps,
            initial=self.state.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )
        for epoch in range(self.state.epoch, recipe.epochs):
            self.train_epoch(epoch, progress)
            self.state.epoch = epoch + 1
            evaluated = (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs
            scores = self.evaluate() if evaluated else None
            self.save(scores)
        progress.close()
        accelerator.end_training()
        accelerator.print(format_scores(scores, self.label_space.names))
        return scores

    def train_epoch(self, epoch: int, progress: tqdm) -> None:
        accelerator, recipe = self.accelerator, self.recipe
        self.model.train()
        self.samples.set_epoch(epoch)
        self.batches.epoch = epoch
        losses, started, first_step = [], time.perf_counter(), self.state.step
        for batch in self.loader:
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
            with accelerator.accumulate(self.model):
                losses.append(self._forward_backward(batch))
            if not accelerator.sync_gradients:
                continue
            self.state.step += 1
            progress.update()
            if self.averaged is not None:
                self.averaged.update_parameters(accelerator.unwrap_model(self.model))
            done = self.state.step - first_step
            if done % recipe.log_every == 0 or done == self.batches.steps:
                seconds = time.perf_counter() - started
                self._log_training(losses, recipe.batch_size * done / seconds, progress)
                losses = []
        seconds = time.perf_counter() - started
        self.state.seconds += seconds
        self._log({"epoch_seconds": seconds, "peak_memory_gib": self._peak_memory_gib()}, **self._skipped())

    def _average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        """One step of the moving average, over fewer steps at the start, so that it soon forgets the initial weights."""
        step = self.state.step
        get_ema_multi_avg_fn(min(self.recipe.ema_decay, (1 + step) / (10 + step)))(averaged, current, count)

    def _forward_backward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        rate = poly_learning_rate(self.recipe, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.model(**batch).loss
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _log_training(self, losses: list[torch.Tensor], pictures_per_second: float, progress: tqdm) -> None:
        """Log the mean of the last losses; this is where the host waits for the device, and where a loss that broke is seen."""
        loss = self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        rate = self.optimizer.param_groups[0]["lr"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} within the {len(losses)} forward passes up to step {self.state.step} "
                f"(epoch {self.state.epoch + 1}, learning rate {rate:.3g}); nothing of this epoch is saved. "
                f"Lower learning_rate, or use another precision than {self.recipe.precision}"
            )
        progress.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.2e}", pictures_per_s=f"{pictures_per_second:.1f}")
        self._log({"loss": loss, "learning_rate": rate, "pictures_per_second": pictures_per_second})

    def _skipped(self) -> dict[str, list[str]]:
        """With `on_bad_sample: skip`, the ids of the pictures that were bad so far, for the log; new ones are said."""
        if self.recipe.on_bad_sample == "stop":
            return {}
        bad = self.accelerator.reduce(self.samples.bad.to(self.accelerator.device), "sum").nonzero().flatten().tolist()
        ids = [image_id_of(self.train_sets, index) for index in bad]
        if len(ids) > self.num_skipped:
            self.accelerator.print(f"{len(ids)} of {len(self.samples)} training pictures cannot be used and are skipped:")
            self.accelerator.print("\n".join(f"  {image_id}" for image_id in ids))
        self.num_skipped = len(ids)
        return {"skipped_pictures": ids}

    def _peak_memory_gib(self) -> float:
        """Of this process: allocated on the GPU, else resident (without the loader's workers)."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    @property
    def scored_model(self) -> torch.nn.Module:
        """The network that is scored and kept as best: with `ema_decay` the average, else the one that is trained."""
        return self.accelerator.unwrap_model(self.model) if self.averaged is None else self.averaged.module

    def evaluate(self) -> dict[str, Any]:
        """Scores of the evaluation split at its native size, each picture counted once whatever the number of processes."""
        accelerator, started = self.accelerator, time.perf_counter()
        with (
            tqdm(
                total=len(self.eval_set),
                desc="evaluating",
                unit="picture",
                leave=False,
                disable=not accelerator.is_local_main_process,
            ) as progress,
            accelerator.autocast(),
        ):
            confusion = evaluate_dataset(
                self.scored_model,
                self.image_processor,
                self.eval_set,
                self.label_space.num_classes,
                ignore_index=self.label_space.ignore_index,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
                num_workers=self.recipe.num_workers,
                progress=lambda done: progress.update(done * accelerator.num_processes),
            )
        confusion.matrix = accelerator.reduce(confusion.matrix, "sum")
        scores = confusion.scores(self.label_space.names)
        summary = {name: scores[name] for name in SUMMARY}
        accelerator.print(
            f"epoch {self.state.epoch}: mIoU {summary['mean_iou']:.4f}, pixel accuracy {summary['overall_accuracy']:.4f}, "
            f"mean accuracy {summary['mean_accuracy']:.4f}"
        )
        per_class = dict(zip(self.label_space.names, scores["per_category_iou"], strict=True))
        seconds = time.perf_counter() - started
        self.state.seconds += seconds
        self._log({**summary, "evaluation_seconds": seconds}, iou=per_class)
        return scores

    def save(self, scores: dict[str, Any] | None) -> None:
        """Write `last`, and `best` where the scores are the best so far."""
        self.accelerator.wait_for_everyone()
        better = scores is not None and scores["mean_iou"] > (self.state.best_mean_iou or 0)
        if better:
            self.state.best_mean_iou = scores["mean_iou"]
        if self.accelerator.is_main_process:
            self.state.grad_scale = None if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
            model = self.accelerator.unwrap_model(self.model)
            example = None if scores is None else self._example()
            result = None if scores is None else {"epoch": self.state.epoch, "step": self.state.step, **scores}
            for config in (model.config, self.scored_model.config):
                config.training_history = [*self.history, self._history_entry(scores)]

            def fill_best(folder: Path):
                save_model_folder(folder, self.scored_model, self.image_processor, self.recipe, result, example)

            def fill_last(folder: Path):
                save_model_folder(folder, model, self.image_processor, self.recipe, result, example)
                save_training_state(folder, self.state, optimizer_tensors(model, self.optimizer.optimizer))
                if self.averaged is not None:
                    save_averages(folder, self.averaged)

            if better:
                write_folder(self.output_dir / BEST, fill_best)
            write_folder(self.output_dir / LAST, fill_last)
        self.accelerator.wait_for_everyone()

    def _example(self) -> Image.Image:
        """The first picture that is scored, its truth, and what the network sees in it: for the card."""
        row, space = self.eval_set[0], self.label_space
        truth = np.array(row["label_map"])
        with self.accelerator.autocast():
            [prediction] = predict_label_maps(self.scored_model, self.image_processor, [row["image"]], [truth.shape])
        width = min(EXAMPLE_WIDTH, row["image"].width)
        return triptych([(row["image"], truth, prediction)], space.names, space.colours, space.ignore_index, width)

    def _history_entry(self, scores: dict[str, Any] | None) -> dict[str, Any]:
        """What this stage was: data, recipe, and the scores of the checkpoint that it is written into."""
        entry = {
            "dataset": " + ".join(dict.fromkeys(name for name, _ in training_sets(self.recipe))),
            "label_space": self.label_space.name,
            "pictures": len(self.samples),
            "epochs": self.state.epoch,
            "steps": self.state.step,
            "hardware": hardware(self.accelerator.device, self.accelerator.num_processes),
            "seconds": round(self.state.seconds, 1),
            "recipe": self.recipe.own_settings,
        }
        if scores is not None:
            entry["eval_split"] = self.recipe.eval_split
            entry["scores"] = {name: scores[name] for name in SUMMARY}
        return entry

    def _restore(self) -> TrainingState:
        folder, model = self.output_dir / LAST, self.accelerator.unwrap_model(self.model)
        state, tensors = load_training_state(folder)
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
        restore_optimizer_tensors(model, self.optimizer.optimizer, tensors)
        if self.averaged is not None:
            load_averages(folder, self.averaged)
        if self.accelerator.scaler is not None and state.grad_scale is not None:
            self.accelerator.scaler.load_state_dict({**self.accelerator.scaler.state_dict(), "scale": state.grad_scale})
        self.accelerator.print(f"going on after epoch {state.epoch} of {self.recipe.epochs} in {folder}")
        return state

    def _start_logs(self) -> None:
        flat = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in asdict(self.recipe).items()
        }
        self.accelerator.init_trackers("revhrnet", config=flat)
        if self.accelerator.is_main_process:
            log = self.output_dir / LOG_FILE
            # What an interrupted run logged after its last checkpoint is logged again.
            kept = log.read_text(encoding="utf-8").splitlines(keepends=True)[: self.state.log_lines] if log.exists() else []
            log.write_text("".join(kept), encoding="utf-8")

    def _log(self, values: dict[str, float], **details: Any) -> None:
        """One line of log.jsonl, and the numbers to the trackers."""
        self.accelerator.log(values, step=self.state.step)
        self.state.log_lines += 1
        if self.accelerator.is_main_process:
            entry = {"epoch": self.state.epoch, "step": self.state.step, "time": time.time(), **values, **details}
            with (self.output_dir / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps({name: None if value != value else value for name, value in entry.items()}) + "\n")
