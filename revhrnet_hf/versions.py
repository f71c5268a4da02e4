"""The versions and the hardware behind a result, for the records beside checkpoints and scores."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

PACKAGES = ("revhrnet_hf", "torch", "torchvision", "transformers", "timm", "datasets", "accelerate", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on, and this package's git `revision` if it is a checkout."""
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    revision = git_revision()
    return found if revision is None else {**found, "revision": revision}


def git_revision() -> str | None:
    """The commit of this package's checkout, with `-dirty` if files differ from it; None if the package is not a checkout."""
    # `ls-files`: a package that is installed inside another project's checkout is not part of that checkout.
    if shutil.which("git") is None or _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    finished = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    return finished.stdout.strip() if finished.returncode == 0 else None


def hardware(device: torch.device, num_processes: int) -> str:
    """The hardware of a run: `4 × NVIDIA H100`, or the number of CPU cores and their architecture."""
    if device.type == "cuda":
        return f"{num_processes} × {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
