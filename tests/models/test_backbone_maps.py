"""Maps of every family of backbones that timm has: their strides, and those of the logits, at even and odd sizes.

All on the meta device, where tensors have sizes but no values. Families and their models are timm's own list.
"""

import pytest
import timm
import torch
from packaging.version import Version
from transformers import DINOv3ConvNextConfig, SwinConfig, TimmBackboneConfig

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetModel
from revhrnet_hf.models.backbone_maps import timm_strides

WANTED = {4, 8, 16, 32}
SMALL = {"num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 5}
SMALL_FIVE = {"stream_channels": [8, 12, 16, 20, 24], "num_modules": [1] * 4, "num_blocks": 1}
ODD = (101, 131)

# Families of which no model is taken, and why.
REFUSED = {
    "crossvit": "gives maps|need",
    "csatv2": "maps at strides",
    "efficientvim": "maps at strides",
    "efficientvit_msra": "maps at strides",
    "gemma4_vit": "cannot be called on meta tensors",  # its positions depend on values
    "inception_resnet_v2": r"gives maps of \[\(7",  # convolutions without padding: no map has the size of its stride
    "inception_v3": r"gives maps of \[\(7",
    "inception_v4": r"gives maps of \[\(7",
    "levit": "maps at strides",
    "nest": "maps at strides",
    "pit": "maps at strides",
    "sequencer": "maps at strides",
    "shvit": "maps at strides",
    "visformer": "maps at strides",
    "volo": "maps at strides",
}

needs_newer_timm = pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.31"),
    reason="older ones have Swin at one size only, which is an error, and no maps of CoaT",
)


# Families that say they have a map at stride 2, and why it is none.
WITHOUT_STRIDE_2 = {
    "tresnet": "cannot serve as backbone",  # it has no module of its own
    "xception": r"gives maps of \[\(147, 147",  # of 299 pixels: convolutions without padding
}

# Words of small models in timm's names, the smallest first.
SMALL_NAMES = (
    "test_",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xxt",
    "xx_",
    "_xs",
    "tiny",
    "_t",
    "small",
    "_s",
    "0",
    "18",
    "1",
    "base",
)


def small_models(module):
    """The family's models, those first whose names say that they are small."""

    def rank(name):
        return next((place for place, word in enumerate(SMALL_NAMES) if word in name), len(SMALL_NAMES))

    return sorted(timm.list_models(module=module), key=rank)


def first_that_fits(module):
    """A small model of the family with maps at the wanted strides, or all at one; else any."""
    names = small_models(module)
    for fits in (lambda s: set(s) >= WANTED, lambda s: len(set(s)) == 1):
        for name in names[:8]:
            try:
                if fits(timm_strides(name)):
                    return name
            except ValueError:
                continue
    return names[0]


def check_strides(maps, size, strides):
    for x, stride in zip(maps, strides, strict=True):
        for side, whole in zip(x.shape[-2:], size, strict=True):
            assert abs(side - whole / stride) < 2, (stride, size, [tuple(y.shape) for y in maps])


def check_family(module):
    name = first_that_fits(module)
    if module in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[module]):
            RevHRNetConfig.from_variant("w18", backbone=name)
        return
    config = RevHRNetConfig.from_variant("w18", backbone=name, **SMALL)
    with torch.device("meta"), torch.no_grad():
        model = RevHRNetForSemanticSegmentation(config).eval()
        fixed = model.base_model.layout.fixed_size
        for size in ((224, 224), ODD) if fixed is None else (fixed,):
            image = torch.empty(1, 3, *size)
            maps = model.base_model.backbone_maps(image)
            check_strides(maps, size, (4, 8, 16, 32))
            logits = model(image).logits
            assert logits.shape == (1, 5, *maps[0].shape[-2:])
        if fixed is not None:
            with pytest.raises(ValueError, match=f"images of {fixed[0]}×{fixed[1]} pixels only, got 101×131"):
                model(torch.empty(1, 3, *ODD))
    if set(timm_strides(name)) >= WANTED:
        check_five_streams(name, module)


