"""The matrix and its scores against pixel-by-pixel loops, torchmetrics, and the formulas of evaluate's mean_iou."""

import math
import tracemalloc
import warnings
from unittest.mock import patch

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index, multiclass_precision
from torchmetrics.functional.segmentation import mean_iou as torchmetrics_mean_iou

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import ConfusionMatrix, SegmentationMetric
from revhrnet_hf.evaluation import confusion as module


def random_maps(num_classes, *shape, seed=0, ignored=0.1, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    references = rng.integers(0, num_classes, shape)
    predictions = np.where(rng.random(shape) < 0.6, references, rng.integers(0, num_classes, shape))
    references[rng.random(shape) < ignored] = 255
    return predictions.astype(dtype), references.astype(dtype)


def counted_by_loop(predictions, references, num_classes, ignore_index=255):
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for prediction, reference in zip(predictions.ravel().tolist(), references.ravel().tolist(), strict=True):
        if reference != ignore_index:
            matrix[reference][prediction] += 1
    return matrix


def confusion_of(predictions, references, num_classes, **options):
    confusion = ConfusionMatrix(num_classes, **options)
    confusion.update(predictions, references)
    return confusion


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("num_classes", [1, 2, 19, 100])
def test_matrix_is_what_a_loop_over_pixels_counts(num_classes, dtype):
    predictions, references = random_maps(num_classes, 2, 13, 17, dtype=dtype)
    expected = counted_by_loop(predictions, references, num_classes)
    assert confusion_of(predictions, references, num_classes).matrix.tolist() == expected
    tensors = torch.from_numpy(predictions), torch.from_numpy(references)
    assert confusion_of(*tensors, num_classes).matrix.tolist() == expected


@pytest.mark.parametrize("num_classes", [1, 19, 255])
@pytest.mark.parametrize("chunk", [1001, 2**19])
def test_large_maps_of_bytes(num_classes, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", chunk)
    predictions, references = random_maps(num_classes, 1, 257, 257)
    expected = counted_by_loop(predictions, references, num_classes)
    assert confusion_of(predictions, references, num_classes).matrix.tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("num_classes", [1, 19, 150])
def test_maps_of_areas(num_classes, dtype):
    predictions, references = (np.kron(m, np.ones((9, 20), dtype)) for m in random_maps(num_classes, 2, 7, 5, dtype=dtype))
    predictions = np.roll(predictions, 3, axis=-1)
    references[..., 0, 0], references[..., -1, -1] = 0, 255
    expected = counted_by_loop(predictions, references, num_classes)
    assert confusion_of(predictions, references, num_classes).matrix.tolist() == expected
    predictions[1, -1, -1] = num_classes
    with pytest.raises(DataError, match=f"image b: the predictions hold id {num_classes},"):
        ConfusionMatrix(num_classes).update(predictions, references, ["a", "b"])


@st.composite
def any_maps(draw):
    """Number of classes, ignored id, predictions and references of any integer types, as pixels or as runs."""
    types = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64]
    predicted_type, reference_type = draw(st.sampled_from(types)), draw(st.sampled_from(types))
    largest = min(np.iinfo(predicted_type).max, np.iinfo(reference_type).max, 299)
    num_classes = draw(st.integers(1, largest + 1))
    possible = [index for index in (255, -1, -100, 65535, num_classes) if not 0 <= index < num_classes]
    ignore_index = draw(st.sampled_from(possible))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 60)))
    predictions, references = (rng.integers(0, num_classes, shape) for _ in range(2))
    low, high = np.iinfo(reference_type).min, np.iinfo(reference_type).max
    if low <= ignore_index <= high:
        references[rng.random(shape) < draw(st.sampled_from([0, 0.3, 1]))] = ignore_index
    run = draw(st.sampled_from([1, 7, 40]))
    maps = (ids.repeat(run, axis=-1).astype(of) for ids, of in ((predictions, predicted_type), (references, reference_type)))
    return num_classes, ignore_index, *maps


