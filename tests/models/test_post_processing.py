"""Label maps from logits, against interpolation and argmax of the whole, whatever the sizes and the padding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import SegformerImageProcessor

from revhrnet_hf import RevHRNetImageProcessor, RevHRNetImageProcessorPil
from revhrnet_hf.models import upsampling

TWINS = [RevHRNetImageProcessor, RevHRNetImageProcessorPil]

twins = pytest.mark.parametrize("processor_class", TWINS)


def logits_of(seed, batch, classes, height, width, spread):
    return torch.randn(batch, classes, height, width, generator=torch.Generator().manual_seed(seed)) * spread


def sampled(logits, extent, target):
    """Logits (classes, height, width) at the centres of `target`'s pixels, in float64 and one pixel after the other.

    Args:
        logits: they cover the network's whole input.
        extent: (height, width) of the part of the input that the image fills, as a share of it.
        target: (height, width) of the result.
    """
    values = logits.double().numpy()
    result = np.empty((len(values), *target))
    for y, x in np.ndindex(*target):
        corners = []
        for place, share, pixels, length in zip((y, x), extent, target, values.shape[1:], strict=True):
            position = min(max((place + 0.5) / pixels * share * length - 0.5, 0), length - 1)
            low = int(position)
            corners.append((low, min(low + 1, length - 1), position - low))
        (top, bottom, down), (left, right, across) = corners
        upper = values[:, top, left] * (1 - across) + values[:, top, right] * across
        lower = values[:, bottom, left] * (1 - across) + values[:, bottom, right] * across
        result[:, y, x] = upper * (1 - down) + lower * down
    return result


def assert_best(label_map, scores):
    """Every pixel has a class whose score is the best, but for rounding."""
    scores = np.asarray(scores, dtype=np.float64)
    chosen = np.take_along_axis(scores, np.asarray(label_map)[None], axis=0)[0]
    np.testing.assert_allclose(chosen, scores.max(axis=0), rtol=0, atol=1e-5 * max(1, np.abs(scores).max()))


edges = st.integers(1, 24)
seeds = st.integers(0, 2**16)
spreads = st.sampled_from([1e-3, 1.0, 1e3])


@settings(deadline=None, max_examples=80)
@given(seeds, st.integers(1, 7), edges, edges, edges, edges, spreads, st.sampled_from([1, 40, 2**18]), st.sampled_from(TWINS))
def test_is_interpolation_and_argmax(seed, classes, height, width, wanted_height, wanted_width, spread, band, processor_class):
    logits = logits_of(seed, 2, classes, height, width, spread).requires_grad_()
    targets = [(wanted_height, wanted_width), (wanted_width, wanted_height)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampling, "BAND_PIXELS", band)
        found = processor_class().post_process_semantic_segmentation(SimpleNamespace(logits=logits), targets)
    for one, target, label_map in zip(logits.detach(), targets, found, strict=True):
        whole = F.interpolate(one[None], size=target, mode="bilinear", align_corners=False)[0]
        assert label_map.shape == target and label_map.dtype == torch.int64
        assert_best(label_map, whole)


@settings(deadline=None, max_examples=60)
@given(
    seeds,
    st.lists(st.tuples(edges, edges), min_size=1, max_size=3),
    edges,
    edges,
    st.integers(1, 9),
    st.booleans(),
    st.none() | st.integers(1, 20),
)
def test_padding_is_cut_off_whatever_the_sizes(seed, sizes, height, width, divisor, by_divisor, longest_edge):
    """The place of an image in the network's input is what its own processing made it, resized before or not."""
    resize = {} if longest_edge is None else {"do_resize": True, "size": {"longest_edge": longest_edge}}
    images = [Image.new("RGB", size[::-1]) for size in sizes]
    contents = [tuple(x.shape[-2:]) for x in RevHRNetImageProcessor(**resize)(images)["pixel_values"]]
    if by_divisor:
        options = {"size_divisor": divisor}
        padded = [-(-max(edges) // divisor) * divisor for edges in zip(*contents, strict=True)]
    else:
        padded = [max(edges) + divisor for edges in zip(*contents, strict=True)]
        options = {"pad_size": {"height": padded[0], "width": padded[1]}}
    processor = RevHRNetImageProcessor(do_pad=True, **options, **resize)
    assert list(processor(images, return_tensors="pt")["pixel_values"].shape[-2:]) == padded
    logits = logits_of(seed, len(sizes), 3, height, width, 1)
    found = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [image.size[::-1] for image in images])
    for one, size, content, label_map in zip(logits, sizes, contents, found, strict=True):
        extent = [edge / whole for edge, whole in zip(content, padded, strict=True)]
        assert label_map.shape == size
        assert_best(label_map, sampled(one, extent, size))


@twins
@pytest.mark.parametrize("training", [True, False])
def test_outputs_with_a_graph(processor_class, training, tiny_model):
    """`outputs = model(**inputs)` without `no_grad`, with and without sizes, scores or not; the graph stays usable."""
    processor = processor_class()
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    outputs = tiny_model.train(training)(
        **processor(images, return_tensors="pt"), labels=torch.zeros(2, 64, 64, dtype=torch.long)
    )
    assert outputs.logits.requires_grad
    detached = SimpleNamespace(logits=outputs.logits.detach())
    for targets in (None, [(64, 64), (50, 31)], torch.tensor([[64, 64], [50, 31]]), np.array([[64, 64], [50, 31]])):
        found = processor.post_process_semantic_segmentation(outputs, targets)
        sizes = targets if targets is None else [tuple(size) for size in np.asarray(targets)]
        expected = SegformerImageProcessor().post_process_semantic_segmentation(detached, sizes)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert not any(label_map.requires_grad for label_map in found)
        with_scores = processor.post_process_semantic_segmentation(outputs, targets, return_segmentation_scores=True)
        assert all(torch.equal(one.segmentation, other) for one, other in zip(with_scores, expected, strict=True))
    outputs.loss.backward()
    assert tiny_model.head[3].weight.grad.abs().sum() > 0


@twins
def test_logits_of_inference_mode_and_half_precision(processor_class):
    with torch.inference_mode():
        logits = logits_of(0, 1, 4, 6, 7, 1)
    for given_logits in (logits, logits.to(torch.bfloat16), logits.half(), logits.double()):
        (found,) = processor_class().post_process_semantic_segmentation(SimpleNamespace(logits=given_logits), [(20, 30)])
        precise = F.interpolate(given_logits.double(), size=(20, 30), mode="bilinear", align_corners=False)[0]
        assert_best(found, precise)
        (with_scores,) = processor_class().post_process_semantic_segmentation(
            SimpleNamespace(logits=given_logits), [(20, 30)], return_segmentation_scores=True
        )
        assert torch.equal(with_scores.segmentation, found)
        torch.testing.assert_close(with_scores.segmentation_scores.double(), precise, rtol=1e-5, atol=1e-5)


@twins
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([(20, 30)], "1 target sizes for a batch of 2"),
        ((20, 30), r"one \(height, width\) for each image, got 20"),
        ([(20, 30), (0, 30)], "must be positive, got 0×30"),
        ([(20, 30), (20, 30, 3)], "unpack"),
        ([(20, 30), None], r"one \(height, width\) for each image, got None"),
    ],
    ids=str,
)
def test_sizes_that_are_none(processor_class, targets, said):
    outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=said):
        processor_class().post_process_semantic_segmentation(outputs, targets)
