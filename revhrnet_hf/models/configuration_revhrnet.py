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
NONE, ALL = "none", "all"  # of trainable_backbone
UNSET_OUT_INDICES = [-1]  # of a TimmBackboneConfig: the last map alone, which serves no network here

VARIANTS = {
    "w18": {"stream_channels": [18, 36, 72, 144]},
    "w32": {"stream_channels": [32, 64, 128, 256]},
    "w48": {"stream_channels": [48, 96, 192, 384]},
    # The fifth map is the backbone's at stride 2, the stem's activation.
    "w24-5stream": {"stream_channels": [24, 48, 96, 192, 384], "num_modules": [1, 1, 1, 1]},
}


@strict
class RevHRNetConfig(SegmentationConfig):
    r"""
    Configuration of [`RevHRNetModel`] and [`RevHRNetForSemanticSegmentation`]. The defaults are the paper's network: a frozen
    semi-supervised ResNet-50 and a reverse HRNet-W48.

    Args:
        backbone (`str`, *optional*):
            Name of a timm model, such as `"resnet18"` or `"vit_small_patch14_dinov2"`; short for a `backbone_config` that takes
            its maps at strides 4, 8, 16 and 32 (from 2 on for five streams), or of a plain vision transformer the last layer of
            each quarter. With a slash, `"facebook/dinov3-convnext-tiny-pretrain-lvd1689m"`, the Hub name or folder of a
            Transformers checkpoint that can be a backbone (`timm/…` stays a timm model).
            `RevHRNetImageProcessor.for_backbone(config)` makes the image processor that fits.
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Of any timm or Transformers backbone whose maps halve in size one after another, as many as there are streams; an
            [`HRNetV2Config`] makes the full encoder-decoder. A dictionary needs `model_type`, or `backbone` for a timm model.
            `out_indices` that are left out are chosen as for `backbone`. By default that of
            `backbone="resnet50.fb_ssl_yfcc100m_ft_in1k"`, whose weights may not be used commercially.
        freeze_backbone (`bool`, defaults to `True`):
            The backbone is always in eval mode, gets no gradient, and its forward builds no graph. It says of
            `trainable_backbone` whether it is `"none"`, and where that is not given it means `"none"` or `"all"`.
        trainable_backbone (`"none"`, `"last_stage"`, `"norms"` or `"all"`, *optional*):
            What of the backbone is trained. `"last_stage"` is what the coarsest map alone depends on (the last quarter of a plain
            vision transformer); `"norms"` the weights and biases of normalisation layers, whose running statistics stay. All
            else is frozen: eval mode, no gradient.
        frozen_backbone_dtype (`"bfloat16"` or `"float16"`, *optional*):
            A frozen backbone computes in this precision, under `torch.autocast`; its weights stay as they are. By default in that
            of the rest.
        backbone_license (`str`, *optional*):
            Licence of the pretrained weights that the backbone was filled with, written by `from_pretrained_backbone`.
        pyramid (`"resize"` or `"learned"`, defaults to `"resize"`):
            How the maps of a plain vision transformer, which all have the stride of its patches, come to the streams' strides:
            resized, without parameters, or by trained (transposed) convolutions. Each stream starts from a layer of its own.
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
    head: Literal["single", "concat"] = "single"

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
        is_change = "trainable_backbone" in self.__dict__  # not in the constructor, where the two are compared
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
            backbone["_name_or_path"] = ""  # of this machine
        return output

    def _backbone_config(self, backbone: str | None) -> PreTrainedConfig:
        """The backbone that was asked for, in whatever form, with one map a stream unless other maps were."""
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
                "A checkpoint keeps the backbone that it was trained on. For a new network on another: "
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
        """Run by `strict` on construction: one stage ends one stream."""
        check_streams(self)


def backbone_config_of(settings: dict) -> PreTrainedConfig:
    """The configuration that `to_dict()` of a backbone's configuration describes; `{"backbone": name}` is a timm model's.

    Raises:
        ValueError: `model_type` is missing or unknown, or a timm model has no name.
    """
    settings = dict(settings)
    if "backbone" in settings and "model_type" not in settings:  # written by hand: what others would ignore is a mistake
        settings["model_type"] = TimmBackboneConfig.model_type
        known = {field.name for field in fields(TimmBackboneConfig)} | {"model_type", "out_indices"}
        check_keywords(settings, known, "backbone_config of a timm model")
    model_type = settings.pop("model_type", None)
    # A checkpoint whose code is loaded from its folder has nobody who would have registered HRNetV2.
    if model_type == HRNetV2Config.model_type:
        return HRNetV2Config.from_dict(settings)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has the model_type {model_type!r}{did_you_mean(str(model_type), list(CONFIG_MAPPING))}. It needs "
            'one that Transformers knows; for a timm model, {"backbone": "its name"} will do'
        )
    if model_type == TimmBackboneConfig.model_type and not settings.get("backbone"):
        raise ValueError(f"backbone_config of a timm model needs its name as 'backbone', got {settings}")
    return CONFIG_MAPPING[model_type](**settings)


def has_default_maps(config: PreTrainedConfig) -> bool:
    """Whether nothing but the default, the last map alone, was asked for, which serves no network here."""
    if config.model_type == TimmBackboneConfig.model_type:
        return list(config.out_indices) == UNSET_OUT_INDICES
    stage_names = getattr(config, "stage_names", None)
    return stage_names is None or config.out_features == stage_names[-1:]


def with_all_streams(config: HRNetV2Config) -> HRNetV2Config:
    """The same network giving all streams, where nothing but the default, the last stream alone, was asked for."""
    if config.out_features != config.stage_names[-1:]:
        return config
    config = copy.deepcopy(config)
    config.out_features = config.stage_names[1:]
    return config
