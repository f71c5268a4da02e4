"""LoRA adapters in a network's frozen backbone (arXiv 2106.09685), through PEFT.

An adapter adds a product of two small matrices to the weight of a linear layer or convolution; only these matrices are trained.
While a network is trained, weight and adapter are separate. Scores and checkpoints have their sum (`merged`), so a checkpoint is
a plain network, which needs no PEFT.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from .errors import RecipeError, did_you_mean, first_few
from .models.backbone_maps import image_size_for, without_values

ADAPTER = "default"  # PEFT's name for the only adapter of a layer
PLAIN_LAYERS = (nn.Linear, nn.Conv2d)  # classes derived from these may use their weights in another way

IN_ATTENTION = ("attention", "attn")  # in the names of classes
BESIDE_ATTENTION = re.compile(r"(^|\.)\w*mlp\.")
EXCITATIONS = ("SE", "Squeeze", "EffectiveSE")  # names of classes begin so: they scale channels by a few numbers


def add_adapters(network: PreTrainedModel, rank: int, alpha: float, targets: list[str] | None = None) -> list[str]:
    """Add an adapter to layers of the network's backbone, whose own weights are frozen.

    Args:
        network: a RevHRNet on a frozen backbone; changed in place.
        rank: of the product of two matrices.
        alpha: the product is multiplied by `alpha / rank`.
        targets: names of layers, or the last parts of their names, as in PEFT's `target_modules`. Not given: linear layers of
            attention, without those of MLPs; where there is no attention, dense convolutions and linear layers, without the stem.

    Returns:
        Names of the layers in the backbone that have an adapter now.

    Raises:
        RecipeError: PEFT is not installed, a target does not exist or cannot have an adapter, or there is none by default.
    """
    inject = _peft_injection(rank, alpha)
    backbone = network.base_model.backbone
    names = _default_targets(backbone) if targets is None else _given_targets(backbone, targets)
    try:
        reached = _reached(network.config.backbone_config, names, inject)
        missed = [name for name in names if name not in reached]
        if missed and targets is not None:
            raise RecipeError(
                f"Recipe field lora_targets: an adapter of {first_few(missed, 5)} would have no effect, because no map that is "
                "used depends on the layer's own forward pass. Leave it out"
            )
        if not reached:
            raise RecipeError(
                f"trainable_backbone: lora finds no layer to adapt in a {type(backbone).__name__}: name layers by lora_targets, "
                "or use last_stage, norms or all"
            )
        inject(backbone, reached)
        network.base_model.has_adapters = True
    except (ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, RecipeError):
            raise
        reason = " ".join(str(error).split())
        raise RecipeError(f"trainable_backbone: lora cannot adapt this backbone with lora_rank {rank}: {reason}") from error
    return reached


def _peft_injection(rank: int, alpha: float):
    """A function of (backbone, names) that adds adapters to the layers with these names."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RecipeError('trainable_backbone: lora needs PEFT: pip install "revhrnet_hf[lora]"') from error

    def inject(backbone: nn.Module, names: list[str]) -> None:
        pattern = "|".join(map(re.escape, names))  # a pattern is matched with whole names
        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern)
        inject_adapter_in_model(settings, backbone, adapter_name=ADAPTER)

    return inject


