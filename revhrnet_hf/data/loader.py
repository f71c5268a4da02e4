"""The one DataLoader of training, evaluation and the audit, and what its workers do with signals."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

CPU = torch.device("cpu")
MOST_WORKERS = 8  # by default; more is the user's to say


def default_num_workers(device: torch.device = CPU) -> int:
    """How many workers one process gets where nobody says a number: its share of the cores, at most `MOST_WORKERS`.

    Beside a network on the CPU, whose threads need the same cores, half of that share. A share is of the cores that this process
    may use, among the processes that a launcher has started on this machine.
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
    """Worker processes that read ahead while a network works.

    Args:
        dataset: has `__len__` and `__getitem__`.
        num_workers: processes; 0 reads in this one, None takes `default_num_workers(device)`.
        device: where the network is.
        batch_sampler: the indices of each batch; without it samples come one by one, in order.
        collate_fn: what becomes of the samples of a batch, or of each sample where there is no `batch_sampler`.
        persistent_workers: workers stay from one pass over the loader to the next.
        timeout: seconds after which a worker that gives no answer is an error; 0: never.
    """
    if num_workers is None:
        num_workers = default_num_workers(device)
    batches = {"batch_size": None} if batch_sampler is None else {"batch_sampler": batch_sampler}
    return DataLoader(
        dataset,
        **batches,
        collate_fn=collate_fn,
        num_workers=num_workers,
        pin_memory=device.type == "cuda" and batch_sampler is not None,
        persistent_workers=persistent_workers and num_workers > 0,
        worker_init_fn=obey_parent_only,
        timeout=timeout if num_workers else 0,
    )


def obey_parent_only(worker: int) -> None:
    """A loader's `worker_init_fn`: the worker ends when the process that it loads for says so, and for no other signal.

    Ctrl-C, launchers and schedulers signal the workers too. The process that they load for may finish a step and save first,
    however long that takes, and then ends its workers itself. If it is gone without a word, torch's workers see that and end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # it tells who has sent a signal; not on macOS, where any SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as torch's own handler: with another status the parent would report a worker that failed
