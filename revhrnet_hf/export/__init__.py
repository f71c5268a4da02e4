"""Exporting a checkpoint: to ONNX, to a `torch.export` program, to eight bits.

An exported network is first compared with the checkpoint, on images of several sizes. A JSON file beside it describes inputs and
outputs to programs that do not have this package (classes, mean, size …). ONNX needs the extra `export`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from transformers import TimmBackbone
from transformers.image_utils import PILImageResampling
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..errors import ExportError
from ..images import read_image
from ..models.image_processing_pil_revhrnet import Size
from ..synthetic import draw_scenes

INPUT = "pixel_values"
ALLOWED_DIFFERENCE = 1e-3  # of logits
REQUIRED_EQUAL = 0.999  # share of the pixels that get the same class
CHECKED_SIZES = ((96, 128), (150, 107), (240, 320))  # (height, width); odd ones too
EXAMPLE_SIZE = (128, 192)  # of the traced image, if any size is allowed
ONNX_FILE, INT8_FILE, PROGRAM_FILE, DESCRIPTION_FILE = "model.onnx", "model_int8.onnx", "model.pt2", "model.json"
CALIBRATION_IMAGES = 32


class Exportable(nn.Module):
    """A segmentation model whose input and output are tensors.

    Args:
        model: any Transformers model for semantic segmentation; a copy is put into a form that can be exported.
        with_argmax: give the label map at the input's size, int64 (batch, height, width), instead of logits.
    """

    def __init__(self, model: nn.Module, with_argmax: bool = False):
        super().__init__()
        self.model = with_symmetric_padding(copy.deepcopy(model)).eval()
        self.with_argmax = with_argmax

    def forward(self, pixel_values: Tensor) -> Tensor:
        return logits_or_label_map(self.model(pixel_values=pixel_values).logits, pixel_values, self.with_argmax)


def logits_or_label_map(logits: Tensor, pixel_values: Tensor, with_argmax: bool) -> Tensor:
    if not with_argmax:
        return logits
    return F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False).argmax(dim=1)


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


@dataclass(frozen=True)
class Agreement:
    """How much an exported network differs from the checkpoint.

    Attributes:
        images: number of images that were compared.
        largest_difference: of logits; None if the network gives label maps.
        equal_pixels: share of the pixels with the same class, at the input's size.
    """

    images: int
    largest_difference: float | None
    equal_pixels: float


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


def write_onnx(program: torch.export.ExportedProgram, path: Path, opset: int | None = None) -> int:
    """Write a program as ONNX and run ONNX's own checker; returns the opset.

    Raises:
        ExportError: PyTorch cannot write this opset.
    """
    import onnx

    axes = {INPUT: {0: "batch", 2: "height", 3: "width"}} if is_dynamic(program) else None
    output = "logits" if gives_logits(program) else "label_map"
    onnx_program = torch.onnx.export(
        program, input_names=[INPUT], output_names=[output], opset_version=opset, dynamic_shapes=axes, verbose=False
    )
    onnx_program.save(path)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    [found] = [entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")]
    if opset not in (None, found):
        raise ExportError(f"--opset {opset}: the network could be written in opset {found} only")
    return found


def is_dynamic(program: torch.export.ExportedProgram) -> bool:
    return bool(program.range_constraints)


def gives_logits(program: torch.export.ExportedProgram) -> bool:
    """Whether the program gives logits; else it gives label maps."""
    [output] = program.graph_signature.user_outputs
    [node] = [node for node in program.graph.nodes if node.name == output]
    return node.meta["val"].is_floating_point()


class OnnxModel(nn.Module):
    """An exported network that gives logits, used like a Transformers model to compute scores and label maps on the CPU.

    Args:
        path: the ONNX file.
        threads: that the network uses; by default as many as PyTorch.
    """

    def __init__(self, path: Path, threads: int | None = None):
        super().__init__()
        self.session = onnx_session(path, threads)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells device and dtype

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        return SemanticSegmenterOutput(logits=run_onnx(self.session, pixel_values))


def onnx_session(path: Path, threads: int | None = None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session, pixel_values: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {INPUT: pixel_values.numpy()})[0])


def check_agreement(model: nn.Module, exported: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Agreement:
    """Compare an exported network with the checkpoint.

    Args:
        model: the checkpoint, not changed for the export.
        exported: `pixel_values` → logits or label maps.
        batches: `pixel_values` (batch, 3, height, width).

    Raises:
        ExportError: logits differ by more than `ALLOWED_DIFFERENCE`, or a share below `REQUIRED_EQUAL` of the pixels is equal;
            shapes or types differ; logits of either hold NaN or infinity; there is no image to compare.
    """
    images, differences, equal, pixels = 0, [], 0, 0
    with torch.inference_mode():
        for pixel_values in batches:
            logits, found = model(pixel_values=pixel_values).logits, exported(pixel_values)
            label_maps = logits_or_label_map(logits, pixel_values, with_argmax=True)
            _check_form(found, logits, label_maps)
            if found.is_floating_point():
                differences.append(float((found - logits).abs().max()))
                found = logits_or_label_map(found, pixel_values, with_argmax=True)
            equal += int((found == label_maps).sum())
            pixels += label_maps.numel()
            images += len(pixel_values)
    if not pixels:
        raise ExportError("there is no image to compare what was exported with the checkpoint on. Nothing was written")
    largest = max(differences, default=None)
    agreement = Agreement(images, largest, equal / pixels)
    # Written so that NaN does not pass.
    same_logits = largest is None or largest <= ALLOWED_DIFFERENCE
    if not (same_logits and agreement.equal_pixels >= REQUIRED_EQUAL):
        raise ExportError(
            f"what was exported is not the checkpoint: logits differ by {largest}, {100 * agreement.equal_pixels:.2f} % of the "
            f"pixels are equal; {ALLOWED_DIFFERENCE} and {100 * REQUIRED_EQUAL} % are allowed. Nothing was written"
        )
    return agreement


def _check_form(found: Tensor, logits: Tensor, label_maps: Tensor) -> None:
    """Check shape, type and finiteness of an exported network's output, before its values are compared."""
    expected = logits if found.is_floating_point() else label_maps
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ExportError(
            f"what was exported gives {found.dtype} of shape {tuple(found.shape)} where the checkpoint gives {expected.dtype} of "
            f"shape {tuple(expected.shape)}. Nothing was written"
        )
    for whose, values in (("the checkpoint", logits), ("what was exported", found)):
        if not torch.isfinite(values).all():
            raise ExportError(f"the logits of {whose} hold NaN or infinity, so nothing can be compared. Nothing was written")


