"""Every field of a recipe reaches what it names: the object that it sets is built with another value, which is read back there.

A new field needs an entry in `REACHES`: a value other than the default, and how to read it in the built object.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch.nn import BatchNorm2d, SyncBatchNorm

from revhrnet_hf.adapters import adapted_layers
from revhrnet_hf.commands import train as command
from revhrnet_hf.data import get_label_space, label_space_of
from revhrnet_hf.data.augmentation import GaussianBlur, JpegNoise, PhotometricDistortion
from revhrnet_hf.models.configuration_revhrnet import DEFAULT_BACKBONE
from revhrnet_hf.models.high_resolution import BasicBlock, Bottleneck, HighResolutionModule
from revhrnet_hf.models.losses import segmentation_loss
from revhrnet_hf.training import checkpoint, evaluation_hook, processes
from revhrnet_hf.training.data import load_split
from revhrnet_hf.training.evaluation_hook import note_scores
from revhrnet_hf.training.learner import Learner
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.optimisation import build_optimizer
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

IMAGES = {"train": 10, "val": 3}  # as `streets` has them
STEPS = IMAGES["train"] // 2  # of an epoch
BASE = {
    "dataset": "camvid",
    "variant": "w18",
    "backbone": "test_resnet",
    "backbone_weights": "random",
    "num_modules": [1, 1, 1],
    "num_blocks": 1,
    "initializer": "he",
    "crop_size": [32, 48],
    "base_size": 64,
    "epochs": 1,
    "batch_size": 2,
    "learning_rate": 0.05,
    "num_workers": 0,
    "log_every": STEPS,
    "log_images": 1,
    "trackers": [],
}


@dataclass
class Built:
    """What a recipe builds, each part when it is asked for; `other` is the recipe with the field's other value."""

    recipe: Recipe
    other: Recipe
    folders: dict[str, Any]
    output_dir: Path
    patch: pytest.MonkeyPatch

    @cached_property
    def model(self):
        set_seed(self.recipe.seed)
        return build_model(self.recipe, get_label_space("camvid11"))[0]

    @cached_property
    def optimizer(self):
        return build_optimizer(self.model, self.recipe)

    @cached_property
    def stage(self) -> Stage:
        return Stage(self.recipe, self.folders, self.output_dir)

    @cached_property
    def split(self) -> datasets.Dataset:
        return load_split(self.recipe, self.folders[self.recipe.dataset], self.recipe.train_split)


@dataclass
class Entry:
    """How a field is read back.

    Attributes:
        value: other than the default and than `BASE`'s; a function of the folders where it lies in one.
        read: of what was built.
        seen: what is to be read for a value of the field.
        also: settings of both recipes, with and without `value`.
        needs: settings of the recipe with `value` only.
    """

    value: Any
    read: Callable[[Built], Any]
    seen: Callable[[Any], Any] = lambda value: value
    also: dict[str, Any] = field(default_factory=dict)
    needs: dict[str, Any] = field(default_factory=dict)


# The network


def trained(built, kind):
    return [m for name, m in built.model.named_modules() if isinstance(m, kind) and ".backbone." not in name]


def blocks(built):
    """Of each module of each stage, the number of blocks of its finest branch."""
    return {len(each.branches[0]) for stage in built.model.revhrnet.stages for each in stage}


def loaded_weights(built):
    """The file whose tensors the backbone has."""
    weights = load_file(built.folders["weights"])
    own = built.model.revhrnet.backbone._backbone.state_dict()
    return built.folders["weights"] if all(torch.equal(own[key], weights[key]) for key in own) else "random"


def trained_of_backbone(built):
    """The parts of a ResNet whose parameters require gradients."""
    named = built.model.revhrnet.backbone._backbone.named_parameters()
    return {name.partition(".")[0] for name, parameter in named if parameter.requires_grad}


def shares(built):
    """Of the learning rate, that the optimizer's groups have."""
    return {group.get("lr_share", 1.0) for group in built.optimizer.param_groups}


def last_norms_of_blocks(built):
    """The weights that the last BatchNorms of the residual blocks begin with."""
    ends = [block.bn2 for block in trained(built, BasicBlock)]
    assert len(ends) > 5
    return {value for norm in ends for value in norm.weight.tolist()}


