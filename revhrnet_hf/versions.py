"""What a result was made with, for the records beside checkpoints and scores."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

PACKAGES = ("revhrnet_hf", "torch", "torchvision", "transformers", "timm", "datasets", "accelerate", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on; in a git checkout of this package, its `revision` as well."""
    made_with = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    revision = git_revision()
    return made_with if revision is None else {**made_with, "revision": revision}


def git_revision() -> str | None:
    """The commit of this package's checkout, with `-dirty` where files differ from it; None where it is no checkout."""
    # Installed into another project's folder, it lies in that project's checkout but is no part of it.
    if shutil.which("git") is None or _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    finished = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    return finished.stdout.strip() if finished.returncode == 0 else None


def hardware(device: torch.device, num_processes: int) -> str:
    """What a run runs on: `4 × NVIDIA H100`, or the number of cores and the processor's kind."""
    if device.type == "cuda":
        return f"{num_processes} × {torch.cuda.get_device_name(device)}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
