"""Folded BatchNorms against the same networks unfolded."""

import copy
import pickle
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetForSemanticSegmentation, RevHRNetModel
from revhrnet_hf.models.folding import conv_norm_pairs, fold_for_good, fold_while_frozen, unfold

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
        fold_for_good(model)
        assert norms_in(model) == ["norm", "of_twice", "alone"]
        torch.testing.assert_close(model(x), expected)


# Of the last two, DenseNet and the pre-activation ResNet, some BatchNorms follow no convolution.
@pytest.mark.parametrize(("name", "left"), [("test_resnet", 0), ("test_efficientnet", 0), ("mobilenetv3_small_050", 0),
                                            ("tf_efficientnet_lite0", 0), ("resnetv2_18", 8)])  # fmt: skip
def test_timms_networks(name, left):
    model = shaken(timm.create_model(name, features_only=True))
    before = {key: x.clone() for key, x in model.state_dict().items()}
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        fold_while_frozen(model)
        folded = model(x)
        copied = copy.deepcopy(model)
        pickled = pickle.loads(pickle.dumps(model))
        for a, b, c, d in zip(folded, expected, copied(x), pickled(x), strict=True):
            scale = b.abs().max()
            torch.testing.assert_close(a / scale, b / scale, rtol=1e-4, atol=1e-5)
            assert torch.equal(a, c)
            assert torch.equal(a, d)
        assert not torch.equal(folded[-1], expected[-1])  # else nothing was folded
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())
    unfold(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x), expected, strict=True))
    fold_for_good(model)
    assert len(norms_in(model)) <= left


class TestFrozenBackbone:
    @pytest.fixture
    def model(self, tiny_config):
        return shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he"))).train()

    def test_only_in_training(self, model):
        """What a model predicts is that of the unfolded network to the bit, before, between and after steps."""
        x = torch.randn(2, 3, 64, 64)
        expected = self.expected_maps(model, x)
        for training in (False, True, False, True):
            maps = model.train(training).revhrnet.backbone_maps(x)
            assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True)) is not training

    @staticmethod
    def expected_maps(model, x):
        plain = copy.deepcopy(model.revhrnet.backbone)
        unfold(plain)
        with torch.no_grad():
            return plain(x, return_dict=True).feature_maps

    def test_follows_every_change_of_the_weights(self, model):
        """Loading, casting, and in-place changes of a weight or a statistic."""
        x = torch.randn(1, 3, 64, 64)
        state = {key: value + 0.05 for key, value in model.revhrnet.backbone.state_dict().items()}
        weight = next(model.revhrnet.backbone.parameters())
        norm = next(m for m in model.revhrnet.backbone.modules() if isinstance(m, nn.BatchNorm2d))

        def in_place(tensor):
            with torch.no_grad():
                tensor.mul_(1.5)

        changes = (
            lambda: None,
            lambda: in_place(weight),
            lambda: in_place(norm.running_mean),
            lambda: model.revhrnet.backbone.load_state_dict(state),
            model.double,
        )
        maps = []
        for change in changes:
            change()
            x = x.to(next(model.parameters()).dtype)
            maps.append(model.revhrnet.backbone_maps(x))
            for a, b in zip(maps[-1], self.expected_maps(model, x), strict=True):
                assert a.dtype == b.dtype
                scale = b.abs().max()
                torch.testing.assert_close(a / scale, b / scale, rtol=1e-4, atol=1e-5)
        for before, after in pairwise(maps[:4]):
            assert not torch.allclose(before[0], after[0], rtol=1e-3)

    def test_hooks_are_heard_and_thawing_trains(self, model):
        x = torch.randn(1, 3, 64, 64)
        model(x)
        calls = []
        for module in model.revhrnet.backbone.modules():
            module.register_forward_hook(lambda *_: calls.append(1))
        model(x)
        assert len(calls) > 10
        model.revhrnet.backbone.requires_grad_(True)
        model.revhrnet.backbone(x).feature_maps[0].sum().backward()
        assert all(p.grad is not None for p in list(model.revhrnet.backbone.parameters())[:3])

    @pytest.mark.slow
    def test_compiled_afterwards(self, model):
        x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        plain = copy.deepcopy(model).double()(x).logits
        model.double()(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x).logits
        torch.testing.assert_close(compiled, plain, rtol=1e-10, atol=1e-10)

    def test_replica_of_data_parallel(self, model):
        """What nn.DataParallel makes, shallow copies of all modules, must not compute with the original's weights."""
        x = torch.randn(1, 3, 64, 64)
        expected = model.revhrnet.backbone_maps(x)
        copies = {module: module._replicate_for_data_parallel() for module in model.revhrnet.modules()}
        for module, replica in copies.items():
            replica._modules = {name: copies[child] for name, child in module._modules.items()}
            replica._parameters = {name: None if p is None else 2 * p.detach() for name, p in module._parameters.items()}
        replica = copies[model.revhrnet]
        maps = replica.backbone_maps(x)
        assert not any(torch.allclose(a, b) for a, b in zip(maps, expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(model.revhrnet.backbone_maps(x), expected, strict=True))

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
        assert all(torch.equal(x, model.state_dict()[key]) for key, x in half.state_dict().items() if ".backbone." in key)


class TestOptimizeForInference:
    @pytest.mark.parametrize("architecture", ["revhrnet", "hrnetv2"])
    def test_same_label_maps_and_neither_trained_nor_saved(self, tiny_config, architecture, tmp_path):
        if architecture == "revhrnet":
            model = shaken(RevHRNetForSemanticSegmentation(tiny_config(initializer="he")))
        else:
            model = shaken(HRNetV2ForSemanticSegmentation(HRNetV2Config(**TINY_HRNET)))
        nn.init.normal_(model.head[3].weight)
        model.save_pretrained(tmp_path / "saved")
        pictures = torch.randn(3, 3, 70, 90)
        with torch.no_grad():
            expected = model(pictures).logits
            optimized = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "saved").optimize_for_inference()
            logits = optimized(pictures).logits
        assert norms_in(optimized) == []
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits.argmax(1), expected.argmax(1))
        assert len(expected.argmax(1).unique()) > 1
        assert optimized.eval() is optimized
        for act in (optimized.train, lambda: optimized.save_pretrained(tmp_path / "again"), optimized.base_model.train):
            with pytest.raises(RuntimeError, match=r"optimized for inference.*Load the checkpoint again"):
                act()
        assert not (tmp_path / "again").exists()

    def test_after_use(self, tiny_config):
        """A model whose frozen backbone already computes folded."""
        model = shaken(RevHRNetModel(tiny_config(initializer="he")))
        x = torch.randn(2, 3, 64, 64)
        expected = model(x).last_hidden_state
        model.train().backbone_maps(x)
        model.optimize_for_inference()
        assert norms_in(model) == []
        torch.testing.assert_close(model(x).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
