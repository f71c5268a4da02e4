"""Folded BatchNorms against the same networks unfolded, and frozen backbones, which compute the same wherever they are used."""

import copy

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from revhrnet_hf import (
    HRNetV2Config,
    HRNetV2ForSemanticSegmentation,
    RevHRNetConfig,
    RevHRNetForSemanticSegmentation,
    RevHRNetModel,
)
from revhrnet_hf.models import modeling_revhrnet
from revhrnet_hf.models.folding import conv_norm_pairs, fold_batch_norms

TINY_HRNET = {"stem_channels": 8, "stage1_channels": 8, "stage1_blocks": 1, "stream_channels": [8, 12, 16], "num_modules": [1, 1],
              "num_blocks": 1, "num_labels": 5, "initializer": "he"}  # fmt: skip


def shaken(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def norms_in(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


class Shared(nn.Module):
    """BatchNorms that must stay: not the only taker, run twice, without a convolution before."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.of_twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.last, self.folds = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.conv(x)
        x = x + self.norm(x)
        x = self.of_twice(self.twice(self.of_twice(self.twice(x))))
        return self.folds(self.last(self.alone(x).relu()))


def test_only_what_may_be_folded():
    model = shaken(Shared())
    assert conv_norm_pairs(model) == [("last", "folds")]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        fold_batch_norms(model)
        assert norms_in(model) == ["norm", "of_twice", "alone"]
        torch.testing.assert_close(model(x), expected)


# Of the last two, DenseNet and the pre-activation ResNet, some BatchNorms follow no convolution.
@pytest.mark.parametrize(("name", "left"), [("test_resnet", 0), ("test_efficientnet", 0), ("mobilenetv3_small_050", 0),
                                            ("tf_efficientnet_lite0", 0), ("resnetv2_18", 8)])  # fmt: skip
def test_timms_networks(name, left):
    model = shaken(timm.create_model(name, features_only=True))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fold_batch_norms(model)
        folded = model(x)
    assert len(norms_in(model)) <= left
    for a, b in zip(folded, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, rtol=1e-4, atol=1e-5)
    assert not torch.equal(folded[-1], expected[-1])  # else nothing was folded


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.5])
def test_formula(eps):
    """Weights, bias, and each norm's own eps, by (w·x + b − mean) / √(var + eps) · gamma + beta in NumPy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=eps)).eval()
    conv, norm = model
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.uniform_(0.01, 1)
    values = {name: x.detach().double().numpy() for name, x in [*conv.named_parameters("conv"), *norm.named_parameters("norm")]}
    mean, var = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    scale = values["norm.weight"] / (var + eps) ** 0.5
    fold_batch_norms(model)
    assert norms_in(model) == []
    for found, expected in (
        (model[0].weight, values["conv.weight"] * scale[:, None, None, None]),
        (model[0].bias, (values["conv.bias"] - mean) * scale + values["norm.bias"]),
    ):
        torch.testing.assert_close(found.detach().double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)


class TestFrozenBackbone:
    @pytest.fixture
    def model(self, tiny_config):
        return shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he"))).train()

    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_same_features_in_training_and_evaluation(self, model, autocast, dtype):
        """Bit for bit under one precision: with and without gradients, before, between and after steps."""
        model.config.frozen_backbone_dtype = model.base_model.config.frozen_backbone_dtype = dtype
        model.to(memory_format=torch.channels_last)
        x = torch.randn(2, 3, 64, 64)
        labels = torch.zeros(2, 64, 64, dtype=torch.long)
        features = []
        for mode in ("eval", "train", "eval", "inference", "train"):
            model.train(mode == "train")
            precision = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
            with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"), precision:
                features.append(model.base_model.backbone_maps(x))
                loss = model(x, labels=labels).loss
            if mode == "train":
                loss.backward()
        for others in features[1:]:
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(others, features[0], strict=True))

    def test_no_graph_unless_asked_for(self, model):
        x = torch.randn(1, 3, 64, 64)
        assert not any(y.requires_grad for y in model.base_model.backbone_maps(x))
        x.requires_grad_()  # as saliency maps and adversarial examples want it
        model.eval()(x).logits.square().mean().backward()
        assert x.grad.abs().sum() > 0
        assert all(p.grad is None for p in model.base_model.backbone.parameters())
        with torch.no_grad():
            assert not any(y.requires_grad for y in model.base_model.backbone_maps(x))

    def test_thawed_parameter_is_trained_and_said(self, model, monkeypatch):
        said = []
        monkeypatch.setattr(modeling_revhrnet.logger, "warning_once", said.append)
        weight = next(p for p in model.base_model.backbone.parameters() if p.ndim == 4)
        before = {key: x.clone() for key, x in model.state_dict().items() if ".backbone." in key}
        model(torch.randn(2, 3, 64, 64))
        assert said == []
        weight.requires_grad_()
        model(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
        assert weight.grad.abs().sum() > 0
        assert len(said) == 1 and said[0].startswith(f"{weight.numel():,} parameters in the frozen backbone require a gradient")
        assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items() if key in before)  # statistics too

    def test_hooks_hear_each_convolution_once_with_its_values(self, model):
        x = torch.randn(1, 3, 64, 64)
        heard = {"train": {}, "eval": {}}
        mode = "train"
        for name, module in model.base_model.backbone.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, y, name=name: heard[mode].setdefault(name, []).append(y.clone()))
        model(x).logits.sum().backward()
        mode = "eval"
        with torch.no_grad():
            model.eval()(x)
        assert len(heard["train"]) > 10
        for name, (y,) in heard["train"].items():
            assert torch.equal(y, heard["eval"][name][0]), name

    @pytest.mark.parametrize("head", ["single", "concat"])
    def test_lora(self, tiny_config, head):
        """LoRA's layers on backbone, streams and head get gradients; merged, they predict the same."""
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        model = shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he", head=head)))
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = model(x).logits
        targets = r".*(backbone.*layer\d.*conv1|branches.*conv2|head\.0)"
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.1))
        with torch.no_grad():
            # At first an adapter adds 0.
            torch.testing.assert_close(adapted.eval()(pixel_values=x).logits, expected, rtol=1e-3, atol=1e-3)
        adapted.train()
        for _ in range(2):  # the first step's gradients of lora_A are 0
            adapted(pixel_values=x, labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
            torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1).step()
        lora = {name: p.grad for name, p in adapted.named_parameters() if "lora_" in name}
        for part in ("backbone", "branches", "head"):
            grads = [g for name, g in lora.items() if part in name]
            assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)
        with torch.no_grad():
            after = adapted.eval()(pixel_values=x).logits
            assert not torch.allclose(after, expected, rtol=1e-3)
            torch.testing.assert_close(adapted.merge_and_unload()(x).logits, after, rtol=1e-4, atol=1e-4)

    def test_in_bfloat16(self, tiny_config, model, tmp_path):
        """Maps near float32's, in float32; weights, gradients of the rest and the checkpoint are float32."""
        model.save_pretrained(tmp_path)
        half = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, frozen_backbone_dtype="bfloat16").train()
        x = torch.randn(2, 3, 64, 64)
        for a, b in zip(half.revhrnet.backbone_maps(x), model.revhrnet.backbone_maps(x), strict=True):
            assert a.dtype == torch.float32
            assert 0 < (a - b).abs().max() < 0.1 * b.abs().max()
        half(x, labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss.backward()
        for name, p in half.named_parameters():
            assert p.dtype == torch.float32
            assert (p.grad is None) is (".backbone." in name)
        whole = model.state_dict()
        assert all(torch.equal(x, whole[key]) for key, x in half.state_dict().items() if ".backbone." in key)


class TestOptimizeForInference:
    @pytest.mark.parametrize("architecture", ["revhrnet", "hrnetv2"])
    def test_same_label_maps_and_neither_trained_nor_saved(self, tiny_config, architecture, tmp_path):
        if architecture == "revhrnet":
            model = shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he")))
        else:
            model = shaken(HRNetV2ForSemanticSegmentation(HRNetV2Config(**TINY_HRNET)))
        nn.init.normal_(model.head[3].weight)
        images = torch.randn(3, 3, 70, 90)
        with torch.no_grad():
            model.head[3].bias.sub_(model(images).logits.mean(dim=(0, 2, 3)))  # no class is ahead of the others everywhere
            model.save_pretrained(tmp_path / "saved")
            expected = model(images).logits
            optimized = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved").optimize_for_inference()
            logits = optimized(images).logits
        assert norms_in(optimized) == []
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
        assert len(expected.argmax(1).unique()) > 1
        assert optimized.eval() is optimized
        for act in (optimized.train, lambda: optimized.save_pretrained(tmp_path / "again"), optimized.base_model.train):
            with pytest.raises(RuntimeError, match=r"optimized for inference.*Load the checkpoint again"):
                act()
        assert not (tmp_path / "again").exists()

    @pytest.mark.parametrize("architecture", ["revhrnet", "hrnetv2"])
    def test_another_dtype_is_taken_after_folding(self, tiny_config, architecture):
        if architecture == "revhrnet":
            model = shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he")))
        else:
            model = shaken(HRNetV2ForSemanticSegmentation(HRNetV2Config(**TINY_HRNET)))
        nn.init.normal_(model.head[3].weight)
        folded = copy.deepcopy(model).optimize_for_inference()
        half = copy.deepcopy(model).optimize_for_inference(dtype=torch.bfloat16)
        for name, parameter in half.named_parameters():
            assert torch.equal(parameter, folded.get_parameter(name).bfloat16())
        images = torch.randn(1, 3, 96, 128)
        with torch.no_grad():
            expected, logits = model(images).logits, half(images.bfloat16()).logits
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()
        with pytest.raises(ValueError, match=r"dtype=torch.int8\): give a floating-point dtype"):
            model.optimize_for_inference(dtype=torch.int8)
        assert norms_in(model)

    def test_a_backbone_that_accepts_one_size_only(self):
        settings = {"stream_channels": [4, 4, 4, 4], "num_modules": [1, 1, 1], "num_blocks": 1, "initializer": "he"}
        model = shaken(RevHRNetForSemanticSegmentation(RevHRNetConfig(backbone="cait_xxs24_224", **settings)))
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            expected = model(x).logits
            model.optimize_for_inference()
            assert norms_in(model) == []
            torch.testing.assert_close(model(x).logits, expected, rtol=1e-3, atol=1e-3)

    def test_after_use(self, tiny_config):
        """A model that was trained before."""
        model = shaken(RevHRNetModel(tiny_config(initializer="he")))
        x = torch.randn(2, 3, 64, 64)
        model.train()(x)
        expected = model.eval()(x).last_hidden_state
        model.optimize_for_inference()
        assert norms_in(model) == []
        torch.testing.assert_close(model(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
