"""Seconds of a training step and of an image for every network of a study, measured in turns on a machine that does nothing else.

Runs that follow one another for hours meet other loads of the machine; turns meet the same.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import take_turns
from PIL import Image

from revhrnet_hf.data import LabelSpace, label_space_of
from revhrnet_hf.evaluation import predict_label_maps
from revhrnet_hf.io import write_json
from revhrnet_hf.training.chain import data_dirs_by_name
from revhrnet_hf.training.data import load_split
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.optimisation import build_optimizer
from revhrnet_hf.training.recipe import RANDOM, Recipe
from revhrnet_hf.versions import hardware, versions

from .plan import Run, Study
from .runner import TIMES, as_trained

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEP, IMAGE = "step_seconds", "image_seconds"


def measure_times(study: Study, name: str, data_dir: list[str], output_dir: Path, rounds: int = 5) -> dict[str, Any]:
    """Measures each network with each variation and writes the medians to NAME_times.json in the output folder.

    Args:
        name: of the study's file.
        data_dir: as for `do_run`; it says only how many classes there are, and how large the images.
        rounds: of which each network has one turn, after one that is not counted.
    """
    runs = {run.folder: run for run in study.any_runs() if run.seed == study.seeds[0]}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps, images = {}, {}
    for folder, run in runs.items():
        dataset = load_split(
            run.recipe, data_dirs_by_name(data_dir, list(run.recipes))[run.recipe.dataset], run.recipe.eval_split
        )
        steps[folder], images[folder] = calls(run.recipe, label_space_of(dataset), dataset[0]["image"], device)
    first = next(iter(runs))
    found = {STEP: take_turns(steps, first, rounds, device), IMAGE: take_turns(images, first, rounds, device)}
    seconds = {name: {row["name"]: row["seconds"] for row in rows} for name, rows in found.items()}
    times = {
        "hardware": hardware(torch.device(device), 1),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "networks": [_entry(run, {name: seconds[name][folder] for name in seconds}) for folder, run in runs.items()],
    }
    write_json(output_dir / f"{name}{TIMES}", times)
    return times


def _entry(run: Run, seconds: dict[str, float]) -> dict[str, Any]:
    return {"network": run.network, "variation": run.variation, **seconds}


def calls(recipe: Recipe, space: LabelSpace, image: Image.Image, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of the recipe's network on random crops, and the label map of an image. The weights are random."""
    weights = recipe.class_weights and [1.0] * space.num_classes  # not counted: any take the same time
    network, image_processor = build_model(replace(recipe, backbone_weights=RANDOM, class_weights=weights), space)
    as_trained(network, recipe)
    network.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(network, recipe, torch.device(device))
    height, width = recipe.crop_size
    pixel_values = torch.randn(recipe.batch_size, 3, height, width, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(space.num_classes, (recipe.batch_size, height, width), device=device)

    precision = partial(torch.autocast, device, DTYPES.get(recipe.precision), enabled=recipe.precision in DTYPES)

    def step() -> None:
        network.train()
        with precision():
            loss = network(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def label_map() -> None:
        network.eval()
        with precision():
            predict_label_maps(network, image_processor, [image])

    return step, label_map
