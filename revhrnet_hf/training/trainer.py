"""One stage of training on Accelerate: dataset → joint augmentation → model → loss → optimizer → checkpoint.

Everything random follows from the recipe's seed, the epoch, the step and the image's index, so that a run that was interrupted
goes on as if nothing had happened, and the number of processes and workers does not change what is learnt from.
"""

import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
    broadcast_object_list,
    send_to_device,
    set_seed,
)
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from ..data import TrainingSamples, TrainingTransform, label_space_of
from ..data.class_counts import warn_of_unseen_classes
from ..data.loader import build_loader
from ..errors import RecipeError, RunStopped, TrainingError
from ..evaluation import Predicted, check_labelled, evaluate_dataset, format_scores, predict_label_maps
from ..models.losses import labelled_weight
from ..versions import hardware
from ..viz.figures import label_map_strip, triptych
from .averaging import MovingAverage
from .checkpoint import (
    BEST,
    LAST,
    TrainingState,
    claim_output_dir,
    load_averages,
    load_training_state,
    note_saved,
    optimizer_tensors,
    restore_optimizer_tensors,
    save_averages,
    save_last,
    save_model_folder,
    save_training_state,
)
from .dataset_checks import fingerprint, refuse_other_data, refuse_unlabelled
from .integrity import write_checkpoint
from .log import RunLog, check_trackers
from .network import build_model
from .optimisation import build_optimizer, learning_rate, synchronise_batch_norms
from .processes import SharedErrors, drop_empty_settings, lost_process, peak_resident_bytes, refuse_other_settings
from .recipe import Recipe
from .sampler import DataDirs, EpochBatches, Mixture, folders_by_name, image_id_of, laid_end_to_end, load_sets, training_sets
from .signals import StopSignals
from .transfer import transfer

IMAGE_SIDE = 480  # pixels, of what the trackers get
CARD_IMAGES, CARD_HEIGHT = 3, 240  # label maps in a card, and their height in pixels
SUMMARY = ("mean_iou", "mean_accuracy", "overall_accuracy")

# Seconds without any answer, of a loader's worker or of another process, after which a run ends with an error.
TIMEOUT = 1800

# x86 processors on which a step of `recipes/camvid.yaml` took 7.2 times as long in bfloat16 as in float32.
NO_FAST_BF16 = ("DEFAULT", "NO AVX", "AVX2") if platform.machine() in ("x86_64", "AMD64") else ()


def start_processes(recipe: Recipe, timeout: float = TIMEOUT) -> Accelerator:
    """Accelerate for this process and those beside it; what was settled by the first call in a process stays.

    The recipe decides, whatever the environment says.

    Raises:
        RecipeError: the device has no such precision, or a setting of Accelerate in the environment disagrees with the recipe.
    """
    drop_empty_settings()
    refuse_other_settings(recipe)
    # On CPUs torchrun's processes find each other only if Accelerate is told that CPUs are meant.
    cpu = not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=recipe.precision,
            # Given as numbers, the environment's would go before them.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.gradient_accumulation_steps),
            dynamo_backend="no",  # `torch_compile` is not its matter
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
        )
    except ValueError as error:
        raise RecipeError(f"Accelerate cannot start with precision {recipe.precision} here: {error}") from error
    if accelerator.num_processes == 1 and cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print(
            "warning: this is one process only. On CPUs `accelerate launch --num_processes N` starts no others; "
            "`accelerate launch --multi_gpu --num_processes N` and `torchrun --nproc_per_node N` do",
            file=sys.stderr,
        )
    is_slow = cpu and recipe.precision == "bf16" and torch.backends.cpu.get_cpu_capability() in NO_FAST_BF16
    if is_slow and accelerator.is_main_process:
        print(
            "warning: precision bf16: this processor has no AVX-512, without which bfloat16 is imitated and a step takes several "
            "times as long as in float32; `--precision no` trains in float32",
            file=sys.stderr,
        )
    return accelerator


