"""Benchmarks of this package, as ratios to another implementation in the same run; `COMMAND --help` says what is measured.

python scripts/benchmark.py loop --recipe camvid --data_dir DIR
python scripts/benchmark.py data
python scripts/benchmark.py bank
python scripts/benchmark.py memory --saved_only
python scripts/benchmark.py train --networks rev-w48 --height 512 --width 1024 --batch 2
python scripts/benchmark.py infer --networks rev-w48+optimized
python scripts/benchmark.py floor --train --height 256 --width 512
python scripts/benchmark.py growth --plot growth.png
python scripts/benchmark.py start
python scripts/benchmark.py guide
python scripts/benchmark.py metric
python scripts/benchmark.py postprocess
python scripts/benchmark.py export CHECKPOINT --exported exported/onnx
"""

import argparse
import ast
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

from revhrnet_hf.cli import ArgumentParser, run

COMMANDS = (
    "bank",
    "data",
    "export",
    "floor",
    "growth",
    "guide",
    "infer",
    "loop",
    "memory",
    "metric",
    "postprocess",
    "start",
    "train",
)
"""Modules of scripts/benchmarks. Each has `add_arguments` and `main`, which prints a table and returns the results."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Only the module of the given command is imported, because each of them needs other libraries."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        text = docstring(name)
        command = commands.add_parser(name, help=text.splitlines()[0], description=text)
        if name in arguments[:1]:
            import_module(f"benchmarks.{name}").add_arguments(command)
        command.add_argument("--output", help="JSON file for the results")
    return parser.parse_args(arguments)


def docstring(command: str) -> str:
    """The docstring of a command's module, which is not imported."""
    file = Path(__file__).parent / "benchmarks" / f"{command}.py"
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")), clean=False)


def main(arguments: argparse.Namespace) -> None:
    from revhrnet_hf.io import write_json

    measured = import_module(f"benchmarks.{arguments.command}").main(arguments)
    results = {"benchmark": arguments.command, **measured, **machine()}
    if arguments.output:
        write_json(arguments.output, results)


def machine() -> dict:
    import torch

    from revhrnet_hf.versions import versions

    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


if __name__ == "__main__":
    parsed = parse_arguments()
    run(lambda: main(parsed))
