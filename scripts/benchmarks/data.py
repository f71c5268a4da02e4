"""Images per second of loading with augmentation, as a ratio to only decoding the same files with the same number of workers."""

import re
import statistics
import tempfile
import time
from pathlib import Path

import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import TrainingSamples, TrainingTransform, load_segmentation_dataset
from revhrnet_hf.data.features import RgbImage
from revhrnet_hf.data.loading import find_builder
from revhrnet_hf.synthetic import write_cityscapes, write_mapillary_vistas

from .timing import print_rows

DRAWN = {"cityscapes": (write_cityscapes, (1024, 2048)), "mapillary_vistas": (write_mapillary_vistas, (3000, 4000))}


def add_arguments(parser):
    parser.add_argument("--dataset", choices=DRAWN, nargs="+", default=list(DRAWN), help="default: both")
    parser.add_argument("--data_dir", help="folder of one real dataset; by default scenes of the same size are drawn")
    parser.add_argument("--images", type=int, default=96, help="images in each round (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measured passes (default: %(default)s)")


def main(arguments) -> dict:
    torch.set_num_threads(1)  # leave the processor to the workers
    if arguments.data_dir:
        (name,) = arguments.dataset
        results = [benchmark_data(name, Path(arguments.data_dir), arguments)]
    else:
        results = [benchmark_drawn(name, arguments) for name in arguments.dataset]
    rates = {"bare_per_s": ".2f", "ours_per_s": ".2f", "median_ratio": ".3f"}
    print_rows(results, {"dataset": "", "size": "", **rates, "bare_worker_mib": ".0f", "ours_worker_mib": ".0f"})
    return {"data": results}


def benchmark_drawn(name: str, arguments) -> dict:
    write, size = DRAWN[name]
    with tempfile.TemporaryDirectory() as folder:
        # A few different scenes are enough: nothing that is measured caches them.
        write(Path(folder), {"train": min(4, arguments.images)}, size)
        return benchmark_data(name, Path(folder), arguments)


def benchmark_data(name: str, data_dir: Path, arguments) -> dict:
    images = load_segmentation_dataset(name, data_dir, "train")
    order = [index % len(images) for index in range(arguments.images)]
    transform = TrainingTransform(RevHRNetImageProcessor(), crop_size=(512, 1024), base_size=2048)
    ours = Metered(TrainingSamples(images, transform, seed=0), order)
    builder, root, space = find_builder(name, data_dir, None)
    bare = Metered(Decoded(builder.list_samples(root, "train", space)), order)
    pairs = []
    for _ in range(arguments.rounds + 1):
        pairs.append((one_pass(bare, arguments.num_workers), one_pass(ours, arguments.num_workers)))
    pairs = pairs[1:]  # the first pair fills the page cache
    width, height = images[0]["image"].size
    return {
        "dataset": name,
        "size": f"{width}×{height}",
        "bare_per_s": statistics.median(len(order) / bare_s for (bare_s, _), _ in pairs),
        "ours_per_s": statistics.median(len(order) / ours_s for _, (ours_s, _) in pairs),
        "median_ratio": statistics.median(bare_s / ours_s for (bare_s, _), (ours_s, _) in pairs),
        "bare_worker_mib": max(mib for (_, mib), _ in pairs),
        "ours_worker_mib": max(mib for _, (_, mib) in pairs),
    }


class Decoded(Dataset):
    """The least work that any loader must do: decode image and label map, and discard them."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, index):
        sample = self.samples[index]
        RgbImage().decode_example({"path": sample.image, "bytes": None})
        with PIL.Image.open(sample.label_map) as label_map:
            label_map.load()


class Metered(Dataset):
    """Reads `images` in the given order; also returns the worker's peak of memory since its start, in MiB."""

    def __init__(self, images: Dataset, order: list[int]):
        self.images, self.order = images, order
        self.at_start: float | None = None

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        if self.at_start is None:
            Path("/proc/self/clear_refs").write_text("5")  # otherwise the peak of a forked worker is that of its parent
            self.at_start = peak_mib()
        sample = self.images[self.order[index]]
        return sample, peak_mib() - self.at_start


def peak_mib() -> float:
    """Largest resident memory of this process (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def one_pass(images: Metered, num_workers: int) -> tuple[float, float]:
    """Seconds for all images, and the peak of memory of a worker in MiB.

    The time includes the start of the workers and the conversion of the labels as in training.
    """
    loader = DataLoader(images, batch_size=None, num_workers=num_workers)
    started = time.perf_counter()
    most = 0.0
    for sample, mib in loader:
        if sample is not None:
            sample["labels"].long()
        most = max(most, mib)
    return time.perf_counter() - started, most
