"""Images per second of loading with augmentation, as a ratio to only decoding the same files with the same number of workers.

With `--recipe` instead: a core's time for each augmented crop of a recipe's stages, on drawn scenes of the published sizes, the
arithmetic of a training step, and how many images a second and how many workers that makes for a GPU of `--tflops`.
"""

import math
import re
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import TrainingSamples, TrainingTransform, label_space_of, load_segmentation_dataset
from revhrnet_hf.data.byte_crops import ByteCrops
from revhrnet_hf.data.features import RgbImage
from revhrnet_hf.data.loading import find_builder
from revhrnet_hf.hub.model_table import multiply_adds_of
from revhrnet_hf.synthetic import write_camvid, write_cityscapes, write_coco, write_mapillary_vistas, write_pascal_voc
from revhrnet_hf.training.data import TrainingSet, load_split, training_samples
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.recipe import RANDOM, Recipe, read_chain

from .timing import print_rows

DRAWN = {"cityscapes": (write_cityscapes, (1024, 2048)), "mapillary_vistas": (write_mapillary_vistas, (3000, 4000))}
# Also of recipes: sizes that are usual in these datasets.
OF_RECIPES = DRAWN | {
    "camvid": (partial(write_camvid, form="original"), (720, 960)),
    "coco": (write_coco, (480, 640)),
    "pascal_voc": (write_pascal_voc, (375, 500)),
}
BACKWARD = 2  # times the multiply-adds of a forward pass: gradients of inputs and of weights


def add_arguments(parser):
    parser.add_argument("--dataset", choices=DRAWN, nargs="+", default=list(DRAWN), help="default: both")
    parser.add_argument("--data_dir", help="folder of one real dataset; by default scenes of the same size are drawn")
    parser.add_argument("--images", type=int, default=96, help="images in each round (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measured passes (default: %(default)s)")
    parser.add_argument("--recipe", nargs="+", help="recipes by name or file, such as mapillary_to_cityscapes; see above")
    parser.add_argument(
        "--tflops",
        type=float,
        default=120.0,
        help="with --recipe: the rate that a GPU is assumed to train at, 10¹² operations a second; 120 is an eighth of the dense "
        "bfloat16 peak of an H100 (default: %(default)s)",
    )


def main(arguments) -> dict:
    torch.set_num_threads(1)  # leave the processor to the workers
    if arguments.recipe:
        return cost_of_recipes(arguments.recipe, arguments.images, arguments.tflops)
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


def cost_of_recipes(names: list[str], images: int, tflops: float) -> dict:
    results = [cost_of_stage(name, stage, images, tflops) for name in names for stage in read_chain(name)]
    columns = {"stage": "", "image": "", "crop": "", "core_ms": ".1f", "images_per_core_s": ".1f"}
    print_rows(results, columns | {"step_tflop": ".2f", "gpu_images_per_s": ".0f", "workers": "d"})
    return {"recipes": results}


def cost_of_stage(name: str, recipe: Recipe, images: int, tflops: float) -> dict:
    """What one image of a stage costs a core before, and a GPU in, a training step; the GPU's time is arithmetic alone."""
    write, size = OF_RECIPES[recipe.dataset]
    recipe = replace(recipe, train_split="train", backbone_weights=RANDOM, init_from=None)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), {"train": min(8, images), "val": 1}, size)
        drawn = load_split(recipe, folder, "train")
        space = label_space_of(drawn)
        samples = training_samples(recipe, [TrainingSet(recipe.dataset, "train", drawn)], space, RevHRNetImageProcessor())
        core_seconds = core_seconds_of(ByteCrops(samples), images)
    with torch.device("meta"):
        model, _ = build_model(recipe, space)
        pixel_values = torch.empty(1, 3, *recipe.crop_size)
        whole = multiply_adds_of(model.train(), pixel_values)
        frozen = multiply_adds_of(model.base_model.backbone_maps, pixel_values) if recipe.trainable_backbone == "none" else 0
    operations = 2 * (frozen + (1 + BACKWARD) * (whole - frozen))
    rate = tflops * 1e12 / operations
    return {
        "stage": f"{Path(name).stem}: {recipe.dataset}",
        "image": f"{size[1]}×{size[0]}",
        "crop": "×".join(map(str, reversed(recipe.crop_size))),
        "core_ms": 1000 * core_seconds,
        "images_per_core_s": 1 / core_seconds,
        "step_tflop": operations / 1e12,
        "gpu_images_per_s": rate,
        "workers": math.ceil(rate * core_seconds),
    }


def core_seconds_of(crops: Dataset, images: int) -> float:
    """A core's seconds for an item, in this process: other programs on the machine hardly change them."""
    crops[0]  # imports
    started = time.process_time()
    for index in range(images):
        crops[index % len(crops)]
    return (time.process_time() - started) / images


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
