"""`revhrnet COMMAND …`: each command is found, an unknown one is named with the nearest, and the wheel holds what they need."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.commands import COMMANDS, check_installed
from revhrnet_hf.commands.main import main
from revhrnet_hf.errors import RecipeError

from .. import forked

ROOT = Path(__file__).parents[2]
PRESENT = {path.stem for path in (ROOT / "revhrnet_hf" / "commands").glob("[a-z]*.py")} - {"main"}


@pytest.fixture(autouse=True)
def restored_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])


def test_every_module_is_a_command():
    assert set(COMMANDS) == PRESENT >= {"train", "evaluate", "predict"}


@pytest.mark.parametrize("name", sorted(PRESENT))
def test_every_command_has_a_parser_and_a_main(name, capsys):
    module = import_module(f"revhrnet_hf.commands.{name}")
    assert isinstance(module.build_parser(), ArgumentParser)
    with pytest.raises(SystemExit) as raised:
        main([name, "--help"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: revhrnet {name} ")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 0
    said = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  +\w.*$", said[said.index("commands:") :], re.M) == list(COMMANDS)
    assert max(map(len, said.splitlines())) < 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command trian (did you mean train?)"),
        (["run_seg"], "unknown command run_seg"),
        (["--recipe", "camvid"], "unknown option --recipe"),
        (["-x"], "unrecognized arguments: -x"),
    ],
)
def test_what_is_no_command(arguments, said, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"error: {said} (options: revhrnet --help)\n"


@pytest.mark.parametrize("module", ["revhrnet_hf", "revhrnet_hf.commands.main"])
def test_python_m_is_the_command(module):
    done = subprocess.run([sys.executable, "-m", module, "trian"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "unknown command trian (did you mean train?)" in done.stderr


def test_a_commands_error_is_one_line(capsys):
    with pytest.raises(SystemExit) as raised:
        run(lambda: main(["audit", "camvit", "DIR"]))
    assert raised.value.code == 1
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith("error: Unknown dataset: 'camvit' (did you mean camvid?); known: camvid, ")
        and err.count("\n") == 1
    )


def test_what_is_not_installed_is_named():
    check_installed("this needs", "plots", "numpy")
    with pytest.raises(RecipeError, match=r'^this needs no_such_module: pip install "revhrnet_hf\[plots\]"$'):
        check_installed("this needs", "plots", "numpy", "no_such_module")


@pytest.mark.slow
def test_the_wheel_holds_what_the_commands_need(tmp_path):
    """Every file of the package that git knows, and the command itself."""
    known = subprocess.run(
        ["git", "ls-files", "revhrnet_hf"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    source = tmp_path / "source"
    for name in (*known, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        archive.extractall(tmp_path / "site")
    assert {name for name in names if name.startswith("revhrnet_hf/")} == set(known)
    assert "revhrnet = revhrnet_hf.commands.main:console" in entry_points
    check_commands(tmp_path / "site", tmp_path / "empty")


def check_commands(site, folder):
    """Commands of the unpacked wheel, in a folder of nothing but images; this package's clone is not on the path."""
    for number in range(3):
        for kind, pixels in (("images", np.full((48, 64, 3), 90)), ("masks", np.kron([[0, 255]], np.ones((48, 32))))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{number}.png")
    where = "import revhrnet_hf; print(revhrnet_hf.__file__)"
    recipe = "--recipe camvid --data_dir images --output_dir out"
    for arguments, said in (
        (["-c", where], str(site)),
        (["-m", "revhrnet_hf", "--version"], "revhrnet_hf 0."),
        (["-m", "revhrnet_hf", "train", "--help"], "usage: revhrnet train --recipe RECIPE"),
        (["-m", "revhrnet_hf", "new", ".", "--output_dir", "mine"], "written: mine/mine.yaml"),
        (["-m", "revhrnet_hf", "train", *recipe.split()], "images is not CamVid: the SegNet form"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = forked.run(
            [sys.executable, *arguments], preloaded=forked.BARE, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert said in done.stdout + done.stderr, done.stderr
