"""Configuration of HRNetV2 ("Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_segmentation import SegmentationConfig, check_streams

VARIANTS = {
    "w18": {"stream_channels": [18, 36, 72, 144]},
    "w32": {"stream_channels": [32, 64, 128, 256]},
    "w48": {"stream_channels": [48, 96, 192, 384]},
    "w18-small-v1": {
        "stage1_channels": 32,
        "stage1_blocks": 1,
        "stream_channels": [16, 32, 64, 128],
        "num_modules": [1, 1, 1],
        "num_blocks": 2,
    },
    "w18-small-v2": {"stage1_blocks": 2, "stream_channels": [18, 36, 72, 144], "num_modules": [1, 3, 2], "num_blocks": 2},
    "w24-5stream": {"stem_stride": 2, "stream_channels": [24, 48, 96, 192, 384], "num_modules": [1, 1, 1, 1]},
}


@strict
class HRNetV2Config(BackboneConfigMixin, SegmentationConfig):
    r"""
    Configuration of [`HRNetV2Backbone`] and [`HRNetV2ForSemanticSegmentation`]. The defaults are HRNetV2-W48.

    Args:
        stem_channels (`int`, defaults to 64):
            Channels of the two stem convolutions.
        stem_stride (2 or 4, defaults to 4):
            Stride of the finest stream: with 2, only the first stem convolution has stride 2.
        stage1_channels (`int`, defaults to 64):
            Inner channels of the Bottlenecks of stage 1; their output has four times as many.
        stage1_blocks (`int`, defaults to 4):
            Bottlenecks in stage 1.
        stream_channels (`list[int]`, defaults to `[48, 96, 192, 384]`):
            Channels of the streams, finest first.
        num_modules (`list[int]`, defaults to `[1, 4, 3]`):
            High-resolution modules in stages 2, 3, …; each stage adds a stream, so there is one entry fewer than streams.
        num_blocks (`int`, defaults to 4):
            BasicBlocks of each stream in each module.
        upsample_mode (`"bilinear"` or `"nearest"`, defaults to `"bilinear"`):
            Upsampling in the exchange units. Segmentation networks use bilinear. ImageNet classifiers use nearest, which
            reproduces timm's maps exactly.
        align_corners (`bool`, defaults to `False`):
            Setting of the bilinear upsampling inside the network: True on the official branch HRNet-OCR, False on pytorch-v1.1.
        head (`"concat"` or `"ocr"`, defaults to `"concat"`):
            The classifier of all streams, upsampled and concatenated: HRNetV2's, or that of HRNet-OCR (arXiv 1909.11065).
        out_features (`list[str]`, *optional*), out_indices (`list[int]`, *optional*):
            Maps that the backbone returns, from `stage_names`: `"stem"` (after the first convolution, stride 2), and the streams
            of the last stage as `"stage1"`, `"stage2"`, …, finest first. By default the last one, as in all Transformers
            backbones; in the `backbone_config` of a [`RevHRNetConfig`] by default all streams.
        batch_norm_momentum, initializer, zero_init_residual, zero_init_exchange, semantic_loss_ignore_index,
        semantic_loss_class_weights, semantic_loss_ohem_threshold, semantic_loss_ohem_min_kept, semantic_loss_terms,
        semantic_loss_label_smoothing, semantic_loss_boundary_relaxation, semantic_loss_focal_gamma,
        semantic_loss_tversky_alpha, semantic_loss_tversky_beta, auxiliary_loss_weight, ocr_channels, ocr_key_channels,
        confidence_temperature, palette, untinted, training_history:
            See [`SegmentationConfig`].

    Example:

    ```python
    >>> from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation

    >>> config = HRNetV2Config.from_variant("w18", num_labels=11)
    >>> model = HRNetV2ForSemanticSegmentation(config)  # random weights
    ```
    """

    model_type = "hrnetv2"

    stem_channels: int = 64
    stem_stride: Literal[2, 4] = 4
    stage1_channels: int = 64
    stage1_blocks: int = 4
    stream_channels: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    num_modules: list[int] | tuple[int, ...] = (1, 4, 3)
    num_blocks: int = 4
    upsample_mode: Literal["bilinear", "nearest"] = "bilinear"
    align_corners: bool = False
    head: Literal["concat", "ocr"] = "concat"

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.stream_channels) + 1))]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @classmethod
    def known_keywords(cls) -> set[str]:
        return super().known_keywords() | {"out_features", "out_indices", "stage_names"}

    @property
    def num_hidden_layers(self) -> int:
        """Number of streams; each has a map in `hidden_states`."""
        return len(self.stream_channels)

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "HRNetV2Config":
        """The configuration of a named variant (a key of `VARIANTS`); `overrides` are fields of this class."""
        if variant not in VARIANTS:
            raise ValueError(f"Unknown HRNetV2 variant {variant!r}; known are {', '.join(VARIANTS)}")
        return cls(**{**VARIANTS[variant], **overrides})

    def validate_streams(self):
        """`strict` calls it on construction. Checks that each stage adds one stream."""
        check_streams(self)
        if min(self.stem_channels, self.stage1_channels, self.stage1_blocks) < 1:
            raise ValueError("stem_channels, stage1_channels and stage1_blocks must be positive")
