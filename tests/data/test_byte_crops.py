"""Crops that travel as bytes and are normalised on the device, against the image processor's own values, bit for bit."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from revhrnet_hf.data import LabelMap, RgbImage, TrainingSamples, TrainingTransform
from revhrnet_hf.data.byte_crops import ByteCrops, ByteNormalisation
from revhrnet_hf.data.loader import build_loader
from revhrnet_hf.models.image_processing_pil_revhrnet import RevHRNetImageProcessorPil
from revhrnet_hf.models.image_processing_revhrnet import RevHRNetImageProcessor

SIZES = [(40, 60), (60, 40), (24, 24), (90, 31), (12, 50), (64, 64)]  # of the images; some are smaller than the crop

PROCESSORS = {
    "imagenet": {},
    "inception": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "siglip's range": {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 127.5},
    "unnormalised": {"do_normalize": False},
    "bytes": {"do_normalize": False, "do_rescale": False},
    "clip": {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    ids = [str(number) for number in range(len(SIZES))]
    for name, size in zip(ids, SIZES, strict=True):
        PIL.Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        PIL.Image.fromarray(random.integers(0, 11, size, dtype=np.uint8)).save(folder / f"{name}_labels.png")
    columns = {"image": RgbImage(), "label_map": LabelMap(label_space="camvid11"), "image_id": datasets.Value("string")}
    table = {
        "image": [str(folder / f"{name}.png") for name in ids],
        "label_map": [str(folder / f"{name}_labels.png") for name in ids],
        "image_id": ids,
    }
    return datasets.Dataset.from_dict(table, features=datasets.Features(columns))


def samples_of(rows, processor, crop_size=(48, 40)):
    return TrainingSamples(rows, TrainingTransform(processor, crop_size, base_size=60), seed=3)


@pytest.mark.parametrize("kind", [RevHRNetImageProcessor, RevHRNetImageProcessorPil])
@pytest.mark.parametrize("settings", PROCESSORS)
def test_every_byte_in_every_channel(kind, settings):
    processor = kind(**PROCESSORS[settings])
    random = np.random.default_rng(1)
    pixels = np.stack([random.permutation(256).astype(np.uint8) for _ in range(3)], axis=-1)[None]  # (1, 256, 3)
    expected = torch.as_tensor(np.asarray(processor(PIL.Image.fromarray(pixels), return_tensors="pt")["pixel_values"]))
    found = ByteNormalisation(processor, torch.device("cpu"))(torch.from_numpy(pixels)[None], [(1, 256)])
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_samples(rows, workers):
    """As the workers themselves normalised them: padding included, channels-last."""
    samples = samples_of(rows, RevHRNetImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.1]))
    normalise = ByteNormalisation(samples.transform.image_processor, torch.device("cpu"))
    order = [[0, 1, 2], [3, 4, 5], [6, 11, 9]]
    loader = build_loader(ByteCrops(samples), workers, batch_sampler=order)
    padded = 0
    for indices, batch in zip(order, loader, strict=True):
        former = torch.utils.data.default_collate([samples[index] for index in indices])
        values = normalise(batch["pixels"], batch["size"].tolist())
        assert torch.equal(values, former["pixel_values"])
        assert values.stride() == former["pixel_values"].contiguous(memory_format=torch.channels_last).stride()
        assert torch.equal(batch["labels"], former["labels"]) and batch["labels"].dtype == torch.uint8
        padded += sum(size != [48, 40] for size in batch["size"].tolist())
    assert 0 < padded < 9


def test_a_quarter_of_the_shared_memory(rows):
    samples = samples_of(rows, RevHRNetImageProcessor(), (48, 64))
    item = ByteCrops(samples)[0]
    handed_over = sum(x.nbytes for x in item.values())
    assert handed_over == 4 * 48 * 64 + item["size"].nbytes
    float32 = samples[0]["pixel_values"].nbytes + 48 * 64 * 4  # as a batch with int32 labels would be
    assert handed_over < 0.26 * float32
