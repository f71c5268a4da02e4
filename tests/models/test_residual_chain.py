"""Residual blocks that compute again what is cheap, against the same blocks run operation by operation by autograd."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from revhrnet_hf import RevHRNetForSemanticSegmentation
from revhrnet_hf.models.high_resolution import BasicBlock, Blocks, Bottleneck
from revhrnet_hf.report.model_table import bytes_saved_by

BLOCKS = {"basic": (BasicBlock, 8, 8), "bottleneck": (Bottleneck, 16, 4), "projection": (BasicBlock, 6, 8)}
MAP = (2, 9, 11)  # batch, height, width


def outcome(blocks, x, passes=1, autocast=False):
    """Outputs, gradients, running statistics and counters, after some passes before one backward pass."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = [blocks(x + number) for number in range(passes)]
    sum(y.float().sin().sum() for y in outputs).backward()
    return [*outputs, x.grad, *(p.grad for p in blocks.parameters()), *blocks.buffers()]


@pytest.mark.parametrize("recompute", ["relus", "norms"])
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, False), (torch.float64, False), (torch.bfloat16, True)])
def test_bit_for_bit_as_plain(recompute, kind, memory_format, dtype, autocast):
    torch.manual_seed(0)
    block, given, channels = BLOCKS[kind]
    plain = Blocks(block, given, channels, 3).train().to(memory_format=memory_format)
    if not autocast:
        plain.to(dtype)
    plain.recompute = "nothing"
    ours = copy.deepcopy(plain)
    ours.recompute = recompute
    x = torch.randn(MAP[0], given, *MAP[1:], dtype=dtype).to(memory_format=memory_format)
    once = zip(outcome(ours, x, autocast=autocast), outcome(plain, x, autocast=autocast), strict=True)
    for number, (a, b) in enumerate(once):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), number
    if not autocast:  # else a weight's two gradients are summed in bfloat16 by one and in float32 by the other
        for a, b in zip(outcome(ours, x, passes=2), outcome(plain, x, passes=2), strict=True):
            torch.testing.assert_close(a, b)


def test_kept_maps_on_paper():
    """n blocks of two convolutions: the input, then 4, 3 or 2 maps a block (and the last block's output)."""
    size, n = 4 * MAP[0] * 8 * MAP[1] * MAP[2], 3
    for recompute, maps in (("nothing", 1 + 4 * n), ("relus", 1 + 3 * n), ("norms", 1 + 2 * n + 1)):
        blocks = Blocks(BasicBlock, 8, 8, n).train()
        blocks.recompute = recompute
        x = torch.randn(MAP[0], 8, *MAP[1:], requires_grad=True)
        statistics = 4 * 8 * 2 * 2 * n
        assert bytes_saved_by(blocks, lambda blocks=blocks, x=x: blocks(x)) == maps * size + statistics


@pytest.mark.parametrize("recompute", ["relus", "norms"])
def test_derivatives_by_finite_differences(recompute):
    torch.manual_seed(0)
    blocks = Blocks(BasicBlock, 2, 2, 2).double().train()
    blocks.recompute = recompute
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, *blocks.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: blocks(x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: blocks(x), inputs)


def test_frozen_parameters_and_input():
    """Whatever needs no gradient gets none, and the rest is as plain."""
    torch.manual_seed(0)
    plain = Blocks(BasicBlock, 4, 4, 2).train()
    plain[0].conv1.weight.requires_grad_(False)
    plain[1].bn2.bias.requires_grad_(False)
    plain.recompute = "nothing"
    ours = copy.deepcopy(plain)
    ours.recompute = "norms"
    x = torch.randn(2, 4, 5, 6)
    for blocks in (plain, ours):
        blocks(x).square().sum().backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_nobody_goes_unheard():
    """Hooks, layers of another kind and BatchNorms in eval mode are run as they are."""
    calls = []
    blocks = Blocks(BasicBlock, 4, 4, 2).train()
    x = torch.randn(2, 4, 5, 6)
    assert type(blocks(x).grad_fn).__name__ == "ResidualChainBackward"
    handle = blocks[1].bn1.register_forward_hook(lambda *_: calls.append(1))
    blocks(x)
    assert calls == [1]
    handle.remove()
    blocks[0].bn2.eval()
    assert type(blocks(x).grad_fn).__name__ != "ResidualChainBackward"
    blocks.train()
    blocks[0].conv1 = nn.utils.parametrizations.weight_norm(blocks[0].conv1)
    assert type(blocks(x).grad_fn).__name__ != "ResidualChainBackward"
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(Blocks(BasicBlock, 4, 4, 1)).train()
    assert type(synchronised[0].bn1) is nn.SyncBatchNorm
    assert synchronised.state_dict().keys() == Blocks(BasicBlock, 4, 4, 1).state_dict().keys()
    assert type(synchronised(x).grad_fn).__name__ != "ResidualChainBackward"  # without processes it is a BatchNorm


class TestSetting:
    def test_of_the_model(self, tiny_config):
        model = RevHRNetForSemanticSegmentation(tiny_config()).train()
        kept = {}
        for recompute in ("nothing", "relus", "norms", "modules"):
            model.activation_checkpointing_enable({"recompute": recompute})
            x = torch.randn(2, 3, 64, 64)
            kept[recompute] = bytes_saved_by(model, lambda x=x: model(x).logits)
        assert list(kept.values()) == sorted(kept.values(), reverse=True)
        assert len(set(kept.values())) >= 3  # one block a branch has no output to compute again
        model.activation_checkpointing_disable()
        assert bytes_saved_by(model, lambda: model(x).logits) == kept["relus"]

    def test_errors(self, tiny_config):
        model = RevHRNetForSemanticSegmentation(tiny_config())
        with pytest.raises(ValueError, match=r"'nothing', 'relus', 'norms' or 'modules', got 'all'"):
            model.activation_checkpointing_enable({"recompute": "all"})
        with pytest.raises(ValueError, match=r"preserve_rng_state.* recompute='norms' does not use"):
            model.activation_checkpointing_enable({"recompute": "norms", "preserve_rng_state": False})


@pytest.mark.slow
def test_in_two_processes(tmp_path):
    """DistributedDataParallel's gradients are the mean of what each process has alone, and plain ones."""
    program = """
import copy, os, sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from revhrnet_hf.models.high_resolution import BasicBlock, Blocks
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
blocks = Blocks(BasicBlock, 4, 4, 3).train()
xs = torch.randn(2, 2, 4, 6, 7)
expected = []
for x in xs:
    alone = copy.deepcopy(blocks)
    alone.recompute = "nothing"
    alone(x).square().sum().backward()
    expected.append([p.grad for p in alone.parameters()])
for recompute in ("relus", "norms"):
    model = copy.deepcopy(blocks)
    model.recompute = recompute
    parallel = DistributedDataParallel(model)
    parallel(xs[rank]).square().sum().backward()
    for p, a, b in zip(model.parameters(), *expected):
        torch.testing.assert_close(p.grad, (a + b) / 2)
"""
    run = [
        subprocess.Popen([sys.executable, "-c", program, str(rank), str(tmp_path / "store")], env=os.environ) for rank in (0, 1)
    ]
    assert [process.wait(120) for process in run] == [0, 0]
