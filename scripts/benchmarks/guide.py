"""Memory guide: the largest batch for a crop, and the largest crop for a batch, with which each network can be trained.

The numbers are computed for GPUs of several sizes, not measured on a GPU. They are the sum of weights, gradients, momentum, the
counted saved bytes (float32), the bytes of the largest module while it is recomputed, a share for temporary tensors of the
backward pass, and the memory that CUDA itself needs.
"""

from argparse import Namespace

import torch

from revhrnet_hf.models.recompute import RecomputedModule

from .memory import GIB, make_step, saved_bytes
from .networks import build

CROPS = [(256, 512), (360, 480), (512, 512), (512, 1024), (720, 960), (768, 768), (1024, 1024), (1024, 2048)]
# Factor on the saved and recomputed bytes, for temporary tensors. Peaks of earlier versions on a CPU (`benchmark.py memory`) were
# 1.18 to 1.28 times the saved bytes.
TEMPORARY = 1.3
CUDA_GIB = 1.0  # context and workspaces
NETWORKS = ["rev-w18-lite0", "rev-w18", "rev-w48", "hrnet-w18", "hrnet-w48"]


def add_arguments(parser):
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="default: %(default)s")
    parser.add_argument("--recompute", nargs="+", default=["none", "norms", "modules"], help="default: %(default)s")
    parser.add_argument(
        "--gib", type=int, nargs="+", default=[8, 12, 16, 24, 40, 80], help="sizes of a GPU's memory (default: %(default)s)"
    )
    parser.add_argument("--crop", type=int, nargs=2, default=[512, 1024], help="height and width (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="batch for which the largest crop is found (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=19, help="(default: %(default)s)")


def main(arguments) -> dict:
    crop = tuple(arguments.crop)
    crops = sorted({*CROPS, crop}, key=lambda size: size[0] * size[1])
    names = [f"{network}+{recompute}" for network in arguments.networks for recompute in arguments.recompute]
    print(f"Computed: most images of {crop[0]}×{crop[1]} in a step / largest crop with {arguments.batch} images.\n")
    print_row("network, recompute", *(f"{gib} GiB" for gib in arguments.gib))
    print_row("---", *("---:" for _ in arguments.gib))
    rows = []
    for name in names:
        fixed = fixed_gib(name, arguments.classes)
        needed = {size: TEMPORARY * image_gib(name, size, arguments.classes) for size in crops}
        row = {"name": name, "fixed GiB": fixed, "image GiB": needed[crop], "fits": []}
        for gib in arguments.gib:
            free = gib - fixed
            fitting = [size for size in crops if needed[size] * arguments.batch <= free]
            largest = list(fitting[-1]) if fitting else None
            row["fits"].append({"GiB": gib, "batch": max(0, int(free / needed[crop])), "crop": largest})
        rows.append(row)
        cells = [f"{fit['batch']} / {'×'.join(map(str, fit['crop'])) if fit['crop'] else '–'}" for fit in row["fits"]]
        print_row(name.replace("+", ", "), *cells)
    return {"measured": False, "in_passing": TEMPORARY, "cuda_gib": CUDA_GIB, "crop": list(crop), "guide": rows}


def print_row(*cells: str) -> None:
    """Print a row of a Markdown table, for docs/memory.md."""
    print("| " + " | ".join(cells) + " |", flush=True)


def fixed_gib(name: str, classes: int) -> float:
    """Memory that does not depend on the images: weights, gradients, momentum, and that of CUDA itself."""
    with torch.device("meta"):
        model = build(name, classes)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    return CUDA_GIB + 4 * (3 * trained + frozen) / GIB


def image_gib(name: str, size: tuple[int, int], classes: int) -> float:
    case = Namespace(height=size[0], width=size[1], batch=1, classes=classes, channels_last=False, precision="fp32")
    plain = name.partition("+")[0] + "+none"
    recomputed = max(whole - kept for whole, kept in zip(module_bytes(plain, case), module_bytes(name, case), strict=True))
    return (saved_bytes(name, case, own_loss=True) + recomputed) / GIB


def module_bytes(name: str, case: Namespace) -> list[int]:
    """Bytes kept by each module that can be recomputed, in the order in which they run."""
    seen, sizes, entered = set(), [], []

    def pack(tensor):
        seen.add(tensor.untyped_storage())
        return tensor

    def kept() -> int:
        return sum(storage.nbytes() for storage in seen)

    with torch.device("meta"):
        step = make_step(name, case, "meta")
        for module in step.model.modules():
            if isinstance(module, RecomputedModule):
                module.register_forward_pre_hook(lambda *_: entered.append(kept()))
                module.register_forward_hook(lambda *_: sizes.append(kept() - entered.pop()))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step.loss()
    return sizes
