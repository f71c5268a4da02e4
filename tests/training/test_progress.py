"""The bar and the numbers of training: who sees the one, and what the other count."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch

from revhrnet_hf.training import progress
from revhrnet_hf.training.progress import Meter, progress_bar
from revhrnet_hf.training.recipe import Recipe


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("main", [True, False])
def test_only_a_terminal_and_the_main_process_have_a_bar(monkeypatch, terminal, main):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(SimpleNamespace(is_local_main_process=main), 3, "training", "step") as bar:
        bar.update()
        bar.set_postfix(loss="1.000")
    assert ("training" in stream.getvalue()) == (terminal and main)


@pytest.fixture
def meter(monkeypatch):
    """Of two steps that took three seconds by the clock, one of which went by in waiting for images."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    data = SimpleNamespace(recipe=Recipe(dataset="camvid", batch_size=12), seconds_waited=7.0)
    made = Meter(data, SimpleNamespace(learning_rate=0.25, grad_norm=None, mean_loss_terms=dict))
    for losses in ([1.0, 3.0], [0.5, 0.5]):  # two forward passes a step
        made.add(torch.tensor(losses))
    clock.now, data.seconds_waited = 103.0, data.seconds_waited + 1.0
    return made


def test_a_line(meter):
    shown = {}
    bar = SimpleNamespace(set_postfix=lambda **numbers: shown.update(numbers))
    assert meter.line(2, 0, bar) == {"loss": 2.5, "learning_rate": 0.25, "images_per_second": 8.0, "data_seconds": 1.0}
    assert shown == {"loss": "2.500", "lr": "2.50e-01", "images_per_s": "8.0"}
    assert (meter.losses, meter.data.seconds_waited) == ([], 0.0)
