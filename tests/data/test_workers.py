"""Loader workers outlive signals that are meant for the process that they load for, but not that process; threads that load."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from revhrnet_hf.data.workers import ThreadLoader, obey_parent_only
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import write_camvid


class Pids:
    """Each item is the process that has loaded it."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


def loader():
    return DataLoader(Pids(), batch_size=None, num_workers=2, persistent_workers=True, worker_init_fn=obey_parent_only)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who has sent a signal")
def test_signals_of_others_and_of_the_parent():
    pictures = loader()
    workers = set(pictures)
    assert len(workers) == 2
    for name in ("-TERM", "-INT", "-TERM"):
        subprocess.run(["kill", name, *map(str, workers)], check=True)
    time.sleep(0.2)
    assert set(pictures) == workers
    # torch ends a worker that does not come to its end by itself in this way; it must neither stay nor be called a fault.
    processes = pictures._iterator._workers
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
            pictures = loader()
            os.write(writer, f"{' '.join(map(str, set(pictures)))}\n".encode())
            signal.pause()
        finally:
            os._exit(1)  # it is not the one that runs the tests
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


class Together:
    """To read a sample takes until two are read at once; `reading` are those that are being read."""

    def __init__(self):
        self.barrier, self.reading = threading.Barrier(2, timeout=60), set()

    def read(self, index):
        self.reading.add(index)
        self.barrier.wait()
        if index == 5:
            raise DataError("picture 5 cannot be read")
        self.reading.remove(index)
        return index

    def prepare(self, row):
        assert not self.reading
        return {"pixel_values": torch.full((2,), row)}


def test_threads_read_a_batch_at_once_and_then_rest():
    samples = Together()
    batches = iter(ThreadLoader(samples, [[3, 0], [2, 1], [4, 5], [6, 7]], num_threads=2))
    for expected in ([3, 0], [2, 1]):
        assert next(batches)["pixel_values"].tolist() == [[index, index] for index in expected]
        assert not samples.reading
    with pytest.raises(DataError, match=r"^picture 5 cannot be read$"):
        next(batches)


THREADS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import TrainingSamples, TrainingTransform, load_segmentation_dataset

def threads():
    return len(os.listdir("/proc/self/task"))

transform = TrainingTransform(RevHRNetImageProcessor(), (512, 640), base_size=900, flip=1.0)
samples = TrainingSamples(load_segmentation_dataset("camvid", sys.argv[1], "train"), transform, seed=0)
before = threads()
with ThreadPoolExecutor(1) as pool:
    crop = pool.submit(samples.read, 0).result()
    reading = threads() - before
    pool.submit(samples.prepare, crop).result()
    preparing = threads() - before
print(reading, preparing)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc")
def test_training_samples_are_read_without_torchs_threads(tmp_path):
    """Each thread that computes with torch would start as many again, which then take turns with the network's."""
    write_camvid(tmp_path, {"train": 2}, size=(360, 480))
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", THREADS, tmp_path]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.stdout.split() == ["1", "2"]  # the pool's thread; and one that torch has started for it
