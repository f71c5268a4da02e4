"""The recipe's network: its config, its first weights, and the image processor that goes with it."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel

from ..data import LabelSpace
from ..errors import RecipeError, did_you_mean, first_few, strict_reason
from ..models import (
    HRNetV2Config,
    HRNetV2ForSemanticSegmentation,
    RevHRNetConfig,
    RevHRNetForSemanticSegmentation,
    RevHRNetImageProcessor,
)
from ..models.backbone_maps import fixed_size_in
from ..models.configuration_hrnetv2 import VARIANTS as HRNETV2_VARIANTS
from ..models.configuration_revhrnet import VARIANTS as REVHRNET_VARIANTS
from .recipe import LORA, RANDOM, Recipe

# Settings of the config → the recipe's fields that they come from, where the names differ.
RECIPE_FIELDS = {
    "semantic_loss_class_weights": "class_weights",
    "semantic_loss_ohem_threshold": "ohem_threshold",
    "semantic_loss_ohem_min_kept": "ohem_min_kept",
    "semantic_loss_terms": "loss",
    "semantic_loss_label_smoothing": "label_smoothing",
    "semantic_loss_boundary_relaxation": "boundary_relaxation",
    "semantic_loss_focal_gamma": "focal_gamma",
    "semantic_loss_tversky_alpha": "tversky_alpha",
    "semantic_loss_tversky_beta": "tversky_beta",
    "frozen_backbone_dtype": "backbone_dtype",
}


def build_model(recipe: Recipe, label_space: LabelSpace) -> tuple[PreTrainedModel, RevHRNetImageProcessor]:
    """The network, on pretrained weights unless it is to start from a checkpoint, and the processor with their mean and std.

    Raises:
        RecipeError: settings that do not fit, an unknown name, or pretrained weights that cannot be had.
    """
    if recipe.architecture not in ARCHITECTURES:
        hint = did_you_mean(recipe.architecture, ARCHITECTURES)
        raise RecipeError(
            f"Recipe field architecture must be one of {', '.join(ARCHITECTURES)}, got {recipe.architecture!r}{hint}"
        )
    make_config, model_class = ARCHITECTURES[recipe.architecture]
    _check_class_weights(recipe, label_space)
    try:
        config = make_config(recipe, _common_settings(recipe, label_space))
        if recipe.init_from is not None or recipe.backbone_weights == RANDOM:
            model = model_class(config)
        else:
            model = model_class.from_pretrained_backbone(config, recipe.backbone_weights)
        fixed_size = fixed_size_in(model)
        # An image processor for a backbone of one size resizes images to that size by itself.
        resizes = recipe.eval_size is not None and fixed_size is None
        resize = {"do_resize": True, "size": {"longest_edge": recipe.eval_size}} if resizes else {}
        image_processor = RevHRNetImageProcessor.for_backbone(config, **resize)
    # They come from reading weights, from settings, and from a name that timm does not know.
    except (OSError, ValueError, StrictDataclassError, RuntimeError) as error:
        raise RecipeError(f"The recipe's model cannot be built: {_reason(error)}") from error
    if fixed_size is not None:
        _check_sizes(recipe, fixed_size)
    return model, image_processor


def outline_of_model(recipe: Recipe, label_space: LabelSpace) -> PreTrainedModel:
    """The recipe's network on the meta device, where weights have shapes and no values; errors as for `build_model`.

    Pretrained weights are not read, and class weights not counted.
    """
    given: dict[str, Any] = {"backbone_weights": RANDOM}
    if isinstance(recipe.class_weights, str):
        given |= {"class_weights": None, "effective_number_beta": None}
    with torch.device("meta"):
        model, _ = build_model(replace(recipe, **given), label_space)
    return model


def _check_sizes(recipe: Recipe, fixed_size: tuple[int, int]) -> None:
    """Raises a RecipeError unless crops and scored images have the only size (height, width) that the backbone accepts."""
    height, width = fixed_size
    if tuple(recipe.crop_size) != fixed_size or recipe.eval_size not in (None, max(fixed_size)):
        raise RecipeError(
            f"The backbone {recipe.backbone} takes images of {height}×{width} pixels only: set crop_size to [{height}, {width}], "
            f"and eval_size to {max(fixed_size)} or leave it out; or use a backbone that accepts any size"
        )


def _check_class_weights(recipe: Recipe, label_space: LabelSpace) -> None:
    """Here, where the classes are known."""
    weights = recipe.class_weights
    if weights is not None and len(weights) != label_space.num_classes:
        raise RecipeError(
            f"Recipe field class_weights must have one value a class: it has {len(weights)}, and {label_space.name!r} has "
            f"{label_space.num_classes} classes ({first_few(label_space.names)})"
        )


def _reason(error: Exception) -> str:
    """An error in one line, in which settings of the config have the names of the recipe's fields."""
    said = str(error)
    if isinstance(error, StrictDataclassError):
        said = strict_reason(error)
    for field, setting in RECIPE_FIELDS.items():
        said = re.sub(rf"\b{field}\b", setting, said)
    return " ".join(said.split())


