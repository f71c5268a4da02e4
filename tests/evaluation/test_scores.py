"""The table that people read and the JSON that programs read."""

import json
import os

import numpy as np
import pytest

from revhrnet_hf.evaluation import ConfusionMatrix, format_scores
from revhrnet_hf.io import write_json

NAMES = ["Sky", "a very long class name", "Car"]


def scores():
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    return confusion.scores(NAMES)


def test_table_shows_every_number_in_aligned_columns():
    lines = format_scores(scores(), NAMES).splitlines()
    assert [line.split()[-4:] for line in lines[1:4]] == [
        ["66.67", "100.00", "66.67", "50.00"],
        ["50.00", "50.00", "100.00", "50.00"],
        ["–", "–", "–", "0.00"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert [line.split()[-1] for line in lines[5:9]] == ["58.33", "75.00", "75.00", "58.33"]
    assert lines[5].index("58.33") == lines[1].index("66.67")
    assert lines[9] == "occur nowhere, left out of mIoU: Car"


def test_json_is_valid_and_nan_is_null(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = tmp_path / "scores.json"
    write_json(path, {"scores": scores(), "matrix": [(1, 2)]})
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["scores"]["per_category_iou"] == [2 / 3, 0.5, None]
    assert read["scores"]["mean_iou"] == (2 / 3 + 0.5) / 2
    assert read["matrix"] == [[1, 2]]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, {"run": 1})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"run": 2})
    with pytest.raises(TypeError):
        write_json(path, {"run": object()})
    assert json.loads(path.read_text()) == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]
