"""The terms of the loss: against sums over pixels in NumPy, and against segmentation-models-pytorch."""

import math
from functools import partial

import numpy as np
import pytest
import segmentation_models_pytorch.losses as peers
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

from revhrnet_hf.models import loss_bands
from revhrnet_hf.models.losses import segmentation_loss

CLASSES = 6
ALL = {"cross_entropy": 1.0, "focal": 0.7, "dice": 0.5, "tversky": 0.3, "lovasz": 0.9}
SETTINGS = {"label_smoothing": 0.1, "boundary_relaxation": True, "focal_gamma": 1.5}


@pytest.fixture
def batch(monkeypatch):
    """Logits, and labels of twice their size without the last class, in bands of a few rows."""
    monkeypatch.setattr(loss_bands, "BAND_VALUES", 900)
    monkeypatch.setattr(loss_bands, "BAND_ROWS", 1)
    torch.manual_seed(0)
    logits = torch.randn(2, CLASSES, 13, 9, dtype=torch.float64) * 2
    labels = torch.randint(0, CLASSES - 1, (2, 5, 4)).repeat_interleave(7, 1).repeat_interleave(5, 2)[:, :31, :19]
    labels[0, 1:6] = 255
    labels[1, :, 3] = 255
    return logits, labels.contiguous()


def upsampled(logits, labels):
    return F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)


def pixels(logits, labels):
    """(image, row, column, probabilities) of the labelled pixels."""
    probabilities = upsampled(logits, labels).softmax(1).permute(0, 2, 3, 1).numpy()
    return [(*place, probabilities[tuple(place)]) for place in np.argwhere(labels.numpy() != 255)]


def cross_entropy(logits, labels, weights, smoothing=0.0, relaxed=False):
    """In NumPy, pixel by pixel, as the papers have it."""
    total = count = 0.0
    truth = labels.numpy()
    for image, row, column, p in pixels(logits, labels):
        own = truth[image, row, column]
        window = truth[image, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        allowed = sorted(set(window.flatten()) - {255}) if relaxed else [own]
        entropy = -weights[own] * math.log(p[allowed].sum())
        uniform = -np.mean(weights * np.log(p))
        total += (1 - smoothing) * entropy + smoothing * uniform
        count += weights[own]
    return total / count


def focal(logits, labels, weights, gamma):
    rows = [(p[label], weights[label]) for *place, p in pixels(logits, labels) for label in [labels[tuple(place)].item()]]
    return sum(w * -math.log(p) * (1 - p) ** gamma for p, w in rows) / sum(w for _, w in rows)


def tversky(logits, labels, alpha, beta):
    losses = []
    for class_id in sorted(set(labels.flatten().tolist()) - {255}):
        rows = [(p[class_id], labels[tuple(place)] == class_id) for *place, p in pixels(logits, labels)]
        right = sum(p for p, is_class in rows if is_class)
        false_positives = sum(p for p, is_class in rows if not is_class)
        false_negatives = sum(1 - p for p, is_class in rows if is_class)
        losses.append(1 - right / (right + alpha * false_positives + beta * false_negatives))
    return np.mean(losses)


def lovasz(logits, labels):
    """The integral over errors of 1 − IoU of the pixels with larger ones: the Lovász extension without its algorithm."""
    rows = [(p, labels[tuple(place)].item()) for *place, p in pixels(logits, labels)]
    losses = []
    for class_id in sorted({label for _, label in rows}):
        is_class = np.array([label == class_id for _, label in rows])
        errors = np.array([1 - p[class_id] if label == class_id else p[class_id] for p, label in rows])
        total = before = 0.0
        for level in np.unique(errors):
            wrong = errors >= level
            iou = (is_class & ~wrong).sum() / (is_class | wrong).sum()
            total += (level - before) * (1 - iou)
            before = level
        losses.append(total)
    return np.mean(losses)


def test_lovasz_by_integration(batch):
    found = segmentation_loss(*batch, terms={"lovasz": 1})
    assert found.item() == pytest.approx(lovasz(*batch), rel=1e-9)


def test_lovasz_with_equal_errors(batch):
    """Pixels of one class and of others with the same error."""
    logits, labels = torch.zeros_like(batch[0]), batch[1]
    assert segmentation_loss(logits, labels, terms={"lovasz": 1}).item() == pytest.approx(lovasz(logits, labels), rel=1e-9)


WEIGHTS = [0.3, 1.0, 2.0, 0.7, 1.5, 0.9]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("relaxed", [False, True])
def test_cross_entropy_pixel_by_pixel(batch, weights, smoothing, relaxed):
    found = segmentation_loss(*batch, class_weights=weights, label_smoothing=smoothing, boundary_relaxation=relaxed)
    expected = cross_entropy(*batch, np.array(weights or [1.0] * CLASSES), smoothing, relaxed)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_pixel_by_pixel(batch, weights, gamma):
    found = segmentation_loss(*batch, class_weights=weights, terms={"focal": 1.0}, focal_gamma=gamma)
    assert found.item() == pytest.approx(focal(*batch, weights or [1.0] * CLASSES, gamma), rel=1e-6)


def test_dice_and_tversky_pixel_by_pixel(batch):
    assert segmentation_loss(*batch, terms={"dice": 1}).item() == pytest.approx(tversky(*batch, 0.5, 0.5), rel=1e-6)
    found = segmentation_loss(*batch, terms={"tversky": 1}, tversky_alpha=0.2, tversky_beta=1.1)
    assert found.item() == pytest.approx(tversky(*batch, 0.2, 1.1), rel=1e-6)


PRESENT = CLASSES - 1  # the peer's mean is over all classes, in which those that do not occur have 0
PEERS = {
    "cross_entropy": ({"label_smoothing": 0.1}, partial(F.cross_entropy, ignore_index=255, label_smoothing=0.1), 1),
    "focal": (
        {"focal_gamma": 1.5},
        lambda scores, labels: softmax_focal_loss_with_logits(
            scores.movedim(1, -1)[labels != 255], labels[labels != 255], gamma=1.5
        ),
        1,
    ),
    "dice": ({}, peers.DiceLoss("multiclass", ignore_index=255), CLASSES / PRESENT),
    "tversky": ({}, peers.TverskyLoss("multiclass", ignore_index=255, alpha=0.3, beta=0.7), CLASSES / PRESENT),
    "lovasz": ({}, peers.LovaszLoss("multiclass", ignore_index=255), 1),
}


@pytest.mark.parametrize("name", PEERS)
def test_loss_and_gradient_as_peers_have_them(batch, name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the peer's Lovász is of float32 only
    logits, labels = batch
    settings, peer, factor = PEERS[name]
    logits.requires_grad_()
    found = segmentation_loss(logits, labels, terms={name: 1}, **settings)
    expected = peer(upsampled(logits, labels), labels) * factor
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), rtol=1e-6, atol=1e-9)


