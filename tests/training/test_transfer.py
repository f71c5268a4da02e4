"""Weights and classifier rows from one label space to the next."""

import pytest
import torch

import revhrnet_hf
from revhrnet_hf.data import get_label_space
from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.training.transfer import CLASSIFIER, transfer

from ..label_spaces import unnamed_space


@pytest.fixture
def make(tiny_config):
    def build(names, seed=0, **settings):
        torch.manual_seed(seed)
        config = tiny_config(id2label=dict(enumerate(names)), initializer="he", num_labels=len(names), **settings)
        return revhrnet_hf.RevHRNetForSemanticSegmentation(config)

    return build


@pytest.fixture
def cityscapes(make, tmp_path):
    names = get_label_space("cityscapes").names
    model = make(names, training_history=[{"dataset": "cityscapes"}], backbone_license="dinov3-license")
    model.save_pretrained(tmp_path / "cityscapes")
    revhrnet_hf.RevHRNetImageProcessor().save_pretrained(tmp_path / "cityscapes")
    return model, tmp_path / "cityscapes"


def test_rows_start_from_their_partners(make, cityscapes):
    before, folder = cityscapes
    space = get_label_space("camvid11")
    model = make(space.names, seed=1)
    handed = transfer(model, space, str(folder))
    given, found = before.state_dict(), model.state_dict()
    for name in CLASSIFIER:
        old, new = given[name], found[name]
        assert torch.equal(new[space.label2id["Road"]], old[0])
        torch.testing.assert_close(new[space.label2id["Car"]], (old[13] + old[14] + old[15] + old[16]) / 4)
    for name, tensor in found.items():
        assert name in CLASSIFIER or torch.equal(tensor, given[name]), name
    assert handed.rows["Tree"] == ["vegetation", "terrain"]
    assert handed.history == [{"dataset": "cityscapes"}]
    assert model.config.backbone_license == "dinov3-license"
    assert "  Tree ← vegetation + terrain" in str(handed)


def test_rows_without_a_partner_stay_random(make, cityscapes):
    before, folder = cityscapes
    space = unnamed_space(["sky", "giraffe"])
    fresh = make(space.names, seed=1)
    weight = fresh.head[3].weight.detach().clone()
    handed = transfer(fresh, space, str(folder))
    assert torch.equal(fresh.head[3].weight[0], before.head[3].weight[10])
    assert torch.equal(fresh.head[3].weight[1], weight[1])
    assert handed.rows == {"sky": ["sky"], "giraffe": []}


@pytest.mark.parametrize("before_has", [True, False])
@pytest.mark.parametrize("after_has", [True, False])
def test_auxiliary_classifiers(make, tmp_path, before_has, after_has):
    """Their rows are transferred too; where the checkpoint has none they are random, and those that nobody needs are left."""
    weight = {True: 0.4, False: None}
    before = make(get_label_space("cityscapes").names, auxiliary_loss_weight=weight[before_has])
    before.save_pretrained(tmp_path)
    revhrnet_hf.RevHRNetImageProcessor().save_pretrained(tmp_path)
    space = get_label_space("camvid11")
    model = make(space.names, seed=1, auxiliary_loss_weight=weight[after_has])
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    transfer(model, space, str(tmp_path))
    assert torch.equal(model.head[3].weight[space.label2id["Road"]], before.head[3].weight[0])
    given = before.state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("auxiliary_head."):
            expected = given[name][0] if before_has else fresh[name][space.label2id["Road"]]
            assert torch.equal(tensor[space.label2id["Road"]], expected)


def test_off(make, cityscapes):
    _, folder = cityscapes
    space = get_label_space("camvid11")
    model = make(space.names, seed=1)
    weight = model.head[3].weight.detach().clone()
    transfer(model, space, str(folder), with_classifier=False)
    assert torch.equal(model.head[3].weight, weight)
    assert torch.equal(model.head[0].weight, cityscapes[0].head[0].weight)


def test_frozen_backbone_stays_frozen(make, cityscapes):
    model = make(get_label_space("camvid11").names)
    transfer(model, get_label_space("camvid11"), str(cityscapes[1]))
    assert not any(parameter.requires_grad for parameter in model.revhrnet.backbone.parameters())


def test_other_networks_are_refused(make, cityscapes, tmp_path):
    _, folder = cityscapes
    space = get_label_space("camvid11")
    with pytest.raises(RecipeError, match=r"another network .*stages\.0\.0\.fuse_layers.* is in the checkpoint only"):
        transfer(make(space.names, num_modules=[1, 1, 1]), space, str(folder))
    with pytest.raises(RecipeError, match=r"another network .* there and \(.*\) here"):
        transfer(make(space.names, stream_channels=[8, 12, 16, 24]), space, str(folder))
    with pytest.raises(
        RecipeError, match=r"cityscapes cannot be transferred: no class of the checkpoint \(road, .*\(a, b\)"
    ) as said:
        transfer(make(["a", "b"]), unnamed_space(["a", "b"]), str(folder))
    assert "transfer_classifier" in str(said.value) and "unnamed' has" not in str(said.value)
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        transfer(make(space.names), space, str(tmp_path / "nowhere"))
