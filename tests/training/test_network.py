"""The image processor that goes with a recipe's network."""

import pytest

from revhrnet_hf.data import get_label_space
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.recipe import RANDOM, Recipe

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
