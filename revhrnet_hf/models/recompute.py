"""Recomputation: memory for the backward pass, spared by computing parts of the forward pass a second time.

It is torch's activation checkpointing. `"norms"` keeps the outputs of convolutions and recomputes normalisations, ReLUs and sums,
which are cheap; `"modules"` keeps the inputs of modules and recomputes the rest. What is recomputed runs a second time in the
backward pass, and so do the forward hooks on modules within it.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.utils import logging

logger = logging.get_logger(__name__)

SETTINGS = NONE, NORMS, MODULES = "none", "norms", "modules"
FORMER_NAMES = {"nothing": NONE, "relus": NORMS}
"""Settings of earlier versions, and those that took their place."""

# Tensors that `saved_tensors_hooks` move elsewhere include those kept here, where torch knows how (from 2.14 on).
RESPECT_HOOKS = "respect_saved_tensors_hooks"
SELECTIVE = {RESPECT_HOOKS: True} if RESPECT_HOOKS in inspect.signature(checkpoint).parameters else {}


def current_name(setting: str) -> str:
    """`setting`, or the one that took the place of a name of earlier versions, which is said once."""
    if setting not in FORMER_NAMES:
        return setting
    logger.warning_once(f"recompute: {setting} is called {FORMER_NAMES[setting]} now")
    return FORMER_NAMES[setting]


class RecomputedModule(nn.Module):
    """A module whose `compute` runs again, in parts or as a whole, in the backward pass of a training step.

    Sub-classes define `compute`, which takes tensors one by one and gives a tensor or a flat tuple.

    The second run starts from the parameters and buffers that the first started from, and updates copies of the buffers: running
    statistics are updated once a step, and a `functional_call` is differentiated where it was made.

    Attributes:
        recompute: `"none"`, `"norms"` or `"modules"`; set by `activation_checkpointing_enable` of the model.
        gradient_checkpointing: whether it is `"modules"`, as Transformers asks.
    """

    recompute = NORMS
    gradient_checkpointing = False
    _gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(self, *tensors: Tensor):
        if self.recompute == NONE or not self.training or not torch.is_grad_enabled():
            return self.compute(*tensors)
        run_checkpointed = self._gradient_checkpointing_func if self.recompute == MODULES else keep_convolutions
        if torch.compiler.is_compiling():  # a compiled backward pass holds operations on tensors, and none on the module
            return run_checkpointed(self.compute, *tensors)
        run = _Run(self)
        return run_checkpointed(run, *tensors, *run.parameters)


def keep_convolutions(function, *tensors: Tensor):
    """`function(*tensors)`, of which the backward pass finds the results of convolutions kept, and computes the rest again."""
    contexts = partial(create_selective_checkpoint_contexts, _keep_or_recompute)
    if not torch.compiler.is_compiling():
        contexts = _contexts
    return checkpoint(function, *tensors, use_reentrant=False, context_fn=contexts, determinism_check="none", **SELECTIVE)


def _keep_or_recompute(_context, operation, *_args, **_kwargs) -> CheckpointPolicy:
    is_convolution = operation == torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if is_convolution else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    keep, find_kept = create_selective_checkpoint_contexts(_keep_or_recompute)
    return keep, _FirstTimeOnly(find_kept)


class _FirstTimeOnly:
    """A context that is entered once: what torch keeps is used up by a backward pass, and the next one computes all again."""

    def __init__(self, context: AbstractContextManager):
        self.unused: AbstractContextManager | None = context
        self.entered: AbstractContextManager | None = None

    def __enter__(self):
        self.entered, self.unused = self.unused or nullcontext(), None
        return self.entered.__enter__()

    def __exit__(self, *error):
        entered, self.entered = self.entered, None
        return entered.__exit__(*error)


class _Run:
    """Calls `module.compute(*tensors)` for `run(*tensors, *run.parameters)`; from the second time on, on copies of the buffers.

    The parameters are among the arguments so that torch keeps those of the first run, and complains if one was changed in place.
    """

    def __init__(self, module: RecomputedModule):
        self.compute = _Compute(module)
        named = dict(self.compute.named_parameters())
        self.names, self.parameters = list(named), list(named.values())
        self.buffers = {name: buffer.clone() for name, buffer in self.compute.named_buffers()}
        self.is_first = True

    def __call__(self, *tensors_and_parameters: Tensor):
        count = len(tensors_and_parameters) - len(self.names)
        tensors, parameters = tensors_and_parameters[:count], tensors_and_parameters[count:]
        with _without_weight_cache(tensors[0].device.type):
            if self.is_first:
                self.is_first = False
                return self.compute(*tensors)
            return functional_call(self.compute, dict(zip(self.names, parameters, strict=True)) | self.buffers, tensors)


class _Compute(nn.Module):
    """`module.compute` as a module, for `functional_call`; hooks of `module` itself are not called."""

    def __init__(self, module: RecomputedModule):
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor):
        return self.module.compute(*tensors)


def _without_weight_cache(device: str) -> AbstractContextManager:
    """Autocast, where it is on, casts each weight anew: one cast earlier would be missing from only one of two runs."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
