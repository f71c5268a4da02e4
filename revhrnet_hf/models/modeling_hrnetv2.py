"""HRNetV2 as a backbone and as a segmentation network.

("Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919.)

The network begins with a stem and a stage of Bottlenecks at one resolution. Every further stage adds a stream with half the
resolution of the coarsest one. The streams of the last stage are upsampled, concatenated and classified pixel by pixel. Module
names are the same as in the official checkpoints, except that `last_layer` is `head` here.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .auxiliary import auxiliary_head, build_head, segmenter_output
from .configuration_hrnetv2 import HRNetV2Config
from .high_resolution import (
    Bottleneck,
    HighResolutionModule,
    HighResolutionPreTrainedModel,
    RecomputedBlocks,
    check_pixels,
    conv_bn,
)

STEM_STRIDE = 2  # stride of the first convolution, whose activation is the map "stem"


def conv_bn_relu(in_channels: int, out_channels: int, stride: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, out_channels, 3, stride=stride, momentum=momentum), nn.ReLU(inplace=True))


class Transition(nn.ModuleList):
    """The step between two stages: it adds a stream with half the resolution of the coarsest one.

    A stream with the same number of channels in both stages is passed on unchanged.
    """

    def __init__(self, before: list[int], after: list[int], momentum: float):
        existing = [
            nn.Identity() if given == channels else conv_bn_relu(given, channels, 1, momentum)
            for given, channels in zip(before, after, strict=False)
        ]
        super().__init__([*existing, nn.Sequential(conv_bn_relu(before[-1], after[-1], 2, momentum))])

    def forward(self, streams: tuple[Tensor, ...]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self, (*streams, streams[-1]), strict=True)]


class HighResolutionStage(nn.ModuleList):
    """A sequence of high-resolution modules; all streams continue."""

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
    """Stem → stage 1 → stages 2, 3, … with 2, 3, … streams. Returns the maps that `config.out_features` names."""

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
        """Strides of the maps that the backbone returns."""
        strides = [STEM_STRIDE, *(self.config.stem_stride * 2**i for i in range(len(self.config.stream_channels)))]
        return [strides[self.stage_names.index(name)] for name in self.out_features]

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised; any size.
            output_hidden_states: also return all maps, of the stem and of each stream, as `hidden_states`.

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
        check_pixels(pixel_values)
        stem = F.relu(self.bn1(self.conv1(pixel_values)), inplace=True)
        x = F.relu(self.bn2(self.conv2(stem)), inplace=True)
        streams = (self.layer1(x),)
        for stage in range(2, len(self.config.stream_channels) + 1):
            streams = getattr(self, f"transition{stage - 1}")(streams)
            streams = getattr(self, f"stage{stage}")(streams)
        return stem, *streams


class HRNetV2ForSemanticSegmentation(HRNetV2PreTrainedModel):
    """HRNetV2 with a pixel classifier. The logits have the stride of the finest stream: 4, or 2 with five streams."""

    def __init__(self, config: HRNetV2Config):
        super().__init__(config)
        self.backbone = HRNetV2Backbone(config)
        self.head = build_head(config, sum(config.stream_channels), config.align_corners)
        self.auxiliary_head = auxiliary_head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        pixel_share: Tensor | float | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised; any size.
            labels: int64 (batch, height, width) class ids, or `config.semantic_loss_ignore_index`; any size,
                at which the loss is computed.
            output_hidden_states: also return the streams of the last stage, finest first.
            pixel_share: factor of the loss's means over pixels, by which the mean over several batches counts all pixels alike.

        Returns:
            `loss` (a scalar, with `labels`), `logits` (batch, num_labels, height / 4, width / 4), `hidden_states`; in training,
            `loss_terms` if the loss has several.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        _, *streams = self.backbone.all_maps(pixel_values)
        # The head always upsamples bilinearly: `upsample_mode` is a setting of the exchange units only.
        return segmenter_output(
            self, self.head(*streams), streams, labels, tuple(streams) if output_hidden_states else None, pixel_share
        )


# The image-segmentation pipeline looks for the model's name here, and otherwise reports it as unsupported. This is not in the
# package's __init__.py, because that file is missing when a checkpoint's own code is loaded.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[HRNetV2Config.model_type] = HRNetV2ForSemanticSegmentation.__name__
