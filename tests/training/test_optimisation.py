"""Learning rates, what decays, clipping; and parts of the network that are changed for speed or several processes."""

import copy
import sys

import pytest
import timm.layers
import torch
from safetensors.torch import load_file, save_file

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.training.checkpoint import optimizer_tensors, restore_optimizer_tensors
from revhrnet_hf.training.optimisation import build_optimizer, learning_rate, synchronise_batch_norms
from revhrnet_hf.training.recipe import Recipe


def test_poly_schedule():
    recipe = Recipe(dataset="camvid", learning_rate=0.4, poly_power=0.5)
    assert learning_rate(recipe, 0, 100) == 0.4
    assert learning_rate(recipe, 75, 100) == pytest.approx(0.2)
    assert learning_rate(recipe, 100, 100) == 0


def test_cosine_schedule():
    """As torch's own schedule has it."""
    recipe = Recipe(dataset="camvid", learning_rate=0.4, schedule="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(21):
        assert learning_rate(recipe, step, 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), step
        optimizer.step()
        cosine.step()


def test_constant_schedule():
    recipe = Recipe(dataset="camvid", learning_rate=0.4, schedule="constant", warmup_steps=4)
    assert [learning_rate(recipe, step, 100) for step in (0, 1, 3, 50, 99)] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4])


def test_power_of_another_schedule_is_refused():
    with pytest.raises(RecipeError, match="poly_power would have no effect: schedule is not poly"):
        Recipe(dataset="camvid", schedule="cosine", poly_power=2.0)


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


