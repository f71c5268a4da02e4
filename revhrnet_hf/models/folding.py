"""Folds BatchNorms with fixed statistics into the convolutions before them. The maps are the same up to rounding.

A forward pass on the meta device (tensors without values) shows which BatchNorm follows which convolution. So this works for
any backbone.
"""

import copy
from collections import Counter
from functools import partial

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .backbone_maps import fixed_size_in
from .multi_scale import ConvOverScales

PROBE_SIZE = (256, 256)  # height and width of the image on the meta device, unless the backbone accepts another size only


def conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names (convolution, BatchNorm) of the pairs in which only the BatchNorm uses the convolution's output.

    Both run exactly once in `model(pixel_values)`.
    """
    convs = {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, Conv2dSame, ConvOverScales)}
    kinds = (nn.BatchNorm2d, BatchNormAct2d)
    norms = {name: m for name, m in model.named_modules() if type(m) in kinds and m.track_running_stats}
    if not convs or not norms:
        return []
    probe = _on_meta_device(model)
    conv_outputs: dict[int, str] = {}  # id of the tensor → name of the convolution
    norm_inputs: list[tuple[int, str]] = []
    uses = _UseCounter()

    def record_output(name, _module, _inputs, y):
        conv_outputs[id(y)] = name
        uses.count[id(y)] = 0  # uses within the convolution do not count

    for name in convs:
        probe.get_submodule(name).register_forward_hook(partial(record_output, name))
    for name in norms:
        probe.get_submodule(name).register_forward_pre_hook(lambda _m, x, name=name: norm_inputs.append((id(x[0]), name)))
    with torch.no_grad(), uses:
        probe(torch.empty(1, 3, *(fixed_size_in(model) or PROBE_SIZE), device="meta"))
    calls = Counter([*conv_outputs.values(), *(name for _, name in norm_inputs)])
    pairs = [(conv_outputs[x], name) for x, name in norm_inputs if x in conv_outputs and uses.count[x] == 1]
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


class _UseCounter(TorchDispatchMode):
    """Counts the operations that use each tensor (by `id`)."""

    def __init__(self):
        super().__init__()
        self.count: Counter[int] = Counter()
        self.alive: list[Tensor] = []  # keeps tensors alive, so that no other tensor gets the same id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        self.alive += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def _on_meta_device(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, in eval mode and without hooks; no weight is copied."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    probe = copy.deepcopy(model, memo).eval()
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def fold_batch_norms(model: nn.Module) -> None:
    """Fold each BatchNorm of `model` for which it is possible, in place. The keys of the state dict change."""
    model.eval()
    for conv_name, norm_name in conv_norm_pairs(model):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(norm_name, _without_norm(norm))


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """The module that replaces a folded BatchNorm: timm's `BatchNormAct2d` also has dropout and an activation."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
