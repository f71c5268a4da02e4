"""A convolution over maps of several sizes against one of the maps upsampled and concatenated."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetForSemanticSegmentation
from revhrnet_hf.hub.model_table import storage_of
from revhrnet_hf.models.multi_scale import ConvOverScales, upsample

from ..fake_cuda import fake_cuda

SHAPES = [(3, 13, 18), (5, 7, 9), (2, 4, 5), (4, 2, 3)]


@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_the_convolution_of_the_concatenated_map(align_corners):
    torch.manual_seed(0)
    conv = ConvOverScales(14, 6, 1).double()
    conv.align_corners = align_corners
    plain = copy.deepcopy(conv)
    maps = [torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
    copies = [x.detach().clone().requires_grad_() for x in maps]
    upsampled = [F.interpolate(x, size=(13, 18), mode="bilinear", align_corners=align_corners) for x in copies]

    result = conv(maps)
    expected = F.conv2d(torch.cat(upsampled, dim=1), plain.weight, plain.bias)
    torch.testing.assert_close(result, expected)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient)
    for ours, theirs in zip([*maps, *conv.parameters()], [*copies, *plain.parameters()], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_one_map_alone():
    conv = ConvOverScales(14, 6, 1)
    x = torch.randn(1, 14, 3, 4)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias))
    assert torch.equal(conv([x]), conv(x))


def test_keeps_no_concatenated_map():
    conv = ConvOverScales(14, 6, 1)
    maps = [torch.randn(2, *shape, requires_grad=True) for shape in SHAPES]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        conv(maps)
    weights = {x.data_ptr() for x in conv.weight.split([3, 5, 2, 4], dim=1)}
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in maps} | weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_upsampling_keeps_the_dtype_under_cudas_autocast(dtype, mode):
    """CUDA's autocast interpolates in float32; the second line shows that it does so here."""
    with fake_cuda(), torch.autocast("cuda", torch.bfloat16):
        x = torch.randn(1, 2, 3, 4, dtype=dtype)
        assert dtype != torch.bfloat16 or mode == "nearest" or F.interpolate(x, (6, 8), mode=mode).dtype == torch.float32
        assert upsample(x, (6, 8), mode=mode).dtype == dtype


def kept_bytes(model, pixel_values, autocast):
    """Bytes by dtype that autograd keeps after a forward pass on a GPU, without parameters and buffers; the logits' dtype."""
    weights = {storage_of(x) for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(x):
        kept[storage_of(x)] = x
        return x

    precision = torch.autocast("cuda", torch.bfloat16, enabled=autocast)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), precision:
        dtype = model(pixel_values).logits.dtype
    by_dtype = Counter()
    for storage, x in kept.items():
        if storage not in weights:
            by_dtype[x.dtype] += x.untyped_storage().nbytes()
    return by_dtype, dtype


@pytest.mark.parametrize("recompute", ["none", "norms", "modules"])
@pytest.mark.parametrize("network", ["revhrnet", "concat", "hrnetv2"])
def test_bf16_halves_what_a_gpu_keeps(tiny_config, network, recompute):
    """No stream becomes float32 where it receives a coarser one: in float32 there are at most the norms' statistics."""
    with fake_cuda():
        if network == "hrnetv2":
            config = HRNetV2Config(stream_channels=[8, 12, 16, 20], num_modules=[1, 2, 1], num_blocks=1, num_labels=5)
            model = HRNetV2ForSemanticSegmentation(config).train()
        else:
            config = tiny_config(head="concat" if network == "concat" else "single")
            model = RevHRNetForSemanticSegmentation(config).train()
        model.activation_checkpointing_enable({"recompute": recompute})
        pixel_values = torch.randn(2, 3, 128, 192)
        plain, _ = kept_bytes(model, pixel_values, autocast=False)
        half, dtype = kept_bytes(model, pixel_values, autocast=True)
    assert dtype == torch.bfloat16
    assert half[torch.float32] < 0.01 * half.total()
    # With `none`, autograd keeps one map more where a norm's input has been cast, so a little more than half stays.
    assert half.total() < (0.65 if recompute == "none" else 0.53) * plain.total()
