"""Cityscapes' scores against the publisher's evaluation (cityscapesscripts), on random maps and on drawn scenes."""

import math

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data.datasets.cityscapes import LABELS
from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import CityscapesMetric
from revhrnet_hf.evaluation.cityscapes import AVERAGE_SIZES, RAW_IDS, cityscapes_scores, matrix_of_ids
from revhrnet_hf.synthetic import write_cityscapes

MEANS = {
    "iou_class": "averageScoreClasses",
    "iiou_class": "averageScoreInstClasses",
    "iou_category": "averageScoreCategories",
    "iiou_category": "averageScoreInstCategories",
}
PARTS = {
    "class_iou": "classScores",
    "class_iiou": "classInstScores",
    "category_iou": "categoryScores",
    "category_iiou": "categoryInstScores",
}
HAS_INSTANCES = [label.raw_id for label in LABELS if label.has_instances]


@pytest.fixture(scope="module")
def official():
    """The publisher's program on files: (prediction, reference, instances) of each image → its results."""
    patch = pytest.MonkeyPatch()
    patch.setattr(np, "in1d", np.isin, raising=False)  # gone from numpy 2.4
    program = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    program.args.quiet, program.args.JSONOutput = True, False

    def evaluate(folder, scenes):
        predictions, references = [], []
        for number, (prediction, reference, instances) in enumerate(scenes):
            names = {kind: str(folder / f"{number}_{kind}.png") for kind in ("prediction", "labelIds", "instanceIds")}
            for name, ids in zip(names.values(), (prediction, reference, instances), strict=True):
                PIL.Image.fromarray(ids).save(name)
            predictions.append(names["prediction"])
            references.append(names["labelIds"])
        return program.evaluateImgLists(predictions, references, program.args)

    yield evaluate
    patch.undo()


def random_scene(rng, ids=range(34), size=(40, 60)):
    """Every label, also those that are not scored, in truth and prediction; objects, groups of objects, areas."""
    ids = np.array(ids, np.uint8)
    reference = ids[rng.integers(0, len(ids), (5, 6))].repeat(8, 0).repeat(10, 1)
    prediction = np.where(rng.random(size) < 0.6, reference, ids[rng.integers(0, len(ids), size)]).astype(np.uint8)
    numbers = rng.integers(0, 4, (10, 12)).repeat(4, 0).repeat(5, 1)
    instances = reference.astype(np.uint16)
    things = np.isin(reference, HAS_INSTANCES) & (rng.random((10, 12)) < 0.8).repeat(4, 0).repeat(5, 1)
    instances[things] = reference[things].astype(np.uint16) * 1000 + numbers[things]
    return prediction, reference, instances


def drawn_scenes(folder, count):
    write_cityscapes(folder, {"val": count}, size=(64, 128))
    rng = np.random.default_rng(5)
    for file in sorted((folder / "gtFine").rglob("*_labelIds.png")):
        reference = np.asarray(PIL.Image.open(file))
        instances = np.asarray(PIL.Image.open(str(file).replace("labelIds", "instanceIds")))
        # Predicted as a network would: in areas, some of them shifted, of scored classes only.
        prediction = np.roll(reference, tuple(rng.integers(-4, 5, 2)), (0, 1))
        swap = rng.permutation(RAW_IDS)
        wrong = np.kron(rng.random((8, 16)) < 0.15, np.ones((8, 8))).astype(bool)
        prediction = np.where(wrong, swap[prediction % len(swap)], prediction).astype(np.uint8)
        yield prediction, reference, instances


def compare(scores, expected):
    """The largest difference; NaN must stand where NaN stands."""
    pairs = [(scores[ours], expected[theirs]) for ours, theirs in MEANS.items()]
    for ours, theirs in PARTS.items():
        pairs += [(value, expected[theirs][name]) for name, value in scores[ours].items()]
        left_out = {name: value for name, value in expected[theirs].items() if name not in scores[ours]}
        assert all(math.isnan(value) for value in left_out.values())
    assert [math.isnan(one) for one, _ in pairs] == [math.isnan(other) for _, other in pairs]
    return max(abs(one - other) for one, other in pairs if not math.isnan(one))


