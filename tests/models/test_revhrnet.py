"""The network against closed formulas, timm's HRNet module, brute force, and what Transformers promises of its models."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, TimmBackboneConfig

import revhrnet_hf
from revhrnet_hf.models.high_resolution import HighResolutionModule
from revhrnet_hf.models.losses import labelled_weight, segmentation_loss


def test_variant_sizes(revhrnet_parameter_table):
    """Millions of parameters, all and trained, with 19 classes: computed for the paper's reading, independently of this code."""
    for (variant, final_block), (total, trained) in revhrnet_parameter_table.items():
        config = revhrnet_hf.RevHRNetConfig.from_variant(variant, final_block=final_block, num_labels=19)
        with torch.device("meta"):
            model = revhrnet_hf.RevHRNetForSemanticSegmentation(config)
        assert round(model.num_parameters() / 1e6, 2) == total
        assert round(model.num_parameters(only_trainable=True) / 1e6, 2) == trained
        assert sum(p.numel() for p in model.revhrnet.backbone.parameters()) == 23_508_032


@pytest.fixture
def revhrnet_parameter_table():
    return {
        ("w18", "basic"): (32.69, 9.19),
        ("w32", "basic"): (51.96, 28.45),
        ("w48", "basic"): (86.96, 63.45),
        ("w48", "bottleneck"): (87.14, 63.64),
    }


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (31, 129)])
@pytest.mark.parametrize("head", ["single", "concat"])
def test_any_size(tiny_config, size, head):
    """Maps at strides 4, 8, 16, 32, each half of the one before, rounded up; logits at stride 4."""
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(head=head)).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size), output_hidden_states=True)
    for stride, channels, x in zip((4, 8, 16, 32), model.config.stream_channels, outputs.hidden_states, strict=True):
        assert x.shape == (2, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    assert outputs.logits.shape == (2, 5, math.ceil(size[0] / 4), math.ceil(size[1] / 4))


def test_backbone_that_rounds_down(tiny_config):
    """A patchifying backbone drops the rest of an odd size (22×15, 11×7, 5×3, 2×1), so that streams do not halve exactly."""
    from transformers import ConvNextConfig

    backbone = ConvNextConfig(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(backbone_config=backbone)).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 91, 61)).logits.shape == (1, 5, 22, 15)


