import hashlib
import math
from fractions import Fraction

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import scipy.ndimage
import torch
from torchvision.transforms.v2 import functional as TF

from revhrnet_hf.data import LabelMap, RgbImage, TrainingSamples, TrainingTransform, transforms
from revhrnet_hf.data.augmentation import GaussianBlur, JpegNoise, PhotometricDistortion
from revhrnet_hf.data.class_index import class_index
from revhrnet_hf.data.rare_classes import RareClasses
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


def test_only_images_of_chosen_datasets_are_distorted(rows):
    """Inverted colours in place of a distortion; the first dataset has one image, the second none, the third three."""

    def samples(distorted, distortions):
        parts = torch.utils.data.ConcatDataset([rows.select([0]), rows.select([]), rows.select([1, 2, 3])])
        transform = TrainingTransform(processor(), (24, 24), base_size=60, distortions=distortions)
        return TrainingSamples(parts, transform, 0, distorted=distorted)

    plain = [samples(None, ())[index] for index in range(8)]  # an index beyond the end repeats an image
    for chosen in ((True, True, False), (False, False, True), None):
        found = samples(chosen, [lambda image, _: PIL.ImageOps.invert(image)])
        for index in range(8):
            is_inverted = chosen is None or chosen[0 if index % 4 == 0 else 2]
            crop, labels = found.crop(index)
            expected = samples(None, ()).crop(index)[0]
            assert np.array_equal(np.asarray(crop), 255 - np.asarray(expected) if is_inverted else expected)
            assert np.array_equal(labels, plain[index]["labels"][: labels.shape[0], : labels.shape[1]])


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


def test_crops_are_those_of_earlier_versions():
    """The digest is of the crops before there were more than scale, crop and flip."""
    transform, digest = TrainingTransform(processor(), (24, 30), base_size=60), hashlib.sha256()
    for seed in range(50):
        digest.update(transform.crop(*pair(), torch.Generator().manual_seed(seed))[1].tobytes())
    assert digest.hexdigest()[:16] == "968f7788fcce8e73"


# Rotation