class TestEightBits:
    """torchao's AdamW, whose steps run without the minutes of the compiler."""

    @pytest.fixture
    def build(self, monkeypatch):
        pytest.importorskip("torchao", reason="the extra `adamw8bit` is not installed")
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)

        def build(name="adamw8bit", **settings):
            torch.manual_seed(0)
            # 64·64 values or more are quantised.
            layers = torch.nn.Conv2d(64, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Conv2d(64, 2, 1)
            network = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
            return network, build_optimizer(network, Recipe(dataset="camvid", optimizer=name, learning_rate=0.01, **settings))

        return build

    @staticmethod
    def learn(network, optimizer, steps):
        for step in steps:
            x = torch.randn(2, 64, 8, 8, generator=torch.Generator().manual_seed(step))
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            network(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert all(group["lr"] == 0.01 / (1 + step) for group in optimizer.param_groups)

    def test_nearly_adamws_steps_in_a_quarter_of_the_bytes(self, build):
        begun, _ = build()
        (plain, whole), (network, optimizer) = build("adamw"), build()
        sizes = []
        for trained, own in ((plain, whole), (network, optimizer)):
            self.learn(trained, own, range(5))
            sizes.append(sum(x.nbytes for name, x in optimizer_tensors(trained, own).items() if name.startswith("0.weight:exp")))
        moved = [[(p - q).flatten() for p, q in zip(n.parameters(), begun.parameters(), strict=True)] for n in (plain, network)]
        assert torch.cosine_similarity(*(torch.cat(parts) for parts in moved), 0) > 0.98
        count = 64 * 64 * 9
        assert sizes == [2 * 4 * count, 2 * (count + 4 * count // 256)]
        kinds = {name: x.dtype for name, x in optimizer_tensors(network, optimizer).items()}
        assert kinds["0.weight:exp_avg.codes"] == torch.uint8
        assert kinds["2.weight:exp_avg"] == kinds["1.bias:exp_avg_sq"] == torch.float32  # small tensors

    def test_resumed_exactly(self, build, tmp_path):
        network, optimizer = build()
        self.learn(network, optimizer, range(3))
        save_file(optimizer_tensors(network, optimizer), tmp_path / "state")
        other, resumed = build()
        other.load_state_dict(network.state_dict())
        restore_optimizer_tensors(other, resumed, load_file(tmp_path / "state"))
        for trained, own in ((network, optimizer), (other, resumed)):
            self.learn(trained, own, range(3, 6))
        assert all(map(torch.equal, network.state_dict().values(), other.state_dict().values()))
        tensors, others = optimizer_tensors(network, optimizer), optimizer_tensors(other, resumed)
        assert tensors.keys() == others.keys() and all(torch.equal(x, others[name]) for name, x in tensors.items())

    def test_what_is_missing_is_said(self, tiny_model, monkeypatch):
        recipe = Recipe(dataset="camvid", optimizer="adamw8bit")
        with pytest.raises(RecipeError, match="works on CPUs and CUDA GPUs, not on mps: use adamw"):
            build_optimizer(tiny_model, recipe, torch.device("mps"))
        monkeypatch.setitem(sys.modules, "torchao.optim", None)
        with pytest.raises(RecipeError, match=r'needs torchao: pip install "revhrnet_hf\[adamw8bit\]"'):
            build_optimizer(tiny_model, recipe)


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


SMALL = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1}


def moved_by_a_step(model, recipe):
    """How far a step of plain SGD moves each parameter whose gradient is 1 everywhere, as a share of the rate."""
    optimizer = build_optimizer(model, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:  # as the trainer does it, before each step
        group["lr"] = 0.5
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}  # the log shows the whole rate
    return {name: ((before[name] - p) / 0.5).mean().item() for name, p in model.named_parameters()}


@pytest.mark.parametrize("spared", [False, True])
def test_share_of_the_backbone(spared):
    config = RevHRNetConfig(backbone="test_resnet", trainable_backbone="last_stage", **SMALL)
    recipe = Recipe(
        dataset="camvid",
        trainable_backbone="last_stage",
        backbone_learning_rate=0.1,
        weight_decay=0.0,
        momentum=0.0,
        decay_norm_and_bias=not spared,
    )
    moved = moved_by_a_step(RevHRNetForSemanticSegmentation(config), recipe)
    for name, share in moved.items():
        expected = 1.0 if ".backbone." not in name else 0.1 if ".layer4." in name else 0.0
        assert share == pytest.approx(expected, abs=1e-4), name


def test_share_of_the_head(tiny_model):
    recipe = Recipe(dataset="camvid", head_learning_rate=10.0, weight_decay=0.0, momentum=0.0)
    for name, share in moved_by_a_step(tiny_model, recipe).items():
        expected = 10.0 if name.startswith("head.") else 0.0 if ".backbone." in name else 1.0
        assert share == pytest.approx(expected, rel=1e-4), name


def test_layer_decay():
    """BEiT's: 0.5 in the last of six layers, half of that in the one before it, and so on down to the embedding."""
    config = RevHRNetConfig(backbone="test_vit", trainable_backbone="all", **SMALL)
    recipe = Recipe(dataset="camvid", trainable_backbone="all", layer_decay=0.5, weight_decay=0.0, momentum=0.0)
    moved = moved_by_a_step(RevHRNetForSemanticSegmentation(config), recipe)
    for name, share in moved.items():
        _, in_backbone, inner = name.partition(".backbone._backbone.model.")
        expected = 1.0
        if in_backbone:
            layer = int(inner.split(".")[1]) if inner.startswith("blocks.") else -1
            expected = 0.5 ** (6 - layer)
        assert share == pytest.approx(expected, rel=1e-2), name


def test_layer_decay_is_for_vision_transformers(tiny_model):
    tiny_model.requires_grad_(True)
    recipe = Recipe(dataset="camvid", trainable_backbone="all", layer_decay=0.5)
    with pytest.raises(RecipeError, match="layer_decay is for plain vision transformers"):
        build_optimizer(tiny_model, recipe)


def test_groups_without_shares_are_those_of_before(tiny_model):
    """So that the optimizer of a run begun with an earlier version is loaded."""
    for spared, groups in ((False, 1), (True, 2)):
        optimizer = build_optimizer(tiny_model, Recipe(dataset="camvid", decay_norm_and_bias=not spared))
        assert len(optimizer.param_groups) == groups
        assert not any("lr_share" in group for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone_learning_rate": 0.1}, "would have no effect: the backbone is frozen"),
        ({"layer_decay": 0.9}, "would have no effect: the backbone is frozen"),
        ({"trainable_backbone": "all", "backbone_learning_rate": 0}, "backbone_learning_rate must be positive"),
        ({"trainable_backbone": "all", "layer_decay": 1.5}, "layer_decay must be more than 0 and at most 1"),
        ({"trainable_backbone": "some"}, "trainable_backbone must be one of none, last_stage, norms, lora, all"),
    ],
)
def test_settings_that_do_not_fit(settings, said):
    with pytest.raises(RecipeError, match=said):
        Recipe(dataset="camvid", **settings)


def test_older_recipes_freeze_or_train_all():
    assert Recipe(dataset="camvid").trainable_backbone == "none"
    assert Recipe.from_dict({"dataset": "camvid", "freeze_backbone": False}).trainable_backbone == "all"
    assert Recipe(dataset="camvid", trainable_backbone="norms").trainable_backbone == "norms"


def test_a_saved_recipe_says_one_thing(tmp_path):
    for settings in ({}, {"freeze_backbone": False}, {"trainable_backbone": "last_stage"}, {"trainable_backbone": "none"}):
        recipe = Recipe(dataset="camvid", **settings)
        assert recipe.freeze_backbone == (recipe.trainable_backbone == "none")
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
        assert Recipe.from_yaml(tmp_path / "recipe.yaml") == recipe
    with pytest.raises(RecipeError, match="contradict each other: leave freeze_backbone out"):
        Recipe(dataset="camvid", freeze_backbone=False, trainable_backbone="none")


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None), ("mps", None)])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_are_fused_on_gpus(tiny_model, device, name, fused):
    optimizer = build_optimizer(tiny_model, Recipe(dataset="camvid", optimizer=name), torch.device(device))
    assert optimizer.defaults["fused"] is fused


