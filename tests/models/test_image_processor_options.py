"""No option of the image processors is swallowed: each is honoured, as SegFormer's processors do it, or refused."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SegformerImageProcessor, TimmBackboneConfig, pipeline
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.processing_utils import ImagesKwargs

import revhrnet_hf
from revhrnet_hf import RevHRNetImageProcessor, RevHRNetImageProcessorPil

TWINS = [RevHRNetImageProcessor, RevHRNetImageProcessorPil]
SEGFORMERS = {RevHRNetImageProcessor: SegformerImageProcessor, RevHRNetImageProcessorPil: SegformerImageProcessorPil}

twins = pytest.mark.parametrize("processor_class", TWINS)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.fixture
def label_map():
    """Every id that eight bits hold, in some order."""
    return np.random.default_rng(1).permutation(np.arange(600) % 256).reshape(20, 30)


# Label maps


@twins
@pytest.mark.parametrize("form", ["uint8", "int64", "float32", "PIL"])
@pytest.mark.parametrize("when", ["construction", "call", "attribute"])
def test_reduced_labels_are_segformers(processor_class, form, when, image, label_map):
    given = Image.fromarray(label_map.astype(np.uint8)) if form == "PIL" else label_map.astype(form)
    if when == "construction":
        labels = processor_class(do_reduce_labels=True)(image, given, return_tensors="pt")["labels"]
    elif when == "call":
        labels = processor_class()(image, given, do_reduce_labels=True, return_tensors="pt")["labels"]
    else:
        processor = processor_class()
        processor.do_reduce_labels = True
        labels = processor(image, given, return_tensors="pt")["labels"]
    expected = SEGFORMERS[processor_class](do_reduce_labels=True, do_resize=False)(
        image, label_map.astype(np.uint8), return_tensors="pt"
    )["labels"]
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)
    by_hand = np.where(label_map == 0, 255, np.where(label_map == 255, 255, label_map - 1))
    np.testing.assert_array_equal(labels[0].numpy(), by_hand)


@twins
def test_labels_stay_unless_they_are_to_be_reduced(processor_class, image, label_map):
    processor = processor_class(do_reduce_labels=True)
    labels = processor(image, label_map, do_reduce_labels=False)["labels"][0]
    np.testing.assert_array_equal(np.asarray(labels), label_map)
    np.testing.assert_array_equal(np.asarray(processor_class()(image, label_map)["labels"][0]), label_map)


@twins
@pytest.mark.parametrize("ignore_index", [-100, 7, 254])
def test_reduced_labels_with_another_ignore_index(processor_class, ignore_index, image, label_map):
    """0 and what is ignored already are ignored, padding too; 255 is a class like others."""
    processor = processor_class(do_reduce_labels=True, ignore_index=ignore_index, do_pad=True, size_divisor=32)
    label_map = np.where(label_map == 9, ignore_index, label_map)
    labels = processor(image, label_map, return_tensors="np")["labels"][0]
    expected = np.full((32, 32), ignore_index)
    for y, x in np.ndindex(20, 30):
        value = label_map[y, x]
        expected[y, x] = ignore_index if value in (0, ignore_index) else value - 1
    np.testing.assert_array_equal(labels, expected)


@twins
def test_reduced_labels_are_saved_and_do_not_change_what_was_given(processor_class, image, label_map, tmp_path):
    processor_class(do_reduce_labels=True).save_pretrained(tmp_path)
    before = label_map.copy()
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=processor_class().backend)
    assert loaded.do_reduce_labels is True
    assert (np.asarray(loaded(image, label_map)["labels"][0]) == 0).sum() == (before == 1).sum()
    np.testing.assert_array_equal(label_map, before)


@twins
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.5, 1e30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_label_maps_hold_whole_numbers(processor_class, bad, dtype, image):
    label_map = np.full((20, 30), 3, dtype=dtype)
    good = processor_class()(image, label_map, return_tensors="pt")["labels"]
    assert good.dtype == torch.int64 and (good == 3).all()
    with np.errstate(over="ignore"):  # half precision has no 1e30, but infinity
        label_map[4, 5] = bad
    for given in (label_map, torch.from_numpy(label_map)):
        with pytest.raises(ValueError, match=r"segmentation map 1 .*whole numbers; it holds"):
            processor_class()([image, image], [np.zeros((20, 30), int), given])


# Options that nobody knows


@twins
@pytest.mark.parametrize(
    ("keyword", "guess"),
    [
        ("do_reduce_label", "do_reduce_labels"),
        ("reduce_labels", "do_reduce_labels"),
        ("segmentation_map", "segmentation_maps"),
        ("do_normalise", "do_normalize"),
        ("ignore_idx", "ignore_index"),
        ("frobnicate", None),
    ],
)
def test_unknown_keywords(processor_class, keyword, guess, image, tmp_path):
    said = f"{keyword!r}; did you mean {guess!r}" if guess else f"{keyword!r}$"
    with pytest.raises(TypeError, match=said):
        processor_class()(image, **{keyword: 1})
    if guess == "segmentation_maps":  # no option of construction
        said = repr(keyword)
    with pytest.raises(TypeError, match=said):
        processor_class(**{keyword: 1})
    processor_class().save_pretrained(tmp_path)
    for load in (processor_class, AutoImageProcessor):
        with pytest.raises(TypeError, match=said):
            load.from_pretrained(tmp_path, **{keyword: 1})


@twins
def test_unused_keywords_are_returned_where_they_are_asked_for(processor_class, tmp_path):
    processor_class().save_pretrained(tmp_path)
    loaded, unused = processor_class.from_pretrained(tmp_path, do_pad=True, foo=3, return_unused_kwargs=True)
    assert loaded.do_pad is True
    assert unused["foo"] == 3


# Options that every image processor of Transformers has


@twins
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"crop_size": {"height": 8, "width": 8}}, "crop_size"),
        ({"do_center_crop": False, "crop_size": 8}, "crop_size"),
        ({"data_format": "channels_last"}, "data_format"),
        ({"input_data_format": "channels_first_of_all"}, "input_data_format"),
        ({"image_seq_length": 3}, "image_seq_length"),
        ({"size_divisor": 0, "do_pad": True}, "size_divisor"),
        ({"size": {"height": 8, "width": 8}}, "size has no effect, because do_resize is off"),
        ({"resample": 2}, "resample has no effect"),
        ({"pad_size": {"height": 80, "width": 80}}, "pad_size has no effect, because do_pad is off"),
        ({"size_divisor": 8}, "size_divisor has no effect"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(processor_class, options, said, image, tmp_path):
    with pytest.raises(ValueError, match=said):
        processor_class(**options)
    with pytest.raises(ValueError, match=said):
        processor_class()(image, **options)
    processor_class().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        AutoImageProcessor.from_pretrained(tmp_path, backend=processor_class().backend, **options)


@twins
def test_meaning_of_one_number_needs_that_number(processor_class, image):
    processor = processor_class(do_resize=True, size=16)
    with pytest.raises(ValueError, match="default_to_square has no effect unless size is one number"):
        processor(image, default_to_square=False)
    assert processor(image, default_to_square=False, size=10)["pixel_values"][0].shape == (3, 10, 15)


def test_the_pillow_backend_has_no_other_device(image):
    with pytest.raises(ValueError, match="Pillow backend computes on the CPU, not on cuda:0"):
        RevHRNetImageProcessorPil(device="cuda:0")
    with pytest.raises(ValueError, match="not on meta"):
        RevHRNetImageProcessorPil()(image, device="meta")
    assert RevHRNetImageProcessorPil(device="cpu")(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 20, 30)


def test_the_torchvision_backend_computes_where_it_is_told(image, label_map):
    for made in ({"device": "meta"}, {}):
        call = {} if made else {"device": "meta"}
        batch = RevHRNetImageProcessor(**made)(image, label_map, return_tensors="pt", do_reduce_labels=True, **call)
        assert {tensor.device.type for tensor in batch.values()} == {"meta"}


def test_the_device_is_of_this_machine(tmp_path):
    """So it is not saved; as a `torch.device` it would be no JSON either."""
    processor = RevHRNetImageProcessor(device=torch.device("meta"))
    processor.save_pretrained(tmp_path)
    assert "device" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert "device" not in processor.to_dict() and processor.device.type == "meta"


@twins
@pytest.mark.parametrize(
    ("made", "without"),
    [
        ({}, "do_normalize"),
        ({}, "do_rescale"),
        ({}, "image_mean"),
        ({}, "do_convert_rgb"),
        ({"do_pad": True}, "do_pad"),
        ({"do_pad": True}, "size_divisor"),
        ({"do_resize": True, "size": {"height": 8, "width": 8}}, "do_resize"),
    ],
)
def test_none_in_a_call_counts_as_not_given(processor_class, made, without, image):
    processor = processor_class(**made)
    [expected], [found] = processor(image)["pixel_values"], processor(image, **{without: None})["pixel_values"]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@twins
def test_none_says_something_of_options_that_are_none_by_default(processor_class, image):
    processor = processor_class(do_pad=True, pad_size={"height": 99, "width": 99}, return_tensors="pt")
    found = processor(image, pad_size=None, return_tensors=None)["pixel_values"]
    assert isinstance(found, list) and found[0].shape == (3, 32, 32)


@twins
def test_one_mean_and_deviation_for_all_channels(processor_class, image):
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    made = processor_class(image_mean=0.5, image_std=0.25)
    assert list(made.image_mean) == [0.5] * 3 and list(made.image_std) == [0.25] * 3
    for found in (made(image), processor_class()(image, image_mean=0.5, image_std=0.25)):
        np.testing.assert_allclose(np.asarray(found["pixel_values"][0]), expected, atol=1e-6)


@twins
def test_format_of_arrays_whose_shape_leaves_it_open(processor_class):
    array = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    plain = {"do_rescale": False, "do_normalize": False}
    for given in (array, torch.from_numpy(array)):
        last = processor_class(**plain)(given, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
        first = processor_class(**plain, input_data_format="channels_first")(given, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(last, array.transpose(2, 0, 1))
        np.testing.assert_array_equal(first, array)


@twins
def test_every_other_option_has_an_effect(processor_class, image):
    """Each option of Transformers' image processors changes the result, or was refused above."""
    grey = image.convert("L")
    plain = {"do_rescale": False, "do_normalize": False}
    resized = {**plain, "do_resize": True, "size": {"height": 8, "width": 8}}
    padded = {**plain, "do_pad": True}
    square = {**plain, "do_resize": True, "size": 16}
    effects = {  # option → options without it, its value, the image
        "do_convert_rgb": ({"input_data_format": "channels_first", **plain}, False, grey),
        "do_resize": ({**resized, "do_resize": False}, True, image),
        "size": (resized, {"height": 9, "width": 8}, image),
        "default_to_square": (square, False, image),
        "resample": (resized, 0, image),
        "do_rescale": (plain, True, image),
        "rescale_factor": ({"do_normalize": False}, 1 / 2, image),
        "do_normalize": (plain, True, image),
        "image_mean": ({}, [0.5, 0.5, 0.5], image),
        "image_std": ({}, [0.5, 0.5, 0.5], image),
        "do_pad": (plain, True, image),
        "pad_size": (padded, {"height": 99, "width": 99}, image),
        "return_tensors": ({}, "np", image),
    }
    elsewhere = {"do_center_crop", "crop_size", "data_format", "input_data_format", "device", "image_seq_length"}
    no_result_changes = {"disable_grouping"}
    assert effects.keys() | elsewhere | no_result_changes == ImagesKwargs.__annotations__.keys()
    for option, (base, value, given) in effects.items():
        without = processor_class(**base)(given)["pixel_values"]
        with_it = {option: value, "size": 16} if option == "default_to_square" else {option: value}
        in_call = processor_class(**base)(given, **with_it)["pixel_values"]
        constructed = processor_class(**{**base, option: value})(given)["pixel_values"]
        same = len(without) == len(in_call) and np.array_equal(np.asarray(without[0]), np.asarray(in_call[0]))
        assert not same or type(in_call) is not type(without), option
        assert type(in_call) is type(constructed)
        np.testing.assert_array_equal(np.asarray(in_call[0]), np.asarray(constructed[0]), err_msg=option)


