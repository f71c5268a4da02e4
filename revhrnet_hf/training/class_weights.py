"""Class weights that are counted from the images that a stage trains on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..data.class_index import class_pixel_counts
from .data import TrainingSet
from .recipe import AUTO, EFFECTIVE_NUMBER, Recipe

DIGITS = 6  # significant ones of a weight in the recipe


def with_counted_weights(recipe: Recipe, sets: list[TrainingSet]) -> Recipe:
    """The recipe, with numbers for `class_weights` where it names a method; the numbers are those of all sets together.

    They stand for the method's beta, too, which is then not given.
    """
    if not isinstance(recipe.class_weights, str):
        return recipe
    pixels = np.concatenate([class_pixel_counts(entry.images, recipe.num_workers) for entry in sets])
    weights = METHODS[recipe.class_weights](pixels, recipe)
    numbers = [float(f"{weight:.{DIGITS}g}") for weight in weights]
    return replace(recipe, class_weights=numbers, effective_number_beta=None)


def median_frequency(pixels: np.ndarray) -> np.ndarray:
    """median(f) / f, with f the share of a class among the labelled pixels of the images in which it occurs (arXiv 1411.4734).

    Args:
        pixels: (images, classes), the labelled pixels of each class in each image.

    Returns:
        (classes,); 1 for a class that does not occur, which has no say in the median.
    """
    of_class = pixels.sum(0)
    is_present = of_class > 0
    around = ((pixels > 0) * pixels.sum(1, keepdims=True)).sum(0)
    share = of_class[is_present] / around[is_present]
    weights = np.ones(len(of_class))
    weights[is_present] = np.median(share) / share
    return weights


def effective_number(pixels: np.ndarray, beta: float | None) -> np.ndarray:
    """(1 − β) / (1 − βⁿ), with n the pixels of a class, scaled to a mean of 1 over the classes that occur (arXiv 1901.05555).

    Args:
        pixels: (images, classes), the labelled pixels of each class in each image.
        beta: 0 weights all classes alike, 1 in the limit by inverse frequency; None: (N − 1) / N with N all labelled pixels.

    Returns:
        (classes,); 1 for a class that does not occur.
    """
    of_class = pixels.sum(0)
    is_present = of_class > 0
    counts = of_class[is_present]
    log_beta = np.log1p(-1 / max(2, counts.sum())) if beta is None else np.log(beta) if beta > 0 else -np.inf
    numbers = -np.expm1(counts * log_beta)  # the factor 1 − β falls out
    weights = np.ones(len(of_class))
    weights[is_present] = (1 / numbers) / np.mean(1 / numbers)
    return weights


METHODS: dict[str, Callable[[np.ndarray, Recipe], np.ndarray]] = {
    AUTO: lambda pixels, recipe: median_frequency(pixels),
    EFFECTIVE_NUMBER: lambda pixels, recipe: effective_number(pixels, recipe.effective_number_beta),
}
