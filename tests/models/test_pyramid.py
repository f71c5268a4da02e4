"""Plain vision transformers as backbones: their own layers, and the pyramid that brings these to the streams' strides."""

import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetModel
from revhrnet_hf.models.pyramid import Pyramid, resampled

SMALL = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 5, "initializer": "he"}
TINY = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 8}
SWIGLU = {"intermediate_size": 48, "num_register_tokens": 4, "patch_size": 16}
TRANSFORMERS = {
    "dinov2": (Dinov2Config(**TINY, mlp_ratio=2, image_size=56), Dinov2Model, "layernorm", 1),
    "registers": (Dinov2WithRegistersConfig(**TINY, mlp_ratio=2, image_size=56), Dinov2WithRegistersModel, "layernorm", 5),
    "dinov3": (DINOv3ViTConfig(**TINY, **SWIGLU), DINOv3ViTModel, "norm", 5),
}


def timm_model(name="vit_tiny_patch16_224", kind="resize", **settings):
    torch.manual_seed(0)
    return RevHRNetForSemanticSegmentation(RevHRNetConfig(backbone=name, pyramid=kind, **SMALL, **settings)).eval()


def transformers_model(kind, **settings):
    torch.manual_seed(0)
    return RevHRNetForSemanticSegmentation(RevHRNetConfig(backbone_config=TRANSFORMERS[kind][0], **SMALL, **settings)).eval()


def tapped(model, x):
    """What the backbone gave to the pyramid."""
    heard = []
    handle = model.base_model.backbone.register_forward_hook(lambda *call: heard.extend(call[2].feature_maps))
    with torch.no_grad():
        model(x)
    handle.remove()
    return heard


