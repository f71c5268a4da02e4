"""What the runs of a study that are not finished will take: one run of each network is rehearsed, in a process of its own."""

import logging
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from revhrnet_hf.text import aligned
from revhrnet_hf.training.chain import data_dirs_by_name
from revhrnet_hf.training.dry_run import Estimate, as_time, dry_run

from .peers import register_peers
from .plan import Run

logger = logging.getLogger(f"revhrnet_hf.{__name__}")  # the messages of the package's loggers are printed

TITLES = ("network", "variation", ">runs", ">a run", ">memory GiB", ">disk GiB")


def estimate_runs(runs: Iterable[Run], data_dir: list[str], devices: int) -> str:
    """A table of what each kind of run takes, and how long all will take.

    Args:
        runs: those that are not finished.
        data_dir: as for `do_run`.
        devices: number of runs at once.

    Raises:
        DataError, RecipeError: as in training.
    """
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.network, "choice of its rate" if run.is_tuning else run.variation), []).append(run)
    rows, seconds, disk = [list(TITLES)], 0.0, 0.0
    # Processes of their own, because the precision of a process stays what its first run asked for.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        rehearsed = pool.map(_rehearse, (same[0] for same in kinds.values()), [data_dir] * len(kinds))
        for number, ((network, variation), same, stages) in enumerate(zip(kinds, kinds.values(), rehearsed, strict=True), 1):
            logger.info("tried %d of %d: %s, %s", number, len(kinds), network, variation)
            each, room = sum(stage.seconds for stage in stages), sum(stage.disk_gib for stage in stages)
            memory = max(stage.memory_gib for stage in stages)
            rows.append([network, variation, str(len(same)), as_time(each), f"{memory:.2f}", f"{room:.2f}"])
            seconds, disk = seconds + len(same) * each, disk + len(same) * room
    return "\n".join([*aligned(rows), f"together {as_time(seconds / max(1, devices))}, {disk:.2f} GiB of disk"])


def _rehearse(run: Run, data_dir: list[str]) -> list[Estimate]:
    """An estimate for each stage of the run."""
    register_peers()
    recipes = [replace(recipe) for recipe in run.recipes]
    with (
        tempfile.TemporaryDirectory(prefix="revhrnet-study-") as folder,
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        return dry_run(recipes, data_dirs_by_name(data_dir, recipes), Path(folder) / "run")