def test_module_equals_timm():
    """The building block with timm's HRNet weights gives timm's streams (timm's upsampling set to bilinear, as in HRNetV2)."""
    from timm.models.hrnet import BasicBlock
    from timm.models.hrnet import HighResolutionModule as Reference

    channels = [6, 10, 14]
    reference = Reference(3, BasicBlock, [2, 2, 2], list(channels), list(channels), "SUM").eval()
    for layer in reference.modules():
        if isinstance(layer, torch.nn.Upsample):
            layer.mode, layer.align_corners = "bilinear", False
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_mean, -1, 1)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    ours = HighResolutionModule(channels, num_blocks=2).eval()
    ours.load_state_dict(reference.state_dict())
    streams = [torch.randn(2, c, 32 // 2**i, 40 // 2**i) for i, c in enumerate(channels)]
    with torch.no_grad():
        exchanged = ours(*[x.clone() for x in streams])
        expected = reference([x.clone() for x in streams])
    for x, y in zip(exchanged, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_last_module_builds_only_its_rows():
    """Dropping a stream changes nothing for those that stay; what the stream was is handed out."""
    torch.manual_seed(0)
    whole = HighResolutionModule([6, 10, 14], num_blocks=1).eval()
    short = HighResolutionModule([6, 10, 14], num_blocks=1, num_outputs=2).eval()
    short.load_state_dict({k: v for k, v in whole.state_dict().items() if k in short.state_dict()})
    streams = [torch.randn(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate([6, 10, 14])]
    with torch.no_grad():
        everything = whole(*[x.clone() for x in streams])
        *exchanged, ended = short(*[x.clone() for x in streams])
        coarsest = whole.branches[2](streams[2])
    assert all(torch.equal(x, y) for x, y in zip(exchanged, everything[:2], strict=True))
    assert torch.equal(ended, coarsest)


def test_reading_of_the_stages():
    """R1 has 3 modules of 4 streams, R2 4 of 3, R3 1 of 2, R4 one stream of 4 blocks; only the last of each drops a stream."""
    with torch.device("meta"):
        model = revhrnet_hf.RevHRNetModel(revhrnet_hf.RevHRNetConfig.from_variant("w48"))
    shape = [[(len(m.branches), len(m.fuse_layers), len(m.branches[0])) for m in stage] for stage in model.stages]
    assert shape == [[(4, 4, 4)] * 2 + [(4, 3, 4)], [(3, 3, 4)] * 3 + [(3, 2, 4)], [(2, 1, 4)]]
    assert len(model.final_stage) == 4
    assert [tuple(lateral[0].weight.shape) for lateral in model.laterals] == [
        (48, 256, 1, 1),
        (96, 512, 1, 1),
        (192, 1024, 1, 1),
        (384, 2048, 1, 1),
    ]


def test_initialisation(tiny_config):
    """HRNet's: convolutions N(0, 0.001), BatchNorm 1 and 0; the backbone keeps timm's own."""
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config())
    convolutions = [m for m in model.revhrnet.stages.modules() if isinstance(m, torch.nn.Conv2d)]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert weights.std().item() == pytest.approx(0.001, rel=0.02)
    assert all(bool((m.weight == 1).all()) for m in model.head.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert model.revhrnet.backbone._backbone.conv1[0].weight.std() > 0.01


def test_he_initialization(tiny_config):
    """N(0, 2 / n) with n the inputs of an output (He et al. 2015), for 3×3 and 1×1 convolutions alike."""
    torch.manual_seed(0)
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he", stream_channels=[32, 64, 96, 128]))
    large = [m for m in model.revhrnet.stages.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000]
    assert {m.kernel_size for m in large} == {(1, 1), (3, 3)}
    for conv in large:
        inputs = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert conv.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
        assert abs(conv.weight.mean().item()) < 4 * (2 / inputs / conv.weight.numel()) ** 0.5


@pytest.mark.parametrize("final_block", ["basic", "bottleneck"])
def test_residual_blocks_begin_as_the_identity(tiny_config, final_block):
    """With `zero_init_residual`; so the network begins as its laterals, exchange units and head, and learns all the same."""
    torch.manual_seed(0)
    config = tiny_config(initializer="he", zero_init_residual=True, final_block=final_block)
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train()
    for channels, branch in zip(config.stream_channels, model.revhrnet.stages[0][0].branches, strict=True):
        x = torch.rand(2, channels, 8, 8)
        assert torch.equal(branch(x), x)
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    ends = [p for name, p in model.revhrnet.final_stage.named_parameters() if name.endswith(("bn2.weight", "bn3.weight"))]
    assert any(bool(p.grad.abs().sum() > 0) for p in ends)
    bare = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he", final_block=final_block)).train()
    assert not torch.equal(bare.revhrnet.stages[0][0].branches[0](x[:, :8]), x[:, :8])


def test_exchange_units_begin_as_the_identity(tiny_config):
    """With `zero_init_exchange`, and with `zero_init_residual` too the feature maps begin as the laterals of the backbone's."""
    torch.manual_seed(0)
    config = tiny_config(initializer="he", zero_init_residual=True, zero_init_exchange=True, head="concat")
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train()
    x = torch.randn(2, 3, 64, 64)
    network = model.revhrnet
    begin = [lateral(map) for lateral, map in zip(network.laterals, network.backbone_maps(x), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(network(x).feature_maps, begin, strict=True))
    model(x, labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    for path in (network.stages[0][0].fuse_layers[0][1], network.stages[0][0].fuse_layers[1][0]):
        assert list(path.modules())[-1].weight.grad.abs().sum() > 0  # which learns, and with it the path
    config.zero_init_exchange = False
    network = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train().revhrnet
    begin = [lateral(map) for lateral, map in zip(network.laterals, network.backbone_maps(x), strict=True)]
    assert not torch.equal(network(x).last_hidden_state, begin[0])


@pytest.mark.parametrize("settings", [{}, {"head": "concat"}, {"final_block": "bottleneck"}])
def test_no_parameter_is_unused(tiny_config, settings):
    """Every trained parameter gets a gradient, frozen or not; a frozen backbone gets none and builds no graph."""
    for freeze in (True, False):
        model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(freeze_backbone=freeze, **settings)).train()
        maps = []
        model.revhrnet.backbone.register_forward_hook(lambda *call, maps=maps: maps.extend(call[2].feature_maps))
        model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
        assert all(x.requires_grad is not freeze for x in maps)
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) is (freeze and ".backbone." in name), name


def test_outputs_as_tuple_and_dict(tiny_model):
    x, y = torch.randn(1, 3, 64, 64), torch.randint(0, 5, (1, 64, 64))
    with torch.no_grad():
        outputs = tiny_model(x, labels=y, output_hidden_states=True)
        loss, logits, hidden_states = tiny_model(x, labels=y, output_hidden_states=True, return_dict=False)
        assert torch.equal(loss, outputs.loss)
        assert torch.equal(logits, outputs.logits)
        assert all(torch.equal(a, b) for a, b in zip(hidden_states, outputs.hidden_states, strict=True))
        assert tiny_model(x).hidden_states is None
        base = tiny_model.revhrnet(x)
    assert torch.equal(base.last_hidden_state, hidden_states[0])
    assert len(base.feature_maps) == 4


def test_batching_changes_nothing(tiny_model):
    """In float64: processors sum float32 in another order for another number of images."""
    x, model = torch.randn(3, 3, 70, 50, dtype=torch.float64), tiny_model.double()
    with torch.no_grad():
        together = model(x).logits
        alone = torch.cat([model(x[i : i + 1]).logits for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_save_and_load(tiny_model, tmp_path):
    x = torch.randn(1, 3, 64, 64)
    tiny_model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = tiny_model(x).logits
        assert torch.equal(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)(x).logits, expected)
        base = AutoModel.from_pretrained(tmp_path)
        assert torch.equal(base(x).last_hidden_state, tiny_model.revhrnet(x).last_hidden_state)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is revhrnet_hf.RevHRNetConfig
    assert config.backbone_config.to_dict() == tiny_model.config.backbone_config.to_dict()
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).state_dict()
    for name, tensor in tiny_model.state_dict().items():  # BatchNorm statistics among them
        assert torch.equal(loaded[name], tensor), name


class TestFrozen:
    def test_modes_and_gradients(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        loaded, _ = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        for model in (tiny_model, loaded, AutoModel.from_pretrained(tmp_path)):
            model.train()
            backbone = model.base_model.backbone
            assert model.training
            assert model.base_model.laterals.training
            assert not any(module.training for module in backbone.modules())
            assert not any(parameter.requires_grad for parameter in backbone.parameters())
            assert all(p.requires_grad for name, p in model.named_parameters() if "backbone." not in name)

    def test_training_leaves_it_bit_for_bit(self, tiny_model):
        backbone = tiny_model.revhrnet.backbone
        before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
        lateral = tiny_model.revhrnet.laterals[0][0].weight.clone()
        # All parameters, as somebody who does not know might do.
        optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            tiny_model.train()
            tiny_model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
        assert not torch.equal(tiny_model.revhrnet.laterals[0][0].weight, lateral)

    def test_can_be_trained_instead(self, tiny_model, tmp_path):
        tiny_model.save_pretrained(tmp_path)
        model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, freeze_backbone=False).train()
        assert model.revhrnet.backbone.training
        assert all(parameter.requires_grad for parameter in model.parameters())


class TestLoss:
    def test_plain_and_weighted_equal_torch(self):
        logits, labels = torch.randn(2, 4, 6, 8), torch.randint(0, 4, (2, 23, 31))
        labels[0, :5] = 255
        up = F.interpolate(logits, size=(23, 31), mode="bilinear", align_corners=False)
        for weights in (None, [0.5, 1.0, 2.0, 3.0]):
            weight = None if weights is None else torch.tensor(weights)
            expected = F.cross_entropy(up, labels, weight=weight, ignore_index=255)
            torch.testing.assert_close(segmentation_loss(logits, labels, class_weights=weights), expected)

    @pytest.mark.parametrize("min_kept", [0, 50, 900, 10_000])
    def test_ohem_by_sorting(self, min_kept):
        """Mean over the pixels below the larger of the threshold and the probability of the `min_kept`-th hardest pixel."""
        logits, labels = torch.randn(2, 4, 23, 31) * 3, torch.randint(0, 4, (2, 23, 31))
        labels[1, 3:9] = 255
        loss = segmentation_loss(logits, labels, ohem_threshold=0.3, ohem_min_kept=min_kept)
        pixels = []
        for b, i, j in (labels != 255).nonzero().tolist():
            probability = logits[b, :, i, j].softmax(0)[labels[b, i, j]].item()
            pixels.append(probability)
        pixels.sort()
        limit = max(0.3, pixels[min_kept]) if min_kept < len(pixels) else 2
        kept = [-math.log(p) for p in pixels if p < limit - 1e-9]
        assert loss.item() == pytest.approx(sum(kept) / len(kept), rel=1e-4)

    @pytest.mark.parametrize("ignore_index", [255, 3, -100])
    def test_ohem_with_class_weights_by_hand(self, ignore_index):
        """Pixels are chosen by probability; each loss has its class's weight; the sum is divided by the number of kept pixels."""
        logits, labels = torch.randn(2, 4, 9, 7) * 3, torch.randint(0, 3, (2, 9, 7))
        labels[1, 3:5] = ignore_index
        weights = [0.2, 1.0, 7.0, 100.0]
        loss = segmentation_loss(
            logits, labels, ignore_index=ignore_index, class_weights=weights, ohem_threshold=0.4, ohem_min_kept=5
        )
        pixels = []
        for b, i, j in (labels != ignore_index).nonzero().tolist():
            class_id = labels[b, i, j].item()
            pixels.append((logits[b, :, i, j].softmax(0)[class_id].item(), weights[class_id]))
        pixels.sort()
        limit = max(0.4, pixels[5][0])
        kept = [-math.log(probability) * weight for probability, weight in pixels if probability < limit]
        assert 5 <= len(kept) < len(pixels)
        assert loss.item() == pytest.approx(sum(kept) / len(kept), rel=1e-4)

    @pytest.mark.parametrize("ignore_index", [255, 2, 0, -100])
    def test_labelled_weight_by_counting(self, ignore_index):
        """Pixels that hold the ignore index do not count, whatever it is; 255 counts where it is a class."""
        num_classes = 4 if ignore_index == 255 else 256
        labels = torch.randint(0, 4, (2, 9, 7))
        labels[0, 0] = ignore_index
        if num_classes == 256:
            labels[1, 1] = 255
        weights = [1 + 0.5 * class_id for class_id in range(num_classes)]
        counted = [class_id for class_id in labels.flatten().tolist() if class_id != ignore_index]
        assert labelled_weight(labels, ignore_index).item() == len(counted)
        found = labelled_weight(labels, ignore_index, weights)
        assert found.item() == pytest.approx(sum(weights[class_id] for class_id in counted))
        logits = torch.randn(2, num_classes, 9, 7)
        for settings in ({}, {"class_weights": weights}):
            expected = F.cross_entropy(
                logits, labels, ignore_index=ignore_index, weight=torch.tensor(weights) if settings else None, reduction="mean"
            )
            torch.testing.assert_close(segmentation_loss(logits, labels, ignore_index=ignore_index, **settings), expected)

    def test_nothing_labelled_is_zero_and_nan_stays(self):
        logits = torch.randn(1, 4, 6, 8, requires_grad=True)
        nothing = torch.full((1, 6, 8), 255)
        for settings in ({}, {"class_weights": [1.0] * 4}, {"ohem_threshold": 0.9, "ohem_min_kept": 5}):
            loss = segmentation_loss(logits, nothing, **settings)
            assert loss.item() == 0
            (gradient,) = torch.autograd.grad(loss, logits)
            assert not gradient.any()
            broken = segmentation_loss(logits * torch.nan, torch.zeros_like(nothing), **settings)
            assert broken.isnan()


class TestBadConfig:
    def test_unknown_variant_lists_the_known(self):
        with pytest.raises(ValueError, match="w18, w32, w48, w24-5stream"):
            revhrnet_hf.RevHRNetConfig.from_variant("w64")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"num_modules": [1, 1]}, "num_modules must have one entry fewer"),
            ({"stream_channels": [8]}, "at least two streams"),
            ({"semantic_loss_class_weights": [1.0, 2.0]}, "2 for 5 classes"),
            ({"head": "triple"}, "head"),
            ({"num_blocks": "four"}, "num_blocks"),
            ({"num_blocks": 0}, "must be positive"),
        ],
    )
    def test_says_what_does_not_fit(self, tiny_config, settings, said):
        with pytest.raises(Exception, match=said):
            tiny_config(**settings)

    def test_number_of_maps_and_streams(self, tiny_config):
        config = tiny_config(stream_channels=[8, 12, 16], num_modules=[1, 1])
        with pytest.raises(ValueError, match=r"4 maps .* 3 streams"):
            revhrnet_hf.RevHRNetForSemanticSegmentation(config)


