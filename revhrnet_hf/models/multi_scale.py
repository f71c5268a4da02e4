"""What brings maps of several resolutions together."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample(x: Tensor, size: tuple[int, int] | torch.Size, align_corners: bool = False, mode: str = "bilinear") -> Tensor:
    """Resize of (batch, channels, height, width) to `size` (height, width); a map of that size passes unchanged."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=align_corners if mode == "bilinear" else None)


def concatenate(maps: list[Tensor] | tuple[Tensor, ...], align_corners: bool = False) -> Tensor:
    """Maps (batch, channels_i, h_i, w_i), finest first → (batch, Σ channels_i, h_0, w_0)."""
    return torch.cat([upsample(x, maps[0].shape[-2:], align_corners) for x in maps], dim=1)


class ConvOverScales(nn.Conv2d):
    """A 1×1 convolution of maps concatenated at the finest one's size, computed at each map's own size.

    A 1×1 convolution and an upsampling may change places (the weights of an upsampled pixel add up to 1), so that the coarser
    maps are convolved where they are small, and no concatenated map exists or is kept for the backward pass. The parameters are
    those of the convolution of the concatenated map. It is constructed as any `nn.Conv2d`, for libraries such as peft, which make
    others of its type.
    """

    align_corners = False

    def forward(self, maps: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Maps (batch, channels_i, h_i, w_i), finest first, or one alone → (batch, out_channels, h_0, w_0)."""
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
            # Not into the convolution's result, which may be kept for recomputation.
            total = total + x if total is finest else total.add_(x)
        return total
