"""What the processes that load pictures do with signals."""

import os
import signal
import threading


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
