"""Windows, scales and mirrored images against plain loops over maps of all classes, which `segment` never makes."""

import argparse
import itertools
import math
from unittest.mock import patch

import hypothesis
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.cli import add_inference_arguments, inference_settings
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import InferenceSettings, segment
from revhrnet_hf.evaluation import sliding as views_module
from revhrnet_hf.evaluation.sliding import window_starts
from revhrnet_hf.models import upsampling

NUM_LABELS = 5
UNCHANGED = SegformerImageProcessor(do_resize=False)
SIZE = (70, 97)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=NUM_LABELS
    )
    model = SegformerForSemanticSegmentation(config).eval()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


@pytest.fixture(scope="module")
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def image():
    values = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values).resize(SIZE[::-1], PIL.Image.Resampling.BICUBIC)


@pytest.fixture(params=["one band", "bands of few rows"])
def bands(request, monkeypatch):
    if request.param != "one band":
        monkeypatch.setattr(views_module, "BAND_VALUES", 7 * NUM_LABELS * SIZE[1])
        monkeypatch.setattr(upsampling, "BAND_PIXELS", 3 * SIZE[1])


@torch.no_grad()
def probabilities_by_loop(model, image_processor, image, window=None, stride=None, scales=(1,), flip=False, average="softmax"):
    """Everything at full size, as the official HRNet's test does it."""
    total = torch.zeros(NUM_LABELS, *SIZE)
    for scale in scales:
        width, height = (round(edge * scale) for edge in image.size)
        pixels = image_processor(image.resize((width, height), PIL.Image.Resampling.BILINEAR), return_tensors="pt").pixel_values
        summed, counts = torch.zeros(NUM_LABELS, height, width), torch.zeros(height, width)
        rows, columns = window or (height, width)
        rows, columns = min(rows, height), min(columns, width)
        down, across = stride or (rows, columns)
        top = 0
        while True:
            left = 0
            while True:
                y, x = min(top, height - rows), min(left, width - columns)
                crop = pixels[..., y : y + rows, x : x + columns]
                scores = [F.interpolate(model(crop).logits, (rows, columns), mode="bilinear")[0]]
                if flip:
                    mirrored = F.interpolate(model(crop.flip(-1)).logits, (rows, columns), mode="bilinear")[0]
                    scores.append(mirrored.flip(-1))
                if average == "exp":
                    shares = [(sum(scores) / len(scores)).exp()]
                else:
                    shares = [score.softmax(0) for score in scores]
                for share in shares:
                    summed[:, y : y + rows, x : x + columns] += share
                    counts[y : y + rows, x : x + columns] += 1
                if left + columns >= width:
                    break
                left += across
            if top + rows >= height:
                break
            top += down
        total += F.interpolate((summed / counts)[None], SIZE, mode="bilinear")[0]
    return (total / total.sum(0)).numpy()


@pytest.mark.parametrize("average", ["softmax", "exp"])
@pytest.mark.parametrize(
    "given",
    [
        {"flip": True},
        {"window": (48, 64), "stride": (24, 40)},
        {"window": (33, 100), "stride": (33, 50)},  # wider than the image
        {"scales": (0.5, 1.0, 1.75)},
        {"window": (48, 64), "stride": (32, 42), "scales": (0.75, 1.5), "flip": True},
    ],
    ids=["flip", "windows", "wide windows", "scales", "all"],
)
def test_shares_are_those_of_a_loop_at_full_size(model, image_processor, image, given, average, bands):
    expected = probabilities_by_loop(model, image_processor, image, **given, average=average)
    settings = InferenceSettings(**given, average=average)
    found = segment(model, image_processor, image, settings, return_probabilities=True, return_confidence=True)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-5)
    np.testing.assert_allclose(found.confidence, expected.max(0), atol=2e-5)
    assert found.label_map.dtype == np.uint8 and len(np.unique(found.label_map)) > 1
    chosen = np.take_along_axis(expected, found.label_map[None].astype(int), 0)[0]
    np.testing.assert_allclose(chosen, expected.max(0), atol=4e-5)  # but for ties


@pytest.mark.parametrize("window", [SIZE, (SIZE[0] + 1, 500)], ids=["as large", "larger"])
@pytest.mark.parametrize("flip", [False, True])
def test_one_window_as_large_as_the_image_is_the_whole_bit_for_bit(model, image_processor, image, window, flip):
    whole, sliding = (
        segment(model, image_processor, image, settings, return_probabilities=True, return_confidence=True)
        for settings in (InferenceSettings(flip=flip), InferenceSettings(window=window, flip=flip))
    )
    assert np.array_equal(sliding.label_map, whole.label_map)
    assert np.array_equal(sliding.probabilities, whole.probabilities)
    assert np.array_equal(sliding.confidence, whole.confidence)


