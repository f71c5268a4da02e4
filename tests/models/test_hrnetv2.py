"""HRNetV2 against timm's HRNet, published sizes, and what Transformers promises of backbones; RevHRNet on top of it."""

import math
import sys

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    ResNetConfig,
    TimmBackboneConfig,
    pipeline,
)

import revhrnet_hf
from revhrnet_hf import (
    HRNetV2Backbone,
    HRNetV2Config,
    HRNetV2ForSemanticSegmentation,
    RevHRNetConfig,
    RevHRNetForSemanticSegmentation,
    RevHRNetImageProcessor,
)
from revhrnet_hf.models.backbone import backbone_normalization
from revhrnet_hf.models.modeling_revhrnet import check_that_maps_halve

from .. import forked

TINY = {
    "stem_channels": 8,
    "stage1_channels": 8,
    "stage1_blocks": 1,
    "stream_channels": [8, 12, 16, 20],
    "num_modules": [1, 1, 1],
    "num_blocks": 1,
    "num_labels": 5,
    "initializer": "he",
}
FIVE_STREAMS = {"stem_stride": 2, "stream_channels": [4, 6, 8, 10, 12], "num_modules": [1, 1, 1, 1]}


@pytest.fixture
def tiny_hrnet_config():
    """Makes a config of an HRNetV2 with few parameters and five classes."""
    return lambda **settings: HRNetV2Config(**{**TINY, **settings})


@pytest.fixture
def tiny_hrnet(tiny_hrnet_config):
    """A tiny network in eval mode whose BatchNorm statistics are not those of initialisation."""
    torch.manual_seed(0)
    return shake_statistics(HRNetV2ForSemanticSegmentation(tiny_hrnet_config())).eval()


def shake_statistics(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(("variant", "millions"), [("w48", 65.86), ("w32", 29.55), ("w18", 9.64), ("w24-5stream", 23.2)])
def test_variant_sizes(variant, millions):
    """Published and independently computed sizes, 19 classes, to the printed digit."""
    with torch.device("meta"):
        model = HRNetV2ForSemanticSegmentation(HRNetV2Config.from_variant(variant, num_labels=19))
    digits = len(str(millions).split(".")[1])
    assert round(model.num_parameters() / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("w18", "hrnet_w18"),
        ("w18-small-v1", "hrnet_w18_small"),
        ("w18-small-v2", "hrnet_w18_small_v2"),
        pytest.param("w32", "hrnet_w32", marks=pytest.mark.slow),
        pytest.param("w48", "hrnet_w48", marks=pytest.mark.slow),
    ],
)
def test_features_equal_timms(variant, name, tmp_path):
    """timm's classifier from a file becomes our backbone; its maps are timm's, stem and streams."""
    torch.manual_seed(0)
    theirs = shake_statistics(timm.create_model(name)).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    features = timm.create_model(name, features_only=True, feature_location="").eval()
    features.load_state_dict(theirs.state_dict(), strict=False)
    config = HRNetV2Config.from_variant(variant, upsample_mode="nearest", out_indices=[0, 1, 2, 3, 4])
    ours = HRNetV2ForSemanticSegmentation.from_pretrained_backbone(config, tmp_path / "weights.safetensors").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours.backbone(x).feature_maps, features(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    expected = theirs.state_dict()  # a thousand entries, which are gathered anew for each call
    for key, tensor in ours.backbone.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_timm_weights_are_whole_or_an_error(tmp_path):
    weights = timm.create_model("hrnet_w18_small").state_dict()
    del weights["stage2.0.branches.0.0.conv1.weight"]
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"1 keys missing \(stage2\.0\.branches.0.0.conv1.weight\)"):
        HRNetV2Backbone.from_pretrained_backbone(HRNetV2Config.from_variant("w18-small-v1"), tmp_path / "weights.safetensors")
    with pytest.raises(OSError, match=r"Cannot fetch timm's weights 'hrnet_w18\.ms_aug_in1k'"):
        HRNetV2Backbone.from_pretrained_backbone(HRNetV2Config.from_variant("w18"))
    with pytest.raises(ValueError, match="timm has no HRNet of these"):
        HRNetV2Backbone.from_pretrained_backbone(HRNetV2Config(**TINY), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (5, 3)])
