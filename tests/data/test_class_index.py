"""The index of classes against NumPy, its cache, and two processes that count together."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest

from revhrnet_hf.data import class_index as module
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.class_index import PLACES, class_index, class_pixel_counts
from revhrnet_hf.data.loading import in_classes
from revhrnet_hf.io import lock_file

from .. import forked
from . import test_class_counts

TABLE = "names: {a: 2, b: 255, c: [0, 1], d: 9}\nignore: [7, 8]\n"
CLASS_OF = {2: 0, 255: 1, 0: 2, 1: 2, 9: 3}


def write_folder(folder, arrays, table=TABLE):
    return test_class_counts.write_folder(folder, arrays, table)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    maps = list(rng.choice([0, 1, 2, 7, 8, 255], (6, 8, 9)))
    maps[2] = rng.choice([7, 8], (5, 70))  # no pixel of a class
    maps[3][4, 5] = 9  # a single pixel of a class
    return maps


@pytest.fixture
def counted(monkeypatch):
    """How often the label maps were counted."""
    calls, count = [], module._count
    monkeypatch.setattr(module, "_count", lambda *arguments: calls.append(1) or count(*arguments))
    return calls


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_and_places_are_numpys(arrays, tmp_path, workers):
    index = class_index(write_folder(tmp_path / "a", arrays), workers)
    expected = [[sum((array == raw).sum() for raw in CLASS_OF if CLASS_OF[raw] == k) for k in range(4)] for array in arrays]
    assert index.pixels.dtype == np.int64 and index.pixels.tolist() == expected
    for image, class_id in np.argwhere(index.pixels):
        places = index.places_of(image, class_id)
        assert places.shape == (PLACES,)
        assert {CLASS_OF[raw] for raw in arrays[image].ravel()[places]} == {class_id}
        most = min(PLACES, index.pixels[image, class_id])
        assert len(set(places.tolist())) > most / 2  # drawn from all of them


def test_places_are_drawn_evenly(tmp_path):
    array = np.full((4, 8), 7)
    array[1:3, 2:6] = 2
    index = class_index(write_folder(tmp_path / "a", [array] * 200), 0)
    places, counts = np.unique(index.places, return_counts=True)
    assert places.tolist() == np.flatnonzero(array == 2).tolist()
    # 8 equal shares of 3200: five standard deviations are 94.
    assert abs(counts - 400).max() < 94


def test_kept_until_label_maps_or_classes_change(arrays, tmp_path, counted):
    dataset = write_folder(tmp_path / "a", arrays)
    first = class_index(dataset, 0)
    again = class_index(load_segmentation_dataset("folder", tmp_path / "a", "train"), 0)
    assert len(counted) == 1
    assert np.array_equal(again.pixels, first.pixels) and np.array_equal(again.places, first.places)
    changed = write_folder(tmp_path / "a", [np.full((8, 9), 2), *arrays[1:]])
    assert class_pixel_counts(changed, 0)[0].tolist() == [72, 0, 0, 0] and len(counted) == 2
    other = write_folder(tmp_path / "b", [[[2, 9]]], "names: {d: 9, a: 2}\n")
    assert class_pixel_counts(in_classes(changed, label_space_of(other)), 0)[0].tolist() == [0, 72] and len(counted) == 3
    assert class_pixel_counts(changed.select([0, 2]), 0).shape == (2, 4) and len(counted) == 4


def test_files_that_change_under_a_loaded_dataset_are_noticed(tmp_path, counted):
    dataset = write_folder(tmp_path / "a", [[[2, 2, 9]]])
    assert class_pixel_counts(dataset, 0).tolist() == [[2, 0, 0, 1]]
    write_folder(tmp_path / "a", [[[9, 9, 9, 9, 255]]])
    assert class_pixel_counts(dataset, 0).tolist() == [[0, 1, 0, 4]] and len(counted) == 2


def test_label_maps_inside_the_dataset(arrays, tmp_path):
    dataset = write_folder(tmp_path / "a", arrays)
    dataset.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert np.array_equal(class_pixel_counts(saved, 0), class_pixel_counts(dataset, 0))


def test_unreadable_label_maps_count_as_empty_and_are_read_again(arrays, tmp_path, counted, caplog):
    dataset = write_folder(tmp_path / "a", arrays)
    whole = class_pixel_counts(dataset, 0)
    file = tmp_path / "a" / "train" / "labels" / "001.png"
    content = file.read_bytes()
    file.write_bytes(content[:40])
    for _ in range(2):
        index = class_index(dataset, 0)
        assert index.pixels[1].tolist() == [0] * 4 and index.unreadable.tolist() == [1]
        assert np.array_equal(np.delete(index.pixels, 1, 0), np.delete(whole, 1, 0))
    assert len(counted) == 3
    assert caplog.messages == ["1 of 6 label maps cannot be read and are not counted: 001"] * 2


def test_damaged_cache_is_counted_anew(arrays, tmp_path, caplog):
    dataset = write_folder(tmp_path / "a", arrays)
    whole, file = class_pixel_counts(dataset, 0), module._cache_file(dataset)
    for damaged in (b"", file.read_bytes()[:-50], b"x" * 999):
        file.write_bytes(damaged)
        assert np.array_equal(class_pixel_counts(dataset, 0), whole)
        assert file.stat().st_size > 999 and "damaged" in caplog.messages[-1]
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no lock, no part


PROCESS = """
import json, sys, time
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[2])
from revhrnet_hf.data import class_index as module, load_segmentation_dataset
count = module._count
def slow(*arguments):
    print("counting", flush=True)
    time.sleep(1)
    return count(*arguments)
module._count = slow
dataset = load_segmentation_dataset("folder", sys.argv[1], "train")
print("waiting", flush=True)
sys.stdin.readline()
index = module.class_index(dataset, 0)
print(json.dumps([index.pixels.tolist(), index.places.tolist()]))
"""


def test_of_two_processes_one_counts(arrays, tmp_path):
    index = class_index(write_folder(tmp_path / "a", arrays), 0)
    command = [sys.executable, "-c", PROCESS, tmp_path / "a", tmp_path / "fresh"]
    both = [forked.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.stdout.readline() for process in both]
    assert outputs == ["waiting\n"] * 2
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert sum("counting" in lines for lines in outputs) == 1
    for lines in outputs:
        assert json.loads(lines[-1]) == [index.pixels.tolist(), index.places.tolist()]


def test_a_lock_that_a_killed_process_left_does_not_stop_others(arrays, tmp_path):
    dataset = write_folder(tmp_path / "a", arrays)
    lock_name = module._cache_file(dataset).with_suffix(".lock")
    lock_name.parent.mkdir(parents=True)
    lock_file(lock_name).close()
    assert lock_name.exists() and class_pixel_counts(dataset, 0).shape == (6, 4)
