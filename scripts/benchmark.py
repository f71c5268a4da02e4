"""Measure ourselves as ratios against a peer in the same run.

    python scripts/benchmark.py loop --recipe scripts/recipes/camvid.yaml --data_dir DIR
    python scripts/benchmark.py data

`data`: loading with augmentation against bare decoding of the same files.
`loop`: the training loop (loading, augmentation, logging included) against bare forward + backward + optimizer on one fixed batch
in memory, both with the recipe's network, batch and precision, in turns of one epoch each; the median of the paired ratios.
"""

import argparse
import platform
import statistics
import tempfile
import time

import torch
from benchmarks import data
from tqdm.auto import tqdm

from revhrnet_hf.cli import run
from revhrnet_hf.evaluation import write_json
from revhrnet_hf.training.recipe import Recipe, read_chain
from revhrnet_hf.versions import versions

COMMANDS = {"data": data}
"""Modules of scripts/benchmarks, each with `add_arguments` and `main`, which prints a table and returns what to write."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    loop = commands.add_parser("loop", help="step time of the training loop against the bare step")
    loop.add_argument("--recipe", required=True, help="YAML file of the recipe; of a chain, its first stage")
    loop.add_argument("--data_dir", required=True, help="folder of the recipe's data set")
    loop.add_argument("--rounds", type=int, default=3, help="pairs of measured epochs (default: 3)")
    loop.add_argument("--output", help="JSON file for the results")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0])
        module.add_arguments(command)
        command.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    if arguments.command in COMMANDS:
        results = {"benchmark": arguments.command, **COMMANDS[arguments.command].main(arguments), **machine()}
        if arguments.output:
            write_json(arguments.output, results)
        return

    result = benchmark_loop(read_chain(arguments.recipe)[0], arguments.data_dir, arguments.rounds)
    print(f"{'round':>5}  {'bare s/step':>11}  {'loop s/step':>11}  {'ratio':>6}")
    for position, pair in enumerate(result["rounds"], start=1):
        print(f"{position:>5}  {pair['bare_s']:>11.3f}  {pair['loop_s']:>11.3f}  {pair['ratio']:>6.3f}")
    print(f"median ratio {result['median_ratio']:.3f}")
    if arguments.output:
        write_json(arguments.output, result)


def benchmark_loop(recipe: Recipe, data_dir: str, rounds: int) -> dict:
    from revhrnet_hf.training.stage import Stage

    with tempfile.TemporaryDirectory() as output_dir:
        stage = Stage(recipe, data_dir, output_dir)
        stage.accelerator.init_trackers("benchmark")
        batch = next(iter(stage.loader))
        batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        batch = {name: tensor.to(stage.accelerator.device) for name, tensor in batch.items()}
        steps = stage.batches.steps
        bare_steps(stage, batch, 3)  # warm up
        pairs = []
        for position in range(rounds):
            bare = bare_steps(stage, batch, steps)
            started = time.perf_counter()
            stage.train_epoch(position, tqdm(total=steps, leave=False))
            loop = time.perf_counter() - started
            pairs.append({"bare_s": bare / steps, "loop_s": loop / steps, "ratio": loop / bare})
        stage.accelerator.end_training()
    return {
        "benchmark": "loop",
        "rounds": pairs,
        "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
        "steps_a_round": steps,
        "device": str(stage.accelerator.device),
        "recipe": recipe.to_yaml(),
        **machine(),
    }


def machine() -> dict:
    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
    }


def bare_steps(stage, batch: dict[str, torch.Tensor], steps: int) -> float:
    """Seconds for `steps` of what no loop can do without."""
    model = stage.accelerator.unwrap_model(stage.model)
    optimizer = stage.optimizer.optimizer
    model.train()
    started = time.perf_counter()
    for _ in range(steps):
        with stage.accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if stage.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
