"""What a script's user sees in the end: status and one line, or a traceback for our defects."""

import pytest

from revhrnet_hf.cli import run
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError


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


def test_a_good_end_is_no_exit():
    ran = []
    assert run(lambda: ran.append(True)) is None
    assert ran
