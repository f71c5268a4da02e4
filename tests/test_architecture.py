"""Rooms import one way and in no circle, as pyproject.toml and docs/architecture.md have it."""

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
# The twin is imported within a function: a checkpoint carries only files that are imported, and it is to carry both.
TWINS = ("revhrnet_hf.models.image_processing_revhrnet", "revhrnet_hf.models.image_processing_pil_revhrnet")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("revhrnet_hf", cache_dir=None)


def test_contracts_hold():
    """In a process of its own: import-linter silences the loggers that are there."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_circle(graph):
    """Neither between rooms nor between the modules of a room."""
    packages = [module for module in graph.modules if graph.find_children(module)]
    assert len(packages) > 5
    circles = {package: graph.nominate_cycle_breakers(package) - {TWINS} for package in packages}
    assert {package: imports for package, imports in circles.items() if imports} == {}


def test_every_room_is_in_the_contract(graph):
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    above_all = {"revhrnet_hf.cli", "revhrnet_hf.pipelines"}  # imported by scripts, and by the package itself
    rooms = graph.find_children("revhrnet_hf") - above_all
    assert [room for room in sorted(rooms) if f'{room}"' not in contract and f"{room} |" not in contract] == []
