"""Measures the time of several calls that take turns, and their ratios to one of them."""

import statistics
import time
from collections.abc import Callable

import torch

from revhrnet_hf.text import table


def seconds(call: Callable[[], object], device: str, clock: Callable[[], float] | None = None) -> float:
    """Seconds of one call by a clock (default: that on the wall); on a GPU between two events of its stream."""
    clock = clock or time.perf_counter
    if device.startswith("cuda"):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    started = clock()
    call()
    return clock() - started


def take_turns(
    calls: dict[str, Callable[[], object]], peer: str, rounds: int, device: str, clock: Callable[[], float] | None = None
) -> list[dict]:
    """Run each call once in each round; a first round only warms up.

    Returns a row for each call: the medians of its seconds and of its ratios to `peer` in the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call, device, clock)
            if number > 0:
                times[name].append(took)
    return [
        {
            "name": name,
            "seconds": statistics.median(taken),
            "ratio": statistics.median(own / other for own, other in zip(taken, times[peer], strict=True)),
            "all_seconds": taken,
        }
        for name, taken in times.items()
    ]


def print_rows(rows: list[dict], columns: dict[str, str]) -> None:
    """Print a table of `rows`. `columns` has the number format of each field; the first is the name. `–` is a missing value."""
    names = list(columns)
    titles = [names[0], *(f">{name}" for name in names[1:])]
    print(table([titles, *([format_value(row.get(name), columns[name]) for name in names] for row in rows)]))


def format_value(value, spec: str) -> str:
    return "–" if value is None else format(value, spec)
