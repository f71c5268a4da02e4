"""Step time of the training loop (loading, augmentation, logging) against bare forward + backward + optimizer.

The bare step is on one fixed batch in memory, with the recipe's network, batch and precision; the two take turns, epoch by epoch.
"""

import statistics
import tempfile
import time

import torch
from tqdm.auto import tqdm

from revhrnet_hf.training.recipe import Recipe, read_chain
from revhrnet_hf.training.stage import Stage


def add_arguments(parser):
    parser.add_argument("--recipe", required=True, help="YAML file of the recipe; of a chain, its first stage")
    parser.add_argument("--data_dir", required=True, help="folder of the recipe's data set")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measured epochs (default: %(default)s)")


def main(arguments) -> dict:
    result = benchmark_loop(read_chain(arguments.recipe)[0], arguments.data_dir, arguments.rounds)
    print(f"{'round':>5}  {'bare s/step':>11}  {'loop s/step':>11}  {'ratio':>6}")
    for number, pair in enumerate(result["rounds"], 1):
        print(f"{number:>5}  {pair['bare_s']:>11.3f}  {pair['loop_s']:>11.3f}  {pair['ratio']:>6.3f}")
    print(f"median ratio: {result['median_ratio']:.3f} ({result['steps_a_round']} steps a round, on {result['device']})")
    return result


def benchmark_loop(recipe: Recipe, data_dir: str, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as output_dir:
        stage = Stage(recipe, data_dir, output_dir)
        stage.log.start({})
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
        stage.log.close()
    return {
        "rounds": pairs,
        "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
        "steps_a_round": steps,
        "device": str(stage.accelerator.device),
        "recipe": recipe.to_yaml(),
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