def last_norms_of_exchange_paths(built):
    """The weights that the last BatchNorms of the paths between streams begin with."""
    paths = [path for module in trained(built, HighResolutionModule) for paths in module.fuse_layers for path in paths]
    ends = [list(path.modules())[-1] for path in paths if not isinstance(path, torch.nn.Identity)]
    assert len(ends) > 5 and all(isinstance(norm, BatchNorm2d) for norm in ends)
    return {value for norm in ends for value in norm.weight.tolist()}


def backbone_dtype(built):
    """In which its own convolutions give out their maps, in training."""
    seen = set()
    for layer in built.model.revhrnet.backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    built.model.train()(torch.rand(2, 3, 64, 64))
    return seen


OF_TERMS = ("label_smoothing", "boundary_relaxation", "focal_gamma", "tversky_alpha", "tversky_beta")


def loss_setting(name):
    """The setting in the network's config, if its loss is that of the recipe's settings."""

    def read(built):
        torch.manual_seed(0)
        labels = torch.randint(0, 11, (2, 32, 32))
        labels[:, :5] = 255
        torch.nn.init.normal_(built.model.head[3].weight, std=0.1)
        outputs = built.model.eval()(torch.rand(2, 3, 32, 32), labels=labels)
        loss, other_loss = (
            segmentation_loss(
                outputs.logits,
                labels,
                255,
                recipe.class_weights,
                recipe.ohem_threshold,
                recipe.ohem_min_kept,
                terms=recipe.loss,
                **{name: getattr(recipe, name) for name in OF_TERMS},
            )
            for recipe in (built.recipe, built.other)
        )
        torch.testing.assert_close(outputs.loss, loss)
        assert abs(loss - other_loss) > 1e-3, "the loss must tell the two settings apart"
        return getattr(built.model.config, f"semantic_loss_{name}")

    return read


# The stage


def transform(name):
    def read(built):
        value = getattr(built.stage.data.samples.transform, name)
        return list(value) if isinstance(value, tuple) else value

    return read


def distortions(built):
    return built.stage.data.samples.transform.distortions


def distortion(name, kind=PhotometricDistortion):
    """A setting of the distortion of this kind; None if it is off."""

    def read(built):
        values = [getattr(each, name) for each in distortions(built) if isinstance(each, kind)]
        value = values[0] if values else None
        return list(value) if isinstance(value, tuple) else value

    return read


def rare_classes(name):
    def read(built):
        drawing = built.stage.data.samples.rare_classes
        return drawing and getattr(drawing, name)

    return read


PHOTOMETRIC = {"photometric_distortion": True}


def seeds(built):
    """Of augmentation, of the order, of what a network draws in a step, and of the first weights."""
    stage = built.stage
    first = {key: value.clone() for key, value in stage.learner.model.state_dict().items()}
    same_weights = all(torch.equal(first[key], value) for key, value in built.model.state_dict().items())
    stage.train_step(next(stage.data.steps()))
    return stage.data.samples.seed, stage.data.batches.seed, torch.initial_seed() // 1_000_003, same_weights


def rates(step):
    """The learning rates of all groups of parameters in a step."""

    def read(built):
        stage = built.stage
        stage.state.step = step
        stage.train_step(next(stage.data.steps()))
        assert len(stage.learner.optimizer.param_groups) == 2
        return [pytest.approx(group["lr"]) for group in stage.learner.optimizer.param_groups]

    return read


def poly(step, power=0.9):
    return 0.05 * (1 - step / STEPS) ** power


TWO_GROUPS = {"decay_norm_and_bias": False}


def decays(built):
    return {(p.ndim > 1): group["weight_decay"] for group in built.optimizer.param_groups for p in group["params"]}


def clipped_norms(built):
    stage, norms = built.stage, []
    clip = stage.accelerator.clip_grad_norm_
    built.patch.setattr(stage.accelerator, "clip_grad_norm_", lambda p, norm: norms.append(norm) or clip(p, norm))
    stage.train_step(next(stage.data.steps()))
    return norms


def recompute(built):
    model = built.stage.learner.model
    if any(getattr(part, "gradient_checkpointing", False) for part in model.modules()):
        return "modules"
    (setting,) = {part.recompute for part in model.modules() if hasattr(part, "recompute")}
    return setting


