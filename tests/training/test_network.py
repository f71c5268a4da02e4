"""The image processor that goes with a recipe's network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from revhrnet_hf.data import get_label_space
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import load_for_inference, predict_label_maps
from revhrnet_hf.training import network
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.recipe import RANDOM, Recipe

from ..label_spaces import unnamed_space

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5] * 3, [0.5] * 3


@pytest.mark.parametrize(
    ("settings", "mean_and_std"),
    [
        ({"backbone": "test_resnet.r160_in1k"}, ([0.5] * 3, [0.5] * 3)),
        ({"backbone": "resnet18"}, IMAGENET),
        ({"backbone": "tf_efficientnet_lite0"}, HALF),
        ({"architecture": "hrnetv2"}, IMAGENET),
    ],
)
def test_mean_and_std_are_the_backbones(settings, mean_and_std):
    """As timm's table of weights and the HRNet paper's code have them; written down here, not read from timm."""
    recipe = Recipe(dataset="camvid", variant="w18", num_modules=[1, 1, 1], num_blocks=1, backbone_weights=RANDOM, **settings)
    _, processor = build_model(recipe, get_label_space("camvid11"))
    assert (list(processor.image_mean), list(processor.image_std)) == mean_and_std


@pytest.mark.parametrize(("untinted", "ids"), [(None, None), ((), []), (("tree", "road"), [2, 0])])
def test_untinted_classes_of_the_label_table_are_in_the_config(untinted, ids):
    label_space = replace(unnamed_space(["road", "car", "tree"]), untinted=untinted)
    settings = {"variant": "w18", "backbone": "test_resnet", "num_modules": [1, 1, 1], "num_blocks": 1}
    with torch.device("meta"):
        model, _ = build_model(Recipe(dataset="camvid", backbone_weights=RANDOM, **settings), label_space)
    assert model.config.untinted == ids


def test_five_streams_of_any_width():
    settings = {"stream_channels": [8, 12, 16, 20, 24], "num_modules": [1, 1, 1, 1], "backbone": "resnet18"}
    recipe = Recipe(dataset="camvid", variant="w18", num_blocks=1, backbone_weights=RANDOM, **settings)
    model, _ = build_model(recipe, get_label_space("camvid11"))
    assert model(torch.zeros(1, 3, 64, 96)).logits.shape == (1, 11, 32, 48)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"class_weights": [1, 1]},
            "Recipe field class_weights must have one value a class: it has 2, and 'unnamed' has 3 classes (road, car, tree)",
        ),
        (
            {"num_modules": [1]},
            "The recipe's model cannot be built: num_modules must have one entry fewer than stream_channels, ",
        ),
        ({"variant": "w99"}, "The recipe's model cannot be built: Unknown RevHRNet variant 'w99'"),
    ],
)
def test_settings_that_do_not_fit_are_said_in_one_line(settings, said):
    recipe = Recipe(dataset="camvid", backbone_weights=RANDOM, **settings)
    with torch.device("meta"), pytest.raises(RecipeError) as refusal:
        build_model(recipe, unnamed_space(["road", "car", "tree"]))
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value) and "alidation error" not in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("semantic_loss_ohem_threshold", 2.0, "cannot be built: ohem_threshold is a probability above 0"),  # a class's validator
        ("semantic_loss_ohem_min_kept", "many", "cannot be built: Field 'ohem_min_kept' expected int"),  # a field's
    ],
)
def test_the_configs_own_checks_name_the_recipes_fields(monkeypatch, setting, value, said):
    """Even where the recipe has let something pass that the config does not take."""
    given = network._common_settings
    monkeypatch.setattr(network, "_common_settings", lambda *arguments: {**given(*arguments), setting: value})
    with torch.device("meta"), pytest.raises(RecipeError) as refusal:
        build_model(Recipe(dataset="camvid", backbone_weights=RANDOM), get_label_space("camvid11"))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value) and "alidation error" not in str(refusal.value)


def test_a_variant_of_the_baseline_only():
    with pytest.raises(RecipeError, match="w18-small-v1 is one of HRNetV2 only: give architecture: hrnetv2, or one of w18, "):
        build_model(Recipe(dataset="camvid", variant="w18-small-v1", backbone_weights="random"), get_label_space("camvid11"))


ONE_SIZE = {"backbone": "cait_xxs24_224", "variant": "w18", "num_modules": [1, 1, 1], "num_blocks": 1, "backbone_weights": RANDOM}


@pytest.mark.parametrize("eval_size", [None, 224])
def test_a_backbone_that_accepts_one_size_only_labels_images_of_any_size(eval_size, tmp_path):
    recipe = Recipe(dataset="camvid", crop_size=[224, 224], eval_size=eval_size, **ONE_SIZE)
    model, processor = build_model(recipe, get_label_space("camvid11"))
    assert (processor.do_resize, dict(processor.size)) == (True, {"height": 224, "width": 224})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    [label_map] = predict_label_maps(*load_for_inference(tmp_path), [image])
    assert label_map.shape == (61, 90)


@pytest.mark.parametrize("sizes", [{"crop_size": [224, 256]}, {"crop_size": [224, 224], "eval_size": 480}])
def test_sizes_that_the_backbone_does_not_accept(sizes):
    said = r"takes images of 224×224 pixels only: set crop_size to \[224, 224\], and eval_size to 224 or leave it out"
    with torch.device("meta"), pytest.raises(RecipeError, match=said):
        build_model(Recipe(dataset="camvid", **ONE_SIZE, **sizes), get_label_space("camvid11"))