@settings(deadline=None)
@given(any_maps(), st.sampled_from([7, 2**19]), st.integers(1, 3))
def test_any_maps_are_counted_as_by_brute_force(drawn, chunk, parts):
    num_classes, ignore_index, predictions, references = drawn
    expected = np.zeros((num_classes, num_classes), np.int64)
    counted = references.astype(np.int64) != ignore_index
    np.add.at(expected, (references[counted].astype(int), predictions[counted].astype(int)), 1)
    confusion = ConfusionMatrix(num_classes, ignore_index)
    with patch.object(module, "CHUNK_PIXELS", chunk):
        for one, other in zip(np.array_split(predictions, parts, -1), np.array_split(references, parts, -1), strict=True):
            confusion.update(one, other)
    assert np.array_equal(confusion.matrix.numpy(), expected)


def test_scores_are_those_of_a_loop_over_pixels():
    predictions, references = random_maps(5, 3, 9, 11)
    pairs = [(p, r) for p, r in zip(predictions.ravel(), references.ravel(), strict=True) if r != 255]
    iou, accuracy = [], []
    for c in range(5):
        both = sum(p == c and r == c for p, r in pairs)
        iou.append(both / sum(p == c or r == c for p, r in pairs))
        accuracy.append(both / sum(r == c for _, r in pairs))
    scores = confusion_of(predictions, references, 5).scores()
    assert scores["per_category_iou"] == pytest.approx(iou, rel=1e-12)
    assert scores["per_category_accuracy"] == pytest.approx(accuracy, rel=1e-12)
    assert scores["mean_iou"] == pytest.approx(sum(iou) / 5, rel=1e-12)
    assert scores["mean_accuracy"] == pytest.approx(sum(accuracy) / 5, rel=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs), rel=1e-12)
    assert scores["per_category_pixels"] == [sum(r == c for _, r in pairs) for c in range(5)]
    assert scores["labelled_pixels"] == len(pairs)


def test_agrees_with_torchmetrics():
    predictions, references = (torch.from_numpy(m) for m in random_maps(11, 4, 64, 48, dtype=np.int64))
    confusion = confusion_of(predictions, references, 11)
    assert torch.equal(confusion.matrix, multiclass_confusion_matrix(predictions, references, 11, ignore_index=255))
    # Its mean_iou knows no ignored pixels, and averages over images: one image, all labelled.
    predictions, references = (torch.from_numpy(m)[None] for m in random_maps(11, 64, 48, ignored=0, dtype=np.int64))
    expected = torchmetrics_mean_iou(predictions, references, 11, input_format="index", per_class=True)
    scores = confusion_of(predictions, references, 11).scores()
    assert scores["per_category_iou"] == pytest.approx(expected[0].tolist(), abs=1e-6)


