"""A convolution over maps of several sizes against one of the maps upsampled and concatenated."""

import copy

import pytest
import torch
import torch.nn.functional as F

from revhrnet_hf.models.multi_scale import ConvOverScales

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