@pytest.mark.parametrize(("settings", "finest"), [({}, 4), (FIVE_STREAMS, 2)], ids=["four", "five"])
def test_any_size(tiny_hrnet_config, size, settings, finest):
    model = HRNetV2ForSemanticSegmentation(tiny_hrnet_config(**settings)).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size), output_hidden_states=True)
    strides = [finest * 2**i for i in range(len(model.config.stream_channels))]
    for stride, channels, x in zip(strides, model.config.stream_channels, outputs.hidden_states, strict=True):
        assert x.shape == (2, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    assert outputs.logits.shape == (2, 5, math.ceil(size[0] / finest), math.ceil(size[1] / finest))


class TestBackbone:
    def test_last_stream_unless_chosen(self, tiny_hrnet_config):
        """As Transformers' own backbones have it."""
        config = tiny_hrnet_config()
        assert config.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
        assert (config.out_features, config.num_hidden_layers) == (["stage4"], 4)
        backbone = AutoBackbone.from_config(config)
        assert type(backbone) is HRNetV2Backbone
        assert (backbone.channels, backbone.strides) == ([20], [32])

    def test_all_streams_for_the_reverse_net(self, tiny_hrnet_config, tiny_config):
        given = tiny_hrnet_config()
        config = tiny_config(backbone_config=given)
        assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]
        assert given.out_features == ["stage4"]
        assert RevHRNetConfig.from_dict(config.to_dict()).backbone_config.out_features == config.backbone_config.out_features
        backbone = RevHRNetForSemanticSegmentation(config).revhrnet.backbone
        assert (backbone.channels, backbone.strides) == ([8, 12, 16, 20], [4, 8, 16, 32])
        with pytest.raises(ValueError, match="gives 2 maps"):
            RevHRNetForSemanticSegmentation(tiny_config(backbone_config=tiny_hrnet_config(out_features=["stage1", "stage2"])))

    @pytest.mark.parametrize("chosen", [{"out_features": ["stem", "stage3"]}, {"out_indices": [0, 3]}])
    def test_chosen_maps(self, tiny_hrnet_config, chosen):
        backbone = HRNetV2Backbone(tiny_hrnet_config(**chosen)).eval()
        assert (backbone.out_features, list(backbone.out_indices)) == (["stem", "stage3"], [0, 3])
        with torch.no_grad():
            outputs = backbone(torch.randn(1, 3, 64, 64), output_hidden_states=True)
        assert [tuple(x.shape) for x in outputs.feature_maps] == [(1, 8, 32, 32), (1, 16, 4, 4)]
        assert backbone.channels == [8, 16]
        assert len(outputs.hidden_states) == 5
        assert torch.equal(outputs.hidden_states[3], outputs.feature_maps[1])

    def test_config_survives_saving(self, tiny_hrnet_config, tmp_path):
        tiny_hrnet_config(out_features=["stage2", "stage4"]).save_pretrained(tmp_path)
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is HRNetV2Config
        assert (config.out_features, config.out_indices) == (["stage2", "stage4"], [2, 4])

    def test_backbone_of_a_segmentation_checkpoint(self, tiny_hrnet, tmp_path):
        tiny_hrnet.save_pretrained(tmp_path)
        x = torch.randn(1, 3, 64, 64)
        backbone = AutoModel.from_pretrained(tmp_path)
        assert type(backbone) is HRNetV2Backbone
        with torch.no_grad():
            expected = tiny_hrnet(x, output_hidden_states=True).hidden_states
            _, *streams = backbone(x, output_hidden_states=True).hidden_states
            assert all(torch.equal(a, b) for a, b in zip(streams, expected, strict=True))

    def test_checkpoint_as_the_backbone_of_a_reverse_hrnet(self, tiny_hrnet, tmp_path):
        folder = tmp_path / "best"
        tiny_hrnet.save_pretrained(folder)
        RevHRNetImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
        config = RevHRNetConfig(backbone=str(folder), stream_channels=[8, 8, 8, 8], num_modules=[1, 1, 1], num_labels=3)
        for source in (None, folder):
            model = RevHRNetForSemanticSegmentation.from_pretrained_backbone(config, source)
            trained = tiny_hrnet.base_model.state_dict()
            loaded = model.base_model.backbone.state_dict()
            assert loaded.keys() <= trained.keys()
            assert all(torch.equal(loaded[name], trained[name]) for name in loaded)
        image_processor = RevHRNetImageProcessor.for_backbone(config)
        assert (*image_processor.image_mean, *image_processor.image_std) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)

    def test_normalization(self):
        assert backbone_normalization(HRNetV2Config()) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class TestSettings:
    def test_momentum_and_initialisation(self, tiny_hrnet_config):
        model = HRNetV2ForSemanticSegmentation(tiny_hrnet_config(batch_norm_momentum=0.25, initializer="hrnet"))
        assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.25}
        weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Conv2d)])
        assert weights.std().item() == pytest.approx(0.001, rel=0.02)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"num_modules": [1, 1]}, "num_modules must have one entry fewer"),
            ({"stream_channels": [8]}, "at least two streams"),
            ({"stage1_blocks": 0}, "must be positive"),
            ({"stem_stride": 3}, "stem_stride"),
            ({"upsample_mode": "cubic"}, "upsample_mode"),
            ({"out_features": ["stage7"]}, "out_features must be a subset"),
            ({"semantic_loss_class_weights": [1.0, 2.0]}, "2 for 5 classes"),
        ],
    )
    def test_says_what_does_not_fit(self, tiny_hrnet_config, settings, said):
        with pytest.raises(Exception, match=said):
            tiny_hrnet_config(**settings)

    def test_unknown_variant_lists_the_known(self):
        with pytest.raises(ValueError, match="w18, w32, w48, w18-small-v1, w18-small-v2, w24-5stream"):
            HRNetV2Config.from_variant("w64")


