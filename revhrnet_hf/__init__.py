"""Reverse HRNet on a frozen backbone for semantic segmentation, as Hugging Face Transformers models.

Importing this package registers its models with the Auto classes, at the latest when Transformers is imported (deferred.py), and
imports neither PyTorch nor the training code (`revhrnet_hf.training`).
"""

from importlib import import_module

from .deferred import when_imported

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


def _register() -> None:
    """Registers the models with the Auto classes, and the pipeline."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        raise ImportError(
            f"torch and torchvision do not fit together ({error}). The usual cause is a CPU-only torch with the package index's "
            "torchvision. Install both from the same place: pip install --force-reinstall torch torchvision "
            "(in a clone with -c constraints.txt)"
        ) from error
    import_module(".models", __name__)
    import_module(".pipelines", __name__)


def __getattr__(name: str):
    if name not in ("models", *__all__):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    models = import_module(".models", __name__)
    return models if name == "models" else getattr(models, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


when_imported("transformers", _register)
