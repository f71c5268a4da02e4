"""Loader workers outlive signals that are meant for the process that they load for, but not that process; their number."""

import os
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from revhrnet_hf.data.loader import build_loader, default_num_workers, warn_of_small_shared_memory


class Pids:
    """Each item is the process that has loaded it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


def loader():
    return build_loader(Pids(), 2, persistent_workers=True)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who has sent a signal")
def test_signals_of_others_and_of_the_parent():
    images = loader()
    workers = set(images)
    assert len(workers) == 2
    for name in ("-TERM", "-INT", "-TERM"):
        subprocess.run(["kill", name, *map(str, workers)], check=True)
    time.sleep(0.2)
    assert set(images) == workers
    # torch ends a hanging worker in this way; the worker must end, and it must not count as failed.
    processes = images._iterator._workers
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=5)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_killed_parent():
    """Workers that were signalled before, and whose parent is then killed, end by themselves (torch looks every 5 s)."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            images = loader()
            os.write(writer, f"{' '.join(map(str, set(images)))}\n".encode())
            signal.pause()
        finally:
            os._exit(1)  # this is not the process that runs the tests
    os.close(writer)
    with open(reader) as said:
        workers = [int(pid) for pid in said.readline().split()]
    subprocess.run(["kill", *map(str, workers)], check=True)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert len(workers) == 2
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))


@pytest.mark.parametrize(
    ("cores", "processes", "device", "expected"),
    [
        (2, 1, "cpu", 1), (1, 1, "cpu", 1), (64, 1, "cpu", 8),
        (8, 1, "cuda", 8), (64, 8, "cuda", 8), (16, 8, "cuda", 2), (4, 8, "cuda", 1),
    ],
)  # fmt: skip
def test_workers_by_default(monkeypatch, cores, processes, device, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_num_workers(torch.device(device)) == expected
    assert build_loader(Pids(), None, torch.device(device)).num_workers == expected
    assert build_loader(Pids(), 0, torch.device(device)).num_workers == 0


class Ahead:
    """Stands for a loader of `workers` workers, which read two batches ahead each."""

    def __init__(self, workers):
        self.num_workers, self.prefetch_factor = workers, 2


@pytest.mark.parametrize(
    ("workers", "processes", "free_mib", "warned"), [(2, 1, 64, True), (2, 1, 120, False), (2, 2, 120, True), (0, 1, 1, False)]
)
def test_small_shared_memory_is_said(monkeypatch, tmp_path, caplog, workers, processes, free_mib, warned):
    """12 crops of 512×1024 are 24 MiB; two workers hold four batches, and the network a fifth."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_mib * 2**20))
    warn_of_small_shared_memory(Ahead(workers), 12 * 512 * 1024 * 4, tmp_path)
    assert bool(caplog.records) == warned
    if warned:
        batches = processes * 4 + processes
        assert f"{free_mib} MiB free" in caplog.text and f"{batches * 24} MiB" in caplog.text
        assert f"({batches} batches of 24.0 MiB)" in caplog.text and "--shm-size" in caplog.text


def test_no_shared_memory_to_look_at(tmp_path, caplog):
    """macOS and Windows have none with a name."""
    warn_of_small_shared_memory(Ahead(2), 2**60, tmp_path / "none")
    assert not caplog.records
