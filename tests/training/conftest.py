import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file

from revhrnet_hf.synthetic import write_camvid, write_cityscapes

from .. import forked


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of timm's keys: the tests' stand-in for pretrained weights."""
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    torch.manual_seed(17)  # not the seed of any recipe, whose random weights would be the same
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def streets(tmp_path_factory):
    """Folders of two tiny datasets by name."""
    folder = tmp_path_factory.mktemp("streets")
    write_cityscapes(folder / "cityscapes", {"train": 10, "val": 3}, size=(48, 64))
    write_camvid(folder / "camvid", {"train": 10, "val": 3}, size=(48, 64))
    return {name: str(folder / name) for name in ("cityscapes", "camvid")}


class Runs:
    """Runs in processes of their own (forked_runs.py)."""

    def __init__(self, weights, data):
        self.data, self.numbers = data, itertools.count()
        self.settings = {
            "variant": "w18",
            "backbone": "test_resnet",
            "backbone_weights": str(weights),
            "num_modules": [1, 1, 1],
            "num_blocks": 1,
            "initializer": "he",
            "batch_norm_momentum": 0.1,
            "crop_size": [32, 48],
            "base_size": 64,
            "epochs": 2,
            "batch_size": 2,
            "learning_rate": 0.05,
            "num_workers": 0,
            "trackers": [],
        }
        program = Path(__file__).with_name("forked_runs.py")
        self.process = forked.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, output_dir, *names, **how):
        """The exit status of a run of a chain over datasets in one process, and what it printed."""
        ((status, said),) = self.start_several(1, output_dir, *names, **how)
        return status, said

    def start_several(
        self,
        processes,
        output_dir,
        *names,
        resume=False,
        fault=None,
        scaler=False,
        dry=False,
        machines=False,
        timeout=120,
        **settings,
    ):
        """The same for each of several processes.

        `fault` is (dataset, steps done, where, signal), as `forked_runs.place_fault` takes it; it comes to the last process,
        or to the one whose number is a fifth entry. `dry`: a dry run. `machines`: each process is on a machine of its own.
        """
        recipe = output_dir.with_name(f"{output_dir.name}.yaml")
        recipe.write_text(yaml.safe_dump({**self.settings, **settings, "stages": [{"dataset": name} for name in names]}))
        said = [output_dir.with_name(f"{output_dir.name}.said{rank}") for rank in range(processes)]
        meeting = output_dir.with_name(f"{output_dir.name}.meeting{next(self.numbers)}")  # a new one for each run
        job = {"recipe": str(recipe), "data": self.data, "output_dir": str(output_dir), "said": list(map(str, said))}
        job |= {"meeting": str(meeting), "resume": resume, "fault": fault, "scaler": scaler, "dry": dry, "timeout": timeout}
        job |= {"machines": machines}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        return [(status, path.read_text()) for status, path in zip(statuses, said, strict=True)]


@pytest.fixture(scope="session")
def runs(weights, streets):
    started = Runs(weights, streets)
    yield started
    # Closing its input would not do: loader workers of this process's own tests may hold it open as well.
    started.process.terminate()
    started.process.wait()


CLOCK = {"time", "images_per_second", "data_seconds", "epoch_seconds", "evaluation_seconds", "peak_memory_gib"}


@pytest.fixture(scope="session")
def log_of():
    """The lines of a run's log.jsonl without what a clock has measured, and without the place of its folder."""

    def read(output_dir):
        lines = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in CLOCK | {"init_from"}} for line in lines]

    return read


@pytest.fixture
def fresh_accelerate():
    """What the first `Accelerator` of a process settles for all others is forgotten."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield forget
    forget()


class SmallDisk:
    """A tmpfs of our own, which only this process and those below it see.

    Attributes:
        folder: where it is.
    """

    def __init__(self, mount_point):
        # It stays mounted as long as this shell lives, in whose namespace it is.
        shell = f'mount -t tmpfs -o size=64m tmpfs "{mount_point}" && echo 0 && while read c; do eval "$c" 1>&2; echo $?; done'
        self.shell = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self.shell.stdout.readline() != "0\n":
            pytest.skip(f"no tmpfs can be mounted here: {self.shell.communicate()[1]}")
        self.mount_point = mount_point
        self.folder = Path(f"/proc/{self.shell.pid}/root{mount_point}")

    def resize(self, size):
        """To `size` bytes."""
        self.shell.stdin.write(f'mount -o remount,size={size} "{self.mount_point}"\n')
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == "0\n", "tmpfs was not resized"

    def close(self):
        self.shell.stdin.close()
        self.shell.wait()


@pytest.fixture
def small_disk(tmp_path):
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    disk = SmallDisk(mount_point)
    yield disk
    disk.close()
