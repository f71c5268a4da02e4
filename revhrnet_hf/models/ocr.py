"""The head of HRNet-OCR ("Segmentation Transformer: Object-Contextual Representations", arXiv 1909.11065)."""

import torch
from torch import Tensor, nn

from .high_resolution import SegmentationHead
from .multi_scale import concatenate
from .recompute import RecomputedModule

REGIONS = "regions"
REGION_LOSS_WEIGHT = 0.4  # of the soft object regions' own loss, as on the official branch
DROPOUT = 0.05  # likewise


def layer(in_channels: int, out_channels: int, momentum: float, kernel_size: int = 1, bias: bool = False) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias),
        nn.BatchNorm2d(out_channels, momentum=momentum),
        nn.ReLU(inplace=True),
    ]


class ObjectAttention(nn.Module):
    """Each pixel's mixture of the objects' representations (the paper's equations 3 to 5)."""

    def __init__(self, channels: int, key_channels: int, momentum: float):
        super().__init__()
        self.query = nn.Sequential(*layer(channels, key_channels, momentum), *layer(key_channels, key_channels, momentum))
        self.key = nn.Sequential(*layer(channels, key_channels, momentum), *layer(key_channels, key_channels, momentum))
        self.value = nn.Sequential(*layer(channels, key_channels, momentum))
        self.out = nn.Sequential(*layer(key_channels, channels, momentum))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Pixels (batch, channels, h, w) and objects (batch, channels, num_labels, 1) → (batch, channels, h, w)."""
        query = self.query(pixels)
        key, value = self.key(objects).flatten(2), self.value(objects).flatten(2)
        similarity = query.flatten(2).transpose(1, 2) @ key * query.shape[1] ** -0.5
        mixture = value @ similarity.softmax(dim=-1).transpose(1, 2)
        return self.out(mixture.reshape(query.shape))


class OcrHead(RecomputedModule):
    """Soft object regions, one a class; the mean representation of each; and pixels classified with the objects they resemble.

    Maps (batch, channels_i, h_i, w_i), finest first, `channels` channels in total → logits (batch, num_labels, h_0, w_0), and
    those of the soft object regions, of the same size, whose loss the head needs in training.

    Args:
        mid_channels: channels of the representations of pixels and objects.
        key_channels: channels in which pixels and objects are compared.
    """

    def __init__(
        self,
        channels: int,
        num_labels: int,
        mid_channels: int,
        key_channels: int,
        momentum: float = 0.01,
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.regions = SegmentationHead(channels, num_labels, momentum, align_corners)
        self.pixels = nn.Sequential(*layer(channels, mid_channels, momentum, kernel_size=3, bias=True))
        self.attention = ObjectAttention(mid_channels, key_channels, momentum)
        self.fuse = nn.Sequential(*layer(2 * mid_channels, mid_channels, momentum), nn.Dropout2d(DROPOUT))
        self.classifier = nn.Conv2d(mid_channels, num_labels, 1)

    def compute(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        regions = self.regions.compute(*maps)  # this module is the unit of recomputation
        pixels = self.pixels(concatenate(maps, self.align_corners))
        share = regions.flatten(2).softmax(dim=2)  # of each pixel in each region
        objects = (pixels.flatten(2) @ share.transpose(1, 2)).unsqueeze(3)
        fused = self.fuse(torch.cat([self.attention(pixels, objects), pixels], dim=1))
        return self.classifier(fused), regions
