"""The check of a GPU: its records and limits of time, whether it finds faults, and the whole command on the CPU."""

import contextlib
import json
import math
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from revhrnet_hf.errors import RecipeError
from revhrnet_hf.synthetic import write_camvid

from .. import forked

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def part(tmp_path):
    """Makes part a, anew each time, with its file in the same folder."""
    from gpu_checks.record import Part, folder_of

    folder = folder_of(tmp_path, "cpu", quick=True)

    def make(seconds=60, again=False):
        return Part("a", "Proofs", folder, time.monotonic() + seconds, again)

    return make


@pytest.fixture
def setup(tmp_path):
    from gpu_checks.stages import Setup

    return Setup("cpu", True, tmp_path)


def statuses(part):
    return {row["case"]: row["status"] for row in json.loads(part.file.read_text())["rows"]}


def test_a_proof_holds_if_all_differences_do():
    from gpu_checks.record import Difference, judged

    small, large, nan = Difference("loss", 1e-7, 1e-6), Difference("logits", 3e-5, 1e-5), Difference("mIoU", math.nan, 1.0)
    assert judged({"differences": [small]})["status"] == "proved"
    for wrong in (large, nan):
        assert judged({"differences": [small, wrong]})["status"] == "FAILED"
    assert judged({"differences": [small, large]})["said"] == "logits 3.0e-05 (≤ 1.0e-05)"
    assert judged({"seconds": 1.0}) == {"status": "measured", "seconds": 1.0}


def test_results_are_written_at_once_and_kept(part, capsys):
    from gpu_checks.record import Check, Difference, NotPossible

    made = []

    def proof(case, found):
        def work():
            made.append(case)
            return {"differences": [Difference("loss", found, 1e-6)]}

        return Check("proof", case, work)

    def raises(case, error):
        def work():
            made.append(case)
            raise error

        return Check("proof", case, work)

    def interrupted():
        assert statuses(first) == {
            "good": "proved", "wrong": "FAILED", "large": "out of memory", "error": "ERROR", "none": "not possible"
        }  # fmt: skip
        raise KeyboardInterrupt

    first = part()
    checks = [
        proof("good", 0.0),
        proof("wrong", 1.0),
        raises("large", torch.OutOfMemoryError("CUDA out of memory")),
        raises("error", RuntimeError("illegal address")),
        raises("none", NotPossible("no NCCL")),
        Check("proof", "interrupted", interrupted),
    ]
    with pytest.raises(KeyboardInterrupt):
        first.run(checks)
    said = capsys.readouterr().out
    assert "loss 1.0e+00 (≤ 1.0e-06)" in said and "RuntimeError: illegal address" in said

    made.clear()
    second = part()
    second.run([*checks[:-1], proof("interrupted", 0.0)])
    assert made == ["wrong", "error", "interrupted"]  # all else is known
    assert statuses(second)["interrupted"] == "proved"

    made.clear()
    part(again=True).run(checks[:1])
    assert made == ["good"]


def test_time_is_a_limit(part):
    from gpu_checks.record import Check

    def swallows():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)

    limited = part(seconds=0.3)
    started = time.monotonic()
    limited.run([Check("cell", "endless", swallows, needs=0), Check("cell", "next", lambda: {"seconds": 1.0})])
    assert time.monotonic() - started < 4
    assert statuses(limited) == {"endless": "out of time", "next": "out of time"}


def test_results_of_other_code_are_not_touched(tmp_path, monkeypatch):
    from gpu_checks import record

    first = record.folder_of(tmp_path, "cpu", quick=True)
    assert record.folder_of(tmp_path, "cpu", quick=True) == first
    assert record.folder_of(tmp_path, "cpu", quick=False) != first
    monkeypatch.setattr(record, "_digest_of_code", lambda: "changed")
    assert record.folder_of(tmp_path, "cpu", quick=True) != first


def failed(values):
    from gpu_checks.record import judged

    return {row["quantity"] for row in judged(values)["differences"] if not row["found"] <= row["allowed"]}


def test_a_wrong_device_is_found(setup, monkeypatch):
    """Weights that are one part in a thousand off, a label map with some wrong pixels, a gradient that is not unscaled."""
    from gpu_checks import proofs

    assert failed(proofs.as_on_cpu(setup, "tiny-rev")) == set()
    right = proofs.moved

    def off(*given):
        model, images, labels = right(*given)
        with torch.no_grad():
            [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][-1].weight.mul_(1.001)
        return model, images, labels

    monkeypatch.setattr(proofs, "moved", off)
    assert {"loss", "logits"} <= failed(proofs.as_on_cpu(setup, "tiny-rev"))

    monkeypatch.setattr(proofs, "moved", right)
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda self: 1.0)
    assert "gradients" in failed(proofs.in_half(setup, "tiny-rev", "fp16 with its scaler"))


