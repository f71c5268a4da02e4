"""Exporting a checkpoint: to ONNX, to OpenVINO, to a `torch.export` program, to eight bits.

An exported network is first compared with the checkpoint, on images of several sizes. A JSON file beside it describes inputs and
outputs to programs that do not have this package (classes, mean, size …). ONNX needs the extra `export`, OpenVINO `openvino`.
"""

from .agreement import Agreement, check_agreement, drawn_batches
from .exported_model import ExportedModel
from .folder import DESCRIPTION_FILE, Export, ScoredDataset
from .onnx_network import CALIBRATION_IMAGES, INT8_FILE, ONNX_FILE, OnnxModel, onnx_session, run_onnx
from .openvino_network import OPENVINO_FILE, OPENVINO_INT8_FILE, OpenVinoModel, compiled_openvino, run_openvino
from .program import PROGRAM_FILE, Exportable

__all__ = [
    "CALIBRATION_IMAGES",
    "DESCRIPTION_FILE",
    "INT8_FILE",
    "ONNX_FILE",
    "OPENVINO_FILE",
    "OPENVINO_INT8_FILE",
    "PROGRAM_FILE",
    "Agreement",
    "Export",
    "Exportable",
    "ExportedModel",
    "OnnxModel",
    "OpenVinoModel",
    "ScoredDataset",
    "check_agreement",
    "compiled_openvino",
    "drawn_batches",
    "onnx_session",
    "run_onnx",
    "run_openvino",
]
