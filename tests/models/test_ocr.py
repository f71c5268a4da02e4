"""The head of HRNet-OCR on both networks. Its numbers are compared with an independent network in export/test_conversion.py."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

import revhrnet_hf
from revhrnet_hf.export.program import export_program
from revhrnet_hf.models.losses import segmentation_loss

SMALL = {"head": "ocr", "ocr_channels": 12, "ocr_key_channels": 8, "initializer": "he"}


@pytest.fixture(params=["revhrnet", "hrnetv2"])
def model(request, tiny_config):
    torch.manual_seed(1)
    if request.param == "revhrnet":
        return revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(**SMALL))
    small = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "stage1_blocks": 1, "num_labels": 5}
    return revhrnet_hf.HRNetV2ForSemanticSegmentation(revhrnet_hf.HRNetV2Config(**small, **SMALL))


def test_loss_has_that_of_the_regions(model):
    seen, labels = [], torch.randint(0, 5, (2, 64, 96))
    model.head.register_forward_hook(lambda _, __, found: seen.append(found))
    outputs = model.train()(torch.rand(2, 3, 64, 96), labels=labels)
    logits, regions = seen[0]
    own, of_regions = segmentation_loss(logits, labels), segmentation_loss(regions, labels)
    torch.testing.assert_close(outputs.loss, own + 0.4 * of_regions)
    torch.testing.assert_close(outputs.loss_terms, {"cross_entropy": own.detach(), "regions": of_regions.detach()})
    outputs.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    scored = model.eval()(torch.rand(2, 3, 64, 96), labels=labels)
    torch.testing.assert_close(scored.loss, segmentation_loss(scored.logits, labels))


@pytest.mark.parametrize("recompute", ["norms", "modules"])
def test_recomputation_changes_nothing(model, recompute):
    images, labels = torch.rand(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    found = {}
    for setting in ("none", recompute):
        model.train()
        model._set_gradient_checkpointing(True, torch.utils.checkpoint.checkpoint)
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"recompute": setting})
        model.zero_grad()
        torch.manual_seed(3)  # of the dropout
        model(images, labels=labels).loss.backward()
        found[setting] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found[recompute], found["none"])


def test_saved_exported_and_folded(model, tmp_path):
    images = torch.rand(1, 3, 96, 128)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(images).logits
        assert torch.equal(again(images).logits, expected)
        program = export_program(model, None)
        torch.testing.assert_close(program.module()(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(again.optimize_for_inference()(images).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_onnx(model, tmp_path):
    from revhrnet_hf.export.onnx_network import OnnxModel, write_onnx

    images = torch.rand(1, 3, 96, 160)
    write_onnx(export_program(model.eval(), None), tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(images).logits
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(images).logits, expected, rtol=1e-3, atol=1e-3)
