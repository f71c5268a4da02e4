"""Reading ahead by worker processes against a plain loop over the rows."""

import signal
import subprocess

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import SegformerImageProcessor

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation.network_input import Samples, read_ahead
from revhrnet_hf.evaluation.settings import InferenceSettings

INDICES = [4, 0, 3, 1, 2]
CPU = torch.device("cpu")


class Rows:
    """A dataset of five images, the third without labels."""

    def __init__(self):
        rng = np.random.default_rng(0)
        sizes = [(33, 47), (64, 40), (40, 64), (33, 47), (35, 90)]
        self.images = [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        self.label_maps = [PIL.Image.fromarray(rng.integers(0, 5, size, dtype=np.uint8)) for size in sizes]
        self.label_maps[2] = None

    def __getitem__(self, index):
        return {"image": self.images[index], "label_map": self.label_maps[index], "image_id": f"frame_{index}"}


class Damaged(Rows):
    def __getitem__(self, index):
        if index == 1:
            raise DataError("frame_1.png cannot be read")
        return super().__getitem__(index)


@pytest.fixture
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_same_as_a_loop(image_processor, num_workers):
    rows = Rows()
    settings = InferenceSettings(scales=(1.0, 1.5))
    samples = list(read_ahead(Samples(rows, INDICES, image_processor, settings), num_workers, CPU))
    assert [sample.index for sample in samples] == INDICES
    for index, image_id, inputs, size, references in samples:
        image, label_map = rows.images[index], rows.label_maps[index]
        assert image_id == f"frame_{index}"
        assert size == (image.height, image.width)
        own, larger = (one.tensors["pixel_values"] for one in inputs)
        assert torch.equal(own, image_processor(images=[image], return_tensors="pt")["pixel_values"])
        assert tuple(larger.shape[-2:]) == (round(1.5 * image.height), round(1.5 * image.width))
        assert references is None if label_map is None else np.array_equal(references, np.array(label_map))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_row_is_an_error_in_its_turn(image_processor, num_workers):
    samples = read_ahead(Samples(Damaged(), INDICES, image_processor, InferenceSettings()), num_workers, CPU)
    assert [next(samples).index for _ in range(3)] == INDICES[:3]
    with pytest.raises(DataError, match=r"^frame_1.png cannot be read$"):
        next(samples)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who has sent a signal")
def test_processes_outlive_signals_of_others(image_processor):
    """As in training: a run that is stopped saves first, and its workers get the signal too."""
    samples = read_ahead(Samples(Rows(), INDICES * 4, image_processor, InferenceSettings()), 1, CPU)
    indices = [next(samples).index]
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in samples._workers)], check=True)
    indices += [sample.index for sample in samples]
    assert indices == INDICES * 4
