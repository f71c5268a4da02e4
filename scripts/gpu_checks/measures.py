"""Part c: seconds and peak memory of training steps and of forward passes; cells in order of importance, until the time is over.

A training step is that of `benchmark.py train`; our networks compute their own loss, as in training with this package.
"""

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from benchmarks.guide import CUDA_GIB, TEMPORARY, fixed_gib, image_gib
from benchmarks.memory import GIB
from benchmarks.networks import PEER, Step, build, logits_of
from benchmarks.timing import print_rows, seconds
from torch import Tensor, nn

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.models.high_resolution import HighResolutionPreTrainedModel
from revhrnet_hf.training.processes import fixed_sizes, set_tf32

from .record import MEASURED, OUT_OF_MEMORY, Check, NotPossible
from .stages import Setup

CLASSES = 19
CROP, WHOLE = (512, 1024), (1024, 2048)
WARM_UP, MOST_ROUNDS, SECONDS = 2, 10, 1.0  # a cell is timed for a second, or ten times; at least twice

TRAIN, INFER = "train", "infer"
FLOAT, TF32, BF16 = "float32", "TF32", "bf16"
FIRST = ["rev-w48", "rev-w18", PEER]
PEERS = ["smp-deeplabv3plus", "smp-upernet", "smp-fpn", "segformer-b0", "segformer-b2", "segformer-b5"]
OTHERS = ["rev-w24-5stream", "rev-w48-finetuned", "rev-w18-finetuned", "hrnet-w48"]
RECOMPUTE = ["rev-w48+none", "rev-w48+modules", "rev-w18+modules"]


@dataclass(frozen=True)
class Cell:
    """A measurement.

    Attributes:
        network: a name of benchmarks/networks.py.
        kind: `train` (512×1024) or `infer` (1024×2048).
        precision: float32, TF32 or bf16.
        memory_format: ours is always channels-last; the peers' is a matter of choice.
    """

    network: str
    kind: str
    batch: int
    precision: str
    memory_format: str = "channels-last"
    compiled: bool = False

    def __str__(self) -> str:
        extra = "".join([", contiguous" if self.memory_format != "channels-last" else "", ", compiled" if self.compiled else ""])
        return f"{self.network} {self.kind} {self.batch} {self.precision}{extra}"


def cells() -> list[Cell]:
    """By importance. The guide's cells are float32, so that a few of those come early."""
    train, infer = partial(Cell, kind=TRAIN), partial(Cell, kind=INFER, batch=1)
    found = [
        *(train(name, batch=batch, precision=BF16) for batch in (2, 12) for name in FIRST),
        *(train(name, batch=batch, precision=FLOAT) for batch in (2, 12) for name in FIRST),
        *(infer(name, precision=precision) for precision in (BF16, FLOAT) for name in FIRST),
        *(train(name, batch=8, precision=BF16) for name in (*OTHERS, *RECOMPUTE, *PEERS)),
        *(infer(name, precision=BF16) for name in (*OTHERS, *PEERS)),
        *(train(name, batch=batch, precision=precision) for precision in (BF16, TF32) for batch in (4, 8) for name in FIRST),
        *(train(name, batch=8, precision=FLOAT) for name in (*RECOMPUTE, *OTHERS)),
        *(replace(train(name, batch=8, precision=BF16), memory_format="contiguous") for name in (PEER, *PEERS)),
        *(replace(infer(name, precision=BF16), compiled=True) for name in FIRST),
        *(replace(train(name, batch=8, precision=BF16), compiled=True) for name in FIRST),
        *(train(name, batch=batch, precision=FLOAT) for batch in (2, 4, 8, 12) for name in (*FIRST, *OTHERS, *PEERS)),
        *(train(name, batch=batch, precision=BF16) for batch in (2, 4, 12) for name in (*OTHERS, *RECOMPUTE, *PEERS)),
    ]
    return list(dict.fromkeys(found))


def quick_cells() -> list[Cell]:
    return [
        Cell("tiny-rev", TRAIN, 2, FLOAT),
        Cell("tiny-hrnet", TRAIN, 2, FLOAT),
        Cell("tiny-rev+modules", TRAIN, 2, BF16),
        Cell("tiny-rev", INFER, 1, FLOAT),
    ]


def checks(setup: Setup) -> list[Check]:
    wanted = quick_cells() if setup.quick else cells()
    return [Check("cell", str(cell), partial(measure, setup, cell), needs=45 if cell.compiled else 4) for cell in wanted]


def size_of(setup: Setup, cell: Cell) -> tuple[int, int]:
    if setup.quick:
        return (64, 96)
    return CROP if cell.kind == TRAIN else WHOLE


