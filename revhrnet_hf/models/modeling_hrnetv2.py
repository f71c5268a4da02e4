"""HRNetV2, backbone and segmentation network.

("Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919.)

A stem and a stage of Bottlenecks at one resolution; every further stage adds a stream of half the resolution of the last one.
The last stage's streams, upsampled and concatenated, are classified pixel by pixel. Module names are those of the official
checkpoints, but for `last_layer`, which is `head` here.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .configuration_hrnetv2 import HRNetV2Config
from .high_resolution import (
    Bottleneck,
    HighResolutionModule,
    HighResolutionPreTrainedModel,
    RecomputedBlocks,
    SegmentationHead,
    conv_bn,
)
from .losses import configured_loss

STEM_STRIDE = 2  # of the first convolution, whose activation is the map "stem"


def conv_bn_relu(in_channels: int, out_channels: int, stride: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, out_channels, 3, stride=stride, momentum=momentum), nn.ReLU(inplace=True))


class Transition(nn.ModuleList):
    """From the streams of one stage to those of the next: one more, of half the last one's resolution.

    A stream that keeps its number of channels passes unchanged.
    """

    def __init__(self, before: list[int], after: list[int], momentum: float):
        standing = [
            nn.Identity() if given == channels else conv_bn_relu(given, channels, 1, momentum)
            for given, channels in zip(before, after, strict=False)
        ]
        super().__init__([*standing, nn.Sequential(conv_bn_relu(before[-1], after[-1], 2, momentum))])

    def forward(self, streams: tuple[Tensor, ...]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self, (*streams, streams[-1]), strict=True)]


class HighResolutionStage(nn.ModuleList):
    """High-resolution modules in a row that keep all streams."""

    def __init__(self, channels: list[int], num_modules: int, config: HRNetV2Config):
        super().__init__(
            HighResolutionModule(
                channels,
                config.num_blocks,
                momentum=config.batch_norm_momentum,
                align_corners=config.align_corners,
                upsample_mode=config.upsample_mode,
            )
            for _ in range(num_modules)
        )

    def forward(self, streams: list[Tensor]) -> tuple[Tensor, ...]:
        for module in self:
            streams = module(*streams)
        return streams


class HRNetV2PreTrainedModel(HighResolutionPreTrainedModel):
    config: HRNetV2Config
    config_class = HRNetV2Config
    base_model_prefix = "backbone"


class HRNetV2Backbone(BackboneMixin, HRNetV2PreTrainedModel):
    """Stem → stage 1 → stages 2, 3, … with 2, 3, … streams; gives the maps that `config.out_features` names."""

    has_attentions = False

    def __init__(self, config: HRNetV2Config):
        super().__init__(config)
        channels, momentum = list(config.stream_channels), config.batch_norm_momentum
        self.num_features = [config.stem_channels, *channels]
        self.conv1, self.bn1 = conv_bn(3, config.stem_channels, 3, stride=STEM_STRIDE, momentum=momentum)
        second_stride = config.stem_stride // STEM_STRIDE
        self.conv2, self.bn2 = conv_bn(config.stem_channels, config.stem_channels, 3, stride=second_stride, momentum=momentum)
        self.layer1 = RecomputedBlocks(Bottleneck, config.stem_channels, config.stage1_channels, config.stage1_blocks, momentum)
        before = [config.stage1_channels * Bottleneck.expansion]
        for stage, num_modules in enumerate(config.num_modules, start=2):
            after = channels[:stage]
            setattr(self, f"transition{stage - 1}", Transition(before, after, momentum))
            setattr(self, f"stage{stage}", HighResolutionStage(after, num_modules, config))
            before = after
        self.post_init()

    @property
    def strides(self) -> list[int]:
        """Of the maps that the backbone gives."""
        strides = [STEM_STRIDE, *(self.config.stem_stride * 2**i for i in range(len(self.config.stream_channels)))]
        return [strides[self.stage_names.index(name)] for name in self.out_features]

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised; any size.
            output_hidden_states: also give all maps, the stem's and each stream's, as `hidden_states`.

        Returns:
            `feature_maps`, each (batch, channels, height / stride, width / stride), rounded up.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        maps = self.all_maps(pixel_values)
        return BackboneOutput(
            feature_maps=tuple(x for name, x in zip(self.stage_names, maps, strict=True) if name in self.out_features),
            hidden_states=maps if output_hidden_states else None,
        )

    def all_maps(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The stem's map, then the last stage's streams, finest first."""
        stem = F.relu(self.bn1(self.conv1(pixel_values)), inplace=True)
        x = F.relu(self.bn2(self.conv2(stem)), inplace=True)
        streams = (self.layer1(x),)
        for stage in range(2, len(self.config.stream_channels) + 1):
            streams = getattr(self, f"transition{stage - 1}")(streams)
            streams = getattr(self, f"stage{stage}")(streams)
        return stem, *streams


class HRNetV2ForSemanticSegmentation(HRNetV2PreTrainedModel):
    """HRNetV2 with a classifier of pixels; logits at the finest stream's stride (4, or 2 for five streams)."""

    def __init__(self, config: HRNetV2Config):
        super().__init__(config)
        self.backbone = HRNetV2Backbone(config)
        self.head = SegmentationHead(
            sum(config.stream_channels), config.num_labels, config.batch_norm_momentum, config.align_corners
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised; any size.
            labels: int64 (batch, height, width) class ids, or `config.semantic_loss_ignore_index`. Any size: the
                loss is taken there.
            output_hidden_states: also give the last stage's streams, finest first.

        Returns:
            `loss` (a scalar, with `labels`), `logits` (batch, num_labels, height / 4, width / 4), `hidden_states`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        _, *streams = self.backbone.all_maps(pixel_values)
        # The head's upsampling is bilinear also where the exchange units' is not: it is HRNetV2's own part.
        logits = self.head(*streams)
        return SemanticSegmenterOutput(
            loss=configured_loss(logits, labels, self.config),
            logits=logits,
            hidden_states=tuple(streams) if output_hidden_states else None,
        )


# The image-segmentation pipeline looks for the model's name here, and calls it unsupported otherwise. Not in the package's
# __init__.py, for where a checkpoint's own code is loaded there is none.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[HRNetV2Config.model_type] = HRNetV2ForSemanticSegmentation.__name__