@twins
def test_options_of_a_step_that_is_off_on_purpose(processor_class, image, tmp_path):
    processor = processor_class(do_resize=False, size={"height": 8, "width": 8})
    assert processor(image)["pixel_values"][0].shape == (3, 20, 30)
    assert processor(image, do_resize=True)["pixel_values"][0].shape == (3, 8, 8)
    processor.save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path)(image)["pixel_values"][0].shape == (3, 20, 30)
    loaded = processor_class.from_pretrained(tmp_path, do_resize=True, size={"height": 9, "width": 7})
    assert loaded(image)["pixel_values"][0].shape == (3, 9, 7)


@twins
def test_sizes_that_are_set_later(processor_class):
    """`processor.size = {…}`, as notebooks for SegFormer have it, counts in post-processing too."""
    images = [Image.new("RGB", (30, 20)), Image.new("RGB", (20, 20))]
    made = processor_class(do_resize=True, size={"longest_edge": 60}, do_pad=True, pad_size={"height": 64, "width": 64})
    changed = processor_class()
    changed.do_resize, changed.size = True, {"longest_edge": 60}
    changed.do_pad, changed.pad_size = True, {"height": 64, "width": 64}
    assert changed(images, return_tensors="pt")["pixel_values"].shape == (2, 3, 64, 64)
    outputs = revhrnet_hf.models.modeling_revhrnet.SemanticSegmenterOutput(logits=torch.randn(2, 3, 16, 16))
    maps = [each.post_process_semantic_segmentation(outputs, [(20, 30), (20, 20)]) for each in (made, changed)]
    assert all(torch.equal(one, other) for one, other in zip(*maps, strict=True))