def _common_settings(recipe: Recipe, label_space: LabelSpace) -> dict[str, Any]:
    settings = {
        "initializer": recipe.initializer,
        "zero_init_residual": recipe.zero_init_residual,
        "zero_init_exchange": recipe.zero_init_exchange,
        "batch_norm_momentum": recipe.batch_norm_momentum,
        "semantic_loss_ignore_index": label_space.ignore_index,
        **{name: getattr(recipe, field) for name, field in RECIPE_FIELDS.items() if name.startswith("semantic_loss_")},
        "auxiliary_loss_weight": recipe.auxiliary_loss_weight,
        "id2label": label_space.id2label,
        "label2id": label_space.label2id,
        "palette": [list(colour) for colour in label_space.colours],
        "untinted": None if label_space.untinted is None else [label_space.label2id[name] for name in label_space.untinted],
    }
    # Not given, they are the variant's own.
    for name in ("stream_channels", "num_modules", "num_blocks"):
        if getattr(recipe, name) is not None:
            settings[name] = getattr(recipe, name)
    return settings


def _revhrnet_config(recipe: Recipe, settings: dict[str, Any]) -> PreTrainedConfig:
    if recipe.variant in HRNETV2_VARIANTS and recipe.variant not in REVHRNET_VARIANTS:
        raise ValueError(
            f"variant {recipe.variant} is one of HRNetV2 only: give architecture: hrnetv2, or one of "
            f"{', '.join(REVHRNET_VARIANTS)}"
        )
    return RevHRNetConfig.from_variant(
        recipe.variant,
        backbone=recipe.backbone,
        # LoRA adapts a frozen backbone; the adapters are added to the weights that training starts from.
        trainable_backbone="none" if recipe.trainable_backbone == LORA else recipe.trainable_backbone,
        pyramid=recipe.pyramid,
        frozen_backbone_dtype=None if recipe.backbone_dtype == "float32" else recipe.backbone_dtype,
        final_block=recipe.final_block,
        head=recipe.head,
        **settings,
    )


def _hrnetv2_config(recipe: Recipe, settings: dict[str, Any]) -> PreTrainedConfig:
    head = "ocr" if recipe.head == "ocr" else "concat"
    return HRNetV2Config.from_variant(recipe.variant, head=head, **settings)


ARCHITECTURES: dict[str, tuple[Callable[[Recipe, dict[str, Any]], PreTrainedConfig], type[PreTrainedModel]]] = {
    "revhrnet": (_revhrnet_config, RevHRNetForSemanticSegmentation),
    "hrnetv2": (_hrnetv2_config, HRNetV2ForSemanticSegmentation),
}
"""For each architecture the config, made of a recipe and of the settings that all networks share, and the model's class.

A program may add a network of its own (scripts/studies/peers.py does), which is then trained and scored like these.
"""
