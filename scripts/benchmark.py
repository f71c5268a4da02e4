"""Measure ourselves as ratios against a peer in the same run; `COMMAND --help` says what is measured.

    python scripts/benchmark.py loop --recipe scripts/recipes/camvid.yaml --data_dir DIR
    python scripts/benchmark.py data
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

import os
import platform

import torch
from benchmarks import data, export, floor, growth, guide, infer, loop, memory, metric, postprocess, start, train

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.evaluation import write_json
from revhrnet_hf.versions import versions

COMMANDS = {
    "data": data,
    "export": export,
    "floor": floor,
    "growth": growth,
    "guide": guide,
    "infer": infer,
    "loop": loop,
    "memory": memory,
    "metric": metric,
    "postprocess": postprocess,
    "start": start,
    "train": train,
}
"""Modules of scripts/benchmarks, each with `add_arguments` and `main`, which prints a table and returns what to write."""


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0], description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    results = {"benchmark": arguments.command, **COMMANDS[arguments.command].main(arguments), **machine()}
    if arguments.output:
        write_json(arguments.output, results)


def machine() -> dict:
    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


if __name__ == "__main__":
    run(main)
