"""Backbones between frozen and fine-tuned: what is trained changes, and the rest keeps its bits."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, TimmBackboneConfig

from revhrnet_hf import HRNetV2Config, RevHRNetConfig, RevHRNetForSemanticSegmentation

SMALL = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 5, "initializer": "he"}
HRNET = {"stem_channels": 8, "stage1_channels": 8, "stage1_blocks": 1, "num_blocks": 1}
HRNET |= {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1]}

# What a person reads off each network's code as its last stage.
LAST_STAGES = {"test_resnet": ("layer4.",), "test_convnext": ("stages_3.",), "test_vit": ("model.blocks.4.", "model.blocks.5."),
               "hrnetv2": ("stage4.", "transition3.")}  # fmt: skip


def model_on(name, **settings):
    torch.manual_seed(0)
    backbone = {"backbone_config": HRNetV2Config(**HRNET)} if name == "hrnetv2" else {"backbone": name}
    return RevHRNetForSemanticSegmentation(RevHRNetConfig(**backbone, **SMALL, **settings))


def changed_by_training(model):
    """Names of the backbone's tensors that two steps of SGD have changed."""
    backbone = model.base_model.backbone
    before = {name: x.clone() for name, x in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    for _ in range(2):
        model.train()
        model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, x in backbone.state_dict().items() if not torch.equal(x, before[name])}


@pytest.mark.parametrize("name", LAST_STAGES)
def test_last_stage(name):
    model = model_on(name, trainable_backbone="last_stage")
    backbone = model.base_model.backbone
    prefix = "" if name == "hrnetv2" else "_backbone."
    expected = {key for key in backbone.state_dict() if key.removeprefix(prefix).startswith(LAST_STAGES[name])}
    assert {key for key, p in backbone.named_parameters() if p.requires_grad} == expected & dict(
        backbone.named_parameters()
    ).keys()
    assert changed_by_training(model) == expected  # running statistics too
    trains = {key for key, module in backbone.named_modules() if module.training}
    assert trains and all(f"{key}.".removeprefix(prefix).startswith(LAST_STAGES[name]) for key in trains)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_norms(name):
    """Their weights and biases, and neither a convolution nor running statistics."""
    model = model_on(name, trainable_backbone="norms")
    changed = changed_by_training(model)
    state = model.base_model.backbone.state_dict()
    assert changed and all(state[key].ndim == 1 for key in changed)
    assert not any("running" in key or "batches" in key for key in changed)
    norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    modules = {key for key, m in model.base_model.backbone.named_modules() if isinstance(m, norms)}
    assert {key.rpartition(".")[0] for key in changed} == modules
    assert not any(module.training for module in model.base_model.backbone.modules())


@pytest.mark.parametrize("choice", ["none", "all"])
def test_none_and_all(choice):
    model = model_on("test_resnet", trainable_backbone=choice)
    changed = changed_by_training(model)
    assert changed == (set(model.base_model.backbone.state_dict()) if choice == "all" else set())


def test_no_graph_before_the_last_stage():
    """Frozen layers keep nothing for the backward pass."""
    model = model_on("test_resnet", trainable_backbone="last_stage").train()
    needs = {}
    for name, module in model.base_model.backbone._backbone.named_children():
        module.register_forward_hook(lambda _m, _i, y, name=name: needs.update({name: y.requires_grad}))
    model(torch.randn(2, 3, 64, 64))
    assert needs["layer4"] and not any(needs[name] for name in needs if name != "layer4")


@pytest.mark.parametrize("choice", ["last_stage", "norms"])
def test_saved_and_loaded(choice, tmp_path):
    model = model_on("test_resnet", trainable_backbone=choice)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.trainable_backbone == choice and not loaded.config.freeze_backbone
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == wanted
    frozen = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, trainable_backbone="none")
    assert not any(p.requires_grad for p in frozen.base_model.backbone.parameters())


class TestConfig:
    def test_freeze_backbone_says_none_or_all(self):
        backbone = TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4])
        for freeze, choice in ((True, "none"), (False, "all")):
            assert RevHRNetConfig(backbone_config=backbone, freeze_backbone=freeze).trainable_backbone == choice
        config = RevHRNetConfig(backbone_config=backbone, trainable_backbone="norms")
        assert not config.freeze_backbone
        config.freeze_backbone = True
        assert config.trainable_backbone == "none"
        config.trainable_backbone = "last_stage"
        assert not config.freeze_backbone
        config.freeze_backbone = False
        assert config.trainable_backbone == "last_stage"

    def test_contradiction(self):
        with pytest.raises(ValueError, match="contradict each other"):
            RevHRNetConfig(freeze_backbone=False, trainable_backbone="none")

    @pytest.mark.parametrize(("name", "choice"), [("test_nfnet", "norms"), ("hrnet_w18_small", "last_stage")])
    def test_what_a_backbone_cannot_give(self, name, choice):
        config = RevHRNetConfig(backbone=name, trainable_backbone=choice, **SMALL)
        with torch.device("meta"), pytest.raises(ValueError, match=f"trainable_backbone='{choice}': the backbone has no"):
            RevHRNetForSemanticSegmentation(config)