def test_is_the_official_evaluation_on_50_scenes(official, tmp_path, capsys):
    rng = np.random.default_rng(0)
    kinds = {
        "random, all labels": [random_scene(rng) for _ in range(20)],
        "random, six labels": [random_scene(rng, ids=(0, 7, 11, 24, 26, 29)) for _ in range(10)],
        "drawn": list(drawn_scenes(tmp_path / "drawn", 20)),
    }
    kinds["all 50"] = [scene for scenes in kinds.values() for scene in scenes]
    rows = []
    for kind, scenes in kinds.items():
        metric = CityscapesMetric()
        for scene in scenes:
            metric.add_batch(*([ids] for ids in scene))
        scores = metric.compute()
        expected = official(tmp_path, scenes)
        assert compare(scores, expected) < 1e-9
        rows += [(kind, ours, scores[ours], expected[theirs]) for ours, theirs in MEANS.items()]
    assert scores["iiou_category"] > 0.1
    print(f"\n{'scenes':<20}{'score':<15}{'ours':>20}{'official':>20}{'difference':>12}")
    for kind, name, ours, theirs in rows:
        print(f"{kind:<20}{name:<15}{ours:>20.15f}{theirs:>20.15f}{abs(ours - theirs):>12.1e}")


def test_a_image_alone_stacked_maps_and_processes_give_the_same(official, tmp_path):
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(5)]
    expected = official(tmp_path, scenes)
    stacked, one_by_one, first, second = (CityscapesMetric() for _ in range(4))
    stacked.add_batch(*(np.stack(maps) for maps in zip(*scenes, strict=True)))
    for number, scene in enumerate(scenes):
        one_by_one.add_batch(*scene)
        (first, second)[number % 2].add_batch(*scene)
    second.confusion.matrix = second.confusion.matrix + first.confusion.matrix
    second.objects += first.objects
    scores = stacked.compute()
    assert compare(scores, expected) < 1e-9
    assert str(scores) == str(one_by_one.compute()) == str(second.compute())  # bit for bit, in any order
    assert math.isnan(stacked.compute()["iou_class"]), "compute must start anew"


def test_from_a_matrix_of_train_ids(official, tmp_path):
    """The counts that `evaluate_seg.py` records."""
    rng = np.random.default_rng(2)
    scene = random_scene(rng, ids=RAW_IDS)
    metric = CityscapesMetric()
    metric.add_batch(*scene)
    matrix = np.zeros((19, 19), np.int64)
    train_id = {raw_id: number for number, raw_id in enumerate(RAW_IDS.tolist())}
    for truth, predicted in zip(scene[1].ravel().tolist(), scene[0].ravel().tolist(), strict=True):
        matrix[train_id[truth], train_id[predicted]] += 1
    scores = cityscapes_scores(matrix_of_ids(matrix), metric.objects[0])
    assert compare(scores, official(tmp_path, [scene])) < 1e-9


def test_average_sizes_are_the_owners(official):
    from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import args

    assert {name: args.avgClassSize[name] for name in AVERAGE_SIZES} == AVERAGE_SIZES


def test_licence_plates_do_not_count():
    maps = np.array([[7, 7], [8, 8]]), np.array([[7, -1], [255, 8]]), np.array([[7, 7], [8, 8]])
    metric = CityscapesMetric()
    metric.add_batch(*maps)
    assert metric.compute()["iou_class"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": np.full((2, 3), 255, np.uint8)}, r"image ulm_1: the predictions hold id 255"),
        ({"references": np.full((2, 3), 40, np.uint8)}, r"image ulm_1: the references hold id 40"),
        ({"instances": np.full((2, 3), 7001, np.uint16)}, r"image ulm_1: .*holds 7001, but label 7 has no instances"),
        ({"instances": np.full((2, 3), 40001, np.uint16)}, r"label 40 has no instances"),
        ({"instances": np.full((2, 2), 7, np.uint16)}, r"image ulm_1: .*\(2, 3\).*\(2, 2\)"),
        ({"references": np.full((3, 3), 7, np.uint8)}, r"image ulm_1: .*\(2, 3\).*\(3, 3\)"),
        ({"predictions": np.full((2, 3), 7.0)}, "integer class ids"),
        ({"predictions": [np.full((2, 3), 7)] * 2}, "2 predictions, 1 references"),
    ],
)
def test_bad_maps_are_named_and_not_counted(change, message):
    metric = CityscapesMetric()
    maps = dict.fromkeys(("predictions", "references", "instances"), np.full((2, 3), 7, np.uint8))
    with pytest.raises(DataError, match=message):
        metric.add_batch(**(maps | change), image_ids=["ulm_1"])
    assert metric.confusion.matrix.sum() == 0 and metric.objects == []
