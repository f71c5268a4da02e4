"""Feature maps as images: against patterns that are known, and the same for networks whose channels are turned."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BeitConfig, BeitForSemanticSegmentation, BeitImageProcessor, DPTImageProcessor

from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetImageProcessor
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation import InferenceSettings
from revhrnet_hf.evaluation.network_input import network_inputs
from revhrnet_hf.viz.feature_maps import component_images, feature_maps, mean_images

HEIGHT, WIDTH = 12, 16
RNG = np.random.default_rng(0)


def patterns(count):
    """Spatial patterns, (count, height, width), uncorrelated with each other, with mean 0 and variance 1."""
    basis, _ = np.linalg.qr(np.column_stack([np.ones(HEIGHT * WIDTH), RNG.standard_normal((HEIGHT * WIDTH, count))]))
    return basis[:, 1:].T.reshape(count, HEIGHT, WIDTH) * np.sqrt(HEIGHT * WIDTH)


def turned(maps, seed):
    """The maps with their channels turned by an orthogonal matrix, and shifted."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(maps), len(maps))))
    return np.tensordot(matrix, maps, 1) + 5


def image_like(pattern):
    grey = (pattern - pattern.min()) / np.ptp(pattern) * 255
    return Image.fromarray(grey.astype(np.uint8))


def test_components_are_the_patterns_in_order_of_their_variance():
    first, second, third, *noise = patterns(8)
    maps = turned(np.stack([5 * first, 3 * second, 2 * third, *(0.1 * x for x in noise)]), seed=1)
    (drawn,), share = component_images([maps], [image_like(first + second + third)])
    assert drawn.shape == (HEIGHT, WIDTH, 3) and drawn.dtype == np.uint8
    for channel, pattern in enumerate((first, second, third)):
        correlation = np.corrcoef(drawn[..., channel].ravel(), np.clip(pattern, *np.percentile(pattern, (1, 99))).ravel())[0, 1]
        assert correlation > 0.99  # the sign too: the image is brighter where each is larger
        assert (drawn[..., channel].min(), drawn[..., channel].max()) == (0, 255)
    assert share == pytest.approx(38 / (38 + 5 * 0.01))


def test_two_networks_that_differ_by_a_turn_of_channels_look_alike():
    patterns_ = patterns(6) * np.array([6, 5, 4, 1, 1, 1])[:, None, None]
    image = image_like(patterns_[:3].sum(0))
    (one,), _ = component_images([turned(patterns_, 1)], [image])
    (other,), _ = component_images([turned(patterns_, 2)], [image])
    assert np.abs(one.astype(int) - other).max() <= 1


def test_several_images_share_components_and_scale():
    """A colour means the same in all of them: each is what it was in the whole."""
    maps = turned(patterns(5) * np.array([5, 4, 3, 1, 1])[:, None, None], seed=3)
    image = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    (whole,), share = component_images([maps], [image])
    halves = [maps[:, :, :8], maps[:, :, 8:]]
    images = [image.crop((0, 0, 8, HEIGHT)), image.crop((8, 0, 16, HEIGHT))]
    parts, same_share = component_images(halves, images)
    assert np.abs(np.concatenate(parts, axis=1).astype(int) - whole).max() <= 1
    assert same_share == pytest.approx(share)


def test_flat_maps_and_few_channels():
    (black,), share = component_images([np.full((4, 3, 5), 7.0)], [Image.new("L", (5, 3))])
    assert not black.any() and share == 1
    (drawn,), share = component_images([patterns(1)], [Image.new("L", (WIDTH, HEIGHT))])
    assert drawn[..., 0].any() and not drawn[..., 1:].any() and share == pytest.approx(1)


def test_mean_is_of_the_channels_on_one_scale():
    ramp = np.linspace(0, 1, 101)[None].repeat(2, 0)  # mean over channels: 0 … 1
    drawn, other = mean_images([np.stack([ramp - 3, ramp + 3]), np.full((2, 2, 101), 0.5)])
    assert drawn[0, 0] == 0 and drawn[0, -1] == 255 and (np.diff(drawn[0].astype(int)) >= 0).all()
    assert np.abs(other.astype(int) - drawn[0, 50]).max() <= 1


def whole(image_processor, image):
    [inputs] = network_inputs(image_processor, image, InferenceSettings())
    return inputs


def test_strides_and_shapes(tiny_model):
    """Odd sizes; the map of stride 4 of RevHRNet is what its classifier sees."""
    image = Image.fromarray(RNG.integers(0, 256, (75, 101, 3), dtype=np.uint8))
    seen = []
    handle = tiny_model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    maps = feature_maps(tiny_model, whole(RevHRNetImageProcessor(), image))
    handle.remove()
    shapes = {4: (8, 19, 26), 8: (12, 10, 13), 16: (16, 5, 7), 32: (20, 3, 4)}
    assert {stride: x.shape for stride, x in maps.items()} == shapes
    assert np.array_equal(maps[4], seen[0][0].numpy())

    torch.manual_seed(0)
    five = HRNetV2Config(stream_channels=[4, 6, 8, 10, 12], num_modules=[1] * 4, num_blocks=1, stem_stride=2, num_labels=5)
    hrnet = HRNetV2ForSemanticSegmentation(five).eval()
    assert list(feature_maps(hrnet, whole(RevHRNetImageProcessor(), image))) == [2, 4, 8, 16, 32]


def test_maps_are_of_the_whole_image_and_nothing_but_the_image(tiny_model):
    """With image processors that cut out the centre, or pad around the image."""
    image = Image.fromarray(RNG.integers(0, 256, (64, 128, 3), dtype=np.uint8))
    options = {"do_rescale": True, "do_normalize": True, "do_resize": False}
    plain = feature_maps(tiny_model, whole(BeitImageProcessor(**options, do_center_crop=False), image))
    cropping = BeitImageProcessor(**options, do_center_crop=True, crop_size={"height": 32, "width": 32})
    cropped = feature_maps(tiny_model, whole(cropping, image))
    assert all(np.array_equal(cropped[stride], plain[stride]) for stride in plain)

    inputs = whole(DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=96), image)
    assert (inputs.padded_size, inputs.place) == ((96, 192), (16, 32))
    with torch.no_grad():
        padded = tiny_model(inputs.tensors["pixel_values"], output_hidden_states=True).hidden_states
    of_stride = {96 // x.shape[-2]: x[0].numpy() for x in padded}
    maps = feature_maps(tiny_model, inputs)
    for stride, rows, columns in ((4, (4, 20), (8, 40)), (8, (2, 10), (4, 20)), (16, (1, 5), (2, 10)), (32, (0, 3), (1, 5))):
        assert np.array_equal(maps[stride], of_stride[stride][:, slice(*rows), slice(*columns)])


def test_a_model_without_maps_is_an_error():
    config = BeitConfig(
        image_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, out_indices=[1, 2, 3, 4]
    )
    model = BeitForSemanticSegmentation(config).eval()
    with pytest.raises(CheckpointError, match="BeitForSemanticSegmentation gives no feature maps"):
        processor = BeitImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
        feature_maps(model, whole(processor, Image.new("RGB", (64, 64))))
