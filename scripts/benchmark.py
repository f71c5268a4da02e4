"""Measure ourselves as ratios against a peer in the same run; `COMMAND --help` says what is measured.

python scripts/benchmark.py loop --recipe scripts/recipes/camvid.yaml --data_dir DIR
python scripts/benchmark.py data
python scripts/benchmark.py export CHECKPOINT --exported exported/onnx
python scripts/benchmark.py metric
python scripts/benchmark.py postprocess
"""

import argparse
import platform

import torch
from benchmarks import data, export, loop, metric, postprocess

from revhrnet_hf.cli import run
from revhrnet_hf.evaluation import write_json
from revhrnet_hf.versions import versions

COMMANDS = {"data": data, "export": export, "loop": loop, "metric": metric, "postprocess": postprocess}
"""Modules of scripts/benchmarks, each with `add_arguments` and `main`, which prints a table and returns what to write."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        "versions": versions(),
    }


if __name__ == "__main__":
    run(main)