class Stage:
    """One run of a recipe on a dataset's folder, or several datasets' folders.

    Args:
        recipe: what to train.
        data_dir: folder of the recipe's dataset; with `more_datasets`, folders by name.
        output_dir: gets `last/`, `checkpoint-STEP/` and `best/` (checkpoints), `log.jsonl` (`epoch` counts the finished ones),
            trackers' files.
        resume, overwrite: what to do with a run that is already in `output_dir`; without either it is an error.
        timeout: seconds without any answer, of a loader's worker or another process, after which the run ends with an error.

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
        timeout: float = TIMEOUT,
    ):
        transformers_logging.disable_progress_bar()  # of saving and loading weights, between two lines of ours
        self.recipe, self.output_dir, self.timeout = recipe, Path(output_dir), timeout
        self.accelerator = start_processes(recipe, timeout)
        self.errors = SharedErrors(self.accelerator, timeout)
        self.transfer = None
        with self.errors.together():
            model = self._load(data_dir, resume)
        is_main = self.accelerator.is_main_process
        with self.errors.together():  # what deletes and writes comes when no process has found a fault
            going_on, self.lock = claim_output_dir(self.output_dir, recipe, resume, overwrite) if is_main else (None, None)
        (going_on,) = broadcast_object_list([going_on])
        self.model, self.optimizer, self.averaged = self._prepare(model)
        self.losses: list[torch.Tensor] = []  # since the last log line: of each step, each forward pass's share (passes,)
        self.grad_norm: torch.Tensor | None = None
        self.clock = time.perf_counter()  # up to which `state.seconds` counts
        self.waited = 0.0  # seconds for data, since the last log line
        self.signals = StopSignals(self.accelerator.num_processes)
        self.stop_flag: torch.Tensor | None = None  # of the last step, and the step before
        self.stop_before: torch.Tensor | None = None
        with self.errors.together():
            self.state = self._restore() if going_on else TrainingState(data=self.data)
        self.shown: dict[int, np.ndarray] = {}  # label maps of the last evaluation that are drawn, by row
        self.history = [] if self.transfer is None else self.transfer.history
        if going_on:
            with self.errors.together():
                self.history = AutoConfig.from_pretrained(self.output_dir / LAST).training_history[:-1]
        elif self.transfer is not None:
            self.accelerator.print(self.transfer)
        self.log = RunLog(self.output_dir, recipe.trackers, is_main)
        with self.errors.together():
            if is_main and self.state.step == 0:
                warn_of_unseen_classes([entry.images for entry in self.train_sets], self.label_space)

    def _load(self, data_dir: str | Path | DataDirs, resume: bool):
        """The network, with the weights that training begins with; everything else that is needed, as attributes."""
        recipe = self.recipe
        check_trackers(recipe.trackers)
        self.train_sets, self.eval_set = load_sets(recipe, folders_by_name(recipe, data_dir))
        if len(self.train_sets) > 1:
            self.accelerator.print("\n".join(map(str, self.train_sets)))
        self.label_space = label_space_of(self.eval_set)
        refuse_unlabelled(self.eval_set, f"{recipe.dataset}:{recipe.eval_split}", self.label_space.ignore_index)
        self.data = fingerprint(self.train_sets, self.eval_set, recipe.eval_split)
        set_seed(recipe.seed)
        model, self.image_processor = build_model(recipe, self.label_space)
        self.samples, self.batches, self.loader = self._training_data()
        self.total_steps = recipe.epochs * self.batches.steps
        if recipe.init_from is not None and not (resume and (self.output_dir / LAST).exists()):
            self.transfer = transfer(model, self.label_space, recipe.init_from, recipe.transfer_classifier)
        return model

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
        lengths = tuple(len(entry.images) for entry in self.train_sets)
        batches = EpochBatches(
            len(samples),
            recipe.batch_size,
            recipe.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            recipe.seed,
            Mixture(lengths, tuple(recipe.dataset_shares)) if recipe.dataset_shares else None,
        )
        loader = build_loader(
            samples,
            recipe.num_workers,
            self.accelerator.device,
            batch_sampler=batches,
            persistent_workers=True,
            timeout=self.timeout,
        )
        return samples, batches, loader

    def _prepare(self, model) -> tuple[torch.nn.Module, torch.optim.Optimizer, MovingAverage | None]:
        """The network on its device, ready for training by several processes; its optimizer; the average of its weights."""
        recipe, accelerator = self.recipe, self.accelerator
        model.to(memory_format=torch.channels_last)  # faster convolutions, on the CPU and with mixed precision on GPUs
        if recipe.sync_batch_norm and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            synchronise_batch_norms(model)
        if recipe.recompute != "norms":  # which is what the networks do anyway
            # The second is what it was called before.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"recompute": recipe.recompute})
        optimizer = build_optimizer(model, recipe)
        averaged = None
        if recipe.ema_decay is not None:
            # Its copy of the network is made before Accelerate wraps the network.
            averaged = MovingAverage(model, recipe.ema_decay, accelerator.device)
        if recipe.torch_compile:
            model.compile()  # in place: names of weights stay
        return *accelerator.prepare(model, optimizer), averaged

    @property
    def finished(self) -> bool:
        patience = self.recipe.early_stopping_patience
        return self.state.epoch >= self.recipe.epochs or (patience is not None and self.state.evaluations_since_best >= patience)

    def run(self) -> dict[str, Any] | None:
        """Train to the recipe's last epoch; the scores of the last evaluation (none if the run was already finished).

        Raises:
            RunStopped: SIGINT or SIGTERM came; all is saved, and the message says how to go on.
            TrainingError: the loss is no longer a number; a loader's worker died, or another process is gone.
            RevHRNetError: whatever another process raised.
        """
        if self.finished:
            self.accelerator.print(f"{self.output_dir} is finished: {self.state.epoch} of {self.recipe.epochs} epochs are done")
            return None
        with self.signals:
            try:
                return self._run()
            except RuntimeError as error:
                raise self._explained(error) from error
            finally:
                self.log.close()
                if self.lock:
                    self.lock.close()

    def _run(self) -> dict[str, Any] | None:
        accelerator, recipe = self.accelerator, self.recipe
        self.clock = time.perf_counter()
        self._start_logs()
        if recipe.eval_at_start and self.state.step == 0:
            self._check_labelled(self.evaluate(epoch=0))
        with tqdm(
            total=self.total_steps,
            initial=self.state.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_local_main_process,
        ) as progress:
            while not self.finished:
                epoch = self.state.epoch
                self.train_epoch(epoch, progress)
                if self._anyone_stops():
                    self.save_and_stop()
                scores = None
                if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs:
                    scores = self._evaluate_or_stop(epoch + 1)
                self.state.epoch = epoch + 1
                self.save(scores)
                if self._anyone_stops():
                    raise self._stopped()
        accelerator.print(format_scores(scores, self.label_space.names))
        best = "none yet" if self.state.best_mean_iou is None else f"{self.state.best_mean_iou:.4f}"
        accelerator.print(f"{self.state.epoch} epochs; best mIoU {best} in {self.output_dir / BEST}")
        return scores

    def _explained(self, error: RuntimeError) -> Exception:
        said = str(error)
        first_line = said.partition("\n")[0].rstrip(" .")
        if "DataLoader worker" in said or "DataLoader timed out" in said:
            return TrainingError(
                f"A process that loads images died or answered nothing for {self.timeout:.0f} s: {first_line}. "
                f"Usual causes: too little memory (num_workers is {self.loader.num_workers}), a slow disk. Go on with --resume"
            )
        return lost_process(error, self.accelerator, self.timeout) or error

    def train_epoch(self, epoch: int, progress: tqdm) -> None:
        """The steps of an epoch that are not done yet."""
        recipe, steps = self.recipe, self.batches.steps
        first = self.state.step - epoch * steps
        if first == steps:
            return  # it was interrupted between its last step and the end of its evaluation
        self.model.train()
        self.samples.set_epoch(epoch)
        self.batches.start_at(epoch, first)
        started = logged = time.perf_counter()
        done_when_logged, self.waited = first, 0.0
        for done, passes in enumerate(self.data_steps(), first + 1):
            self.train_step(passes)
            progress.update()
            if done % recipe.log_every == 0 or done == steps:
                now = time.perf_counter()
                self._log_training(epoch, recipe.batch_size * (done - done_when_logged) / (now - logged), progress)
                logged, done_when_logged, self.waited = now, done, 0.0
            if done < steps:  # else there is an evaluation first, or a checkpoint anyway
                if self._must_stop():
                    self.save_and_stop()
                if recipe.save_every is not None and self.state.step % recipe.save_every == 0:
                    self.save()
        numbers = {"epoch_seconds": time.perf_counter() - started, "peak_memory_gib": self.peak_memory_gib()}
        self._note_bad_images()
        skipped = [image_id_of(self.train_sets, index) for index in self.state.bad_images]
        self._write(epoch, numbers, **({"skipped_images": skipped} if recipe.on_bad_sample == "skip" else {}))

    def data_steps(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        """For each step, the batches of its forward passes, on the device."""
        count, batches = len(self.batches) // self.batches.passes, iter(self.loader)
        for _ in range(count):
            started = time.perf_counter()
            passes = self._next_passes(batches)
            self.waited += time.perf_counter() - started
            passes = [send_to_device(batch, self.accelerator.device, non_blocking=True) for batch in passes]
            for batch in passes:
                batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
                batch["labels"] = batch["labels"].long()
            yield passes

    def _next_passes(self, batches: Iterator[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """What the loader has for the next step. Where it has failed, images without labels, so that the other processes are
        not left in the middle of a step; they hear of it at the end of the next, and nothing of these steps is saved."""
        if self.errors.held is None:
            with self.errors.hold():
                return list(islice(batches, self.batches.passes))
        height, width = self.recipe.crop_size
        count = self.recipe.batch_size // (self.batches.passes * self.accelerator.num_processes)
        labels = torch.full((count, height, width), self.label_space.ignore_index)
        return [{"pixel_values": torch.zeros(count, 3, height, width), "labels": labels} for _ in range(self.batches.passes)]

    def train_step(self, passes: list[dict[str, torch.Tensor]]) -> None:
        """One step of the optimizer and of the moving average."""
        accelerator, recipe = self.accelerator, self.recipe
        # Whatever a network draws (dropout) depends on the step and the process only, also in a run that was resumed.
        torch.manual_seed((recipe.seed * 1_000_003 + self.state.step) * accelerator.num_processes + accelerator.process_index)
        rate = learning_rate(recipe, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for batch, share in zip(passes, self._shares(passes), strict=True):
            with accelerator.accumulate(self.model):
                loss = self._loss(batch) * share
                # Accelerate divides by the passes, DistributedDataParallel by the processes.
                accelerator.backward(loss)
                if recipe.max_grad_norm is not None and accelerator.sync_gradients:
                    self.grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach() / (len(passes) * accelerator.num_processes))
        self.state.step += 1
        if self.averaged is not None:
            self.averaged.update_parameters(accelerator.unwrap_model(self.model))
        self._share_losses(torch.stack(losses))

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        try:
            return self.model(**batch).loss
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, (height, width) = len(batch["labels"]), self.recipe.crop_size
            raise RecipeError(
                f"crop_size {height} {width} with {count} image(s) in a forward pass (batch_size {self.recipe.batch_size}, "
                f"gradient_accumulation_steps {self.batches.passes}, {self.accelerator.num_processes} process(es)) leaves "
                "BatchNorm one value a channel, which has no variance: give larger crops, or at least two images to a pass"
            ) from error

    def _shares(self, passes: list[dict[str, torch.Tensor]]) -> list[torch.Tensor | float]:
        """What the mean loss of each forward pass is multiplied by, so that their mean is that over all pixels of the step.

        Else pixels would count more in a pass (of a process) that has fewer of them. With OHEM each pass mines its own hard
        pixels, as in HRNet, and all passes count the same.
        """
        accelerator, config = self.accelerator, self.accelerator.unwrap_model(self.model).config
        count = len(passes) * accelerator.num_processes
        if count == 1 or config.semantic_loss_ohem_threshold is not None:
            return [1.0] * len(passes)
        settings = (config.semantic_loss_ignore_index, config.semantic_loss_class_weights)
        weights = torch.stack([labelled_weight(batch["labels"], *settings).float() for batch in passes])
        total = accelerator.reduce(weights.sum(), "sum")
        return list(weights * count / total.clamp(min=torch.finfo(torch.float32).tiny))

    def _share_losses(self, losses: torch.Tensor) -> None:
        """Sum the step's losses over the processes, and in the same message tell each other of signals and errors."""
        if self.accelerator.num_processes > 1:
            message = torch.cat([losses, losses.new_tensor([float(self._has_to_stop)])])
            message = self.accelerator.reduce(message, "sum")
            # Read one step later, so that nobody waits for the device.
            losses, self.stop_flag, self.stop_before = message[:-1], message[-1], self.stop_flag
        self.losses.append(losses)

    @property
    def _has_to_stop(self) -> bool:
        """Whether this process has had a signal, or an error that the others do not know yet."""
        return self.signals.received is not None or self.errors.held is not None

    def _must_stop(self) -> bool:
        """Whether there is a signal or an error; of several processes, in any of them, one step ago, so that all say the same."""
        if self.accelerator.num_processes == 1:
            return self.signals.received is not None
        return self.stop_before is not None and self.stop_before.item() > 0

    def _anyone_stops(self) -> bool:
        """Whether a signal or an error has come to any process by now; waits for the others."""
        came = torch.tensor(float(self._has_to_stop), device=self.accelerator.device)
        return self.accelerator.reduce(came, "sum").item() > 0

    def _log_training(self, epoch: int, images_per_second: float, progress: tqdm) -> None:
        """Log the mean loss since the last line; this is where the host waits for the device."""
        self._check_losses(epoch)
        loss = torch.stack(self.losses).sum(1).mean().item()
        self.losses = []
        rate = self.optimizer.param_groups[0]["lr"]
        progress.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.2e}", images_per_s=f"{images_per_second:.1f}")
        numbers = {"loss": loss, "learning_rate": rate}
        if self.grad_norm is not None:
            numbers["grad_norm"] = self.grad_norm.item()
        self._write(epoch, {**numbers, "images_per_second": images_per_second, "data_seconds": self.waited})

    def _check_losses(self, epoch: int) -> list[list[float]]:
        """The losses since the last log line, each forward pass's share; a TrainingError if one is not finite."""
        losses = torch.stack(self.losses).tolist() if self.losses else []
        for i, step_losses in enumerate(losses, self.state.step - len(losses)):
            for forward_pass, loss in enumerate(step_losses):
                if not math.isfinite(loss):
                    images = self.batches.images(i - epoch * self.batches.steps, forward_pass)
                    ids = ", ".join(image_id_of(self.train_sets, index) for index in images)
                    raise TrainingError(
                        f"The loss is {loss} in step {i + 1} of {self.total_steps} (epoch {epoch + 1}, learning rate "
                        f"{learning_rate(self.recipe, i, self.total_steps):.3g}), on the images {ids}. What was saved "
                        f"before is whole. Lower learning_rate, or use another precision than {self.recipe.precision}"
                    )
        return losses

    def _note_bad_images(self) -> None:
        """With `on_bad_sample: skip`, gather from all processes which images were bad so far; new ones are said."""
        if self.recipe.on_bad_sample == "stop":
            return
        bad = self.accelerator.reduce(self.samples.bad.to(self.accelerator.device), "sum").nonzero().flatten().tolist()
        if len(bad) > len(self.state.bad_images):
            ids = [image_id_of(self.train_sets, index) for index in bad]
            self.accelerator.print(f"{len(ids)} of {len(self.samples)} training images cannot be used and are skipped:")
            self.accelerator.print("\n".join(f"  {image_id}" for image_id in ids))
        self.state.bad_images = bad

    def peak_memory_gib(self) -> float:
        """Of this process: allocated on the GPU, else resident (without the loader's workers)."""
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return peak_resident_bytes() / 2**30

    @property
    def scored_model(self) -> torch.nn.Module:
        """The network that is scored and kept as best: with `ema_decay` the average, else the one that is trained."""
        return self.accelerator.unwrap_model(self.model) if self.averaged is None else self.averaged.module

    def evaluate(self, epoch: int) -> dict[str, Any]:
        """Scores of the evaluation split at its native size, each image counted once whatever the number of processes.

        Raises:
            RunStopped: a signal came.
        """
        accelerator, started = self.accelerator, time.perf_counter()
        self._share_buffers()
        confusion, self.shown = None, {}
        drawn = {*self._drawn_rows(self.recipe.log_images), *self._drawn_rows(CARD_IMAGES)}

        def keep_if_drawn(image: Predicted):
            if accelerator.is_main_process and image.index in drawn:
                self.shown[image.index] = image.label_map.cpu().numpy()

        with (
            tqdm(
                total=len(self.eval_set),
                desc="evaluating",
                unit="image",
                leave=False,
                disable=not accelerator.is_local_main_process,
            ) as progress,
            accelerator.autocast(),
            self._uncompiled(),
        ):

            def tick(done: int):
                progress.update(done * accelerator.num_processes)
                if self.signals.received is not None:
                    raise self.signals.stopped("")

            with suppress(RunStopped), self.errors.hold():  # until the others know
                confusion = evaluate_dataset(
                    self.scored_model,
                    self.image_processor,
                    self.eval_set,
                    self.label_space.num_classes,
                    ignore_index=self.label_space.ignore_index,
                    process_index=accelerator.process_index,
                    num_processes=accelerator.num_processes,
                    num_workers=self.recipe.num_workers,
                    progress=tick,
                    look=keep_if_drawn,
                )
            if self._anyone_stops():
                self.errors.raise_together()
                # After the first step, `_evaluate_or_stop` saves and has another word.
                raise self.signals.stopped("stopped before the first step. Go on with the same command and --resume")
            confusion.matrix = accelerator.reduce(confusion.matrix, "sum")
            if self.recipe.log_images:
                with self.errors.hold():
                    self.log.images(self.state.step, lambda: self._draw_predictions(self.recipe.log_images))
        scores = confusion.scores(self.label_space.names)
        summary = {name: scores[name] for name in SUMMARY}
        accelerator.print(
            f"epoch {epoch}: mIoU {summary['mean_iou']:.4f}, pixel accuracy {summary['overall_accuracy']:.4f}, "
            f"mean accuracy {summary['mean_accuracy']:.4f}"
        )
        per_class = dict(zip(self.label_space.names, scores["per_category_iou"], strict=True))
        self._write(epoch, {**summary, "evaluation_seconds": time.perf_counter() - started}, iou=per_class)
        return scores

    def _uncompiled(self):
        """For images of many sizes: each would be compiled for."""
        return torch.compiler.set_stance("force_eager") if self.recipe.torch_compile else nullcontext()

    def _evaluate_or_stop(self, epoch: int) -> dict[str, Any]:
        """As `evaluate`; a run that a signal stops meanwhile is saved as it was before and begins with the evaluation again."""
        try:
            return self._check_labelled(self.evaluate(epoch))
        except (RunStopped, RuntimeError) as error:
            # A signal may have reached another process first, which is then missed here.
            if isinstance(error, RuntimeError) and self.signals.received is None:
                raise
            if self.accelerator.is_main_process:  # alone: the others may be gone
                self._save_last(None, [], None)
            raise self._stopped() from error

    def _check_labelled(self, scores: dict[str, Any]) -> dict[str, Any]:
        """The scores; a DataError where there are none. A dry run, which scores a few images, may do without."""
        check_labelled(scores, f"the evaluation split {self.recipe.eval_split!r} of {self.recipe.dataset}")
        return scores

    def _share_buffers(self) -> None:
        """Give all processes the first one's BatchNorm statistics, which are saved: each has counted its own images."""
        if self.accelerator.num_processes > 1:
            for network in dict.fromkeys((self.accelerator.unwrap_model(self.model), self.scored_model)):
                for buffer in network.buffers():
                    broadcast(buffer)

    def _draw_predictions(self, count: int) -> Image.Image:
        """Image, truth and prediction of `count` images spread over the evaluation split, small."""
        space = self.label_space
        return triptych(self._predictions(count), space.names, space.colours, space.ignore_index)

    def _draw_for_card(self) -> Image.Image:
        """What the network sees in a few images.

        A card is made to be passed on, and Cityscapes' and Mapillary Vistas' terms forbid that for images and annotations: so
        it has predictions only, whatever the dataset.
        """
        with self._uncompiled():
            predictions = [prediction for _, _, prediction in self._predictions(CARD_IMAGES)]
        return label_map_strip(predictions, self.label_space.names, self.label_space.colours, CARD_HEIGHT)

    def _drawn_rows(self, count: int) -> list[int]:
        """Rows of `count` images spread over the evaluation split."""
        count = min(count, len(self.eval_set))
        return [place * len(self.eval_set) // count for place in range(count)]

    def _predictions(self, count: int) -> list[tuple[Image.Image, np.ndarray, np.ndarray]]:
        """Image, true and predicted label map of `count` images spread over the evaluation split, small."""
        rows = []
        for index in self._drawn_rows(count):
            row = self.eval_set[index]
            image, truth = row["image"], row["label_map"]
            if index not in self.shown:  # another process's
                with self.accelerator.autocast():
                    (self.shown[index],) = predict_label_maps(
                        self.scored_model, self.image_processor, [image], [(truth.height, truth.width)]
                    )
            scale = min(1, IMAGE_SIDE / max(image.size))
            size = [max(1, round(side * scale)) for side in image.size]
            small = (
                np.asarray(ids.resize(size, Image.Resampling.NEAREST)) for ids in (truth, Image.fromarray(self.shown[index]))
            )
            rows.append((image.resize(size), *small))
        return rows

    def save(self, scores: dict[str, Any] | None = None) -> None:
        """Write `last`, and `best` where the scores are the best so far.

        Raises:
            CheckpointError: it cannot be written.
            TrainingError: a loss since the last log line is not finite.
            RevHRNetError: whatever a process has raised meanwhile.
        """
        self.errors.raise_together()
        self._note_bad_images()
        losses = self._check_losses(self.state.epoch)
        better = scores is not None and self._note_scores(scores)
        with self.errors.together():
            if self.accelerator.is_main_process:
                example = None if scores is None else self._draw_for_card()
                if better:
                    model = self._described(self.scored_model, scores)
                    write_checkpoint(self.output_dir / BEST, lambda folder: self._save_model(folder, model, scores, example))
                self._save_last(scores, losses, example)

    def save_and_stop(self) -> None:
        self.save()
        raise self._stopped()

    def _stopped(self) -> RunStopped:
        return self.signals.stopped(
            f"stopped after step {self.state.step} of {self.total_steps}; saved in {self.output_dir / LAST}. Go on with the same "
            "command and --resume"
        )

    def _note_scores(self, scores: dict[str, Any]) -> bool:
        """Whether they are the best so far."""
        mean_iou, state = scores["mean_iou"], self.state
        better = state.best_mean_iou is None or mean_iou > state.best_mean_iou
        if better:
            state.best_mean_iou = mean_iou
        state.evaluations_since_best = 0 if better else state.evaluations_since_best + 1
        return better

    def _save_last(self, scores: dict[str, Any] | None, losses: list[list[float]], example: Image.Image | None) -> None:
        """Write `last`, without a word to other processes."""
        accelerator, state = self.accelerator, self.state
        state.losses, state.log_lines, state.num_processes = losses, self.log.lines, accelerator.num_processes
        state.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        self.log.flush()
        model = self._described(accelerator.unwrap_model(self.model), scores)

        def fill(folder: Path):
            self._save_model(folder, model, scores, example)
            save_training_state(folder, state, optimizer_tensors(model, self.optimizer.optimizer))
            if self.averaged is not None:
                save_averages(folder, self.averaged)

        save_last(self.output_dir, self.recipe.keep_checkpoints, fill)
        note_saved(self.lock)

    def _save_model(self, folder: Path, model, scores: dict[str, Any] | None, example: Image.Image | None) -> None:
        result = None if scores is None else {"epoch": self.state.epoch, "step": self.state.step, **scores}
        save_model_folder(folder, model, self.image_processor, self.recipe, result, example)

    def _described(self, model, scores: dict[str, Any] | None):
        """The model, with what it was trained on in its config."""
        now = time.perf_counter()
        self.state.seconds, self.clock = self.state.seconds + now - self.clock, now
        model.config.training_history = [*self.history, self._history_entry(scores)]
        return model

    def _history_entry(self, scores: dict[str, Any] | None) -> dict[str, Any]:
        """What this stage was: data, recipe, and the scores of the checkpoint that it is written into."""
        entry = {
            "dataset": " + ".join(dict.fromkeys(name for name, _ in training_sets(self.recipe))),
            "label_space": self.label_space.name,
            "images": len(self.samples),
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
        folder, accelerator = self.output_dir / LAST, self.accelerator
        model = accelerator.unwrap_model(self.model)
        state, tensors = load_training_state(folder)
        if state.data is not None:
            refuse_other_data(state.data, self.data)
        state.data = self.data
        model.load_state_dict(load_file(folder / "model.safetensors"))
        restore_optimizer_tensors(model, self.optimizer.optimizer, tensors)
        if self.averaged is not None:
            load_averages(folder, self.averaged)
        if accelerator.scaler is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        self.losses = list(torch.tensor(state.losses, device=accelerator.device))
        self.samples.bad[state.bad_images] = 1
        accelerator.print(
            f"going on after step {state.step} of {self.total_steps} ({state.epoch} of {self.recipe.epochs} epochs) in {folder}"
        )
        if state.num_processes != accelerator.num_processes:
            accelerator.print(
                f"note: saved by {state.num_processes} process(es), going on with {accelerator.num_processes}: the images of "
                "each step are the same, but not the last bits of the sums over them, nor the BatchNorm statistics of each pass"
            )
        return state

    def _start_logs(self) -> None:
        with self.errors.together():
            self._start_log()

    def _start_log(self) -> None:
        flat = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in asdict(self.recipe).items()
        }
        state = self.state
        if state.step == 0:
            self.log.start(flat)
            if self.transfer is not None:
                self._write(0, {}, init_from=self.transfer.checkpoint, classifier_rows=self.transfer.rows)
            return
        awaits_evaluation = state.step == (state.epoch + 1) * self.batches.steps
        self.log.start(flat, state.log_lines, again_from=state.step if awaits_evaluation else state.step + 1)

    def _write(self, epoch: int, values: dict[str, float], **details: Any) -> None:
        with self.errors.hold():
            self.log.write(epoch, self.state.step, values, **details)
