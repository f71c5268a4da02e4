"""A `torch.export` program as an OpenVINO network, in 32 bits and in eight. Needs the extra `openvino`."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from .exported_model import ExportedModel
from .program import INPUT, gives_logits, is_dynamic

OPENVINO_FILE, OPENVINO_INT8_FILE = "model.xml", "model_int8.xml"  # the weights are beside it, in model.bin


def write_openvino(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as OpenVINO's IR: `path` (.xml), and the weights in float32 beside it (.bin)."""
    import openvino

    network = openvino.convert_model(program)
    network.input(0).tensor.set_names({INPUT})
    network.output(0).tensor.set_names({"logits" if gives_logits(program) else "label_map"})
    if is_dynamic(program):
        network.reshape({INPUT: openvino.PartialShape([-1, 3, -1, -1])})
    openvino.save_model(network, path, compress_to_fp16=False)


class OpenVinoModel(ExportedModel):
    """An exported network that gives logits, used like a Transformers model to compute scores and label maps on the CPU.

    Args:
        path: the .xml file.
        threads: that the network uses; by default as many as PyTorch.
        precision: in which it computes: f32, or bf16 where the processor has it.
    """

    def __init__(self, path: Path, threads: int | None = None, precision: str = "f32"):
        network = compiled_openvino(path, threads, precision)
        super().__init__(lambda pixel_values: run_openvino(network, pixel_values))


def compiled_openvino(path: Path, threads: int | None = None, precision: str = "f32"):
    """An OpenVINO network ready to run. OpenVINO itself would compute in bf16 on every processor that has it."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads or torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    return openvino.Core().compile_model(path, "CPU", settings)


def run_openvino(network, pixel_values: Tensor) -> Tensor:
    return torch.from_numpy(network(pixel_values.contiguous().numpy())[0])


def write_openvino_int8(
    source: Path,
    target: Path,
    images: int,
    pixel_values: Callable[[int], Tensor],
    score: Callable[[ExportedModel, Iterable[int]], float],
    max_drop: float,
) -> None:
    """Quantise an OpenVINO network to eight bits by NNCF, under accuracy control.

    If the score falls by more than `max_drop`, operations are put back to 32 bits, those that matter most first, until it does
    not.

    Args:
        source, target: .xml files.
        images: number of images to calibrate and to score with.
        pixel_values: the input made of each of them, by its number.
        score: the score of a network on images with these numbers; the more the better.
        max_drop: the most by which the score may fall.
    """
    import nncf
    import openvino

    nncf.set_log_level("WARNING")
    numbers = list(range(images))
    dataset = nncf.Dataset(numbers, lambda number: {INPUT: pixel_values(number).numpy()})

    def validate(network, wanted: Iterable[int]) -> tuple[float, None]:
        return score(ExportedModel(lambda values: run_openvino(network, values)), wanted), None

    quantized = nncf.quantize_with_accuracy_control(
        openvino.Core().read_model(source), dataset, dataset, validate, max_drop=max_drop, subset_size=images
    )
    openvino.save_model(quantized, target, compress_to_fp16=False)