def test_momentum_of_a_skipped_first_step_is_not_taken_from_empty_memory(tiny_model):
    """Fused SGD allocates it in a step that fp16's scaler skips, and does not fill it."""
    for name, fused in (("sgd", None), ("adamw", True)):
        recipe = Recipe(dataset="camvid", optimizer=name, precision="fp16")
        assert build_optimizer(tiny_model, recipe, torch.device("cuda")).defaults["fused"] is fused


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_the_plain_ones(tiny_model, name):
    """To rounding, from the same gradients, for weights in channels-last memory."""
    tiny_model.to(memory_format=torch.channels_last)
    models, recipe = [tiny_model, copy.deepcopy(tiny_model)], Recipe(dataset="camvid", optimizer=name)
    optimizers = [
        build_optimizer(model, recipe, torch.device(device)) for model, device in zip(models, ("cpu", "cuda"), strict=True)
    ]
    for _ in range(4):
        one_step(models[0], optimizers[0], lambda: copy_gradients(*models))
        optimizers[1].step()
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_is_restored_fused_or_not(tiny_model, name):
    """A run may move from a CPU to a GPU and back. Fused AdamW has its counters of steps beside the parameters."""
    recipe = Recipe(dataset="camvid", optimizer=name)
    plain, fused = (build_optimizer(tiny_model, recipe, torch.device(device)) for device in ("cpu", "cuda"))
    for before, after in ((plain, fused), (fused, plain)):
        one_step(tiny_model, before)
        state = {key: x.clone() for key, x in optimizer_tensors(tiny_model, before).items()}
        restore_optimizer_tensors(tiny_model, after, state)
        found = optimizer_tensors(tiny_model, after)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    one_step(tiny_model, plain)
    assert name == "sgd" or all(x == 3 for key, x in optimizer_tensors(tiny_model, plain).items() if key.endswith(":step"))


def copy_gradients(source, target):
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone(memory_format=torch.preserve_format)


def one_step(model, optimizer, look=lambda: None):
    torch.manual_seed(0)
    model.train()(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    look()
    optimizer.step()
    optimizer.zero_grad()
