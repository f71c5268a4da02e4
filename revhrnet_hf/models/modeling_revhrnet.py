"""The reverse HRNet on a frozen backbone ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091).

A backbone returns maps at strides 4, 8, 16 and 32. 1×1 convolutions change their channels to those of four parallel streams. R1,
R2 and R3 each end the coarsest stream, so all scales are fused from R1 on. R4 works only on the finest stream.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .auxiliary import auxiliary_head, build_head, segmenter_output
from .backbone_maps import BackboneLayout, create_backbone, cropped, layout_of, pad_to_multiple, streams_strides
from .configuration_hrnetv2 import HRNetV2Config
from .configuration_revhrnet import RevHRNetConfig
from .high_resolution import (
    BasicBlock,
    Bottleneck,
    HighResolutionModule,
    HighResolutionPreTrainedModel,
    RecomputedBlocks,
    check_pixels,
    conv_bn,
)
from .modeling_hrnetv2 import HRNetV2Backbone
from .pyramid import LEARNED, Pyramid
from .trainable import ALL, set_training_mode, trained_names, unused_names

logger = logging.get_logger(__name__)

BOTTLENECK_CHANNELS = 64  # as in HRNet's stage 1, to which R4 corresponds


@dataclass
class RevHRNetModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, channels, height / 4, width / 4)`):
            Output of R4.
        feature_maps (`tuple[torch.Tensor]`):
            Last map of each stream, finest first: strides 4, 8, 16, 32 (the maps in the paper's figure 2).
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states=True`):
            The same maps under the name that Transformers' tools use.
    """

    last_hidden_state: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


def build_backbone(config: PreTrainedConfig, num_streams: int) -> tuple[BackboneMixin, BackboneLayout]:
    """The backbone of `config` with random weights, and the layout of its maps.

    Raises:
        ValueError: the backbone does not return one map for each stream, or the strides of its maps do not fit.
    """
    # Compared by name: if a checkpoint's own code is loaded, HRNetV2Config is a different class, which is not registered.
    is_hrnet = config.model_type == HRNetV2Config.model_type
    backbone = HRNetV2Backbone(config) if is_hrnet else create_backbone(config)
    if len(backbone.channels) != num_streams:
        raise ValueError(
            f"The backbone gives {len(backbone.channels)} maps (out_indices {list(config.out_indices)}), but the network has "
            f"{num_streams} streams: set out_indices of backbone_config, or stream_channels and num_modules, so that they agree"
        )
    layout = BackboneLayout(tuple(backbone.strides)) if is_hrnet else layout_of(config)
    if layout.strides is not None and not layout.is_plain:
        check_strides(layout.strides, is_hrnet)
    return backbone, layout


def check_strides(strides: tuple[int, ...], may_be_finer: bool) -> None:
    """Raises a ValueError unless each stride is twice the one before, and the first is 4 or the last is 32."""
    if any(coarser != 2 * finer for finer, coarser in pairwise(strides)):
        raise ValueError(
            f"The backbone's maps have strides {list(strides)}, but each must be twice the one before: set out_indices of "
            "backbone_config, or use another backbone"
        )
    usual = streams_strides(len(strides))
    if not may_be_finer and strides[0] != 4 and list(strides) != usual:
        raise ValueError(
            f"The backbone's maps have strides {list(strides)}, but {len(strides)} streams need {usual}: set out_indices of "
            "backbone_config, or omit it to get suitable ones"
        )


def check_that_maps_halve(maps: tuple[Tensor, ...]):
    """Raises a ValueError unless each map is half as large as the one before. Odd sizes may be rounded in any way."""
    sizes = [tuple(x.shape[-2:]) for x in maps]
    for finer, coarser in pairwise(sizes):
        if any(abs(2 * small - large) > 2 for small, large in zip(coarser, finer, strict=True)):
            raise ValueError(
                f"The backbone's maps are {sizes} pixels, but each must be half as large as the one before: set out_features of "
                "backbone_config, or use another backbone"
            )


class ReverseStage(nn.ModuleList):
    """A sequence of high-resolution modules. The coarsest stream ends in the last one."""

    def __init__(self, channels: list[int] | tuple[int, ...], num_modules: int, config: RevHRNetConfig):
        last = num_modules - 1
        super().__init__(
            HighResolutionModule(
                channels,
                config.num_blocks,
                num_outputs=len(channels) - 1 if position == last else None,
                momentum=config.batch_norm_momentum,
            )
            for position in range(num_modules)
        )

    def forward(self, *streams: Tensor) -> tuple[Tensor, ...]:
        """The finer streams, then the last map of the coarsest."""
        for module in self:
            streams = module(*streams)
        return streams


