"""Calibration against netcal, brute force and scipy; records and temperature in the config."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from transformers import SegformerImageProcessor

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf.errors import CheckpointError, DataError
from revhrnet_hf.evaluation import InferenceSettings, segment
from revhrnet_hf.evaluation.calibration import (
    NUM_BINS,
    TEMPERATURES,
    Calibration,
    CalibrationCounts,
    calibration_result,
    expected_calibration_error,
    fit_temperature,
    format_calibration,
    likelihood_at,
    likelihood_sums,
    reliability,
    save_temperature,
    temperature_of,
    total_counts,
)
from revhrnet_hf.evaluation.evaluator import evaluate_images
from revhrnet_hf.evaluation.records import ImageRecord
from revhrnet_hf.training.checkpoint_files import damage, write_checkpoint

from .tiny import NUM_LABELS, images, labelled_dataset, tiny_model


def drawn(seed, pixels=4000, classes=5, true_temperature=1.7):
    """Logits, and true classes drawn with their probabilities at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(classes, pixels, generator=generator)
    truth = torch.multinomial((logits / true_temperature).softmax(0).T, 1, generator=generator)[:, 0]
    return logits, truth


def counted(logits, truth, **options):
    """The counts of one row of pixels, as if it were an image."""
    bands = [(slice(0, 1), logits[:, None].clone().log_softmax(0))]
    return Calibration(**options).count(bands, logits.argmax(0)[None], truth[None])


def brute_force_likelihood(logits, truth, temperature):
    return F.cross_entropy((logits.double() / temperature).T, truth).item()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.3])
def test_error_is_netcals(temperature):
    netcal = pytest.importorskip("netcal.metrics")
    logits, truth = drawn(0)
    counts = counted(logits, truth, temperature=temperature)
    probabilities = (logits / temperature).softmax(0).T.numpy()
    expected = netcal.ECE(NUM_BINS).measure(probabilities, truth.numpy())
    assert expected > 0.01
    assert expected_calibration_error(counts.bins) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 1.7, 6.0])
def test_temperature_is_that_of_a_search_over_all_logits(true_temperature):
    logits, truth = drawn(1, true_temperature=true_temperature)
    counts = counted(logits, truth)
    found = minimize_scalar(
        lambda inverse: brute_force_likelihood(logits, truth, 1 / inverse),
        bounds=(1 / 16, 4),
        method="bounded",
        options={"xatol": 1e-7},
    )
    assert fit_temperature(counts) == pytest.approx(1 / found.x, rel=5e-4)
    for temperature in (0.3, 1.0, 1.1, 1 / found.x, 9.0):
        expected = brute_force_likelihood(logits, truth, temperature)
        assert likelihood_at(counts, temperature) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 40.0])
