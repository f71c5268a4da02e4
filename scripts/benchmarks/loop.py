"""Time of the training loop and of an evaluation, compared with the network alone.

A step of the loop includes loading, augmentation and logging; a bare step is forward, backward and optimizer. An evaluation
includes loading, label maps at native size and counting; a bare one is only forward passes. Bare passes use tensors in memory,
with the recipe's network, batch and precision. Both take short turns, because the machine's speed may change from one second to
the next. The loader's workers are stopped during the turns of the bare steps.
"""

import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable

import torch

from revhrnet_hf.evaluation.predict import inference
from revhrnet_hf.training.recipe import Recipe, read_chain
from revhrnet_hf.training.trainer import Stage

from .timing import print_rows


def add_arguments(parser):
    parser.add_argument("--recipe", required=True, help="YAML file of the recipe; of a chain the first stage is used")
    parser.add_argument("--data_dir", required=True, help="folder of the recipe's dataset")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of training steps and an evaluation (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a round (default: %(default)s)")
    parser.add_argument("--turn", type=int, default=4, help="training steps in a turn (default: %(default)s)")


def main(arguments) -> dict:
    recipe = read_chain(arguments.recipe)[0]
    result = benchmark_loop(recipe, arguments.data_dir, arguments.rounds, arguments.steps, arguments.turn)
    for part, unit in (("training", "step"), ("evaluation", "image")):
        rounds = result[part]["rounds"]
        print(f"{part}, seconds per {unit}")
        rows = [{"round": str(number), **pair} for number, pair in enumerate(rounds, 1)]
        print_rows(rows, {"round": "", "bare_s": ".3f", "loop_s": ".3f", "ratio": ".3f"})
        print(f"median ratio: {result[part]['median_ratio']:.3f} ({result[part]['count']} per round, on {result['device']})")
    return result


def benchmark_loop(recipe: Recipe, data_dir: str, rounds: int, steps: int, turn: int) -> dict:
    with tempfile.TemporaryDirectory() as output_dir:
        stage = Stage(recipe, data_dir, output_dir)
        stage.log.start({})
        batch = next(stage.data.steps())[0]
        images = [
            stage.learner.image_processor(row["image"], return_tensors="pt")["pixel_values"] for row in stage.evaluation.dataset
        ]
        images = [x.to(stage.accelerator.device) for x in images]
        bare_steps(stage, batch, 3)  # warm up
        bare_evaluation(stage, images[:3])
        training, evaluation = [], []
        steps = min(steps, stage.data.batches.steps)
        for position in range(rounds):
            stage.state.step = (position + 1) * stage.data.batches.steps - steps  # an epoch's last steps
            turns = Turns(lambda count: bare_steps(stage, batch, count), turn, stage.accelerator.device)
            stage.train_epoch(position, turns)
            turns.end()
            training.append(pair(turns.bare, turns.loop, steps))
            bare = bare_evaluation(stage, images)
            started = time.perf_counter()
            stage.evaluate(position + 1)
            evaluation.append(pair(bare, time.perf_counter() - started, len(images)))
        stage.log.close()
    return {
        "training": summary(training, steps),
        "evaluation": summary(evaluation, len(images)),
        "device": str(stage.accelerator.device),
        "recipe": recipe.to_yaml(),
    }


class Turns:
    """A progress bar for `train_epoch` that runs the same number of bare steps after every `length` steps.

    Attributes:
        loop, bare: seconds of the steps of the loop and of the same number of bare steps.
    """

    def __init__(self, run_bare: Callable[[int], float], length: int, device: torch.device):
        self.run_bare, self.length, self.device = run_bare, length, device
        self.loop = self.bare = 0.0
        self.steps = 0
        self.started = time.perf_counter()

    def update(self):
        self.steps += 1
        if self.steps == self.length:
            self.end()

    def end(self):
        """End a turn. The last turn of an epoch may be shorter; its time includes what the loop does after the last step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.loop += time.perf_counter() - self.started
        if self.steps:
            workers = [worker.pid for worker in multiprocessing.active_children()]
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
            try:
                self.bare += self.run_bare(self.steps)
            finally:
                for pid in workers:
                    os.kill(pid, signal.SIGCONT)
        self.steps, self.started = 0, time.perf_counter()

    def set_postfix(self, **numbers):
        pass


def pair(bare: float, loop: float, count: int) -> dict:
    return {"bare_s": bare / count, "loop_s": loop / count, "ratio": loop / bare}


def summary(pairs: list[dict], count: int) -> dict:
    return {"rounds": pairs, "median_ratio": statistics.median(pair["ratio"] for pair in pairs), "count": count}


def bare_evaluation(stage, images: list[torch.Tensor]) -> float:
    """Seconds for a forward pass of each image."""
    started = time.perf_counter()
    with inference(stage.learner.scored_network), stage.accelerator.autocast():
        for pixel_values in images:
            stage.learner.scored_network(pixel_values)
    if stage.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bare_steps(stage, batch: dict[str, torch.Tensor], steps: int) -> float:
    """Seconds for `steps` bare steps: the work that every training loop must do."""
    model = stage.accelerator.unwrap_model(stage.learner.model)
    optimizer = stage.learner.optimizer.optimizer
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