def drawn_batches(image_processor, size: Size | None) -> list[Tensor]:
    """Drawn street scenes as `pixel_values`: one of the fixed size, or batches of 1, 2, … of several sizes."""
    batches = []
    for number, (height, width) in enumerate([size] if size else CHECKED_SIZES, start=1):
        scenes = draw_scenes("val", 1 if size else number, (height, width), seed=0)
        images = [scene.image for scene in scenes]
        batches.append(image_processor(images=images, do_resize=False, return_tensors="pt")["pixel_values"])
    return batches


def write_int8(source: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Quantise an ONNX network's convolutions to eight bits, statically: weights by channel, activations by calibration.

    Args:
        source, target: ONNX files.
        batches: `pixel_values` of the images to calibrate with.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(batches)

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        # Together with its activation, a convolution is quantised over the range of the activation's output: half as wide after a
        # ReLU. CamVid's mIoU is 0.757 in 32 bits, 0.657 with convolutions alone, 0.759 with these (docs/exporting.md).
        op_types_to_quantize=["Conv", "Relu", "Clip"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def calibration_batches(image_processor, images: Sequence[Path]) -> Iterable[Tensor]:
    """`pixel_values` of image files, at most `CALIBRATION_IMAGES` of them, evenly spread, one by one."""
    step = max(1, len(images) / CALIBRATION_IMAGES)
    for number in range(min(len(images), CALIBRATION_IMAGES)):
        image = read_image(images[int(number * step)])
        yield image_processor(images=image, return_tensors="pt")["pixel_values"]


def for_size(image_processor, size: Size | None):
    """An image processor that resizes every image to `size`; the same one if any size is allowed."""
    if size is None:
        return image_processor
    settings = image_processor.to_dict() | {"do_resize": True, "size": {"height": size[0], "width": size[1]}}
    return type(image_processor).from_dict(settings | {"do_pad": False, "do_center_crop": False})


def describe(model, image_processor, with_argmax: bool) -> dict[str, Any]:
    """The description of an exported network, for programs that do not have this package."""
    config, options = model.config, image_processor
    resize = None
    channels = "BGR" if getattr(options, "do_flip_channel_order", None) else "RGB"
    if options.do_resize:
        resize = {"size": dict(options.size), "resample": PILImageResampling(options.resample).name.lower()}
    label_map = "class ids, int64 (batch, height, width)"
    logits = (
        "logits, float32 (batch, classes, rows, columns): resize them bilinearly (half-pixel centres) to the size wanted, "
        "then take the largest"
    )
    return {
        "input": {
            "name": INPUT,
            "shape": f"(batch, 3, height, width), float32, {channels}",
            "resize": resize,
            "values": "(value * rescale_factor - mean) / std, of values from 0 to 255",
            "rescale_factor": options.rescale_factor if options.do_rescale else 1,
            "mean": list(options.image_mean) if options.do_normalize else [0.0] * 3,
            "std": list(options.image_std) if options.do_normalize else [1.0] * 3,
        },
        "output": {"name": "label_map", "is": label_map} if with_argmax else {"name": "logits", "is": logits},
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "palette": getattr(config, "palette", None),
    }
