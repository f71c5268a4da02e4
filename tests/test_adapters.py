"""LoRA adapters against their formula, against layers that a person reads off each network, and merged in checkpoints."""

import json
import sys

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import Dinov2Config

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf.adapters import adapted_layers, add_adapters, merged, separate_state, separated
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.models import modeling_revhrnet
from revhrnet_hf.training.checkpoint import save_model_folder
from revhrnet_hf.training.recipe import Recipe

from . import forked

SMALL = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 5, "initializer": "he"}
TINY_DINOV2 = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


def network_on(backbone, **settings):
    torch.manual_seed(0)
    given = {"backbone": backbone} if isinstance(backbone, str) else {"backbone_config": backbone}
    return RevHRNetForSemanticSegmentation(RevHRNetConfig(**given, **SMALL, **settings))


def adapted(backbone, targets=None, rank=2, alpha=3.0):
    """A network whose adapters are no longer 0, as after training."""
    network = network_on(backbone)
    names = add_adapters(network, rank, alpha, targets)
    for layer in adapted_layers(network).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return network, names


def train(network, steps=2):
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        network.train()
        network(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return gradients


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_formula(backbone):
    """W + alpha / rank · B A (arXiv 2106.09685), also of convolutions; afterwards W has its bits again."""
    network, names = adapted(backbone)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    plain = network_on(backbone)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), merged(network) as weights:
        scored = network.eval()(x).logits
        assert list(weights) == list(plain.state_dict())
        for name in names:
            layer = network.base_model.backbone.get_submodule(name)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            expected = before[f"revhrnet.backbone.{name}.base_layer.weight"] + 3 / 2 * torch.einsum("or...,ri...->oi...", b, a)
            torch.testing.assert_close(weights[f"revhrnet.backbone.{name}.weight"], expected)
        plain.load_state_dict(weights)
        assert torch.equal(plain.eval()(x).logits, scored)  # the network that is scored is the one that is saved
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(x, before[name]) for name, x in after.items())
    torch.testing.assert_close(network.eval()(x).logits, scored, rtol=1e-3, atol=1e-4)
    assert (scored - network_on(backbone).eval()(x).logits).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_only_adapters_are_trained_in_the_backbone(backbone, monkeypatch):
    said = []
    monkeypatch.setattr(modeling_revhrnet.logger, "warning_once", said.append)
    network, names = adapted(backbone)
    for module in network.base_model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm begins with 0 in residual blocks, through which no gradient flows
    before = {name: x.clone() for name, x in network.base_model.backbone.state_dict().items()}
    gradients = train(network)
    after = network.base_model.backbone.state_dict()
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert changed == {f"{name}.lora_{part}.default.weight" for name in names for part in "AB"}
    assert all(g.abs().sum() > 0 for name, g in gradients.items() if "lora_" in name)
    assert not any(module.training for module in network.base_model.backbone.modules())
    assert said == []  # it is no surprise that the backbone's activations are kept


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_fp16_with_its_scaler(backbone):
    """Under autocast the adapters' gradients are float32's but for rounding; a step whose gradients overflow changes nothing."""
    network, _ = adapted(backbone)
    adapters = {name: p for name, p in network.train().named_parameters() if "lora_" in name}
    x, y = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    optimizer = torch.optim.SGD(adapters.values(), lr=0.1)

    def gradients(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        with torch.autocast("cpu", torch.float16, enabled=scale is not None):
            loss = network(x, labels=y).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = torch.cat([p.grad.flatten() for p in adapters.values()])
        scaler.step(optimizer) if scale is not None else None
        optimizer.zero_grad()
        return found

    plain = gradients(None)
    before = [p.clone() for p in adapters.values()]
    assert not torch.isfinite(gradients(2.0**40)).all()
    assert all(map(torch.equal, before, adapters.values()))
    half = gradients(1024.0)
    assert half.dtype == torch.float32 and torch.cosine_similarity(half, plain, 0) > 0.99
    assert half.norm() == pytest.approx(plain.norm().item(), rel=0.1)
    assert not all(map(torch.equal, before, adapters.values()))


@pytest.mark.parametrize(
    ("backbone", "own_names", "others"),
    [
        ("test_vit", {"attn.qkv", "attn.proj"}, {"mlp.fc1"}),
        ("swin_tiny_patch4_window7_224", {"attn.qkv", "attn.proj"}, {"mlp.fc1", "downsample.reduction"}),
        ("pvt_v2_b0", {"attn.q", "attn.kv", "attn.proj"}, {"mlp.fc1"}),
        ("beitv2_base_patch16_224", {"attn.proj"}, {"attn.qkv"}),  # timm reads the weight of qkv, and does not call it
        ("test_convnext", {"mlp.fc1", "mlp.fc2", "downsample.1"}, {"0.conv_dw"}),
        ("mobilenetv3_small_050", {"0.conv_pw", "0.conv_pwl"}, {"0.conv_dw", "se.conv_reduce", "_backbone.conv_stem"}),
    ],
)
def test_default_targets(backbone, own_names, others):
    with torch.device("meta"):
        network = network_on(backbone)
        names = {".".join(name.split(".")[-2:]) for name in add_adapters(network, 2, 2.0)}
    layers = {".".join(name.split(".")[-2:]) for name, _ in network.named_modules()}
    assert own_names <= names and others <= layers and not others & names


def test_attention_of_a_transformers_backbone():
    """Query, key, value and output of each layer, whatever their names in this version."""
    names = add_adapters(network_on(Dinov2Config(**TINY_DINOV2, out_indices=[1, 2, 3, 4])), 2, 2.0)
    assert len(names) == 4 * TINY_DINOV2["num_hidden_layers"] and all("attention" in name for name in names)


class TestRefused:
    @pytest.mark.parametrize(
        ("backbone", "targets", "said"),
        [
            ("test_vit", ["qvk"], r"has no layer 'qvk' \(did you mean qkv\?\); layers that can be adapted are called fc1, "),
            ("test_vit", ["norm1"], r"blocks\.0\.norm1 is a LayerNorm, but only a Linear or a Conv2d"),
            ("tf_efficientnet_lite0", ["conv_stem"], "conv_stem is a Conv2dSame, but only"),
            ("beitv2_base_patch16_224", ["qkv"], r"lora_targets: an adapter of .*attn\.qkv, .* would have no effect"),
            ("test_nfnet", None, "finds no layer to adapt in a TimmBackbone: name layers by lora_targets, or use last_stage"),
            # PEFT adapts groups whose number divides the rank, and cannot merge them.
            ("mobilenetv3_small_050", ["conv_dw"], r"lora_targets: .*\.0\.conv_dw has 16 groups, and cannot have an adapter"),
        ],
    )
    def test_targets(self, backbone, targets, said):
        with torch.device("meta"), pytest.raises(RecipeError, match=said):
            add_adapters(network_on(backbone), 48, 2.0, targets)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"dilation": (2, 2), "padding": (2, 2)}, r"conv2 has the dilation 2, and cannot"),
            ({"padding_mode": "reflect"}, r"conv2 has the padding mode reflect, and cannot"),
        ],
    )
    def test_convolutions_that_peft_would_change(self, changes, said):
        """Its adapter of a convolution has neither the dilation nor the padding mode."""
        with torch.device("meta"):
            network = network_on("test_resnet")
        backbone = network.base_model.backbone
        changed = [name for name, layer in backbone.named_modules() if name.endswith(".conv2")]
        for name in changed:
            vars(backbone.get_submodule(name)).update(changes)
        with pytest.raises(RecipeError, match=said):
            add_adapters(network, 2, 2.0, ["conv2"])
        assert changed and not set(changed) & set(add_adapters(network, 2, 2.0))

    def test_without_peft(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(RecipeError, match=r'needs PEFT: pip install "revhrnet_hf\[lora\]"'):
            add_adapters(network_on("test_vit"), 2, 2.0)


def test_given_targets():
    _, names = adapted("test_vit", ["mlp.fc1", "_backbone.model.blocks.0.attn.qkv"])
    blocks = range(6)
    assert sorted(names) == ["_backbone.model.blocks.0.attn.qkv", *(f"_backbone.model.blocks.{i}.mlp.fc1" for i in blocks)]


def test_same_function_as_pefts_own():
    """On a linear layer beside ours, which PEFT itself adapts, merges and unloads."""
    network, names = adapted("test_vit")
    layer = network.base_model.backbone.get_submodule(names[0])
    other = torch.nn.ModuleDict({"one": torch.nn.Linear(layer.in_features, layer.out_features)})
    other.one.load_state_dict(layer.base_layer.state_dict())
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3.0, target_modules=["one"]), other)
    other.one.load_state_dict(layer.state_dict())
    other.one.merge()
    with merged(network) as weights:
        assert torch.equal(weights[f"revhrnet.backbone.{names[0]}.weight"], other.one.base_layer.weight)


