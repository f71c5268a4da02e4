"""Operations on maps of several resolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample(x: Tensor, size: tuple[int, int] | torch.Size, align_corners: bool = False, mode: str = "bilinear") -> Tensor:
    """Resize (batch, channels, height, width) to `size` (height, width). A map that has this size is returned unchanged.

    The result has the dtype of `x`. Autocast on CUDA interpolates in float32 (on CPUs it does not), and a sum with a float32 map
    is float32: each stream that receives a coarser one, and all maps after it, would take twice the memory.
    """
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=align_corners if mode == "bilinear" else None).to(x.dtype)


def concatenate(maps: list[Tensor] | tuple[Tensor, ...], align_corners: bool = False) -> Tensor:
    """Maps (batch, channels_i, h_i, w_i), finest first → (batch, Σ channels_i, h_0, w_0)."""
    return torch.cat([upsample(x, maps[0].shape[-2:], align_corners) for x in maps], dim=1)


class ConvOverScales(nn.Conv2d):
    """A 1×1 convolution of maps that are upsampled to the finest size and concatenated, but computed at each map's own size.

    A 1×1 convolution and an upsampling can be exchanged, because the interpolation weights of a pixel add up to 1. So the coarser
    maps are convolved while they are small, and no concatenated map is computed or kept for the backward pass. The parameters are
    the same as for the concatenated map. The constructor is that of `nn.Conv2d`, because libraries such as peft call it.
    """

    align_corners = False

    def forward(self, maps: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Maps (batch, channels_i, h_i, w_i), finest first, or a single map → (batch, out_channels, h_0, w_0)."""
        if isinstance(maps, Tensor):
            return super().forward(maps)
        if len(maps) == 1:
            return super().forward(maps[0])
        start = maps[0].shape[1]
        finest = total = F.conv2d(maps[0], self.weight[:, :start], self.bias)
        for x in maps[1:]:
            weight = self.weight[:, start : start + x.shape[1]]
            start += x.shape[1]
            x = upsample(F.conv2d(x, weight), finest.shape[-2:], self.align_corners)
            # Not in place for the first map: the result of its convolution may be kept for recomputation.
            total = total + x if total is finest else total.add_(x)
        return total
