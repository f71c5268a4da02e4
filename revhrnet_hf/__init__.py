"""Reverse HRNet on a frozen backbone for semantic segmentation, as Hugging Face Transformers models.

Importing this package registers its models with the Auto classes. It does not import the training code (`revhrnet_hf.training`).
"""

try:
    import torchvision  # noqa: F401
except RuntimeError as error:
    raise ImportError(
        f"torch and torchvision do not fit together ({error}). The usual cause is a CPU-only torch with the package index's "
        "torchvision. Install both from the same place: pip install --force-reinstall torch torchvision -c constraints.txt"
    ) from error

from .models import (
    HRNetV2Backbone,
    HRNetV2Config,
    HRNetV2ForSemanticSegmentation,
    RevHRNetConfig,
    RevHRNetForSemanticSegmentation,
    RevHRNetImageProcessor,
    RevHRNetImageProcessorPil,
    RevHRNetModel,
)
from .pipelines import register as _register_pipeline

_register_pipeline()

__all__ = [
    "HRNetV2Backbone",
    "HRNetV2Config",
    "HRNetV2ForSemanticSegmentation",
    "RevHRNetConfig",
    "RevHRNetForSemanticSegmentation",
    "RevHRNetImageProcessor",
    "RevHRNetImageProcessorPil",
    "RevHRNetModel",
]

__version__ = "0.1.0"