def is_compiled(built):
    """Whether the trained network was told to compile itself; that it then does takes torch seconds to import."""
    told = []
    built.patch.setattr(torch.nn.Module, "compile", lambda network: told.append(network))
    model = built.stage.learner.model
    return any(network is model for network in told)


def norms_on_several_gpus(built):
    """Kinds of the trained BatchNorms where two processes train on GPUs."""
    accelerator = SimpleNamespace(num_processes=2, device=torch.device("cuda"), prepare=lambda *parts: parts)
    Learner(built.model, None, built.recipe, accelerator, STEPS)
    return {type(norm) for norm in trained(built, (BatchNorm2d, SyncBatchNorm))}


def rehearse(built):
    """Runs a stage whose steps, evaluations and checkpoints do nothing: the epochs evaluated, steps and checkpoints."""
    stage, evaluated, saved = built.stage, [], []

    def step(passes):
        stage.state.step += 1
        stage.meter.losses.append(torch.zeros(len(passes)))

    def save(scores=None, last=True):
        if last:
            saved.append(stage.state.step)
        if scores is not None:
            note_scores(stage.state, scores)

    def evaluate(epoch):
        evaluated.append(epoch)
        return {"mean_iou": 0.5, "labelled_pixels": 1}

    stage.train_step, stage.save, stage.evaluate = step, save, evaluate
    built.patch.setattr(evaluation_hook, "format_scores", lambda *_: "")
    stage.run()
    return SimpleNamespace(evaluated=evaluated, saved=saved, steps=stage.state.step)


def losses_logged(built):
    rehearse(built)
    return sum('"loss"' in line for line in (built.output_dir / "log.jsonl").read_text().splitlines())


def images_drawn(built):
    drawn = []
    built.patch.setattr(evaluation_hook, "triptych", lambda rows, *_: drawn.append(len(rows)))
    built.stage.log.images = lambda step, draw: draw()
    built.stage.evaluate(1)
    return drawn


def checkpoints_kept(built):
    kept = []
    built.patch.setattr(checkpoint, "save_last", lambda folder, keep, fill: kept.append(keep))
    built.stage.save()
    return kept[0]


def tf32_on_a_gpu(built):
    """What is set at the start where Accelerate finds a GPU."""
    found = []
    gpu = SimpleNamespace(device=torch.device("cuda"), print=lambda said: found.append(said.endswith("TF32 (tf32)")))
    built.patch.setattr(processes, "Accelerator", lambda **_: gpu)
    built.patch.setattr(processes, "set_tf32", found.append)
    built.patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    built.patch.setattr(torch.accelerator, "is_available", lambda: True)
    processes.start_processes(built.recipe)
    return found


def has_tensorboard(built):
    built.stage.log.start({})
    built.stage.log.close()
    return (built.output_dir / "tensorboard").is_dir()


class Scored(Exception):
    pass


def workers(built):
    """Of the loader, and those that read for an evaluation."""
    stage, passed = built.stage, []

    def evaluate_dataset(*_, num_workers, **__):
        passed.append(num_workers)
        raise Scored

    built.patch.setattr(evaluation_hook, "evaluate_dataset", evaluate_dataset)
    with pytest.raises(Scored):
        stage.evaluate(1)
    return stage.data.loader.num_workers, *passed


def pushes(built):
    """What the command sends to the Hub after training: [(repository, private)]."""
    sent = []
    built.patch.setattr("revhrnet_hf.hub.push.check_ready", lambda name: None)
    built.patch.setattr("revhrnet_hf.hub.push.push_checkpoint", lambda folder, name, private: sent.append((name, private)))
    built.patch.setattr("revhrnet_hf.training.chain.run_chain", lambda *_: None)
    path = built.output_dir.with_suffix(".yaml")
    path.write_text(built.recipe.to_yaml())
    command.main(["--recipe", str(path), "--data_dir", "nowhere", "--output_dir", str(built.output_dir)])
    return sent


def processed_size(built):
    return tuple(
        built.stage.learner.image_processor(PIL.Image.new("RGB", (64, 48)), return_tensors="pt")["pixel_values"].shape[-2:]
    )


def adapted(built):
    """The layers that have an adapter."""
    layers = list(adapted_layers(built.stage.learner.network).values())
    assert layers
    return layers


def adapters(built):
    return [layer.lora_A["default"] for layer in adapted(built)]


