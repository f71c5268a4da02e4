"""The joint augmentation of image and label map: random scale, crop and flip, as in HRNet (arXiv 1908.07919); and, where a
recipe says so, rotation, crops that are placed or drawn again by their classes, and changes of the image's pixels alone."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from torch.utils.data import ConcatDataset
from torchvision.transforms.v2 import functional as TF

from ..errors import DataError
from ..models.image_processing_pil_revhrnet import nearest_source_indices
from .augmentation import uniform
from .features import OpenedRows
from .listing import mismatch
from .rare_classes import RareClasses

MOST_REDRAWS = 10  # of a crop that one class fills too much, as in mmsegmentation

Distortion = Callable[[PIL.Image.Image, torch.Generator | None], PIL.Image.Image]
"""Changes the pixels of an image (RGB) but not its size; see augmentation.py."""


def scale_fault(scale_range: Sequence[float], scale_step: float | None) -> str | None:
    """Why scales cannot be drawn from a range in steps; None if they can."""
    low, high = scale_range
    steps = 0.0 if scale_step is None else (high - low) / scale_step
    if abs(steps - round(steps)) <= 1e-6:
        return None
    return (
        f"steps of {scale_step} do not lead from one end of scale_range {list(scale_range)} to the other, and both are to be "
        "drawn: give a step that divides it"
    )


class Window(NamedTuple):
    """A part of a scaled image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class ScaledPair:
    """An image and its label map scaled to `size` (width, height). Only the windows that are asked for are computed.

    The image is resized with Pillow's antialiased bilinear filter, the label map by nearest neighbour.
    """

    def __init__(self, image: PIL.Image.Image, label_map: PIL.Image.Image, size: tuple[int, int]):
        self._image, self._label_map = image, label_map
        self.width, self.height = size

    def pixels(self, window: Window) -> PIL.Image.Image:
        # The window's box in the unscaled image. Pillow's filter also reads pixels beyond the box, so the result equals a crop of
        # the whole scaled image, except for rounding (at most 2 grey levels).
        across, down = self._image.width / self.width, self._image.height / self.height
        top, left, height, width = window
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return self._image.resize((width, height), Resampling.BILINEAR, box)

    def labels(self, window: Window) -> np.ndarray:
        top, left, height, width = window
        rows = nearest_source_indices(self._image.height, self.height)[top : top + height]
        columns = nearest_source_indices(self._image.width, self.width)[left : left + width]
        # Only the needed part is converted to an array.
        part = self._label_map.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        return np.asarray(part).take(rows - rows[0], 0).take(columns - columns[0], 1)

    def decode_labels(self) -> None:
        """Decodes the whole label map, so that several windows do not decode it several times."""
        self._label_map = self._label_map.crop((0, 0, *self._image.size))

    def scaled_place(self, pixel: int) -> tuple[float, float]:
        """(y, x) of a pixel's centre; the pixel is row × width + column in the unscaled label map."""
        row, column = divmod(pixel, self._image.width)
        return (row + 0.5) * self.height / self._image.height, (column + 0.5) * self.width / self._image.width


class Rotation:
    """Turns a window of a scaled image about its centre. Corners show what lies beyond the window, where the image goes on.

    Args:
        degrees: counter-clockwise.
        window: the part of the scaled image.
        size: (width, height) of the scaled image.

    Attributes:
        source: the part of the scaled image that is turned: the window grown to hold its turned corners, inside the image.
    """

    def __init__(self, degrees: float, window: Window, size: tuple[int, int]):
        self._size = window.width, window.height
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        middle_x, middle_y = window.left + window.width / 2, window.top + window.height / 2
        reach_x = (window.width * abs(cos) + window.height * abs(sin)) / 2 + 1  # 1 for the bilinear filter
        reach_y = (window.width * abs(sin) + window.height * abs(cos)) / 2 + 1
        left, right = max(0, math.floor(middle_x - reach_x)), min(size[0], math.ceil(middle_x + reach_x))
        top, bottom = max(0, math.floor(middle_y - reach_y)), min(size[1], math.ceil(middle_y + reach_y))
        self.source = Window(top, left, bottom - top, right - left)
        half_x, half_y = window.width / 2, window.height / 2
        self._matrix = (
            *(cos, -sin, middle_x - left - cos * half_x + sin * half_y),
            *(sin, cos, middle_y - top - sin * half_x - cos * half_y),
        )

    def turned(self, source: PIL.Image.Image, resample: Resampling, fill: Any) -> PIL.Image.Image:
        """The turned window, from the content of `source`; pixels outside the image are `fill`."""
        return source.transform(self._size, PIL.Image.Transform.AFFINE, self._matrix, resample, fillcolor=fill)

    def outside(self) -> PIL.Image.Image:
        """A mask (L): 255 where the turned window shows nothing of the image."""
        return self.turned(PIL.Image.new("L", (self.source.width, self.source.height)), Resampling.NEAREST, 255)


