"""Upsampling in bands against torch's own interpolation of the whole, and with how much memory."""

import pytest
import torch
import torch.nn.functional as F

from revhrnet_hf.models import upsampling
from revhrnet_hf.models.upsampling import upsample_rows, upsampled_argmax

SHAPES = [  # logits, target, whole canvas
    ((19, 32, 64), (128, 256), None),
    ((7, 33, 47), (129, 187), None),
    ((5, 40, 30), (23, 17), None),
    ((3, 1, 1), (50, 60), None),
    ((6, 20, 20), (20, 20), None),
    ((66, 63, 86), (250, 343), None),
    ((9, 24, 17), (37, 53), (48, 64)),
    ((9, 24, 17), (37, 53), (47.25, 64.6)),
]


def plain(logits, canvas):
    if all(float(edge).is_integer() for edge in canvas):
        return F.interpolate(logits[None], size=[int(edge) for edge in canvas], mode="bilinear")[0]
    factors = [edge / own * (1 + 1e-12) for edge, own in zip(canvas, logits.shape[1:], strict=True)]
    return F.interpolate(logits[None], scale_factor=factors, mode="bilinear")[0]


@pytest.fixture(params=[1, 700, 8000, 2**21], ids=["row by row", "bands", "some classes at once", "at once"])
def band_pixels(request, monkeypatch):
    monkeypatch.setattr(upsampling, "BAND_PIXELS", request.param)


@pytest.mark.parametrize(("shape", "size", "canvas"), SHAPES)
def test_is_interpolation_and_argmax(shape, size, canvas, band_pixels):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = plain(logits, canvas or size)[:, : size[0], : size[1]]
    label_map = upsampled_argmax(logits, size, canvas)
    assert label_map.dtype == torch.int64
    # Where the two differ, the classes tie: what was chosen is as good but for rounding.
    chosen = whole.gather(0, label_map[None])[0]
    torch.testing.assert_close(chosen, whole.amax(0), rtol=0, atol=1e-6)
    assert (label_map != whole.argmax(0)).float().mean() < 1e-5
    rows = slice(size[0] // 3, size[0] // 2 + 1)
    torch.testing.assert_close(upsample_rows(logits, rows, size[1], canvas or size), whole[:, rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size", "canvas", "origin"),
    [
        ((5, 16, 24), (50, 75), (64, 96), (7, 10)),
        ((5, 16, 24), (50, 75), (64, 96), (14, 21)),
        ((3, 40, 30), (21, 15), (23, 17), (2, 1)),
        ((4, 12, 12), (12, 10), (12, 12), (0, 2)),
    ],
)
def test_padding_above_and_at_the_left_is_cut_off(shape, size, canvas, origin, band_pixels):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    (height, width), (top, left) = size, origin
    whole = plain(logits, canvas)[:, top : top + height, left : left + width]
    label_map = upsampled_argmax(logits, size, canvas, origin=origin)
    torch.testing.assert_close(whole.gather(0, label_map[None])[0], whole.amax(0), rtol=0, atol=1e-6)
    rows = slice(size[0] // 3, size[0] // 2 + 1)
    found = upsample_rows(logits, rows, width, canvas, origin=origin)
    torch.testing.assert_close(found, whole[:, rows], rtol=0, atol=2e-6)


def test_an_origin_between_two_pixels():
    """Half a pixel further is, of a ramp, half a pixel's rise more."""
    ramp = torch.arange(32.0).expand(1, 32, 32)
    at, further = (upsample_rows(ramp, slice(0, 20), 20, (64, 64), origin=origin) for origin in ((4, 4), (4, 4.5)))
    torch.testing.assert_close(further, at + 0.25)
    down = ramp.transpose(1, 2)
    at, further = (upsample_rows(down, slice(0, 20), 20, (64, 64), origin=origin) for origin in ((4, 4), (4.5, 4)))
    torch.testing.assert_close(further, at + 0.25)


def test_of_equal_classes_the_first_wins_as_in_argmax(band_pixels):
    logits = torch.randint(0, 2, (5, 12, 14), generator=torch.Generator().manual_seed(2)).float()
    # At the logits' own size and at factors of 2, thirds of numbers that are whole come out exactly.
    for size in ((12, 14), (24, 28), (6, 7)):
        assert torch.equal(upsampled_argmax(logits, size), plain(logits, size).argmax(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype):
    logits = torch.randn(11, 30, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = plain(logits.to(torch.promote_types(dtype, torch.float32)), (119, 161)).argmax(0)
    label_map = upsampled_argmax(logits, (119, 161), dtype=torch.uint8)
    assert label_map.dtype == torch.uint8 and torch.equal(label_map.long(), expected)


def test_more_classes_than_a_byte_holds():
    logits = torch.zeros(300, 2, 2)
    logits[299] = 1
    assert (upsampled_argmax(logits, (5, 5)) == 299).all()


def test_negative_infinity_stays_where_it_is():
    """A class that is masked out in one place must not spoil others."""
    logits = torch.zeros(3, 8, 8)
    logits[1] = 1
    logits[1, :, :2] = -torch.inf
    assert torch.equal(upsampled_argmax(logits, (32, 32))[:, 16:], torch.ones(32, 16, dtype=torch.int64))
