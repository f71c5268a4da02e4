"""Step time of the training loop (loading, augmentation, logging) against bare forward + backward + optimizer; and an evaluation
(loading, label maps at native size, counting) against bare forward passes.

What is bare is on tensors in memory, with the recipe's network, batch and precision. The two take turns, each a short one: the
machine's own speed may change from one minute to the next.
"""

import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from tqdm.auto import tqdm

from revhrnet_hf.evaluation.inference import inference
from revhrnet_hf.training.recipe import Recipe, read_chain
from revhrnet_hf.training.stage import Stage


def add_arguments(parser):
    parser.add_argument("--recipe", required=True, help="YAML file of the recipe; of a chain, its first stage")
    parser.add_argument("--data_dir", required=True, help="folder of the recipe's data set")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of turns (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a turn (default: %(default)s)")


def main(arguments) -> dict:
    result = benchmark_loop(read_chain(arguments.recipe)[0], arguments.data_dir, arguments.rounds, arguments.steps)
    for what, unit in (("training", "step"), ("evaluation", "picture")):
        rounds = result[what]["rounds"]
        print(f"{what}\n{'round':>5}  {f'bare s/{unit}':>14}  {f'loop s/{unit}':>14}  {'ratio':>6}")
        for number, pair in enumerate(rounds, 1):
            print(f"{number:>5}  {pair['bare_s']:>14.3f}  {pair['loop_s']:>14.3f}  {pair['ratio']:>6.3f}")
        print(f"median ratio: {result[what]['median_ratio']:.3f} ({result[what]['count']} a turn, on {result['device']})")
    return result


def benchmark_loop(recipe: Recipe, data_dir: str, rounds: int, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as output_dir:
        stage = Stage(recipe, data_dir, output_dir)
        stage.log.start({})
        batch = next(stage.data_steps())[0]
        pictures = [stage.image_processor(row["image"], return_tensors="pt")["pixel_values"] for row in stage.eval_set]
        pictures = [x.to(stage.accelerator.device) for x in pictures]
        bare_steps(stage, batch, 3)  # warm up
        bare_evaluation(stage, pictures[:3])
        training, evaluation = [], []
        steps = min(steps, stage.batches.steps)
        for position in range(rounds):
            bare = bare_steps(stage, batch, steps)
            stage.state.step = (position + 1) * stage.batches.steps - steps  # an epoch's last steps
            training.append(pair(bare, lambda: stage.train_epoch(position, tqdm(total=steps, leave=False)), steps))  # noqa: B023
            bare = bare_evaluation(stage, pictures)
            evaluation.append(pair(bare, lambda: stage.evaluate(position + 1), len(pictures)))  # noqa: B023
        stage.log.close()
    return {
        "training": summary(training, steps),
        "evaluation": summary(evaluation, len(pictures)),
        "device": str(stage.accelerator.device),
        "recipe": recipe.to_yaml(),
    }


def pair(bare: float, loop: Callable[[], object], count: int) -> dict:
    started = time.perf_counter()
    loop()
    took = time.perf_counter() - started
    return {"bare_s": bare / count, "loop_s": took / count, "ratio": took / bare}


def summary(pairs: list[dict], count: int) -> dict:
    return {"rounds": pairs, "median_ratio": statistics.median(pair["ratio"] for pair in pairs), "count": count}


def bare_evaluation(stage, pictures: list[torch.Tensor]) -> float:
    """Seconds for a forward pass of each picture."""
    started = time.perf_counter()
    with inference(stage.scored_model), stage.accelerator.autocast():
        for pixel_values in pictures:
            stage.scored_model(pixel_values)
    if stage.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


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
