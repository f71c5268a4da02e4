"""constraints-lowest.txt has the lowest versions that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_same_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: entries for name, entries in project["optional-dependencies"].items() if name != "test"}
    required = [*project["dependencies"], *(entry for entries in extras.values() for entry in entries)]
    bounds = dict(entry.split(">=") for entry in required if ">=" in entry)
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: _padded(version) for name, version in pinned.items()} == {name: _padded(v) for name, v in bounds.items()}


def _padded(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return (*numbers, 0, 0, 0)[:3]
