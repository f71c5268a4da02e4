"""A checkpoint as a `torch.export` program."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from transformers import TimmBackbone

from ..errors import ExportError
from ..models.folding import fold_batch_norms
from ..models.high_resolution import HighResolutionPreTrainedModel
from ..models.image_processing_pil_revhrnet import Size
from ..models.upsampling import MAX_UINT8_CLASSES

PROGRAM_FILE = "model.pt2"
INPUT = "pixel_values"
BACKBONE_DTYPE = "frozen_backbone_dtype"  # field of a config
EXAMPLE_SIZE = (128, 192)  # (height, width) of the traced image, if any size is allowed


class Exportable(nn.Module):
    """A segmentation model whose input and output are tensors.

    Args:
        model: any Transformers model for semantic segmentation; a copy is put into a form that can be exported.
        with_argmax: give the label map at the input's size (batch, height, width) instead of logits; see `label_dtype`.
    """

    def __init__(self, model: nn.Module, with_argmax: bool = False):
        super().__init__()
        model = copy.deepcopy(model).eval()
        model.auxiliary_head = None  # classifiers that only training uses
        if isinstance(model, HighResolutionPreTrainedModel):
            fold_batch_norms(model)
        if hasattr(model.config, BACKBONE_DTYPE):
            setattr(model.config, BACKBONE_DTYPE, None)  # see `without_backbone_dtype`
        self.model = with_symmetric_padding(model)
        self.with_argmax = with_argmax

    def forward(self, pixel_values: Tensor) -> Tensor:
        return logits_or_label_map(self.model(pixel_values=pixel_values).logits, pixel_values, self.with_argmax)


@contextmanager
def without_backbone_dtype(model: nn.Module) -> Iterator[None]:
    """Let a model compute in the dtype of its weights, as what is exported from it does.

    A frozen backbone's own dtype makes PyTorch faster; a runtime chooses its precision itself, and ONNX Runtime has no bfloat16
    on CPUs.
    """
    dtype = getattr(model.config, BACKBONE_DTYPE, None)
    if dtype is None:
        yield
        return
    setattr(model.config, BACKBONE_DTYPE, None)
    try:
        yield
    finally:
        setattr(model.config, BACKBONE_DTYPE, dtype)


def logits_or_label_map(logits: Tensor, pixel_values: Tensor, with_argmax: bool) -> Tensor:
    if not with_argmax:
        return logits
    scores = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)
    return scores.argmax(dim=1).to(label_dtype(logits.shape[1]))


def label_dtype(num_labels: int) -> torch.dtype:
    """The smallest dtype that holds every class id: uint8, or uint16 above 256 classes."""
    return torch.uint8 if num_labels <= MAX_UINT8_CLASSES else torch.uint16


class Mirrored(nn.Module):
    """A backbone with mirrored convolutions: it sees the mirrored image, and its maps are mirrored back."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor, **kwargs):
        outputs = self.backbone(pixel_values.flip(-1, -2), **kwargs)
        outputs.feature_maps = tuple(x.flip(-1, -2) for x in outputs.feature_maps)
        return outputs


def with_symmetric_padding(model: nn.Module) -> nn.Module:
    """Change timm backbones with TensorFlow's padding ("SAME") so that no padding depends on the image's size.

    TensorFlow pads a strided convolution more at the bottom and at the right, by an amount that depends on whether the size is
    even; the last window is always centred on the last pixel. In the mirrored image that window is centred on the first pixel, as
    symmetric padding centres it at every size. So a network with mirrored image, kernels and maps computes the same, and an
    exporter can express the sizes as formulas.

    Raises:
        ExportError: a backbone mixes such layers with others that have a stride.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, TimmBackbone) and any(isinstance(layer, Conv2dSame) for layer in module.modules()):
            _mirror_convolutions(module)
            model.set_submodule(name, Mirrored(module))
    return model


def _mirror_convolutions(backbone):
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, Conv2dSame):
            layer = _symmetric(layer)
            backbone.set_submodule(name, layer)
        elif max(np.atleast_1d(getattr(layer, "stride", 1))) > 1:
            raise ExportError(
                f"the backbone's {name} ({type(layer).__name__}) has a stride, but not TensorFlow's padding as others have"
            )
        if isinstance(layer, nn.Conv2d):
            layer.weight = nn.Parameter(layer.weight.flip(-1, -2), requires_grad=False)


def _symmetric(layer: Conv2dSame) -> nn.Conv2d:
    symmetric = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        padding=[edge // 2 * step for edge, step in zip(layer.kernel_size, layer.dilation, strict=True)],
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    symmetric.weight, symmetric.bias = layer.weight, layer.bias
    return symmetric


def export_program(model: nn.Module, size: Size | None, with_argmax: bool = False) -> torch.export.ExportedProgram:
    """A `torch.export` program: `pixel_values` (batch, 3, height, width) float32 → logits, or label maps.

    Args:
        model: a Transformers model for semantic segmentation, on the CPU.
        size: (height, width) in pixels of the one image that it takes; None: any number of images of any size.
        with_argmax: as in [`Exportable`].
    """
    exportable = Exportable(model, with_argmax)
    free = torch.export.Dim.AUTO
    dynamic = None if size else {INPUT: {0: free, 2: free, 3: free}}
    pixel_values = torch.zeros(1 if size else 2, 3, *(size or EXAMPLE_SIZE))
    with torch.no_grad():
        return torch.export.export(exportable, (pixel_values,), dynamic_shapes=dynamic)


def is_dynamic(program: torch.export.ExportedProgram) -> bool:
    return bool(program.range_constraints)


def gives_logits(program: torch.export.ExportedProgram) -> bool:
    """Whether the program gives logits; else it gives label maps."""
    [output] = program.graph_signature.user_outputs
    [node] = [node for node in program.graph.nodes if node.name == output]
    return node.meta["val"].is_floating_point()
