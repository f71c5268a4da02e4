"""The loss, computed in bands of rows, against torch's own functions on all logits at the labels' resolution at once."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from revhrnet_hf.models import loss_bands
from revhrnet_hf.models.losses import segmentation_loss


def whole(logits, labels, class_weights=None):
    scores = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=logits.dtype)
    return F.cross_entropy(scores, labels, weight=weight, ignore_index=255)


def whole_ohem(logits, labels, threshold, min_kept):
    """As the official HRNet has it, by sorting."""
    scores = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    labelled = labels != 255
    entropy = F.cross_entropy(scores, labels, ignore_index=255, reduction="none")[labelled]
    probability = scores.softmax(1).gather(1, labels.where(labelled, 0)[:, None])[:, 0][labelled]
    ordered, order = probability.detach().sort()
    return entropy[order][ordered < max(threshold, ordered[min(min_kept, len(ordered) - 1)])].mean()


def value_and_gradient(function, logits):
    logits = logits.clone().requires_grad_()
    value = function(logits)
    return value, *torch.autograd.grad(value, logits)


@pytest.fixture
def small_bands(monkeypatch):
    monkeypatch.setattr(loss_bands, "BAND_VALUES", 900)
    monkeypatch.setattr(loss_bands, "BAND_ROWS", 1)


sizes = st.tuples(st.integers(1, 20), st.integers(1, 9))


@given(size=sizes, label_size=st.tuples(st.integers(1, 70), st.integers(1, 30)), seed=st.integers(0, 9), data=st.data())
def test_bands_are_the_whole(size, label_size, seed, data):
    """Larger and smaller labels, bands of one row and more, float64: the loss and its gradient."""
    num_labels = data.draw(st.integers(2, 5))
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 9), min_size=num_labels, max_size=num_labels))
    rows, values = data.draw(st.sampled_from([(1, 1), (1, 400), (3, 1), (16, 2**20)]))
    torch.manual_seed(seed)
    logits = torch.randn(2, num_labels, *size, dtype=torch.float64)
    labels = torch.randint(0, num_labels, (2, *label_size))
    labels[0, 1:3] = 255
    expected = value_and_gradient(lambda logits: whole(logits, labels, weights), logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_bands, "BAND_ROWS", rows)
        patch.setattr(loss_bands, "BAND_VALUES", values)
        found = value_and_gradient(lambda logits: segmentation_loss(logits, labels, class_weights=weights), logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("min_kept", [0, 700, 10**6])
def test_ohem_in_bands(small_bands, min_kept):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 9, 7, dtype=torch.float64) * 3, torch.randint(0, 4, (2, 33, 27))
    labels[1, 5:11] = 255
    reference = whole if min_kept == 10**6 else partial(whole_ohem, threshold=0.3, min_kept=min_kept)
    found = value_and_gradient(lambda of: segmentation_loss(of, labels, ohem_threshold=0.3, ohem_min_kept=min_kept), logits)
    expected = value_and_gradient(lambda of: reference(of, labels), logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class TestTransforms:
    """What torch does with functions, with ours as with its own."""

    @pytest.fixture(autouse=True)
    def data(self, small_bands):
        torch.manual_seed(0)
        self.logits, self.labels = torch.randn(2, 5, 16, 12), torch.randint(0, 5, (2, 61, 47))
        self.direction = torch.randn_like(self.logits)

    def same(self, use):
        """`use(loss of logits and labels)` gives the same with ours and with torch's."""
        torch.testing.assert_close(use(segmentation_loss), use(whole))

    def test_gradient_of_a_gradient(self):
        def use(loss):
            return torch.autograd.functional.hvp(lambda logits: loss(logits, self.labels), self.logits, self.direction)[1]

        self.same(use)

    def test_func_grad(self):
        self.same(lambda loss: torch.func.grad(lambda logits: loss(logits, self.labels))(self.logits))

    def test_func_jvp(self):
        self.same(lambda loss: torch.func.jvp(lambda logits: loss(logits, self.labels), (self.logits,), (self.direction,)))

    @pytest.mark.parametrize("of", [lambda loss: loss, torch.func.grad], ids=["loss", "gradient"])
    def test_func_vmap(self, of):
        self.same(lambda loss: torch.func.vmap(of(lambda *one: loss(one[0][None], one[1][None])))(self.logits, self.labels))

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", [{}, {"ohem_threshold": 0.3, "ohem_min_kept": 100}])
    def test_compiled(self, settings):
        compiled = torch.compile(lambda logits, labels: segmentation_loss(logits, labels, **settings))
        expected = value_and_gradient(lambda logits: segmentation_loss(logits, self.labels, **settings), self.logits)
        torch.testing.assert_close(value_and_gradient(lambda logits: compiled(logits, self.labels), self.logits), expected)

    def test_meta(self):
        logits = self.logits.to("meta").requires_grad_()
        segmentation_loss(logits, self.labels.to("meta"), class_weights=[1.0] * 5).backward()
        assert logits.grad.shape == logits.shape

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_upsampled_in_float32(self, dtype):
        logits = self.logits.to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found, gradient = value_and_gradient(lambda logits: segmentation_loss(logits, self.labels), logits)
        expected = value_and_gradient(lambda logits: whole(logits, self.labels), logits.float())
        assert (found.dtype, gradient.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(found, expected[0])
        torch.testing.assert_close(gradient, expected[1].to(dtype))


def test_nothing_at_label_resolution_is_kept():
    """Between forward and backward pass: nothing but the logits and the labels, which are there anyway."""
    kept = []
    logits, labels = torch.randn(1, 66, 16, 16, requires_grad=True), torch.randint(0, 66, (1, 64, 64))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        segmentation_loss(logits, labels)
    large = [tensor for tensor in kept if tensor.numel() > 1]
    assert {tensor.untyped_storage().data_ptr() for tensor in large} <= {
        logits.untyped_storage().data_ptr(),
        labels.untyped_storage().data_ptr(),
    }


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2, 1, 8, 8), (8, 8)])
def test_there_must_be_one_label_map_for_each_image(shape):
    with pytest.raises(ValueError, match=r"one map for each of the 2 images, got \("):
        segmentation_loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape, dtype=torch.int64))