# What Transformers itself passes, and what is on disks already

SAVED = {  # of version 0.1.0, and what older Transformers wrote besides
    "auto_map": {
        "AutoImageProcessor": {
            "pil": "image_processing_pil_revhrnet.RevHRNetImageProcessorPil",
            "torchvision": "image_processing_revhrnet.RevHRNetImageProcessor",
        }
    },
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": False,
    "ignore_index": 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "RevHRNetImageProcessor",
    "image_std": [0.25, 0.25, 0.25],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size_divisor": 32,
    "processor_class": None,
    "feature_extractor_type": "RevHRNetFeatureExtractor",
    "_processor_class": None,
    "_valid_processor_keys": ["images", "size"],
}


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
def test_saved_processors_still_load(backend, image, tmp_path, caplog):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAVED))
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert not caplog.records
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(loaded(image, return_tensors="np")["pixel_values"][0], expected, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoImageProcessor.from_pretrained(tmp_path / "again", backend=backend)
    assert again.to_dict() == loaded.to_dict()
    for rest in ({"size_divisor": 32}, {"size": {"longest_edge": 64}}):  # switches left out: off, as always
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "RevHRNetImageProcessor", **rest}))
        assert AutoImageProcessor.from_pretrained(tmp_path, backend=backend)(image)["pixel_values"][0].shape == (3, 20, 30)


