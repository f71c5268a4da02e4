"""How pictures are loaded beside a network's work: by processes, and what those do with signals, or by threads."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import default_collate


def reads_in_threads(device: torch.device) -> bool:
    """Whether pictures for a network on `device` are read by threads between its passes, not by processes meanwhile.

    On a CPU processes would take cores from the network's threads, of which each waits for the slowest: a training step on two
    cores loses more time to two such processes than to reading the pictures itself.
    """
    return device.type == "cpu"


class ThreadLoader:
    """Batches whose pictures are read by threads, while the network has none at work.

    Args:
        samples: has `read(index)`, for the threads, and `prepare` for what that gives. Only `prepare` may compute with torch,
            whose own threads would be as many again for each thread that calls it.
        batches: the indices of each.
        num_threads: how many read at once.
    """

    def __init__(self, samples, batches: Iterable[list[int]], num_threads: int):
        self.samples, self.batches, self.num_threads = samples, batches, num_threads

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(self.num_threads) as pool:
            for indices in self.batches:
                rows = list(pool.map(self.samples.read, indices))
                yield default_collate([self.samples.prepare(row) for row in rows])


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
