"""The DataLoader of training, evaluation and the audit, and how its workers treat signals."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..defaults import MOST_WORKERS

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it


def default_num_workers(device: torch.device = CPU) -> int:
    """The default number of workers of one process: its share of the CPU cores, at most `MOST_WORKERS`.

    The cores that this process may use are shared among the processes that a launcher has started on this machine. If the network
    runs on the CPU, its threads need the same cores, and the default is half the share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(MOST_WORKERS, share // 2 if device.type == "cpu" else share))


def build_loader(
    dataset: Dataset,
    num_workers: int | None = None,
    device: torch.device = CPU,
    *,
    batch_sampler: Iterable[list[int]] | None = None,
    collate_fn: Callable[[Any], Any] | None = None,
    persistent_workers: bool = False,
    timeout: float = 0,
) -> DataLoader:
    """A DataLoader whose worker processes read ahead while the network runs.

    Args:
        dataset: has `__len__` and `__getitem__`.
        num_workers: worker processes; 0 reads in this process, None means `default_num_workers(device)`.
        device: the network's device.
        batch_sampler: the indices of each batch; without it, samples come one by one, in order.
        collate_fn: applied to the samples of a batch, or to each sample without a `batch_sampler`.
        persistent_workers: keep the workers from one pass over the loader to the next.
        timeout: seconds after which a silent worker is an error; 0: never.
    """
    if num_workers is None:
        num_workers = default_num_workers(device)
    batches = {"batch_size": None} if batch_sampler is None else {"batch_sampler": batch_sampler}
    return DataLoader(
        dataset,
        **batches,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=persistent_workers and num_workers > 0,
        worker_init_fn=obey_parent_only,
        timeout=timeout if num_workers else 0,
    )


def warn_of_small_shared_memory(loader: DataLoader, batch_bytes: int, shared_memory: Path = SHARED_MEMORY) -> None:
    """Warn where the memory through which workers pass batches cannot hold all that the loaders of this machine read ahead.

    A worker that finds no room there dies of a bus error, which says nothing. Containers have 64 MB by default.

    Args:
        loader: of this process; the others on the machine are taken to be alike.
        batch_bytes: of one batch.
        shared_memory: where it is mounted.
    """
    if loader.num_workers == 0 or not shared_memory.is_dir():
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    batches = processes * (loader.num_workers * loader.prefetch_factor + 1)  # and the one that the network has
    free, needed = (size / 2**20 for size in (shutil.disk_usage(shared_memory).free, batches * batch_bytes))
    if needed > free:
        logger.warning(
            f"{shared_memory} has {free:.0f} MiB free, and the workers hold up to {needed:.0f} MiB there ({batches} batches of "
            f"{batch_bytes / 2**20:.1f} MiB). If a worker dies, give it more (a container: `docker run --shm-size=8g` or "
            "`--ipc=host`), or lower num_workers"
        )


def obey_parent_only(worker: int) -> None:
    """A loader's `worker_init_fn`: the worker ignores signals, except a SIGTERM from its parent process, which ends it.

    Ctrl-C, launchers and schedulers signal the workers too. But the parent may first finish a step and save, however long that
    takes, and then end its workers itself. If the parent is killed, torch's workers notice that and end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # it tells the sender of a signal; missing on macOS, where any SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as in torch's handler: after another status the parent would report a failed worker
