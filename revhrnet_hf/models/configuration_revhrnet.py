"""Configuration of the reverse HRNet ("Early Fusion of Features for Semantic Segmentation", arXiv 2402.06091)."""

import copy
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .backbone import is_folder, named_backbone_config
from .backbone_maps import with_chosen_maps
from .configuration_hrnetv2 import HRNetV2Config
from .configuration_segmentation import SegmentationConfig, check_streams
from .keywords import check_keywords, did_you_mean

DEFAULT_BACKBONE = "resnet50.fb_ssl_yfcc100m_ft_in1k"  # the paper's "semi-supervised" ResNet-50
NONE, ALL = "none", "all"  # values of trainable_backbone
UNSET_OUT_INDICES = [-1]  # default of a TimmBackboneConfig: only the last map, with which no network here can work

VARIANTS = {
    "w18": {"stream_channels": [18, 36, 72, 144]},
    "w32": {"stream_channels": [32, 64, 128, 256]},
    "w48": {"stream_channels": [48, 96, 192, 384]},
    # The fifth map is the activation of the backbone's stem, at stride 2.
    "w24-5stream": {"stream_channels": [24, 48, 96, 192, 384], "num_modules": [1, 1, 1, 1]},
}


@strict
class RevHRNetConfig(SegmentationConfig):
    r"""
    Configuration of [`RevHRNetModel`] and [`RevHRNetForSemanticSegmentation`]. The defaults are the paper's network: a frozen
    semi-supervised ResNet-50 and a reverse HRNet-W48.

    Args:
        backbone (`str`, *optional*):
            Name of a timm model, such as `"resnet18"` or `"vit_small_patch14_dinov2"`; or, if it contains a slash, the Hub name
            or folder of a Transformers checkpoint that can be used as a backbone, such as
            `"facebook/dinov3-convnext-tiny-pretrain-lvd1689m"` (`timm/…` is a timm model). It is short for a `backbone_config`
            that selects the maps at strides 4, 8, 16 and 32 (for five streams also 2), or the last layer of each quarter of a
            plain vision transformer. `RevHRNetImageProcessor.for_backbone(config)` makes the matching image processor.
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any timm or Transformers backbone. It must return one map for each stream, and each map must be half
            as large as the one before. With an [`HRNetV2Config`] the network is the full encoder-decoder. A dictionary needs
            `model_type`, or `backbone` for a timm model. Without `out_indices`, the maps are selected as for `backbone`. The
            default is the backbone `"resnet50.fb_ssl_yfcc100m_ft_in1k"`, whose weights must not be used commercially.
        freeze_backbone (`bool`, defaults to `True`):
            Whether the backbone is always in eval mode, gets no gradient, and its forward pass builds no graph. If
            `trainable_backbone` is not given, True means `"none"` and False means `"all"`. Otherwise `freeze_backbone` is set to
            whether `trainable_backbone` is `"none"`.
        trainable_backbone (`"none"`, `"last_stage"`, `"norms"` or `"all"`, *optional*):
            The part of the backbone that is trained. `"last_stage"` is the part on which only the coarsest map depends (the last
            quarter of a plain vision transformer). `"norms"` are the weights and biases of normalisation layers; their running
            statistics do not change. The rest is frozen: eval mode, no gradient.
        frozen_backbone_dtype (`"bfloat16"` or `"float16"`, *optional*):
            Precision in which a frozen backbone computes, by `torch.autocast`; its weights do not change. By default that of the
            rest of the network.
        backbone_license (`str`, *optional*):
            Licence of the backbone's pretrained weights, written by `from_pretrained_backbone`.
        pyramid (`"resize"` or `"learned"`, defaults to `"resize"`):
            How the maps of a plain vision transformer, which all have the stride of its patches, get the strides of the streams:
            by resizing, without parameters, or by trained (transposed) convolutions. Each stream starts from a different layer.
        stream_channels (`list[int]`, defaults to `[48, 96, 192, 384]`):
            Channels of the streams, finest first.
        num_modules (`list[int]`, defaults to `[3, 4, 1]`):
            High-resolution modules in R1, R2, …; each of them ends the coarsest stream, so there is one entry fewer than streams.
        num_blocks (`int`, defaults to 4):
            BasicBlocks of each stream in each module, and blocks of the last stage (R4), which has one stream.
        final_block (`"basic"` or `"bottleneck"`, defaults to `"basic"`):
            Block of the last stage (R4): BasicBlocks with the channels of the finest stream, or Bottlenecks
            64 → 256 as in HRNet's stage 1.
        head (`"single"`, `"concat"` or `"ocr"`, defaults to `"single"`):
            Input of the classifier: the finest stream, or the last maps of all streams, upsampled and concatenated as in HRNetV2;
            with `"ocr"` the classifier is that of HRNet-OCR (arXiv 1909.11065).
        batch_norm_momentum, initializer, zero_init_residual, zero_init_exchange, semantic_loss_ignore_index,
        semantic_loss_class_weights, semantic_loss_ohem_threshold, semantic_loss_ohem_min_kept, semantic_loss_terms,
        semantic_loss_label_smoothing, semantic_loss_boundary_relaxation, semantic_loss_focal_gamma,
        semantic_loss_tversky_alpha, semantic_loss_tversky_beta, auxiliary_loss_weight, ocr_channels, ocr_key_channels,
        confidence_temperature, palette, untinted, training_history:
            See [`SegmentationConfig`].

    Example:

    ```python
    >>> from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation

    >>> config = RevHRNetConfig.from_variant("w18", num_labels=11)
    >>> model = RevHRNetForSemanticSegmentation(config)  # random weights

    >>> config = RevHRNetConfig.from_variant("w18", backbone="tf_efficientnet_lite0", num_labels=11)
    ```
    """

    model_type = "revhrnet"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (Transformers reads it from the class)

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone: bool = True
    trainable_backbone: Literal["none", "last_stage", "norms", "all"] | None = None
    frozen_backbone_dtype: Literal["bfloat16", "float16"] | None = None
    backbone_license: str | None = None
    pyramid: Literal["resize", "learned"] = "resize"
    stream_channels: list[int] | tuple[int, ...] = (48, 96, 192, 384)
    num_modules: list[int] | tuple[int, ...] = (3, 4, 1)
    num_blocks: int = 4
    final_block: Literal["basic", "bottleneck"] = "basic"
    head: Literal["single", "concat", "ocr"] = "single"

    def __post_init__(self, **kwargs):
        self.backbone_config = self._backbone_config(kwargs.pop("backbone", None))
        if self.trainable_backbone is None:
            self.trainable_backbone = NONE if self.freeze_backbone else ALL
        elif self.trainable_backbone == NONE and not self.freeze_backbone:
            raise ValueError("freeze_backbone=False and trainable_backbone='none' contradict each other: give one of the two")
        else:
            self.freeze_backbone = self.trainable_backbone == NONE
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any):
        is_change = "trainable_backbone" in self.__dict__  # False in the constructor, which compares the two settings itself
        super().__setattr__(name, value)
        if not is_change or self.trainable_backbone is None:
            return
        if name == "trainable_backbone":
            super().__setattr__("freeze_backbone", value == NONE)
        elif name == "freeze_backbone" and value is not (self.trainable_backbone == NONE):
            super().__setattr__("trainable_backbone", NONE if value else ALL)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        backbone = output.get("backbone_config")
        if isinstance(backbone, dict) and is_folder(backbone.get("_name_or_path")):
            backbone["_name_or_path"] = ""  # a path on this machine only
        return output

    def _backbone_config(self, backbone: str | None) -> PreTrainedConfig:
        """The configuration of the requested backbone. If no maps were requested, one map for each stream is selected."""
        if backbone is not None and self.backbone_config is not None:
            raise ValueError(f"backbone={backbone!r} and a backbone_config are given: give one of the two")
        config = self.backbone_config
        if config is None:
            config = named_backbone_config(DEFAULT_BACKBONE if backbone is None else backbone)
        if isinstance(config, dict):
            config = backbone_config_of(config)
        if config.model_type == HRNetV2Config.model_type:
            return with_all_streams(config)
        if has_default_maps(config):
            return with_chosen_maps(config, num_streams=len(self.stream_channels))
        return config

    @classmethod
    def known_keywords(cls) -> set[str]:
        return super().known_keywords() | {"backbone"}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if "backbone" in kwargs:
            raise TypeError(
                "The backbone of a checkpoint cannot be changed. For a new network on another backbone: "
                f"{cls.__name__}.from_variant(…, backbone={kwargs['backbone']!r})"
            )
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> "RevHRNetConfig":
        """The configuration of a named variant (a key of `VARIANTS`); `overrides` are fields of this class."""
        if variant not in VARIANTS:
            raise ValueError(f"Unknown RevHRNet variant {variant!r}; known are {', '.join(VARIANTS)}")
        return cls(**{**VARIANTS[variant], **overrides})

    def validate_streams(self):
        """`strict` calls it on construction. Checks that R1, R2, … end one stream each."""
        check_streams(self)