def test_timm_names_are_real():
    """The default backbone is one that timm has weights for."""
    assert timm.get_pretrained_cfg(revhrnet_hf.models.configuration_revhrnet.DEFAULT_BACKBONE).hf_hub_id


class TestMapsInPlaceOfPixels:
    @pytest.mark.parametrize(
        ("settings", "size"),
        [
            ({}, (70, 50)),
            ({"frozen_backbone_dtype": "bfloat16"}, (64, 96)),
            ({"backbone_config": TimmBackboneConfig(backbone="test_vit", out_indices=[0, 1, 2, 3])}, (50, 70)),
        ],
        ids=["resnet", "bfloat16", "vit"],
    )
    def test_same_output(self, tiny_config, settings, size):
        model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(**settings)).train()
        x, labels = torch.randn(2, 3, *size), torch.randint(0, 5, (2, *size))
        maps = model.base_model.run_backbone(x)
        assert maps[0].dtype == (torch.bfloat16 if "frozen_backbone_dtype" in settings else torch.float32)
        with torch.no_grad():
            expected = model(x, labels=labels)
            model.base_model.backbone.forward = None  # it is not called
            outputs = model(labels=labels, backbone_maps=maps, image_size=size)
        assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.loss, expected.loss)

    def test_both_or_neither_is_refused(self, tiny_model):
        x = torch.randn(1, 3, 64, 64)
        maps = {"backbone_maps": tiny_model.base_model.run_backbone(x), "image_size": (64, 64)}
        for given in ({}, {"pixel_values": x, **maps}, {"backbone_maps": maps["backbone_maps"]}, {"image_size": (64, 64)}):
            with pytest.raises(ValueError, match="Give pixel_values; or, instead of them, backbone_maps"):
                tiny_model(**given)
