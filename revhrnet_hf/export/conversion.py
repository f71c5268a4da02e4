"""Checkpoints of HRNet/HRNet-Semantic-Segmentation as ours.

The models are seg_hrnet, of the branches pytorch-v1.1 and HRNet-OCR, and seg_hrnet_ocr of the second.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..models import HRNetV2Config, HRNetV2ForSemanticSegmentation

SHOWN_KEYS = 20  # in an error; an alien file would list hundreds


def read_official(path: Path) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint file, without the training code's prefix and the loss's own tensors.

    Nothing but weights is loaded: a file that holds other objects than tensors and plain containers is an error.

    Raises:
        CheckpointError: there is no such file, it cannot be read so, or it holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, torch's readers raise many kinds
        raise CheckpointError(f"cannot read {path} as weights only: {first_line(error)}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict (names → tensors): give a checkpoint of the official HRNet")
    state = {key: value for key, value in state.items() if not key.startswith("loss.")}
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    return state


def config_of(weights: dict[str, Tensor], **settings) -> HRNetV2Config:
    """The configuration that the shapes of an official network's tensors tell; `settings` are what they do not.

    Raises:
        CheckpointError: a tensor that tells something is not there.
    """

    def channels(key: str, axis: int = 0) -> int:
        if key not in weights:
            raise CheckpointError(f"the checkpoint lacks {key}: it is not an official HRNet for segmentation (seg_hrnet)")
        return weights[key].shape[axis]

    def count(prefix: str) -> int:
        return len({match[1] for key in weights if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", key))})

    is_ocr = "cls_head.weight" in weights
    if is_ocr:
        key = "ocr_distri_head.object_context_block.f_pixel.0.weight"
        settings = {"head": "ocr", "ocr_channels": channels("cls_head.weight", 1), "ocr_key_channels": channels(key), **settings}
    stages = count("stage")
    num_streams = count(f"stage{stages + 1}.0.branches.")
    return HRNetV2Config(
        stem_channels=channels("conv1.weight"),
        stage1_channels=channels("layer1.0.conv1.weight"),
        stage1_blocks=count("layer1."),
        stream_channels=[channels(f"stage{stages + 1}.0.branches.{i}.0.conv1.weight") for i in range(num_streams)],
        num_modules=[count(f"stage{stage}.") for stage in range(2, stages + 2)],
        num_blocks=count(f"stage{stages + 1}.0.branches.0."),
        num_labels=channels("cls_head.weight" if is_ocr else "last_layer.3.weight"),
        **settings,
    )


OCR = "ocr_distri_head."
OBJECTS = f"{OCR}object_context_block."
POSITIONS = {"0": "0", "1.0": "1", "2": "3", "3.0": "4"}  # there a norm and its ReLU are a sequence within the sequence
HEAD = {
    "last_layer.": "head.",
    "aux_head.": "head.regions.",
    "conv3x3_ocr.": "head.pixels.",
    "cls_head.": "head.classifier.",
    f"{OCR}conv_bn_dropout.": "head.fuse.",
    f"{OBJECTS}f_pixel.": "head.attention.query.",
    f"{OBJECTS}f_object.": "head.attention.key.",
    f"{OBJECTS}f_down.": "head.attention.value.",
    f"{OBJECTS}f_up.": "head.attention.out.",
}
"""Beginnings of names: official → ours."""


def our_key(key: str) -> str:
    """The name in HRNetV2ForSemanticSegmentation of a tensor of the official network."""
    for official, ours in HEAD.items():
        if key.startswith(official):
            position, _, tensor = key.removeprefix(official).rpartition(".")
            if official.startswith(OCR):
                position = POSITIONS.get(position, position)
            return f"{ours}{position}.{tensor}" if position else ours + tensor
    return f"backbone.{key}"


def convert_official(
    weights: dict[str, Tensor], align_corners: bool = False
) -> tuple[HRNetV2ForSemanticSegmentation, dict[str, str]]:
    """The official network of these tensors as ours, and the names: official → ours. Every tensor is used, none is missing.

    Args:
        weights: as [`read_official`] gives them.
        align_corners: True for branch HRNet-OCR, False for pytorch-v1.1; the file does not tell.

    Raises:
        CheckpointError: with all missing and unused names, or the tensors of another shape.
    """
    model = HRNetV2ForSemanticSegmentation(config_of(weights, align_corners=align_corners))
    expected = model.state_dict()
    names = {key: our_key(key) for key in weights}
    unused = [key for key, ours in names.items() if ours not in expected]
    # Checkpoints older than torch 0.4.1 have no counters of batches; a fixed momentum does not need them.
    missing = [key for key in expected.keys() - names.values() if not key.endswith("num_batches_tracked")]
    if missing or unused:
        raise CheckpointError(f"the checkpoint is not this HRNet. Missing: {_listed(sorted(missing))}. Unused: {_listed(unused)}")
    for key, ours in names.items():
        if weights[key].shape != expected[ours].shape:
            raise CheckpointError(
                f"{key} is {tuple(weights[key].shape)} in the checkpoint, the network needs {tuple(expected[ours].shape)}"
            )
    model.load_state_dict({**expected, **{ours: weights[key] for key, ours in names.items()}})
    return model.eval(), names


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return (", ".join(keys[:SHOWN_KEYS]) + more) or "none"