class TestRevHRNetOnIt:
    def test_full_encoder_decoder_size(self):
        """127.9 million parameters, computed independently for HRNet-W48 and reverse W48."""
        for freeze in (True, False):
            config = revhrnet_hf.RevHRNetConfig.from_variant(
                "w48", num_labels=19, backbone_config=HRNetV2Config.from_variant("w48"), freeze_backbone=freeze
            )
            with torch.device("meta"):
                model = revhrnet_hf.RevHRNetForSemanticSegmentation(config)
            assert round(model.num_parameters() / 1e6, 1) == 127.9
            backbone = sum(p.numel() for p in model.revhrnet.backbone.parameters())
            assert model.num_parameters(only_trainable=True) == model.num_parameters() - freeze * backbone

    def test_five_streams(self, tiny_config):
        """Rev-5: sizes as computed independently; logits at stride 2; coarsest map at stride 32."""
        with torch.device("meta"):
            model = revhrnet_hf.RevHRNetForSemanticSegmentation(
                revhrnet_hf.RevHRNetConfig.from_variant("w24-5stream", num_labels=19)
            )
        assert round(model.num_parameters() / 1e6, 2) == 44.09
        assert round(model.num_parameters(only_trainable=True) / 1e6, 2) == 20.58
        backbone = TimmBackboneConfig(backbone="test_resnet", out_indices=[0, 1, 2, 3, 4])
        config = tiny_config(stream_channels=[4, 8, 12, 16, 20], num_modules=[1] * 4, backbone_config=backbone)
        model = revhrnet_hf.RevHRNetForSemanticSegmentation(config).eval()
        with torch.no_grad():
            outputs = model(torch.randn(1, 3, 65, 96), output_hidden_states=True)
        assert outputs.logits.shape == (1, 5, 33, 48)
        assert [x.shape[-2:] for x in outputs.hidden_states] == [(33, 48), (17, 24), (9, 12), (5, 6), (3, 3)]

    @pytest.mark.parametrize("freeze", [True, False])
    def test_save_load_and_train(self, tiny_hrnet_config, tiny_config, tmp_path, freeze):
        config = tiny_config(backbone_config=tiny_hrnet_config(), freeze_backbone=freeze, initializer="he")
        model = revhrnet_hf.RevHRNetForSemanticSegmentation(config).eval()
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(loaded(x).logits, model(x).logits)
        loaded.train()(x, labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
        for name, parameter in loaded.named_parameters():
            assert (parameter.grad is None) is (freeze and ".backbone." in name), name
        assert type(loaded.config.backbone_config) is HRNetV2Config


BACKBONES = {
    "hrnetv2": lambda: HRNetV2Config(**TINY),
    "resnet, Transformers": lambda: ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, out_indices=[1, 2, 3, 4]
    ),
    "resnet, timm": lambda: TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]),
    "convnext, Transformers": lambda: ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, out_indices=[1, 2, 3, 4]),
    "convnext, timm": lambda: TimmBackboneConfig(backbone="test_convnext", out_indices=[0, 1, 2, 3]),
    "efficientnet, timm": lambda: TimmBackboneConfig(backbone="test_efficientnet", out_indices=[1, 2, 3, 4]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(tiny_config, name):
    """One step of training on each; every trained parameter moves."""
    torch.manual_seed(0)
    config = tiny_config(backbone_config=BACKBONES[name](), initializer="he")
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train()
    outputs = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64)))
    assert outputs.logits.shape == (2, 5, 16, 16)
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


