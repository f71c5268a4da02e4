"""Residual blocks that keep what their convolutions give for the backward pass, and compute what is cheap again.

A plain residual block of two convolutions keeps four maps: each BatchNorm its input, and each convolution its input, the
rectified map before it. The latter follow from the former by a scale, a shift and a ReLU. `ResidualChain` runs a row of blocks
as one step of autograd that keeps three maps a block, or two where the blocks' outputs are computed again as well.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELUS, NORMS = "relus", "norms"


@dataclass(frozen=True)
class Layer:
    """A convolution and its BatchNorm, in training."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.conv.weight, self.norm.weight, self.norm.bias

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(x, weight.to(x.dtype), None, conv.stride, conv.padding, conv.dilation, conv.groups)

    def convolve_backward(self, grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
        conv = self.conv
        settings = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (*needed, False))
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight.to(x.dtype), None, *settings)
        return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype)

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor, update: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised map, mean, 1 / standard deviation; the same bits without updating the running statistics."""
        running = (self.norm.running_mean, self.norm.running_var) if update else (None, None)
        return torch.native_batch_norm(x, weight, bias, *running, True, self.norm.momentum, self.norm.eps)


class ResidualChain(torch.autograd.Function):
    """x, blocks, whether the blocks' outputs are kept, parameters of all layers → the last block's output."""

    @staticmethod
    def forward(ctx, x: Tensor, blocks: list[list[Layer]], keep_outputs: bool, *parameters: Tensor) -> Tensor:
        kept, outputs, remaining = [], [x], iter(parameters)
        for layers in blocks:
            mapped = x
            for position, layer in enumerate(layers):
                weight, gamma, beta = next(remaining), next(remaining), next(remaining)
                convolved = layer.convolve(mapped, weight)
                mapped, mean, deviation = layer.normalize(convolved, gamma, beta, update=True)
                kept += [convolved, mean, deviation]
                if position < len(layers) - 1:
                    mapped.relu_()
            x = mapped.add_(x).relu_()
            outputs.append(x)
        ctx.blocks, ctx.keep_outputs = blocks, keep_outputs
        ctx.save_for_backward(*parameters, *kept, *(outputs if keep_outputs else (outputs[0], outputs[-1])))
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        count = 3 * sum(map(len, ctx.blocks))
        parameters, kept, outputs = saved[:count], saved[count : 2 * count], saved[2 * count :]
        x_needed, *needed = ctx.needs_input_grad[:1] + ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # create_graph=True: of operations that autograd knows
            return _differentiable_backward(ctx.blocks, outputs[0], parameters, grad, (x_needed, *needed))
        if not ctx.keep_outputs:
            outputs[1:1] = _outputs_again(ctx.blocks, outputs[0], parameters, kept)
        del saved
        grads: list[Tensor | None] = []
        for index in reversed(range(len(ctx.blocks))):
            grad = torch.ops.aten.threshold_backward(grad, outputs.pop(), 0)
            of_layer = grad
            for position, layer in reversed(list(enumerate(ctx.blocks[index]))):
                (weight, gamma, _), (convolved, mean, deviation) = _popped(parameters), _popped(kept)
                of_layer, *of_norm = torch.ops.aten.native_batch_norm_backward(
                    of_layer, convolved, gamma, None, None, mean, deviation, True, layer.norm.eps, (True, True, True)
                )
                before = outputs[-1]
                if position > 0:
                    earlier = ctx.blocks[index][position - 1]
                    before = earlier.normalize(kept[-3], *parameters[-2:])[0].relu_()
                is_first = index == position == 0
                mask = (x_needed or not is_first, needed[len(parameters)])
                of_layer, of_weight = layer.convolve_backward(of_layer, before, weight, mask)
                grads[:0] = [of_weight, *of_norm]
                if position > 0:
                    of_layer = torch.ops.aten.threshold_backward(of_layer, before, 0)
            grad = grad if of_layer is None else of_layer.add_(grad)
        return (grad if x_needed else None, None, None, *grads)


def _popped(tensors: list[Tensor]) -> list[Tensor]:
    """The last three, which leave the list."""
    last = tensors[-3:]
    del tensors[-3:]
    return last


def _outputs_again(blocks: list[list[Layer]], x: Tensor, parameters: list[Tensor], kept: list[Tensor]) -> list[Tensor]:
    """The outputs of all blocks but the last."""
    outputs, end = [], 0
    for layers in blocks[:-1]:
        end += 3 * len(layers)
        x = layers[-1].normalize(kept[end - 3], *parameters[end - 2 : end])[0].add_(x).relu_()
        outputs.append(x)
    return outputs


def _differentiable_backward(blocks, x: Tensor, parameters: list[Tensor], grad: Tensor, needed: tuple[bool, ...]):
    """The same gradients, with a graph of their own."""
    remaining, mapped = iter(parameters), x
    for layers in blocks:
        shortcut = mapped
        for position, layer in enumerate(layers):
            weight, gamma, beta = next(remaining), next(remaining), next(remaining)
            mapped = layer.normalize(layer.convolve(mapped, weight), gamma, beta)[0]
            if position < len(layers) - 1:
                mapped = F.relu(mapped)
        mapped = F.relu(mapped + shortcut)
    inputs = [tensor for tensor, is_needed in zip((x, *parameters), needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(mapped, inputs, grad, create_graph=True))
    of_x, *of_parameters = [next(found) if is_needed else None for is_needed in needed]
    return (of_x, None, None, *of_parameters)


def run_chain(x: Tensor, blocks: list[list[Layer]], keep_outputs: bool) -> Tensor:
    """`blocks` on x (batch, channels, h, w), each with the identity as its shortcut."""
    layers = [layer for block in blocks for layer in block]
    for layer in layers:
        layer.norm.num_batches_tracked.add_(1)
    with torch.autocast(x.device.type, enabled=False) if _is_autocast(x) else nullcontext():  # `Layer` casts the weights
        return ResidualChain.apply(x, blocks, keep_outputs, *(tensor for layer in layers for tensor in layer.parameters))


def can_chain(x: Tensor, blocks: list[list[Layer]], owner: nn.Module) -> bool:
    """Whether the blocks of `owner` may run as a `ResidualChain`: in training, on plain layers, with nobody listening."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if _is_autocast(x) and x.dtype != torch.get_autocast_dtype(x.device.type):
        return False
    if any(map(_is_heard, owner.modules())):
        return False
    # By their very types: SyncBatchNorm, parametrised or adapted layers compute something else.
    return all(
        type(layer.conv) is nn.Conv2d
        and type(layer.norm) is nn.BatchNorm2d
        and layer.norm.training
        and layer.norm.track_running_stats
        and layer.norm.momentum is not None
        for layers in blocks
        for layer in layers
    )


def _is_autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not for the meta device


def _is_heard(module: nn.Module) -> bool:
    """Whether a hook or a replaced `forward` would go unheard if the module were not called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in module.__dict__ or any(hooks)
