"""The loop that scores a dataset, against counting by hand."""

import numpy as np
import pytest
import torch
from transformers import SegformerImageProcessor

from revhrnet_hf.data import RgbImage, get_label_space
from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import evaluate_dataset, predict_label_maps
from revhrnet_hf.evaluation.boundary import boundary_counts
from revhrnet_hf.evaluation.cityscapes import RAW_IDS, CityscapesMetric
from revhrnet_hf.evaluation.evaluator import Recorder, evaluate_images, score_records
from revhrnet_hf.evaluation.records import ImageRecord, nonzero_cells

from .tiny import NUM_LABELS, SIZES, as_dataset, images, labelled_dataset, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.fixture(scope="module")
def dataset():
    return labelled_dataset()


def counted_by_hand(label_maps, dataset):
    matrix = np.zeros((NUM_LABELS, NUM_LABELS), int)
    for prediction, reference in zip(label_maps, dataset["label_map"], strict=True):
        reference = np.array(reference)
        for row in range(NUM_LABELS):
            for column in range(NUM_LABELS):
                matrix[row, column] += np.sum((reference == row) & (prediction == column))
    return matrix.tolist()


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


def test_each_image_is_given_with_its_own_matrix(model, image_processor, dataset):
    seen = []
    total = evaluate_images(
        model, image_processor, dataset, [4, 0, 3], NUM_LABELS, each_image=lambda *given: seen.append(given), count_on_cpu=True
    )
    assert [image.index for image, _ in seen] == [4, 0, 3]
    for image, confusion in seen:
        alone = dataset.select([image.index])
        assert confusion.matrix.tolist() == counted_by_hand([image.label_map.numpy()], alone)
    assert torch.equal(total.matrix, sum(confusion.matrix for _, confusion in seen))


def test_images_without_label_maps_are_predicted_and_not_scored(model, image_processor, dataset):
    rows = [dataset[index] | {"label_map": None} for index in range(2)]
    seen = []
    total = evaluate_images(model, image_processor, rows, range(2), NUM_LABELS, each_image=lambda *given: seen.append(given))
    assert len(seen) == 2 and total.matrix.sum() == 0
    with pytest.raises(DataError, match="image frame_0 has no label map, so it cannot be scored"):
        evaluate_dataset(model, image_processor, rows, NUM_LABELS)


def test_scores_of_records_are_those_of_the_metrics():
    """Two drawn images in Cityscapes' classes, with two cars each: the records give the scores of `CityscapesMetric`."""
    space, rng, metric, records, boundary = get_label_space("cityscapes"), np.random.default_rng(0), CityscapesMetric(), [], 0
    for index in range(2):
        truth = rng.integers(0, 19, (6, 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 19, truth.shape)).astype(np.uint8)
        instances = RAW_IDS[truth].astype(np.int32)
        instances[:10, :10], instances[20:, 20:30] = 26001, 26002
        metric.add_batch(RAW_IDS[prediction], RAW_IDS[truth], instances)
        matrix = np.zeros((19, 19), int)
        np.add.at(matrix, (truth, prediction), 1)
        counts = boundary_counts(prediction, truth, 19)
        boundary = boundary + counts
        records.append(ImageRecord(index, str(index), truth.shape, nonzero_cells(matrix), counts, metric.objects[-1]))
    scores, total = score_records(records, space)
    assert total.sum() == 2 * 48 * 64
    expected = metric.compute()
    assert {key: scores[key] for key in expected if key.startswith(("iou", "iiou"))} == {
        key: value for key, value in expected.items() if key.startswith(("iou", "iiou"))
    }
    assert scores["mean_iou"] == pytest.approx(expected["iou_class"], abs=1e-12)
    both, true, predicted = boundary
    assert scores["boundary_iou"] == pytest.approx((both / (true + predicted - both)).mean())
    records[1].boundary = records[1].objects = None
    assert not {"boundary_iou", "iou_category"} & set(score_records(records, space)[0])


@pytest.mark.parametrize("boundary", [False, True])
def test_a_record_holds_what_was_asked_for(model, image_processor, dataset, boundary):
    recorder, records = Recorder(get_label_space("camvid11"), boundary=boundary), []
    evaluate_images(model, image_processor, dataset, [1], 11, each_image=lambda *given: records.append(recorder.record(*given)))
    [record] = records
    truth = np.array(dataset[1]["label_map"])
    assert (record.index, record.image_id, record.size) == (1, "frame_1", SIZES[1])
    assert record.cells[:, 1].sum() == (truth != 255).sum() and record.cells[:, 1].min() > 0
    assert (record.boundary is not None) is boundary and record.objects is None
