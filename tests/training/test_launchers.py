"""SIGTERM to a run that a launcher has started, as a person, a scheduler or a container's end sends it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from .test_resume import assert_same

STOPPED = r"SIGTERM: stopped after step (\d+) of 40; saved in \S+/last\. To resume, run the same command with --resume"
SETTINGS = {"epochs": 8, "eval_every": 8, "num_workers": 1, "log_every": 1}
SCRIPT = Path(__file__).parents[2] / "scripts" / "run_seg.py"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    "accelerate": [
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ],
    "accelerate, one process": ["accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"],
}


def lines_of(log):
    return log.read_text().count("\n") if log.exists() else 0


def stopped_run(launcher, output_dir, *arguments, everybody):
    """What a run says that gets SIGTERM after its first log line: its launcher alone, or all processes."""
    log = output_dir / "log.jsonl"
    before = lines_of(log)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], SCRIPT, "--output_dir", output_dir, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and lines_of(log) == before:
            time.sleep(0.01)
        others = psutil.Process(process.pid).children(recursive=True)
        assert len(others) == (1 if "one" in launcher else 2) * (1 + SETTINGS["num_workers"])
        for other in reversed(others) if everybody else ():
            other.send_signal(signal.SIGTERM)
        process.terminate()
        said = process.stdout.read()
    assert psutil.wait_procs(others, timeout=20)[1] == []
    return said


@pytest.fixture
def arguments(runs, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**runs.settings, **SETTINGS, "dataset": "camvid"}))
    return ["--recipe", recipe, "--data_dir", runs.data["camvid"]]


@pytest.mark.slow
def test_launcher_that_passes_nothing_on(arguments, tmp_path):
    """It ends at once; the run notices, saves and stops."""
    said = stopped_run("accelerate, one process", tmp_path / "run", *arguments, everybody=False)
    assert len(re.findall(STOPPED, said)) == 1, said


@pytest.mark.slow
def test_stops_and_goes_on(runs, arguments, log_of, tmp_path):
    """All processes stop after the same step, and the run that was stopped twice ends as one that was left alone."""
    for status, said in runs.start_several(2, tmp_path / "whole", "camvid", **SETTINGS):
        assert status == 0, said
    folder, done = tmp_path / "run", 0
    for launcher, everybody in (("torchrun", False), ("accelerate", True)):
        said = stopped_run(launcher, folder, *arguments, "--resume", everybody=everybody)
        stops = re.findall(STOPPED, said)
        assert len(stops) == 2, said
        assert len(set(stops)) == 1
        assert done < int(stops[0]) < 40
        done = int(stops[0])
    for status, said in runs.start_several(2, folder, "camvid", resume=True, **SETTINGS):
        assert status == 0, said
    assert_same(tmp_path / "whole", folder, log_of)
