"""Learning rates, what decays, clipping; and parts of the network that are changed for speed or several processes."""

import copy

import pytest
import timm.layers
import torch

from revhrnet_hf.training.optimisation import build_optimizer, learning_rate, synchronise_batch_norms
from revhrnet_hf.training.recipe import Recipe


def test_poly_schedule():
    recipe = Recipe(dataset="camvid", learning_rate=0.4, poly_power=0.5)
    assert learning_rate(recipe, 0, 100) == 0.4
    assert learning_rate(recipe, 75, 100) == pytest.approx(0.2)
    assert learning_rate(recipe, 100, 100) == 0


def test_warm_up():
    """As torch's own schedules have it, one times the other."""
    recipe = Recipe(dataset="camvid", learning_rate=0.4, poly_power=0.9, warmup_steps=5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
    poly = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9)
    both = torch.optim.lr_scheduler.ChainedScheduler([warm_up, poly], optimizer)
    for step in range(20):
        assert learning_rate(recipe, step, 20) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        both.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_decays(tiny_model, name):
    """With zero gradients only decay moves a weight: convolutions' always, norms' and biases' unless they are spared."""
    for spared in (False, True):
        model = copy.deepcopy(tiny_model)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        recipe = Recipe(dataset="camvid", optimizer=name, learning_rate=0.1, weight_decay=0.1, decay_norm_and_bias=not spared)
        optimizer = build_optimizer(model, recipe)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
        assert {"head.0.weight", "head.3.weight"} <= moved
        assert not any(".backbone." in key for key in moved)
        assert ("head.1.weight" in moved) is not spared  # of the head's BatchNorm
        assert all(before[key].ndim > 1 for key in moved) is spared


def test_steps_are_those_of_the_formula(tiny_model):
    """SGD with momentum and decay, written out (Sutskever et al., 2013, as torch has it)."""
    model = copy.deepcopy(tiny_model)
    recipe = Recipe(dataset="camvid", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = build_optimizer(model, recipe)
    expected = {key: p.detach().double() for key, p in model.named_parameters() if p.requires_grad}
    velocity = dict.fromkeys(expected, 0)
    for step in range(3):
        torch.manual_seed(step)
        for key, parameter in model.named_parameters():
            if key in expected:
                parameter.grad = torch.randn_like(parameter)
                velocity[key] = 0.9 * velocity[key] + parameter.grad.double() + 0.01 * expected[key]
                expected[key] = expected[key] - 0.1 * velocity[key]
        optimizer.step()
    for key, parameter in model.named_parameters():
        if key in expected:
            torch.testing.assert_close(parameter.detach().double(), expected[key], rtol=1e-5, atol=1e-6)


def test_synchronised_norms(tiny_model):
    """All that are trained and only they, with the same weights and names; in eval mode the network is the same."""
    synchronised = copy.deepcopy(tiny_model)
    synchronise_batch_norms(synchronised)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(synchronised.eval()(x).logits, tiny_model(x).logits)
    assert synchronised.state_dict().keys() == tiny_model.state_dict().keys()
    for name, module in tiny_model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            wanted = type(module) if ".backbone." in name else torch.nn.SyncBatchNorm
            assert type(synchronised.get_submodule(name)) is wanted, name
    trained = copy.deepcopy(tiny_model)
    trained.requires_grad_(True)
    synchronise_batch_norms(trained)
    kinds = {type(m) for name, m in trained.named_modules() if ".backbone." in name and "bn1" in name.rpartition(".")[2]}
    assert kinds == {timm.layers.SyncBatchNormAct} or kinds == {torch.nn.SyncBatchNorm}
    assert torch.equal(trained.eval()(x).logits, tiny_model(x).logits)
