"""Saving beside the next steps: copies of a run's tensors in host memory, and the thread that writes them."""

import copy
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn


class HostCopies:
    """Copies of networks and tensors in host memory, which stay as they are while training changes the originals.

    The memory (pinned, for those of a GPU) is taken once; the next copy of the same original goes into it.
    """

    def __init__(self):
        self._networks: dict[nn.Module, nn.Module] = {}
        self._tensors: dict[str, Tensor] = {}

    def of_network(self, network: nn.Module) -> nn.Module:
        """A network of the same class with the same weights, for saving only."""
        originals = [*network.parameters(), *network.buffers()]
        if network not in self._networks:
            # deepcopy takes tensors from here, and makes none on the device.
            found = {id(original): _like(original) for original in originals}
            self._networks[network] = copy.deepcopy(network, found)
        twin = self._networks[network]
        _copy_all([*twin.parameters(), *twin.buffers()], originals)
        return twin

    def of_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies by the same names, which belong to this object."""
        for name, original in tensors.items():
            if name not in self._tensors:
                self._tensors[name] = _host_memory(original)
        copies = {name: self._tensors[name] for name in tensors}
        _copy_all(list(copies.values()), list(tensors.values()))
        return copies


def _like(original: Tensor) -> Tensor:
    host = _host_memory(original)
    return nn.Parameter(host, requires_grad=original.requires_grad) if isinstance(original, nn.Parameter) else host


def _host_memory(original: Tensor) -> Tensor:
    return torch.empty_like(original, device="cpu", requires_grad=False, pin_memory=original.device.type == "cuda")


@torch.no_grad()
def _copy_all(copies: list[Tensor], originals: list[Tensor]) -> None:
    for host, original in zip(copies, originals, strict=True):
        host.copy_(original, non_blocking=True)
    if any(original.device.type == "cuda" for original in originals):
        torch.cuda.synchronize()  # once, for all copies


class Writer:
    """Runs one job after another in a thread; an error of a job is raised where the next one is given, or where it is awaited."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; the one before it must have been awaited."""
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint writer")
        self._thread.start()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error

    def raise_error(self) -> None:
        """Raise the error of a job that has failed; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait for the job to end, and raise its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()
