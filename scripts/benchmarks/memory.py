"""Memory of a training step of each network: bytes kept for the backward pass, and the peak of the whole step.

The kept bytes are counted in float32. The peak is measured in a separate process. It is resident memory without that of the
imports (on a GPU allocated memory), and includes weights, gradients and the optimizer's state.
"""

import multiprocessing

import torch

from revhrnet_hf.hub.model_table import bytes_saved_by
from revhrnet_hf.training.processes import peak_resident_bytes

from .networks import Step, add_network_arguments, build, settings_of, with_peer
from .timing import print_rows

NETWORKS = ["rev-w48", "rev-w48+none", "rev-w48+modules", "rev-w48-finetuned", "hrnet-w48"]
GIB = 2**30


def add_arguments(parser):
    add_network_arguments(parser, NETWORKS, height=256, width=512, batch=2)
    parser.add_argument("--saved_only", action="store_true", help="only count saved bytes: takes seconds and needs no memory")


def main(arguments) -> dict:
    rows = []
    for name in with_peer(arguments):
        saved = saved_bytes(name, arguments) / GIB
        peak = None if arguments.saved_only else in_own_process(step_peak, name, arguments)
        rows.append({"name": name, "saved GiB": saved, "peak GiB": peak})
    for row in rows:
        row["saved ratio"] = row["saved GiB"] / rows[0]["saved GiB"]
        row["peak ratio"] = None if row["peak GiB"] is None else row["peak GiB"] / rows[0]["peak GiB"]
    print_rows(rows, {"name": "", "saved GiB": ".2f", "saved ratio": ".3f", "peak GiB": ".2f", "peak ratio": ".3f"})
    return {"settings": settings_of(arguments), "memory": rows}


def saved_bytes(name: str, arguments, own_loss: bool = False) -> int:
    """Bytes kept between forward and backward pass, with the loss, counted on the meta device.

    The loss is torch's cross-entropy on upsampled logits, the same for all networks, or with `own_loss` the network's.
    """
    with torch.device("meta"):
        step = make_step(name, arguments, "meta")
        return bytes_saved_by(step.model, step.own_loss if own_loss else step.loss)


def make_step(name: str, arguments, device: str) -> Step:
    model = build(name, arguments.classes, arguments.channels_last)
    size = (arguments.height, arguments.width)
    return Step(model, arguments.batch, size, arguments.classes, device, arguments.precision)


def in_own_process(function, *args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def step_peak(name: str, arguments) -> float:
    """Peak in GiB. Two steps are run, because the first one creates the optimizer's state."""
    before = peak_resident_bytes()
    step = make_step(name, arguments, arguments.device)
    for _ in range(2):
        step()
    if arguments.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / GIB
    return (peak_resident_bytes() - before) / GIB
