"""How far confidences can be trusted: expected calibration error, reliability by bins, and the temperature that fits best.

The confidence of a pixel is the probability of its best class. A model is calibrated if, of the pixels with a confidence of 80 %,
80 % are right (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599). Temperature scaling divides the logits
by one number, which is chosen for the smallest negative log-likelihood of the labelled pixels.

No logits are kept. Each image gives counts by bins of confidence, and for a grid of temperatures the sums of the likelihood and
of its first two derivatives. The sums of all images determine the best temperature: the likelihood is convex in 1/temperature,
and between two points of the grid its derivative is interpolated by a cubic from both.

The temperature applies to the joined probabilities of an image (after windows, scales and flips were averaged). For an image that
the network sees once this is the same as dividing the logits.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicHermiteSpline

from ..errors import CheckpointError, DataError
from ..io import change_text
from ..text import table

NUM_BINS = 15  # as in Guo et al.
TEMPERATURES = tuple(2 ** (step / 4) for step in range(-8, 17))
"""The grid of temperatures, 1/4 to 16."""
LEAST_LOG_PROBABILITY = -1e4  # of a class that the model cannot predict; its square must stay finite in float32
FIELD = "confidence_temperature"  # in a checkpoint's config


@dataclass(eq=False)
class CalibrationCounts:
    """Counts of an image's labelled pixels, or of several images'.

    Attributes:
        bins: (3, NUM_BINS) float64: for each bin of confidence, equally wide from 0 to 1, the pixels, those predicted correctly,
            and the sum of their confidences.
        likelihood: (3, temperatures) float64: for each of `TEMPERATURES` the sum over the pixels of the negative log-likelihood,
            and of its first and second derivative in 1/temperature.
    """

    bins: np.ndarray
    likelihood: np.ndarray

    @classmethod
    def zero(cls) -> "CalibrationCounts":
        return cls(np.zeros((3, NUM_BINS)), np.zeros((3, len(TEMPERATURES))))

    def add(self, other: "CalibrationCounts") -> None:
        self.bins = self.bins + other.bins
        self.likelihood = self.likelihood + other.likelihood

    def to_json(self) -> dict[str, list]:
        return {"bins": self.bins.tolist(), "likelihood": self.likelihood.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, list]) -> "CalibrationCounts":
        return cls(np.array(values["bins"], float), np.array(values["likelihood"], float))

    @property
    def pixels(self) -> int:
        return int(self.bins[0].sum())


@dataclass(frozen=True)
class Calibration:
    """Counts the confidences of one image after another.

    Attributes:
        temperature: at which confidences are counted.
        ignore_index: the reference id of pixels that do not count.
        never_predicted: ids of classes that the model lacks. Their pixels do not count: no temperature could make them right.
    """

    temperature: float = 1.0
    ignore_index: int = 255
    never_predicted: tuple[int, ...] = ()

    def count(
        self, bands: Iterable[tuple[slice, torch.Tensor]], label_map: torch.Tensor, references: torch.Tensor
    ) -> CalibrationCounts:
        """Counts an image.

        Args:
            bands: of `log_probability_bands`: rows, and the log-probabilities (classes, number of rows, width).
            label_map: (height, width) predicted class ids.
            references: (height, width) true class ids, or `ignore_index`.
        """
        counts = CalibrationCounts.zero()
        for rows, log_probabilities in bands:
            truth = references[rows].to(log_probabilities.device).long()
            counted = truth != self.ignore_index
            for class_id in self.never_predicted:
                counted &= truth != class_id
            scores, truth = log_probabilities[:, counted].clamp_(min=LEAST_LOG_PROBABILITY), truth[counted]
            if truth.numel():
                counts.bins += self._bins(scores, label_map[rows][counted].to(truth.device) == truth)
                counts.likelihood += likelihood_sums(scores, truth)
        return counts

    def _bins(self, scores: torch.Tensor, correct: torch.Tensor) -> np.ndarray:
        confidence = (scores / self.temperature).softmax(0).amax(0).double().cpu().numpy()
        # On the CPU: a GPU adds up in another order each time.
        places = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        weights = (None, correct.cpu().numpy(), confidence)
        return np.stack([np.bincount(places, weight, NUM_BINS) for weight in weights])


def likelihood_sums(scores: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    """The sums of `CalibrationCounts.likelihood`.

    With β = 1/temperature and logits z, the negative log-likelihood of a pixel is log Σ exp(β z) − β z_true. Its derivatives in β
    are the mean of z under the softmax of β z, less z_true, and the variance of z.

    Args:
        scores: (classes, pixels) logits or log-probabilities.
        truth: (pixels,) int64.
    """
    of_truth = scores.gather(0, truth[None])[0].sum(dtype=torch.float64)
    sums = []
    for temperature in TEMPERATURES:
        scaled = scores / temperature
        total = scaled.logsumexp(0)
        probabilities = (scaled - total).exp_()
        weighted = probabilities.mul_(scores)
        mean = weighted.sum(0)
        variance = weighted.mul_(scores).sum(0) - mean.square()
        sums.append(torch.stack([part.sum(dtype=torch.float64) for part in (total, mean, variance)]))
    result = torch.stack(sums, dim=1).cpu().numpy()
    result[0] -= of_truth.item() / np.array(TEMPERATURES)
    result[1] -= of_truth.item()
    return result


def total_counts(counts: Iterable[CalibrationCounts]) -> CalibrationCounts:
    """The sum of all images, always in the order given, so that the same images give the same bits."""
    total = CalibrationCounts.zero()
    for each in counts:
        total.add(each)
    return total


def fit_temperature(counts: CalibrationCounts) -> float:
    """The temperature of the smallest negative log-likelihood, between the first and the last of `TEMPERATURES`.

    Raises:
        DataError: no pixel counts, or the best temperature lies outside the grid.
    """
    if not counts.pixels:
        raise DataError("no labelled pixel was counted, so no temperature can be fitted: choose a split with label maps")
    inverse = 1 / np.array(TEMPERATURES[::-1])  # rising
    _, slopes, curvatures = counts.likelihood[:, ::-1]
    after = int(np.searchsorted(slopes > 0, True))  # the slope rises with 1/temperature
    if after in (0, len(inverse)):
        if after == 0:
            found = f"above {TEMPERATURES[-1]:g}: confidences say nothing about what is right. Is the network trained"
        else:
            found = f"below {TEMPERATURES[0]:g}: hardly a pixel is wrong. Are these images that the network was trained on"
        raise DataError(f"no temperature can be fitted, as the best one is {found}?")
    near = slice(after - 1, after + 1)
    roots = CubicHermiteSpline(inverse[near], slopes[near], curvatures[near]).roots(extrapolate=False)
    return float(1 / roots[0])


def likelihood_at(counts: CalibrationCounts, temperature: float) -> float:
    """Mean negative log-likelihood of a pixel, interpolated by cubics; NaN at a temperature outside the grid."""
    inverse = 1 / np.array(TEMPERATURES[::-1])
    values, slopes = counts.likelihood[:2, ::-1]
    return float(CubicHermiteSpline(inverse, values, slopes, extrapolate=False)(1 / temperature)) / counts.pixels


def expected_calibration_error(bins: np.ndarray) -> float:
    """Σ (pixels of the bin / all pixels) · |accuracy − mean confidence| over the `CalibrationCounts.bins`; NaN without pixels."""
    pixels, correct, confidence = bins
    return float(np.abs(correct - confidence).sum() / pixels.sum()) if pixels.sum() else math.nan


def reliability(bins: np.ndarray) -> list[dict[str, Any]]:
    """For each bin its edges, pixels, accuracy and mean confidence, the last two None where the bin is empty."""
    rows = []
    for place, (pixels, correct, confidence) in enumerate(bins.T):
        shares = (
            {"accuracy": correct / pixels, "confidence": confidence / pixels}
            if pixels
            else dict.fromkeys(("accuracy", "confidence"))
        )
        rows.append({"from": place / NUM_BINS, "to": (place + 1) / NUM_BINS, "pixels": int(pixels), **shares})
    return rows


def calibration_result(
    before: CalibrationCounts,
    temperature: float,
    after: CalibrationCounts | None = None,
    fitted: float | None = None,
    not_fitted: str | None = None,
) -> dict[str, Any]:
    """The scores of a split's calibration, as they are written to JSON.

    Args:
        before: counted at `temperature`, that of the checkpoint.
        after: counted at `fitted`, the temperature that fits this split best; both None if none can be fitted.
        not_fitted: why none can be fitted.
    """

    def at(counts: CalibrationCounts, value: float) -> dict[str, Any]:
        return {
            "temperature": value,
            "expected_calibration_error": expected_calibration_error(counts.bins),
            "negative_log_likelihood": likelihood_at(before, value),
            "reliability": reliability(counts.bins),
        }

    result = {"pixels": before.pixels, "checkpoint": at(before, temperature)}
    if after is None:
        return {**result, "fitted": None, "not_fitted": not_fitted}
    return {**result, "fitted": at(after, fitted)}


def format_calibration(result: dict[str, Any]) -> str:
    """The scores of `calibration_result` as a table: at the checkpoint's own temperature, and at the one fitted to the split.

    A dash stands for what is not known.
    """
    titles = ["calibration", ">temperature", ">ECE %", ">negative log-likelihood"]
    names = {"checkpoint": "checkpoint", "fitted": "fitted to this split"}
    return table([titles, *([name, *_cells(result[part])] for part, name in names.items())])


def _cells(part: dict[str, Any] | None) -> list[str]:
    """The numbers at one temperature; dashes if no temperature was fitted."""
    if part is None:
        return ["–"] * 3
    likelihood = part["negative_log_likelihood"]
    return [
        f"{part['temperature']:.4g}",
        f"{100 * part['expected_calibration_error']:.2f}",
        "–" if math.isnan(likelihood) else f"{likelihood:.4f}",
    ]


def temperature_of(config) -> float:
    """The temperature at which a model's confidences are shown: its config's, or 1."""
    value = getattr(config, FIELD, None)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise CheckpointError(f"the checkpoint's config has {FIELD} {value!r}: it must be a finite number above 0")
    return float(value)


def save_temperature(checkpoint: str | Path, temperature: float) -> None:
    """Writes the temperature into a checkpoint's config.json, whole or not at all; else only its checksum changes.

    Raises:
        CheckpointError: the checkpoint is no folder, such as a name on the Hub.
    """
    file = Path(checkpoint) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"the temperature cannot be saved: {checkpoint} is no folder with a config.json: download it")
    settings = json.loads(file.read_text(encoding="utf-8"))
    others = [(name, value) for name, value in settings.items() if name != FIELD]
    place = next((place for place, (name, _) in enumerate(others) if name > FIELD), len(others))
    others.insert(place, (FIELD, temperature))
    # In Transformers' own form and order, so that only this line of the file changes.
    change_text(file, json.dumps(dict(others), indent=2) + "\n")


def classes_without_sources(sources: Sequence[Sequence[int]] | None) -> tuple[int, ...]:
    """Ids of the classes that a model never predicts; `sources` as in `segment`."""
    return tuple(class_id for class_id, of in enumerate(sources or ()) if not of)
