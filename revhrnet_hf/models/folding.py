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

PROBE_SIZE = 128  # height and width of the picture without values


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
    unfold(probe)
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def fold_for_good(model: nn.Module) -> None:
    """Every BatchNorm of `model` that can be folded leaves it; the state dict is another one afterwards."""
    model.eval()
    unfold(model)
    for conv_name, norm_name in conv_norm_pairs(model):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(norm_name, _what_remains(norm))


def _what_remains(norm: nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()


class Folding:
    """Whether the folded convolutions of a model are used; and them, as copies and pickles are made without."""

    def __init__(self):
        self.is_on = True
        self.made: dict[nn.Conv2d, tuple[tuple, nn.Conv2d]] = {}  # with the state of the weights that each was made from

    def __reduce__(self):
        return Folding, ()

    def applies_to(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
        if not self.is_on or torch.is_grad_enabled() or norm.training or torch.compiler.is_compiling():
            return False  # compilers fold by themselves
        return not conv.weight.is_inference()  # whose changes cannot be seen

    def folded(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> nn.Conv2d:
        tensors = (*conv.parameters(), *norm.parameters(), norm.running_mean, norm.running_var)
        state = (dtype, norm.eps, *((x.device, x.data_ptr(), x._version) for x in tensors))
        if conv not in self.made or self.made[conv][0] != state:
            plain = copy.copy(conv)
            plain.__dict__ = {name: value for name, value in conv.__dict__.items() if name != "forward"}
            fused = fuse_conv_bn_eval(plain, norm).to(dtype, memory_format=torch.channels_last).requires_grad_(False)
            self.made[conv] = (state, fused)
        return self.made[conv][1]


def fold_while_frozen(model: nn.Module) -> Folding:
    """In eval mode and without gradients, `model` computes with folded convolutions; its modules and state dict stay as they are.

    A folded convolution is made again whenever its weights, or its BatchNorm's, have changed. The result turns it on and off.
    """
    folding = Folding()
    for conv_name, norm_name in conv_norm_pairs(model):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.forward = partial(_convolve, conv, norm, folding)
        norm.forward = partial(_pass, conv, norm, folding)
    return folding


def unfold(model: nn.Module) -> None:
    """Takes back `fold_while_frozen`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), partial) and module.forward.func in (_convolve, _pass):
            del module.forward


def _convolve(conv: nn.Conv2d, norm: nn.BatchNorm2d, folding: Folding, x: Tensor) -> Tensor:
    if not folding.applies_to(conv, norm):
        return type(conv).forward(conv, x)
    device = x.device.type
    is_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return folding.folded(conv, norm, torch.get_autocast_dtype(device) if is_autocast else conv.weight.dtype)(x)


def _pass(conv: nn.Conv2d, norm: nn.BatchNorm2d, folding: Folding, x: Tensor) -> Tensor:
    if not folding.applies_to(conv, norm):
        return type(norm).forward(norm, x)
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x
