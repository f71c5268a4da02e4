"""Checkpoints of a stage: what `last` and `best` hold, how they are written, and how a run is restored from `last`.

A checkpoint folder is a model folder (it loads with the Auto classes) with the recipe, the versions, the scores and checksums.
All but `best` also hold the training state: `training_state.json`, the optimizer's tensors in `optimizer.safetensors`, with
`ema_decay` the moving average in `averaged.safetensors`, and with LoRA the adapters and the weights of their layers in
`lora.safetensors`.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ..adapters import adapted_layers, merged, separate_state, separated
from ..errors import CheckpointError
from ..hub.model_card import EXAMPLE_FILE, write_model_card
from ..images import save_image
from ..io import write_json
from ..versions import hardware, versions
from .background import HostCopies, Writer
from .checkpoint_files import write_checkpoint
from .dataset_checks import refuse_other_data
from .learner import Learner
from .log import RunLog
from .output_dir import BEST, LAST, note_saved, save_last
from .recipe import Recipe

logger = logging.getLogger(__name__)

LORA_FILE = "lora.safetensors"
SUMMARY = ("mean_iou", "mean_accuracy", "overall_accuracy")  # of all scores, those in logs and in the config's history


@dataclass
class TrainingState:
    """Where a run is; order, augmentation and schedule follow from these and the recipe."""

    epoch: int = 0  # finished, with their evaluation
    step: int = 0  # optimizer steps done
    best_mean_iou: float | None = None
    seconds: float = 0.0  # of training and evaluation
    evaluations_since_best: int = 0
    log_lines: int = 0  # of log.jsonl when this state was saved
    losses: list[list[float]] = field(default_factory=list)  # since the last log line: each step's, by forward pass
    bad_images: list[int] = field(default_factory=list)  # that could not be used so far, with on_bad_sample: skip
    scaler: dict[str, Any] | None = None  # state_dict of fp16's loss scaler
    num_processes: int = 1
    data: dict[str, Any] | None = None  # what is trained and scored on (dataset_checks.py); None in states of older versions


class Checkpoints:
    """Saves a stage, and restores it.

    Saving is for the main process alone, and exchanges no messages with the others; restoring is for all processes.

    Args:
        output_dir: gets `last`, `checkpoint-STEP` and `best`.
        learner: the network, its optimizer and its average, which are saved and restored.
        log: whose lines belong to the state.
        stage: what the stage trains on, for its entry in the config's `training_history`.
        history: entries of the stages before this one.
        lock: of the output folder, in the main process.

    Attributes:
        state: of the run; the loop changes it.
        host_copies: what the thread of `writer` writes, with `save_in_background`; else None.
        writer: to be awaited before the run ends.
    """

    def __init__(
        self,
        output_dir: Path,
        learner: Learner,
        log: RunLog,
        state: TrainingState,
        stage: dict[str, Any],
        history: list[dict[str, Any]],
        lock: IO[bytes] | None,
    ):
        self.output_dir, self.learner, self.log, self.state = output_dir, learner, log, state
        self.stage, self.history, self.lock = stage, history, lock
        self.recipe, self.accelerator = learner.recipe, learner.accelerator
        self.host_copies, self.writer = HostCopies() if self.recipe.save_in_background else None, Writer()
        self.start_clock()

    def start_clock(self) -> None:
        """Count the state's seconds from now on."""
        self._clock = time.perf_counter()

    def save(
        self,
        losses: list[list[float]],
        scores: dict[str, Any] | None = None,
        example: Image.Image | None = None,
        best: bool = False,
        last: bool = True,
    ) -> None:
        """Write `best`, the scored network, and `last`, the trained network and all that is needed to resume.

        With `save_in_background` the state is copied, and a thread writes it: errors come from `writer` later.

        Args:
            losses: since the last log line.
            scores, example: of an evaluation after the last step, if there was one; `example` is the card's image.
            best, last: which of the two; `best` needs scores.

        Raises:
            CheckpointError: as for `write_checkpoint`.
        """
        self.writer.wait()
        jobs = self._jobs(losses, scores, example, best, last)
        if self.host_copies is None:
            for job in jobs:
                job()
        else:
            copied = list(jobs)
            self.writer.start(lambda: [job() for job in copied])

    def _jobs(self, losses, scores, example, best: bool, last: bool) -> Iterator[Callable[[], None]]:
        if best:
            yield self._best_job(scores, example)
        if last:
            yield self._last_job(losses, scores, example)

    def _best_job(self, scores: dict[str, Any], example: Image.Image) -> Callable[[], None]:
        network, result = self._with_history(self.learner.scored_network, scores), self._result(scores)

        def fill(folder: Path) -> None:
            save_model_folder(folder, network, self.learner.image_processor, self.recipe, result, example)

        return lambda: write_checkpoint(self.output_dir / BEST, fill)

    def _last_job(self, losses, scores: dict[str, Any] | None, example: Image.Image | None) -> Callable[[], None]:
        learner, accelerator, state = self.learner, self.accelerator, self.state
        state.losses, state.log_lines, state.num_processes = losses, self.log.lines, accelerator.num_processes
        state.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        self.log.flush()
        network = self._with_history(learner.network, scores)
        tensors = optimizer_tensors(learner.network, learner.optimizer.optimizer)
        averages = {} if learner.averaged is None else learner.averaged.state_dict()
        if self.host_copies is not None:
            tensors, averages = map(self.host_copies.of_tensors, (tensors, averages))
        state, result = replace(state), self._result(scores)

        def fill(folder: Path) -> None:
            save_model_folder(folder, network, learner.image_processor, self.recipe, result, example)
            save_training_state(folder, state, tensors)
            if averages:
                save_averages(folder, averages)
            if adapted_layers(network):
                save_file(separate_state(network), folder / LORA_FILE)

        def write() -> None:
            save_last(self.output_dir, self.recipe.keep_checkpoints, fill)
            note_saved(self.lock)

        return write

    def _result(self, scores: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if scores is None else {"epoch": self.state.epoch, "step": self.state.step, **scores}

    def _with_history(self, network, scores: dict[str, Any] | None):
        """The network to write, with the stages that it was trained in, this one last, in its config."""
        if self.host_copies is not None:
            network = self.host_copies.of_network(network)
        now = time.perf_counter()
        self.state.seconds, self._clock = self.state.seconds + now - self._clock, now
        network.config.training_history = [*self.history, self._history_entry(scores)]
        return network

    def _history_entry(self, scores: dict[str, Any] | None) -> dict[str, Any]:
        """This stage's data, progress and recipe, and the scores of the checkpoint that the entry is written into."""
        entry = {
            **self.stage,
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

    def restore(self) -> TrainingState:
        """Load `last` into the learner; the state that was saved with it, which becomes the run's.

        Raises:
            CheckpointError: it was trained on other data, or holds no training state of this network.
        """
        folder, learner, data = self.output_dir / LAST, self.learner, self.state.data
        state, tensors = load_training_state(folder)
        if state.data is not None:
            refuse_other_data(state.data, data)
        state.data = data
        learner.network.load_state_dict(load_weights(folder, learner.network))
        restore_optimizer_tensors(learner.network, learner.optimizer.optimizer, tensors)
        if learner.averaged is not None:
            load_averages(folder, learner.averaged)
        if self.accelerator.scaler is not None and state.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        config = AutoConfig.from_pretrained(folder)
        self.history = config.training_history[:-1]
        if hasattr(config, "backbone_license"):  # of a chain's first stage, which is not loaded again
            for network in (learner.network, learner.scored_network):
                network.config.backbone_license = config.backbone_license
        self.state = state
        self._say_resumed(folder)
        return state

    def _say_resumed(self, folder: Path) -> None:
        state, processes = self.state, self.accelerator.num_processes
        self.accelerator.print(
            f"resumed after step {state.step} of {self.learner.total_steps} ({state.epoch} of {self.recipe.epochs} epochs) from "
            f"{folder}"
        )
        if state.num_processes != processes and self.accelerator.is_main_process:
            logger.info(
                f"saved by {state.num_processes} process(es), resumed by {processes}: each step has the same images, but sums "
                "over them differ in their last bits, and so do the BatchNorm statistics of each forward pass"
            )


def save_model_folder(
    folder: Path, model, image_processor, recipe: Recipe, scores: dict[str, Any] | None, example: Image.Image | None = None
) -> None:
    """A folder that loads with the Auto classes, what it was made from, and its card; `example` is the card's image."""
    with merged(model) as weights:
        model.save_pretrained(folder, state_dict=weights)
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


def load_training_state(folder: Path) -> tuple[TrainingState, dict[str, torch.Tensor]]:
    try:
        values = json.loads((folder / "training_state.json").read_text(encoding="utf-8"))
        if "bad_pictures" in values:  # its name in 0.1.0
            values["bad_images"] = values.pop("bad_pictures")
        return TrainingState(**values), load_file(folder / "optimizer.safetensors")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no training state to resume from: {error}") from error


def load_weights(folder: Path, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of the network that is trained; its adapters, if it has any, are separate from the weights of their layers."""
    weights = load_file(folder / "model.safetensors")
    if not adapted_layers(network):
        return weights
    try:
        return separated(network, weights, load_file(folder / LORA_FILE))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no LoRA adapters to resume from: {error}") from error


def save_averages(folder: Path, averages: dict[str, torch.Tensor]) -> None:
    """The state of the moving average of the weights, which `last` keeps beside the weights themselves."""
    save_file({name: tensor.contiguous() for name, tensor in averages.items()}, folder / "averaged.safetensors")


def load_averages(folder: Path, averaged: torch.nn.Module) -> None:
    averaged.load_state_dict(load_file(folder / "averaged.safetensors"))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state of each parameter, such as momentum, under `PARAMETER:STATE`; of a quantised one, its parts."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}:{what}{part}": tensor.contiguous()  # safetensors knows no channels-last
        for parameter, state in optimizer.state.items()
        for what, value in state.items()
        if value is not None
        for part, tensor in _parts(value).items()
    }


def _parts(value: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors to save of a state: the codes and the scales of their blocks if it is one of torchao's 8 bits, else itself."""
    if not hasattr(value, "codes"):
        return {"": value}
    return {".codes": value.codes, ".scale": value.scale}


def restore_optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    strays = sorted({name.rpartition(":")[0] for name in tensors} - parameters.keys())
    if strays:
        raise CheckpointError(f"The optimizer's state is of another network: it has {strays[0]}, which this one has not")
    for name, tensor in tensors.items():
        parameter, _, what = name.rpartition(":")
        parameter = parameters[parameter]
        what, _, part = what.partition(".")
        if part:
            _restore_part(optimizer, parameter, what, part, tensor)
            continue
        # In the parameter's own memory format, but for a counter of steps, which AdamW keeps on the CPU unless it is fused.
        if tensor.shape == parameter.shape:
            like = torch.empty_like(parameter)
        else:
            like = torch.empty_like(tensor, device=parameter.device if optimizer.defaults.get("fused") else tensor.device)
        optimizer.state[parameter][what] = like.copy_(tensor)


def _restore_part(optimizer, parameter: torch.nn.Parameter, what: str, part: str, tensor: torch.Tensor) -> None:
    """Codes or scales of a quantised state, which torchao's optimizer makes."""
    state = optimizer.state[parameter]
    if what not in state:
        state[what] = optimizer._new_buffer(parameter, signed=what == "exp_avg")
    getattr(state[what], part).copy_(tensor)
