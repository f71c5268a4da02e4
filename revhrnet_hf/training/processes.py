"""The processes of a run: settings of Accelerate that the recipe decides, errors that all of them end with, memory."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from .. import errors
from ..errors import RecipeError, RevHRNetError, TrainingError
from .recipe import Recipe

# What Accelerate reads from the environment, where `accelerate config` and the options of `accelerate launch` put their answers.
# Where a recipe's field says the same: whether a value agrees with it. `accelerate launch` writes "no" for what nobody asked for.
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
# What no recipe asks for; by prefix where they end in _.
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
# Where a run takes place and what is said of it, which is no recipe's matter; or of use only to what is refused.
FREE = (
    "ACCELERATE_ALLOW_CP_STANDALONE",
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_DEBUG_RDV_FILE",
    "ACCELERATE_ENABLE_RICH",
    "ACCELERATE_INIT_INCLUDE_BUFFERS",
    "ACCELERATE_IN_TPU_POD",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_NUM_PROCESSES",
    "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_USE_CPU",
)
OFF = {"", "0", "false", "f", "no", "n", "off", "none"}


def drop_empty_settings() -> None:
    """Take settings of Accelerate that are set but empty out of this process's environment: they count as unset.

    Accelerate itself would end with an error that does not name them (`ACCELERATE_USE_CPU=`).
    """
    for name, given in list(os.environ.items()):
        if name.startswith("ACCELERATE_") and not given.strip():
            del os.environ[name]


def refuse_other_settings(recipe: Recipe) -> None:
    """Raises a RecipeError that names each setting of Accelerate in the environment that the recipe does not agree with."""
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


class SharedErrors:
    """Lets the error of one process end all of them with it; else the others would wait for it until the timeout.

    Work that one process does while the others wait, or that each does for itself, stands in `together`. Between two exchanges
    of messages there is `hold`: all processes go on, in step, until each of them comes to `raise_together`. With one process
    errors are raised at once.

    Attributes:
        held: this process's first error that the others do not know yet.
    """

    def __init__(self, accelerator: Accelerator, timeout: float):
        self.accelerator, self.timeout = accelerator, timeout
        self.held: Exception | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.accelerator.num_processes == 1:
                raise
            self.held = self.held or error

    @contextmanager
    def together(self) -> Iterator[None]:
        """As `hold` and `raise_together` after it; all processes must come here."""
        with self.hold():
            yield
        self.raise_together()

    def raise_together(self) -> None:
        """Wait for all processes; raise this one's error, or else the first one's that has one, as one of the same kind."""
        if self.accelerator.num_processes == 1:
            return
        own, self.held = self.held, None
        try:
            told = gather_object([None if own is None else _told(own)])
        except RuntimeError as error:
            raise own or lost_process(error, self.accelerator, self.timeout) or error from error
        if own is not None:
            raise own
        for process, what in enumerate(told):
            if what is not None:
                kind, message = what
                raise getattr(errors, kind, TrainingError)(f"Process {process}: {message}")


def _told(error: Exception) -> tuple[str, str]:
    """An error's kind, if it is one of the user's, and its message."""
    if isinstance(error, RevHRNetError):
        return type(error).__name__, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return TrainingError.__name__, f"{error.filename}: {error.strerror}"
    return TrainingError.__name__, f"{type(error).__name__}: {error}"


def lost_process(error: RuntimeError, accelerator: Accelerator, timeout: float) -> TrainingError | None:
    """What to say of an error in an exchange of messages, which another process did not answer; None for other errors."""
    said = str(error)
    if accelerator.num_processes == 1 or not (isinstance(error, torch.distributed.DistError) or "gloo" in said):
        return None
    first_line = said.partition("\n")[0].rstrip(" .")
    return TrainingError(
        f"Process {accelerator.process_index} got no answer from another one, which has ended or hangs (waits end after "
        f"{timeout:.0f} s): {first_line}. Go on with --resume"
    )


def peak_resident_bytes() -> int:
    """The most memory that this process has had so far, without its children's."""
    if sys.platform == "win32":
        import psutil  # which comes with Accelerate

        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others KiB
