"""Image processor of RevHRNet on torchvision: tensors, on any device."""

from transformers.image_processing_backends import TorchvisionBackend

from .image_processing_pil_revhrnet import RevHRNetImageProcessorKwargs, RevHRNetImageProcessorMixin


class RevHRNetImageProcessor(RevHRNetImageProcessorMixin, TorchvisionBackend):
    """Image processor of RevHRNet on torchvision, the one that is used unless `backend="pil"` is asked for."""

    valid_kwargs = RevHRNetImageProcessorKwargs


__all__ = ["RevHRNetImageProcessor"]