LORA = {"trainable_backbone": "lora"}
SPACES = {"camvid": "camvid11", "cityscapes": "cityscapes"}
PUSH = {"push_to_hub": True, "hub_model_id": "someone/net"}
HUB = {"dataset": "hub", "label_space": lambda folders: folders["table"]}
OF_CHECKPOINT = {"init_from": lambda folders: folders["checkpoint"]}

REACHES = {
    # data
    "dataset": Entry(
        "cityscapes",
        lambda built: label_space_of(built.split).name,
        SPACES.get,
    ),
    "loader": Entry(
        "cityscapes",
        lambda built: label_space_of(load_split(built.recipe, built.folders[built.recipe.loader], "train")).name,
        SPACES.get,
        {"dataset": "photos", "loader": "camvid"},  # a dataset with a name of its own
    ),
    "label_space": Entry(
        "camvid11", lambda built: label_space_of(built.split).name, lambda name: name or "cityscapes", {"dataset": "cityscapes"}
    ),
    "image_column": Entry(
        "photo", lambda built: built.split[0]["image"].getpixel((0, 0)), {None: (0, 0, 0), "photo": (9, 9, 9)}.get, HUB
    ),
    "label_column": Entry("mask", lambda built: built.split[0]["label_map"].getpixel((0, 0)), {None: 0, "mask": 1}.get, HUB),
    "more_datasets": Entry(
        ["cityscapes:val"],
        lambda built: len(built.stage.data.samples),
        lambda names: IMAGES["train"] + (IMAGES["val"] if names else 0),
    ),
    "dataset_shares": Entry(
        [3.0, 1.0],
        lambda built: built.stage.data.batches.mixture and list(built.stage.data.batches.mixture.shares),
        also={"more_datasets": ["cityscapes"]},
    ),
    "on_bad_sample": Entry("skip", lambda built: built.stage.data.samples.skip_bad, lambda value: value == "skip"),
    "train_split": Entry("val", lambda built: len(built.stage.data.samples), IMAGES.get),
    "eval_split": Entry("train", lambda built: len(built.stage.evaluation.dataset), IMAGES.get),
    # model
    "architecture": Entry("hrnetv2", lambda built: built.model.config.model_type, also={"backbone": DEFAULT_BACKBONE}),
    "variant": Entry(
        "w32",
        lambda built: [lateral[0].out_channels for lateral in built.model.revhrnet.laterals],
        {"w18": [18, 36, 72, 144], "w32": [32, 64, 128, 256]}.get,
    ),
    "backbone": Entry("test_efficientnet", lambda built: built.model.revhrnet.backbone._backbone.pretrained_cfg["architecture"]),
    "backbone_weights": Entry(lambda folders: folders["weights"], loaded_weights),
    "freeze_backbone": Entry(
        False, lambda built: {p.requires_grad for p in built.model.revhrnet.backbone.parameters()}, lambda frozen: {not frozen}
    ),
    "trainable_backbone": Entry(
        "last_stage", trained_of_backbone, lambda choice: {None: set(), "none": set(), "last_stage": {"layer4"}}[choice]
    ),
    "lora_rank": Entry(3, lambda built: {a.weight.shape[0] for a in adapters(built)}, lambda rank: {rank}, LORA),
    "lora_alpha": Entry(
        4.0, lambda built: {layer.scaling["default"] for layer in adapted(built)}, lambda alpha: {alpha / 8}, LORA
    ),
    "lora_targets": Entry(
        ["conv2"],
        lambda built: {name.rpartition(".")[2] for name in adapted_layers(built.stage.learner.network)} >= {"conv1", "conv3"},
        lambda targets: targets is None,
        LORA,
    ),
    "pyramid": Entry(
        "learned",
        lambda built: built.model.revhrnet.pyramid.steps is not None,
        lambda kind: kind == "learned",
        {"backbone": "test_vit"},
    ),
    "stream_channels": Entry(
        [12, 16, 24, 32],
        lambda built: [lateral[0].out_channels for lateral in built.model.revhrnet.laterals],
        lambda channels: channels or [18, 36, 72, 144],
    ),
    "num_modules": Entry([2, 1, 3], lambda built: [len(stage) for stage in built.model.revhrnet.stages]),
    "num_blocks": Entry(2, lambda built: blocks(built) | {len(built.model.revhrnet.final_stage)}, lambda count: {count}),
    "final_block": Entry(
        "bottleneck",
        lambda built: type(built.model.revhrnet.final_stage[0]),
        {"basic": BasicBlock, "bottleneck": Bottleneck}.get,
    ),
    "head": Entry("concat", lambda built: built.model.head[0].in_channels, {"single": 18, "concat": 18 + 36 + 72 + 144}.get),
    "init_from": Entry(
        lambda folders: folders["checkpoint"], lambda built: built.stage.transfer and built.stage.transfer.checkpoint
    ),
    "transfer_classifier": Entry(
        False,
        lambda built: torch.equal(
            built.stage.learner.model.head[3].weight,
            load_file(Path(built.recipe.init_from) / "model.safetensors")["head.3.weight"],
        ),
        also=OF_CHECKPOINT,
    ),
    "initializer": Entry(
        "hrnet",
        lambda built: built.model.head[0].weight.std().item(),
        lambda name: pytest.approx(math.sqrt(2 / 18) if name == "he" else 0.001, rel=0.2),
    ),
    "zero_init_residual": Entry(True, last_norms_of_blocks, lambda zero: {0.0 if zero else 1.0}),
    "zero_init_exchange": Entry(True, last_norms_of_exchange_paths, lambda zero: {0.0 if zero else 1.0}),
    "batch_norm_momentum": Entry(0.3, lambda built: {m.momentum for m in trained(built, BatchNorm2d)}, lambda value: {value}),
    # augmentation
    "crop_size": Entry([48, 32], lambda built: list(built.stage.data.samples[0]["labels"].shape)),
    "base_size": Entry(70, transform("base_size")),
    "scale_range": Entry([0.7, 1.5], transform("scale_range")),
    "scale_step": Entry(0.2, transform("scale_step")),
    "flip": Entry(0.25, transform("flip")),
    "rotation": Entry(12.0, transform("rotation")),
    "photometric_distortion": Entry(True, lambda built: len(distortions(built)), int),
    "brightness": Entry(20.0, distortion("brightness"), also=PHOTOMETRIC),
    "contrast": Entry([0.6, 1.2], distortion("contrast"), also=PHOTOMETRIC),
    "saturation": Entry([0.8, 1.3], distortion("saturation"), also=PHOTOMETRIC),
    "hue": Entry(10.0, distortion("hue"), also=PHOTOMETRIC),
    "blur": Entry(0.3, distortion("probability", GaussianBlur), lambda value: value or None),
    "blur_sigma": Entry([0.5, 3.0], distortion("sigma", GaussianBlur), also={"blur": 0.5}),
    "jpeg_noise": Entry(0.4, distortion("probability", JpegNoise), lambda value: value or None),
    "jpeg_quality": Entry([50, 80], distortion("quality", JpegNoise), also={"jpeg_noise": 0.5}),
    "distorted_datasets": Entry(
        ["cityscapes"],
        lambda built: built.stage.data.samples.distorted,
        lambda names: [names is None, True],
        also={"more_datasets": ["cityscapes"], "blur": 0.5},
    ),
    "max_class_share": Entry(0.75, transform("max_class_share")),
    "rare_class_crops": Entry(0.5, rare_classes("crops"), lambda value: value or None),
    "feature_bank": Entry(
        2,
        lambda built: built.stage.data.bank and built.stage.data.bank.steps // STEPS,
        lambda views: views or None,
        {"epochs": 3},
    ),
    "rare_class_images": Entry(0.5, rare_classes("images"), lambda value: value or None),
    "rare_class_temperature": Entry(0.1, rare_classes("temperature"), also={"rare_class_crops": 0.5}),
    # loss
    "loss": Entry({"cross_entropy": 1.0, "lovasz": 0.5}, loss_setting("terms")),
    "label_smoothing": Entry(0.2, loss_setting("label_smoothing")),
    "boundary_relaxation": Entry(True, loss_setting("boundary_relaxation")),
    "focal_gamma": Entry(1.0, loss_setting("focal_gamma"), also={"loss": "focal"}),
    "tversky_alpha": Entry(0.9, loss_setting("tversky_alpha"), also={"loss": "tversky"}),
    "tversky_beta": Entry(0.2, loss_setting("tversky_beta"), also={"loss": "tversky"}),
    "auxiliary_loss_weight": Entry(
        0.4,
        lambda built: built.model.auxiliary_head and (built.model.config.auxiliary_loss_weight, len(built.model.auxiliary_head)),
        lambda weight: weight and (weight, 3),
    ),
    "effective_number_beta": Entry(
        0.5, lambda built: max(built.stage.recipe.class_weights) < 1.01, bool, {"class_weights": "effective_number"}
    ),
    "class_weights": Entry([1.0 + k for k in range(11)], loss_setting("class_weights")),
    "ohem_threshold": Entry(0.09, loss_setting("ohem_threshold"), also={"ohem_threshold": 0.5, "ohem_min_kept": 16}),
    "ohem_min_kept": Entry(500, loss_setting("ohem_min_kept"), also={"ohem_threshold": 0.001, "ohem_min_kept": 64}),
    # optimisation
    "epochs": Entry(3, lambda built: (rehearse(built).steps, built.stage.total_steps), lambda epochs: (STEPS * epochs,) * 2),
    "batch_size": Entry(4, lambda built: {len(batch["labels"]) for batch in next(built.stage.data.steps())}, lambda size: {size}),
    "gradient_accumulation_steps": Entry(
        2,
        lambda built: (len(next(built.stage.data.steps())), built.stage.accelerator.gradient_accumulation_steps),
        lambda passes: (passes, passes),
    ),
    "optimizer": Entry("adamw", lambda built: type(built.stage.learner.optimizer.optimizer).__name__.lower()),
    "learning_rate": Entry(0.02, rates(2), lambda rate: [rate / 0.05 * poly(2)] * 2, TWO_GROUPS),
    "warmup_steps": Entry(4, rates(1), lambda steps: [poly(1) * (2 / 4 if steps else 1)] * 2, TWO_GROUPS),
    "backbone_learning_rate": Entry(0.25, shares, lambda factor: {1.0, factor}, {"trainable_backbone": "all"}),
    "layer_decay": Entry(
        0.5,
        shares,
        lambda decay: {1.0} if decay is None else {decay**times for times in range(8)},  # test_vit has six layers
        {"trainable_backbone": "all", "backbone": "test_vit"},
    ),
    "schedule": Entry(
        "cosine",
        rates(2),
        lambda name: [0.05 * (1 + math.cos(math.pi * 2 / STEPS)) / 2 if name == "cosine" else poly(2)] * 2,
        TWO_GROUPS,
    ),
    "head_learning_rate": Entry(10.0, shares, lambda factor: {1.0, factor}),
    "poly_power": Entry(2.0, rates(3), lambda power: [poly(3, power)] * 2, TWO_GROUPS),
    "momentum": Entry(0.7, lambda built: {group["momentum"] for group in built.optimizer.param_groups}, lambda value: {value}),
    "weight_decay": Entry(0.02, decays, lambda value: {True: value, False: value}),
    "decay_norm_and_bias": Entry(False, decays, lambda decays: {True: 5e-4, False: 5e-4 if decays else 0.0}),
    "max_grad_norm": Entry(0.25, clipped_norms, lambda norm: [] if norm is None else [norm]),
    "ema_decay": Entry(0.75, lambda built: built.stage.learner.averaged and built.stage.learner.averaged.decay),
    "precision": Entry("bf16", lambda built: built.stage.accelerator.mixed_precision),
    "tf32": Entry(False, tf32_on_a_gpu, lambda on: [on, on]),
    "backbone_dtype": Entry("bfloat16", backbone_dtype, lambda name: {getattr(torch, name)}),
    "recompute": Entry("modules", recompute, also={"recompute": "norms"}),
    "torch_compile": Entry(True, is_compiled),
    "sync_batch_norm": Entry(False, norms_on_several_gpus, lambda sync: {SyncBatchNorm if sync else BatchNorm2d}),
    "seed": Entry(7, seeds, lambda seed: (seed, seed, seed, True)),
    # scores
    "eval_size": Entry(32, processed_size, {None: (48, 64), 32: (24, 32)}.get),
    "eval_every": Entry(
        2, lambda built: rehearse(built).evaluated, lambda every: [1, 2, 3] if every == 1 else [2, 3], {"epochs": 3}
    ),
    "eval_at_start": Entry(True, lambda built: rehearse(built).evaluated, lambda start: [0, 1] if start else [1]),
    "early_stopping_patience": Entry(
        2, lambda built: rehearse(built).evaluated, lambda patience: [1, 2, 3] if patience else [1, 2, 3, 4, 5], {"epochs": 5}
    ),
    # the run
    "num_workers": Entry(2, workers, lambda count: (count, count)),
    "save_every": Entry(2, lambda built: rehearse(built).saved, {None: [5], 2: [2, 4, 5]}.get),
    "save_every_epochs": Entry(2, lambda built: rehearse(built).saved, {1: [5, 10, 15], 2: [10, 15]}.get, {"epochs": 3}),
    "save_in_background": Entry(True, lambda built: built.stage.checkpoints.host_copies is not None),
    "keep_checkpoints": Entry(5, checkpoints_kept),
    "log_every": Entry(2, losses_logged, {STEPS: 1, 2: 3}.get),
    "log_images": Entry(2, images_drawn, lambda count: [count]),
    "trackers": Entry(["tensorboard"], has_tensorboard, bool),
    "push_to_hub": Entry(True, lambda built: len(pushes(built)), int, needs={"hub_model_id": "someone/net"}),
    "hub_model_id": Entry("someone/other", pushes, lambda name: [(name, False)], PUSH),
    "hub_private_repo": Entry(True, pushes, lambda private: [("someone/net", private)], PUSH),
}


