"""What a checkpoint folder must be before a run resumes from it: each file as it was written, and none that was added."""

import os
import pathlib

import pytest
import torch
from safetensors.torch import save_file

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training.checkpoint_files import damage, refuse_pickles, write_checkpoint
from revhrnet_hf.training.output_dir import choose_whole, recover, save_last


@pytest.fixture
def checkpoint(tmp_path):
    def fill(folder):
        save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text("card")
        (folder / "below").mkdir()
        (folder / "below" / "two  blanks.txt").write_text("a  b")

    write_checkpoint(tmp_path / "last", fill)
    return tmp_path / "last"


def test_whole(checkpoint):
    assert damage(checkpoint) is None
    (checkpoint / "README.md").write_text("a card that was edited")
    (checkpoint / "example.png").write_bytes(b"added")
    assert damage(checkpoint) is None
    listed = {line.split("  ", 1)[1] for line in (checkpoint / "SHA256SUMS").read_text().splitlines()}
    assert listed == {"model.safetensors", "config.json", "below/two  blanks.txt"}


@pytest.mark.parametrize("name", ["adapter.safetensors", "model-00002-of-00002.safetensors", "averaged.safetensors"])
def test_weights_that_no_checksum_lists(checkpoint, name):
    """A loader might take them instead of those that were written."""
    save_file({"weight": torch.ones(2)}, checkpoint / name)
    assert damage(checkpoint) == f"{name} is not in SHA256SUMS"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "config.json").write_text("{ }"), "config.json is not what was written (its SHA-256 differs)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "below" / "two  blanks.txt").write_text("a  c"), "below/two  blanks.txt is not what was"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS cannot be read (No such file or directory)"),
        (lambda folder: (folder / "SHA256SUMS").write_text("half a li"), "SHA256SUMS cannot be read"),
        (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe"), "SHA256SUMS cannot be read"),
    ],
)
def test_damage_is_named(checkpoint, harm, said):
    harm(checkpoint)
    assert damage(checkpoint).startswith(said)
    with pytest.raises(CheckpointError, match=r"No checkpoint to resume from is whole: .*last: "):
        choose_whole(checkpoint.parent)


def test_empty_list_is_damage(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "SHA256SUMS").write_text("")
    assert damage(checkpoint) == "SHA256SUMS is empty"


@pytest.mark.parametrize("name", ["model.pt", "x.PTH", "below/data.pkl", "pytorch_model.bin", "a.ckpt", "b.pickle"])
def test_files_that_could_be_unpickled_are_refused(checkpoint, name):
    (checkpoint / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name} was not written by this program"):
        refuse_pickles(checkpoint)
    with pytest.raises(CheckpointError, match=rf"{name} was not written"):
        choose_whole(checkpoint.parent)


def test_nothing_else_is_refused(checkpoint):
    refuse_pickles(checkpoint)
    choose_whole(checkpoint.parent)
    assert damage(checkpoint) is None


def killed_at(step, monkeypatch, write):
    """Runs `write` in a fork that ends without a word before its `step`-th change on the disk; whether it came to its end."""
    child = os.fork()
    if not child:
        left = [step]

        def counted(change):
            def changed(*arguments, **settings):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)
                return change(*arguments, **settings)

            return changed

        status = 1
        try:
            for owner, names in ((os, ("rename", "fsync", "unlink", "rmdir", "mkdir")), (pathlib.Path, ("write_text",))):
                for name in names:
                    monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
            write()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


def test_killed_before_any_change_on_the_disk(tmp_path, monkeypatch):
    """Whenever a process that replaces a folder is killed, what is found afterwards is the old one or the new one, whole."""

    def fill(folder, number):
        for name in "abcd":
            (folder / name).write_text(str(number))

    ended, step, seen = False, 0, set()
    while not ended:
        step += 1
        output_dir = tmp_path / str(step)
        write_checkpoint(output_dir / "best", lambda folder: fill(folder, 1))
        ended = killed_at(step, monkeypatch, lambda: write_checkpoint(output_dir / "best", lambda folder: fill(folder, 2)))  # noqa: B023
        recover(output_dir)
        contents = {(output_dir / "best" / name).read_text() for name in "abcd"}
        assert len(contents) == 1, step
        seen |= contents
        assert damage(output_dir / "best") is None, step
        assert [path.name for path in output_dir.iterdir()] == ["best"], step
    assert step > 15 and seen == {"1", "2"}


@pytest.mark.parametrize("name", ["best", "last"])
def test_killed_and_files_of_others_are_there(tmp_path, monkeypatch, name):
    """Whenever a process that replaces a checkpoint is killed, a note that somebody has put into it is found once."""

    def fill(folder, number):
        (folder / "training_state.json").write_text(f'{{"step": {number}}}')

    def replace(output_dir):
        if name == "last":
            save_last(output_dir, 1, lambda folder: fill(folder, 2))
        else:
            write_checkpoint(output_dir / name, lambda folder: fill(folder, 2))

    ended, step = False, 0
    while not ended:
        step += 1
        output_dir = tmp_path / str(step)
        write_checkpoint(output_dir / name, lambda folder: fill(folder, 1))
        (output_dir / name / "notes").mkdir()
        (output_dir / name / "notes" / "thesis.txt").write_text("somebody's")
        ended = killed_at(step, monkeypatch, lambda: replace(output_dir))  # noqa: B023
        recover(output_dir)
        assert [path.read_text() for path in output_dir.rglob("thesis.txt")] == ["somebody's"], step
        assert damage(output_dir / name) is None, step
    assert step > 10
    assert (output_dir / name / "notes" / "thesis.txt").exists()
    assert [path.name for path in output_dir.iterdir()] == [name]