class TestTappedMaps:
    @pytest.mark.parametrize(
        "name",
        [
            "test_vit",
            "vit_tiny_patch16_224",
            "vit_small_patch14_reg4_dinov2",
            "vit_tiny_patch16_dinov3_qkvb",
            "eva02_tiny_patch14_224",
        ],
    )
    def test_equal_timms(self, name):
        """At a size that is not the weights'; the last layer of each quarter, without class and register tokens."""
        model = timm_model(name)
        backbone = model.base_model.backbone
        depth = len(timm.create_model(name).blocks)
        quarters = [depth * part // 4 - 1 for part in (1, 2, 3, 4)]
        assert list(backbone.out_indices) == quarters
        patch = model.base_model.layout.multiple
        x = torch.randn(1, 3, 3 * patch, 5 * patch)
        whole = timm.create_model(name, dynamic_img_size=True).eval()
        left = whole.load_state_dict(
            {key.removeprefix("model."): v for key, v in backbone._backbone.state_dict().items()}, strict=False
        )
        assert not left.unexpected_keys and not any("blocks" in key or "embed" in key for key in left.missing_keys)
        with torch.no_grad():
            theirs = whole.forward_intermediates(x, indices=quarters, intermediates_only=True, norm=False)
            layers = (
                whole.get_intermediate_layers(x, n=quarters, reshape=True)
                if hasattr(whole, "get_intermediate_layers")
                else theirs
            )
        for ours, a, b in zip(tapped(model, x), theirs, layers, strict=True):
            assert torch.equal(ours, a) and torch.equal(ours, b)
            assert ours.shape[-2:] == (3, 5)

    @pytest.mark.parametrize("kind", TRANSFORMERS)
    def test_equal_transformers(self, kind):
        """The model's own hidden states, normalised, without their first tokens."""
        config, model_class, norm, tokens = TRANSFORMERS[kind]
        model = transformers_model(kind)
        backbone = model.base_model.backbone
        whole = model_class(config).eval()
        assert not whole.load_state_dict(backbone.state_dict(), strict=False).missing_keys
        x = torch.randn(2, 3, 3 * config.patch_size, 4 * config.patch_size)
        with torch.no_grad():
            states = whole(x, output_hidden_states=True).hidden_states
            expected = [getattr(whole, norm)(states[layer])[:, tokens:].mT.unflatten(-1, (3, 4)) for layer in (2, 4, 6, 8)]
        for ours, theirs in zip(tapped(model, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class TestPyramid:
    @pytest.mark.parametrize("size", [(224, 224), (101, 131), (17, 15)])
    @pytest.mark.parametrize("kind", ["resize", "learned"])
    @pytest.mark.parametrize("patch", [8, 14, 16, 32])
    def test_sizes(self, patch, kind, size):
        grid = [-(-side // patch) for side in size]
        pyramid = Pyramid(kind, [32] * 4, patch, [4, 8, 16, 32]).eval()
        maps = pyramid(tuple(torch.randn(1, 32, *grid) for _ in range(4)), size)
        assert [tuple(x.shape[-2:]) for x in maps] == [tuple(-(-side // s) for side in size) for s in (4, 8, 16, 32)]
        assert [x.shape[1] for x in maps] == pyramid.out_channels

    @pytest.mark.parametrize("patch", [14, 16])
    @pytest.mark.parametrize("stride", [4, 8, 16, 32])
    def test_places_are_exact(self, patch, stride):
        """A map that holds its cells' own places in the image gives, resampled, those of the new cells."""
        size = (11 * patch - 5, 13 * patch - 3)
        x = ((torch.arange(13) + 0.5) * patch).expand(1, 1, 11, 13)
        found = resampled(x, patch, stride, size)[0, 0, 0]
        places = (torch.arange(len(found)) + 0.5) * stride
        inner = (places > patch / 2) & (places < 12.5 * patch)
        assert inner.sum() >= len(found) - 4
        torch.testing.assert_close(found[inner], places[inner])

    def test_patch_16_needs_no_resizing_where_strides_are_multiples(self):
        x = torch.randn(1, 2, 6, 8)
        assert torch.equal(resampled(x, 16, 16, (96, 128)), x)
        torch.testing.assert_close(resampled(x, 16, 32, (96, 128)), F.avg_pool2d(x, 2))
        expected = F.interpolate(x, size=(24, 32), mode="bilinear")
        torch.testing.assert_close(resampled(x, 16, 4, (96, 128)), expected)

    def test_learned_only_for_plain_transformers(self):
        with torch.device("meta"), pytest.raises(ValueError, match="pyramid='learned' is for plain vision transformers"):
            RevHRNetModel(RevHRNetConfig(backbone="resnet18", pyramid="learned", **SMALL))

    def test_initialisation(self):
        """He's, of N(0, 2 / inputs): a transposed convolution's outputs have one input position each."""
        model = timm_model(kind="learned")
        for layer in model.base_model.pyramid.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                assert layer.weight.std().item() == pytest.approx((2 / layer.in_channels) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "kind"), [("test_vit", "resize"), ("test_vit", "learned"), ("dinov2", "resize"), ("dinov3", "learned")]
)
def test_torch_export(name, kind):
    model = transformers_model(name, pyramid=kind) if name in TRANSFORMERS else timm_model(name, kind)
    x = torch.randn(1, 3, 75, 101)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x).logits, model(x).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["resize", "learned"])
class TestModel:
    @pytest.mark.parametrize("size", [(224, 224), (75, 101)])
    @pytest.mark.parametrize("name", ["test_vit", "dinov2"])
    def test_any_size(self, name, size, kind):
        model = transformers_model(name, pyramid=kind) if name in TRANSFORMERS else timm_model(name, kind)
        with torch.no_grad():
            outputs = model(torch.randn(1, 3, *size), output_hidden_states=True)
        assert outputs.logits.shape[-2:] == tuple(-(-side // 4) for side in size)
        assert [x.shape[-1] for x in outputs.hidden_states] == [-(-size[1] // s) for s in (4, 8, 16, 32)]

    def test_frozen_without_a_graph(self, kind):
        """Only the rest is trained, the pyramid with it; the backbone keeps its bits and no activation."""
        model = timm_model("test_vit", kind).train()
        backbone = model.base_model.backbone
        before = {key: x.clone() for key, x in backbone.state_dict().items()}
        heard = []
        backbone.register_forward_hook(lambda *call: heard.extend(call[2].feature_maps))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(2):
            model(torch.randn(2, 3, 70, 64), labels=torch.randint(0, 5, (2, 70, 64))).loss.backward()
            for name, parameter in model.named_parameters():
                assert (parameter.grad is None) is (".backbone." in name), name
            optimizer.step()
        assert not any(x.requires_grad for x in heard) and not any(m.training for m in backbone.modules())
        assert all(torch.equal(x, before[key]) for key, x in backbone.state_dict().items())
        assert any(".pyramid." in name for name, _ in model.named_parameters()) is (kind == "learned")

    def test_save_and_load(self, kind, tmp_path):
        model = timm_model("test_vit", kind)
        x = torch.randn(1, 3, 50, 70)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert loaded.config.pyramid == kind
        with torch.no_grad():
            assert torch.equal(loaded(x).logits, model(x).logits)

    def test_recomputing_changes_no_gradient(self, kind):
        x = torch.randn(2, 3, 64, 64)
        grads = {}
        for recompute in ("none", "norms", "modules"):
            model = timm_model("test_vit", kind).train()
            model.activation_checkpointing_enable({"recompute": recompute})
            model(x, labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
            grads[recompute] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for other in ("norms", "modules"):
            for name, gradient in grads["none"].items():
                torch.testing.assert_close(grads[other][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_fixed_size_is_said():
    model = timm_model("beit_base_patch16_224")
    with pytest.raises(ValueError, match=r"images of 224×224 pixels only, got 96×128: crop or resize"):
        model(torch.randn(1, 3, 96, 128))


@pytest.mark.slow
def test_onnx(tmp_path):
    """At an odd size, by onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    from revhrnet_hf.export import Exportable

    for kind in ("resize", "learned"):
        model = timm_model("test_vit", kind)
        x = torch.randn(1, 3, 75, 101)
        program = torch.onnx.export(Exportable(model), (x,), dynamo=True)
        program.save(tmp_path / f"{kind}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{kind}.onnx")
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(x).logits.numpy(), atol=1e-3)


@pytest.mark.slow
def test_without_this_package(tmp_path):
    """A checkpoint on a vision transformer loads with its own code."""
    model = timm_model("test_vit", "learned")
    model.save_pretrained(tmp_path / "checkpoint")
    x = torch.randn(1, 3, 50, 70)
    torch.save(x, tmp_path / "x.pt")
    program = """
import sys
sys.modules["revhrnet_hf"] = None
import torch
from transformers import AutoModelForSemanticSegmentation
folder, image, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(torch.load(image)).logits, out)
"""
    command = [sys.executable, "-c", program, tmp_path / "checkpoint", tmp_path / "x.pt", tmp_path / "out.pt"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), model(x).logits)
