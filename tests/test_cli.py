"""What a script's user sees in the end: status and one line, or a traceback for our defects."""

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS, COMMANDS = ROOT / "scripts", ROOT / "revhrnet_hf" / "commands"


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("kind", [DataError, RecipeError, CheckpointError])
def test_own_errors_become_one_line(kind, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(raising(kind("the folder X is empty")))
    assert exit_.value.code == 1
    assert capsys.readouterr() == ("", "error: the folder X is empty\n")


def test_system_error_names_its_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(lambda: (tmp_path / "absent" / "file").write_text("x"))
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'absent' / 'file'}: No such file") and error.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyError("x"), OSError("of no file")])
def test_defects_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error))


def test_interruption_has_the_shells_status(capsys):
    with pytest.raises(SystemExit) as exit_:
        run(raising(KeyboardInterrupt()))
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("[print('x' * 99) for _ in range(9999)]", 141, ""),
        ("print('x')", 141, ""),  # it stays in Python's buffer until the end
        ("argparse.ArgumentParser().parse_args(['--help'])", 141, ""),
        ("print('x') or fail(RecipeError('of the user'))", 1, "error: of the user\n"),
        ("fail(BrokenPipeError(32, 'of another pipe'))", 1, "Traceback"),
    ],
)
def test_a_reader_that_has_ended(body, status, said):
    """As of `revhrnet table | head -1`: quietly, with the status that shells report."""
    program = f"""
import argparse
from revhrnet_hf.cli import run
from revhrnet_hf.errors import RecipeError
def fail(error): raise error
run(lambda: {body})
"""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == status and done.stderr.startswith(said) and bool(done.stderr) == bool(said)


def speak():
    logger = logging.getLogger("revhrnet_hf.training.data")
    logger.warning("2 images are skipped")
    logger.info("log_pictures is called log_images now")
    logger.debug("not for users")
    logging.getLogger("another.package").info("not ours")


def test_warnings_and_notes_are_lines_on_stderr(capsys):
    logger = logging.getLogger("revhrnet_hf")
    before = (logger.level, logger.propagate, list(logger.handlers))
    run(speak)
    assert capsys.readouterr() == ("", "warning: 2 images are skipped\nnote: log_pictures is called log_images now\n")
    assert (logger.level, logger.propagate, logger.handlers) == before


@pytest.mark.parametrize(("name", "rank", "heard"), [("RANK", "0", True), ("RANK", "1", False), ("PMI_RANK", "3", False)])
def test_only_the_main_process_speaks(monkeypatch, capsys, name, rank, heard):
    monkeypatch.setenv(name, rank)
    run(speak)
    assert bool(capsys.readouterr().err) == heard


def test_a_library_says_warnings_only():
    """By Python's own means, and without the command's words."""
    program = "import sys; sys.path.insert(0, 'tests'); from revhrnet_hf import cli; import test_cli; test_cli.speak()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "2 images are skipped\n")


def test_a_good_end_is_no_exit():
    ran = []
    assert run(lambda: ran.append(True)) is None
    assert ran


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="figure.py")
    parser.add_argument("--checkpoint", required=True)
    commands = parser.add_subparsers(dest="command")
    overlay = commands.add_parser("overlay")
    overlay.add_argument("images", nargs="+")
    overlay.add_argument("--opacity", type=float)
    return parser


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--chekpoint A", "unknown option --chekpoint (did you mean --checkpoint?)"),
        ("--checkpoint A overlay b.png --Opacty=1", "unknown option --Opacty (did you mean --opacity?)"),
        ("--qqq --qqq --checkpoint A", "unknown option --qqq"),
        ("--checkpoint A overlay b.png --checkpoint B", "unknown option --checkpoint"),  # it comes before the command
        ("overlay b.png", "the following arguments are required: --checkpoint"),
        ("--checkpoint A overlay b.png --opacity x", "argument --opacity: invalid float value: 'x'"),
        ("--checkpoint A overlay b.png -q", "unrecognized arguments: -q"),
    ],
)
def test_mistakes_are_one_line(parser, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(arguments.split())
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said} (options: figure.py")
    assert err.count("\n") == 1


def test_what_is_no_mistake(parser):
    """Beginnings of options, as argparse has them, and what comes after `--`."""
    parsed = parser.parse_args(["--check", "A", "overlay", "--opac", "0.5", "--", "--odd.png"])
    assert (parsed.checkpoint, parsed.opacity, parsed.images) == ("A", 0.5, ["--odd.png"])


@pytest.mark.parametrize("path", sorted([*SCRIPTS.glob("*.py"), *COMMANDS.glob("[a-z]*.py")]), ids=lambda path: path.stem)
def test_every_command_line_is_read_so(path):
    tree = ast.parse(path.read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [ast.unparse(function) for function in calls if ast.unparse(function).endswith("Parser")]
    is_alias = any(
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith("revhrnet_hf.commands.") for node in tree.body
    )
    assert bool(made) != is_alias
    allowed = {"argparse.ArgumentParser"} if path.stem == "mutate" else set()  # it imports nothing of the package
    assert set(made) <= {"ArgumentParser", "RunParser", "_OnlyRecipe"} | allowed


@pytest.mark.parametrize(
    ("given", "said"), [("epoch", " (did you mean epochs?)"), ("Batch-Size", " (did you mean batch_size?)"), ("--samples", "")]
)
def test_nearest_name(given, said):
    assert did_you_mean(given, ["epochs", "batch_size", "seed", "--least"]) == said


def test_a_module_is_called_as_it_was_started():
    command = [sys.executable, "-m", "revhrnet_hf.commands.plot"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("RUN (options: python -m revhrnet_hf.commands.plot --help)\n")


def test_one_spelling_of_an_option(capsys):
    parser = ArgumentParser(prog="x")
    parser.add_argument("--data_dir", "--data-dir", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert capsys.readouterr().err == "error: the following arguments are required: --data_dir (options: x --help)\n"
