"""Configuration of the reverse HRNet ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

DEFAULT_BACKBONE = "resnet50.fb_ssl_yfcc100m_ft_in1k"  # the paper's "semi-supervised" ResNet-50

VARIANTS = {
    "w18": {"stream_channels": [18, 36, 72, 144]},
    "w32": {"stream_channels": [32, 64, 128, 256]},
    "w48": {"stream_channels": [48, 96, 192, 384]},
}


@strict
class RevHRNetConfig(PreTrainedConfig):
    r"""
    Configuration of [`RevHRNetModel`] and [`RevHRNetForSemanticSegmentation`]. The defaults are the paper's network: a frozen
    semi-supervised ResNet-50 and a reverse HRNet-W48.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Of any timm or Transformers backbone whose maps halve in size one after another, as many as there are streams. By
            default `TimmBackboneConfig` for `resnet50.fb_ssl_yfcc100m_ft_in1k`, strides 4, 8, 16 and 32.
        freeze_backbone (`bool`, defaults to `True`):
            The backbone is always in eval mode, gets no gradient, and its forward builds no graph.
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
        batch_norm_momentum (`float`, defaults to 0.01):
            Of the trained BatchNorms. HRNet's 0.01 suits long training; below some thousand steps 0.1 is better.
        initializer (`"hrnet"` or `"he"`, defaults to `"hrnet"`):
            Of the trained convolutions: HRNet's N(0, 0.001), or N(0, √(2 / fan-in)) (He et al., arXiv 1502.01852), whose
            larger weights want a higher learning rate.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count.
        semantic_loss_class_weights (`list[float]`, *optional*):
            One factor a class for the cross-entropy.
        semantic_loss_ohem_threshold (`float`, *optional*):
            With a value (HRNet: 0.9), only pixels whose true class has a lower probability count …
        semantic_loss_ohem_min_kept (`int`, defaults to 131072):
            … but at least this many pixels a batch.
        palette (`list[list[int]]`, *optional*):
            Colour [red, green, blue] of each class, for pictures of the label map.

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
    stream_channels: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    num_modules: list[int] | tuple[int, ...] = (3, 4, 1)
    num_blocks: int = 4
    final_block: Literal["basic", "bottleneck"] = "basic"
    head: Literal["single", "concat"] = "single"
    batch_norm_momentum: float = 0.01
    initializer: Literal["hrnet", "he"] = "hrnet"
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float] | None = None
    semantic_loss_ohem_threshold: float | None = None
    semantic_loss_ohem_min_kept: int = 131_072
    palette: list[list[int]] | None = None

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = TimmBackboneConfig(backbone=DEFAULT_BACKBONE, out_indices=[1, 2, 3, 4])
        elif isinstance(self.backbone_config, dict):
            settings = dict(self.backbone_config)
            self.backbone_config = CONFIG_MAPPING[settings.pop("model_type")](**settings)
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "RevHRNetConfig":
        """The configuration of a named variant (`"w18"`, `"w32"`, `"w48"`); `overrides` are fields of this class."""
        if variant not in VARIANTS:
            raise ValueError(f"Unknown RevHRNet variant {variant!r}; known are {', '.join(VARIANTS)}")
        return cls(**{**VARIANTS[variant], **overrides})

    def validate_streams(self):
        """Run by `strict` on construction: one stage ends one stream."""
        if len(self.stream_channels) < 2:
            raise ValueError(f"stream_channels needs at least two streams, got {list(self.stream_channels)}")
        if len(self.num_modules) != len(self.stream_channels) - 1:
            raise ValueError(
                f"num_modules must have one entry fewer than stream_channels, got {list(self.num_modules)} for "
                f"{len(self.stream_channels)} streams"
            )
        smallest = min(*self.stream_channels, *self.num_modules, self.num_blocks)
        if smallest < 1:
            raise ValueError("stream_channels, num_modules and num_blocks must be positive")

    def validate_loss(self):
        """Run by `strict` on construction: the loss's settings fit the classes."""
        weights = self.semantic_loss_class_weights
        if weights is not None and len(weights) != self.num_labels:
            raise ValueError(
                f"semantic_loss_class_weights must have one value a class: {len(weights)} for {self.num_labels} classes"
            )
