"""Seconds to import the package, compared with transformers and timm; and to load a checkpoint, compared with reading it twice.

Transformers imports its parts only when they are used. The third row includes the base class of all its models.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForSemanticSegmentation
from transformers.utils import logging

from .networks import NETWORKS, build
from .timing import print_rows, take_turns

PEER = "import transformers, timm"
IMPORTS = [PEER, "import revhrnet_hf", "import transformers, timm; from transformers import PreTrainedModel"]


def add_arguments(parser):
    parser.add_argument("--network", default="rev-w48", choices=NETWORKS, help="network that is loaded (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds; each measurement is made once in each (default: %(default)s)"
    )


def main(arguments) -> dict:
    imports = {code: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True) for code in IMPORTS}
    rows = take_turns(imports, PEER, arguments.rounds, "cpu")
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        build(arguments.network, 19).save_pretrained(folder)
        loads = {
            "read the bytes twice": lambda: [path.read_bytes() for path in Path(folder).iterdir() for _ in range(2)],
            f"load {arguments.network}": lambda: AutoModelForSemanticSegmentation.from_pretrained(folder),
        }
        rows += take_turns(loads, next(iter(loads)), arguments.rounds, "cpu")
    print_rows(rows, {"name": "", "seconds": ".3f", "ratio": ".3f"})
    return {"start": rows}
