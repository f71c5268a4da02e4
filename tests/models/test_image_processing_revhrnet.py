"""The image processors against SegFormer's, each other, closed formulas and brute force."""

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from revhrnet_hf.models import image_processing_pil_revhrnet
from revhrnet_hf.models.image_processing_pil_revhrnet import (
    RevHRNetImageProcessorPil,
    nearest_source_indices,
    resized_size,
)
from revhrnet_hf.models.image_processing_revhrnet import RevHRNetImageProcessor

from .. import forked

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
TWINS = [RevHRNetImageProcessor, RevHRNetImageProcessorPil]
ODD_SIZES = [(37, 53), (64, 31), (5, 97)]

twins = pytest.mark.parametrize("processor_class", TWINS)


def random_image(height, width, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def random_label_map(height, width, highest=255, seed=1):
    return np.random.default_rng(seed).integers(0, highest + 1, (height, width))


# Images


@twins
def test_default_keeps_the_size_and_normalises_by_the_closed_formula(processor_class):
    image = random_image(37, 53)
    batch = processor_class()(image, return_tensors="pt")
    expected = (np.asarray(image) / 255 - MEAN) / STD
    assert set(batch) == {"pixel_values"}
    assert batch["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(batch["pixel_values"][0].numpy(), expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "segformers"),
    [(RevHRNetImageProcessor, SegformerImageProcessor), (RevHRNetImageProcessorPil, SegformerImageProcessorPil)],
)
@pytest.mark.parametrize(
    "size",
    [{"height": 48, "width": 23}, {"shortest_edge": 41}, {"shortest_edge": 41, "longest_edge": 60}],
    ids=lambda size: "+".join(size),
)
def test_equals_segformer_on_the_same_settings(ours, segformers, size):
    settings = {"do_resize": True, "size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    images = [random_image(*edges) for edges in ODD_SIZES]
    label_maps = [random_label_map(*edges).astype(np.uint8) for edges in ODD_SIZES]
    actual = ours(**settings)(images, label_maps)
    expected = segformers(**settings)(images, label_maps)
    # Pillow's nearest neighbour sums float steps and takes the wrong side of some ties: torchvision's is the oracle.
    expected["labels"] = SegformerImageProcessor(**settings)(images, label_maps)["labels"]
    for key in ("pixel_values", "labels"):
        for one, other in zip(actual[key], expected[key], strict=True):
            assert str(one.dtype).removeprefix("torch.") == str(other.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize(
    "options",
    [{}, {"do_pad": True, "size_divisor": 16}, {"do_resize": True, "size": {"longest_edge": 40}, "do_pad": True}],
    ids=["plain", "pad", "resize+pad"],
)
def test_twins_agree(options):
    images = [random_image(*edges) for edges in ODD_SIZES]
    label_maps = [random_label_map(*edges) for edges in ODD_SIZES]
    one, other = (twin(**options)(images, label_maps) for twin in TWINS)
    # Pillow and torchvision round a resampled image's value to neighbouring whole numbers now and then.
    tolerance = 1.01 / 255 / STD.min() if options.get("do_resize") else 2e-6
    for key, bound in (("pixel_values", tolerance), ("labels", 0)):
        for a, b in zip(one[key], other[key], strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(np.asarray(a), b, atol=bound, rtol=0)


@twins
@pytest.mark.parametrize(
    ("edges", "size", "expected"),
    [
        ((360, 480), {"longest_edge": 240}, (180, 240)),
        ((480, 360), {"longest_edge": 240}, (240, 180)),
        ((3, 1000), {"longest_edge": 100}, (1, 100)),  # 0.3 pixel high, but never less than one
        ((7, 10), {"longest_edge": 5}, (4, 5)),  # 3.5 is rounded up
        ((360, 480), {"shortest_edge": 90}, (90, 120)),
        ((1, 480), {"shortest_edge": 2, "longest_edge": 96}, (1, 96)),
        ((360, 480), {"height": 11, "width": 13}, (11, 13)),
    ],
)
def test_resized_sizes(processor_class, edges, size, expected):
    batch = processor_class(do_resize=True, size=size)(random_image(*edges), random_label_map(*edges))
    assert tuple(batch["pixel_values"][0].shape) == (3, *expected)
    assert tuple(batch["labels"][0].shape) == expected


@twins
def test_unknown_form_of_size_is_an_error(processor_class):
    processor = processor_class(do_resize=True, size={"max_height": 10, "max_width": 10})
    with pytest.raises(ValueError, match=r"'shortest_edge'.*max_height"):
        processor(random_image(20, 20))
    with pytest.raises(ValueError, match="size"):
        processor_class(do_resize=True)(random_image(20, 20))
    with pytest.raises(ValueError, match="do_center_crop"):
        processor_class(do_center_crop=True, crop_size=8)(random_image(20, 20))


GREY = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.dstack([GREY, 255 - GREY, GREY.T])


def image_and_its_rgb(mode):
    """An image of this mode, and the RGB values, (height, width, 3), that it shows."""
    if mode == "1":
        return Image.fromarray(GREY > 100), np.dstack([np.where(GREY > 100, 255, 0)] * 3)
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY] * 3)
    if mode == "I":
        return Image.fromarray(GREY.astype(np.int32) * 257), np.dstack([GREY] * 3)
    if mode == "L":
        return Image.fromarray(GREY), np.dstack([GREY] * 3)
    if mode == "P":
        image = Image.fromarray(GREY).convert("P")
        image.putpalette(COLOUR.reshape(-1, 3).tobytes())
        return image, COLOUR[GREY // 16, GREY % 16]
    if mode == "RGBA":
        alpha = np.where(GREY < 128, 0, 255).astype(np.uint8)
        return Image.fromarray(np.dstack([COLOUR, alpha])), np.where(alpha[..., None] == 0, 255, COLOUR)
    if mode == "CMYK":
        inks = np.dstack([255 - COLOUR, np.zeros_like(GREY)])
        return Image.frombytes("CMYK", (16, 16), inks.tobytes()), COLOUR
    raise NotImplementedError(mode)


@twins
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "I"])
def test_every_mode_of_image_becomes_the_rgb_that_a_person_sees(processor_class, mode):
    image, expected = image_and_its_rgb(mode)
    assert image.mode == mode
    batch = processor_class(do_rescale=False, do_normalize=False)(image, return_tensors="np")
    np.testing.assert_array_equal(batch["pixel_values"][0], expected.transpose(2, 0, 1))


@twins
def test_file_names_are_read_upright_and_pil_images_as_they_are(processor_class, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    path = tmp_path / "turned.png"
    random_image(20, 30).save(path, exif=exif)
    processor = processor_class()
    with Image.open(path) as image:
        assert processor(image)["pixel_values"][0].shape == (3, 20, 30)
    assert processor(str(path))["pixel_values"][0].shape == (3, 30, 20)


@twins
def test_label_maps_are_read_from_files_too(processor_class, tmp_path):
    ids = random_label_map(20, 30, highest=5).astype(np.uint8)
    colours = Image.fromarray(ids).convert("P")
    colours.putpalette(COLOUR.reshape(-1, 3).tobytes())
    for label_map in (Image.fromarray(ids), colours):
        label_map.save(tmp_path / "labels.png")
        batch = processor_class()(random_image(20, 30), str(tmp_path / "labels.png"), return_tensors="np")
        np.testing.assert_array_equal(batch["labels"][0], np.asarray(label_map))


@twins
def test_what_is_no_image_is_named(processor_class, tmp_path):
    for source in (str(tmp_path / "missing.png"), "bad", "street.jpg"):
        with pytest.raises(ValueError, match=f"{Path(source).name}.* must be a file, http address or base64 text"):
            processor_class()(source)
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.png' must be a file.*of an image in a known format"):
        processor_class()(tmp_path / "page.png")


@twins
@pytest.mark.parametrize("form", ["reversed channels", "upside down", "big-endian"])
def test_arrays_that_pytorch_does_not_have(processor_class, form):
    plain, label_map = np.asarray(random_image(12, 17)), random_label_map(12, 17)
    image, labels = {
        "reversed channels": (plain[..., ::-1].copy()[..., ::-1], label_map),
        "upside down": (plain[::-1].copy()[::-1], label_map[::-1].copy()[::-1]),
        "big-endian": (plain.astype(">i4"), label_map.astype(">u2")),
    }[form]
    batch = processor_class(do_rescale=False, do_normalize=False)(image, labels, return_tensors="np")
    np.testing.assert_array_equal(batch["pixel_values"][0], plain.transpose(2, 0, 1))
    np.testing.assert_array_equal(batch["labels"][0], label_map)


@twins
def test_big_endian_label_maps_of_files(processor_class, tmp_path):
    label_map = random_label_map(12, 17, highest=1000)
    Image.fromarray(label_map.astype(">u2")).save(tmp_path / "labels.tif")
    assert Image.open(tmp_path / "labels.tif").mode == "I;16B"
    batch = processor_class()(random_image(12, 17), str(tmp_path / "labels.tif"), return_tensors="np")
    np.testing.assert_array_equal(batch["labels"][0], label_map)


@twins
@pytest.mark.parametrize("options", [{}, {"input_data_format": "channels_last"}])
def test_grey_arrays(processor_class, options):
    grey = np.asarray(random_image(12, 17))[..., 0]
    processor = processor_class(do_rescale=False, do_normalize=False)
    for given in (grey, torch.from_numpy(grey.copy()), [grey, grey]):
        for found in processor(given, **options)["pixel_values"]:
            np.testing.assert_array_equal(np.asarray(found), np.stack([grey] * 3))


@twins
@pytest.mark.parametrize("shape", [(100,), (1, 1, 3, 12, 17)])
def test_arrays_that_are_no_images(processor_class, shape):
    for given in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(ValueError, match=r"an image is \(height, width\).*; got \(1"):
            processor_class()(given)


@twins
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_booleans_that_would_be_black_are_refused(processor_class, make):
    image = make(np.eye(8, dtype=bool)[None].repeat(3, 0))
    with pytest.raises(ValueError, match="booleans would be black"):
        processor_class()(image)
    white = processor_class(do_rescale=False, do_normalize=False)(image)["pixel_values"][0]
    np.testing.assert_array_equal(np.asarray(white), np.asarray(image))


@twins
def test_fractions_that_would_be_rescaled_again_are_warned_of(processor_class, monkeypatch):
    said = []
    monkeypatch.setattr(image_processing_pil_revhrnet.logger, "warning_once", said.append)
    share = np.asarray(random_image(12, 17)) / 255
    for silent in (share * 255, share * 0):
        processor_class()(silent)
    for options in ({"do_rescale": False}, {"rescale_factor": 1.0}):
        processor_class(**options)(share)
    assert said == []
    processor_class()(share)
    processor_class()(torch.from_numpy(share))
    assert len(said) == 2 and "give do_rescale=False" in said[0]


@twins
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_whole_numbers_of_more_bits_need_a_factor_of_their_own(processor_class, dtype):
    plain = np.asarray(random_image(12, 17)).astype(dtype)
    expected = processor_class()(plain.astype(np.uint8))["pixel_values"][0]
    np.testing.assert_allclose(np.asarray(processor_class()(plain)["pixel_values"][0]), np.asarray(expected), atol=1e-6)
    for given in (plain * 257, torch.from_numpy(plain * 257)):
        with pytest.raises(ValueError, match=r"values up to 65\d+, .* such as rescale_factor=1/65535 for 16 bits"):
            processor_class()(given)
        found = processor_class(rescale_factor=1 / 65535)(given)["pixel_values"][0]
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


# Batches


@twins
def test_padding_is_zero_after_normalising_and_ignored_in_labels(processor_class):
    sizes = [(37, 53), (20, 70)]
    images = [random_image(*edges) for edges in sizes]
    label_maps = [random_label_map(*edges, highest=10) for edges in sizes]
    processor = processor_class(do_pad=True, size_divisor=16, ignore_index=254)
    batch = processor(images, label_maps, return_tensors="np")
    assert batch["pixel_values"].shape == (2, 3, 48, 80)
    assert batch["labels"].shape == (2, 48, 80)
    for index, (height, width) in enumerate(sizes):
        alone = processor_class()(images[index], label_maps[index], return_tensors="np")
        for key, padding in (("pixel_values", 0), ("labels", 254)):
            padded = batch[key][index]
            np.testing.assert_array_equal(padded[..., :height, :width], alone[key][0])
            assert (padded[..., height:, :] == padding).all()
            assert (padded[..., :, width:] == padding).all()


@twins
def test_padding_without_a_divisor_and_to_a_given_size(processor_class):
    images = [random_image(37, 53), random_image(40, 30)]
    batch = processor_class(do_pad=True, size_divisor=1)(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 40, 53)
    batch = processor_class(do_pad=True, pad_size={"height": 41, "width": 99})(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 41, 99)
    with pytest.raises(ValueError, match="size_divisor"):
        processor_class(do_pad=True, size_divisor=0)(images)


@twins
def test_an_image_above_the_padded_size_is_named(processor_class):
    image = np.zeros((40, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"an image of 40×30 pixels .* is larger than pad_size, 32×64: pass a larger one"):
        processor_class(do_pad=True, pad_size={"height": 32, "width": 64})(image)


@twins
def test_unequal_sizes_cannot_be_stacked_without_padding(processor_class):
    images = [random_image(37, 53), random_image(40, 30)]
    assert [p.shape for p in processor_class()(images)["pixel_values"]] == [(3, 37, 53), (3, 40, 30)]
    with pytest.raises(ValueError, match=r"37×53, 40×30.*do_pad=True"):
        processor_class()(images, return_tensors="pt")


# Label maps


@pytest.mark.parametrize(("length", "new_length"), [(7, 7), (7, 3), (3, 7), (480, 123), (5, 1000), (1, 4), (6, 4)])
def test_nearest_neighbour_is_the_pixel_under_the_centre(length, new_length):
    expected = [int(Fraction(2 * i + 1, 2) * length / new_length) for i in range(new_length)]
    assert nearest_source_indices(length, new_length).tolist() == expected


@twins
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_label_ids_survive_resizing_whatever_their_type(processor_class, dtype):
    label_map = np.full((20, 30), 3, dtype=dtype)
    label_map[:, 15:] = 255
    if dtype != np.uint8:
        label_map[10:] = 1000
    processor = processor_class(do_resize=True, size={"height": 7, "width": 91})
    labels = processor(random_image(20, 30), label_map, return_tensors="pt")["labels"]
    assert labels.dtype == torch.int64
    assert set(labels.unique().tolist()) == set(np.unique(label_map).tolist())


@twins
def test_palette_label_map_keeps_its_indices(processor_class):
    values = random_label_map(12, 17, highest=11).astype(np.uint8)
    label_map = Image.fromarray(values).convert("P")
    label_map.putpalette([200, 100, 50] * 12)
    batch = processor_class()(random_image(12, 17), label_map, return_tensors="np")
    np.testing.assert_array_equal(batch["labels"][0], values)


@twins
def test_label_maps_that_do_not_fit_are_errors(processor_class):
    processor, image = processor_class(), random_image(12, 17)
    with pytest.raises(ValueError, match=r"map 1 .*12×17.*\(1, 17, 12\)"):
        processor([image, image], [np.zeros((12, 17), int), np.zeros((17, 12), int)])
    with pytest.raises(ValueError, match="2 images but 1 segmentation map"):
        processor([image, image], [np.zeros((12, 17), int)])
    for given in (image, np.asarray(image), [np.asarray(image)]):
        with pytest.raises(ValueError, match="one channel of class ids"):
            processor(image, given)


@twins
def test_label_maps_may_have_one_channel(processor_class):
    image, label_map = random_image(12, 17), random_label_map(12, 17)
    first, last = label_map[None], label_map[..., None]
    for given in (label_map, first, last, [first], [last], first[None], last[None], torch.from_numpy(last), [[label_map]]):
        [found] = processor_class()(image, given)["labels"]
        np.testing.assert_array_equal(np.asarray(found), label_map)
    for given in ([label_map] * 2, [first, last], np.stack([label_map] * 2), np.stack([first] * 2), np.stack([last] * 2)):
        found = processor_class()([image, image], given)["labels"]
        np.testing.assert_array_equal(np.stack([np.asarray(each) for each in found]), np.stack([label_map] * 2))


# Post-processing


def bilinear_samples(length, position):
    """Weights (position, length) of bilinear interpolation at fractional pixel positions, edges repeated."""
    position = np.clip(position, 0, length - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, length - 1)
    weights = np.zeros((len(position), length))
    np.add.at(weights, (np.arange(len(position)), low), 1 - (position - low))
    np.add.at(weights, (np.arange(len(position)), high), position - low)
    return weights


def expected_scores(logits, content, padded, target):
    """Logits (num_labels, height, width) sampled in float64 at the place that each target pixel has in them."""
    rows, columns = (
        bilinear_samples(length, (np.arange(t) + 0.5) * c / t * length / p - 0.5)
        for length, c, p, t in zip(logits.shape[1:], content, padded, target, strict=True)
    )
    return np.einsum("yh,chw,xw->cyx", rows, logits.double().numpy(), columns)


def random_logits(batch, height, width):
    return torch.randn(batch, 5, height, width, generator=torch.Generator().manual_seed(0))


@twins
@pytest.mark.parametrize("as_tensor", [False, True])
def test_post_processing_equals_segformers(processor_class, as_tensor):
    outputs = SimpleNamespace(logits=random_logits(2, 10, 14))
    targets = [(37, 53), (40, 55)]
    given = torch.tensor(targets) if as_tensor else targets
    actual = processor_class().post_process_semantic_segmentation(outputs, given)
    expected = SegformerImageProcessor().post_process_semantic_segmentation(outputs, targets)
    assert [one.dtype for one in actual] == [torch.int64] * 2
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    at_logits_size = processor_class().post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(at_logits_size), outputs.logits.argmax(dim=1))
    with pytest.raises(ValueError, match="1 target sizes for a batch of 2"):
        processor_class().post_process_semantic_segmentation(outputs, targets[:1])


@twins
@pytest.mark.parametrize(
    ("options", "contents", "padded"),
    [
        ({"do_pad": True, "size_divisor": 16}, [(37, 53), (40, 30)], (48, 64)),
        ({"do_pad": True, "pad_size": {"height": 99, "width": 65}}, [(37, 53), (40, 30)], (99, 65)),
        ({"do_resize": True, "size": {"longest_edge": 70}, "do_pad": True}, [(49, 70), (70, 53)], (96, 96)),
        ({"do_resize": True, "size": {"shortest_edge": 20}}, [(20, 28), (26, 20)], None),
    ],
    ids=["pad", "pad_size", "resize+pad", "resize"],
)
def test_post_processing_cuts_the_padding_off_exactly(processor_class, options, contents, padded):
    targets = [(37, 53), (40, 30)]
    processor = processor_class(**options)
    images = [random_image(*target) for target in targets]
    # The sizes worked out by hand above are those of the network's input.
    for image, content in zip(images, contents, strict=True):
        assert processor(image, do_pad=False)["pixel_values"][0].shape[-2:] == content
    if padded:
        assert processor(images, return_tensors="pt")["pixel_values"].shape[-2:] == padded
    logits = random_logits(2, 24, 17)
    actual = processor.post_process_semantic_segmentation(
        SimpleNamespace(logits=logits), targets, return_segmentation_scores=True
    )
    for index, (one, target) in enumerate(zip(actual, targets, strict=True)):
        expected = expected_scores(logits[index], contents[index], padded or contents[index], target)
        np.testing.assert_allclose(one.segmentation_scores.numpy(), expected, atol=1e-4)
        assert torch.equal(one.segmentation, one.segmentation_scores.argmax(dim=0))


def test_only_semantic_post_processing_exists():
    # The pipeline would take panoptic or instance post-processing first if there were one.
    methods = {name for name in dir(RevHRNetImageProcessor) if name.startswith("post_process")}
    assert methods == {"post_process_semantic_segmentation"}


# Checkpoints


@twins
def test_options_survive_saving_and_loading(processor_class, tmp_path):
    options = {
        "do_resize": True,
        "size": {"longest_edge": 64},
        "do_pad": True,
        "size_divisor": 8,
        "ignore_index": 254,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.1, 0.2, 0.3),
    }
    processor_class(**options).save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in options} == options
    assert loaded.size == SizeDict(longest_edge=64)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == {"longest_edge": 64}
    image = random_image(37, 53)
    one, other = (processor(image)["pixel_values"][0] for processor in (processor_class(**options), loaded))
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@twins
@pytest.mark.parametrize("backend", ["torchvision", "pil", None])
def test_auto_class_takes_the_twin_of_the_backend(processor_class, backend, tmp_path):
    processor_class(do_pad=True, size_divisor=8).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is (RevHRNetImageProcessorPil if backend == "pil" else RevHRNetImageProcessor)
    assert loaded.size_divisor == 8


