"""File size and CPU time of exported networks, compared with the checkpoint in PyTorch. One image at a time, in turns.

    python scripts/benchmark.py export CHECKPOINT --exported exported/onnx exported/program --size 540 720

EXPORTED are folders that scripts/export.py wrote with --dynamic (or for this size) and without --with_argmax.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from revhrnet_hf import export
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import load_checkpoint

from .timing import print_rows


def add_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained")
    parser.add_argument("--exported", type=Path, nargs="+", required=True, help="folders that scripts/export.py wrote")
    parser.add_argument("--size", type=int, nargs=2, default=(540, 720), metavar=("HEIGHT", "WIDTH"), help="default: 540 720")
    parser.add_argument("--rounds", type=int, default=5, help="turns; each network runs once in each (default: %(default)s)")


@torch.inference_mode()
def main(arguments) -> dict:
    model, _ = load_checkpoint(arguments.checkpoint)
    pixel_values = torch.randn(1, 3, *arguments.size)
    checkpoint = Path(arguments.checkpoint) / "model.safetensors"
    forms = {"PyTorch": (checkpoint, lambda: model(pixel_values=pixel_values))}
    for folder in arguments.exported:
        forms |= exported_forms(folder, pixel_values)
    seconds = in_turns({name: run for name, (_, run) in forms.items()}, arguments.rounds)
    rows = []
    for name, (file, _) in forms.items():
        ratios = [one / base for one, base in zip(seconds[name], seconds["PyTorch"], strict=True)]
        rows.append(
            {
                "form": name,
                "megabytes": file.stat().st_size / 1e6,
                "seconds": statistics.median(seconds[name]),
                "ratio": statistics.median(ratios),
            }
        )
    print_rows(rows, {"form": "", "megabytes": ".1f", "seconds": ".3f", "ratio": ".2f"})
    return {"size": list(arguments.size), "rounds": arguments.rounds, "forms": rows}


def exported_forms(folder: Path, pixel_values: torch.Tensor) -> dict[str, tuple[Path, Callable]]:
    """File and forward pass of each network in a folder, by the name for the table."""
    if not (folder / export.DESCRIPTION_FILE).is_file():
        raise RecipeError(f"--exported {folder} has no {export.DESCRIPTION_FILE}: give a folder that scripts/export.py wrote")
    description = json.loads((folder / export.DESCRIPTION_FILE).read_text(encoding="utf-8"))
    found = {}
    for name in (export.ONNX_FILE, export.INT8_FILE):
        if (folder / name).is_file():
            session = export.onnx_session(folder / name)
            found[f"{description['format']}, {name}"] = folder / name, partial(export.run_onnx, session, pixel_values)
    if (folder / export.PROGRAM_FILE).is_file():
        program = torch.export.load(folder / export.PROGRAM_FILE).module()
        found[f"torch.export, {export.PROGRAM_FILE}"] = folder / export.PROGRAM_FILE, partial(program, pixel_values)
    return found


def in_turns(forms: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form in each round. They run one after another, so that other work on the machine slows all of them."""
    seconds = {name: [] for name in forms}
    for round_ in range(rounds + 1):
        for name, run in forms.items():
            started = time.perf_counter()
            run()
            if round_:  # the first round only warms up
                seconds[name].append(time.perf_counter() - started)
    return seconds
