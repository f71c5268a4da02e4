"""Seconds to import the package, against transformers and timm; and to load a checkpoint, against reading its bytes twice."""

import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForSemanticSegmentation
from transformers.utils import logging

from .networks import NETWORKS, build
from .timing import print_rows, take_turns

IMPORTS = {"import transformers, timm": "import transformers, timm", "import revhrnet_hf": "import revhrnet_hf"}


def add_arguments(parser):
    parser.add_argument("--network", default="rev-w48", choices=NETWORKS, help="that is loaded (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="each once a round (default: %(default)s)")


def main(arguments) -> dict:
    imports = {name: lambda code=code: subprocess.run([sys.executable, "-c", code], check=True) for name, code in IMPORTS.items()}
    rows = take_turns(imports, next(iter(imports)), arguments.rounds, "cpu")
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