def test_places_of_waits(monkeypatch):
    """With torch's two modes imitated: an error at the first wait, then a warning at each."""
    from gpu_checks import waits

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    said = "called a synchronizing CUDA operation"

    def wait():
        if modes[-1] == "error":
            raise RuntimeError(said)
        warnings.warn_explicit(said, UserWarning, "/package/learner.py", 7)
        warnings.warn_explicit(said, UserWarning, "/package/trainer.py", 9)
        warnings.warn_explicit("something else", UserWarning, "/package/trainer.py", 11)

    assert waits.places_of_waits(lambda: None) == []
    first, *others = waits.places_of_waits(wait)
    assert first.startswith("test_gpu_check.py:") and others == ["learner.py:7", "trainer.py:9"]
    assert modes == ["error", "default", "error", "default", "warn", "default"]
    with pytest.raises(RuntimeError, match="out of"):
        waits.places_of_waits(lambda: (_ for _ in ()).throw(RuntimeError("out of luck")))


@pytest.mark.parametrize("kind", ["", "OHEM", "class weights", "focal", "Dice"])
def test_a_wrong_loss_is_found(setup, monkeypatch, kind):
    from gpu_checks import proofs

    assert failed(proofs.banded_loss(setup, 7, kind)) == set()
    right = proofs.segmentation_loss
    monkeypatch.setattr(proofs, "segmentation_loss", lambda *given, **settings: right(*given, **settings) * 1.0001)
    assert failed(proofs.banded_loss(setup, 7, kind)) == {"loss", "gradient"}


def test_cells_are_by_importance_and_each_is_once():
    """And all of them name networks that there are."""
    from benchmarks.networks import NETWORKS
    from gpu_checks import measures

    cells = measures.cells()
    assert len(set(map(str, cells))) == len(cells)
    assert {cell.network.partition("+")[0] for cell in cells} <= NETWORKS.keys()
    assert [cell.network for cell in cells[:3]] == ["rev-w48", "rev-w18", "timm-hrnet-w48"]
    assert {cell.batch for cell in cells if cell.kind == "train" and cell.network == "segformer-b5"} == {2, 4, 8, 12}


def test_a_cells_ratio_is_to_the_peer_in_the_same_cell():
    from gpu_checks import measures

    cell = {"kind": "train", "batch": 2, "precision": "bf16", "compiled": False, "status": "measured", "layout": "channels-last"}
    rows = [
        {**cell, "network": "rev-w48", "seconds": 0.1},
        {**cell, "network": measures.PEER, "seconds": 0.2},
        {**cell, "network": measures.PEER, "seconds": 0.4, "layout": "contiguous"},
        {**cell, "network": "rev-w48", "seconds": 0.1, "batch": 4},
        {"status": "out of memory"},
    ]
    assert [row["ratio"] for row in measures.with_ratios(rows)] == [0.5, 1.0, 2.0, None]


@pytest.mark.slow
def test_the_whole_command_on_the_cpu(tmp_path):
    write_camvid(tmp_path / "camvid", {"train": 8, "val": 3}, size=(48, 64))
    options = ["--device", "cpu", "--quick", "--camvid", tmp_path / "camvid", "--output", tmp_path / "out"]
    command = [sys.executable, SCRIPTS / "gpu_check.py", *options]
    done = forked.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/?.json")}
    rows = {letter: file["rows"] for letter, file in files.items()}
    assert sorted(rows) == list("abcd")
    found = {row["check"]: row["status"] for row in rows["a"]}
    assert found.pop("SyncBatchNorm in a group of one = BatchNorm") == found.pop("compiled = eager") == "not possible"
    assert set(found.values()) == {"proved"} and {"resumed after SIGKILL", "frozen backbone's bits"} <= found.keys()
    assert all(row["status"] == "measured" for letter in "bcd" for row in rows[letter])
    assert all(row["seconds"] > 0 for row in rows["c"]) and rows["d"][0]["images/s"] > 0
    assert files["c"]["conditions"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for word in ("peak GiB", "recipe camvid", "proved", "measured"):
        assert word in done.stdout
    again = forked.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and {letter: json.loads(next((tmp_path / "out").glob(f"*/{letter}.json")).read_text())["rows"]
                                      for letter in rows} == rows  # fmt: skip


@pytest.mark.parametrize(
    ("part", "found", "status"),
    [
        ("a", ["proved", "not possible"], 0),
        ("a", ["proved", "out of time"], 3),
        ("b", ["FAILED", "out of time"], 1),
        ("c", ["measured", "out of time", "out of memory"], 0),
        ("c", ["measured", "ERROR"], 1),
    ],
)
def test_exit_status(part, found, status):
    from gpu_check import exit_status

    assert exit_status({part: SimpleNamespace(rows=[{"status": each} for each in found])}) == status


def test_without_a_gpu_the_command_says_what_can_be_done(tmp_path, monkeypatch):
    from gpu_check import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="--device cpu --quick"):
        main(["--output", str(tmp_path)])
