"""The assets of a release: a checkpoint's files in the form in which others download them, side by side in one folder.

The folder is a checkpoint whose weights are stored in 16 bits, and holds the same network for ONNX Runtime. It has no
sub-folders, so that every file can be attached to a release of a repository as it is.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..errors import ExportError
from ..evaluation import load_checkpoint
from ..hub.examples import EXAMPLES
from ..hub.leaks import leaks_of
from ..hub.model_card import refresh_model_card
from ..hub.push import check_staged, stage_model
from ..io import refuse_used_folder, remove, write_folder
from ..models.backbone_maps import fixed_size_in
from ..models.image_processing_pil_revhrnet import Size
from ..training.checkpoint_files import write_checksums
from .agreement import check_agreement, drawn_batches
from .folder import DESCRIPTION_FILE, Export

OUTCOME = "no release was written"
# Of weights in 16 bits: of logits, which are about 10, and the share of the pixels that get the same class.
HALF_DIFFERENCE, HALF_EQUAL = 0.5, 0.99


def write_release(
    checkpoint: Path,
    output_dir: Path,
    calibration: Sequence[Path],
    size: Size | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the folder of a release, whole or not at all, and print what was checked.

    Args:
        checkpoint: a folder that training or `save_pretrained` has written; it is not changed.
        output_dir: to write; it must not exist, or be empty.
        calibration: image files for the network of eight bits, which is left out if there are none.
        size: (height, width) of the image that the ONNX networks take, pixels; None: any.
        trust_remote_code: run and copy Python files of the checkpoint that differ from this package's.

    Raises:
        CheckpointError: `output_dir` is in use, or the checkpoint cannot be loaded.
        HubError: something must not be published; see `stage_model` and `check_staged`.
        ExportError: the weights do not fit into 16 bits, or a written network does not agree with the checkpoint.
    """
    refuse_used_folder(output_dir)
    write_folder(output_dir, lambda folder: _fill(folder, checkpoint, calibration, size, trust_remote_code))


def _fill(folder: Path, checkpoint: Path, calibration: Sequence[Path], size: Size | None, trust_remote_code: bool) -> None:
    stage_model(checkpoint, folder, trust_remote_code=trust_remote_code)
    remove(folder / EXAMPLES)  # a release has no sub-folders
    for path in folder.glob("*.safetensors"):
        store_in_16_bits(path)
    check_staged(folder, OUTCOME)
    model, image_processor = load_checkpoint(checkpoint, trust_remote_code=trust_remote_code)
    half, _ = load_checkpoint(folder, trust_remote_code=trust_remote_code)
    agreement = check_agreement(
        model,
        lambda pixel_values: half(pixel_values=pixel_values).logits,
        drawn_batches(image_processor, fixed_size_in(model)),
        HALF_DIFFERENCE,
        HALF_EQUAL,
    )
    print(
        f"weights in 16 bits: logits differ by {agreement.largest_difference:.1e} at most, "
        f"{100 * agreement.equal_pixels:.3f} % of the pixels get the same class",
        flush=True,
    )
    Export(model, image_processor, "onnx", size, calibration=calibration).fill(folder)
    if problems := list(leaks_of(folder / DESCRIPTION_FILE, DESCRIPTION_FILE)):
        raise ExportError(f"{OUTCOME}: {'; '.join(problems)}")
    refresh_model_card(folder)  # which names the ONNX files
    write_checksums(folder, without=())


def store_in_16_bits(path: Path) -> None:
    """Replace a file of weights, or a link to one, by one with float16 in place of other floating-point numbers.

    Raises:
        ExportError: a weight is too large for float16.
    """
    with safe_open(path, framework="pt") as weights:
        metadata = weights.metadata()
        tensors = {name: _in_16_bits(name, weights.get_tensor(name)) for name in weights.keys()}  # noqa: SIM118
    remove(path)
    save_file(tensors, path, metadata)


def _in_16_bits(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise ExportError(
            f"{OUTCOME}: {name} holds {tensor.abs().max():.3g}, and float16 ends at {torch.finfo(torch.float16).max:.0f}"
        )
    return half
