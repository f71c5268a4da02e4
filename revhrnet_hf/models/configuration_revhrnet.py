"""Configuration of the reverse HRNet ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091)."""

import copy
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_hrnetv2 import HRNetV2Config
from .configuration_segmentation import SegmentationConfig, check_streams

DEFAULT_BACKBONE = "resnet50.fb_ssl_yfcc100m_ft_in1k"  # the paper's "semi-supervised" ResNet-50

VARIANTS = {
    "w18": {"stream_channels": [18, 36, 72, 144]},
    "w32": {"stream_channels": [32, 64, 128, 256]},
    "w48": {"stream_channels": [48, 96, 192, 384]},
    # The stem's activation, at stride 2, is the fifth map.
    "w24-5stream": {
        "stream_channels": [24, 48, 96, 192, 384],
        "num_modules": [1, 1, 1, 1],
        "backbone_config": {"model_type": "timm_backbone", "backbone": DEFAULT_BACKBONE, "out_indices": [0, 1, 2, 3, 4]},
    },
}


@strict
class RevHRNetConfig(SegmentationConfig):
    r"""
    Configuration of [`RevHRNetModel`] and [`RevHRNetForSemanticSegmentation`]. The defaults are the paper's network: a frozen
    semi-supervised ResNet-50 and a reverse HRNet-W48.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Of any timm or Transformers backbone whose maps halve in size one after another, as many as there are streams; an
            [`HRNetV2Config`] makes the full encoder-decoder. By default `TimmBackboneConfig` for
            `resnet50.fb_ssl_yfcc100m_ft_in1k`, strides 4, 8, 16 and 32.
        freeze_backbone (`bool`, defaults to `True`):
            The backbone is always in eval mode, gets no gradient, and its forward builds no graph.
        frozen_backbone_dtype (`"bfloat16"` or `"float16"`, *optional*):
            A frozen backbone computes in this precision, under `torch.autocast`; its weights stay as they are. By default in that
            of the rest.
        stream_channels (`list[int]`, defaults to `[48, 96, 192, 384]`):
            Channels of the streams, finest first.
        num_modules (`list[int]`, defaults to `[3, 4, 1]`):
            High-resolution modules in R1, R2, …; each stage ends its coarsest stream, so there is one fewer than streams.
        num_blocks (`int`, defaults to 4):
            BasicBlocks a stream in each module, and blocks in the last stage, which has one stream.
        final_block (`"basic"` or `"bottleneck"`, defaults to `"basic"`):
            Block of the last stage: BasicBlocks of the finest stream's width, or Bottlenecks 64 → 256 (HRNet's stage 1 mirrored).
        head (`"single"` or `"concat"`, defaults to `"single"`):
            Classify the finest stream, or all streams' last maps, upsampled and concatenated as in HRNetV2.
        batch_norm_momentum, initializer, zero_init_residual, semantic_loss_ignore_index, semantic_loss_class_weights,
        semantic_loss_ohem_threshold, semantic_loss_ohem_min_kept, palette, training_history:
            See [`SegmentationConfig`].

    Example:

    ```python
    >>> from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation

    >>> config = RevHRNetConfig.from_variant("w18", num_labels=11)
    >>> model = RevHRNetForSemanticSegmentation(config)  # random weights
    ```
    """

    model_type = "revhrnet"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (Transformers reads it from the class)

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone: bool = True
    frozen_backbone_dtype: Literal["bfloat16", "float16"] | None = None
    stream_channels: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    num_modules: list[int] | tuple[int, ...] = (3, 4, 1)
    num_blocks: int = 4
    final_block: Literal["basic", "bottleneck"] = "basic"
    head: Literal["single", "concat"] = "single"

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = TimmBackboneConfig(backbone=DEFAULT_BACKBONE, out_indices=[1, 2, 3, 4])
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_of(self.backbone_config)
        if self.backbone_config.model_type == HRNetV2Config.model_type:
            self.backbone_config = with_all_streams(self.backbone_config)
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "RevHRNetConfig":
        """The configuration of a named variant (a key of `VARIANTS`); `overrides` are fields of this class."""
        if variant not in VARIANTS:
            raise ValueError(f"Unknown RevHRNet variant {variant!r}; known are {', '.join(VARIANTS)}")
        return cls(**{**VARIANTS[variant], **overrides})

    def validate_streams(self):
        """Run by `strict` on construction: one stage ends one stream."""
        check_streams(self)


def backbone_config_of(settings: dict) -> PreTrainedConfig:
    """The configuration that `to_dict()` of a backbone's configuration describes."""
    settings = dict(settings)
    model_type = settings.pop("model_type")
    # A checkpoint whose code is loaded from its folder has nobody who would have registered HRNetV2.
    if model_type == HRNetV2Config.model_type:
        return HRNetV2Config(**settings)
    return CONFIG_MAPPING[model_type](**settings)


def with_all_streams(config: HRNetV2Config) -> HRNetV2Config:
    """The same network giving all streams, where nothing but the default, the last stream alone, was asked for."""
    if config.out_features != config.stage_names[-1:]:
        return config
    config = copy.deepcopy(config)
    config.out_features = config.stage_names[1:]
    return config