def test_weighted_sum(batch):
    logits, labels = batch
    logits.requires_grad_()
    found = segmentation_loss(logits, labels, terms=ALL, **SETTINGS)
    parts = [
        weight * segmentation_loss(logits, labels, terms={"cross_entropy": 1}, **SETTINGS) for weight in [ALL["cross_entropy"]]
    ]
    own = {"focal": {"focal_gamma": 1.5}}
    parts += [
        weight * segmentation_loss(logits, labels, terms={name: 1}, **own.get(name, {}))
        for name, weight in ALL.items()
        if name != "cross_entropy"
    ]
    torch.testing.assert_close(found, sum(parts))
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(sum(parts), logits))


@pytest.mark.parametrize("name", ALL)
def test_gradient_by_differences(batch, name):
    logits, labels = batch[0][:, :, :3, :2].contiguous().requires_grad_(), batch[1][:, 4:11, 2:8]
    settings = {"label_smoothing": 0.1, "boundary_relaxation": True} if name == "cross_entropy" else {}
    function = partial(segmentation_loss, labels=labels, terms={name: 1}, **settings)
    assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize("name", [name for name in ALL if name != "lovasz"])  # whose second derivative is only the softmax's
def test_second_derivative(batch, name):
    logits, labels = batch[0][:1, :, :2, :2].contiguous().requires_grad_(), batch[1][:1, 4:9, 2:8]
    assert torch.autograd.gradgradcheck(partial(segmentation_loss, labels=labels, terms={name: 1}), logits)