def backbone_config_of(settings: dict) -> PreTrainedConfig:
    """The configuration of a backbone from the dictionary of `to_dict()`, or from `{"backbone": name}` for a timm model.

    Raises:
        ValueError: `model_type` is missing or unknown, or a timm model has no name.
    """
    settings = dict(settings)
    if "backbone" in settings and "model_type" not in settings:  # written by hand: an unknown keyword is a mistake
        settings["model_type"] = TimmBackboneConfig.model_type
        known = {field.name for field in fields(TimmBackboneConfig)} | {"model_type", "out_indices"}
        check_keywords(settings, known, "backbone_config of a timm model")
    model_type = settings.pop("model_type", None)
    # Not by CONFIG_MAPPING: if a checkpoint's own code is loaded, nothing has registered HRNetV2 there.
    if model_type == HRNetV2Config.model_type:
        return HRNetV2Config.from_dict(settings)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}{did_you_mean(str(model_type), list(CONFIG_MAPPING))}. It needs "
            'one that Transformers knows; for a timm model, {"backbone": "its name"} is enough'
        )
    if model_type == TimmBackboneConfig.model_type and not settings.get("backbone"):
        raise ValueError(f"backbone_config of a timm model needs its name as 'backbone', got {settings}")
    return CONFIG_MAPPING[model_type](**settings)


def has_default_maps(config: PreTrainedConfig) -> bool:
    """Whether the configuration still has the default, only the last map, with which no network here can work."""
    if config.model_type == TimmBackboneConfig.model_type:
        return list(config.out_indices) == UNSET_OUT_INDICES
    stage_names = getattr(config, "stage_names", None)
    return stage_names is None or config.out_features == stage_names[-1:]


def with_all_streams(config: HRNetV2Config) -> HRNetV2Config:
    """The same network; if it still has the default, only the last stream, it returns all streams."""
    if config.out_features != config.stage_names[-1:]:
        return config
    config = copy.deepcopy(config)
    config.out_features = config.stage_names[1:]
    return config
