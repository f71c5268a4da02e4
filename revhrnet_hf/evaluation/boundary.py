"""Boundary IoU of each class (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021).

It is the IoU of the band of pixels along the inside of a class's boundary, so that it is as strict on thin and small objects as
on large ones.
"""

import math

import numpy as np
import scipy.ndimage

from ..errors import DataError
from .confusion import ratios

DILATION_RATIO = 0.02  # width of the band as a share of the image's diagonal, as in the paper


def boundary_counts(
    predictions: np.ndarray, references: np.ndarray, num_classes: int, ignore_index: int = 255, ratio: float = DILATION_RATIO
) -> np.ndarray:
    """Counts the pixels near the boundaries of each class in one image.

    A pixel is near a boundary if the square of side 2d + 1 around it holds a pixel of another class or reaches beyond the image,
    with d = max(1, round(ratio × diagonal)). Ignored pixels are not counted, and both maps have a boundary along them.

    Args:
        predictions, references: (height, width) class ids; references may hold `ignore_index`.

    Returns:
        (3, num_classes) int64: pixels in the bands of both maps, of the references, and of the predictions. Sum over images.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape:
        raise DataError(f"predictions of shape {predictions.shape} and references of shape {references.shape} differ")
    distance = max(1, round(ratio * math.hypot(*references.shape)))
    ignored = references == ignore_index
    true_band = _near_boundary(references, distance) & ~ignored
    predicted_band = _near_boundary(np.where(ignored, ignore_index, predictions), distance) & ~ignored
    both = true_band & predicted_band & (predictions == references)
    return np.stack(
        [
            np.bincount(references[both], minlength=num_classes),
            np.bincount(references[true_band], minlength=num_classes),
            np.bincount(predictions[predicted_band], minlength=num_classes),
        ]
    )


def boundary_scores(counts: np.ndarray) -> dict:
    """`per_category_boundary_iou`, and `boundary_iou`, its mean over the classes that have a boundary in any image.

    Args:
        counts: (3, num_classes), the sum of `boundary_counts` over the images.
    """
    both, true, predicted = counts
    union = true + predicted - both
    iou = ratios(both, union)
    return {
        "boundary_iou": float(np.nanmean(iou)) if (union > 0).any() else math.nan,
        "per_category_boundary_iou": iou.tolist(),
    }


def _near_boundary(label_map, distance):
    """Where the square around a pixel holds more than one class: its minimum and maximum differ."""
    # Outside the image lies another class, as in the paper's own code.
    outside = int(label_map.max(initial=0)) + 1
    padded = np.pad(label_map.astype(np.int32), 1, constant_values=outside)
    side = 2 * distance + 1
    lowest = scipy.ndimage.minimum_filter(padded, side, mode="nearest")
    highest = scipy.ndimage.maximum_filter(padded, side, mode="nearest")
    return (lowest != highest)[1:-1, 1:-1]
