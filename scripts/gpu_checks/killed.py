"""A run that is killed and resumed ends as one that is left alone; a frozen backbone has its bits all the while."""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from revhrnet_hf.io import LOG_FILE
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from .children import Child, ChildError, in_child
from .record import Difference
from .stages import Setup, use_repeatable_algorithms

KILLED_AFTER = 3  # steps
FILES = ("model", "optimizer", "averaged")


def train(recipe: Recipe, data_dir: Path, folder: Path, resume: bool) -> None:
    use_repeatable_algorithms()
    Stage(recipe, data_dir, folder, resume=resume).run()


def resumed_run(setup: Setup, precision: str) -> dict:
    """Differences between a run, and one that is killed in the middle of a step and resumed."""
    recipe = setup.recipe(
        precision=precision, epochs=1, save_every=2, save_in_background=True, ema_decay=0.9, log_every=1, num_workers=1
    )  # fmt: skip
    folder = setup.folder / f"killed-{precision}"
    whole, killed, again = (folder / name for name in ("whole", "killed", "again"))
    with Child(train, recipe, setup.streets, whole, False) as undisturbed:
        with Child(train, recipe, setup.streets, killed, False) as run:
            wait_for_step(killed, run)
            run.kill()
        saved = json.loads((killed / "last" / "training_state.json").read_text(encoding="utf-8"))["step"]
        in_child(train, recipe, setup.streets, killed, True)
        undisturbed.result()
    found, allowed = distances(killed, whole), dict.fromkeys(FILES, 0.0)
    if any(found.values()):  # does the device repeat itself?
        in_child(train, recipe, setup.streets, again, False)
        allowed = {name: 10 * value for name, value in distances(again, whole).items()}
    differences = [Difference(name, value, allowed[name]) for name, value in found.items()]
    lines = sum(a != b for a, b in zip(learnt(killed), learnt(whole), strict=True))
    said = f"killed after step {saved}" + ("" if any(found.values()) else ", all bits are equal")
    return {"differences": [*differences, Difference("steps and rates in the log", lines, 0)], "said": said, "step": saved}


def wait_for_step(folder: Path, run: Child) -> None:
    while last_step(folder) < KILLED_AFTER or not (folder / "last" / "training_state.json").exists():
        if run.process.exitcode is not None:
            run.result()
            raise ChildError("the run ended before it could be killed")
        time.sleep(0.005)


def last_step(folder: Path) -> int:
    log = folder / LOG_FILE
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    steps = [int(line.partition('"step": ')[2].partition(",")[0].rstrip("}") or 0) for line in lines if '"step": ' in line]
    return max(steps, default=0)


def learnt(folder: Path) -> list[tuple]:
    """Epoch, step and learning rate of each line of the log."""
    lines = map(json.loads, (folder / LOG_FILE).read_text(encoding="utf-8").splitlines())
    return [(line["epoch"], line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]


def distances(ours: Path, others: Path) -> dict[str, float]:
    """By file of the checkpoint `last`: the norm of the difference of all tensors, relative to that of the tensors."""
    return {name: distance(*(load_file(run / "last" / f"{name}.safetensors") for run in (ours, others))) for name in FILES}


def distance(ours: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    if ours.keys() != others.keys():
        return float("inf")
    if all(torch.equal(ours[name], others[name]) for name in ours):
        return 0.0
    squares = [(ours[name].double() - others[name].double()).square().sum() for name in ours]
    return float((sum(squares) / sum(others[name].double().square().sum() for name in ours)).sqrt())


def frozen_backbone(setup: Setup, precision: str) -> dict:
    folder = setup.folder / f"frozen-{precision}"
    recipe = setup.recipe(precision=precision, epochs=1, ema_decay=0.9, optimizer="adamw")
    counts = in_child(changes_of_frozen, recipe, setup.streets, folder)
    return {"differences": [Difference(name, count, 0) for name, count in counts.items()]}


def changes_of_frozen(recipe: Recipe, data_dir: Path, folder: Path) -> dict[str, int]:
    """How many tensors of a frozen backbone differ: its weights after training, in the checkpoints; its maps in both modes."""
    stage = Stage(recipe, data_dir, folder)
    backbone = stage.learner.network.base_model.backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    images = torch.randn(2, 3, *recipe.crop_size, device=stage.accelerator.device)
    first = backbone_maps(stage, images, training=True)
    stage.run()
    after = {name: tensor.cpu() for name, tensor in backbone.state_dict().items()}
    prefix = next(name for name, module in stage.learner.network.named_modules() if module is backbone) + "."
    return {
        "weights after training": unequal(before.values(), after.values()),
        "maps in evaluation": unequal(first, backbone_maps(stage, images, training=False)),
        "weights in last": unequal_saved(after, folder / "last", prefix),
        "weights in best": unequal_saved(after, folder / "best", prefix),
    }


def backbone_maps(stage: Stage, images: torch.Tensor, training: bool) -> list[torch.Tensor]:
    network = stage.learner.network.train(training)
    with stage.accelerator.autocast():
        return [x.detach().clone() for x in network.base_model.backbone_maps(images)]


def unequal(ours, others) -> int:
    return sum(not torch.equal(a.cpu(), b.cpu()) for a, b in zip(ours, others, strict=True))


def unequal_saved(weights: dict[str, torch.Tensor], folder: Path, prefix: str) -> int:
    saved = load_file(folder / "model.safetensors")
    return unequal(weights.values(), (saved[prefix + name] for name in weights))
