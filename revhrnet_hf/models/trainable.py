"""Chooses the part of a backbone that is trained: nothing, its last stage, its normalisation layers, or all."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, TimmBackboneConfig
from transformers.backbone_utils import BackboneMixin

from .backbone_maps import image_size_for, without_values
from .configuration_hrnetv2 import HRNetV2Config
from .modeling_hrnetv2 import HRNetV2Backbone

NONE, LAST_STAGE, NORMS, ALL = "none", "last_stage", "norms", "all"


def trained_names(backbone: BackboneMixin, config: PreTrainedConfig, choice: str) -> frozenset[str]:
    """Names of the parameters of `backbone` that are trained.

    Raises:
        ValueError: the backbone has no such part.
    """
    if choice == NONE:
        return frozenset()
    if choice == ALL:
        return frozenset(name for name, _ in backbone.named_parameters()) - unused_names(config)
    names = _norm_names(backbone) - unused_names(config) if choice == NORMS else _found(_last_stages, _read_last_stage, config)
    if not names:
        part = "normalisation layers with weights" if choice == NORMS else "last stage that only its coarsest map depends on"
        raise ValueError(f"trainable_backbone={choice!r}: the backbone has no {part}; it can be {NONE!r} or {ALL!r}")
    return names


def _norm_names(backbone: nn.Module) -> frozenset[str]:
    """Names of the weights and biases of all modules with "norm" in the name of their class: BatchNorm, LayerNorm and others."""
    return frozenset(
        f"{module_name}.{name}" if module_name else name
        for module_name, module in backbone.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1
    )


def unused_names(config: PreTrainedConfig) -> frozenset[str]:
    """Names of a Transformers backbone's parameters on which no map depends, such as a DINO's mask token.

    They never get a gradient, for which training on several processes would wait. Others than Transformers' have none.
    """
    if isinstance(config, TimmBackboneConfig | HRNetV2Config):
        return frozenset()
    return _found(_unused, _read_unused, config)


_last_stages: dict[str, frozenset[str]] = {}
_unused: dict[str, frozenset[str]] = {}


def _found(known: dict[str, frozenset[str]], read: Callable[[PreTrainedConfig], frozenset[str]], config: PreTrainedConfig):
    """What `read` finds, once for each configuration."""
    key = config.to_json_string(use_diff=False)
    if key not in known:
        known[key] = read(config)
    return known[key]


def _read_unused(config: PreTrainedConfig) -> frozenset[str]:
    backbone = without_values(config)
    named = dict(backbone.named_parameters())
    with torch.enable_grad():
        maps = backbone(torch.empty(1, 3, *image_size_for(config), device="meta"), return_dict=True).feature_maps
        return frozenset(named).difference(*(_parameters_behind(x, named) for x in maps))


def _read_last_stage(config: PreTrainedConfig) -> frozenset[str]:
    """Parameters on which the coarsest map depends and no other map does, found by a backward pass on the meta device."""
    if config.model_type == HRNetV2Config.model_type:
        return _last_stage_of_hrnet(config)
    backbone = without_values(config)
    if type(getattr(backbone, "_backbone", None)).__name__.startswith("HighResolutionNet"):
        return frozenset()  # all its maps come from the last stage
    named = dict(backbone.named_parameters())
    with torch.enable_grad():
        image = torch.empty(1, 3, *image_size_for(config), device="meta")
        *finer, coarsest = backbone(image, return_dict=True).feature_maps
        own = _parameters_behind(coarsest, named)
        return frozenset(own.difference(*(_parameters_behind(x, named) for x in finer)))


def _parameters_behind(x: torch.Tensor, named: dict[str, nn.Parameter]) -> set[str]:
    """Names of the parameters on which `x` depends."""
    grads = torch.autograd.grad(x.sum(), list(named.values()), retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(named, grads, strict=True) if grad is not None}


def _last_stage_of_hrnet(config: PreTrainedConfig) -> frozenset[str]:
    last = len(config.stream_channels)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        backbone = HRNetV2Backbone(copy.deepcopy(config))
    own = (f"transition{last - 1}.", f"stage{last}.")
    return frozenset(name for name, _ in backbone.named_parameters() if name.startswith(own))


def set_training_mode(backbone: nn.Module, choice: str) -> None:
    """Set the mode of the backbone's modules while the network is trained.

    Modules of which all parameters are trained are in training mode, all others in eval mode. With `"norms"` all modules are in
    eval mode, so that running statistics do not change.
    """
    backbone.eval()
    if choice != LAST_STAGE:
        return
    for module in backbone.modules():
        parameters = list(module.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            module.train()