@pytest.fixture(scope="module")
def folders(streets, weights, tmp_path_factory):
    """Where datasets, weights and a checkpoint of `BASE`'s network lie, by name."""
    folder = tmp_path_factory.mktemp("fields")
    (folder / "table.yaml").write_text("names: [road, car]\n")
    images = {name: [PIL.Image.new("RGB", (8, 6), (grey,) * 3)] for name, grey in (("image", 0), ("photo", 9))}
    maps = {name: [PIL.Image.fromarray(np.full((6, 8), id_, np.uint8))] for name, id_ in (("label_map", 0), ("mask", 1))}
    columns = datasets.Features(dict.fromkeys((*images, *maps), datasets.Image()))
    datasets.Dataset.from_dict({**images, **maps}, features=columns).save_to_disk(folder / "hub")
    torch.manual_seed(11)
    model, processor = build_model(Recipe(**BASE), get_label_space("camvid11"))
    for part in (model, processor):
        part.save_pretrained(folder / "checkpoint")
    places = {name: str(folder / name) for name in ("hub", "table.yaml", "checkpoint")}
    return {**streets, **places, "table": places["table.yaml"], "weights": str(weights)}


def placed(value, folders):
    return value(folders) if callable(value) else value


def test_every_field_has_an_entry():
    assert set(REACHES) == {setting.name for setting in fields(Recipe)}