@pytest.mark.parametrize("name", [*ALL, "all"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_no_labelled_pixel_and_one_class(batch, name, weights):
    terms = ALL if name == "all" else {name: 1}
    logits, labels = batch
    logits.requires_grad_()
    nothing = segmentation_loss(logits, torch.full_like(labels, 255), terms=terms, class_weights=weights)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()
    sure = torch.where(torch.arange(CLASSES)[:, None, None] == 2, 80.0, 0.0).expand_as(logits).clone().requires_grad_()
    right = segmentation_loss(sure, torch.full_like(labels, 2), terms=terms, class_weights=weights, focal_gamma=0.5)
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(right, sure)[0].abs().max() < 1e-6
    assert segmentation_loss(logits * torch.nan, labels, terms=terms).isnan()


@pytest.mark.parametrize("ignore_index", [0, 2, 255])
@pytest.mark.parametrize("name", ALL)
def test_another_ignore_index(batch, name, ignore_index):
    """Equal to a loss with the classes in another order, in which the ignored label is beyond the last class."""
    logits, labels = batch
    labels = labels.where(labels != 255, 1)
    kept = labels != ignore_index
    found = segmentation_loss(logits, labels, ignore_index=ignore_index, terms={name: 1})
    torch.testing.assert_close(found, segmentation_loss(logits, labels.where(kept, 255), terms={name: 1}))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(batch, name, dtype):
    logits, labels = batch[0].to(dtype).requires_grad_(), batch[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = segmentation_loss(logits, labels, terms={name: 1})
    gradient = torch.autograd.grad(found, logits)[0]
    assert (found.dtype, gradient.dtype) == (torch.float32, dtype)
    exact = batch[0].to(dtype).double().requires_grad_()
    expected = segmentation_loss(exact, labels, terms={name: 1})
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, exact)[0].to(dtype), rtol=0.02, atol=1e-5)


def test_default_device(batch):
    """Nothing is made on torch's default device, from which values could not be read without waiting."""
    expected = segmentation_loss(*batch, terms={"cross_entropy": 1, "dice": 1}, class_weights=WEIGHTS)
    with torch.device("meta"):
        found = segmentation_loss(*batch, terms={"cross_entropy": 1, "dice": 1}, class_weights=WEIGHTS)
    assert torch.equal(found, expected)


def test_meta(batch):
    logits = batch[0].to("meta").requires_grad_()
    terms = {name: 1 for name in ALL if name != "lovasz"}
    segmentation_loss(logits, batch[1].to("meta"), terms=terms, class_weights=WEIGHTS, **SETTINGS).backward()
    segmentation_loss(logits, batch[1].to("meta"), terms={"lovasz": 1}).backward()
    segmentation_loss(logits, batch[1].to("meta"), ohem_threshold=0.5, ohem_min_kept=9).backward()
    assert logits.grad.shape == logits.shape


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"terms": ALL, **SETTINGS}, {"terms": {"lovasz": 1}}])
def test_compiled_without_a_break(batch, settings):
    logits, labels = batch[0].requires_grad_(), batch[1]
    compiled = torch.compile(partial(segmentation_loss, **settings), fullgraph=True)
    expected = segmentation_loss(logits, labels, **settings)
    found = compiled(logits, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "use", [torch.func.grad, lambda loss: lambda x: torch.func.jvp(loss, (x,), (torch.ones_like(x) * x,))[1]]
)
def test_torch_func(batch, name, use):
    logits, labels = batch
    loss = partial(segmentation_loss, labels=labels, terms={name: 1})
    found = use(loss)(logits)
    tracked = logits.clone().requires_grad_()
    gradient = torch.autograd.grad(loss(tracked), tracked)[0]
    torch.testing.assert_close(found, gradient if found.ndim else (gradient * logits).sum())


@pytest.mark.parametrize("name", ALL)
def test_share_of_pixels_makes_the_mean_of_batches_that_of_all_pixels(batch, name):
    """Means over pixels: exact. Means over classes stay those of each batch."""
    logits, labels = batch
    labels[1, 8:] = 255
    counts = (labels != 255).sum((1, 2)).double()
    loss = partial(segmentation_loss, terms={name: 1})
    shared = [loss(logits[i : i + 1], labels[i : i + 1], pixel_share=2 * counts[i] / counts.sum()) for i in range(2)]
    alone = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    if name in ("cross_entropy", "focal"):
        torch.testing.assert_close(sum(shared) / 2, loss(logits, labels))
    else:
        torch.testing.assert_close(shared, alone)


@pytest.mark.parametrize("name", ALL)
def test_nothing_at_label_resolution_is_kept(name):
    """But class ids, of which Lovász has a copy; there are four sums of pixels and classes at most."""
    kept = []
    logits, labels = torch.randn(1, 30, 16, 16, requires_grad=True), torch.randint(0, 30, (1, 64, 64))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        segmentation_loss(logits, labels, terms={name: 1})
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in kept if tensor.numel() > 3 * 30}
    sizes = sorted(tensor.numel() for tensor in storages.values())
    assert sizes == sorted([labels.numel(), logits.numel()] + [logits.numel()] * (name == "lovasz"))