class TrainingTransform:
    """Scales, crops, flips, normalises and pads one image with its label map.

    The image is scaled so that its long side is `base_size` × a factor (antialiased bilinear; labels by nearest neighbour). If
    the result is larger than `crop_size`, it is cropped. Only the crop is computed, so that the cost depends on the crop's size
    and not on the image's. If the result is smaller, it is padded at the bottom and right: the image with 0 after normalisation,
    which is the mean colour, the labels with `ignore_index`.

    The order is: scale, crop, rotation, flip, distortions, normalisation, padding.

    Args:
        image_processor: rescales and normalises, with the backbone's mean and std.
        crop_size: (height, width) of the output, in pixels.
        base_size: the long side at factor 1, in pixels.
        scale_range: smallest and largest factor.
        scale_step: the step between possible factors; both ends of the range are possible. None draws from the whole range.
        flip: probability of a left-right flip.
        ignore_index: the label of padded pixels, up to 255.
        rotation: the most that a crop is turned in either direction, in degrees (bilinear; labels by nearest neighbour). Where it
            then shows nothing of the image, it has the mean colour, rounded to a grey level, and `ignore_index`.
        max_class_share: a crop is drawn again, up to `MOST_REDRAWS` times, while one class has more than this share of its
            labelled pixels, or none is labelled (`cat_max_ratio` of mmsegmentation, DINOv3 and EoMT); None: never.
        distortions: changes of the crop's pixels, applied one after another (augmentation.py).

    Raises:
        ValueError: the steps do not lead from one end of the range to the other.
    """

    def __init__(
        self,
        image_processor,
        crop_size: tuple[int, int],
        base_size: int,
        scale_range: tuple[float, float] = (0.5, 2.1),
        scale_step: float | None = 0.1,
        flip: float = 0.5,
        ignore_index: int = 255,
        rotation: float = 0.0,
        max_class_share: float | None = None,
        distortions: Sequence[Distortion] = (),
    ):
        if (fault := scale_fault(scale_range, scale_step)) is not None:
            raise ValueError(f"scale_step: {fault}")
        self.image_processor = image_processor
        self.crop_size = tuple(crop_size)
        self.base_size = base_size
        self.scale_range = tuple(scale_range)
        self.scale_step = scale_step
        self.flip = flip
        self.ignore_index = ignore_index
        self.rotation = rotation
        self.max_class_share = max_class_share
        self.distortions = list(distortions)

    def __call__(self, image: PIL.Image.Image, label_map: PIL.Image.Image) -> dict[str, torch.Tensor]:
        """Augments `image` (RGB) and `label_map` (L, train ids), which must have the same size.

        Returns:
            `pixel_values` float32 (3, height, width) and `labels` uint8 (height, width), of `crop_size`.
        """
        return self.tensors(*self.crop(image, label_map))

    def crop(
        self,
        image: PIL.Image.Image,
        label_map: PIL.Image.Image,
        generator: torch.Generator | None = None,
        pixel: int | None = None,
        distorted: bool = True,
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """The first part of the augmentation, with Pillow and NumPy: all but normalisation and padding.

        Args:
            generator: the source of random numbers; torch's global generator if None.
            pixel: row × width + column in the label map. It comes to lie anywhere in the middle half of the crop's height and
                width with the same probability, nearer to the crop's rim only at the image's border. None: a crop from anywhere.
            distorted: whether `distortions` are applied.

        Returns:
            Pixels (RGB) and labels uint8 (height, width), not larger than `crop_size`.
        """
        ratio = round(self.base_size * self._draw_factor(generator)) / max(image.size)
        pair = ScaledPair(image, label_map, tuple(max(1, round(side * ratio)) for side in image.size))
        degrees = uniform(-self.rotation, self.rotation, generator) if self.rotation else 0.0
        window, labels = self._draw_window(pair, degrees, generator, pixel)
        pixels, outside = self._pixels(pair, window, degrees)
        if torch.rand((), generator=generator) < self.flip:
            pixels, labels = PIL.ImageOps.mirror(pixels), np.ascontiguousarray(labels[:, ::-1])
            outside = outside and PIL.ImageOps.mirror(outside)
        for distortion in self.distortions if distorted else ():
            pixels = distortion(pixels, generator)
        if outside is not None:
            pixels.paste(self._mean_colour(), mask=outside)
        return pixels, labels

    def _draw_window(self, pair: ScaledPair, degrees: float, generator, pixel: int | None) -> tuple[Window, np.ndarray]:
        """Where the crop lies in the scaled image, before it is turned, and its labels (turned)."""
        window = self._window(pair, generator, pixel)
        labels = self._labels(pair, window, degrees)
        if self.max_class_share is None:
            return window, labels
        for redraw in range(MOST_REDRAWS):
            if self._largest_share(labels) <= self.max_class_share:
                break
            if redraw == 0:
                pair.decode_labels()
            before, window = window, self._window(pair, generator, pixel)
            if window != before:  # an image that is not larger than the crop has only one
                labels = self._labels(pair, window, degrees)
        return window, labels

    def _window(self, pair: ScaledPair, generator, pixel: int | None) -> Window:
        sides, place = (pair.height, pair.width), (None, None) if pixel is None else pair.scaled_place(pixel)
        lengths = [min(side, most) for side, most in zip(sides, self.crop_size, strict=True)]
        starts = [_draw_start(*axis, generator) for axis in zip(sides, lengths, place, strict=True)]
        return Window(*starts, *lengths)

    def _largest_share(self, labels: np.ndarray) -> float:
        """Of the labelled pixels, the share of the class with most of them; 1 if there are none."""
        counts = np.bincount(labels.ravel(), minlength=256)
        counts[self.ignore_index] = 0
        return counts.max() / counts.sum() if counts.any() else 1.0

    def _labels(self, pair: ScaledPair, window: Window, degrees: float) -> np.ndarray:
        if degrees == 0:
            return pair.labels(window)
        rotation = Rotation(degrees, window, (pair.width, pair.height))
        labels = PIL.Image.fromarray(pair.labels(rotation.source))
        return np.array(rotation.turned(labels, Resampling.NEAREST, self.ignore_index))

    def _pixels(self, pair: ScaledPair, window: Window, degrees: float) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
        """The crop, and, if it is turned, the mask of what lies outside the image."""
        if degrees == 0:
            return pair.pixels(window), None
        rotation = Rotation(degrees, window, (pair.width, pair.height))
        pixels = pair.pixels(rotation.source)
        return rotation.turned(pixels, Resampling.BILINEAR, self._mean_colour()), rotation.outside()

    def _mean_colour(self) -> tuple[int, ...]:
        return tuple(round(255 * mean) for mean in self.image_processor.image_mean)

    def tensors(self, pixels: PIL.Image.Image, labels: np.ndarray) -> dict[str, torch.Tensor]:
        """The second part of the augmentation: normalises and pads the result of `crop`."""
        planes = TF.pil_to_tensor(pixels)
        processed = self.image_processor(planes, do_resize=False, do_pad=False)["pixel_values"][0]  # batching would copy it
        return {
            "pixel_values": self._pad(torch.as_tensor(processed), 0.0),
            "labels": self._pad(torch.from_numpy(labels), self.ignore_index),
        }

    def _draw_factor(self, generator) -> float:
        low, high = self.scale_range
        if self.scale_step is None:
            return low + (high - low) * torch.rand((), generator=generator).item()
        steps = round((high - low) / self.scale_step)
        return low + self.scale_step * torch.randint(steps + 1, (), generator=generator).item()

    def _pad(self, plane: torch.Tensor, value: float) -> torch.Tensor:
        bottom, right = (want - have for have, want in zip(plane.shape[-2:], self.crop_size, strict=True))
        return plane if bottom == right == 0 else F.pad(plane, (0, right, 0, bottom), value=value)


def _draw_start(side: int, length: int, place: float | None, generator) -> int:
    """Where a crop of `length` begins on a side of the image; `place` lies in its middle half as far as the ends allow."""
    slack = side - length
    first, last = 0, slack
    if place is not None:
        first = min(max(math.ceil(place - 0.75 * length), 0), slack)
        last = max(first, min(math.floor(place - 0.25 * length), slack))
    return first + torch.randint(last - first + 1, (), generator=generator).item()


class TrainingSamples(torch.utils.data.Dataset):
    """A dataset with its training augmentation. All random draws depend only on (seed, epoch, index).

    So a resumed run sees the same images, with any number of workers and processes. `set_epoch` also reaches workers that are
    already running.

    Args:
        dataset: columns `image`, `label_map`, `image_id`, as from `load_segmentation_dataset`; or a concatenation of several.
        transform: the augmentation. Its `crop` gets files that are opened but not decoded (`RgbImageFile`), so that only the rows
            that the crop needs are decoded. `revhrnet audit` finds damage in the other rows, and unknown ids there.
        seed: the run's seed.
        skip_bad: whether to replace an unusable image by the next one and mark it in `bad`; else it is an error.
        rare_classes: draws some of the images, and places some of the crops, by their classes.
        distorted: for each of the concatenated datasets, whether its images get the transform's distortions; None: all do.

    Attributes:
        bad: (images,) uint8, 1 for each image that was unusable at least once; all workers write to it.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | ConcatDataset,
        transform: TrainingTransform,
        seed: int,
        skip_bad: bool = False,
        rare_classes: RareClasses | None = None,
        distorted: Sequence[bool] | None = None,
    ):
        parts = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        self._rows = ConcatDataset([OpenedRows(part) for part in parts])
        self.skip_bad = skip_bad
        self.bad = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()
        self.transform = transform
        self.seed = seed
        self.rare_classes = rare_classes
        self.distorted = [True] * len(parts) if distorted is None else list(distorted)
        # In shared memory, because persistent workers keep their own copy of this object.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The augmented image `index`. An index beyond the end repeats an image with other random draws.

        Raises:
            DataError: the image cannot be read or does not fit its label map; with `skip_bad`, no image can be used.
        """
        return self.transform.tensors(*self.crop(index))

    def crop(self, index: int) -> tuple[PIL.Image.Image, np.ndarray]:
        """The augmented image `index` before normalisation and padding: pixels (RGB) and labels; errors as for `self[index]`."""
        row, class_id = self._draw_row(index)
        draw_seed = _draw_seed(self.seed, int(self._epoch), index)
        if self.skip_bad:
            return self._next_usable(row, class_id, draw_seed)
        return self._crop(row, class_id, draw_seed)

    def row(self, index: int) -> int:
        """The row of the image `index` in the dataset. It depends on the epoch if images are drawn by their classes."""
        return self._draw_row(index)[0]

    def _draw_row(self, index: int) -> tuple[int, int | None]:
        """The row, and the class for which it was drawn, if any."""
        row = index % len(self)
        if self.rare_classes is None:
            return row, None
        generator = torch.Generator().manual_seed(_draw_seed(self.seed, int(self._epoch), index, "image"))
        return self.rare_classes.draw_image(row, generator)

    def _next_usable(self, row: int, class_id: int | None, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        last: DataError | None = None
        for step in range(len(self)):
            candidate = (row + step) % len(self)
            # Marked images are tried again: another crop may not need the damaged part, and the result must not depend on when a
            # worker marks an image.
            try:
                return self._crop(candidate, class_id, draw_seed)
            except DataError as error:
                last = error
                self.bad[candidate] = 1
        raise DataError(f"None of the {len(self)} training images can be used. {last or ''}".rstrip())

    def _crop(self, row: int, class_id: int | None, draw_seed: int) -> tuple[PIL.Image.Image, np.ndarray]:
        example = self._read(row)
        # Not torch's global generator: seeding that one records a traceback each time, which is slow.
        generator = torch.Generator().manual_seed(draw_seed)
        pixel = None if self.rare_classes is None else self.rare_classes.draw_pixel(row, class_id, generator)
        distorted = self.distorted[bisect_right(self._rows.cumulative_sizes, row)]
        return self.transform.crop(example["image"], example["label_map"], generator, pixel, distorted)

    def _read(self, row: int) -> dict[str, Any]:
        example = self._rows[row]
        image, label_map = example["image"], example["label_map"]
        image.orient_to_fit(label_map.size)
        if image.size != label_map.size:
            raise DataError(
                mismatch(f"Image {example['image_id']}", image.size, image.orientation, "its label map", label_map.size)
            )
        return example


def _draw_seed(seed: int, epoch: int, index: int, *purpose: str) -> int:
    digest = hashlib.sha256(" ".join(map(str, (seed, epoch, index, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
