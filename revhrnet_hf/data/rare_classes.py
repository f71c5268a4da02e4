"""Draws images and pixels by their classes, rare classes most often: rare-class sampling as in DAFormer (arXiv 2111.14887).

The probability of a class is softmax((1 − share of all labelled pixels) / temperature). DAFormer draws images so; here the crop
can be placed on a pixel of the class, too. (DAFormer draws the crop up to ten times until it holds enough of the class.)
"""

from collections.abc import Sequence

import numpy as np
import torch

from .augmentation import chance
from .class_index import ClassIndex


class RareClasses:
    """The classes of the training images, and what is drawn by them.

    Args:
        indices: of each dataset that is trained on, all with the same classes.
        crops: share of the crops that are placed on a pixel of a drawn class.
        images: share of the images that are replaced by an image with a drawn class, of the same dataset.
        temperature: of the classes' probabilities: the smaller, the more often the rarest classes are drawn.
    """

    def __init__(self, indices: Sequence[ClassIndex], crops: float, images: float, temperature: float):
        self.crops, self.images, self.temperature = crops, images, temperature
        self._indices = list(indices)
        self._starts = np.cumsum([0, *(len(index.pixels) for index in indices)])
        # For each dataset and class, the rows with the class.
        self._rows = [[np.flatnonzero(of_class) for of_class in index.pixels.T] for index in indices]
        totals = sum(index.pixels.sum(0) for index in indices)
        self._scores = (1 - totals / max(1, totals.sum())) / temperature

    def probabilities(self, occurring: np.ndarray) -> np.ndarray:
        """The probability of each class, (classes,), if only those where `occurring` (bool) is true can be drawn."""
        scores = np.where(occurring, self._scores, -np.inf)
        weights = np.exp(scores - scores[occurring].max())
        return weights / weights.sum()

    def draw_image(self, row: int, generator: torch.Generator) -> tuple[int, int | None]:
        """The row to take instead of `row`, and the class for which it is drawn; or `row` and None, as is usual.

        Rows count through all datasets. The dataset stays the same, so that the datasets' shares of an epoch do.
        """
        if not chance(self.images, generator):
            return row, None
        part = self._part_of(row)
        class_id = self._draw_class(np.array([len(rows) > 0 for rows in self._rows[part]]), generator)
        if class_id is None:
            return row, None
        rows = self._rows[part][class_id]
        drawn = rows[torch.randint(len(rows), (), generator=generator).item()]
        return int(self._starts[part] + drawn), class_id

    def draw_pixel(self, row: int, class_id: int | None, generator: torch.Generator) -> int | None:
        """The pixel (row × width + column in the label map of `row`) to place the crop on; None for any crop, as is usual.

        Args:
            row: counted through all datasets.
            class_id: the class for which the image was drawn; if None or not in this image, a class of the image is drawn.
        """
        if not chance(self.crops, generator):
            return None
        part = self._part_of(row)
        index, row = self._indices[part], row - self._starts[part]
        if class_id is None or not index.pixels[row, class_id]:
            class_id = self._draw_class(index.pixels[row] > 0, generator)
        if class_id is None:
            return None
        places = index.places_of(row, class_id)
        return int(places[torch.randint(len(places), (), generator=generator).item()])

    def _part_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _draw_class(self, occurring: np.ndarray, generator: torch.Generator) -> int | None:
        """A class; None if none occurs, as in an image without labels."""
        if not occurring.any():
            return None
        classes = np.flatnonzero(occurring)
        bounds = np.cumsum(self.probabilities(occurring)[classes])
        drawn = torch.rand((), generator=generator, dtype=torch.float64).item() * bounds[-1]
        # Rounding may take the number to the last bound.
        return int(classes[min(np.searchsorted(bounds, drawn, side="right"), len(classes) - 1)])
