"""Classifiers of the coarser streams: they teach in training, and are nowhere else."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

import revhrnet_hf
from revhrnet_hf.export.program import Exportable
from revhrnet_hf.models.losses import segmentation_loss

CLASSES = 5
TERMS = {"cross_entropy": 1.0, "dice": 0.5}


@pytest.fixture(params=["revhrnet", "hrnetv2"])
def make(request, tiny_config):
    def make(**settings):
        torch.manual_seed(1)
        if request.param == "revhrnet":
            return revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he", **settings))
        small = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "stage1_blocks": 1}
        return revhrnet_hf.HRNetV2ForSemanticSegmentation(
            revhrnet_hf.HRNetV2Config(**small, num_labels=CLASSES, initializer="he", **settings)
        )

    return make


@pytest.fixture
def batch():
    torch.manual_seed(2)
    labels = torch.randint(0, CLASSES, (2, 50, 64))
    labels[0, :9] = 255
    return torch.rand(2, 3, 64, 96), labels


def test_loss_is_the_sum_of_the_logits_and_of_each_stream(make, batch):
    images, labels = batch
    model = make(auxiliary_loss_weight=0.4, semantic_loss_terms=TERMS).train()
    outputs = model(images, labels=labels, output_hidden_states=True)
    maps = outputs.hidden_states[1:]
    assert [x.shape[1] for x in maps] == [12, 16, 20]
    losses = [
        segmentation_loss(classifier(x), labels, terms=TERMS) for classifier, x in zip(model.auxiliary_head, maps, strict=True)
    ]
    own = segmentation_loss(outputs.logits, labels, terms=TERMS)
    torch.testing.assert_close(outputs.loss, own + 0.4 * sum(losses) / 3)
    terms = outputs.loss_terms
    assert list(terms) == ["cross_entropy", "dice", "auxiliary"]
    torch.testing.assert_close(terms["cross_entropy"] + 0.5 * terms["dice"], own.detach())
    torch.testing.assert_close(terms["auxiliary"], (sum(losses) / 3).detach())
    assert not any(value.requires_grad for value in terms.values())
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.auxiliary_head.parameters())


def test_logits_and_scored_loss_are_those_without(make, batch):
    images, labels = batch
    plain, model = make(), make(auxiliary_loss_weight=0.4)
    model.load_state_dict(plain.state_dict(), strict=False)
    for one in (plain, model):
        one.eval()
    with torch.no_grad():
        expected, found = plain(images, labels=labels), model(images, labels=labels)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.loss, expected.loss)
    assert type(found) is type(expected) and found.keys() == expected.keys()
    assert len(plain.train()(images, labels=labels).to_tuple()) == 2, "one term: the output is as it was"


def test_checkpoint_has_them_and_a_network_may_leave_them_out(make, batch, tmp_path):
    model = make(auxiliary_loss_weight=0.4).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    for name, tensor in model.auxiliary_head.state_dict().items():
        assert torch.equal(tensor, again.auxiliary_head.state_dict()[name])
    bare, said = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, auxiliary_loss_weight=None, output_loading_info=True)
    assert bare.auxiliary_head is None and not said["missing_keys"] and not said["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(bare.eval()(batch[0]).logits, model(batch[0]).logits)


def test_exported_and_optimized_networks_have_none(make, batch):
    model = make(auxiliary_loss_weight=0.4).eval()
    assert not [name for name, _ in Exportable(model).named_parameters() if "auxiliary" in name]
    assert model.auxiliary_head is not None, "the network itself stays as it was"
    with torch.no_grad():
        expected = model(batch[0]).logits
        torch.testing.assert_close(model.optimize_for_inference()(batch[0]).logits, expected, rtol=1e-3, atol=1e-3)
    assert not [name for name, _ in model.named_parameters() if "auxiliary" in name]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_none(make, weight):
    with pytest.raises(Exception, match="auxiliary_loss_weight must be positive"):
        make(auxiliary_loss_weight=weight)