def test_likelihood_beyond_the_grid_is_not_known(temperature):
    logits, truth = drawn(1)
    counts = counted(logits, truth)
    result = calibration_result(counts, temperature)
    assert np.isnan(result["checkpoint"]["negative_log_likelihood"])
    assert format_calibration(result).splitlines()[1].endswith(" –")
    for end in (0.25, 16.0):
        assert likelihood_at(counts, end) == pytest.approx(brute_force_likelihood(logits, truth, end), rel=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_temperature_is_netcals(classes):
    scaling = pytest.importorskip("netcal.scaling").TemperatureScaling()
    logits, truth = drawn(2, classes=classes)
    probabilities = logits.double().softmax(0).T.numpy()
    scaling.fit(probabilities[:, 1] if classes == 2 else probabilities, truth.numpy())
    # What netcal calls temperature is the factor of the logits.
    assert 1 / fit_temperature(counted(logits, truth)) == pytest.approx(scaling.temperature.item(), rel=1e-3)


def test_sums_are_the_derivatives():
    logits, truth = drawn(3, pixels=50)
    inverse = torch.tensor(1 / np.array(TEMPERATURES), requires_grad=True)
    loss = torch.stack([F.cross_entropy((beta * logits.double()).T, truth, reduction="sum") for beta in inverse])
    [slope] = torch.autograd.grad(loss.sum(), inverse, create_graph=True)
    [curvature] = torch.autograd.grad(slope.sum(), inverse)
    expected = torch.stack([loss, slope, curvature]).detach().numpy()
    np.testing.assert_allclose(likelihood_sums(logits, truth), expected, rtol=1e-4, atol=1e-3)


def test_sums_over_many_pixels_are_exact():
    """Of one class, whose likelihood is 1 everywhere: what is added and what is taken away are the same numbers."""
    sums = likelihood_sums(torch.randn(1, 10_001), torch.zeros(10_001, dtype=torch.long))
    assert sums[1].tolist() == [0] * len(TEMPERATURES)


@given(st.integers(1, 4), st.integers(0, 100))
def test_ignored_and_unknown_pixels_do_not_count(parts, seed):
    """Any division into bands, with pixels left out by hand."""
    logits, truth = drawn(seed, pixels=60)
    logits, truth = logits.reshape(5, 6, 10), truth.reshape(6, 10)
    ignored = torch.rand(6, 10, generator=torch.Generator().manual_seed(seed)) < 0.3
    keep = ~ignored & (truth != 2)
    alone = counted(logits[:, keep], truth[keep], temperature=1.3)
    bands = [(slice(i, min(i + parts, 6)), logits.log_softmax(0)[:, i : i + parts].clone()) for i in range(0, 6, parts)]
    counter = Calibration(1.3, ignore_index=255, never_predicted=(2,))
    counts = counter.count(bands, logits.argmax(0), truth.masked_fill(ignored, 255))
    np.testing.assert_allclose(counts.bins, alone.bins, rtol=1e-6)
    np.testing.assert_allclose(counts.likelihood, alone.likelihood, rtol=1e-4, atol=1e-4)
    assert counts.pixels == keep.sum()


def test_nothing_to_fit_is_an_error():
    with pytest.raises(DataError, match="no labelled pixel"):
        fit_temperature(CalibrationCounts.zero())
    logits, _ = drawn(0)
    with pytest.raises(DataError, match=r"below 0\.25: hardly a pixel is wrong"):
        fit_temperature(counted(logits, logits.argmax(0)))
    with pytest.raises(DataError, match="above 16: confidences say nothing"):
        fit_temperature(counted(logits, logits.argmin(0)))


def test_a_class_that_the_model_lacks_spoils_no_sum():
    logits, truth = drawn(0)
    logits[4] = torch.finfo(torch.float32).min / 4
    kept = truth != 4
    counts = counted(logits, truth, never_predicted=(4,))
    without = counted(logits[:4, kept], truth[kept])
    assert np.isfinite(counts.likelihood).all()
    assert fit_temperature(counts) == pytest.approx(fit_temperature(without), rel=1e-6)


def test_reliability_by_bins():
    bins = np.zeros((3, NUM_BINS))
    bins[:, -1] = 10, 7, 9.9
    rows = reliability(bins)
    assert list(rows[-1].values()) == pytest.approx([14 / 15, 1, 10, 0.7, 0.99])
    assert rows[0]["accuracy"] is None
    assert expected_calibration_error(bins) == pytest.approx(0.29)


SETTINGS = {
    "whole": InferenceSettings(),
    "windows, flipped": InferenceSettings((32, 40), flip=True),
    "scales": InferenceSettings(scales=(1.0, 1.4)),
    "exp": InferenceSettings((32, 40), flip=True, average="exp"),
}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image_processor():
    return SegformerImageProcessor(do_resize=False)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_counts_of_a_dataset_are_those_of_the_probabilities(model, image_processor, settings):
    """Against netcal on the probabilities that `segment` gives, of all labelled pixels together."""
    netcal = pytest.importorskip("netcal.metrics")
    dataset, counts = labelled_dataset(), []
    evaluate_images(
        model,
        image_processor,
        dataset,
        range(len(dataset)),
        NUM_LABELS,
        settings=settings,
        calibration=Calibration(),
        each_image=lambda image, _: counts.append(image.calibration),
    )
    probabilities, truth = [], []
    for row in dataset:
        found = segment(model, image_processor, row["image"], settings, return_probabilities=True).probabilities
        label_map = np.array(row["label_map"])
        probabilities.append(found[:, label_map != 255].T)
        truth.append(label_map[label_map != 255])
    probabilities, truth = np.concatenate(probabilities), np.concatenate(truth)
    total = total_counts(counts)
    assert total.pixels == len(truth)
    assert total.bins[1].sum() == (probabilities.argmax(1) == truth).sum()
    assert expected_calibration_error(total.bins) == pytest.approx(netcal.ECE(NUM_BINS).measure(probabilities, truth), abs=1e-5)
    expected = -np.log(probabilities[np.arange(len(truth)), truth].astype(float)).mean()
    assert likelihood_at(total, 1.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_temperature_of_the_config_changes_confidence_alone(image_processor, settings):
    """The label map stays; confidence and probabilities are those of p^(1/T), normalised."""
    model, image = tiny_model(), images()[1]
    before = segment(model, image_processor, image, settings, return_confidence=True, return_probabilities=True)
    model.config.confidence_temperature = 2.5
    after = segment(model, image_processor, image, settings, return_confidence=True, return_probabilities=True)
    assert np.array_equal(before.label_map, after.label_map)
    powers = before.probabilities.astype(float) ** (1 / 2.5)
    np.testing.assert_allclose(after.probabilities, powers / powers.sum(0), atol=1e-5)
    np.testing.assert_allclose(after.confidence, after.probabilities.max(0), atol=1e-6)
    assert (after.confidence < before.confidence).mean() > 0.9


def test_temperature_in_the_config_of_our_networks(tiny_config, tmp_path):
    config = tiny_config(confidence_temperature=1.5)
    RevHRNetForSemanticSegmentation(config).save_pretrained(tmp_path)
    loaded = RevHRNetConfig.from_pretrained(tmp_path)
    assert temperature_of(loaded) == 1.5
    loaded.id2label = {0: "a", 1: "b"}  # other classes, which it was not fitted to
    assert temperature_of(loaded) == 1.0
    assert temperature_of(tiny_config()) == 1.0
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(Exception, match="confidence_temperature must be a finite number above 0"):
            tiny_config(confidence_temperature=bad)


def test_saving_the_temperature_changes_one_line(tiny_config, tmp_path):
    RevHRNetForSemanticSegmentation(tiny_config()).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for temperature in (1.25, 0.75):
        save_temperature(tmp_path, temperature)
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        lines, old = (files["config.json"].decode().splitlines() for files in (after, before))
        [changed] = [(was, now) for was, now in zip(old, lines, strict=True) if was != now]
        assert changed == ('  "confidence_temperature": 1.0,', f'  "confidence_temperature": {temperature},')
        del after["config.json"]
        assert after == {name: content for name, content in before.items() if name != "config.json"}
        assert RevHRNetForSemanticSegmentation.from_pretrained(tmp_path).config.confidence_temperature == temperature
    with pytest.raises(CheckpointError, match="is no folder"):
        save_temperature("someone/net", 1.2)


def test_a_saved_temperature_is_no_damage(tiny_config, tmp_path):
    """A run goes on from its checkpoint, unless the config was damaged before."""
    model = RevHRNetForSemanticSegmentation(tiny_config())
    write_checkpoint(tmp_path / "last", model.save_pretrained)
    save_temperature(tmp_path / "last", 1.25)
    assert damage(tmp_path / "last") is None
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "last", check=True)
    config = tmp_path / "last" / "config.json"
    config.write_text(config.read_text().replace('"w18"', '"w48"').replace("0.02", "0.03") + " ")
    save_temperature(tmp_path / "last", 1.5)
    assert "config.json is not what was written" in damage(tmp_path / "last")


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_killed_while_a_temperature_is_saved(tiny_config, tmp_path, kill_at):
    """The checkpoint is whole, with the old or the new temperature, and another one can be saved."""
    model = RevHRNetForSemanticSegmentation(tiny_config())
    write_checkpoint(tmp_path / "last", model.save_pretrained)
    killed = f"""
import os
from revhrnet_hf.evaluation.calibration import save_temperature
calls, replace = [], os.replace
def kill(*paths):
    calls.append(paths)
    if len(calls) == {kill_at}:
        os._exit(9)
    replace(*paths)
os.replace = kill
save_temperature({str(tmp_path / "last")!r}, 1.25)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    assert damage(tmp_path / "last") is None
    save_temperature(tmp_path / "last", 1.5)
    assert damage(tmp_path / "last") is None
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "last", check=True)


def test_temperature_of_another_librarys_config(image_processor, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    save_temperature(tmp_path, 2.0)
    loaded = type(model).from_pretrained(tmp_path)
    assert temperature_of(loaded.config) == 2.0
    loaded.save_pretrained(tmp_path / "again")  # Transformers refuses fields that it takes for settings of generation
    assert json.loads((tmp_path / "again" / "config.json").read_text())["confidence_temperature"] == 2.0
    loaded.config.confidence_temperature = "hot"
    with pytest.raises(CheckpointError, match="confidence_temperature 'hot'"):
        segment(loaded, image_processor, PIL.Image.new("RGB", (32, 32)), return_confidence=True)


def test_records_give_back_the_same_bits():
    logits, truth = drawn(4)
    counts = counted(logits, truth)
    record = ImageRecord(3, "c", (1, 4000), calibration=counts)
    again = ImageRecord.from_json(record.to_json())
    assert np.array_equal(again.calibration.bins, counts.bins)
    assert np.array_equal(again.calibration.likelihood, counts.likelihood)
    old = json.loads(ImageRecord(3, "c", (1, 4000)).to_json())
    del old["calibration"]  # of an evaluation that an earlier version began
    assert ImageRecord.from_json(json.dumps(old)).calibration is None
