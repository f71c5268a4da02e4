"""Label maps against Transformers' pipeline, and what predicting leaves as it was."""

import itertools
import weakref

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerImageProcessor, pipeline

from revhrnet_hf.errors import CheckpointError, DataError
from revhrnet_hf.evaluation import (
    InferenceSettings,
    evaluate_dataset,
    predict_dataset,
    predict_label_maps,
    segment,
    segment_frames,
)

from .tiny import NUM_LABELS, images, labelled_dataset, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def dataset():
    return labelled_dataset()


def test_label_maps_are_the_pipelines(model, image_processor):
    segment = pipeline("image-segmentation", model=model, image_processor=image_processor, device="cpu")
    label_maps = predict_label_maps(model, image_processor, images())
    for label_map, image in zip(label_maps, images(), strict=True):
        from_pipeline = np.full(label_map.shape, 255)
        for part in segment(image):
            from_pipeline[np.array(part["mask"]) == 255] = model.config.label2id[part["label"]]
        assert label_map.dtype == np.uint8
        assert len(np.unique(label_map)) > 1, "a constant map would prove nothing"
        np.testing.assert_array_equal(label_map, from_pipeline)


def test_a_image_s_label_map_does_not_depend_on_its_neighbours(model, image_processor):
    together = predict_label_maps(model, image_processor, images())
    for label_map, image in zip(together, images(), strict=True):
        [alone] = predict_label_maps(model, image_processor, [image])
        np.testing.assert_array_equal(label_map, alone)


def test_target_sizes_are_what_logits_are_resized_to(model, image_processor):
    image = images()[0]
    [label_map] = predict_label_maps(model, image_processor, [image], target_sizes=[(50, 70)])
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits
    expected = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear").argmax(1)[0]
    np.testing.assert_array_equal(label_map, expected.numpy())
    with pytest.raises(DataError, match="1 target sizes were given for 5 images"):
        predict_label_maps(model, image_processor, images(), target_sizes=[(50, 70)])


def test_runs_in_eval_mode_and_gives_each_module_its_mode_back(image_processor, dataset):
    model = tiny_model()
    expected = predict_label_maps(model, image_processor, images())
    model.train()
    model.segformer.eval()
    modes = [module.training for module in model.modules()]
    label_maps = predict_label_maps(model, image_processor, images())
    assert all(np.array_equal(*pair) for pair in zip(label_maps, expected, strict=True))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(AttributeError):
        predict_label_maps(model, image_processor, ["no image"])
    with pytest.raises(ZeroDivisionError):
        evaluate_dataset(model, image_processor, dataset, NUM_LABELS, progress=lambda _: 1 / 0)
    assert [module.training for module in model.modules()] == modes


def test_more_than_256_classes_need_uint16(image_processor):
    model = tiny_model(num_labels=300)
    torch.nn.init.constant_(model.decode_head.classifier.bias, -1e4)
    model.decode_head.classifier.bias.data[299] = 0
    [label_map] = predict_label_maps(model, image_processor, images()[:1])
    assert label_map.dtype == np.uint16
    assert np.all(label_map == 299)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_an_error_that_names_the_image(image_processor, dataset, value):
    model = tiny_model()
    model.decode_head.classifier.bias.data[2] = value
    with pytest.raises(CheckpointError, match="image 0: the model's logits hold NaN or infinity"):
        predict_label_maps(model, image_processor, images())
    with pytest.raises(CheckpointError, match="image frame_0: the model's logits hold NaN or infinity"):
        evaluate_dataset(model, image_processor, dataset, NUM_LABELS)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("given", [{}, {"window": (32, 32), "scales": (1.0, 1.5)}], ids=str)
def test_between_two_images_all_is_the_callers(image_processor, dataset, num_workers, given):
    """Two readers in turn, of which one is left early: grad mode, training mode and what is yielded."""
    settings = InferenceSettings(**given)
    model = tiny_model()
    expected = [x.label_map for x in predict_dataset(model, image_processor, dataset, range(5), settings=settings)]
    model.train()
    model.segformer.eval()
    modes = [module.training for module in model.modules()]

    def state():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), [module.training for module in model.modules()]

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            before = (grad, False, modes)
            one, other = (
                predict_dataset(model, image_processor, dataset, range(5), settings=settings, num_workers=num_workers)
                for _ in range(2)
            )
            found = []
            for turn, reader in enumerate([one, other, one, one, other]):
                found.append((turn, next(reader)))
                assert state() == before
            one.close()
            assert state() == before
            rest = [image.label_map for image in other]
            assert state() == before
            assert [image.index for _, image in found] == [0, 0, 1, 2, 1] and len(rest) == 3
            for image in (image for _, image in found):
                assert torch.equal(image.label_map, expected[image.index]) and not image.label_map.is_inference()
            assert all(torch.equal(*pair) for pair in zip(rest, expected[2:], strict=True))
    # In the caller's loop a step of training is nothing out of the ordinary, nor is a change of the label map.
    for image in predict_dataset(model, image_processor, dataset, range(2), settings=settings, num_workers=num_workers):
        image.label_map[0] = 0
        weight = torch.ones((), requires_grad=True)
        (weight * image.label_map.float().mean()).backward()
        assert weight.grad is not None
        with torch.enable_grad():
            model(torch.rand(1, 3, 32, 32)).logits.sum().backward()
    assert state() == (True, False, modes)


def test_an_exception_leaves_all_as_it_was(image_processor, dataset):
    model = tiny_model().train()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError):
        for _ in predict_dataset(model, image_processor, dataset, range(5)):
            1 / 0  # noqa: B018
    model.decode_head.classifier.bias.data[2] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        next(predict_dataset(model, image_processor, dataset, range(5)))
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (True, False)
    assert [module.training for module in model.modules()] == modes


def test_a_stream_of_frames_is_segmented_one_by_one_and_none_is_kept():
    model, image_processor = tiny_model(), SegformerImageProcessor(do_resize=False)
    asked, references = [], []

    def camera():
        for number in itertools.count():
            asked.append(number)
            frame = np.full((35, 47, 3), number, np.uint8)
            references.append(weakref.ref(frame))
            yield frame

    stream = segment_frames(model, image_processor, camera())
    assert asked == []
    for number in range(40):
        image, found = next(stream)
        assert asked == list(range(number + 1)) and image.getpixel((0, 0)) == (number,) * 3
        assert np.array_equal(found.label_map, segment(model, image_processor, image).label_map)
        assert sum(reference() is not None for reference in references) <= 2
    stream.close()


def test_frames_come_with_the_confidence_that_is_asked_for():
    model, image_processor, frame = tiny_model(), SegformerImageProcessor(do_resize=False), images()[0]
    [(_, found)] = segment_frames(model, image_processor, [frame], return_confidence=True)
    assert np.array_equal(found.confidence, segment(model, image_processor, frame, return_confidence=True).confidence)
    [(_, found)] = segment_frames(model, image_processor, [frame])
    assert found.confidence is None


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), "a.png"])
def test_frames_of_another_kind_are_named(frame):
    good = PIL.Image.new("RGB", (40, 40))
    stream = segment_frames(tiny_model(), SegformerImageProcessor(do_resize=False), [good, frame])
    next(stream)
    with pytest.raises(DataError, match=r"frame 1 is .*: give PIL images, or arrays \(height, width, 3\) of uint8, RGB"):
        next(stream)
