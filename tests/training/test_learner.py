"""A training step gives the device work and waits for nothing: no value is read back, no tensor is made of the host's numbers."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revhrnet_hf import RevHRNetForSemanticSegmentation
from revhrnet_hf.models import auxiliary
from revhrnet_hf.training import learner
from revhrnet_hf.training.agreement import EarlyCopy
from revhrnet_hf.training.optimisation import build_optimizer
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

from ..fake_cuda import fake_cuda


class Waits(AssertionError):
    pass


class RefuseWaits(TorchDispatchMode):
    """Raises at operations for which the host of a GPU waits.

    They read a value (`item`), or have a result whose size depends on values (`nonzero`, a mask as an index), or make a tensor of
    numbers of the host (`torch.tensor`, `new_tensor`), which are then copied.

    Args:
        of_host: tensors that lie on the host whatever the device.
    """

    READ, MADE = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default
    SIZED = (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default, torch.ops.aten._unique2.default)

    def __init__(self, of_host=()):
        super().__init__()
        self.of_host = of_host

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1])
        )
        read = func == self.READ and not any(args[0] is x for x in self.of_host)
        if read or masked or func == self.MADE or func in self.SIZED:
            raise Waits(str(func))
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor) and x.ndim > 0}
        if len(devices) > 1:
            raise Waits(f"{func} between {devices}")
        return result


@pytest.mark.parametrize(
    "culprit",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.tolist() and float(x[0]),
    ],
)
def test_waits_are_found(culprit):
    with pytest.raises(Waits), RefuseWaits():
        culprit(torch.ones(3))


def with_scaler(monkeypatch):
    make = Accelerator.__init__

    def init(self, *arguments, **settings):
        make(self, *arguments, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    monkeypatch.setattr(Accelerator, "__init__", init)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ema_decay": 0.9, "max_grad_norm": 1.0, "gradient_accumulation_steps": 2},
        {"optimizer": "adamw", "recompute": "modules"},
        {"ema_decay": 0.9, "max_grad_norm": 1.0, "scaler": True},
        {"optimizer": "adamw", "scaler": True},
    ],
    ids=lambda settings: ",".join(settings) or "sgd",
)
def test_a_step_waits_for_nothing(runs, streets, monkeypatch, tmp_path, settings):
    """On the CPU, with the optimizers that GPUs get."""
    if settings.pop("scaler", False):
        with_scaler(monkeypatch)
    gpu = torch.device("cuda")
    monkeypatch.setattr(learner, "build_optimizer", lambda network, recipe, device: build_optimizer(network, recipe, gpu))
    # Labels are looked at on the CPU only; the next test would wait for it.
    monkeypatch.setattr(auxiliary, "class_ids", lambda labels, *_: labels)
    stage = Stage(Recipe(dataset="camvid", **{**runs.settings, **settings}), streets["camvid"], tmp_path / "run")
    stage.learner.model.train()
    steps = list(stage.data.steps())
    stage.train_step(steps[0])  # makes the optimizer's state
    averaged = stage.learner.averaged
    with RefuseWaits(() if averaged is None else [averaged.n_averaged]):
        stage.train_step(steps[1])
        stage.train_step(steps[2])
    assert stage.state.step == 3


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_forward_pass_on_a_gpu_makes_no_tensor_on_the_host(tiny_config, precision):
    """Nothing goes from the host to the GPU or back, in the network and in the loss."""
    with fake_cuda():
        model = RevHRNetForSemanticSegmentation(tiny_config()).train()
        inputs = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.int64)
        with nullcontext() if precision is None else torch.autocast("cuda", precision), RefuseWaits():
            assert model(inputs[0], labels=inputs[1]).loss.device.type == "cuda"


def test_early_copy():
    number = torch.tensor([0.0, 2.0])[-1]
    assert EarlyCopy(number).item() == 2
