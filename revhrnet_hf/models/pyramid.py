"""A pyramid of maps from a plain vision transformer, in which the maps of all layers have the stride of the patches.

Each stream starts from a different layer, the finest from the first. The maps get the strides of the streams by resizing, without
parameters (`"resize"`), or by trained convolutions (`"learned"`), as in ViTDet (arXiv 2203.16527) and DPT (arXiv 2103.13413).
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .backbone_maps import cropped_map
from .recompute import RecomputedModule

RESIZE, LEARNED = "resize", "learned"


class Pyramid(RecomputedModule):
    """Maps (batch, channels[i], height / patch, width / patch) → (batch, out_channels[i], ⌈height / strides[i]⌉, …).

    Args:
        kind: `"resize"` or `"learned"`.
        channels: channels of the transformer's maps.
        patch: stride of the transformer's maps, in pixels.
        strides: strides of the pyramid's maps, finest first.
        momentum: momentum of the BatchNorms of a learned pyramid.
    """

    def __init__(self, kind: str, channels: list[int], patch: int, strides: list[int], momentum: float = 0.01):
        super().__init__()
        self.patch, self.strides = patch, list(strides)
        if kind == RESIZE:
            self.steps, self.given_strides, self.out_channels = None, [patch] * len(strides), list(channels)
            return
        # The convolutions change strides by powers of 2. If the patches have 14 pixels, `forward` resizes to the exact strides.
        doublings = [round(math.log2(patch / stride)) for stride in strides]
        self.steps = nn.ModuleList(_steps(width, times, momentum) for width, times in zip(channels, doublings, strict=True))
        self.given_strides = [patch / 2**times for times in doublings]
        self.out_channels = [width >> max(times, 0) for width, times in zip(channels, doublings, strict=True)]

    def forward(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """`size` is the (height, width) of the image before it was padded to whole patches."""
        if self.steps is not None:
            maps = super().forward(*maps)
        return tuple(
            resampled(x, given, stride, size) for x, given, stride in zip(maps, self.given_strides, self.strides, strict=True)
        )

    def compute(self, *maps: Tensor) -> tuple[Tensor, ...]:
        return tuple(step(x) for step, x in zip(self.steps, maps, strict=True))


def _steps(channels: int, doublings: int, momentum: float) -> nn.Sequential:
    """Convolutions that double the size of a map `doublings` times and halve its channels each time.

    If `doublings` is negative, they halve the size instead.
    """
    layers: list[nn.Module] = []
    for _ in range(doublings):
        layers += [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2, bias=False)]
        layers += [nn.BatchNorm2d(channels // 2, momentum=momentum), nn.ReLU(inplace=True)]
        channels //= 2
    for _ in range(-doublings):
        layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels, momentum=momentum), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def resampled(x: Tensor, stride: float, wanted: int, size: tuple[int, int]) -> Tensor:
    """A map resized from `stride` to `wanted`, bilinearly at the exact positions, for an image of `size` (height, width).

    The map starts at the top left of the image and covers all of it. If the last pixel of the result reaches beyond the map, the
    map's border is repeated.
    """
    if stride != wanted:
        beyond = _cells_beyond(stride, wanted)
        if beyond:
            x = F.pad(x, (0, beyond, 0, beyond), mode="replicate")
        x = F.interpolate(x, scale_factor=stride / wanted, mode="bilinear", align_corners=False)
    return cropped_map(x, wanted, size)


def _cells_beyond(stride: float, wanted: int) -> int:
    """The number of cells (of `stride` pixels) by which the last pixel of the result may reach beyond the map."""
    common = math.gcd(int(stride), wanted) if float(stride).is_integer() else 0
    return math.ceil((wanted - common) / stride)