@pytest.mark.slow
@twins
def test_remote_code_loads_both_twins_without_the_package(processor_class, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    processor_class(do_pad=True, size_divisor=8).save_pretrained(checkpoint)
    np.save(tmp_path / "image.npy", np.asarray(random_image(37, 53)))
    code = """
import sys
sys.modules["revhrnet_hf"] = None  # any import of the package fails
import numpy as np
from transformers import AutoImageProcessor
checkpoint, again, folder = sys.argv[1:]
image = np.load(folder + "/image.npy")
for backend in ("torchvision", "pil"):
    processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True, backend=backend)
    assert processor.backend == backend and processor.size_divisor == 8, processor
    np.save(folder + f"/{backend}.npy", processor(image, return_tensors="np")["pixel_values"])
processor.save_pretrained(again)
assert AutoImageProcessor.from_pretrained(again, trust_remote_code=True).backend == "torchvision"
"""
    command = [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "again"), str(tmp_path)]
    finished = forked.run(command, preloaded=forked.BARE, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for twin, backend in zip(TWINS, ("torchvision", "pil"), strict=True):
        here = twin(do_pad=True, size_divisor=8)(random_image(37, 53), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(np.load(tmp_path / f"{backend}.npy"), here)


def test_resized_size_needs_a_known_form():
    with pytest.raises(ValueError, match="size must have"):
        resized_size((10, 10), SizeDict())