def test_batches_of_windows_give_the_same_but_for_the_last_bits(model, image_processor, image):
    one, many = (
        segment(model, image_processor, image, InferenceSettings((48, 64), batch_size=size), return_probabilities=True)
        for size in (1, 3)
    )
    np.testing.assert_allclose(many.probabilities, one.probabilities, atol=1e-5)


@pytest.mark.parametrize("given", [{"window": (60, 80)}, {"window": (60, 80), "scales": (1.0, 0.5)}, {"scales": (1.5,)}], ids=str)
def test_scale_1_is_what_the_image_processor_makes_of_the_image(model, image_processor, image, given):
    """A network that was trained on enlarged images is shown windows of enlarged images."""
    enlarging = RevHRNetImageProcessor(do_resize=True, size={"longest_edge": 2 * SIZE[1]}, do_pad=True)
    found = segment(model, enlarging, image, InferenceSettings(**given), return_probabilities=True).probabilities
    enlarged = image.resize((2 * SIZE[1], 2 * SIZE[0]), PIL.Image.Resampling.BILINEAR)
    by_hand = segment(
        model, image_processor, enlarged, InferenceSettings(**given), target_size=SIZE, return_probabilities=True
    ).probabilities
    np.testing.assert_allclose(found, by_hand, atol=0.02)  # PIL and torchvision round the enlarged image differently


@pytest.mark.parametrize("flip", [False, True])
def test_one_window_is_the_whole_where_the_processor_resizes_too(model, image, flip):
    squares = SegformerImageProcessor(size={"height": 64, "width": 64})
    whole, sliding = (
        segment(model, squares, image, settings, return_probabilities=True)
        for settings in (InferenceSettings(flip=flip), InferenceSettings((64, 64), flip=flip))
    )
    assert np.array_equal(sliding.label_map, whole.label_map)
    assert np.array_equal(sliding.probabilities, whole.probabilities)


@pytest.mark.parametrize("given", [{}, {"window": (100, 100)}], ids=str)
def test_logits_that_only_just_differ(model, image_processor, image, given):
    """A network that is hardly trained yet: by way of softmax all its classes would tie."""
    weight = model.decode_head.classifier.weight
    with torch.no_grad():
        weight *= 1e-9
        try:
            outputs = model(**image_processor(image, return_tensors="pt"))
            found = segment(model, image_processor, image, InferenceSettings(**given)).label_map
        finally:
            weight *= 1e9
    [expected] = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[SIZE])
    assert np.array_equal(found, expected.numpy()) and len(np.unique(found)) > 1


def test_target_size_and_sources(model, image_processor, image):
    settings = InferenceSettings((48, 64), scales=(1.0, 1.5))
    found = segment(
        model, image_processor, image, settings, target_size=(35, 50), sources=[[0, 2], [4], []], return_probabilities=True
    )
    assert found.label_map.shape == (35, 50) and found.probabilities.shape == (3, 35, 50)
    assert found.probabilities[2].max() == 0
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_logits_that_exp_cannot_hold(model, image_processor, image):
    """The official way overflows; ours subtracts a constant then."""
    bias, settings = model.decode_head.classifier.bias, InferenceSettings((48, 64), average="exp")
    with torch.no_grad():
        bias += 200
        try:
            large = segment(model, image_processor, image, settings, return_probabilities=True)
        finally:
            bias -= 200
    small = segment(model, image_processor, image, settings, return_probabilities=True)
    np.testing.assert_allclose(large.probabilities, small.probabilities, atol=1e-3)


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("given", [{}, {"flip": True}, {"window": (48, 64), "scales": (0.5, 1.0)}], ids=str)
def test_no_map_of_all_classes_at_the_images_size(image_processor, image, given, monkeypatch):
    class FewPixelsManyClasses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(200, 3))

        def forward(self, pixel_values):
            logits = torch.einsum("kc,bchw->bkhw", self.weight, pixel_values[..., ::8, ::8])
            return argparse.Namespace(logits=logits)

    monkeypatch.setattr(views_module, "BAND_VALUES", 200 * SIZE[1] * 5)
    monkeypatch.setattr(upsampling, "BAND_PIXELS", SIZE[1] * 5)
    with LargestTensor() as largest:
        segment(FewPixelsManyClasses(), image_processor, image, InferenceSettings(**given))
    assert 0 < largest.numel <= 200 * SIZE[1] * 7 < 200 * SIZE[0] * SIZE[1] / 9


def test_out_of_memory_on_the_gpu_advises_a_window(image_processor, image):
    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, pixel_values):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RecipeError, match=r"street.jpg: the GPU's memory is not enough for 70×97 pixels at once.*--window"):
        segment(Large(), image_processor, image, name="street.jpg")
    with pytest.raises(RecipeError, match=r"windows of 48×64: slide a smaller window.*fewer at once than 4 \(--batch_size\)"):
        segment(Large(), image_processor, image, InferenceSettings((48, 64), batch_size=4))


