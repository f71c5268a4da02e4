"""How often the file system is asked."""

import os

import numpy as np
import PIL.Image
import pytest
import torch

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import TrainingSamples, TrainingTransform, load_segmentation_dataset
from revhrnet_hf.data import features as label_map
from revhrnet_hf.data.folder_listing import entries, listed_once


@pytest.fixture
def own(tmp_path):
    for name in ("a", "b", "c"):
        for folder, shape in (("images", (6, 8, 3)), ("labels", (6, 8))):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / folder / "train" / f"{name}.png")
    (tmp_path / "labels.yaml").write_text("names: [road, car]\n")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_a_load_lists_each_folder_once(own, streaming, monkeypatch):
    asked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(str(path)) or scan(path))
    load_segmentation_dataset("folder", own, "train", streaming=streaming)
    for folder in ("images", "labels"):
        assert asked.count(str(own / folder / "train")) == 1
    assert len(asked) == len(set(asked))
    os.remove(own / "images" / "train" / "c.png")
    os.remove(own / "labels" / "train" / "c.png")
    assert len(list(load_segmentation_dataset("folder", own, "train", streaming=streaming))) == 2  # nothing is remembered


def test_only_within_it_and_never_beyond(own):
    with listed_once():
        before = len(entries(own))
        (own / "more.txt").touch()
        with listed_once():
            assert len(entries(own)) == before
    assert len(entries(own)) == before + 1


def test_a_sample_reads_each_file_once(own, monkeypatch):
    read = []
    real = label_map.read_location
    monkeypatch.setattr(label_map, "read_location", lambda location: read.append(location) or real(location))
    rows = load_segmentation_dataset("folder", own, "train")
    samples = TrainingSamples(rows, TrainingTransform(RevHRNetImageProcessor(), (4, 4), 8), seed=0)
    read.clear()
    assert torch.equal(samples[1]["labels"], torch.zeros(4, 4, dtype=torch.uint8))
    assert sorted(read) == [str(own / folder / "train" / "b.png") for folder in ("images", "labels")]
    read.clear()
    assert rows[1]["label_map"].size == (8, 6)
    assert len(read) == 2