def test_agrees_with_the_formulas_of_evaluate_mean_iou():
    """`evaluate`'s mean_iou adds up histograms of intersection, prediction and label; absent classes are nan."""
    predictions, references = random_maps(7, 40, 50)
    references[references == 3] = 255
    predictions[predictions == 3] = 2
    labelled = references != 255
    prediction, label = predictions[labelled], references[labelled]
    intersect = np.histogram(prediction[prediction == label], bins=7, range=(0, 6))[0]
    predicted = np.histogram(prediction, bins=7, range=(0, 6))[0]
    true = np.histogram(label, bins=7, range=(0, 6))[0]
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersect / (predicted + true - intersect), intersect / true
    metric = SegmentationMetric(7)
    scores = metric.compute(predictions=[predictions], references=[references])
    np.testing.assert_allclose(scores["per_category_iou"], iou, rtol=1e-12)
    np.testing.assert_allclose(scores["per_category_accuracy"], accuracy, rtol=1e-12)
    assert scores["mean_iou"] == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert scores["mean_accuracy"] == pytest.approx(np.nanmean(accuracy), rel=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(intersect.sum() / true.sum(), rel=1e-12)
    assert scores["absent_classes"] == [3]


def test_chunking_and_summing_over_processes_change_nothing():
    predictions, references = random_maps(6, 8, 20, 30)
    whole = confusion_of(predictions, references, 6).matrix
    streamed = ConfusionMatrix(6)
    for prediction, reference in zip(predictions, references, strict=True):
        streamed.update(prediction, reference)
    assert torch.equal(streamed.matrix, whole)
    summed = ConfusionMatrix(6)
    summed.matrix = sum(confusion_of(predictions[i::3], references[i::3], 6).matrix for i in range(3))
    assert torch.equal(summed.matrix, whole)
    assert summed.scores() == streamed.scores()
    summed.update(predictions, references)
    assert torch.equal(summed.matrix, 2 * whole)


@pytest.mark.parametrize(("ignore_index", "dtype"), [(255, np.uint8), (-100, np.int64), (-1, np.int16), (65535, np.uint16)])
def test_ignored_pixels_do_not_count_whatever_their_id(ignore_index, dtype):
    predictions = np.array([[0, 1, 2]], dtype)
    references = np.array([[0, 2, ignore_index]], dtype)
    confusion = confusion_of(predictions, references, 3, ignore_index=ignore_index)
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("ignore_index", [-1, 65535, 511])
def test_an_ignored_id_that_the_type_cannot_hold_does_not_wrap_around(ignore_index):
    maps = torch.zeros(1, 2, dtype=torch.uint8), torch.tensor([[0, 255]], dtype=torch.uint8)
    with pytest.raises(DataError, match="id 255"):
        confusion_of(*maps, 3, ignore_index=ignore_index)


def test_256_classes_in_uint8():
    every_id = torch.arange(256).to(torch.uint8)
    confusion = confusion_of(every_id, every_id, 256, ignore_index=-1)
    assert torch.equal(confusion.matrix, torch.eye(256, dtype=torch.int64))


def test_class_absent_everywhere_is_left_out_and_named_and_one_only_predicted_counts_as_zero():
    confusion = confusion_of(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 0]), 4)
    scores = confusion.scores(names=["a", "b", "c", "d"])
    assert scores["per_category_iou"][:3] == [2 / 3, 1, 0]
    assert math.isnan(scores["per_category_iou"][3])
    assert scores["mean_iou"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["absent_classes"] == ["d"]


def test_without_a_labelled_pixel_all_scores_are_nan_and_a_warning_says_why(caplog):
    confusion = confusion_of(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 3)
    scores = confusion.scores()
    assert "no labelled pixel was counted (every reference pixel is 255" in caplog.text
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert math.isnan(scores[key])
    assert scores["labelled_pixels"] == 0
    assert scores["absent_classes"] == [0, 1, 2]


GOOD = np.array([[0, 1], [2, 0]])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (np.array([[0, 7], [-1, 9]]), GOOD, r"image frame_7: the predictions hold ids -1, 7, 9,.*0…2"),
        (np.array([[0, 255], [0, 0]], np.uint8), np.full((2, 2), 255, np.uint8), r"frame_7.* id 255,"),
        (GOOD, np.array([[0, 3], [255, -1]]), r"image frame_7: the references hold ids -1, 3,.*ignored \(255\)"),
        (GOOD, GOOD[:1], r"image frame_7: .*\(2, 2\).*\(1, 2\)"),
        (GOOD.astype(float), GOOD, "predictions must be integer class ids, not float64"),
        (GOOD, torch.ones(2, 2), "references must be integer class ids, not torch.float32"),
        (GOOD > 0, GOOD, "predictions must be integer class ids, not bool"),
    ],
)
def test_bad_maps_are_named_and_not_counted(predictions, references, message):
    confusion = confusion_of(GOOD, GOOD, 3)
    with pytest.raises(DataError, match=message):
        confusion.update(predictions, references, image_ids=["frame_7"])
    assert confusion.matrix.sum() == GOOD.size


def test_the_bad_image_of_a_batch_is_named_and_no_other():
    predictions = np.zeros((3, 2, 2), np.uint8)
    references = predictions.copy()
    references[1, 0, 0] = 11
    with pytest.raises(DataError, match="image second: the references hold id 11") as raised:
        ConfusionMatrix(11).update(predictions, references, image_ids=["frame_1", "second", "frame_3"])
    assert "frame" not in str(raised.value)


