"""The order in which a stage sees its images: drawn from seed and epoch, split into steps, forward passes and processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..errors import RecipeError


@dataclass(frozen=True)
class Mixture:
    """How many images an epoch takes from each of several datasets.

    An epoch is as long as all datasets together. A dataset that gives more images than it has is repeated, each time in a new
    order and with new augmentation; a dataset that gives fewer gives other images in each epoch.

    Args:
        lengths: images in each dataset.
        shares: each dataset's share of an epoch's images, relative to each other.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def counts(self) -> list[int]:
        """Images of each dataset in an epoch; those left over by rounding go to the datasets that lost most by it."""
        exact = [sum(self.lengths) * share / sum(self.shares) for share in self.shares]
        counts = [int(count) for count in exact]
        losers = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in losers[: sum(self.lengths) - sum(counts)]:
            counts[i] += 1
        return counts

    def order(self, generator: torch.Generator) -> torch.Tensor:
        """The images of an epoch, as indices into the concatenated datasets.

        When an image comes for the k-th time after its first, k times the whole length is added, so that it is augmented anew.
        """
        starts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        drawn = []
        for start, length, count in zip(starts, self.lengths, self.counts, strict=True):
            times = range(-(-count // length))
            passes = [start + torch.randperm(length, generator=generator) + time * sum(self.lengths) for time in times]
            drawn += [torch.cat(passes)[:count]] if passes else []
        order = torch.cat(drawn)
        return order[torch.randperm(len(order), generator=generator)]


class EpochBatches:
    """A batch sampler for one process: yields the indices of the images of each of its forward passes in an epoch.

    The images are permuted by seed and epoch only (for several datasets, by their `Mixture`). Each step takes the next
    `batch_size` of them and splits them over forward passes and processes. The images left over at the end of an epoch are
    skipped, as in HRNet; another epoch leaves out others.

    With `views`, only so many epochs draw images: each later one has those of the epoch `views` before it, in another order. The
    images of the first epochs are then numbered in the order in which they come (`places`).
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        passes: int,
        num_processes: int,
        process_index: int,
        seed: int,
        mixture: Mixture | None = None,
        views: int | None = None,
    ):
        self.num_samples, self.batch_size, self.seed, self.mixture = num_samples, batch_size, seed, mixture
        self.views = views
        self.passes, self.num_processes, self.process_index = passes, num_processes, process_index
        self.epoch = 0
        self.first_step = 0
        if batch_size % (passes * num_processes):
            raise RecipeError(
                f"batch_size {batch_size} cannot be split evenly over {num_processes} processes with {passes} forward passes "
                f"a step (gradient_accumulation_steps): {_ways_to_split(batch_size, passes, num_processes)}"
            )
        if num_samples < batch_size:
            raise RecipeError(f"batch_size {batch_size} is more than the {num_samples} images of the training split")

    def start_at(self, epoch: int, step: int) -> None:
        """Begin the iteration with step `step` (from 0) of `epoch`; images of earlier steps are not loaded."""
        self.epoch, self.first_step = epoch, step

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.num_samples // self.batch_size

    @property
    def view(self) -> int:
        """The epoch whose images this epoch has: with `views` one of the first, else itself."""
        return self.epoch if self.views is None else self.epoch % self.views

    def places(self, step: int) -> list[list[int]]:
        """The numbers of the images of this process in each forward pass of step `step` (from 0) of the epoch, with `views`."""
        numbers = self.view * self.steps * self.batch_size + self._split(self._positions())
        return numbers[step * self.passes : (step + 1) * self.passes, self.process_index].tolist()

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        passes = self._passes()[self.first_step * self.passes :, self.process_index]
        yield from passes.tolist()

    def images(self, step: int, forward_pass: int) -> list[int]:
        """The images that all processes together see in one forward pass of step `step` (from 0) of the epoch."""
        return self._passes()[step * self.passes + forward_pass].flatten().tolist()

    def _passes(self) -> torch.Tensor:
        """(forward passes of the epoch, processes, images)."""
        generator = self._generator(self.view)
        order = self.mixture.order(generator) if self.mixture else torch.randperm(self.num_samples, generator=generator)
        return self._split(order[self._positions()])

    def _positions(self) -> torch.Tensor:
        """For each image of the epoch its position in the epoch that drew it."""
        count = self.steps * self.batch_size
        if self.epoch == self.view:
            return torch.arange(count)
        return torch.randperm(count, generator=self._generator(self.epoch))

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)

    def _split(self, of_images: torch.Tensor) -> torch.Tensor:
        return of_images.view(self.steps * self.passes, self.num_processes, -1)


def _ways_to_split(batch_size: int, passes: int, num_processes: int) -> str:
    share = passes * num_processes
    below, above = batch_size // share * share, (batch_size // share + 1) * share
    sizes = " or ".join(str(size) for size in (below, above) if size)
    counts = [str(count) for count in range(1, batch_size // passes + 1) if batch_size % (passes * count) == 0]
    processes = f"start {', '.join(counts)} processes, or " if counts else ""
    return f"{processes}give batch_size {sizes} (and learning_rate in proportion, as is usual)"
