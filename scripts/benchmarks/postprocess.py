"""Memory and time from logits to a label map, compared with Transformers' SegFormer processor, in separate processes.

Memory is the peak of the process's resident memory during the call (Linux), without the memory before the call and without the
label map itself. The two processors take turns. The share of pixels in which their label maps differ is counted.
"""

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import SegformerImageProcessor

from revhrnet_hf import RevHRNetImageProcessor

from .data import peak_mib
from .timing import print_rows

PROCESSORS = {"ours": RevHRNetImageProcessor, "segformer": SegformerImageProcessor}


def add_arguments(parser):
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 5500), metavar=("HEIGHT", "WIDTH"), help="default: 4000 5500")
    parser.add_argument("--num_labels", type=int, default=66, help="classes (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=4, help="stride of the logits, in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measured calls (default: %(default)s)")
    parser.add_argument(
        "--only", choices=PROCESSORS, help="measure only this processor, if memory is too small for the other one"
    )


def main(arguments) -> dict:
    names = [arguments.only] if arguments.only else list(PROCESSORS)
    results = {name: [] for name in names}
    differing = None
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npy" for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                results[name].append(in_own_process(name, arguments, files[name]))
        if not arguments.only:
            ours, theirs = (np.load(file, mmap_mode="r") for file in files.values())
            differing = float(np.mean(ours != theirs))
    height, width = arguments.size
    print(f"{arguments.num_labels} classes, {height}×{width} pixels, logits of stride {arguments.stride}, float32")
    summary = {
        name: {
            "mib": max(mib for mib, _ in calls),
            "seconds": statistics.median(s for _, s in calls),
        }
        for name, calls in results.items()
    }
    rows = [{"name": name, "MiB above in- and output": row["mib"], "seconds": row["seconds"]} for name, row in summary.items()]
    print_rows(rows, {"name": "", "MiB above in- and output": ".0f", "seconds": ".2f"})
    if differing is not None:
        pairs = zip(results["ours"], results["segformer"], strict=True)
        summary["time_ratio"] = statistics.median(ours / theirs for (_, ours), (_, theirs) in pairs)
        summary["differing"] = differing
        print(f"time, ours to SegFormer's: {summary['time_ratio']:.2f}; pixels that differ: {differing:.1e}")
    return {"size": list(arguments.size), "num_labels": arguments.num_labels, "stride": arguments.stride, **summary}


def in_own_process(name: str, arguments, file: Path) -> tuple[float, float]:
    """MiB and seconds of one call."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measure, (name, tuple(arguments.size), arguments.num_labels, arguments.stride, file))


def measure(name: str, size: tuple[int, int], num_labels: int, stride: int, file: Path) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, num_labels, *(-(-edge // stride) for edge in size), generator=generator)
    processor = PROCESSORS[name]()
    small = SimpleNamespace(logits=logits[..., :16, :16])
    processor.post_process_semantic_segmentation(
        small, target_sizes=[(64, 64)]
    )  # the first call loads libraries; that is not measured
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib()
    started = time.perf_counter()
    [label_map] = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=[size])
    seconds = time.perf_counter() - started
    mib = peak_mib() - before - label_map.nbytes / 2**20
    np.save(file, label_map.to(torch.int16).numpy())
    return mib, seconds
