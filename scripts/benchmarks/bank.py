"""Seconds of a training step that reads a full feature bank, as a ratio to the same step from images, in turns.

Both are whole steps of the training loop, with loading, on the same maps: two stages of one recipe, one of which has a bank. Six
steps fill it first; then each round has one step of each. `cpu_ratio` counts processor time instead of the clock's, which other
programs on a machine change less. Images are drawn, backbones have random weights, and images are loaded in the process itself.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from .timing import print_rows, seconds

BACKBONES = ["convnext_tiny", "resnet50", "tf_efficientnet_lite0"]


def add_arguments(parser):
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="timm models (default: %(default)s)")
    parser.add_argument("--variant", default="w18", help="of the decoder (default: %(default)s)")
    parser.add_argument("--crop_size", type=int, nargs=2, default=[416, 576], help="height and width (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images in a step (default: %(default)s)")
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"], help="(default: float32)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of a step of each (default: %(default)s)")


def main(arguments) -> dict:
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "camvid"
        write_camvid(data, {"train": arguments.batch * 6, "val": 1}, (720, 960))
        rows = [benchmark_bank(name, data, Path(folder) / name, arguments) for name in arguments.backbones]
    columns = {"name": "", "image_s": ".3f", "bank_s": ".3f", "ratio": ".3f", "cpu_ratio": ".3f", "fill_ratio": ".3f"}
    print_rows(rows, {**columns, "mib_an_image": ".1f"})
    return {"bank": rows}


def benchmark_bank(backbone: str, data: Path, folder: Path, arguments) -> dict:
    from_images, from_bank = (Stage(recipe_of(backbone, arguments), data, folder / name) for name in ("images", "bank"))
    from_images.data.bank, bank = None, from_bank.data.bank
    from_bank.data.open_bank(steps_done=0)
    steps = [steps_of(from_images), steps_of(from_bank)]
    device = str(from_bank.accelerator.device)
    filling = rounds_of(steps, from_images.data.batches.steps, device)[1:]  # the first one warms up
    reading = rounds_of(steps, arguments.rounds, device)
    bank.close()
    (image_s, _), (bank_s, _) = (map(statistics.median, zip(*turns, strict=True)) for turns in zip(*reading, strict=True))
    return {
        "name": backbone,
        "image_s": image_s,
        "bank_s": bank_s,
        "ratio": median_ratio(reading, clock=0),
        "cpu_ratio": median_ratio(reading, clock=1),
        "fill_ratio": median_ratio(filling, clock=1),
        "mib_an_image": bank.size / (bank.steps * bank.batch_size) / 2**20,
        "all_seconds": reading,
    }


def rounds_of(steps: list[Iterator[None]], rounds: int, device: str) -> list[list[tuple[float, float]]]:
    """Of each round, the seconds of a step of each kind: by the clock, and of the processor."""
    return [[timed(each, device) for each in steps] for _ in range(rounds)]


def timed(steps: Iterator[None], device: str) -> tuple[float, float]:
    before = time.process_time()
    took = seconds(lambda: next(steps), device)
    return took, time.process_time() - before


def median_ratio(rounds: list[list[tuple[float, float]]], clock: int) -> float:
    return statistics.median(of_bank[clock] / of_images[clock] for of_images, of_bank in rounds)


def steps_of(stage: Stage) -> Iterator[None]:
    """Trains a step each time, from the first epoch on."""
    stage.learner.model.train()
    for epoch in itertools.count():
        stage.data.start_at(epoch, step=0)
        for passes in stage.data.steps():
            stage.train_step(passes)
            yield


def recipe_of(backbone: str, arguments) -> Recipe:
    return Recipe(
        dataset="camvid",
        variant=arguments.variant,
        backbone=backbone,
        backbone_weights="random",
        feature_bank=1,
        epochs=1000,
        batch_size=arguments.batch,
        crop_size=arguments.crop_size,
        base_size=720,
        scale_range=[0.9, 1.3],
        initializer="he",
        precision=arguments.precision,
        num_workers=0,
        trackers=[],
    )