def test_classes_and_ignore_index_must_fit():
    with pytest.raises(DataError, match="ignore_index 255 is one of the 300 classes"):
        ConfusionMatrix(300)
    with pytest.raises(DataError, match="at least one class"):
        ConfusionMatrix(0)
    with pytest.raises(DataError, match="2 class names were given for 3 classes"):
        ConfusionMatrix(3).scores(names=["a", "b"])
    with pytest.raises(DataError, match=r"int64 matrix of shape \(3, 3\)"):
        ConfusionMatrix(3).matrix = torch.zeros(2, 2, dtype=torch.int64)


def test_accelerator_path_never_waits_for_the_device():
    """Tensors on the meta device have no values: reading one back to the host is an error."""
    maps = torch.zeros(4, 4, dtype=torch.uint8, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        maps.max().item()
    confusion = ConfusionMatrix(3, device="meta")
    confusion.update(maps, maps)
    assert confusion._counts.device.type == "meta"


def test_accelerator_path_counts_the_same_and_reports_bad_ids_when_read(monkeypatch):
    """No accelerator here: its way of counting runs on CPU tensors."""
    monkeypatch.setattr(torch, "bincount", lambda cells, minlength: module._count_without_waiting(cells, minlength))
    predictions, references = random_maps(9, 21, 22)
    confusion = confusion_of(predictions, references, 9)
    assert confusion.matrix.tolist() == counted_by_loop(predictions, references, 9)

    monkeypatch.setattr(ConfusionMatrix, "_raise_for_bad_ids", lambda *_: None)
    confusion.update(np.array([0, 9, 10]), np.array([255, 0, -1]))
    with pytest.raises(DataError, match="2 predicted and 1 reference pixels hold ids outside 0…8"):
        confusion.scores()


def test_metric_is_an_evaluate_metric_that_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    predictions, references = random_maps(4, 3, 8, 9)
    metric = SegmentationMetric(4, names=["a", "b", "c", "d"])
    assert isinstance(metric, evaluate.Metric)
    assert set(metric.features) == {"predictions", "references"}
    at_once = metric.compute(predictions=predictions, references=references)

    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=torch.from_numpy(predictions[1:]), references=torch.from_numpy(references[1:]))
    assert metric.confusion.matrix.tolist() == counted_by_loop(predictions, references, 4)
    assert metric.compute() == at_once
    assert metric.confusion.matrix.sum() == 0, "compute must start anew"
    assert metric.compute(predictions=predictions.tolist(), references=references.tolist()) == at_once
    assert list(tmp_path.iterdir()) == []


def test_metric_takes_maps_of_different_sizes_and_refuses_unequal_numbers():
    small, large = random_maps(4, 3, 5), random_maps(4, 6, 7, seed=1)
    metric = SegmentationMetric(4)
    metric.add_batch(predictions=[small[0], large[0]], references=[small[1], large[1]])
    expected = np.add(counted_by_loop(*small, 4), counted_by_loop(*large, 4))
    assert metric.confusion.matrix.tolist() == expected.tolist()
    with pytest.raises(DataError, match="2 predictions were given for 1 references"):
        metric.add_batch(predictions=[small[0], large[0]], references=[small[1]])
    with pytest.raises(DataError, match="image b: "):
        metric.add_batch(predictions=[small[0], large[0]], references=[small[1], small[1]], image_ids=["a", "b"])
    with pytest.raises(DataError, match="both predictions and references"):
        metric.compute(predictions=[small[0]])


def test_metric_combines_with_others_of_evaluate():
    predictions, references = random_maps(4, 2, 8, 9)
    combined = evaluate.combine([SegmentationMetric(4), SegmentationMetric(4, names=list("abcd"))], force_prefix=True)
    combined.add_batch(predictions=predictions, references=references)
    results = combined.compute()
    expected = SegmentationMetric(4).compute(predictions=predictions, references=references)["mean_iou"]
    assert [value for key, value in results.items() if key.endswith("mean_iou")] == [expected, expected]