@twins
def test_entries_of_another_version_are_said(processor_class, tmp_path, caplog):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SAVED, "do_colour_jitter": True}))
    with caplog.at_level(logging.WARNING):
        loaded = processor_class.from_pretrained(tmp_path)
    assert "no effect: do_colour_jitter" in caplog.text
    assert "do_colour_jitter" not in loaded.to_dict()


def test_keywords_of_the_model_pass_through_the_pipeline(tiny_checkpoint, image):
    """Transformers gives `model_kwargs` and its own keywords to the image processor and the configuration, too."""
    for settings in (
        {"model_kwargs": {"low_cpu_mem_usage": True, "attn_implementation": "sdpa"}},
        {"model_kwargs": {"semantic_loss_ignore_index": 254, "freeze_backbone": False}, "dtype": "float32", "device": "cpu"},
        {"trust_remote_code": False, "revision": "main", "backend": "pil"},
        {"use_fast": True},
    ):
        segment = pipeline("image-segmentation", model=str(tiny_checkpoint), **settings)
        assert {found["mask"].size for found in segment(image)} == {(30, 20)}


@twins
def test_keywords_of_loading(processor_class, tmp_path):
    processor_class().save_pretrained(tmp_path)
    loading = {
        "token": None,
        "local_files_only": True,
        "revision": "main",
        "force_download": False,
        "subfolder": "",
        "proxies": None,
    }
    for load in (processor_class, AutoImageProcessor):
        assert load.from_pretrained(tmp_path, do_pad=True, **loading).do_pad is True
    assert AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False, use_fast=True).do_pad is False


# The backbone's own normalisation


@twins
@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_lite0", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("test_convnext", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_of_a_backbone(processor_class, backbone, mean, std):
    config = revhrnet_hf.RevHRNetConfig.from_variant("w18", backbone=backbone)
    for given in (config, config.backbone_config, TimmBackboneConfig(backbone=backbone)):
        processor = processor_class.for_backbone(given)
        assert type(processor) is processor_class
        assert (tuple(processor.image_mean), tuple(processor.image_std)) == (mean, std)
    resizing = processor_class.for_backbone(config, do_resize=True, size={"longest_edge": 64}, image_std=[1.0, 1.0, 1.0])
    assert (tuple(resizing.image_mean), tuple(resizing.image_std), resizing.size.longest_edge) == (mean, (1, 1, 1), 64)


@twins
def test_of_a_backbone_that_accepts_one_size_only(processor_class):
    config = revhrnet_hf.RevHRNetConfig.from_variant("w18", backbone="cait_xxs24_224")
    for given in (config, config.backbone_config):
        processor = processor_class.for_backbone(given)
        assert (processor.do_resize, dict(processor.size)) == (True, {"height": 224, "width": 224})
    assert not processor_class.for_backbone(config, do_resize=False).do_resize
    assert processor_class.for_backbone(config, do_resize=True, size={"longest_edge": 64}).size.longest_edge == 64


def test_of_other_backbones():
    from transformers import ResNetConfig

    hrnet = revhrnet_hf.HRNetV2Config()
    for config in (hrnet, revhrnet_hf.RevHRNetConfig(backbone_config=hrnet)):
        assert tuple(RevHRNetImageProcessor.for_backbone(config).image_mean) == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="'resnet': give the image_mean and image_std"):
        RevHRNetImageProcessor.for_backbone(ResNetConfig())
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    assert tuple(RevHRNetImageProcessor.for_backbone(ResNetConfig(), **given).image_std) == (0.4, 0.5, 0.6)
    with pytest.raises(ValueError, match="timm has no model 'resnet999'"):
        RevHRNetImageProcessor.for_backbone(TimmBackboneConfig(backbone="resnet999"))
