"""The optimizer and its learning rates, and which parts of the network are changed for speed or for several processes."""

import timm.layers
import torch
from torch import nn

from .recipe import Recipe


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0): HRNet's poly schedule, which falls to 0 at `total_steps`, times a linear warm-up."""
    poly = (1 - step / total_steps) ** recipe.poly_power
    return recipe.learning_rate * poly * min(1.0, (step + 1) / max(recipe.warmup_steps, 1))


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer, of what is trained: a frozen backbone is no part of it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "weight_decay": recipe.weight_decay}]
    if not recipe.decay_norm_and_bias:
        # What norms and biases have in common, in any backbone: no more than one dimension.
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def synchronise_batch_norms(model: nn.Module) -> None:
    """Every BatchNorm that is trained becomes one that counts over all processes; those of a frozen backbone stay."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)
            if is_norm and any(parameter.requires_grad for parameter in child.parameters()):
                # timm's, which keeps the activation that is part of its own BatchNorms.
                setattr(parent, name, timm.layers.convert_sync_batchnorm(child))
