"""Recomputation: the backward pass computes parts of the forward pass again, so that less memory is kept for it.

This is torch's activation checkpointing. `"norms"` keeps the outputs of convolutions and recomputes normalisations, ReLUs and
sums, which are cheap. `"modules"` keeps the inputs of modules and recomputes the rest. Forward hooks on modules within a
recomputed part are called again in the backward pass.
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
"""Names of settings in earlier versions, and their names now."""

# From torch 2.14 on, `saved_tensors_hooks` (which may move tensors elsewhere) also apply to the tensors that are kept here.
RESPECT_HOOKS = "respect_saved_tensors_hooks"
SELECTIVE = {RESPECT_HOOKS: True} if RESPECT_HOOKS in inspect.signature(checkpoint).parameters else {}


def current_name(setting: str) -> str:
    """The current name of a setting. A name of earlier versions is logged once."""
    if setting not in FORMER_NAMES:
        return setting
    logger.warning_once(f"recompute: {setting} is called {FORMER_NAMES[setting]} now")
    return FORMER_NAMES[setting]


class RecomputedModule(nn.Module):
    """A module whose `compute` runs again, partly or as a whole, in the backward pass of a training step.

    Sub-classes define `compute`, which takes tensors as arguments and returns a tensor or a flat tuple.

    The second run starts from the same parameters and buffers as the first, and updates copies of the buffers. So running
    statistics are updated only once in each step, and under a `functional_call` both runs use the parameters of that call.

    Attributes:
        recompute: `"none"`, `"norms"` or `"modules"`; the model's `activation_checkpointing_enable` sets it.
        gradient_checkpointing: whether `recompute` is `"modules"`; Transformers reads it.
    """

    recompute = NORMS
    gradient_checkpointing = False
    _gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def forward(self, *tensors: Tensor):
        if self.recompute == NONE or not self.training or not torch.is_grad_enabled():
            return self.compute(*tensors)
        run_checkpointed = self._gradient_checkpointing_func if self.recompute == MODULES else keep_convolutions
        if torch.compiler.is_compiling():  # a compiled backward pass computes on tensors and does not call the module
            return run_checkpointed(self.compute, *tensors)
        run = _Run(self)
        return run_checkpointed(run, *tensors, *run.parameters)


def keep_convolutions(function, *tensors: Tensor):
    """`function(*tensors)`. The results of convolutions are kept for the backward pass; it computes the rest again."""
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
    """Enters a context only the first time: a backward pass uses up the kept tensors, and a second one computes all again."""

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
    """`run(*tensors, *run.parameters)` calls `module.compute(*tensors)`; from the second call on with copies of the buffers.

    The parameters are arguments so that torch keeps them from the first run, and raises an error if one was changed in place.
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
    """`module.compute` as a module, which `functional_call` needs. Hooks of `module` itself are not called."""

    def __init__(self, module: RecomputedModule):
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor):
        return self.module.compute(*tensors)


def _without_weight_cache(device: str) -> AbstractContextManager:
    """If autocast is on: autocast without its cache of cast weights.

    A weight that is in the cache already is not cast in the first run. Then the two runs would have different operations.
    """
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
