"""Several datasets in one training: their shares of an epoch, their classes, their folders."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import revhrnet_hf
from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.data.translation import translate
from revhrnet_hf.errors import DataError, RecipeError
from revhrnet_hf.synthetic import write_camvid, write_cityscapes, write_mapillary_vistas
from revhrnet_hf.training.data import folders_by_name, image_id_of, load_sets, training_sets
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.sampler import EpochBatches, Mixture
from revhrnet_hf.training.trainer import Stage


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cityscapes(folder / "cityscapes", {"train": 4, "val": 2}, size=(96, 128))
    write_mapillary_vistas(folder / "mapillary_vistas", {"train": 6, "val": 3}, size=(96, 128))
    write_camvid(folder / "camvid", {"train": 2, "val": 2}, size=(96, 128))
    return {name: folder / name for name in ("cityscapes", "mapillary_vistas", "camvid")}


def drawn(mixture, seed=0):
    return mixture.order(torch.Generator().manual_seed(seed)).tolist()


def test_shares_of_an_epoch():
    mixture = Mixture((10, 30), (1, 1))
    order = drawn(mixture)
    assert len(order) == 40
    per_image = Counter(index % 40 for index in order)
    assert [per_image[i] for i in range(10)] == [2] * 10  # the small set twice through
    assert sum(per_image[i] for i in range(10, 40)) == 20 and max(per_image[i] for i in range(10, 40)) == 1
    assert len(set(order)) == 40  # the second time is another index, so that it is augmented anew
    seen = {index % 40 for seed in range(12) for index in drawn(mixture, seed)}
    assert seen == set(range(40))  # what one epoch leaves out, others have
    assert drawn(mixture) == order != drawn(mixture, 1)


@pytest.mark.parametrize(
    ("lengths", "shares", "counts"),
    [((7, 3), (7, 3), [7, 3]), ((5, 5, 1), (1, 1, 1), [4, 4, 3]), ((100, 1), (1, 2), [34, 67]), ((2, 9), (1e6, 1), [11, 0])],
)
def test_counts_fill_the_epoch(lengths, shares, counts):
    mixture = Mixture(lengths, shares)
    assert mixture.counts == counts
    order = drawn(mixture)
    starts = np.cumsum([0, *lengths])
    sets = np.searchsorted(starts, np.array(order) % sum(lengths), side="right") - 1
    assert np.bincount(sets, minlength=len(lengths)).tolist() == counts


def test_mixed_order_is_shared_out_over_processes():
    mixture = Mixture((5, 7), (3, 1))
    whole = EpochBatches(12, 4, 1, 1, 0, 3, mixture)
    halves = [EpochBatches(12, 4, 1, 2, process, 3, mixture) for process in range(2)]
    for both, *parts in zip(whole, *halves, strict=True):
        assert both == parts[0] + parts[1]


def test_sets_come_in_the_classes_of_the_first(folders):
    recipe = Recipe(dataset="cityscapes", more_datasets=["mapillary_vistas", "camvid:val"])
    assert training_sets(recipe) == [("cityscapes", "train"), ("mapillary_vistas", "train"), ("camvid", "val")]
    listed, evaluation = load_sets(recipe, folders)
    assert listed[0].ignored == ()
    assert str(listed[2]) == (
        "camvid:val: 2 images; ignored, for they correspond to no class of the first dataset: "
        "Building, Tree, SignSymbol, Car, Bicyclist"
    )
    sets = [entry.images for entry in listed]
    assert [len(dataset) for dataset in sets] == [4, 6, 2] and len(evaluation) == 2
    space = get_label_space("cityscapes")
    for dataset, own, split in ((sets[1], "mapillary_vistas", "train"), (sets[2], "camvid", "val")):
        owned = load_segmentation_dataset(own, folders[own], split)
        partner_of = translate(own_space := owned.features["label_map"].space, space)
        expected = np.array([space.label2id.get(partner_of[name], 255) for name in own_space.names] + [255] * 256)
        for translated, original in zip(dataset, owned, strict=True):
            assert np.array_equal(np.array(translated["label_map"]), expected[np.array(original["label_map"])])
    ids = [image_id_of(listed, index) for index in range(12)]
    assert ids == [row["image_id"] for dataset in sets for row in dataset]


def small_recipe(weights, **settings):
    return Recipe(
        dataset="cityscapes",
        backbone="test_resnet",
        backbone_weights=str(weights),
        variant="w18",
        num_modules=[1, 1, 1],
        num_blocks=1,
        crop_size=[64, 96],
        base_size=128,
        epochs=1,
        batch_size=4,
        num_workers=0,
        log_every=1,
        trackers=[],
        **settings,
    )


def test_stage_on_three_sets(folders, weights, tmp_path):
    settings = {"more_datasets": ["mapillary_vistas", "camvid"], "dataset_shares": [2, 1, 1]}
    stage = Stage(small_recipe(weights, **settings), folders, tmp_path)
    indices = [index % 12 for batch in stage.data.loader.batch_sampler for index in batch]
    assert sum(index < 4 for index in indices) == 6
    scores = stage.run()
    model = revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "best")
    assert model.config.num_labels == 19 == len(scores["per_category_iou"])
    assert model.config.training_history[0]["dataset"] == "cityscapes + mapillary_vistas + camvid"
    assert model.config.training_history[0]["images"] == 12
    splits = [(one["dataset"], one["split"], one["images"]) for one in model.config.training_history[0]["splits"]]
    assert splits == [("cityscapes", "train", 4), ("mapillary_vistas", "train", 6), ("camvid", "train", 2)]


def test_skipped_images_are_said_and_logged(weights, tmp_path, caplog):
    write_cityscapes(tmp_path / "data", {"train": 4, "val": 1}, size=(96, 128))
    victim = sorted((tmp_path / "data").glob("leftImg8bit/train/*/*"))[2]
    victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(DataError, match=victim.name):
        Stage(small_recipe(weights), tmp_path / "data", tmp_path / "stop").run()
    Stage(small_recipe(weights, on_bad_sample="skip"), tmp_path / "data", tmp_path / "skip").run()
    image_id = victim.name.removesuffix("_leftImg8bit.png")
    said = [message for message in caplog.messages if "skipped" in message]
    assert said == [f"1 of 4 training images cannot be used and are skipped: {image_id}"]
    log = [json.loads(line) for line in (tmp_path / "skip" / "log.jsonl").read_text().splitlines()]
    assert [entry["skipped_images"] for entry in log if "skipped_images" in entry] == [[image_id]]


@pytest.mark.parametrize("eval_at_start", [False, True])
def test_an_image_that_cannot_be_scored_is_not_skipped(weights, tmp_path, eval_at_start):
    """What was trained is saved; with the file restored the run ends as it would have."""
    write_cityscapes(tmp_path / "data", {"train": 4, "val": 2}, size=(96, 128))
    victim = max((tmp_path / "data").glob("leftImg8bit/val/*/*"))  # the first is read before training
    whole = victim.read_bytes()
    recipe = small_recipe(weights, on_bad_sample="skip", eval_at_start=eval_at_start)
    expected = Stage(recipe, tmp_path / "data", tmp_path / "whole").run()
    victim.write_bytes(whole[: len(whole) // 2])
    end = "and start again" if eval_at_start else rf"and resume with --resume: step 1 is saved in {tmp_path}/out/last"
    said = rf"{victim.name} .*\. The image is in 'val', which is scored: there no image is skipped .*Correct the file, {end}$"
    with pytest.raises(DataError, match=said):
        Stage(recipe, tmp_path / "data", tmp_path / "out").run()
    victim.write_bytes(whole)
    resumed = Stage(recipe, tmp_path / "data", tmp_path / "out", resume=not eval_at_start)
    assert resumed.state.step == (0 if eval_at_start else 1)
    assert np.array_equal(resumed.run()["per_category_iou"], expected["per_category_iou"], equal_nan=True)


def test_bad_mixtures(folders):
    with pytest.raises(RecipeError, match="dataset_shares must be 2 positive numbers"):
        Recipe(dataset="cityscapes", more_datasets=["camvid"], dataset_shares=[1])
    with pytest.raises(RecipeError, match="dataset_shares must be 2 positive"):
        Recipe(dataset="cityscapes", more_datasets=["camvid"], dataset_shares=[1, 0])
    recipe = Recipe(dataset="cityscapes", more_datasets=["camvid"])
    with pytest.raises(RecipeError, match=r"trains on camvid too: .*camvid=DIR"):
        folders_by_name(recipe, folders["cityscapes"])
    with pytest.raises(DataError, match=r"more_datasets: camvid:train cannot be trained on as well: .*nowhere does not exist"):
        load_sets(recipe, {**folders, "camvid": Path("nowhere")})


@pytest.mark.parametrize(
    ("batch_size", "passes", "processes", "ways"),
    [
        (12, 1, 8, "start 1, 2, 3, 4, 6, 12 processes, or give batch_size 8 or 16 "),  # the paper's batch on a machine of 8 GPUs
        (12, 2, 4, "start 1, 2, 3, 6 processes, or give batch_size 8 or 16 "),
        (3, 1, 4, "start 1, 3 processes, or give batch_size 4 "),
    ],
)
def test_a_batch_that_cannot_be_shared_out(batch_size, passes, processes, ways):
    with pytest.raises(RecipeError) as refusal:
        EpochBatches(100, batch_size, passes, processes, 0, 0)
    assert ways in str(refusal.value)
