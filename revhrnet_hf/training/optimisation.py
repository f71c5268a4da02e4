"""The optimizer and its learning rates, and which parts of the network are changed for speed or for several processes."""

import math
import re
from collections.abc import Callable

import timm.layers
import torch
from torch import nn

from ..errors import RecipeError
from .recipe import Recipe

CPU = torch.device("cpu")
EIGHT_BIT = "adamw8bit"  # as optimizer, and the extra that it needs


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The rate of step `step` (from 0): the recipe's schedule times a linear warm-up.

    HRNet's poly schedule and the cosine (without restarts, arXiv 1608.03983) fall to 0 at `total_steps`.
    """
    factor = SCHEDULES[recipe.schedule](step / total_steps, recipe)
    return recipe.learning_rate * factor * min(1.0, (step + 1) / max(recipe.warmup_steps, 1))


SCHEDULES: dict[str, Callable[[float, Recipe], float]] = {
    "poly": lambda done, recipe: (1 - done) ** recipe.poly_power,
    "cosine": lambda done, _: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda *_: 1.0,
}
"""Schedule → the factor of the learning rate, from the share of the steps that are done."""


def build_optimizer(model: nn.Module, recipe: Recipe, device: torch.device = CPU) -> torch.optim.Optimizer:
    """The recipe's optimizer, of what is trained: what is frozen of a backbone is no part of it.

    It is fused on GPUs, but for SGD in fp16: also, fp16's loss scaler then skips a step without a wait of the host for the
    device.

    Whoever sets the learning rate sets one for all groups; each group has its share of it (`lr_share`) while the optimizer steps.

    Raises:
        RecipeError: `layer_decay` for a backbone without layers to decay over; torchao is not installed, or has no 8-bit states
            on this device.
    """
    shares = learning_rate_shares(model, recipe)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    if not shares:
        groups = {(1.0, spared): [] for spared in ((False,) if recipe.decay_norm_and_bias else (False, True))}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # What norms and biases have in common, in any backbone: no more than one dimension.
            spared = not recipe.decay_norm_and_bias and parameter.ndim <= 1
            groups.setdefault((shares.get(name, 1.0), spared), []).append(parameter)
    # The share of the rest of the network, which is 1, first: its rate is the one that is logged.
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] != 1, -group[0][0], group[0][1]))
    settings = [
        {"params": parameters, "weight_decay": 0.0 if spared else recipe.weight_decay} | ({"lr_share": share} if shares else {})
        for (share, spared), parameters in ordered
    ]
    # One kernel for all parameters. On CPUs it would be faster too, but it rounds differently (SGD in small tensors, AdamW in
    # all), so that runs of earlier versions could not be repeated.
    fused = device.type == "cuda" or None
    if recipe.precision == "fp16" and recipe.optimizer == "sgd":
        # Fused, SGD allocates the momentum in its first step without filling it, and does not fill it if fp16's scaler skips that
        # step: the second one would then use whatever was in that memory.
        fused = None
    if recipe.optimizer == EIGHT_BIT:
        return _eight_bit_adamw(settings, recipe, device)
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(settings, lr=recipe.learning_rate, fused=fused)
    else:
        optimizer = torch.optim.SGD(settings, lr=recipe.learning_rate, momentum=recipe.momentum, fused=fused)
    if shares:
        _Shares().attach(optimizer)
    return optimizer


def _eight_bit_adamw(settings: list[dict], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW whose states are quantised by blocks of 256 values (arXiv 2110.02861); those of small tensors stay in 32 bits."""
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"optimizer: {EIGHT_BIT} works on CPUs and CUDA GPUs, not on {device.type}: use adamw")
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise RecipeError(f'optimizer: {EIGHT_BIT} needs torchao: pip install "revhrnet_hf[{EIGHT_BIT}]"') from error
    optimizer = AdamW8bit(settings, lr=recipe.learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate  # a number, as in other optimizers
    _Shares(as_tensors=True).attach(optimizer)
    return optimizer


def learning_rate_shares(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """The factors of the learning rate, by parameter of the head and trained parameter of the backbone; empty where all are 1."""
    shares = _backbone_shares(model, recipe)
    if recipe.head_learning_rate != 1:
        shares |= {name: recipe.head_learning_rate for name, _ in model.named_parameters() if IN_HEAD.match(name)}
    return shares


def _backbone_shares(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Name of each trained parameter of the backbone → its factor of the learning rate; empty if all have the whole rate.

    With `layer_decay`, as BEiT has it (arXiv 2106.08254): the last layer of a vision transformer has the factor once, the one
    before it twice, and so on to what comes before the first layer.
    """
    if recipe.backbone_learning_rate == 1 and recipe.layer_decay is None:
        return {}
    # In the network's own names; a backbone of HRNetV2, trained whole, is no part of another network.
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and IN_BACKBONE.search(name)]
    if recipe.layer_decay is None:
        return dict.fromkeys(trained, recipe.backbone_learning_rate)
    if not getattr(getattr(model.base_model, "layout", None), "is_plain", False):
        raise RecipeError(
            f"Recipe field layer_decay is for plain vision transformers, and {recipe.backbone} has no layers of one kind: leave "
            "it out, and give backbone_learning_rate"
        )
    layers = {name: int(found[1]) for name, _ in model.named_parameters() if (found := LAYER.search(name))}
    depth = 1 + max(layers.values())
    first_in_order = next(iter(layers))
    names = [name for name, _ in model.named_parameters()]
    shares = {}
    for name in trained:
        is_before = name not in layers and names.index(name) < names.index(first_in_order)
        layer = layers.get(name, -1 if is_before else depth)
        shares[name] = recipe.backbone_learning_rate * recipe.layer_decay ** (depth - layer)
    return shares


IN_BACKBONE = re.compile(r"(?:^|\.)backbone\.")
IN_HEAD = re.compile(r"\w*head\w*\.")  # a part of the segmentation network itself, such as `head.3.weight`
LAYER = re.compile(r"(?:^|\.)backbone\..*?\.(?:blocks|layers?)\.(\d+)\.")


class _Shares:
    """Gives each group its share of the learning rate for the time of a step; `as_tensors`, as torchao wants them."""

    def __init__(self, as_tensors: bool = False):
        self.as_tensors = as_tensors

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self.take)
        optimizer.register_step_post_hook(self.give_back)

    def take(self, optimizer: torch.optim.Optimizer, *_arguments) -> None:
        self.whole = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            rate = group["lr"] * group.get("lr_share", 1.0)
            group["lr"] = torch.tensor(rate) if self.as_tensors else rate

    def give_back(self, optimizer: torch.optim.Optimizer, *_arguments) -> None:
        for group, rate in zip(optimizer.param_groups, self.whole, strict=True):
            group["lr"] = rate


def synchronise_batch_norms(model: nn.Module) -> None:
    """Every BatchNorm that is trained becomes one that counts over all processes; those of a frozen backbone stay."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            is_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)
            if is_norm and any(parameter.requires_grad for parameter in child.parameters()):
                # timm's, which keeps the activation that is part of its own BatchNorms.
                setattr(parent, name, timm.layers.convert_sync_batchnorm(child))