def test_separated_state():
    network, _ = adapted("test_resnet")
    own = network.state_dict()
    with merged(network) as weights:
        weights = {name: x.clone() for name, x in weights.items()}
    found = separated(network, weights, separate_state(network))
    assert found.keys() == own.keys() and all(torch.equal(x, own[name]) for name, x in found.items())


WITHOUT_PEFT = """
import json, sys
sys.modules["peft"] = None
import torch
from transformers import AutoModelForSemanticSegmentation, pipeline
folder, image = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
assert "revhrnet_hf" not in sys.modules
torch.manual_seed(1)
with torch.no_grad():
    logits = model.eval()(torch.randn(1, 3, 64, 64)).logits
found = pipeline("image-segmentation", folder, trust_remote_code=True)(image)
print(json.dumps({"logits": logits.flatten().tolist(), "labels": [one["label"] for one in found]}))
"""


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_checkpoint_needs_neither_peft_nor_this_package(backbone, tmp_path):
    from PIL import Image

    from revhrnet_hf import RevHRNetImageProcessor

    network, _ = adapted(backbone)
    network.to(memory_format=torch.channels_last)
    save_model_folder(tmp_path / "checkpoint", network, RevHRNetImageProcessor(), Recipe(dataset="camvid"), None)
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["trainable_backbone"] == "none"
    Image.new("RGB", (64, 48), (90, 120, 40)).save(tmp_path / "image.png")
    command = [sys.executable, "-c", WITHOUT_PEFT, str(tmp_path / "checkpoint"), str(tmp_path / "image.png")]
    done = forked.run(command, capture_output=True, text=True, cwd=tmp_path, preloaded=forked.BARE)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    torch.manual_seed(1)
    with torch.no_grad(), merged(network):
        expected = network.eval()(torch.randn(1, 3, 64, 64)).logits
    torch.testing.assert_close(torch.tensor(said["logits"]), expected.flatten(), rtol=1e-4, atol=1e-5)
    assert said["labels"]