def _default_targets(backbone: nn.Module) -> list[str]:
    modules = dict(backbone.named_modules())
    inside: dict[str, list[nn.Module]] = {name: [modules[parent] for parent in _parents(name)] for name in modules}
    attention = [
        name
        for name, module in modules.items()
        if type(module) is nn.Linear and any(map(_is_attention, inside[name])) and not BESIDE_ATTENTION.search(name)
    ]
    return attention or [
        name
        for name, module in modules.items()
        if type(module) in PLAIN_LAYERS and _is_dense(module) and not any(map(_is_excitation, inside[name]))
    ]


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _is_attention(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return any(word in kind for word in IN_ATTENTION) and not isinstance(module, nn.MultiheadAttention)  # it calls no layers


def _is_excitation(module: nn.Module) -> bool:
    return type(module).__name__.startswith(EXCITATIONS)


def _is_dense(layer: nn.Module) -> bool:
    """Whether each output depends on all inputs, which are not the three colours; and PEFT can adapt the layer."""
    return _obstacle(layer) is None and (isinstance(layer, nn.Linear) or layer.in_channels != 3)


def _obstacle(layer: nn.Module) -> str | None:
    """Why one of `PLAIN_LAYERS` cannot have an adapter.

    PEFT's adapter of a convolution has neither its dilation nor its padding mode, and cannot be merged into groups.
    """
    if isinstance(layer, nn.Linear):
        return None
    if layer.groups != 1:
        return f"has {layer.groups} groups"
    if set(layer.dilation) != {1}:
        return f"has the dilation {max(layer.dilation)}"
    return None if layer.padding_mode == "zeros" else f"has the padding mode {layer.padding_mode}"


def _given_targets(backbone: nn.Module, targets: list[str]) -> list[str]:
    layers = {name: module for name, module in backbone.named_modules() if name}
    plain = {name: module for name, module in layers.items() if type(module) in PLAIN_LAYERS}
    adaptable = sorted({name.rpartition(".")[2] for name, module in plain.items() if _obstacle(module) is None})
    chosen = []
    for target in targets:
        found = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not found:
            raise RecipeError(
                f"Recipe field lora_targets: the backbone has no layer {target!r}{did_you_mean(target, adaptable)}; layers that "
                f"can be adapted are called {first_few(adaptable)}"
            )
        for name in found:
            if name not in plain:
                raise RecipeError(
                    f"Recipe field lora_targets: {name} is a {type(layers[name]).__name__}, but only a Linear or a Conv2d can "
                    f"have an adapter; layers that can be adapted are called {first_few(adaptable)}"
                )
            if (obstacle := _obstacle(plain[name])) is not None:
                raise RecipeError(
                    f"Recipe field lora_targets: {name} {obstacle}, and cannot have an adapter; layers that can be adapted are "
                    f"called {first_few(adaptable)}"
                )
        chosen += found
    return list(dict.fromkeys(chosen))


def _reached(backbone_config, names: list[str], inject) -> list[str]:
    """Those of the layers whose adapters change the backbone's maps.

    Some networks read a layer's weight without calling the layer, and some layers come after the last map that is used. There
    an adapter would be trained in no step. It is found by a backward pass on the meta device.
    """
    if not names:
        return []
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.enable_grad():
        backbone = without_values(backbone_config)
        inject(backbone, names)
        adapters = {name: layer.lora_B[ADAPTER].weight for name, layer in adapted_layers(backbone).items()}
        maps = backbone(torch.empty(1, 3, *image_size_for(backbone_config), device="meta"), return_dict=True).feature_maps
        depend = [x.sum() for x in maps if x.requires_grad]
        if not depend:
            return []
        grads = torch.autograd.grad(sum(depend), list(adapters.values()), allow_unused=True)
    return [name for name, grad in zip(adapters, grads, strict=True) if grad is not None]


def adapted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """PEFT's layers by their names in the network; each has the original layer as `base_layer`."""
    return {
        name: module for name, module in network.named_modules() if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


@contextmanager
def merged(network: nn.Module) -> Iterator[dict[str, torch.Tensor] | None]:
    """Context in which adapters are merged into the weights of their layers; afterwards these have the same bits as before.

    Yields:
        The merged network's state under the names that it has without adapters; None for a network without any.
    """
    layers = adapted_layers(network)
    if not layers:
        yield None
        return
    weights = {name: layer.base_layer.weight.data for name, layer in layers.items()}
    device = next(iter(weights.values())).device.type
    try:
        # Without autocast, which would multiply at its own precision; it does not exist on the meta device.
        with torch.no_grad(), torch.autocast("cpu" if device == "meta" else device, enabled=False):
            for name, layer in layers.items():
                layer.base_layer.weight.data = weights[name] + layer.get_delta_weight(ADAPTER)
                layer.merged_adapters.append(ADAPTER)  # so that PEFT's forward pass does not add it again
        yield _plain_state(network, layers)
    finally:
        for name, layer in layers.items():
            layer.base_layer.weight.data = weights[name]
            layer.merged_adapters.clear()


def _plain_state(network: nn.Module, layers: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in network.state_dict().items():
        layer = _layer_of(name, layers)
        if layer is None:
            state[name] = tensor
        elif name.startswith(f"{layer}.base_layer."):
            state[name.replace(f"{layer}.base_layer.", f"{layer}.", 1)] = tensor
    return state


def separate_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Adapters and the weights of their layers, which cannot be computed back from a merged network to the last bit."""
    layers = adapted_layers(network)
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items() if _layer_of(name, layers) is not None}


def separated(
    network: nn.Module, merged_state: dict[str, torch.Tensor], separate: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The network's state, from the merged state of a checkpoint and its `separate_state`."""
    layers = adapted_layers(network)
    return {name: tensor for name, tensor in merged_state.items() if _layer_of(name, layers) is None} | separate


def _layer_of(name: str, layers: dict[str, nn.Module]) -> str | None:
    """The adapted layer that a tensor of a network's state belongs to."""
    return next((parent for parent in _parents(name) if parent in layers), None)
