"""Time to count a label map: ours, the algorithm of `evaluate`'s mean_iou, and torchmetrics; the best of several turns each.

`mean_iou` from the Hub cannot be loaded offline, so its algorithm is repeated here: ids are masked, then intersection,
predictions and labels are counted by three histograms for each image.

There are two pairs of maps. One is a drawn street, with a prediction like that of a network (enlarged from a quarter of the
size). The other is noise: every fourth pixel differs from its neighbour, so counting cannot profit from areas of one class.
"""

import time

import numpy as np
import torch
from PIL import Image

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import SegmentationMetric
from revhrnet_hf.synthetic.scene import SCENE_CLASSES, draw_street_scene

from .timing import print_rows


def add_arguments(parser):
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"), help="default: 1024 2048")
    parser.add_argument("--num_labels", type=int, default=19, help="classes (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=20, help="turns; each of the three counts once in each (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device of the maps (default: %(default)s)")


def main(arguments) -> dict:
    size, num_labels = tuple(arguments.size), arguments.num_labels
    print(f"one map of {size[0]}×{size[1]}, {num_labels} classes, uint8, on {arguments.device}")
    results = {"size": list(size), "num_labels": num_labels, "device": arguments.device}
    for kind, draw_maps in {"street": street_maps, "noise": noisy_maps}.items():
        results[kind] = compared(kind, *draw_maps(size, num_labels), arguments)
    return results


def compared(kind, predictions, references, arguments):
    """The best seconds of each, printed."""
    counters = {
        "ours": ours(predictions, references, arguments),
        "mean_iou": mean_iou(predictions, references, arguments),
        "torchmetrics": torchmetrics(predictions, references, arguments),
    }
    seconds = {name: [] for name in counters}
    for _ in range(arguments.rounds):
        for name, count in counters.items():
            started = time.perf_counter()
            count()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    # The best, not the mean: other work on the machine can only add time, and it affects short times most.
    best = {name: min(taken) for name, taken in seconds.items()}
    rows = [
        {kind: name, "ms a map": 1000 * taken, "maps a second": 1 / taken, "time, theirs to ours": taken / best["ours"]}
        for name, taken in best.items()
    ]
    print_rows(rows, {kind: "", "ms a map": ".1f", "maps a second": ".1f", "time, theirs to ours": ".1f"})
    return {"seconds": best}


def street_maps(size: tuple[int, int], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawn street in which void is ignored, and a prediction; uint8.

    The prediction is enlarged from a quarter of the size and shifted by three pixels.
    """
    height, width = size
    classes = draw_street_scene(np.random.default_rng(0), size, "bus").classes
    references = np.where(classes == SCENE_CLASSES.index("void"), 255, classes % num_labels).astype(np.uint8)
    coarse = Image.fromarray((classes % num_labels).astype(np.uint8)).resize((width // 4, height // 4), Image.Resampling.NEAREST)
    predictions = np.array(coarse.resize((width, height), Image.Resampling.NEAREST))
    return np.roll(predictions, 3, axis=1), references


def noisy_maps(size: tuple[int, int], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of random classes; at random, one pixel in ten is predicted wrongly and one in twenty is ignored; uint8."""
    rng = np.random.default_rng(0)
    areas = rng.integers(0, num_labels, (size[0] // 32 + 1, size[1] // 32 + 1), dtype=np.uint8)
    references = np.kron(areas, np.ones((32, 32), np.uint8))[: size[0], : size[1]].copy()
    predictions = references.copy()
    wrong = rng.random(size) < 0.1
    predictions[wrong] = rng.integers(0, num_labels, int(wrong.sum()), dtype=np.uint8)
    references[rng.random(size) < 0.05] = 255
    return predictions, references


def ours(predictions, references, arguments):
    metric = SegmentationMetric(arguments.num_labels)
    maps = {
        "predictions": torch.from_numpy(predictions)[None].to(arguments.device),
        "references": torch.from_numpy(references)[None].to(arguments.device),
    }
    return lambda: metric.add_batch(**maps)


def mean_iou(predictions, references, arguments):
    """NumPy on the CPU; each map is copied, as in `evaluate`."""
    bins = arguments.num_labels
    totals = np.zeros((3, bins))
    # `evaluate` passes the maps through a `datasets` table, which turns all ids into 64-bit integers.
    predictions, references = predictions.astype(np.int64), references.astype(np.int64)

    def count():
        prediction, label = np.array(predictions), np.array(references)
        labelled = label != 255
        prediction, label = prediction[labelled], label[labelled]
        for number, ids in enumerate((prediction[prediction == label], prediction, label)):
            totals[number] += np.histogram(ids, bins=bins, range=(0, bins - 1))[0]

    return count


def torchmetrics(predictions, references, arguments):
    try:
        from torchmetrics.classification import MulticlassConfusionMatrix  # an extra
    except ModuleNotFoundError as error:
        raise RecipeError(f"This benchmark needs torchmetrics: pip install torchmetrics ({error})") from error

    metric = MulticlassConfusionMatrix(arguments.num_labels, ignore_index=255).to(arguments.device)
    maps = (torch.from_numpy(array)[None].long().to(arguments.device) for array in (predictions, references))
    prediction, reference = maps
    return lambda: metric.update(prediction, reference)
