"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021), by class.

It is the IoU of what lies near a class's border, inside it: as strict on thin and small things as on large ones.
"""

import math

import numpy as np
import scipy.ndimage

from ..errors import DataError

DILATION_RATIO = 0.02  # of the image's diagonal; the paper's


def boundary_counts(
    predictions: np.ndarray, references: np.ndarray, num_classes: int, ignore_index: int = 255, ratio: float = DILATION_RATIO
) -> np.ndarray:
    """Pixels near the borders of each class, in one image.

    Near is what a square of side 2d + 1 around it shows something else for, or the world outside the image, with
    d = max(1, round(ratio × diagonal)). Ignored pixels count nowhere; to both maps they are another area, with a border.

    Args:
        predictions, references: (height, width) class ids; references may hold `ignore_index`.

    Returns:
        (3, num_classes) int64: pixels in both maps' bands, in the references', in the predictions'. Sum over images.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.shape != references.shape:
        raise DataError(f"predictions of shape {predictions.shape} and references of shape {references.shape} differ")
    distance = max(1, round(ratio * math.hypot(*references.shape)))
    ignored = references == ignore_index
    true_band = _near_border(references, distance) & ~ignored
    predicted_band = _near_border(np.where(ignored, ignore_index, predictions), distance) & ~ignored
    both = true_band & predicted_band & (predictions == references)
    return np.stack(
        [
            np.bincount(references[both], minlength=num_classes),
            np.bincount(references[true_band], minlength=num_classes),
            np.bincount(predictions[predicted_band], minlength=num_classes),
        ]
    )


def boundary_scores(counts: np.ndarray) -> dict:
    """`boundary_iou` (mean over the classes that have a border anywhere) and `per_category_boundary_iou`.

    Args:
        counts: (3, num_classes), the sum of `boundary_counts` over the images.
    """
    both, true, predicted = counts
    union = true + predicted - both
    iou = np.divide(both, union, out=np.full(len(union), np.nan), where=union > 0)
    return {
        "boundary_iou": float(np.nanmean(iou)) if (union > 0).any() else math.nan,
        "per_category_boundary_iou": iou.tolist(),
    }


def _near_border(label_map, distance):
    """Where the square around a pixel is not of one class only: the minimum and the maximum differ."""
    # Outside the image lies another class, as in the paper's own program.
    outside = int(label_map.max(initial=0)) + 1
    padded = np.pad(label_map.astype(np.int32), 1, constant_values=outside)
    side = 2 * distance + 1
    lowest = scipy.ndimage.minimum_filter(padded, side, mode="nearest")
    highest = scipy.ndimage.maximum_filter(padded, side, mode="nearest")
    return (lowest != highest)[1:-1, 1:-1]
