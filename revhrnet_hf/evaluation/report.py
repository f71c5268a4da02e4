"""Reports (viz/report.py) of a dataset that was scored: which images are shown, and what is said about the data."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..images import orient_to_fit
from ..viz.report import ShownImage

MOST_SHOWN = 3  # best, and as many worst images
RESTRICTED = {"cityscapes": "Cityscapes", "mapillary_vistas": "Mapillary Vistas"}
"""Loaders of datasets whose terms forbid to pass on images and annotations, and the datasets' names."""


def terms_of(loader: str) -> str:
    """What a report says about passing on the images in it.

    Args:
        loader: of the dataset.
    """
    contents = "This file contains images and annotations of the dataset"
    if loader in RESTRICTED:
        return (
            f"For yourself only. {contents}, and the terms of {RESTRICTED[loader]} forbid to pass them on: do not publish it or "
            "send it to others. revhrnet push leaves it out."
        )
    return (
        f"For yourself, unless the dataset's terms allow more. {contents}. Some publishers forbid to pass them on, for example "
        "those of Cityscapes and Mapillary Vistas. `revhrnet push` leaves this file out."
    )


def best_and_worst(mean_ious: np.ndarray, most: int = MOST_SHOWN) -> tuple[list[int], list[int]]:
    """Rows of the images to show: those of the highest mIoU, best first, and those of the lowest, worst first.

    No image is in both. Images without labelled pixels are left out. Of few images at most half are shown, but at least one.

    Args:
        mean_ious: of each image, NaN where no pixel is labelled.
    """
    known = [row for row in np.argsort(mean_ious, kind="stable").tolist() if not np.isnan(mean_ious[row])]
    if len(known) < 2:
        return [], known
    count = min(most, max(1, len(known) // 4))
    return known[: -count - 1 : -1], known[:count]


def shown_images(
    dataset, rows: Iterable[int], mean_ious: Sequence[float], predict: Callable[[int, dict], np.ndarray]
) -> Iterator[ShownImage]:
    """Images with truth and prediction, one by one, in the orientation in which they are scored.

    Args:
        dataset: with the columns `image`, `label_map` and `image_id`.
        rows: of the images.
        mean_ious: of each row of the dataset.
        predict: gives the predicted label map, (height, width) as the truth, of a row's number and its content.
    """
    for row in rows:
        content = dataset[row]
        content["image"] = orient_to_fit(content["image"], content["label_map"].size)
        prediction = predict(row, content)
        yield ShownImage(content["image_id"], float(mean_ious[row]), content["image"], np.array(content["label_map"]), prediction)