class RevHRNetPreTrainedModel(HighResolutionPreTrainedModel):
    config: RevHRNetConfig
    config_class = RevHRNetConfig
    base_model_prefix = "revhrnet"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading replaces every parameter by a new one that requires a gradient.
        model.base_model.freeze()
        return loaded


class RevHRNetModel(RevHRNetPreTrainedModel):
    """Frozen backbone → laterals → R1 … R3 → R4 (with five streams R1 … R4 → R5), without a classifier."""

    def __init__(self, config: RevHRNetConfig):
        super().__init__(config)
        channels, momentum = config.stream_channels, config.batch_norm_momentum
        self.backbone, self.layout = build_backbone(config.backbone_config, num_streams=len(channels))
        given_channels, strides = self.backbone.channels, self.layout.strides
        if self.layout.is_plain:
            patch, strides = strides[0], streams_strides(len(channels))
            self.pyramid = Pyramid(config.pyramid, given_channels, patch, strides, momentum)
            given_channels = self.pyramid.out_channels
        elif config.pyramid == LEARNED:
            raise ValueError(
                "pyramid='learned' is for plain vision transformers, but this backbone has maps at several strides: omit it"
            )
        self.coarsest_stride = 2 ** (len(channels) + 1) if strides is None else strides[-1]
        self.laterals = nn.ModuleList(
            nn.Sequential(*conv_bn(given, width, 1, momentum=momentum), nn.ReLU(inplace=True))
            for given, width in zip(given_channels, channels, strict=True)
        )
        self.stages = nn.ModuleList(
            ReverseStage(channels[: len(channels) - ended], num_modules, config)
            for ended, num_modules in enumerate(config.num_modules)
        )
        if config.final_block == "bottleneck":
            self.final_stage = RecomputedBlocks(Bottleneck, channels[0], BOTTLENECK_CHANNELS, config.num_blocks, momentum)
            self.out_channels = BOTTLENECK_CHANNELS * Bottleneck.expansion
        else:
            self.final_stage = RecomputedBlocks(BasicBlock, channels[0], channels[0], config.num_blocks, momentum)
            self.out_channels = channels[0]
        self.has_adapters = False  # set by training with LoRA, to which the frozen backbone's gradients are no surprise
        self.post_init()
        self.freeze()

    def freeze(self):
        """Freeze the part of the backbone that `config.trainable_backbone` does not select; with `"all"` what has no effect."""
        choice = self.config.trainable_backbone
        if choice == ALL:
            for name in unused_names(self.config.backbone_config):
                self.backbone.get_parameter(name).requires_grad_(False)
            return
        trained = trained_names(self.backbone, self.config.backbone_config, choice)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)
        self.backbone.eval()

    def train(self, mode: bool = True):
        super().train(mode)
        if mode and self.config.trainable_backbone != ALL:
            set_training_mode(self.backbone, self.config.trainable_backbone)
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        backbone_maps: tuple[Tensor, ...] | None = None,
        image_size: tuple[int, int] | None = None,
        **kwargs,
    ) -> RevHRNetModelOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised with the backbone's mean and standard deviation; any size that
                the backbone accepts.
            output_hidden_states: also return the feature maps as `hidden_states`.
            backbone_maps, image_size: instead of `pixel_values`, the maps that `run_backbone` has made of them, and their height
                and width. The backbone is not called.

        Raises:
            ValueError: the image is too small for the backbone, or the backbone's maps do not halve in size; both or neither of
                `pixel_values` and `backbone_maps` are given.
        """
        if (pixel_values is None) == (backbone_maps is None) or (backbone_maps is None) != (image_size is None):
            raise ValueError("Give pixel_values; or, instead of them, backbone_maps (from run_backbone) with image_size")
        if backbone_maps is None:
            maps = self.backbone_maps(pixel_values)
        else:
            maps = self._maps_of_streams(backbone_maps, image_size, self.laterals[0][0].weight.dtype)
        streams = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        ended = []
        for stage in self.stages:
            *streams, last_map = stage(*streams)
            ended.insert(0, last_map)
        finest = self.final_stage(streams[0])
        feature_maps = (finest, *ended)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return RevHRNetModelOutput(
            last_hidden_state=finest,
            feature_maps=feature_maps,
            hidden_states=feature_maps if output_hidden_states else None,
        )

    def backbone_maps(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The maps from which the streams start, (batch, channels, ⌈height / stride⌉, ⌈width / stride⌉), finest first."""
        maps = self.run_backbone(pixel_values)
        return self._maps_of_streams(maps, tuple(pixel_values.shape[-2:]), pixel_values.dtype)

    def run_backbone(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The backbone's own maps, finest first, which `forward` takes in place of the pixels.

        They are as the backbone computes them: in its precision, before a pyramid, without what belongs to padding.

        Returns:
            (batch, channels, ⌈height / stride⌉, ⌈width / stride⌉) each; those of a plain vision transformer all have the stride
            of its patches.
        """
        check_pixels(pixel_values)
        size, least = tuple(pixel_values.shape[-2:]), self.coarsest_stride
        self.layout.check_size(size)
        padded = pad_to_multiple(pixel_values, self.layout.multiple)
        try:
            with self._frozen(pixel_values) if self.config.freeze_backbone else nullcontext():
                maps = self.backbone(padded, return_dict=True).feature_maps
        except RuntimeError as error:
            if min(size) >= least:
                raise
            raise ValueError(f"The backbone cannot take images of {size} pixels: {least}×{least} always works") from error
        if self.layout.channels_last:
            maps = tuple(x.permute(0, 3, 1, 2) for x in maps)
        if self.layout.strides is None:
            check_that_maps_halve(maps)
        if self.layout.is_plain or self.layout.multiple == 1:
            return maps
        return cropped(maps, self.layout.strides, size)

    def _maps_of_streams(self, maps: tuple[Tensor, ...], size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The backbone's own maps of an image of `size` at the streams' strides; in `dtype`, unless autocast chooses another."""
        device = maps[0].device.type
        if self.config.frozen_backbone_dtype and not (is_autocast_available(device) and torch.is_autocast_enabled(device)):
            maps = tuple(x.to(dtype) for x in maps)
        return self.pyramid(maps, size) if self.layout.is_plain else maps

    @contextmanager
    def _frozen(self, pixel_values: Tensor):
        """Context of a frozen backbone: the precision of the configuration, and no graph unless a gradient is needed."""
        device, dtype = pixel_values.device.type, self.config.frozen_backbone_dtype
        is_chosen = dtype is not None and is_autocast_available(device)  # the meta device has no autocast
        precision = torch.autocast(device, getattr(torch, dtype)) if is_chosen else nullcontext()
        with torch.set_grad_enabled(self._needs_backbone_graph(pixel_values)), precision:
            yield

    def _needs_backbone_graph(self, pixel_values: Tensor) -> bool:
        """Whether a gradient flows through the frozen backbone: to the pixels, or to parameters such as LoRA's."""
        if not torch.is_grad_enabled():
            return False
        trained = sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)
        if trained and not self.has_adapters and not torch.compiler.is_compiling():
            logger.warning_once(
                f"{trained:,} parameters in the frozen backbone require a gradient (LoRA?): they are trained, and the backbone's "
                "activations are kept for the backward pass. Its modules stay in eval mode. To freeze them, call "
                "model.base_model.freeze()"
            )
        return trained > 0 or pixel_values.requires_grad


