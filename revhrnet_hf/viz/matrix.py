"""Confusion matrices as they are shown: rows add up to 1, and absent classes are left out."""

from collections.abc import Sequence

import numpy as np


def shares_of_truth(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Of each true class's pixels, the share that was predicted as each class.

    Classes that occur neither in truth nor in prediction are left out, unless no class occurs at all.

    Args:
        matrix: (classes, classes) counts of pixels, rows truth, columns prediction.
        names: of the classes.

    Returns:
        (shown, shown) shares from 0 to 1; NaN in the row of a class that is never true. And the names of the classes shown.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    occurring = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
    shown = np.flatnonzero(occurring if occurring.any() else ~occurring)
    matrix = matrix[np.ix_(shown, shown)]
    counts = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, counts, out=np.full_like(matrix, np.nan), where=counts > 0)
    return shares, [names[index] for index in shown]
