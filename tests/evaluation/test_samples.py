"""Reading ahead by processes and by threads against a plain loop over the rows."""

import multiprocessing
import signal
import subprocess
import threading

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerImageProcessor

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import samples as samples_module
from revhrnet_hf.evaluation.samples import Samples, load
from revhrnet_hf.evaluation.settings import InferenceSettings

INDICES = [4, 0, 3, 1, 2]
# Only where a network lies is asked for: no GPU is needed.
DEVICES = [torch.device("cpu"), torch.device("cuda")]


class Rows:
    """A data set of five pictures, the third without labels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        sizes = [(33, 47), (64, 40), (40, 64), (33, 47), (35, 90)]
        self.pictures = [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        self.label_maps = [PIL.Image.fromarray(rng.integers(0, 5, size, dtype=np.uint8)) for size in sizes]
        self.label_maps[2] = None

    def __getitem__(self, index):
        return {"image": self.pictures[index], "label_map": self.label_maps[index], "image_id": f"frame_{index}"}


class Damaged(Rows):
    def __getitem__(self, index):
        if index == 1:
            raise DataError("frame_1.png cannot be read")
        return super().__getitem__(index)


class Together(Rows):
    """Reading a row takes until as many are read at once; `reading` are those that are being read."""

    def __init__(self, threads):
        super().__init__()
        self.barrier, self.reading, self.lock = threading.Barrier(threads, timeout=60), set(), threading.Lock()

    def __getitem__(self, index):
        with self.lock:
            self.reading.add(index)
        self.barrier.wait()
        with self.lock:
            self.reading.remove(index)
        return super().__getitem__(index)


@pytest.fixture
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("num_workers", [0, 1, 2, 7])
def test_same_as_a_loop(image_processor, device, num_workers):
    rows = Rows()
    settings = InferenceSettings(scales=(1.0, 1.5))
    samples = list(load(Samples(rows, INDICES, image_processor, settings), num_workers, device))
    assert [sample.index for sample in samples] == INDICES
    for index, image_id, inputs, size, references in samples:
        picture, label_map = rows.pictures[index], rows.label_maps[index]
        assert image_id == f"frame_{index}"
        assert size == (picture.height, picture.width)
        own, larger = (one.tensors["pixel_values"] for one in inputs)
        assert torch.equal(own, image_processor(images=[picture], return_tensors="pt")["pixel_values"])
        assert tuple(larger.shape[-2:]) == (round(1.5 * picture.height), round(1.5 * picture.width))
        assert references is None if label_map is None else np.array_equal(references, np.array(label_map))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_row_is_an_error_in_its_turn(image_processor, device, num_workers):
    samples = load(Samples(Damaged(), INDICES, image_processor, InferenceSettings()), num_workers, device)
    assert [next(samples).index for _ in range(3)] == INDICES[:3]
    with pytest.raises(DataError, match=r"^frame_1.png cannot be read$"):
        next(samples)


def test_threads_read_at_once_and_rest_while_a_sample_is_used(image_processor):
    rows = Together(threads=2)
    samples = Samples(rows, INDICES[:4], image_processor, InferenceSettings())
    used = []
    for sample in load(samples, 2, torch.device("cpu")):  # a thread alone would wait for the other one for ever
        assert not rows.reading
        used.append(sample.index)
    assert used == INDICES[:4]
    assert rows.barrier.n_waiting == 0


def test_as_many_are_read_at_once_as_memory_allows(image_processor, monkeypatch):
    """One by one where pictures are large: as many as the last one's size lets expect."""
    monkeypatch.setattr(samples_module, "READ_PIXELS", 4000)
    read = []

    class Noting(Rows):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    samples = load(Samples(Noting(), INDICES, image_processor, InferenceSettings()), 1, torch.device("cpu"))
    # Pictures of 3150, 1551, 1551, 2560, 2560 pixels.
    assert [len(read) for _ in samples] == [1, 2, 4, 4, 5]


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who has sent a signal")
def test_processes_outlive_signals_of_others(image_processor):
    """As in training: a run that is stopped saves first, and its workers get the signal too."""
    samples = load(Samples(Rows(), INDICES * 4, image_processor, InferenceSettings()), 1, torch.device("cuda"))
    indices = [next(samples).index]
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in multiprocessing.active_children())], check=True)
    indices += [sample.index for sample in samples]
    assert indices == INDICES * 4