def smooth(height, width, seed=0):
    """An image without edges, whose bilinear interpolations agree, and a label map of large blobs, none of them ignored."""
    waves = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 4)), (5, 5, 0))
    levels = np.clip(128 + 900 * waves, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(levels[..., :3]), PIL.Image.fromarray(levels[..., 3] // 32)


@pytest.mark.parametrize(("degrees", "crop_size"), [(7.0, (30, 40)), (-33.0, (24, 60)), (90.0, (40, 30)), (160.0, (120, 160))])
def test_turned_crop_is_what_torchvision_turns_of_the_whole_image(degrees, crop_size, monkeypatch):
    image, labels = smooth(90, 120)
    monkeypatch.setattr(transforms, "uniform", lambda low, high, generator: degrees)
    transform = TrainingTransform(processor(), crop_size, base_size=120, scale_range=(1.0, 1.0), flip=0.0, rotation=180.0)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        pixels, found = transform.crop(image, labels, generator)
        height, width = found.shape
        generator = torch.Generator().manual_seed(seed)
        transform._draw_factor(generator)
        top, left = (torch.randint(slack + 1, (), generator=generator).item() for slack in (90 - height, 120 - width))
        # torchvision turns about the middle of the whole image, so the window's middle is moved there first.
        side = 400
        offset = side // 2 - top - height / 2, side // 2 - left - width / 2
        assert all(shift == int(shift) for shift in offset)
        canvas = torch.zeros(5, side, side)
        there = np.s_[int(offset[0]) : int(offset[0]) + 90, int(offset[1]) : int(offset[1]) + 120]
        canvas[:3][(slice(None), *there)] = TF.pil_to_tensor(image).float()
        canvas[3][there] = torch.from_numpy(np.array(labels)).float()
        canvas[4][there] = 1
        window = np.s_[:, side // 2 - height // 2 : side // 2 + height // 2, side // 2 - width // 2 : side // 2 + width // 2]
        bilinear = TF.rotate(canvas, degrees, TF.InterpolationMode.BILINEAR)[window].numpy()
        nearest = TF.rotate(canvas, degrees, TF.InterpolationMode.NEAREST)[window].numpy()
        inside = bilinear[4] > 0.999  # well inside
        outside = bilinear[4] == 0
        assert (found[outside] == 255).all() and (found[inside] != 255).all()
        assert ((found == 255) != (nearest[4] == 0)).mean() < 0.005  # a tie at the rim
        assert abs(np.asarray(pixels, float) - bilinear[:3].transpose(1, 2, 0))[inside].max() <= 1.5
        assert (found[inside] != nearest[3][inside]).mean() < 0.01
        assert inside.any() and (outside.any() or degrees != 160)


def test_what_lies_outside_has_the_mean_colour_after_all_distortions():
    image, labels = smooth(60, 60)
    bright = PhotometricDistortion(200.0), GaussianBlur(1.0, (3.0, 3.0)), JpegNoise(1.0, (5, 5))
    options = {"crop_size": (60, 60), "base_size": 60, "scale_range": (1.0, 1.0), "rotation": 45.0, "distortions": bright}
    transform = TrainingTransform(processor(MEAN, STD), **options)
    for seed in range(10):
        torch.manual_seed(seed)
        sample = transform(image, labels)
        outside = sample["labels"] == 255
        assert outside.any()
        # Half a grey level, as normalisation shows it.
        assert (sample["pixel_values"][:, outside].abs() <= 0.5 / 255 / min(STD) + 1e-6).all()


def test_degrees_fill_the_range(monkeypatch):
    image, labels = pair()
    degrees, rotation = [], transforms.Rotation
    monkeypatch.setattr(transforms, "Rotation", lambda angle, *others: degrees.append(angle) or rotation(angle, *others))
    transform = TrainingTransform(processor(), (20, 30), base_size=60, rotation=12.0)
    torch.manual_seed(0)
    for _ in range(400):
        transform(image, labels)
    counts = np.histogram(sorted(set(degrees)), 4, (-12, 12))[0]
    assert counts.sum() == 400 and abs(counts - 100).max() < 44


# Crops drawn again


def half_and_half(height=40, width=200):
    """Class 0 on the left, stripes of classes 1 and 2 on the right, and a rim that is ignored."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1 + np.arange(width // 2) // 3 % 2
    labels[:5] = 255
    labels = PIL.Image.fromarray(labels)
    return labels.convert("RGB"), labels


def shares_of(labels):
    counts = np.bincount(labels[labels != 255], minlength=3)
    return counts / max(1, counts.sum())


def test_crops_of_mostly_one_class_are_drawn_again_up_to_ten_times(monkeypatch):
    image, labels = half_and_half()
    options = {"crop_size": (20, 40), "base_size": 200, "scale_range": (1.0, 1.0), "flip": 0.0}
    plain, drawing = TrainingTransform(processor(), **options), TrainingTransform(processor(), max_class_share=0.75, **options)
    windows, draw = [], TrainingTransform._window
    monkeypatch.setattr(TrainingTransform, "_window", lambda *given: windows.append(draw(*given)) or windows[-1])
    whole, redrawn = np.asarray(labels), 0
    for seed in range(300):
        windows.clear()
        plain_labels = plain.crop(image, labels, torch.Generator().manual_seed(seed))[1]
        (first,) = windows
        windows.clear()
        pixels, found = drawing.crop(image, labels, torch.Generator().manual_seed(seed))
        cuts = [whole[top : top + height, left : left + width] for top, left, height, width in windows]
        shares = [shares_of(cut).max() for cut in cuts]
        assert windows[0] == first and np.array_equal(cuts[0], plain_labels) and np.array_equal(cuts[-1], found)
        # As mmsegmentation: the first that is mixed enough, or the eleventh.
        assert all(share > 0.75 for share in shares[:-1]) and (shares[-1] <= 0.75 or len(shares) == 11)
        assert np.array_equal(np.asarray(pixels)[..., 0], found)  # the image is cut at the same place
        redrawn += len(shares) > 1
    assert 80 < redrawn < 250


def test_ten_times_and_no_more(monkeypatch):
    labels, windows, draw = PIL.Image.fromarray(np.full((90, 90), 4, np.uint8)), [], TrainingTransform._window
    monkeypatch.setattr(TrainingTransform, "_window", lambda *given: windows.append(draw(*given)) or windows[-1])
    TrainingTransform(processor(), (20, 20), base_size=90, max_class_share=0.9)(labels.convert("RGB"), labels)
    assert len(windows) == 11 and len(set(windows)) > 5


def test_nothing_else_to_draw():
    labels = PIL.Image.fromarray(np.full((30, 30), 4, np.uint8))
    options = {"crop_size": (20, 20), "base_size": 30, "scale_range": (1.0, 1.0), "max_class_share": 0.5}
    for only in (labels, PIL.Image.new("L", (30, 30), 255)):
        found = TrainingTransform(processor(), **options)(labels.convert("RGB"), only)["labels"]
        assert found.unique().tolist() == [only.getpixel((0, 0))]


# Crops placed on a pixel


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_the_pixel_lies_in_the_middle_half_as_far_as_borders_allow(rotation):
    height, width = 60, 90
    options = {"crop_size": (20, 28), "scale_range": (1.0, 1.0), "flip": 0.0, "rotation": rotation}
    transform = TrainingTransform(processor(), base_size=2 * width, **options)
    rng, places = np.random.default_rng(0), []
    for seed in range(400):
        row, column = int(rng.integers(height)), int(rng.integers(width))
        labels = np.zeros((height, width), np.uint8)
        labels[row, column] = 1
        labels = PIL.Image.fromarray(labels)
        generator = torch.Generator().manual_seed(seed)
        found = transform.crop(labels.convert("RGB"), labels, generator, row * width + column)[1]
        assert (found == 1).any()
        rows, columns = np.nonzero(found == 1)
        if 15 <= 2 * row < 2 * height - 15 and 21 <= 2 * column < 2 * width - 21 and not rotation:
            places.append(((rows.mean() + 0.5) / 20, (columns.mean() + 0.5) / 28))
    if rotation:
        return
    assert np.min(places) >= 0.2 and np.max(places) <= 0.8
    for place in np.transpose(places):
        assert abs(np.histogram(place, 4, (0.22, 0.78))[0] - len(place) / 4).max() < 5 * (3 / 16 * len(place)) ** 0.5 + 12


# Images and crops by their classes, from files


@pytest.fixture
def drawn_by_class(tmp_path):
    """Makes samples of eight images, all class 0; the last two each have one pixel of class 3."""
    paths = []
    for number in range(8):
        labels = np.zeros((40, 60), np.uint8)
        labels[30, 45] = 3 * (number > 5)
        labels[0, 0] = 1
        PIL.Image.fromarray(labels).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    columns = {"image": RgbImage(), "label_map": LabelMap(label_space="camvid11"), "image_id": datasets.Value("string")}
    table = {"image": paths, "label_map": paths, "image_id": [str(number) for number in range(8)]}
    dataset = datasets.Dataset.from_dict(table, features=datasets.Features(columns))

    def make(crops, images, parts=1, **settings):
        sets = [dataset.select(range(part * 8 // parts, (part + 1) * 8 // parts)) for part in range(parts)]
        indices = [class_index(entry, 0) for entry in sets]
        transform = TrainingTransform(processor(), (10, 12), base_size=60, scale_range=(1.0, 1.0))
        whole = sets[0] if parts == 1 else torch.utils.data.ConcatDataset(sets)
        return TrainingSamples(whole, transform, 0, rare_classes=RareClasses(indices, crops, images, 1e-5), **settings)

    return make


def test_images_with_the_rarest_class_are_drawn_and_cropped_there(drawn_by_class):
    samples = drawn_by_class(crops=1.0, images=1.0)
    seen = [(samples.row(index), samples[index]["labels"]) for index in range(40)]
    assert {row for row, _ in seen} == {6, 7}
    assert all((labels == 3).any() for _, labels in seen)
    samples = drawn_by_class(crops=0.0, images=1.0)
    assert not all((samples[index]["labels"] == 3).any() for index in range(20))


def test_shares_of_crops_and_images(drawn_by_class):
    samples = drawn_by_class(crops=0.5, images=0.25)
    draws = 2000
    drawn = np.array([samples.row(index) != index % 8 for index in range(draws)])
    # Of drawn images an eighth happens to be the one in turn.
    assert abs(drawn.sum() - 0.25 * 7 / 8 * draws) < 5 * (0.22 * 0.78 * draws) ** 0.5
    # Half of the crops are placed, of drawn images as well; a crop from anywhere seldom shows the pixel.
    placed = [(samples.crop(index)[1] == 3).any() for index in np.flatnonzero(drawn)]
    assert abs(np.mean(placed) - 0.5) < 0.05 + 5 * (0.25 / len(placed)) ** 0.5


def test_a_drawn_image_comes_from_the_same_dataset(drawn_by_class):
    samples = drawn_by_class(crops=1.0, images=1.0, parts=2)
    rows = [samples.row(index) for index in range(200)]
    # The first half has no class 3: class 1 is its rarest, and all of its images have it.
    assert {row for index, row in enumerate(rows) if index % 8 < 4} == {0, 1, 2, 3}
    assert {row for index, row in enumerate(rows) if index % 8 >= 4} == {6, 7}


@pytest.mark.parametrize("workers", [0, 2])
def test_drawn_by_class_from_seed_epoch_and_index_only(drawn_by_class, workers):
    def epoch(samples, number, order):
        samples.set_epoch(number)
        loader = torch.utils.data.DataLoader(samples, sampler=order, batch_size=None, num_workers=workers)
        return {index: sample for index, sample in zip(order, loader, strict=True)}

    first = epoch(drawn_by_class(0.5, 0.5), 3, list(range(24)))
    again = epoch(drawn_by_class(0.5, 0.5), 3, list(range(23, -1, -2)))
    assert all(torch.equal(first[index][key], again[index][key]) for index in again for key in again[index])
    other = epoch(drawn_by_class(0.5, 0.5), 4, list(range(24)))
    assert any(not torch.equal(first[index]["labels"], other[index]["labels"]) for index in first)


def test_a_bad_image_that_was_drawn_is_replaced(drawn_by_class, tmp_path):
    samples = drawn_by_class(crops=1.0, images=1.0, skip_bad=True)
    (tmp_path / "6.png").write_bytes((tmp_path / "6.png").read_bytes()[:60])
    assert all((samples[index]["labels"] == 3).any() for index in range(20))
    assert samples.bad.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_steps_that_miss_the_largest_scale_are_refused():
    """0.5, 0.6 … 1.3 would be drawn."""
    with pytest.raises(ValueError, match=r"scale_step: steps of 0\.1 do not lead .* of scale_range \[0\.5, 1\.25\] to the other"):
        TrainingTransform(processor(), (8, 8), base_size=60, scale_range=(0.5, 1.25))


def test_one_mean_for_all_channels():
    """What lies beyond a turned image has the mean colour; `image_mean` may be one number."""
    one = RevHRNetImageProcessor(image_mean=0.5, image_std=0.25)
    transform = TrainingTransform(one, (60, 60), base_size=60, scale_range=(1.0, 1.0), flip=0.0, rotation=45.0)
    image, label_map = PIL.Image.new("RGB", (60, 60)), PIL.Image.new("L", (60, 60))
    pixels = np.concatenate([np.asarray(transform.crop(image, label_map)[0]).reshape(-1, 3) for _ in range(5)])
    assert {tuple(colour) for colour in pixels.tolist()} >= {(0, 0, 0), (128, 128, 128)}
