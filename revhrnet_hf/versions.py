"""What a result was made with, for the records beside checkpoints and scores."""

import importlib.metadata
import platform

PACKAGES = ("revhrnet_hf", "torch", "torchvision", "transformers", "timm", "datasets", "accelerate", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
