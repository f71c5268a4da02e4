"""What training draws, as distributions: crops, flips, scales and the order of an epoch. χ² tests of draws from fixed seeds."""

import math
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from revhrnet_hf.data import LabelMap, RgbImage, TrainingSamples, TrainingTransform
from revhrnet_hf.models import RevHRNetImageProcessor
from revhrnet_hf.training.sampler import EpochBatches

HEIGHT, WIDTH, CROP = 14, 21, (10, 14)
PLACES = [(top, left) for top in range(HEIGHT - CROP[0] + 1) for left in range(WIDTH - CROP[1] + 1)]  # 5 × 8
UNLIKELY = 1e-4  # below this p-value, the draws do not follow the distribution


def transform(crop_size=CROP, **settings):
    usual = {"base_size": WIDTH, "scale_range": (1.0, 1.0), "flip": 0.0}
    processor = RevHRNetImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return TrainingTransform(processor, crop_size, **{**usual, **settings})


@pytest.fixture(scope="module")
def marked():
    """An image whose red and green are each pixel's row and column, and a label map of the rows."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    return PIL.Image.fromarray(np.stack([rows, columns, columns], axis=-1)), PIL.Image.fromarray(rows)


def place_of(crop):
    """Row and column of a crop's upper left corner, and whether it is mirrored."""
    pixels, labels = crop
    pixels = np.asarray(pixels)
    assert pixels.shape[:2] == labels.shape == CROP
    assert np.array_equal(pixels[..., 0], labels)  # both are cropped at the same place
    columns = pixels[0, :, 1].astype(int)
    assert abs(np.diff(columns)).max() == 1  # nothing is scaled
    return (int(labels[0, 0]), int(columns.min())), bool(columns[0] > columns[-1])


