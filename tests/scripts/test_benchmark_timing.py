"""How the benchmarks reckon: turns, medians and ratios, by a clock that the test turns."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "scripts" / "benchmarks" / "timing.py"


@pytest.fixture(scope="module")
def timing():
    spec = importlib.util.spec_from_file_location("benchmark_timing", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def working(timing, monkeypatch):
    """Makes calls that take the given seconds, one after the other; notes who was called."""
    now, called = [100.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def make(name, *takes):
        left = iter(takes)

        def call():
            called.append(name)
            now[0] += next(left)

        return call

    return make, called


def test_seconds_of_a_call(timing, working):
    make, _ = working
    assert timing.seconds(make("a", 2.5), "cpu") == 2.5


def test_turns(timing, working):
    """The first round does not count; a ratio is that of a round, and their median is not the ratio of the medians."""
    make, called = working
    calls = {"peer": make("peer", 90, 1, 4, 2, 8), "ours": make("ours", 50, 3, 4, 1, 4)}
    peer, ours = timing.take_turns(calls, "peer", rounds=4, device="cpu")
    assert called == ["peer", "ours"] * 5
    assert (peer["name"], peer["all_seconds"], peer["seconds"], peer["ratio"]) == ("peer", [1, 4, 2, 8], 3, 1)
    assert (ours["name"], ours["all_seconds"], ours["seconds"]) == ("ours", [3, 4, 1, 4], 3.5)
    assert ours["ratio"] == 0.75  # of 3, 1, 0.5, 0.5; the medians' would be 1.17


def test_table(timing, capsys):
    rows = [{"name": "a network", "seconds": 0.5, "ratio": 1}, {"name": "b", "seconds": 12.25, "ratio": None}]
    timing.print_rows(rows, {"name": "", "seconds": ".2f", "ratio": ".1f"})
    assert capsys.readouterr().out.splitlines() == [
        "name       seconds  ratio",
        "a network     0.50    1.0",
        "b            12.25      –",
    ]