def measure(setup: Setup, cell: Cell) -> dict:
    """The cell's values; memory that was taken is given back, also after an error."""
    set_tf32(cell.precision == TF32)
    if setup.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        with fixed_sizes() if cell.kind == TRAIN else nullcontext():
            values = timed(setup, training_step(setup, cell) if cell.kind == TRAIN else forward_pass(setup, cell))
        peak = torch.cuda.max_memory_allocated() / GIB if setup.is_gpu else None
    finally:
        set_tf32(False)
        gc.collect()
        if setup.is_gpu:
            torch.cuda.empty_cache()
    height, width = size_of(setup, cell)
    images = {"images/s": cell.batch / values["seconds"], "height": height, "width": width}
    computed = computed_gib(cell, (height, width))
    said = f"{1000 * values['seconds']:.1f} ms" + ("" if peak is None else f", {peak:.2f} GiB")
    return {**fields_of(cell), **values, **images, "peak GiB": peak, "computed GiB": computed, "said": said}


def fields_of(cell: Cell) -> dict:
    layout = cell.memory_format
    return {
        "network": cell.network, "kind": cell.kind, "batch": cell.batch, "precision": cell.precision, "layout": layout,
        "compiled": cell.compiled,
    }  # fmt: skip


class TrainingStep(Step):
    """Our networks' loss is their own."""

    def loss(self) -> Tensor:
        return self.own_loss() if isinstance(self.model, HighResolutionPreTrainedModel) else super().loss()


def network_of(cell: Cell) -> nn.Module:
    try:
        model = build(cell.network, CLASSES, channels_last=cell.memory_format == "channels-last")
    except RecipeError as error:  # a peer's package is not installed
        raise NotPossible(str(error)) from error
    if cell.compiled:
        model.compile()
    return model


def training_step(setup: Setup, cell: Cell) -> Callable[[], object]:
    precision = "bf16" if cell.precision == BF16 else "fp32"
    return TrainingStep(network_of(cell), cell.batch, size_of(setup, cell), CLASSES, setup.device, precision)


def forward_pass(setup: Setup, cell: Cell) -> Callable[[], object]:
    model = network_of(cell).to(setup.device).eval()
    images = torch.randn(cell.batch, 3, *size_of(setup, cell), device=setup.device)
    precision = torch.autocast(setup.device, torch.bfloat16) if cell.precision == BF16 else nullcontext()

    def call() -> Tensor:
        with torch.inference_mode(), precision:
            return logits_of(model, images)

    return call


def timed(setup: Setup, call: Callable[[], object]) -> dict:
    """The median of a call's seconds, after calls that warm up."""
    for _ in range(1 if setup.quick else WARM_UP):
        call()
    setup.synchronise()
    taken, started = [], time.monotonic()
    while len(taken) < 2 or (len(taken) < MOST_ROUNDS and time.monotonic() - started < SECONDS):
        taken.append(seconds(call, setup.device))
    return {"seconds": statistics.median(taken), "all_seconds": taken}


def computed_gib(cell: Cell, size: tuple[int, int]) -> float | None:
    """The memory guide's figure, without what CUDA itself takes; it is for float32 and our networks."""
    if cell.kind != TRAIN or cell.precision == BF16 or cell.compiled or not is_ours(cell.network):
        return None
    fixed, image = guide_gib(cell.network, size)
    return fixed - CUDA_GIB + TEMPORARY * cell.batch * image


def is_ours(network: str) -> bool:
    return network.partition("+")[0].split("-")[0] in ("rev", "hrnet", "tiny")


@lru_cache
def guide_gib(network: str, size: tuple[int, int]) -> tuple[float, float]:
    name = network if "+" in network else f"{network}+norms"
    return fixed_gib(name, CLASSES), image_gib(name, size, CLASSES)


def with_ratios(rows: list[dict]) -> list[dict]:
    """The rows of cells; `ratio` is the time to that of the peer, HRNetV2-W48 of timm, in the same kind of cell."""
    names = ("kind", "batch", "precision", "compiled")
    peers = {
        tuple(row[name] for name in names): row["seconds"]
        for row in rows
        if row["status"] == MEASURED and row["network"] == PEER and row["layout"] == "channels-last"
    }
    return [
        {**row, "ratio": row["seconds"] / peers[key] if (key := tuple(row[name] for name in names)) in peers else None}
        for row in rows
        if row["status"] == MEASURED
    ]


def print_cells(rows: list[dict]) -> None:
    shown = [
        {**row, "ms": 1000 * row["seconds"], "layout": row["layout"] + ", compiled" * row["compiled"]}
        for row in with_ratios(rows)
    ]
    columns = {
        "network": "", "kind": "", "batch": "d", "precision": "", "layout": "", "ms": ".1f", "images/s": ".2f", "ratio": ".3f",
        "peak GiB": ".2f", "computed GiB": ".2f",
    }  # fmt: skip
    print_rows(shown, columns)
    if short := [row["case"] for row in rows if row["status"] == OUT_OF_MEMORY]:
        print(f"out of memory: {'; '.join(short)}")
