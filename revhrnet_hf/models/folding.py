"""BatchNorms of fixed statistics folded into the convolutions before them: the same maps, to rounding.

Which BatchNorm follows which convolution is read off a forward pass without values, so it works for any backbone.
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

from .multi_scale import ConvOverScales

PROBE_SIZE = 128  # height and width of the image without values


def conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution and the BatchNorm that alone takes what it gives, in `model(pixel_values)`."""
    convs = {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, Conv2dSame, ConvOverScales)}
    kinds = (nn.BatchNorm2d, BatchNormAct2d)
    norms = {name: m for name, m in model.named_modules() if type(m) in kinds and m.track_running_stats}
    if not convs or not norms:
        return []
    probe = _without_values(model)
    made: dict[int, str] = {}
    taken: list[tuple[int, str]] = []
    uses = _Uses()

    def note_made(name, _module, _inputs, y):
        made[id(y)] = name
        uses.count[id(y)] = 0  # what the convolution did with it itself

    for name in convs:
        probe.get_submodule(name).register_forward_hook(partial(note_made, name))
    for name in norms:
        probe.get_submodule(name).register_forward_pre_hook(lambda _m, x, name=name: taken.append((id(x[0]), name)))
    with torch.no_grad(), uses:
        probe(torch.empty(1, 3, PROBE_SIZE, PROBE_SIZE, device="meta"))
    calls = Counter([*made.values(), *(name for _, name in taken)])
    pairs = [(made[x], name) for x, name in taken if x in made and uses.count[x] == 1]
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


class _Uses(TorchDispatchMode):
    """Counts how many operations take each tensor (by `id`)."""

    def __init__(self):
        super().__init__()
        self.count: Counter[int] = Counter()
        self.alive: list[Tensor] = []  # so that no other tensor gets its id

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        self.alive += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        return result


def _without_values(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the meta device, without anybody's hooks; no weight is copied."""
    memo = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    probe = copy.deepcopy(model, memo).eval()
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def fold_batch_norms(model: nn.Module) -> None:
    """Every BatchNorm of `model` that can be folded leaves it; the state dict is another one afterwards."""
    model.eval()
    for conv_name, norm_name in conv_norm_pairs(model):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(norm_name, _what_remains(norm))


def _what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