def draws(transform, marked, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [place_of(transform.crop(*marked, generator)) for _ in range(count)]


def test_crops_are_drawn_evenly_up_to_both_ends(marked):
    found = Counter(place for place, _ in draws(transform(), marked, 4000))
    assert set(found) == set(PLACES)  # the last row and the last column as well
    assert chisquare([found[place] for place in PLACES]).pvalue > UNLIKELY


@pytest.mark.parametrize("crop_size", [(HEIGHT, WIDTH), (HEIGHT, 14), (10, WIDTH), (50, 60)])
def test_a_crop_is_never_beyond_the_image(marked, crop_size):
    """Where there is no room to move, the whole side is taken, once and in place."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        pixels, labels = transform(crop_size).crop(*marked, generator)
        height, width = min(crop_size[0], HEIGHT), min(crop_size[1], WIDTH)
        assert pixels.size == (width, height)
        first = int(labels[0, 0])
        assert labels[:, 0].tolist() == list(range(first, first + height))


@pytest.mark.parametrize("flip", [0.0, 0.25, 0.5, 1.0])
def test_flips_are_as_frequent_as_asked_for(marked, flip):
    found = draws(transform(flip=flip), marked, 2000)
    flips = sum(mirrored for _, mirrored in found)
    assert abs(flips - 2000 * flip) <= 4 * math.sqrt(2000 * flip * (1 - flip))
    if 0 < flip < 1:  # wherever the crop is
        table = np.zeros((2, WIDTH - CROP[1] + 1))
        for (_, left), mirrored in found:
            table[int(mirrored), left] += 1
        assert chi2_contingency(table).pvalue > UNLIKELY


@pytest.mark.parametrize(
    ("scale_range", "scale_step", "factors"),
    [
        ((0.5, 2.1), 0.1, [k / 10 for k in range(5, 22)]),  # HRNet's
        ((0.5, 2.0), 0.25, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]),
        ((0.7, 1.4), 0.1, [0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]),
        ((1.0, 1.0), 0.1, [1.0]),
    ],
)
def test_scales_are_a_grid_that_is_drawn_evenly(scale_range, scale_step, factors):
    """By the size of what comes out, where nothing is cut off: the long side is the base size times a factor."""
    image, label_map = PIL.Image.new("RGB", (8, 2)), PIL.Image.new("L", (8, 2))
    drawn = transform((1000, 1000), base_size=100, scale_range=scale_range, scale_step=scale_step)
    generator = torch.Generator().manual_seed(0)
    sides = Counter(drawn.crop(image, label_map, generator)[0].size for _ in range(120 * len(factors)))
    expected = [(round(100 * factor), round(25 * factor)) for factor in factors]
    assert set(sides) == set(expected)
    if len(factors) > 1:
        assert chisquare([sides[size] for size in expected]).pvalue > UNLIKELY


def test_scales_without_a_grid_fill_the_range():
    image, label_map = PIL.Image.new("RGB", (500, 1)), PIL.Image.new("L", (500, 1))
    drawn = transform((9999, 9999), base_size=1000, scale_range=(0.5, 2.0), scale_step=None)
    generator = torch.Generator().manual_seed(0)
    sides = np.array([drawn.crop(image, label_map, generator)[0].width for _ in range(300)])
    assert sides.min() < 520 and sides.max() > 1980 and len(set(sides.tolist())) > 200
    assert chisquare(np.histogram(sides, bins=10, range=(500, 2000))[0]).pvalue > UNLIKELY


@pytest.fixture(scope="module")
def rows(marked, tmp_path_factory):
    """The marked image three times over, as a dataset."""
    folder = tmp_path_factory.mktemp("rows")
    paths = [str(folder / name) for name in ("image.png", "labels.png")]
    for image, path in zip(marked, paths, strict=True):
        image.save(path)
    columns = {"image": RgbImage(), "label_map": LabelMap(label_space="cityscapes"), "image_id": datasets.Value("string")}
    table = {"image": [paths[0]] * 3, "label_map": [paths[1]] * 3, "image_id": list("abc")}
    return datasets.Dataset.from_dict(table, features=datasets.Features(columns))


@pytest.mark.parametrize("varied", ["epoch", "index", "seed"])
def test_seed_epoch_and_index_each_draw_anew(rows, varied):
    """Along each of the three alone, crops and flips together are drawn evenly: 2 × 3 places, mirrored or not."""
    found = Counter()
    for number in range(180):
        values = {"seed": 5, "epoch": 3, "index": 1, varied: number}
        samples = TrainingSamples(rows, transform((HEIGHT - 1, WIDTH - 2), flip=0.5), values["seed"])
        samples.set_epoch(values["epoch"])
        rows_drawn, columns, _ = samples[values["index"]]["pixel_values"].mul(255).round().int()
        found[int(rows_drawn[0, 0]), int(columns[0].min()), bool(columns[0, 0] > columns[0, -1])] += 1
    assert len(found) == 12
    assert chisquare(list(found.values())).pvalue > UNLIKELY


# The order of an epoch


def order(seed, epoch, num_samples=7, batch_size=1):
    batches = EpochBatches(num_samples, batch_size, passes=1, num_processes=1, process_index=0, seed=seed)
    batches.start_at(epoch, 0)
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("varied", ["seed", "epoch"])
def test_each_image_comes_at_each_place_equally_often(varied):
    """By seed alone and by epoch alone; a place goes to each image, and an image goes to each place."""
    table = np.zeros((7, 7))
    for number in range(700):
        drawn = order(**{"seed": 2, "epoch": 4, varied: number})
        assert sorted(drawn) == list(range(7))
        table[drawn, range(7)] += 1
    assert chisquare(table.ravel(), ddof=12).pvalue > UNLIKELY  # rows and columns always sum to 700


def test_orders_are_of_seed_and_epoch_and_nothing_else():
    orders = {(seed, epoch): tuple(order(seed, epoch, 40)) for seed in range(6) for epoch in range(6)}
    assert len(set(orders.values())) == 36
    torch.manual_seed(99)
    assert all(tuple(order(*which, 40)) == drawn for which, drawn in orders.items())


def test_images_left_over_are_others_in_each_epoch():
    """23 images in steps of 6: which five are left out is chance."""
    left_out = Counter(index for epoch in range(460) for index in set(range(23)) - set(order(0, epoch, 23, 6)))
    assert sum(left_out.values()) == 5 * 460
    assert chisquare([left_out[index] for index in range(23)]).pvalue > UNLIKELY
