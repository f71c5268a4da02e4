"""The records of an evaluation: what they hold, and that one process at a time has them, however the last one ended."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from revhrnet_hf import io as files
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.evaluation.records import ImageRecord, WorkFolder, class_totals_by_image, nonzero_cells, total_matrix

SETTINGS = {"dataset": "camvid", "window": (32, 40)}
RECORD = ImageRecord(0, "a", (4, 6), np.array([[0, 24]]))

# Without the package, whose import takes seconds.
HOLDER = """
import pathlib, sys
from revhrnet_hf.io import lock_file
held = lock_file(pathlib.Path(sys.argv[1]))
print("held" if held else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that locks a file and keeps it; gives the process and what it said."""
    started = []

    def start(path):
        command = [sys.executable, "-c", HOLDER, str(path)]
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
    [read] = again.read().values()
    assert read.to_json() == RECORD.to_json()
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


def test_killed_while_removing(tmp_path):
    """Records whose settings were removed already are not taken for those of another evaluation."""
    folder = tmp_path / "work"
    work = WorkFolder(folder, SETTINGS)
    work.claim(False)
    with work.append_to(0) as part:
        part.write(RECORD)
    work.close()
    (folder / "settings.json").unlink()
    other = WorkFolder(folder, {**SETTINGS, "window": None})
    other.claim(False)
    assert other.read() == {}
    assert other.can_resume() and not work.can_resume()
    other.remove()
    assert not other.can_resume()


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ('{"window": 3, "compiled": true}', "compiled was True, is None"),  # a setting that is written only where it is given
        ("", "settings.json cannot be read"),
    ],
)
def test_records_with_other_or_damaged_settings_are_not_resumed(begun, said, tmp_path):
    work = WorkFolder(tmp_path / "work", {"window": 3})
    work.folder.mkdir()
    (work.folder / "settings.json").write_text(begun)
    assert not work.can_resume()
    with pytest.raises(CheckpointError, match=f"{said}.*--overwrite to begin anew"):
        work.claim(False)
    work.close()
    work.claim(True)
    assert work.can_resume()
    work.close()


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


def random_matrices(num_images=6, num_classes=7):
    """Most cells are 0, as in images of real scenes; the last image has no label map."""
    rng = np.random.default_rng(0)
    shape = num_images, num_classes, num_classes
    matrices = rng.integers(1, 2**40, shape) * (rng.random(shape) < 0.2)
    matrices[-1] = 0
    return matrices


def test_sums_over_records_are_those_of_the_matrices(tmp_path):
    matrices = random_matrices()
    work = WorkFolder(tmp_path / "work", SETTINGS)
    work.claim(False)
    for process_index in (0, 1):
        with work.append_to(process_index) as part:
            for index in range(process_index, len(matrices), 2):
                part.write(ImageRecord(index, f"ä/{index}", (4, 6), nonzero_cells(matrices[index])))
    by_row = work.read()
    records = [by_row[index] for index in range(len(matrices))]
    assert [(record.image_id, record.size) for record in records] == [(f"ä/{index}", (4, 6)) for index in range(len(matrices))]
    assert np.array_equal(total_matrix(records, 7), matrices.sum(0))
    expected = [[np.diag(matrix), matrix.sum(1), matrix.sum(0)] for matrix in matrices]
    assert np.array_equal(class_totals_by_image(records, 7), expected)


def test_a_record_is_read_as_it_was_written():
    boundary, objects = np.arange(6).reshape(3, 2), np.array([[26, 30, 20, 25]])
    for record in (
        ImageRecord(3, "a", (4, 6), np.array([[0, 2], [3, 22]]), boundary, objects),
        ImageRecord(3, "a", (4, 6), objects=np.empty((0, 4), np.int64)),
    ):
        read = ImageRecord.from_json(record.to_json())
        for name, value in vars(record).items():
            assert type(getattr(read, name)) is type(value) and np.array_equal(getattr(read, name), value), name
            assert not isinstance(value, np.ndarray) or getattr(read, name).shape == value.shape
