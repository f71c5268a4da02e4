"""Exporting a checkpoint: to ONNX, to a `torch.export` program, to eight bits.

An exported network is first compared with the checkpoint, on images of several sizes. A JSON file beside it describes inputs and
outputs to programs that do not have this package (classes, mean, size …). ONNX needs the extra `export`.
"""

from .agreement import Agreement, check_agreement, drawn_batches
from .folder import DESCRIPTION_FILE, Export, ScoredDataset
from .onnx_network import CALIBRATION_IMAGES, INT8_FILE, ONNX_FILE, OnnxModel, onnx_session, run_onnx
from .program import PROGRAM_FILE, Exportable

__all__ = [
    "CALIBRATION_IMAGES",
    "DESCRIPTION_FILE",
    "INT8_FILE",
    "ONNX_FILE",
    "PROGRAM_FILE",
    "Agreement",
    "Export",
    "Exportable",
    "OnnxModel",
    "ScoredDataset",
    "check_agreement",
    "drawn_batches",
    "onnx_session",
    "run_onnx",
]
