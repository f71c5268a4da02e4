"""A `torch.export` program as an ONNX network, in 32 bits and in eight. Needs the extra `export`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..defaults import CALIBRATION_IMAGES
from ..errors import ExportError
from ..images import read_image
from .exported_model import ExportedModel
from .program import INPUT, gives_logits, is_dynamic

ONNX_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"


def write_onnx(program: torch.export.ExportedProgram, path: Path, opset: int | None = None) -> int:
    """Write a program as ONNX, without PyTorch's notes on its origin, and run ONNX's own checker; returns the opset.

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
    _remove_notes(written)
    onnx.save(written, path)
    onnx.checker.check_model(written, full_check=True)
    [found] = [entry.version for entry in written.opset_import if entry.domain in ("", "ai.onnx")]
    if opset not in (None, found):
        raise ExportError(f"--opset {opset}: the network could be written in opset {found} only")
    return found


def _remove_notes(network) -> None:
    """Remove PyTorch's notes from an ONNX network: stack traces with paths of this machine, a large part of a small file."""
    graph = network.graph
    for noted in (network, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]


class OnnxModel(ExportedModel):
    """An exported network that gives logits, used like a Transformers model to compute scores and label maps on the CPU.

    Args:
        path: the ONNX file.
        threads: that the network uses; by default as many as PyTorch.
    """

    def __init__(self, path: Path, threads: int | None = None):
        session = onnx_session(path, threads)
        super().__init__(lambda pixel_values: run_onnx(session, pixel_values))


def onnx_session(path: Path, threads: int | None = None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session, pixel_values: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {INPUT: pixel_values.numpy()})[0])


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


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    step = max(1, count / most)
    return [int(number * step) for number in range(min(count, most))]


def calibration_batches(image_processor, images: Sequence[Path]) -> Iterable[Tensor]:
    """`pixel_values` of image files, at most `CALIBRATION_IMAGES` of them, evenly spread, one by one."""
    for number in spread(len(images), CALIBRATION_IMAGES):
        image = read_image(images[number])
        yield image_processor(images=image, return_tensors="pt")["pixel_values"]