@pytest.mark.parametrize(("length", "window", "step"), [(10, 4, 3), (10, 10, 7), (11, 4, 4), (12, 4, 4), (5, 4, 1), (1, 1, 1)])
def test_windows_cover_every_pixel_and_stay_inside(length, window, step):
    starts = window_starts(length, window, step)
    assert {pixel for start in starts for pixel in range(start, start + window)} == set(range(length))
    assert all(0 < later - earlier <= step for earlier, later in itertools.pairwise(starts))


@hypothesis.given(st.integers(1, 3000), st.integers(1, 3000), st.data())
def test_windows_of_any_size_and_step(length, window, data):
    window = min(window, length)
    step = data.draw(st.integers(1, window))
    starts = window_starts(length, window, step)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.min() >= 1
    # Every step but the last is as long as was asked for, and none is left out or made twice.
    assert starts[:-1] == list(range(0, length - window, step)) and starts[-1] == length - window
    assert len(starts) == 1 + math.ceil((length - window) / step)


class PlaceInTheWindow(torch.nn.Module):
    """Its logits depend on the pixel and on its row and column in the window, so that every window says something else."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixel_values):
        rows, columns = (torch.linspace(0, 3, edge) for edge in pixel_values.shape[-2:])
        red, green, blue = pixel_values.unbind(1)
        return argparse.Namespace(logits=torch.stack([red * rows[:, None], 2 * green - columns, blue + 0 * red], 1))


def shares_by_brute_force(pixels, window, stride, flip, average):
    """Window by window in float64: the sum over those that cover a pixel, by their number; in the end the shares of their sum."""
    model, (height, width) = PlaceInTheWindow(), pixels.shape[-2:]
    rows, columns = min(window[0], height), min(window[1], width)
    total, counts = np.zeros((3, height, width)), np.zeros((height, width))
    tops = sorted({min(top, height - rows) for top in range(0, height, stride[0]) if top - stride[0] + rows < height})
    lefts = sorted({min(left, width - columns) for left in range(0, width, stride[1]) if left - stride[1] + columns < width})
    for top, left in itertools.product(tops, lefts):
        crop = pixels[..., top : top + rows, left : left + columns]
        scores = [model(crop).logits[0]] + ([model(crop.flip(-1)).logits[0].flip(-1)] if flip else [])
        if average == "exp":
            shares = [(sum(scores) / len(scores)).double().exp()]
        else:
            shares = [score.double().softmax(0) for score in scores]
        for share in shares:
            total[:, top : top + rows, left : left + columns] += share.detach().numpy()
            counts[top : top + rows, left : left + columns] += 1
    total /= counts
    return total / total.sum(0)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(st.data())
def test_weights_of_windows_are_those_of_brute_force(data):
    """Each window counts once for each pixel that it covers, whatever the sizes."""
    edge = st.integers(1, 24)
    size, window = data.draw(st.tuples(edge, edge)), data.draw(st.tuples(edge, edge))
    stride = tuple(data.draw(st.integers(1, length)) for length in window)
    flip, average = data.draw(st.booleans()), data.draw(st.sampled_from(["softmax", "exp"]))
    settings = InferenceSettings(window, stride, flip=flip, average=average, batch_size=data.draw(st.integers(1, 5)))
    image = PIL.Image.fromarray(np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (*size, 3), np.uint8))
    pixels = UNCHANGED(image, return_tensors="pt").pixel_values
    band = data.draw(st.sampled_from([1, 30, 2**22]))
    with patch.object(views_module, "BAND_VALUES", band):
        found = segment(PlaceInTheWindow(), UNCHANGED, image, settings, return_probabilities=True)
    expected = shares_by_brute_force(pixels, window, stride, flip, average)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window": (0, 5)}, r"window \(0, 5\)"),
        ({"window": (9, 9), "stride": (10, 3)}, "at most the window"),
        ({"stride": (3, 3)}, "give a window as well"),
        ({"scales": ()}, "one or more finite factors"),
        ({"scales": (1, -0.5)}, "factors above 0"),
        ({"scales": (1, float("nan"))}, "factors above 0"),
        ({"scales": (float("inf"),)}, "factors above 0"),
        ({"average": "mean"}, "'softmax' and 'exp'"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_settings_that_cannot_be_are_named(given, message):
    with pytest.raises(RecipeError, match=message):
        InferenceSettings(**given)


def test_settings_from_the_command_line():
    parser = argparse.ArgumentParser()
    add_inference_arguments(parser)
    assert inference_settings(parser.parse_args([])) == InferenceSettings()
    text = "--window 480 480 --stride 320 240 --scales 0.5 1 --flip --average exp --batch_size 4"
    settings = inference_settings(parser.parse_args(text.split()))
    assert settings == InferenceSettings((480, 480), (320, 240), (0.5, 1.0), True, "exp", 4)
    assert str(settings) == "windows of 480×480 every 320×240, scales 0.5, 1, with flip, averaged exp"
    assert InferenceSettings((480, 720)).steps == (320, 480)
    assert str(InferenceSettings()) == "whole image"