class RevHRNetForSemanticSegmentation(RevHRNetPreTrainedModel):
    """RevHRNet with a pixel classifier. The logits have the stride of the finest stream: 4, or 2 with five streams."""

    def __init__(self, config: RevHRNetConfig):
        super().__init__(config)
        self.revhrnet = RevHRNetModel(config)
        channels = self.revhrnet.out_channels
        if config.head != "single":
            channels += sum(config.stream_channels[1:])
        self.head = build_head(config, channels)
        self.auxiliary_head = auxiliary_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        pixel_share: Tensor | float | None = None,
        backbone_maps: tuple[Tensor, ...] | None = None,
        image_size: tuple[int, int] | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised with the backbone's mean and standard deviation; any size.
            labels: int64 (batch, height, width) class ids, or `config.semantic_loss_ignore_index`; any size,
                at which the loss is computed.
            output_hidden_states: also return the last map of each stream, finest first.
            pixel_share: factor of the loss's means over pixels, by which the mean over several batches counts all pixels alike.
            backbone_maps, image_size: instead of `pixel_values`, as for the model without a classifier.

        Returns:
            `loss` (a scalar, with `labels`), `logits` (batch, num_labels, height / 4, width / 4), `hidden_states`; in training,
            `loss_terms` if the loss has several.
        """
        outputs = self.revhrnet(
            pixel_values,
            output_hidden_states=output_hidden_states,
            backbone_maps=backbone_maps,
            image_size=image_size,
            return_dict=True,
        )
        maps = outputs.feature_maps[:1] if self.config.head == "single" else outputs.feature_maps
        return segmenter_output(self, self.head(*maps), outputs.feature_maps, labels, outputs.hidden_states, pixel_share)


# The image-segmentation pipeline looks for the model's name here, and otherwise reports it as unsupported. This is not in the
# package's __init__.py, because that file is missing when a checkpoint's own code is loaded.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[RevHRNetConfig.model_type] = RevHRNetForSemanticSegmentation.__name__
