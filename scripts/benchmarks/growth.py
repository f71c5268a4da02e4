"""Time and memory of one network by the image's size, the batch and the number of classes; `--plot` draws them.

By size and by classes: inference from one image to its label map, whole or in sliding windows. By batch: a whole training step,
and the bytes that it keeps for the backward pass (counted, float32). Each case runs in its own process. Its peak does not include
the network and its weights. The growth is the ratio of the time to that of the first row: for each megapixel, for each image, or
(by classes) the whole time.
"""

import multiprocessing
import statistics
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from revhrnet_hf import RevHRNetImageProcessorPil
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import InferenceSettings, segment

from .data import peak_mib
from .memory import GIB, make_step, saved_bytes
from .networks import build
from .timing import print_rows, seconds

UNITS = {"whole": "megapixels", "windows": "megapixels", "batch": "images", "classes": "classes"}


def add_arguments(parser):
    parser.add_argument("--network", default="rev-w18", help="a network of this package (default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="default: %(default)s")
    parser.add_argument("--window", type=int, default=512, help="side of the sliding windows (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="at the first side (default: %(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 65, 150], help="at the first side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of calls; the median is shown (default: %(default)s)")
    parser.add_argument("--plot", help="PNG file (needs the extra `plots`)")


def main(arguments) -> dict:
    plot = drawing() if arguments.plot else None
    side, classes, window = arguments.sides[0], arguments.classes[0], arguments.window
    tables = {
        "whole": [(s * s / 1e6, f"{s}² whole", label, (s, classes, None)) for s in arguments.sides],
        "windows": [(s * s / 1e6, f"{s}² in windows of {window}²", label, (s, classes, window)) for s in arguments.sides],
        "batch": [(batch, f"step of {batch} × {side}²", train, (side, classes, batch)) for batch in arguments.batches],
        "classes": [(count, f"{side}², {count} classes", label, (side, count, None)) for count in arguments.classes],
    }
    results = {kind: [measure(arguments, *case) for case in cases] for kind, cases in tables.items()}
    for kind, rows in results.items():
        for row in rows:
            per = 1 if kind == "classes" else row["size"] / rows[0]["size"]
            row["growth"] = row["seconds"] / rows[0]["seconds"] / per
        print_rows(rows, {"name": "", "seconds": ".3f", "growth": ".3f", "peak MiB": ".0f", "saved GiB": ".3f"})
    if plot:
        draw(plot, arguments, results)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("command", "output")}
    return {"settings": settings, **results}


def measure(arguments, size: float, name: str, function: Callable, case: tuple) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return {"size": size, "name": name, **pool.apply(function, (arguments.network, arguments.rounds, *case))}


def label(network: str, rounds: int, side: int, classes: int, window: int | None) -> dict:
    """An image to its label map."""
    model, processor = build(network, classes).eval(), RevHRNetImageProcessorPil()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    settings = InferenceSettings(window=window and (window, window))
    return timed(lambda: segment(model, processor, image, settings), rounds)


def train(network: str, rounds: int, side: int, classes: int, batch: int) -> dict:
    """A whole training step. The peak includes gradients and the optimizer's state, which the first step creates."""
    case = Namespace(height=side, width=side, batch=batch, classes=classes, channels_last=False, precision="fp32")
    step = make_step(network, case, "cpu")
    return timed(step, rounds, warm_up=True) | {"saved GiB": saved_bytes(network, case) / GIB}


def timed(call: Callable[[], object], rounds: int, warm_up: bool = False) -> dict:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_mib()
    if warm_up:
        call()
    took = [seconds(call, "cpu") for _ in range(rounds)]
    return {"seconds": statistics.median(took), "peak MiB": peak_mib() - before}


def drawing() -> type:
    """Matplotlib's class of figures. It is imported first, so that an error comes before the measurements."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RecipeError("--plot needs pip install -c constraints.txt -e .[plots]") from error
    return Figure


def draw(figure_class: type, arguments, results: dict[str, list[dict]]) -> None:
    figure = figure_class(figsize=(11, 6), layout="constrained")
    for axes_of_field, (field, unit) in zip(figure.subplots(2, 3), (("seconds", "s"), ("peak MiB", "MiB")), strict=True):
        for axes, kinds in zip(axes_of_field, (("whole", "windows"), ("batch",), ("classes",)), strict=True):
            for kind in kinds:
                rows = results[kind]
                axes.plot([row["size"] for row in rows], [row[field] for row in rows], marker="o", label=kind)
            axes.set(xlabel=UNITS[kinds[0]], ylabel=f"{field.removesuffix(' MiB')} ({unit})", xlim=0, ylim=0)
            axes.grid(alpha=0.3)
            if len(kinds) > 1:
                axes.legend()
    figure.suptitle(f"{arguments.network}: an image to its label map (by size, by classes), a training step (by batch)")
    figure.savefig(arguments.plot, dpi=120)
