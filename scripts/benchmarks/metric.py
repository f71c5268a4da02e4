"""Time to count a label map: ours against `evaluate`'s mean_iou algorithm and torchmetrics, the best of several turns each.

The Hub's `mean_iou` cannot be loaded offline, so its way of counting is written out here: ids are masked, then intersection,
predictions and labels counted by three histograms an image.

Two pairs of maps: a drawn street with a prediction as networks make it (a quarter of the size, enlarged), and noise,
where every fourth pixel differs from its neighbour and counting makes nothing of areas.
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
    parser.add_argument("--rounds", type=int, default=20, help="turns of the three (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the maps lie (default: %(default)s)")


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
    # The best, not the mean: other work on the machine can only add time, and adds more to what is short.
    best = {name: min(taken) for name, taken in seconds.items()}
    rows = [
        {kind: name, "ms a map": 1000 * taken, "maps a second": 1 / taken, "time, theirs to ours": taken / best["ours"]}
        for name, taken in best.items()
    ]
    print_rows(rows, {kind: "", "ms a map": ".1f", "maps a second": ".1f", "time, theirs to ours": ".1f"})
    return {"seconds": best}


def street_maps(size: tuple[int, int], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawn street, its void ignored, and a prediction: a quarter of the size, enlarged, three pixels off; uint8."""
    height, width = size
    classes = draw_street_scene(np.random.default_rng(0), size, "bus").classes
    references = np.where(classes == SCENE_CLASSES.index("void"), 255, classes % num_labels).astype(np.uint8)
    coarse = Image.fromarray((classes % num_labels).astype(np.uint8)).resize((width // 4, height // 4), Image.Resampling.NEAREST)
    predictions = np.array(coarse.resize((width, height), Image.Resampling.NEAREST))
    return np.roll(predictions, 3, axis=1), references


def noisy_maps(size: tuple[int, int], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of classes, one pixel in ten predicted wrongly, one in twenty ignored, each by chance; uint8."""
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
    """NumPy, on the CPU, with memory of its own for each map, as in `evaluate`."""
    bins = arguments.num_labels
    totals = np.zeros((3, bins))
    # `evaluate` hands its metrics what comes out of a `datasets` table: ids of 64 bits, whatever was put in.
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
        raise RecipeError(f"this benchmark compares with torchmetrics: pip install torchmetrics ({error})") from error

    metric = MulticlassConfusionMatrix(arguments.num_labels, ignore_index=255).to(arguments.device)
    maps = (torch.from_numpy(array)[None].long().to(arguments.device) for array in (predictions, references))
    prediction, reference = maps
    return lambda: metric.update(prediction, reference)