@pytest.mark.parametrize("name", REACHES)
def test_field_reaches_what_it_names(name, fresh_accelerate, folders, tmp_path):
    entry = REACHES[name]
    settings = {**BASE, **{key: placed(value, folders) for key, value in entry.also.items()}}
    base, changed = Recipe(**settings), Recipe(**{**settings, **entry.needs, name: placed(entry.value, folders)})
    assert getattr(changed, name) != getattr(base, name)
    for recipe, other in ((base, changed), (changed, base)):
        fresh_accelerate()
        with pytest.MonkeyPatch.context() as patch:
            built = Built(recipe, other, folders, tmp_path / ("base" if recipe is base else "changed"), patch)
            assert entry.read(built) == entry.seen(getattr(recipe, name)), f"{name}: {getattr(recipe, name)!r}"


def test_images_are_normalised_as_those_that_the_backbone_learnt_from(fresh_accelerate, folders, tmp_path):
    """EfficientNet-Lite's mean and standard deviation are 0.5, not ImageNet's; in training and in the checkpoint alike."""
    recipe = Recipe(**{**BASE, "backbone": "tf_efficientnet_lite0"})
    stage = Stage(recipe, folders, tmp_path)
    for processor in (stage.learner.image_processor, stage.data.samples.transform.image_processor):
        assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.5] * 3)
    black, white = (
        stage.learner.image_processor(PIL.Image.new("RGB", (8, 8), colour), return_tensors="pt")["pixel_values"]
        for colour in ("black", "white")
    )
    assert (black == -1).all() and (white == 1).all()
