"""Seconds to import the package, against transformers and timm; and to load a checkpoint, against reading its bytes twice.

Transformers imports its parts when they are first named: the third row is what the base class of all its models takes.
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
    parser.add_argument("--network", default="rev-w48", choices=NETWORKS, help="that is loaded (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="each once a round (default: %(default)s)")


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