def check_five_streams(name, module):
    """From the map at stride 2 where there is one."""
    if 2 not in timm_strides(name):
        with pytest.raises(ValueError, match=r"need \[2, 4, 8, 16, 32\] \(five streams start at stride 2"):
            RevHRNetConfig(backbone=name, **SMALL_FIVE)
        return
    if module in WITHOUT_STRIDE_2:
        with pytest.raises(ValueError, match=WITHOUT_STRIDE_2[module]):
            RevHRNetConfig(backbone=name, **SMALL_FIVE)
        return
    with torch.device("meta"), torch.no_grad():
        model = RevHRNetModel(RevHRNetConfig(backbone=name, **SMALL_FIVE)).eval()
        size = model.layout.fixed_size or ODD
        outputs = model(torch.empty(1, 3, *size))
    check_strides(outputs.feature_maps[:1], size, (2,))


@pytest.mark.parametrize("module", ["convnext", "dla", "efficientnet", "pit", "resnet", "swin_transformer", "vgg"])
def test_families(module):
    check_family(module)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_family(module):
    check_family(module)


@needs_newer_timm
def test_channels_last_maps_are_the_backbones_own():
    """Of a Swin, whose maps have their channels last; with values."""
    config = RevHRNetConfig.from_variant("w18", backbone="swin_tiny_patch4_window7_224", **SMALL)
    torch.manual_seed(0)
    model = RevHRNetModel(config).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        maps = model.backbone_maps(x)
        theirs = model.backbone._backbone(x)
        whole = model.backbone_maps(torch.nn.functional.pad(x[..., :61], (0, 3)))
        odd = model.backbone_maps(x[..., :61])
    for ours, y in zip(maps, theirs, strict=True):
        assert torch.equal(ours, y.permute(0, 3, 1, 2))
    # An odd size is padded inside, and what is beyond the image is cropped.
    assert [tuple(y.shape[-2:]) for y in odd] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    assert all(torch.equal(a, b[..., : a.shape[-1]]) for a, b in zip(odd, whole, strict=True))


def test_strides_that_do_not_fit_are_refused():
    """A VGG-11's maps at strides 2 to 16 halve, and are not what four streams need."""
    for name, indices, strides in (("vgg11", [1, 2, 3, 4], r"\[2, 4, 8, 16\]"), ("resnet18", [0, 2, 3, 4], r"\[2, 8, 16, 32\]")):
        config = RevHRNetConfig(backbone_config=TimmBackboneConfig(backbone=name, out_indices=indices), **SMALL)
        with torch.device("meta"), pytest.raises(ValueError, match=f"maps have strides {strides}"):
            RevHRNetModel(config)


def test_maps_that_there_are_not():
    """Chosen by hand."""
    config = RevHRNetConfig(backbone_config=TimmBackboneConfig(backbone="hgnet_tiny", out_indices=[1, 2, 3, 4]), **SMALL)
    with torch.device("meta"), pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], .* 1, 2, 3, 4 are not"):
        RevHRNetModel(config)


def test_choosing_maps_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.device("meta"):
        RevHRNetModel(RevHRNetConfig.from_variant("w18", backbone="resnet14t", **SMALL))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "backbone",
    [
        DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4),
        SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_maps_of_transformers_backbones_are_chosen_too(backbone):
    """Where the configuration says no more than the default, the last stage."""
    config = RevHRNetConfig.from_variant("w18", backbone_config=backbone, **SMALL)
    model = RevHRNetModel(config).eval()
    x = torch.randn(1, 3, *ODD)
    with torch.no_grad():
        maps = model.backbone_maps(x)
    check_strides(maps, ODD, (4, 8, 16, 32))
    assert [y.shape[1] for y in maps] == model.backbone.channels


@needs_newer_timm
def test_maps_that_transformers_cannot_give():
    """Three of a CoaT's maps come from one module, which a TimmBackbone does not know how to tell apart."""
    with pytest.raises(ValueError, match=r"'coat_tiny' cannot serve as backbone .*duplicates"):
        RevHRNetConfig(backbone="coat_tiny")
