"""The processes of a run: how they are started by Accelerate, on settings that the recipe decides, and what memory they take."""

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from ..errors import RecipeError
from .recipe import Recipe

logger = logging.getLogger(__name__)

# Seconds without an answer from a loader's worker or another process, after which a run ends with an error.
TIMEOUT = 1800

# x86 processors on which a step of `recipes/camvid.yaml` took 7.2 times as long in bfloat16 as in float32.
NO_FAST_BF16 = ("DEFAULT", "NO AVX", "AVX2") if platform.machine() in ("x86_64", "AMD64") else ()

# Settings that Accelerate reads from the environment, where `accelerate config` and the options of `accelerate launch` put them.
# Those of the first group have a field in the recipe; the function tells whether a value agrees with it. `accelerate launch`
# writes "no" for settings that nobody asked for.
AGREES: dict[str, tuple[str, Callable[[str, Recipe], bool]]] = {
    "ACCELERATE_MIXED_PRECISION": ("precision", lambda value, recipe: value in ("no", recipe.precision)),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
        "gradient_accumulation_steps",
        lambda value, recipe: _number(value) == recipe.gradient_accumulation_steps,
    ),
    "ACCELERATE_GRADIENT_CLIPPING": (
        "max_grad_norm",
        lambda value, recipe: value in ("auto", "none") or _number(value) == recipe.max_grad_norm,
    ),
    "ACCELERATE_DYNAMO_BACKEND": (
        "torch_compile",
        lambda value, recipe: value == "no" or (value == "inductor" and recipe.torch_compile),
    ),
    "ACCELERATE_DYNAMO_MODE": ("torch_compile", lambda value, recipe: value == "default"),
}
# Settings that no recipe asks for; names that end in _ are prefixes.
REFUSED = (
    "ACCELERATE_DEEPSPEED_",
    "ACCELERATE_DOWNCAST_BF16",
    "ACCELERATE_DYNAMO_USE_",
    "ACCELERATE_FP8_",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
)
OFF = {"", "0", "false", "f", "no", "n", "off", "none"}


def start_processes(recipe: Recipe, timeout: float = TIMEOUT) -> Accelerator:
    """Accelerate for this process and those beside it. The recipe decides, whatever the environment says.

    The first call in a process settles precision and device for all later ones.

    Raises:
        RecipeError: the device lacks the precision, or a setting of Accelerate in the environment disagrees with the recipe.
    """
    drop_empty_settings()
    refuse_other_settings(recipe)
    # On CPUs torchrun's processes find each other only if Accelerate is told that CPUs are meant.
    cpu = not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=recipe.precision,
            # As a plain number, it would be overridden by the environment's.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.gradient_accumulation_steps),
            dynamo_backend="no",  # the network compiles itself (`torch_compile`)
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=timeout)),
                # A forward pass in training uses no running statistics; `Learner.share_buffers` brings them to all for scoring.
                DistributedDataParallelKwargs(broadcast_buffers=False),
            ],
        )
    except ValueError as error:
        raise RecipeError(f"Accelerate cannot start with precision {recipe.precision} here: {error}") from error
    if accelerator.device.type == "cuda":
        set_tf32(recipe.tf32)
        torch.cuda.reset_peak_memory_stats()  # of a stage before this one
        accelerator.print(
            f"float32 convolutions and matrix products on the GPU: {'TF32' if recipe.tf32 else 'full precision'} (tf32)"
        )
        if recipe.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            accelerator.print("precision bf16: this GPU emulates bfloat16, which is slow; `--precision fp16` is faster there")
    if cpu and accelerator.is_main_process:
        _warn_on_cpu(recipe, accelerator)
    return accelerator


def _warn_on_cpu(recipe: Recipe, accelerator: Accelerator) -> None:
    """Two surprises of training on CPUs: a launcher that started one process only, and bfloat16 that is slow."""
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "this is one process only. On CPUs `accelerate launch --num_processes N` starts no others; "
            "`accelerate launch --multi_gpu --num_processes N` and `torchrun --nproc_per_node N` do"
        )
    if recipe.precision == "bf16" and torch.backends.cpu.get_cpu_capability() in NO_FAST_BF16:
        logger.warning(
            "precision bf16: this processor has no AVX-512, without which bfloat16 is emulated and a step takes several times as "
            "long as in float32; `--precision no` trains in float32"
        )


def set_tf32(on: bool) -> None:
    """Whether GPUs multiply float32 numbers with 10 bits behind the point: in convolutions and in matrix products alike.

    torch by itself does so in convolutions only.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


@contextmanager
def fixed_sizes() -> Iterator[None]:
    """Lets cuDNN try its algorithms on each new size of a convolution's input; it pays where sizes stay, as in training."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def out_of_memory(error: RuntimeError, recipe: Recipe) -> RecipeError | None:
    """The error to raise where the GPU's memory was not enough for a training step; None for any other error."""
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    passes, (height, width) = recipe.gradient_accumulation_steps, recipe.crop_size
    ways = [f"gradient_accumulation_steps (now {passes})", "lower batch_size", "smaller crop_size"]
    if recipe.recompute != "modules":
        ways.insert(0, "recompute: modules")
    if recipe.precision == "no":
        ways.insert(0, "precision: bf16")
    return RecipeError(
        f"The GPU's memory is not enough for a step (batch_size {recipe.batch_size} in {passes} forward pass(es), crops of "
        f"{height}×{width}, recompute: {recipe.recompute}). Each of these needs less: {', '.join(ways)} (docs/memory.md). "
        "--dry_run shows the peak"
    )


def drop_empty_settings() -> None:
    """Remove settings of Accelerate that are set but empty from this process's environment: they count as unset.

    Accelerate itself would end with an error that does not name them (`ACCELERATE_USE_CPU=`).
    """
    for name, given in list(os.environ.items()):
        if name.startswith("ACCELERATE_") and not given.strip():
            del os.environ[name]


def refuse_other_settings(recipe: Recipe) -> None:
    """Raises a RecipeError that names each setting of Accelerate in the environment that disagrees with the recipe."""
    said = []
    for name, given in sorted(os.environ.items()):
        value = given.strip().lower()
        if name in AGREES:
            field, agrees = AGREES[name]
            if not agrees(value, recipe):
                said.append(f"{name}={given} (the recipe's {field} is {getattr(recipe, field)})")
        elif _is_refused(name) and value not in OFF:
            said.append(f"{name}={given} (no recipe asks for that)")
    if said:
        raise RecipeError(
            f"The environment has settings of Accelerate that disagree with the recipe: {'; '.join(said)}. The recipe decides: "
            "unset them, or leave them out of `accelerate config` and `accelerate launch`, and set the recipe's fields"
        )


def _is_refused(name: str) -> bool:
    return any(name.startswith(known) if known.endswith("_") else name == known for known in REFUSED)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def peak_memory_gib(device: torch.device) -> float:
    """The peak memory of this process: allocated on the GPU, else resident (without the loader's workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_resident_bytes() / 2**30


def peak_resident_bytes() -> int:
    """The peak resident memory of this process so far, without its children's."""
    if sys.platform == "win32":
        import psutil  # which comes with Accelerate

        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others KiB
