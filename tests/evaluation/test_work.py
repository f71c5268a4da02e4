"""The records of an evaluation: one process at a time has them, whatever end the last one took."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from revhrnet_hf import io as files
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation.work import ImageRecord, WorkFolder

SETTINGS = {"dataset": "camvid", "window": (32, 40)}
RECORD = ImageRecord(0, "a", [4, 6], [[0, 24]])  # as JSON has it

# Without the package, whose import takes seconds.
HOLDER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
held = files.lock_file(pathlib.Path(sys.argv[2]))
print("held" if held else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that locks a file and keeps it; gives the process and what it said."""
    started = []

    def start(path):
        command = [sys.executable, "-c", HOLDER, files.__file__, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_one_at_a_time_and_a_killed_one_blocks_nobody(tmp_path, holder):
    folder = tmp_path / ".scores.work"
    folder.mkdir()
    process, said = holder(folder / "lock")
    assert said == "held"
    work = WorkFolder(folder, SETTINGS)
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="another process is at this evaluation already"):
            work.claim(overwrite)
    process.kill()
    process.wait()
    work.claim(False)
    with work.append_to(0) as part:
        part.write(RECORD)
    assert holder(folder / "lock")[1] == "refused"
    work.close()  # as where an error ends the evaluation
    process, said = holder(folder / "lock")
    assert said == "held"
    process.kill()
    process.wait()
    again = WorkFolder(folder, SETTINGS)
    again.claim(False)
    assert again.read() == {0: RECORD}
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_only_what_it_has_written_is_removed(tmp_path):
    folder = tmp_path / ".scores.work"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    work = WorkFolder(folder, SETTINGS)
    work.claim(False)
    with work.append_to(3) as part:
        part.write(RECORD)
    work.claim(True)
    assert work.read() == {}
    work.remove()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"] and (folder / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_a_lock_that_its_holder_has_just_removed_is_none(tmp_path, monkeypatch):
    path, lock, removed = tmp_path / "lock", files.fcntl.lockf, []

    def remove_first(file, how):
        lock(file, how)
        if not removed:
            removed.append(path.unlink())

    monkeypatch.setattr(files.fcntl, "lockf", remove_first)
    with files.lock_file(path) as file:
        assert os.path.samestat(os.stat(path), os.fstat(file.fileno()))


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
def test_a_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        files.lock_file(tmp_path / "lock")
    assert (tmp_path / "mine").read_text() == "mine"


def test_where_there_are_no_locks_all_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    work = WorkFolder(tmp_path / "work", SETTINGS)
    work.claim(False)
    work.remove()
    assert not Path(tmp_path / "work").exists()
