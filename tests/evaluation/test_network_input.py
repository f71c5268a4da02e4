"""An exact segmenter behind every image processor that a semantic segmentation model of Transformers uses.

It paints each pixel of its input with the class of that pixel's colour, so that its label map is right where, and only where, the
input is laid over the image as it should be.
"""

import argparse
import time

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import torch
import transformers
from transformers import (
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    DPTImageProcessor,
    DPTImageProcessorPil,
    EfficientNetImageProcessor,
    EomtImageProcessor,
    MobileViTImageProcessor,
    SegformerImageProcessor,
    ViTImageProcessor,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation import InferenceSettings, segment
from revhrnet_hf.evaluation.network_input import network_inputs, read_ahead

COLOURS = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
SIZES = [(151, 227), (331, 97), (83, 402)]  # odd; tall; wide
BLOCK = 24  # pixels
WAYS = [
    InferenceSettings(),
    InferenceSettings(flip=True),
    InferenceSettings(window=(96, 112), stride=(61, 73)),
    InferenceSettings(scales=(1.0, 1.5)),
]


def processors_of(model_types):
    names = set()
    for model_type in model_types:
        # Ours are registered by their classes.
        names |= set((IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}).values())
    return sorted(names)


class ExactSegmenter(torch.nn.Module):
    """The nearest colour, in the processor's own numbers, at stride 1."""

    def __init__(self, image_processor):
        super().__init__()
        seen = [image_processor(images=[PIL.Image.new("RGB", (320, 320), tuple(colour))]) for colour in COLOURS.tolist()]
        # In the centre, where no padding is.
        colours = [np.asarray(one["pixel_values"][0]) for one in seen]
        self.colours = torch.nn.Parameter(
            torch.tensor(np.stack([planes[:, planes.shape[1] // 2, planes.shape[2] // 2] for planes in colours]))
        )

    def forward(self, pixel_values, **_):
        distances = (pixel_values[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return argparse.Namespace(logits=-distances / self.colours.var())


def mosaic(size, seed=0):
    """An image of coloured blocks, and its label map."""
    rows, columns = (-(-edge // BLOCK) for edge in size)
    classes = np.random.default_rng(seed).integers(0, len(COLOURS), (rows, columns))
    label_map = classes.repeat(BLOCK, 0).repeat(BLOCK, 1)[: size[0], : size[1]]
    return PIL.Image.fromarray(COLOURS[label_map]), label_map


def wrong_inside(found, truth, reach, margin):
    """Pixels that are wrong although all pixels up to `reach` away are of one class; `margin` at the image's edge is left out."""
    side = 2 * reach + 1
    inside = scipy.ndimage.minimum_filter(truth, side) == scipy.ndimage.maximum_filter(truth, side)
    inside &= np.pad(np.ones([edge - 2 * margin for edge in truth.shape], bool), margin)
    assert inside.mean() > 0.2
    return int((inside & (found != truth)).sum())


def check_exact(image_processor, size, settings):
    image, truth = mosaic(size)
    found = segment(ExactSegmenter(image_processor), image_processor, image, settings).label_map
    # The resampling mixes two pixels of the coarser grid.
    options = {option: False for option in ("do_pad", "do_center_crop") if getattr(image_processor, option, None)}
    seen = np.asarray(image_processor(images=[image], **options)["pixel_values"][0]).shape[-2:]
    reach = int(np.ceil(2 * max(1, *(edge / new for edge, new in zip(size, seen, strict=True)))))
    # At the edge, padding mixes in where logits are enlarged.
    margin = 2 if getattr(image_processor, "do_pad", None) and getattr(image_processor, "do_resize", None) else 0
    assert wrong_inside(found, truth, min(reach, 7), margin) == 0


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("name", processors_of(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES))
def test_every_processor_of_a_semantic_model(name, settings):
    image_processor = getattr(transformers, name)()
    for size in SIZES:
        check_exact(image_processor, size, settings)


@pytest.mark.parametrize("name", processors_of(MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES))
def test_processors_of_universal_models(name):
    """AutoModelForSemanticSegmentation loads none of these models, but a checkpoint may come with such an image processor."""
    image_processor = getattr(transformers, name)(size={"shortest_edge": 150, "longest_edge": 400})
    for size in SIZES:
        check_exact(image_processor, size, InferenceSettings())


PADDING = {
    "centred": DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=14),
    "centred, Pillow": DPTImageProcessorPil(do_resize=False, do_pad=True, size_divisor=32),
    "resized and centred": DPTImageProcessor(
        size={"height": 120, "width": 160}, keep_aspect_ratio=True, do_pad=True, size_divisor=64
    ),
    "at the end": EomtImageProcessor(size={"shortest_edge": 160, "longest_edge": 160}, do_pad=True),
    "at the end, to a size": SegformerImageProcessor(do_resize=False, do_pad=True, pad_size={"height": 450, "width": 500}),
    "ours": RevHRNetImageProcessor(do_pad=True, size_divisor=64),
    "ours, resized": RevHRNetImageProcessor(do_resize=True, size={"longest_edge": 300}, do_pad=True),
    "cropped": MobileViTImageProcessor(size={"shortest_edge": 130}, crop_size={"height": 96, "width": 96}),
    "cropped, with margins": MobileViTImageProcessor(do_resize=False, crop_size={"height": 420, "width": 420}),
    "split": EomtImageProcessor(size={"shortest_edge": 130, "longest_edge": None}, do_split_image=True),
}


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("name", PADDING)
def test_processors_that_pad_and_crop(name, settings):
    for size in SIZES:
        check_exact(PADDING[name], size, settings)


def test_the_network_sees_the_processors_own_padding():
    image, _ = mosaic((50, 75))
    image_processor = DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=32)
    [found] = network_inputs(image_processor, image, InferenceSettings())
    assert torch.equal(found.tensors["pixel_values"], image_processor(images=[image], return_tensors="pt")["pixel_values"])
    assert (found.place, found.size, found.padded_size) == ((7, 10), (50, 75), (64, 96))
    # Where the image is shown at twice its size, so is all around it.
    assert found.canvas((100, 150)) == (128, 192) and found.origin((100, 150)) == (14, 20)


def test_a_target_of_another_size_keeps_the_padding_in_proportion():
    image, truth = mosaic((72, 120))
    image_processor = RevHRNetImageProcessor(do_pad=True, size_divisor=64)
    found = segment(ExactSegmenter(image_processor), image_processor, image, target_size=(36, 60)).label_map
    assert wrong_inside(found, truth[::2, ::2], 2, 2) == 0


def altered(change):
    """SegFormer's image processor, whose pixel_values are changed."""

    class Altered(SegformerImageProcessor):
        def preprocess(self, images, **kwargs):
            outputs = super().preprocess(images, **kwargs)
            outputs["pixel_values"] = change(outputs["pixel_values"])
            return outputs

    return Altered(do_resize=False)


@pytest.mark.parametrize(
    "image_processor",
    [
        ConvNextImageProcessor(size={"shortest_edge": 224}),  # resizes to 256 and crops, whatever do_center_crop says
        ConvNextImageProcessorPil(size={"shortest_edge": 224}),
        altered(lambda pixels: pixels[..., :-4, :]),
        altered(lambda pixels: pixels[..., 3:]),
        altered(lambda pixels: torch.nn.functional.pad(pixels, (5, 5))),
        altered(lambda pixels: pixels.flip(-1)),
        altered(lambda pixels: pixels.transpose(-1, -2)),
        altered(lambda pixels: pixels.roll(7, -1)),
        altered(lambda pixels: pixels * torch.nan),
        altered(lambda pixels: pixels.repeat(2, 1, 1, 1)),
        altered(lambda pixels: pixels.flatten(1)),
    ],
    ids=["convnext", "convnext_pil", "rows", "columns", "margin", "mirrored", "turned", "rolled", "nan", "two", "flat"],
)
@pytest.mark.parametrize("settings", WAYS[1:3], ids=str)
def test_what_cannot_be_undone_is_refused(image_processor, settings):
    with pytest.raises(CheckpointError, match=f"{type(image_processor).__name__} .*label maps would not fit the image"):
        segment(torch.nn.Conv2d(3, 5, 1), image_processor, mosaic((64, 96))[0], settings)


def test_padding_that_changes_the_image_is_refused():
    class Reflecting(SegformerImageProcessor):
        def preprocess(self, images, do_pad=True, **kwargs):
            outputs = super().preprocess(images, **kwargs)
            if do_pad:
                outputs["pixel_values"] = torch.nn.functional.interpolate(outputs["pixel_values"], scale_factor=1.25)
            return outputs

    with pytest.raises(CheckpointError, match="in a way that cannot be undone: set do_pad to false"):
        network_inputs(Reflecting(do_resize=False, do_pad=True), mosaic((64, 96))[0], InferenceSettings())


def test_an_option_that_is_changed_later_is_noticed():
    image_processor = SegformerImageProcessor(do_resize=False)
    network_inputs(image_processor, mosaic((64, 96))[0], InferenceSettings())
    image_processor.image_mean = [float("nan")] * 3
    with pytest.raises(CheckpointError, match="does not show the network all of an image"):
        network_inputs(image_processor, mosaic((64, 96))[0], InferenceSettings())


def test_another_processor_that_resizes_as_a_whole_will_do():
    for image_processor in (ViTImageProcessor(), EfficientNetImageProcessor(size={"height": 300, "width": 200})):
        check_exact(image_processor, SIZES[0], InferenceSettings())


def test_pinned_inputs_are_the_same(monkeypatch):
    """Each tensor is pinned once, which only a GPU's driver can do; all else stays."""
    [given] = network_inputs(RevHRNetImageProcessor(), PIL.Image.new("RGB", (20, 12), (9, 8, 7)), InferenceSettings())
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x.clone())
    found = given.pin_memory()
    assert [x is given.tensors["pixel_values"] for x in pinned] == [True]
    assert type(found.tensors) is type(given.tensors) and (found.place, found.size) == (given.place, given.size)
    assert torch.equal(found.tensors["pixel_values"], given.tensors["pixel_values"])


class Silent(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, _):
        time.sleep(60)


def test_a_silent_worker_is_an_error_after_the_timeout():
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1 seconds"):
        next(read_ahead(Silent(), 1, torch.device("cpu"), timeout=1))


@pytest.mark.parametrize("mode", ["P", "1"])
def test_scales_of_images_that_pillow_would_resize_by_nearest_neighbour(mode):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).convert(mode)
    settings = InferenceSettings(scales=(0.5, 1.0, 1.5))
    found, expected = (network_inputs(RevHRNetImageProcessor(), each, settings) for each in (image, image.convert("RGB")))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tensors["pixel_values"], other.tensors["pixel_values"])
