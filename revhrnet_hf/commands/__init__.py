"""The commands of `revhrnet COMMAND …`, one module each: parse the command line, call the package, print.

Every module has `build_parser()` and `main(arguments=None)`; `python -m revhrnet_hf.commands.NAME` calls it as well, which is how
accelerate and torchrun start several processes. A module imports PyTorch and the like only after it has read the command line, so
that `--help` and mistakes are answered at once; the work of the longer commands is in _NAME.py.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import RecipeError

# Name of the command and of its module → its line in `revhrnet --help`.
COMMANDS = {
    "new": "look at a folder of images and masks, and write a label table and a recipe for it",
    "train": "train a network by a recipe, or by a chain of recipes",
    "evaluate": "score a checkpoint on a dataset",
    "predict": "segment images with a checkpoint",
    "pseudo_label": "label images with a checkpoint, to train on them",
    "audit": "check a dataset on disk before a long training",
    "figure": "draw predictions, feature maps, errors, confusion matrices and legends",
    "plot": "draw the loss and mIoU curves of runs",
    "export": "write a checkpoint as ONNX, for OpenVINO, or as a torch.export program",
    "release": "write the files of a release: weights in 16 bits, ONNX, card, checksums",
    "push": "send a checkpoint to the Hugging Face Hub",
    "demo": "serve a page to try one checkpoint, or two side by side",
    "convert": "turn a checkpoint of the official HRNet into one of this package",
    "table": "print what every variant costs: parameters, multiply-adds, memory",
    "cards": "write the cards of the families of networks",
    "quickstart": "draw two small datasets, train a chain on them, look at the result",
}


def name_of(folder: Path) -> str:
    """The name of a data folder, or of an archive without its ending."""
    return folder.absolute().stem if folder.is_file() else folder.absolute().name


def check_image_size(size: Sequence[int] | None) -> None:
    """Raises a RecipeError unless both edges of an option `--size` are 1 pixel at least."""
    if size and min(size) < 1:
        raise RecipeError(f"--size {size[0]} {size[1]}: give at least 1 pixel each")


def check_installed(purpose: str, extra: str, *modules: str) -> None:
    """Raises a RecipeError that names the extra to install, unless all of the modules are there."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise RecipeError(f'{purpose} {", ".join(missing)}: pip install "revhrnet_hf[{extra}]"')
