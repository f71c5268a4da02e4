"""Augmented images of a recipe: the same on one process and on two, resumed or not; drawn by classes over several datasets."""

import hashlib
import json
import subprocess
import sys

import datasets
import numpy as np
import pytest

from revhrnet_hf.data import class_index as class_index_module
from revhrnet_hf.data import label_space_of
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.models.image_processing_revhrnet import RevHRNetImageProcessor
from revhrnet_hf.training.crops import draw_crops
from revhrnet_hf.training.data import epoch_batches, load_sets, training_samples
from revhrnet_hf.training.recipe import Recipe

from .. import forked

EVERYTHING = {
    "crop_size": [32, 48],
    "base_size": 64,
    "batch_size": 4,
    "num_workers": 0,
    "rotation": 10,
    "photometric_distortion": True,
    "blur": 0.5,
    "jpeg_noise": 0.5,
    "max_class_share": 0.5,
    "rare_class_crops": 0.5,
    "rare_class_images": 0.5,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def recipe_of(**settings):
    return Recipe(**{"dataset": "camvid", **EVERYTHING, **settings})


def digests(recipe, folders, processes=1, process=0, epoch=2, first_step=0):
    """Of each crop, in the order of the process's batches."""
    sets, _ = load_sets(recipe, folders)
    samples = training_samples(recipe, sets, label_space_of(sets[0].images), RevHRNetImageProcessor())
    samples.set_epoch(epoch)
    batches = epoch_batches(recipe, sets, processes, process)
    batches.start_at(epoch, first_step)
    crops = [[samples[index] for index in batch] for batch in batches]
    return [
        [hashlib.sha256(b"".join(np.asarray(crop[key]).tobytes() for key in sorted(crop))).hexdigest() for crop in batch]
        for batch in crops
    ]


PROCESS = """
import json, sys
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1])
from tests.training.test_data import Recipe, digests
settings, folders = map(json.loads, sys.argv[2:4])
print(json.dumps(digests(Recipe(**settings), folders, 2, int(sys.argv[4]))))
"""


def test_two_processes_see_the_crops_of_one(streets, tmp_path, request):
    settings = {"dataset": "camvid", "more_datasets": ["cityscapes"], "dataset_shares": [2, 1], **EVERYTHING}
    whole = digests(Recipe(**settings), streets)
    assert len({each for batch in whole for each in batch}) == 4 * len(whole)
    both = []
    for process in range(2):
        job = [tmp_path / "fresh", json.dumps(settings), json.dumps(streets), str(process)]
        command = [sys.executable, "-c", PROCESS, *job]
        both.append(forked.Popen(command, stdout=subprocess.PIPE, text=True, cwd=request.config.rootpath))
    halves = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole


def test_resumed_in_the_middle_of_an_epoch(streets):
    recipe = recipe_of()
    assert digests(recipe, streets, first_step=1) == digests(recipe, streets)[1:]


def test_classes_are_counted_only_for_recipes_that_draw_by_them(streets, monkeypatch):
    counted, count = [], class_index_module._count
    monkeypatch.setattr(class_index_module, "_count", lambda *given: counted.append(1) or count(*given))
    digests(recipe_of(rare_class_crops=0, rare_class_images=0), streets)
    assert counted == []
    for settings in ({"rare_class_images": 0}, {"rare_class_crops": 0}):
        digests(recipe_of(more_datasets=["cityscapes"], **settings), streets)
    assert counted == [1, 1]  # each dataset once, and then from the cache


def test_shares_of_datasets_stay_where_images_are_drawn(streets):
    recipe = recipe_of(more_datasets=["cityscapes"], dataset_shares=[3, 1], rare_class_images=1.0)
    sets, _ = load_sets(recipe, streets)
    samples = training_samples(recipe, sets, label_space_of(sets[0].images), RevHRNetImageProcessor())
    rows = [samples.row(index) for batch in epoch_batches(recipe, sets) for index in batch]
    assert len(rows) == 20 and sum(row < 10 for row in rows) == 15


def test_sheet_shows_the_crops_of_the_first_steps(streets):
    recipe = recipe_of(photometric_distortion=False, blur=0, jpeg_noise=0, rotation=0)
    one, six = draw_crops(recipe, streets, 1), draw_crops(recipe, streets, 6)
    assert one.width < six.width <= 2 * one.width + 8 or six.height > one.height
    # More than an epoch has is taken from the next one.
    assert draw_crops(recipe, streets, 30).height > six.height
    sets, _ = load_sets(recipe, streets)
    samples = training_samples(recipe, sets, label_space_of(sets[0].images), RevHRNetImageProcessor())
    (first, *_), *_ = epoch_batches(recipe, sets)
    expected = samples.crop(first)[0].resize((384, 256), 2)
    shown = np.asarray(one)[:, 2:386].astype(int)
    place = [top for top in range(40) if np.abs(shown[top : top + 256] - np.asarray(expected)).mean() < 1]
    assert len(place) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"brightness": 10}, "brightness would have no effect: photometric_distortion is off"),
        ({"hue": 10.0, "blur": 1}, "hue would have no effect: photometric_distortion is off"),
        ({"blur_sigma": [1, 2]}, "blur_sigma would have no effect: blur is off"),
        ({"jpeg_quality": [10, 20]}, "jpeg_quality would have no effect: jpeg_noise is off"),
        (
            {"rare_class_temperature": 1},
            "rare_class_temperature would have no effect: rare_class_crops and rare_class_images are off",
        ),
        ({"photometric_distortion": True, "contrast": [1.5, 0.5]}, "contrast must be two numbers from 0 to 10, smallest first"),
        ({"photometric_distortion": True, "hue": 200}, "hue must be a number from 0 to 180"),
        ({"jpeg_noise": 1, "jpeg_quality": [0, 50]}, "jpeg_quality must be two numbers from 1 to 100"),
        ({"blur": 1.5}, "blur must be a number from 0 to 1"),
        ({"blur": 1, "blur_sigma": [1]}, "blur_sigma must be two numbers"),
        ({"rotation": -5}, "rotation must be a number from 0 to 180"),
        ({"max_class_share": 1}, "max_class_share must be more than 0 and less than 1"),
        ({"rare_class_crops": 2}, "rare_class_crops must be a number from 0 to 1"),
        ({"rare_class_crops": 1, "rare_class_temperature": 0}, "rare_class_temperature must be positive"),
    ],
)
def test_settings_that_are_wrong_or_change_nothing(settings, said):
    with pytest.raises(RecipeError, match=said):
        Recipe(dataset="camvid", **settings)
