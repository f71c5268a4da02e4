"""Files and folders are replaced whole, and what others have put beside them stays."""

import errno
import os
import re
import subprocess
import sys

import pytest

from revhrnet_hf.escape import ReaderEndedError
from revhrnet_hf.io import (
    OLD,
    _beside,
    is_name_too_long,
    recover_folder,
    remove,
    whole_file,
    without_folders,
    write_folder,
    write_text,
)
from revhrnet_hf.training.checkpoint_files import PARTIAL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    """Else a machine that loses its power may come back with an empty file of that name."""
    target, steps = tmp_path / "result.json", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda source, to: (steps.append(str(to)), replace(source, to)))
    write_text(target, "whole")
    contents, name, folder = steps
    assert (name, folder) == (str(target), str(tmp_path)) and contents.startswith(str(tmp_path / ".result.json."))
    assert target.read_text() == "whole"


# What a process does that may write no more than a kilobyte into a file, and the file that its error then names.
FULL = {
    "write_text('x.txt', 'x' * 9999)": "x.txt",
    "save_image(noise, 'x.png')": "x.png",
    "write_folder(Path('x'), lambda folder: (folder / 'a').write_bytes(bytes(9999)))": "x",
    "write_folder(Path('x'), lambda folder: save_image(noise, folder / 'a'))": "x/a",
    "write_folder(Path('x'), lambda folder: save_file({'a': np.zeros(999)}, folder / 'a'))": "x",
    "write_frames(Path('x.mp4'))": "x.mp4",
}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    program = f"""
import resource
from fractions import Fraction
from pathlib import Path
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from revhrnet_hf.cli import run
from revhrnet_hf.evaluation.video import write_video
from revhrnet_hf.images import save_image
from revhrnet_hf.io import write_folder, write_text
noise = Image.effect_noise((99, 99), 50).convert("RGB")
def write_frames(path):
    with write_video(path, Fraction(5), Fraction(1, 5)) as writer:
        for time in range(9):
            writer.write(noise, time)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
for work in {list(FULL)}:
    try:
        run(lambda: eval(work))
    except SystemExit as end:
        assert end.code == 1
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("[libx264")]
    assert said == [f"error: {named}: {os.strerror(errno.EFBIG)}" for named in FULL.values()]
    assert (done.returncode, names(tmp_path)) == (0, [])


def test_errors_of_other_files_and_of_pipes_stay(tmp_path):
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", "other.txt"),
        ReaderEndedError(errno.EPIPE, "Broken pipe"),
        OSError("of no file"),
    ):
        with pytest.raises(type(error), match=re.escape(str(error))) as caught, whole_file(tmp_path / "x"):
            raise error
        assert caught.value is error


@pytest.mark.skipif(sys.platform == "win32", reason="names of as many units of UTF-16")
@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_temporary_names_of_long_names_are_short(tmp_path, name):
    assert not is_name_too_long(name) and is_name_too_long(name + "xx")
    write_text(tmp_path / name, "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "whole")]
    (tmp_path / name).unlink()
    for _ in range(2):
        write_folder(tmp_path / name, lambda folder: (folder / "a").write_text("whole"))
    assert names(tmp_path) == [name]
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / name / "a") as partial:
        assert PARTIAL.fullmatch(partial.name)
        raise KeyboardInterrupt
    _beside(tmp_path / name, OLD).mkdir()
    recover_folder(tmp_path / name)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("there", [False, True])
def test_siblings_of_others_stay(tmp_path, there):
    for name in ("space.new", "space.old", ".space.new", "space.revhrnet-new-01234567"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text(name)
    before = names(tmp_path)
    if there:
        (tmp_path / "space").mkdir()
    write_folder(tmp_path / "space", lambda folder: (folder / "a").write_text("new"))
    recover_folder(tmp_path / "space")
    assert names(tmp_path) == sorted([*before, "space"])
    assert all((tmp_path / name / "thesis.txt").read_text() == name for name in before)
    assert (tmp_path / "space" / "a").read_text() == "new"


def test_fault_in_filling(tmp_path):
    (tmp_path / "space").mkdir()

    def fill(folder):
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "space", fill)
    assert names(tmp_path) == ["space"]
    assert names(tmp_path / "space") == []


def test_two_writers_of_one_folder(tmp_path):
    """One ends while the other still writes: neither loses its files."""

    def outer(folder):
        (folder / "a").write_text("outer")
        write_folder(tmp_path / "space", lambda inner: (inner / "a").write_text("inner"))
        assert (folder / "a").read_text() == "outer"

    write_folder(tmp_path / "space", outer)
    assert (tmp_path / "space" / "a").read_text() == "outer"
    assert names(tmp_path) == ["space"]


def test_links_are_removed_and_not_what_they_lead_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    remove(tmp_path / "link")
    remove(tmp_path / "absent")
    assert names(tmp_path) == ["far"]
    assert (tmp_path / "far" / "thesis.txt").read_text() == "mine"


def test_recovered(tmp_path):
    (tmp_path / ".space.revhrnet-old-01234567").mkdir()
    (tmp_path / ".space.revhrnet-old-01234567" / "a").write_text("old")
    (tmp_path / ".space.revhrnet-new-01234567").mkdir()
    recover_folder(tmp_path / "space")
    assert names(tmp_path) == ["space"]
    assert (tmp_path / "space" / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("label_space", "/mnt/sets/labels.yaml", "labels.yaml"),
        ("label_space", "../client_x/labels.yaml", "labels.yaml"),
        ("label_space", "client_x/labels.YAML", "labels.YAML"),
        ("label_space", "camvid11", "camvid11"),
        ("backbone_weights", "~/weights/net.pth", "net.pth"),
        ("backbone_weights", "pip:some-package", "pip:some-package"),
        ("backbone", "runs/first/best", "best"),  # is there
        ("init_from", "runs/first/best", "best"),
        ("init_from", "someone/net", "someone/net"),
        ("backbone", "timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("train_split", "train[:80%]", "train[:80%]"),
        ("hub_model_id", "runs/first", "runs/first"),  # a name on the Hub, whatever folders are here
        ("trackers", ["runs/first", "table.csv"], ["runs/first", "table.csv"]),
        (
            "more_datasets",
            ["scans:all,loader=folder,label_space=../client_x/t.yaml,image_column=runs/first"],
            ["scans:all,loader=folder,label_space=t.yaml,image_column=runs/first"],
        ),
        (
            "more_datasets",
            [{"name": "runs/first", "label_space": "a/t.yaml"}],
            [{"name": "runs/first", "label_space": "t.yaml"}],
        ),
        ("loss", {"dice": 1.0, "backbone": [3, None]}, {"dice": 1.0, "backbone": [3, None]}),
    ],
)
def test_settings_without_folders(field, value, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first" / "best").mkdir(parents=True)
    assert without_folders({field: value}) == {field: expected}
