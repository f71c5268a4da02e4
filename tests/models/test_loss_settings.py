"""Each setting of the loss changes it as its formula says, through the config of either network; reckoned pixel by pixel."""

import math

import pytest
import torch
import torch.nn.functional as F

import revhrnet_hf

CLASSES = 5


@pytest.fixture(scope="module")
def labels():
    torch.manual_seed(3)
    labels = torch.randint(0, CLASSES, (2, 20, 24))
    labels[0, :7] = 255
    return labels


@pytest.fixture(params=["revhrnet", "hrnetv2"])
def network(request, tiny_config):
    """Makes a small network with these settings; its logits tell the classes apart a little."""

    def make(**settings):
        torch.manual_seed(1)
        if request.param == "revhrnet":
            model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he", **settings))
            classifier = model.head[3]
        else:
            small = {"stream_channels": [4, 8, 12, 16], "num_modules": [1, 1, 1], "num_blocks": 1, "stage1_blocks": 1}
            config = revhrnet_hf.HRNetV2Config(**small, num_labels=CLASSES, initializer="he", **settings)
            model = revhrnet_hf.HRNetV2ForSemanticSegmentation(config)
            classifier = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        assert classifier.out_channels == CLASSES
        torch.nn.init.normal_(classifier.weight, std=0.1)
        return model.eval()

    return make


def by_hand(logits, labels, ignore_index=255, weights=None, threshold=None, min_kept=0):
    """Sum over the pixels that count, in Python's own numbers."""
    logits = F.interpolate(logits.double(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    pixels = [
        (values, label)
        for values, label in zip(logits.permute(0, 2, 3, 1).reshape(-1, CLASSES).tolist(), labels.flatten().tolist(), strict=True)
        if label != ignore_index
    ]
    rows = []
    for values, label in pixels:
        probability = math.exp(values[label]) / sum(map(math.exp, values))
        weight = 1.0 if weights is None else weights[label]
        rows.append((probability, -weight * math.log(probability), weight))
    if threshold is None:
        return sum(loss for _, loss, _ in rows) / sum(weight for _, _, weight in rows)
    rows.sort()
    hard = [row for row in rows if row[0] < threshold]
    kept = hard if len(hard) >= min_kept else rows[:min_kept]
    return sum(loss for _, loss, _ in kept) / len(kept)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({}, {}),
        ({"class_weights": [5.0, 0.1, 1.0, 2.0, 1.0]}, {"weights": [5.0, 0.1, 1.0, 2.0, 1.0]}),
        ({"ohem_threshold": 0.2, "ohem_min_kept": 10}, {"threshold": 0.2, "min_kept": 10}),
        ({"ohem_threshold": 0.01, "ohem_min_kept": 300}, {"threshold": 0.01, "min_kept": 300}),
    ],
)
def test_loss_is_that_of_the_formula(network, labels, settings, formula):
    torch.manual_seed(2)
    images = torch.rand(2, 3, 64, 64)
    model = network(**{f"semantic_loss_{name}": value for name, value in settings.items()})
    with torch.no_grad():
        outputs = model(images, labels=labels)
    expected = by_hand(outputs.logits, labels, **formula)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-4)
    if formula:
        assert abs(by_hand(outputs.logits, labels) - expected) > 1e-3, "the setting must make a difference"


def test_another_ignore_index(network, labels):
    """255 is no class here, so that a network that ignored it instead of 0 would fail."""
    torch.manual_seed(2)
    model = network(semantic_loss_ignore_index=0)
    own = labels.where(labels != 255, 0)
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, 64, 64), labels=own)
    assert outputs.loss.item() == pytest.approx(by_hand(outputs.logits, own, ignore_index=0), rel=1e-4)


@pytest.mark.parametrize("terms", [None, {"dice": 1.0}, {"tversky": 1.0}, {"lovasz": 1.0}], ids=str)
@pytest.mark.parametrize("wrong", [CLASSES, -1, 254])
def test_ids_that_are_no_class_are_refused(network, labels, terms, wrong):
    labels = labels.clone()
    labels[1, 3, 5] = wrong
    said = f"ids such as {wrong}, but the network has the classes 0 to {CLASSES - 1}, and ignores 255"
    with pytest.raises(ValueError, match=said):
        network(semantic_loss_terms=terms)(torch.rand(2, 3, 64, 64), labels=labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels: labels / 255, "whole numbers, but are torch.float32"),  # as torchvision's ToTensor makes them
        (lambda labels: labels.to(torch.complex64), "whole numbers, but are torch.complex64"),
        (lambda labels: labels.numpy(), "must be a tensor .*, got ndarray"),
        (lambda labels: labels.tolist(), "must be a tensor .*, got list"),
    ],
)
def test_labels_that_are_no_integers_are_refused(network, labels, change, said):
    with pytest.raises(TypeError, match=said):
        network()(torch.rand(2, 3, 64, 64), labels=change(labels))


def test_pixels_that_are_no_tensor_are_refused(network):
    with pytest.raises(TypeError, match='got list: call the image processor with return_tensors="pt"'):
        network()([torch.rand(3, 64, 64)])