class TestUnfitBackbones:
    def test_strides_known_at_construction(self, tiny_config, tiny_hrnet_config):
        gap = TimmBackboneConfig(backbone="test_resnet", out_indices=[0, 1, 2, 4])
        with pytest.raises(ValueError, match=r"strides \[2, 4, 8, 32\], but each must be twice the one before"):
            revhrnet_hf.RevHRNetModel(tiny_config(backbone_config=gap))
        hrnet = tiny_hrnet_config(out_indices=[0, 2, 3, 4])
        with pytest.raises(ValueError, match=r"strides \[2, 8, 16, 32\]"):
            revhrnet_hf.RevHRNetModel(tiny_config(backbone_config=hrnet))

    def test_strides_measured(self, tiny_config):
        """Transformers' ResNet, which does not say its strides, has its stem and its first stage at the same one."""
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, out_indices=[0, 1, 2, 3])
        with pytest.raises(ValueError, match=r"strides \[4, 4, 8, 16\], but each must be twice the one before"):
            revhrnet_hf.RevHRNetModel(tiny_config(backbone_config=config))

    def test_maps_that_do_not_halve(self):
        """A backbone whose maps could not be measured when the network was built."""
        with pytest.raises(ValueError, match=r"maps are \[\(16, 16\), \(16, 16\).* half as large"):
            check_that_maps_halve(tuple(torch.empty(1, 8, size, size) for size in (16, 16, 8, 4)))

    def test_small_image(self, tiny_config):
        """A convolutional backbone takes it; a patchifying one says the least size."""
        small = torch.randn(1, 3, 20, 40)
        assert revhrnet_hf.RevHRNetModel(tiny_config()).eval()(small).last_hidden_state.shape[-2:] == (5, 10)
        model = revhrnet_hf.RevHRNetModel(tiny_config(backbone_config=BACKBONES["convnext, Transformers"]())).eval()
        with pytest.raises(ValueError, match=r"images of \(20, 40\) pixels: 32×32 always works"):
            model(small)


@pytest.mark.slow
def test_without_this_package(tiny_hrnet, tiny_hrnet_config, tiny_config, tmp_path):
    """A fresh process in which revhrnet_hf cannot be imported loads both families' folders and computes the same bits."""
    full = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(backbone_config=tiny_hrnet_config(), initializer="he")).eval()
    program = """
import sys
sys.modules["revhrnet_hf"] = None  # as if it were not installed: importing it is an ImportError
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
x = torch.load("x.pt")
for folder in ("hrnet", "full"):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        torch.save(model(x).logits, folder + ".pt")
"""
    x = torch.randn(1, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    for folder, model in (("hrnet", tiny_hrnet), ("full", full)):
        model.save_pretrained(tmp_path / folder)
        revhrnet_hf.RevHRNetImageProcessor().save_pretrained(tmp_path / folder)
    forked.run([sys.executable, "-c", program], preloaded=forked.BARE, check=True, cwd=tmp_path)
    for folder, model in (("hrnet", tiny_hrnet), ("full", full)):
        with torch.no_grad():
            assert torch.equal(torch.load(tmp_path / f"{folder}.pt"), model(x).logits), folder


def test_auto_classes_and_pipeline(tiny_hrnet, tmp_path):
    tiny_hrnet.save_pretrained(tmp_path)
    revhrnet_hf.RevHRNetImageProcessor().save_pretrained(tmp_path)
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is HRNetV2ForSemanticSegmentation
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is revhrnet_hf.RevHRNetImageProcessor
    segments = pipeline("image-segmentation", model=str(tmp_path))(PIL.Image.new("RGB", (40, 30), "red"))
    assert {segment["mask"].size for segment in segments} == {(40, 30)}
