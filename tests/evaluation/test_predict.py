"""Label maps against Transformers' pipeline, and a dataset's matrix against counting it by hand."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, pipeline

from revhrnet_hf.data import RgbImage
from revhrnet_hf.errors import CheckpointError, DataError
from revhrnet_hf.evaluation import InferenceSettings, evaluate_dataset, predict_dataset, predict_label_maps

NUM_LABELS = 5
SIZES = [(33, 47), (64, 40), (40, 64), (33, 47), (35, 90)]


def tiny_model(num_labels=NUM_LABELS):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        classifier_dropout_prob=0.5,
        num_labels=num_labels,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    # As initialised, one class wins everywhere.
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model


def images():
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(1)
    label_maps = [rng.integers(0, NUM_LABELS, size, dtype=np.uint8) for size in SIZES]
    for label_map in label_maps:
        label_map[:3] = 255
    return as_dataset(images(), label_maps)


def as_dataset(images, label_maps):
    columns = {
        "image": images,
        "label_map": [PIL.Image.fromarray(label_map) for label_map in label_maps],
        "image_id": [f"frame_{number}" for number in range(len(images))],
    }
    features = {"image": datasets.Image(), "label_map": datasets.Image(), "image_id": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def counted_by_hand(label_maps, dataset):
    matrix = np.zeros((NUM_LABELS, NUM_LABELS), int)
    for prediction, reference in zip(label_maps, dataset["label_map"], strict=True):
        reference = np.array(reference)
        for row in range(NUM_LABELS):
            for column in range(NUM_LABELS):
                matrix[row, column] += np.sum((reference == row) & (prediction == column))
    return matrix.tolist()


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


def test_matrix_of_a_data_set_is_what_counting_by_hand_gives(model, image_processor, dataset):
    confusion = evaluate_dataset(model, image_processor, dataset, NUM_LABELS)
    label_maps = predict_label_maps(model, image_processor, dataset["image"])
    assert confusion.matrix.tolist() == counted_by_hand(label_maps, dataset)


def test_each_image_is_counted_once_whatever_the_number_of_processes(model, image_processor, dataset):
    whole = evaluate_dataset(model, image_processor, dataset, NUM_LABELS).matrix
    for num_processes in (2, 3, 7):
        done = []
        shares = [
            evaluate_dataset(
                model,
                image_processor,
                dataset,
                NUM_LABELS,
                process_index=index,
                num_processes=num_processes,
                progress=done.append,
            ).matrix
            for index in range(num_processes)
        ]
        assert torch.equal(sum(shares), whole)
        assert sum(done) == len(dataset)


def test_workers_change_nothing(model, image_processor, dataset):
    alone = evaluate_dataset(model, image_processor, dataset, NUM_LABELS)
    with_workers = evaluate_dataset(model, image_processor, dataset, NUM_LABELS, num_workers=2)
    assert torch.equal(with_workers.matrix, alone.matrix)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("label_map_size", "said"), [((40, 40), "40×40"), ((47, 33), "33×47"), ((34, 47), "47×34"), ((66, 94), "94×66")]
)
def test_a_label_map_of_another_size_is_an_error_that_names_the_image(model, image_processor, label_map_size, said, num_workers):
    label_maps = [np.zeros(size, np.uint8) for size in SIZES]
    label_maps[3] = np.zeros(label_map_size, np.uint8)
    rows = as_dataset(images(), label_maps)
    message = rf"^image frame_3 is 47×33 pixels \(width×height\) but its label map is {said}: .*EXIF orientation"
    with pytest.raises(DataError, match=message):
        evaluate_dataset(model, image_processor, rows, NUM_LABELS, num_workers=num_workers)


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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_samples_are_named(model, image_processor, dataset, tmp_path, num_workers):
    label_maps = [np.array(label_map) for label_map in dataset["label_map"]]
    label_maps[3][5, 5] = 77
    with pytest.raises(DataError, match=r"^image frame_3: the references hold id 77"):
        evaluate_dataset(model, image_processor, as_dataset(images(), label_maps), NUM_LABELS, num_workers=num_workers)

    truncated = tmp_path / "truncated.png"
    images()[1].save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:500])
    rows = dataset.select([0]).remove_columns("image").add_column("image", [str(truncated)])
    rows = rows.cast_column("image", RgbImage())
    with pytest.raises(DataError, match=r"^Image .*truncated.png cannot be read") as raised:
        evaluate_dataset(model, image_processor, rows, NUM_LABELS, num_workers=num_workers)
    assert "\n" not in str(raised.value)


def test_images_take_the_weights_dtype(image_processor, dataset):
    model = tiny_model().double()
    confusion = evaluate_dataset(model, image_processor, dataset.select([0]), NUM_LABELS)
    assert confusion.matrix.sum() == (np.array(dataset[0]["label_map"]) != 255).sum()
