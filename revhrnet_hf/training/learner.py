"""The network of a stage, and how it learns from the images of one step."""

import warnings
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from ..errors import RecipeError
from ..models.losses import LossSettings, labelled_weight
from .averaging import MovingAverage
from .data import Batch
from .optimisation import build_optimizer, learning_rate, synchronise_batch_norms
from .processes import fixed_sizes
from .recipe import Recipe


class Learner:
    """The network on its device, ready for training by several processes, with its optimizer and the average of its weights.

    Args:
        network: freshly built; it is moved and changed in place.
        image_processor: of the network.
        total_steps: of the stage, at whose end the learning rate is 0.

    Attributes:
        model: the network as Accelerate wraps it.
        optimizer: as Accelerate wraps it.
        averaged: the moving average of the weights, with `ema_decay`.
        grad_norm: of the last step, before it was clipped; None without `max_grad_norm`.
        loss_terms: of the last step, this process's part of each term of the loss before its weight; empty if there is one term.
    """

    def __init__(self, network, image_processor, recipe: Recipe, accelerator: Accelerator, total_steps: int):
        self.image_processor, self.recipe, self.accelerator, self.total_steps = image_processor, recipe, accelerator, total_steps
        self.grad_norm: torch.Tensor | None = None
        self.loss_terms: dict[str, torch.Tensor] = {}
        self._run_backbone: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] | None = None
        network.to(memory_format=torch.channels_last)  # faster convolutions, on the CPU and with mixed precision on GPUs
        if recipe.sync_batch_norm and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            synchronise_batch_norms(network)
        if recipe.recompute != "norms":  # the networks' own default
            # Transformers renames the method; older versions have the second name only.
            enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
            enable({"recompute": recipe.recompute})
        optimizer = build_optimizer(network, recipe, accelerator.device)
        # The average copies the network before Accelerate wraps it.
        self.averaged = None if recipe.ema_decay is None else MovingAverage(network, recipe.ema_decay, accelerator.device)
        if recipe.torch_compile:
            network.compile()  # in place, so that weights keep their names
        with warnings.catch_warnings():
            # torch 2.15 has another name for it, which Accelerate does not pass on yet.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(network, optimizer)

    @property
    def network(self) -> torch.nn.Module:
        """The network that is trained, without Accelerate's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def scored_network(self) -> torch.nn.Module:
        """The network that is scored and kept as best: with `ema_decay` the average, else the one that is trained."""
        return self.network if self.averaged is None else self.averaged.module

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def run_backbone(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The maps of the frozen backbone of a RevHRNet, for a feature bank: as a training step computes them."""
        if self._run_backbone is None:
            run = self.network.base_model.run_backbone
            self._run_backbone = torch.compile(run) if self.recipe.torch_compile else run
        with torch.no_grad(), self.accelerator.autocast(), fixed_sizes():
            return self._run_backbone(pixel_values)

    def learn(self, passes: list[Batch], step: int) -> torch.Tensor:
        """One step (from 0) of the optimizer and of the moving average.

        Returns:
            (passes,): what each forward pass of this process adds to the step's loss, which is the sum over all processes.
        """
        accelerator, recipe = self.accelerator, self.recipe
        # Random numbers in the network (dropout) depend on step and process only, also in a resumed run.
        torch.manual_seed((recipe.seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index)
        rate = learning_rate(recipe, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, count = [], len(passes) * accelerator.num_processes
        self.loss_terms = {}
        for batch, share in zip(passes, self._shares(passes), strict=True):
            with accelerator.accumulate(self.model):
                outputs = self._outputs(batch, share)
                loss = outputs.loss
                # Accelerate divides by the passes, DistributedDataParallel by the processes.
                accelerator.backward(loss)
                if recipe.max_grad_norm is not None and accelerator.sync_gradients:
                    self.grad_norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach() / count)
            for name, value in (getattr(outputs, "loss_terms", None) or {}).items():
                self.loss_terms[name] = self.loss_terms.get(name, 0.0) + value / count
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return torch.stack(losses)

    def mean_loss_terms(self) -> dict[str, float]:
        """`loss_terms` of all processes together. The host waits for the device here."""
        if not self.loss_terms:
            return {}
        values = self.accelerator.reduce(torch.stack(list(self.loss_terms.values())), "sum")
        return dict(zip(self.loss_terms, values.tolist(), strict=True))

    def _outputs(self, batch: Batch, share: torch.Tensor | None):
        try:
            return self.model(**batch, **({} if share is None else {"pixel_share": share}))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            count, (height, width) = len(batch["labels"]), self.recipe.crop_size
            raise RecipeError(
                f"crop_size {height} {width} with {count} image(s) in a forward pass (batch_size {self.recipe.batch_size}, "
                f"gradient_accumulation_steps {self.recipe.gradient_accumulation_steps}, {self.accelerator.num_processes} "
                "process(es)) leaves BatchNorm one value a channel, which has no variance: give larger crops, or at least two "
                "images to a pass"
            ) from error

    def _shares(self, passes: list[Batch]) -> list[torch.Tensor] | list[None]:
        """Factors for the forward passes' means over pixels, with which their mean is that over all pixels of the step.

        Without them, pixels would count more in a pass (of a process) that has fewer labelled ones. With OHEM each pass mines its
        own hard pixels, as in HRNet, and means over classes are each pass's own: of these, all passes count the same.
        """
        accelerator, config = self.accelerator, self.network.config
        count = len(passes) * accelerator.num_processes
        if count == 1 or not LossSettings.of_config(config).has_pixel_means:
            return [None] * len(passes)
        settings = (config.semantic_loss_ignore_index, config.semantic_loss_class_weights)
        weights = torch.stack([labelled_weight(batch["labels"], *settings).float() for batch in passes])
        total = accelerator.reduce(weights.sum(), "sum")
        return list(weights * count / total.clamp(min=torch.finfo(torch.float32).tiny))

    def share_buffers(self) -> None:
        """Give all processes the first one's BatchNorm statistics, which are saved: each has counted its own images."""
        if self.accelerator.num_processes > 1:
            for network in dict.fromkeys((self.network, self.scored_network)):
                for buffer in network.buffers():
                    broadcast(buffer)
