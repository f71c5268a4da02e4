"""Time and memory of one network against the picture's size and the number of classes; `--plot` draws both.

One picture at a time: the seconds of an eval forward pass, and the bytes that a training step keeps (counted, float32). The last
column of each table is the growth against the first row: seconds a pixel, or seconds.
"""

from argparse import Namespace

import torch

from revhrnet_hf.errors import RecipeError

from .memory import GIB, saved_bytes
from .networks import build, logits_of
from .timing import print_rows, take_turns

COLUMNS = {"side": "d", "classes": "d", "seconds": ".3f", "saved GiB": ".3f", "growth": ".3f"}


def add_arguments(parser):
    parser.add_argument("--network", default="rev-w18", help="(default: %(default)s)")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024], help="of squares (default: %(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 65, 150], help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--plot", help="PNG file (needs the extra `plots`)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")


def main(arguments) -> dict:
    sides, classes = arguments.sides, arguments.classes
    by_size = measure(arguments, [(side, classes[0]) for side in sides])
    by_classes = measure(arguments, [(sides[0], count) for count in classes])
    for row in by_size:
        row["growth"] = row["seconds"] / by_size[0]["seconds"] / (row["side"] / sides[0]) ** 2
    for row in by_classes:
        row["growth"] = row["seconds"] / by_classes[0]["seconds"]
    for rows in (by_size, by_classes):
        print_rows(rows, {"name": "", **COLUMNS})
    if arguments.plot:
        draw(arguments.plot, by_size, by_classes)
    return {"settings": {k: v for k, v in vars(arguments).items() if k not in ("command", "output")},
            "by_size": by_size, "by_classes": by_classes}  # fmt: skip


def measure(arguments, cases: list[tuple[int, int]]) -> list[dict]:
    models = {count: build(arguments.network, count).to(arguments.device).eval() for count in {count for _, count in cases}}
    calls = {}
    for side, count in cases:
        picture = torch.randn(1, 3, side, side, device=arguments.device)
        calls[f"{side}², {count} classes"] = lambda model=models[count], x=picture: logits_of(model, x)
    with torch.inference_mode():
        rows = take_turns(calls, next(iter(calls)), arguments.rounds, arguments.device)
    for row, (side, count) in zip(rows, cases, strict=True):
        case = Namespace(height=side, width=side, batch=1, classes=count, channels_last=False, precision="fp32")
        row |= {"side": side, "classes": count, "saved GiB": saved_bytes(arguments.network, case) / GIB}
    return rows


def draw(path: str, by_size: list[dict], by_classes: list[dict]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RecipeError("--plot needs pip install -c constraints.txt -e .[plots]") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    for row, (field, unit) in zip(figure.subplots(2, 2), (("seconds", "s"), ("saved GiB", "GiB")), strict=True):
        for axes, rows, x, label in zip(
            row, (by_size, by_classes), (lambda r: r["side"] ** 2 / 1e6, lambda r: r["classes"]), ("megapixels", "classes"),
            strict=True,
        ):  # fmt: skip
            axes.plot([x(r) for r in rows], [r[field] for r in rows], marker="o")
            axes.set(xlabel=label, ylabel=f"{field} ({unit})" if field == "seconds" else field, xlim=0, ylim=0)
            axes.grid(alpha=0.3)
    figure.suptitle("Forward pass, and what a training step keeps for the backward pass; one picture")
    figure.savefig(path, dpi=120)
