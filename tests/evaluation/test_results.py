"""Names of results: one for each dataset and settings."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import InferenceSettings
from revhrnet_hf.evaluation.results import MAX_STEM, dataset_name, named_data_dir, result_stem


@pytest.mark.parametrize(
    ("settings", "more", "expected"),
    [
        ({}, {}, "scores_camvid_val"),
        ({"window": (480, 360)}, {}, "scores_camvid_val_window480x360"),
        ({"window": (480, 360), "stride": (4, 5)}, {}, "scores_camvid_val_window480x360_stride4x5"),
        ({"scales": (0.5, 1.0, 1.75), "flip": True}, {}, "scores_camvid_val_scales0.5-1-1.75_flip"),
        ({"average": "exp", "batch_size": 4}, {"dtype": "bfloat16"}, "scores_camvid_val_exp_batch4_bfloat16"),
        ({}, {"label_space": "/home/me/my table.yaml"}, "scores_camvid_val_my-table"),
        ({}, {"absent_as_zero": True}, "scores_camvid_val_absent0"),
        ({}, {"checkpoint": "someone/segformer-b0", "loader": "hub"}, "scores_someone-segformer-b0_hub-camvid_val"),
    ],
)
def test_names(settings, more, expected):
    assert result_stem("camvid", "val", InferenceSettings(**settings), **more) == expected


WINDOWS = [None, (32, 40), (40, 32), (324, 0x28)]


def test_other_settings_another_name():
    every = []
    for window, scales, flip, average, dtype in itertools.product(
        WINDOWS, [(1.0,), (0.3333333,), (0.33333334,), (1.0, 1.5), (1.5, 1.0)], [False, True], ["softmax", "exp"],
        ["float32", "bfloat16"],
    ):  # fmt: skip
        for stride in [None] if window is None else [None, (7, 8), (8, 7)]:
            every.append((InferenceSettings(window, stride, scales, flip, average), dtype))
    stems = {result_stem("a", "val", settings, dtype=dtype) for settings, dtype in every}
    assert len(stems) == len(every)


@given(st.text(min_size=1), st.text(min_size=1), st.lists(st.floats(0.1, 9), min_size=1, max_size=80))
def test_any_name_makes_a_file_name(dataset, split, scales):
    stem = result_stem(dataset, split, InferenceSettings(scales=tuple(scales)))
    assert len(stem.encode()) <= MAX_STEM and "/" not in stem and stem.startswith("scores_")
    assert all(letter.isalnum() or letter in "_.-" for letter in stem)


def test_long_names_keep_their_difference():
    many = [InferenceSettings(scales=(*(1 + number / 7 for number in range(60)), last)) for last in (2.0, 3.0)]
    assert len({result_stem("camvid", "val", settings) for settings in many}) == 2


def test_names_of_datasets(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert dataset_name("camvid", tmp_path) == "camvid"
    assert dataset_name("folder", tmp_path / "photos") == dataset_name("folder", ".") == "photos"
    assert dataset_name("hub", "someone/streets") == "someone/streets"
    assert dataset_name("folder", tmp_path, "evening") == dataset_name("camvid", tmp_path, "evening") == "evening"
    monkeypatch.chdir(tmp_path)
    assert named_data_dir("a=b") == (None, "a=b")
    assert named_data_dir("a=photos") == ("a", "photos")
    assert named_data_dir("some/where=photos") == (None, "some/where=photos")
    with pytest.raises(RecipeError, match="say where the dataset lies, a=DIR"):
        named_data_dir("a=")