def test_memory_does_not_grow_with_the_number_of_maps():
    predictions, references = random_maps(19, 64, 64)
    metric = SegmentationMetric(19)

    def growth(num_maps):
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(num_maps):
            metric.add(prediction=predictions.copy(), reference=references.copy())
        return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        growth(10)
        assert growth(300) < 10 * predictions.nbytes
    finally:
        tracemalloc.stop()
    assert metric.confusion._counts.nbytes < 8 * (19 + 4) ** 2


def test_no_warnings_from_images_and_read_only_arrays():
    import PIL.Image

    predictions, references = random_maps(4, 6, 7)
    image = PIL.Image.fromarray(references)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion = confusion_of(predictions[:, ::-1], image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), 4)
    assert confusion.matrix.tolist() == counted_by_loop(predictions, references, 4)


def labelled_maps(num_classes):
    return random_maps(num_classes, 40, 50, ignored=0, dtype=np.int64)


def test_precision_and_frequency_weighted_iou_are_torchmetrics():
    predictions, references = map(torch.from_numpy, labelled_maps(6))
    scores = SegmentationMetric(6).compute(predictions=predictions[None], references=references[None])
    precision = multiclass_precision(predictions[None], references[None], 6, average=None)
    assert scores["per_category_precision"] == pytest.approx(precision.tolist(), abs=1e-6)
    weighted = multiclass_jaccard_index(predictions[None], references[None], 6, average="weighted")
    assert scores["frequency_weighted_iou"] == pytest.approx(weighted.item(), abs=1e-6)
    assert scores["per_category_recall"] == scores["per_category_accuracy"]


def test_absent_classes_as_zero_are_hrnets_means():
    predictions, references = labelled_maps(4)
    metric = SegmentationMetric(7, absent_as_zero=True)
    scores = metric.compute(predictions=[predictions], references=[references])
    matrix = confusion_of(predictions, references, 7).matrix.numpy()
    truth, predicted, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    assert scores["mean_iou"] == pytest.approx((right / np.maximum(1.0, truth + predicted - right)).mean())
    assert scores["mean_accuracy"] == pytest.approx((right / np.maximum(1.0, truth)).mean())
    assert scores["absent_classes"] == [4, 5, 6] and math.isnan(scores["per_category_iou"][4])
    assert math.isnan(SegmentationMetric(3, absent_as_zero=True).compute()["mean_iou"])


@pytest.mark.parametrize("num_classes", [3, 19, 256])
def test_counting_of_bytes_is_counting_of_other_types(num_classes):
    """Maps of bytes that are large enough are counted in another way; every id may occur, also ignored and unknown ones."""
    ignore_index = 255 if num_classes < 256 else -1
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, num_classes, (600, 1500))
    references = rng.integers(0, num_classes, (600, 1500))
    if num_classes < 256:
        references[:50] = 255
    bytewise, plain = ConfusionMatrix(num_classes, ignore_index), ConfusionMatrix(num_classes, ignore_index)
    bytewise.update(predictions.astype(np.uint8), references.astype(np.uint8))
    plain.update(predictions, references)
    assert torch.equal(bytewise.matrix, plain.matrix) and bytewise.matrix.sum() > 0
    if num_classes < 256:
        predictions[100, 100] = num_classes
        with pytest.raises(DataError, match=f"image a: the predictions hold id {num_classes}"):
            bytewise.update(predictions.astype(np.uint8), references.astype(np.uint8), ["a"])
        assert torch.equal(bytewise.matrix, plain.matrix)


def test_a_sum_of_matrices_is_the_matrix_of_all_maps():
    maps = [random_maps(5, 20, 30, seed=seed) for seed in range(3)]
    total = ConfusionMatrix(5)
    for predictions, references in maps:
        total.add(confusion_of(predictions, references, 5))
    expected = sum(np.array(counted_by_loop(*pair, 5)) for pair in maps)
    assert np.array_equal(total.matrix.numpy(), expected)
    for other in (ConfusionMatrix(4), ConfusionMatrix(5, ignore_index=-1)):
        with pytest.raises(DataError, match="cannot be added to one of 5"):
            total.add(other)
