"""The whole path: train, label images with the checkpoint, train on both."""

import json
from pathlib import Path

import pytest

from revhrnet_hf.commands import pseudo_label


@pytest.mark.slow
def test_train_label_and_train_on_both(runs, tmp_path, monkeypatch):
    status, said = runs.start(tmp_path / "first", "camvid", epochs=1)
    assert status == 0, said
    images = Path(runs.data["camvid"]) / "val"
    given = [tmp_path / "first" / "best", images, "--output_dir", tmp_path / "pseudo", "--class_share", "0.5"]
    pseudo_label.main(list(map(str, given)))

    monkeypatch.setattr(runs, "data", {**runs.data, "pseudo": str(tmp_path / "pseudo")})
    mixed = {"more_datasets": ["pseudo,loader=folder"], "dataset_shares": [3.0, 1.0], "epochs": 1}
    status, said = runs.start(tmp_path / "both", "camvid", **mixed)
    assert status == 0, said
    assert "pseudo:train: 3 images" in said and "ignored, for" not in said  # the classes are the same
    history = json.loads((tmp_path / "both" / "best" / "config.json").read_text())["training_history"]
    assert "pseudo" in json.dumps(history[-1])
    steps = json.loads((tmp_path / "both" / "last" / "training_state.json").read_text())["step"]
    assert steps == (10 + 3) // 2
