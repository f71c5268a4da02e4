import math
from fractions import Fraction

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from revhrnet_hf.data import LabelMap, RgbImage, TrainingSamples, TrainingTransform
from revhrnet_hf.data.transforms import _draw_seed
from revhrnet_hf.errors import DataError
from revhrnet_hf.models.image_processing_revhrnet import RevHRNetImageProcessor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def processor(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    return RevHRNetImageProcessor(image_mean=list(mean), image_std=list(std))


def pair(height=40, width=60, classes=11):
    """An image whose grey level is 20 times its label, in blocks, and the labels."""
    blocks = np.random.default_rng(0).integers(0, classes, size=(height // 10, width // 10), dtype=np.uint8)
    labels = blocks.repeat(10, 0).repeat(10, 1)
    return PIL.Image.fromarray(labels * 20).convert("RGB"), PIL.Image.fromarray(labels)


@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_stay_aligned(seed):
    torch.manual_seed(seed)
    transform = TrainingTransform(processor(), (64, 80), base_size=120)
    sample = transform(*pair())
    kept = sample["labels"] != 255
    grey_of_labels = torch.where(kept, sample["labels"], 0) * 20 / 255
    difference = (sample["pixel_values"][0] - grey_of_labels).abs()[kept]
    # Only the blocks' rims, which the image's interpolation blends, may differ.
    assert (difference < 0.01).float().mean() > 0.6
    assert difference.median() < 0.002


def test_without_scaling_the_crop_is_cut_from_the_originals():
    image, labels = pair()
    transform = TrainingTransform(processor(), (20, 30), base_size=60, scale_range=(1.0, 1.0), flip=0.0)
    whole, levels = np.asarray(labels), np.array(image)
    torch.manual_seed(3)
    places = set()
    for _ in range(20):
        sample = transform(image, labels)
        hits = [
            (top, left)
            for top in range(21)
            for left in range(31)
            if np.array_equal(whole[top : top + 20, left : left + 30], sample["labels"].numpy())
        ]
        assert len(hits) == 1
        top, left = hits[0]
        cut = torch.from_numpy(levels[top : top + 20, left : left + 30]).permute(2, 0, 1) / 255
        torch.testing.assert_close(sample["pixel_values"], cut)
        places.add(hits[0])
    assert len(places) > 10


@pytest.mark.parametrize("seed", range(12))
def test_the_crop_is_what_scaling_the_whole_image_gives(seed):
    torch.manual_seed(seed)
    height, width = torch.randint(30, 90, (2,)).tolist()
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image, labels = PIL.Image.fromarray(noise[..., :3]), PIL.Image.fromarray(noise[..., 3] % 11)
    base = int(torch.randint(25, 180, ()))
    sample = TrainingTransform(processor(), (20, 24), base_size=base, scale_range=(1.0, 1.0), flip=0.0)(image, labels)

    size = (round(width * base / max(height, width)), round(height * base / max(height, width)))
    scaled = np.asarray(image.resize(size, PIL.Image.Resampling.BILINEAR)).astype(int)
    # The pixel that a centre falls on, by fractions: Pillow's own nearest neighbour may round a tie either way.
    pairs = zip(size, image.size, strict=True)
    sources = [[math.floor(Fraction(2 * i + 1, 2 * new) * old) for i in range(new)] for new, old in pairs]
    scaled_labels = np.asarray(labels)[np.ix_(sources[1], sources[0])]
    rows, columns = min(20, size[1]), min(24, size[0])
    crop = (sample["pixel_values"] * 255).round().int().permute(1, 2, 0).numpy()[:rows, :columns]
    crop_labels = sample["labels"].numpy()[:rows, :columns]
    places = [(top, left) for top in range(size[1] - rows + 1) for left in range(size[0] - columns + 1)]
    windows = [np.s_[top : top + rows, left : left + columns] for top, left in places]
    # A value between two grey levels may be rounded either way.
    (window,) = (window for window in windows if abs(scaled[window] - crop).max() <= 2)
    assert (scaled_labels[window] == crop_labels).all()
    assert (sample["labels"].numpy()[rows:] == 255).all() and (sample["labels"].numpy()[:, columns:] == 255).all()


def test_flip_mirrors_both():
    image, labels = pair()
    options = {"crop_size": (40, 60), "base_size": 60, "scale_range": (1.0, 1.0)}
    straight = TrainingTransform(processor(), flip=0.0, **options)(image, labels)
    mirrored = TrainingTransform(processor(), flip=1.0, **options)(image, labels)
    for key in ("pixel_values", "labels"):
        assert torch.equal(mirrored[key], straight[key].flip(-1))
        assert not torch.equal(mirrored[key], straight[key])


def test_padding_is_the_mean_colour_and_never_a_class():
    image, labels = pair()
    transform = TrainingTransform(processor(MEAN, STD), (64, 80), base_size=30, scale_range=(1.0, 1.0), flip=0.5)
    sample = transform(image, labels)
    assert sample["pixel_values"].shape == (3, 64, 80) and sample["pixel_values"].dtype == torch.float32
    assert sample["labels"].shape == (64, 80) and sample["labels"].dtype == torch.uint8
    inside = torch.zeros(64, 80, dtype=torch.bool)
    inside[:20, :30] = True
    assert (sample["labels"][~inside] == 255).all()
    assert (sample["labels"][inside] < 11).all()
    assert (sample["pixel_values"][:, ~inside] == 0).all()
    darkest = (0 - torch.tensor(MEAN)) / torch.tensor(STD)
    black = image.resize((30, 20)).getextrema()[0][0] == 0
    assert black and torch.allclose(sample["pixel_values"].amin((1, 2)), darkest, atol=0.05)


def test_enlarging_labels_makes_no_new_ids():
    labels = PIL.Image.fromarray(np.array([[0, 10], [255, 0]], np.uint8).repeat(8, 0).repeat(8, 1))
    transform = TrainingTransform(processor(), (33, 33), base_size=33, scale_range=(1.0, 1.0))
    found = transform(labels.convert("RGB"), labels)["labels"].unique().tolist()
    assert found == [0, 10, 255]


def test_factors_are_hrnets_grid_drawn_evenly():
    torch.manual_seed(0)
    transform = TrainingTransform(processor(), (8, 8), base_size=100)
    draws = torch.tensor([transform._draw_factor(None) for _ in range(17_000)])
    factors, counts = draws.mul(10).round().long().unique(return_counts=True)
    assert factors.tolist() == list(range(5, 22))
    assert torch.allclose(draws, draws.mul(10).round() / 10, atol=1e-6)
    # 17 equal shares of 1000: five standard deviations are 153.
    assert (counts - 1000).abs().max() < 153


def test_factors_without_a_grid_fill_the_range():
    torch.manual_seed(0)
    transform = TrainingTransform(processor(), (8, 8), base_size=100, scale_range=(0.5, 2.0), scale_step=None)
    draws = torch.tensor([transform._draw_factor(None) for _ in range(3000)])
    counts = draws.histc(3, 0.5, 2.0)
    assert counts.sum() == 3000
    assert (counts - 1000).abs().max() < 130
    assert draws.unique().numel() > 2900


def test_long_side_becomes_base_times_factor():
    image, labels = pair(40, 60)
    transform = TrainingTransform(processor(), (200, 200), base_size=90, scale_range=(2.0, 2.0))
    kept = transform(image, labels)["labels"] != 255
    assert kept.any(0).sum() == 180 and kept.any(1).sum() == 120


@pytest.mark.parametrize(("format", "options"), [("png", {}), ("jpg", {"subsampling": 2}), ("jpg", {"progressive": True})])
def test_what_is_read_for_a_crop_changes_no_pixel(format, options, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 4), dtype=np.uint8)
    PIL.Image.fromarray(noise[..., :3]).save(tmp_path / f"image.{format}", **options)
    PIL.Image.fromarray(noise[..., 3] % 12).save(tmp_path / "labels.png")
    image, label_map = ({"path": str(tmp_path / name), "bytes": None} for name in (f"image.{format}", "labels.png"))
    features = RgbImage(), LabelMap(label_space="camvid11")
    transform = TrainingTransform(processor(), (30, 40), base_size=130, scale_range=(0.25, 2.0), scale_step=None)
    for seed in range(60):
        torch.manual_seed(seed)
        whole = transform(*(feature.decode_example(file) for feature, file in zip(features, (image, label_map), strict=True)))
        torch.manual_seed(seed)
        read = transform(*(feature.open(file) for feature, file in zip(features, (image, label_map), strict=True)))
        assert all(torch.equal(read[key], whole[key]) for key in whole)


@pytest.fixture
def rows(tmp_path):
    image, labels = pair()
    image.save(tmp_path / "image.png")
    labels.save(tmp_path / "labels.png")
    columns = {"image": RgbImage(), "label_map": LabelMap(label_space="camvid11"), "image_id": datasets.Value("string")}
    table = {
        "image": [str(tmp_path / "image.png")] * 4,
        "label_map": [str(tmp_path / "labels.png")] * 4,
        "image_id": ["a", "b", "c", "d"],
    }
    return datasets.Dataset.from_dict(table, features=datasets.Features(columns))


def samples_of(rows, seed=0):
    return TrainingSamples(rows, TrainingTransform(processor(), (24, 24), base_size=60), seed)


def epoch_of(samples, epoch, order=(0, 1, 2, 3)):
    samples.set_epoch(epoch)
    return {i: samples[i]["pixel_values"] for i in order}


def same(left, right):
    return all(torch.equal(left[i], right[i]) for i in range(4))


def test_draws_depend_on_seed_epoch_and_index_only(rows):
    first = epoch_of(samples_of(rows), 3)
    torch.rand(7)
    assert same(first, epoch_of(samples_of(rows), 3, order=(2, 0, 3, 1)))
    assert not same(first, epoch_of(samples_of(rows), 4))
    assert not same(first, epoch_of(samples_of(rows, seed=1), 3))
    # One image four times: different indices are augmented differently.
    assert not torch.equal(first[0], first[1])


def test_callers_generator_is_left_alone(rows):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    samples_of(rows)[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_running_workers_follow_the_epoch(rows, workers):
    samples = samples_of(rows)
    loader = torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers, persistent_workers=True)
    for epoch in (0, 1, 7):
        samples.set_epoch(epoch)
        drawn = dict(enumerate(sample["pixel_values"] for sample in loader))
        assert same(drawn, epoch_of(samples_of(rows), epoch))


def test_differing_sizes_name_the_image(rows, tmp_path):
    PIL.Image.open(tmp_path / "labels.png").crop((0, 0, 20, 30)).save(tmp_path / "labels.png")
    with pytest.raises(DataError, match=r"Image c is 60×40 .* label map is 20×30"):
        samples_of(rows)[2]


def test_a_wrong_id_is_an_error_wherever_it_is_used(rows, tmp_path):
    image, labels = pair()
    wrong = np.array(labels)
    wrong[25, 40] = 77
    PIL.Image.fromarray(wrong).save(tmp_path / "labels.png")
    transform = TrainingTransform(processor(), (20, 30), base_size=60, scale_range=(1.0, 1.0))
    counts = [0, 0]
    samples = TrainingSamples(rows, transform, seed=0)
    skipping = TrainingSamples(rows, transform, seed=0, skip_bad=True)
    for epoch in range(20):
        samples.set_epoch(epoch)
        skipping.set_epoch(epoch)
        torch.manual_seed(_draw_seed(0, epoch, 2))
        expected = transform(image, PIL.Image.fromarray(wrong))
        used = bool((expected["labels"] == 77).any())
        counts[used] += 1
        if used:
            with pytest.raises(DataError, match=r"labels\.png holds the ids 77"):
                samples[2]
        else:
            # Even if another crop has marked it before: the time at which a worker marks it is random.
            assert all(torch.equal(found[2][key], expected[key]) for found in (samples, skipping) for key in expected)
            skipping.bad[2] = 1
    assert min(counts) > 2


def rows_with_bad_ones(rows, tmp_path, bad):
    """The four rows, of which some have an image that is cut off."""
    (tmp_path / "cut.png").write_bytes((tmp_path / "image.png").read_bytes()[:100])
    paths = [str(tmp_path / ("cut.png" if i in bad else "image.png")) for i in range(4)]
    return rows.remove_columns("image").add_column("image", paths).cast_column("image", RgbImage())


def test_bad_images_stop_by_default_and_are_skipped_on_request(rows, tmp_path):
    broken = rows_with_bad_ones(rows, tmp_path, {1, 2})
    with pytest.raises(DataError, match=r"Image .*cut\.png cannot be read"):
        samples_of(broken)[1]
    transform = TrainingTransform(processor(), (24, 24), base_size=60)
    skipping = TrainingSamples(broken, transform, 0, skip_bad=True)
    loader = torch.utils.data.DataLoader(skipping, batch_size=None, num_workers=2)
    drawn = dict(enumerate(sample["pixel_values"] for sample in loader))
    # All four rows show the same image: it replaces the bad ones, augmented with their random draws.
    assert same(drawn, epoch_of(samples_of(rows), 0))
    assert skipping.bad.tolist() == [0, 1, 1, 0]  # marked by the workers


def test_nothing_but_bad_images(rows, tmp_path):
    transform = TrainingTransform(processor(), (24, 24), base_size=60)
    skipping = TrainingSamples(rows_with_bad_ones(rows, tmp_path, {0, 1, 2, 3}), transform, 0, skip_bad=True)
    for _ in range(2):
        with pytest.raises(DataError, match="None of the 4 training images can be used"):
            skipping[2]


def test_an_index_beyond_the_end_is_an_image_drawn_anew(rows):
    samples = samples_of(rows)
    assert not torch.equal(samples[1]["pixel_values"], samples[5]["pixel_values"])
    assert torch.equal(samples[5]["pixel_values"], samples_of(rows)[5]["pixel_values"])
