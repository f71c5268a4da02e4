"""Modules that are recomputed in the backward pass, against the same modules without recomputation and counts on paper."""

import copy
import gc
import sys
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revhrnet_hf import RevHRNetForSemanticSegmentation
from revhrnet_hf.hub.model_table import bytes_saved_by
from revhrnet_hf.models.high_resolution import BasicBlock, Bottleneck, HighResolutionModule, RecomputedBlocks, SegmentationHead
from revhrnet_hf.models.recompute import MODULES, NONE, NORMS, RecomputedModule, logger

BUILDERS = {
    "basic": lambda: RecomputedBlocks(BasicBlock, 8, 8, 3),
    "projection": lambda: RecomputedBlocks(BasicBlock, 8, 12, 2),
    "bottleneck": lambda: RecomputedBlocks(Bottleneck, 8, 4, 2),
    "streams": lambda: HighResolutionModule([8, 12, 16], 2),
    "ending streams": lambda: HighResolutionModule([8, 12, 16], 1, num_outputs=1),
    "head": lambda: SegmentationHead(20, 5),
}
CHANNELS = {"streams": (8, 12, 16), "ending streams": (8, 12, 16), "head": (8, 12)}


def make(kind="streams", recompute=NORMS):
    torch.manual_seed(0)
    module = BUILDERS[kind]().train()
    module.recompute = recompute
    return module


def copy_with(module, recompute):
    module = copy.deepcopy(module)
    module.recompute = recompute
    return module


def maps(kind="streams", dtype=torch.float32, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    sizes = [(2, c, 12 >> i, 20 >> i) for i, c in enumerate(CHANNELS.get(kind, (8,)))]
    return [torch.randn(size, generator=generator).to(dtype, memory_format=memory_format).requires_grad_() for size in sizes]


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def total(outputs):
    return sum(y.float().sin().sum() if y.dtype == torch.bfloat16 else y.sin().sum() for y in as_tuple(outputs))


def outcome(module, inputs, autocast=False):
    """Outputs, gradients, running statistics and counters of one step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = as_tuple(module(*[x.clone() for x in inputs]))  # autocast casts a leaf once for all that take it
    total(outputs).backward()
    tensors = [*outputs, *(x.grad for x in inputs), *(p.grad for p in module.parameters()), *module.buffers()]
    for x in inputs:
        x.grad = None
    return tensors


def assert_same(ours, plain):
    for number, (a, b) in enumerate(zip(ours, plain, strict=True)):
        assert (a is None) == (b is None), number
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), number


@pytest.mark.parametrize("recompute", [NORMS, MODULES])
@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(
    ("dtype", "memory_format", "autocast"),
    [
        (torch.float32, torch.contiguous_format, False),
        (torch.float32, torch.channels_last, False),
        (torch.float64, torch.contiguous_format, False),
        (torch.float32, torch.channels_last, True),
    ],
)
def test_bit_for_bit_as_plain(recompute, kind, dtype, memory_format, autocast):
    """Outputs, gradients, and statistics that are updated once."""
    plain = make(kind, NONE).to(memory_format=memory_format)
    plain.to(dtype)
    ours = copy_with(plain, recompute)
    inputs = maps(kind, dtype, memory_format)
    assert_same(outcome(ours, inputs, autocast), outcome(plain, inputs, autocast))
    counters = [int(x) for name, x in ours.named_buffers() if name.endswith("num_batches_tracked")]
    assert counters and set(counters) == {1}


class LiveStorages(TorchDispatchMode):
    """Bytes of what operations made and what is still alive: a count that does not ask autograd."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made += [weakref.ref(x.untyped_storage()) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        return result

    def nbytes(self, apart_from):
        known = {x.untyped_storage()._cdata for x in apart_from}
        alive = {x._cdata: x.nbytes() for x in (reference() for reference in self.made) if x is not None}
        return sum(size for storage, size in alive.items() if storage not in known)


@pytest.mark.parametrize(("recompute", "kept"), [(NONE, lambda n: 4 * n), (NORMS, lambda n: 2 * n), (MODULES, lambda n: 0)])
def test_kept_maps_on_paper(recompute, kept):
    """n blocks of two convolutions keep the input, and of each block 4, 2 or no maps."""
    n, size = 3, 4 * 2 * 8 * 12 * 20
    module = make("basic", recompute)
    (x,) = maps("basic")
    statistics = 2 * 2 * n * 4 * 8 if recompute == NONE else 0
    assert bytes_saved_by(module, lambda: module(x)) == (1 + kept(n)) * size + statistics
    with LiveStorages() as live:
        y = module(x)
    copies_of_buffers = sum(b.nbytes for b in module.buffers()) if recompute != NONE else 0
    known = (x, y, *module.buffers())
    # The last ReLU keeps the output where nothing is recomputed; here it is counted with `y`.
    assert live.nbytes(known) == kept(n) * size - (size if recompute == NONE else 0) + statistics + copies_of_buffers
    gc.disable()
    try:
        del y
        known = (x, *module.buffers())
        assert live.nbytes(known) == 0  # without waiting for the garbage collector
        total(module(x)).backward()
        x.grad = None
        module.zero_grad()
        assert live.nbytes(known) == 0
    finally:
        gc.enable()


def test_finite_differences():
    torch.manual_seed(0)
    for recompute in (NORMS, MODULES):
        blocks = RecomputedBlocks(BasicBlock, 2, 2, 2).double().train()
        blocks.recompute = recompute
        x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        inputs = (x, *blocks.parameters())
        assert torch.autograd.gradcheck(lambda x, *_, blocks=blocks: blocks(x), inputs)
        # Along random directions: each entry of the second derivative would take seconds.
        assert torch.autograd.gradgradcheck(lambda x, *_, blocks=blocks: blocks(x), inputs, fast_mode=True)


@pytest.mark.parametrize("recompute", [NORMS, MODULES])
class TestAsPlain:
    """Situations in which a second run could go wrong without a word."""

    def same_step(self, recompute, change=lambda module: None, kind="streams", autocast=False):
        plain = make(kind, NONE)
        change(plain)
        ours = make(kind, recompute)
        change(ours)
        torch.manual_seed(3)
        expected = outcome(plain, maps(kind), autocast)
        torch.manual_seed(3)
        assert_same(outcome(ours, maps(kind), autocast), expected)
        return ours

    def test_frozen_parts(self, recompute):
        def freeze(module):
            module.branches[0][0].conv1.weight.requires_grad_(False)
            module.branches[1].requires_grad_(False)
            module.branches[2].eval()
            module.fuse_layers[0][1][1].bias.requires_grad_(False)

        module = self.same_step(recompute, freeze)
        assert module.branches[1][0].conv1.weight.grad is None
        assert module.branches[2][0].bn1.num_batches_tracked == 0

    def test_cumulative_average(self, recompute):
        def change(module):
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.momentum = None

        self.same_step(recompute, change)

    def test_without_statistics_and_other_norms(self, recompute):
        def change(module):
            module.branches[0][0].bn1 = nn.BatchNorm2d(8, track_running_stats=False)
            module.branches[1][0].bn2 = nn.GroupNorm(3, 12)

        self.same_step(recompute, change)

    def test_random_numbers(self, recompute):
        """Dropout, such as LoRA's, drops the same in both runs."""

        def change(module):
            module.branches[0][0].conv2 = nn.Sequential(nn.Dropout(0.5), module.branches[0][0].conv2)

        self.same_step(recompute, change)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_weights_made_of_others(self, recompute):
        """Parametrisations with a state of their own, and those by hooks."""

        def change(module):
            torch.manual_seed(2)
            nn.utils.parametrizations.spectral_norm(module.branches[0][0].conv1)
            nn.utils.parametrizations.weight_norm(module.branches[1][0].conv1)
            prune.l1_unstructured(module.branches[2][0].conv1, "weight", 0.3)

        self.same_step(recompute, change)

    def test_two_passes_under_one_autocast(self, recompute):
        """Weights that autocast has cast already; of two passes the gradients are added."""
        module = make("streams", recompute)
        alone = [outcome(copy.deepcopy(module), [x.detach() + i for x in maps()], autocast=True) for i in range(2)]
        with torch.autocast("cpu", torch.bfloat16):
            losses = [total(module(*[x.detach() + i for x in maps()])) for i in range(2)]
        sum(losses).backward()
        count = len(list(module.parameters()))
        for number, parameter in enumerate(module.parameters()):
            grads = [tensors[len(tensors) - len(list(module.buffers())) - count + number] for tensors in alone]
            torch.testing.assert_close(parameter.grad, grads[0] + grads[1])

    def test_functional_call(self, recompute):
        """Gradients go to the parameters that the call was given, though it is over when they are computed."""
        module = make("streams", recompute)
        given = {name: (1.5 * p.detach()).requires_grad_() for name, p in module.named_parameters()}
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        loss = total(functional_call(module, given | buffers, tuple(maps())))
        grads = torch.autograd.grad(loss, list(given.values()))
        assert all(b.eq(0).all() for name, b in module.named_buffers() if name.endswith("num_batches_tracked"))
        plain = make("streams", NONE)
        plain.load_state_dict({name: p.detach() for name, p in given.items()}, strict=False)
        assert_same(grads, torch.autograd.grad(total(plain(*maps())), list(plain.parameters())))

    def test_second_backward_pass(self, recompute):
        """With `retain_graph`: the same gradients, and the statistics stay."""
        module = make("streams", recompute)
        loss = total(module(*maps()))
        first = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        before = [b.clone() for b in module.buffers()]
        assert_same(torch.autograd.grad(loss, list(module.parameters())), first)
        assert_same(module.buffers(), before)

    def test_changed_weight_is_an_error(self, recompute):
        module = make("streams", recompute)
        loss = total(module(*maps()))
        with torch.no_grad():
            module.branches[0][0].conv2.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_hooks(self, recompute):
        """Each is called once in the forward pass, sees the values, and may change them."""
        heard = {}

        def observe(name):
            return lambda _module, _inputs, y: heard.setdefault(name, []).append(y.detach().clone())

        def change(module):
            module.branches[0][0].bn1.register_forward_hook(lambda _m, _i, y: 0.5 * y)
            module.branches[1][0].conv2.register_forward_pre_hook(lambda _m, inputs: (inputs[0] + 1,))

        plain = make("streams", NONE)
        change(plain)
        modules = {}
        for setting in (NONE, recompute):
            modules[setting] = copy_with(plain, setting)
            convs = [(name, m) for name, m in modules[setting].named_modules() if isinstance(m, nn.Conv2d)]
            for name, conv in convs:
                conv.register_forward_hook(observe((setting, name)))
            outputs = modules[setting](*maps())
            assert all(len(heard[setting, name]) == 1 for name, _ in convs)
            total(outputs).backward()
        for name, _ in convs:
            assert all(torch.equal(y, heard[NONE, name][0]) for y in heard[recompute, name])
        assert_same([p.grad for p in modules[recompute].parameters()], [p.grad for p in modules[NONE].parameters()])

    def test_keeps_nothing_where_nothing_is_trained(self, recompute):
        module = make("streams", recompute)
        expected = make("streams", NONE).eval()(*maps())
        with torch.no_grad():
            assert bytes_saved_by(module, lambda: module(*maps())) == 0
        evaluated = make("streams", recompute).eval()
        assert_same(evaluated(*maps()), expected)
        with torch.inference_mode():
            assert_same(evaluated(*maps()), expected)

    def test_offloaded(self, recompute):
        """`save_on_cpu` and the like get all that is kept."""
        plain = outcome(make("streams", NONE), maps())
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
            assert_same(outcome(make("streams", recompute), maps()), plain)


class OverProcesses(nn.BatchNorm2d):
    """SyncBatchNorm's arithmetic on a CPU: mean and variance over all processes, by a sum that autograd knows."""

    def forward(self, x):
        import torch.distributed.nn as dist_nn

        sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), torch.full((x.shape[1],), x.numel() / x.shape[1])])
        sums = dist_nn.functional.all_reduce(sums)
        mean, var = sums[0] / sums[2], sums[1] / sums[2] - (sums[0] / sums[2]).square()
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * sums[2] / (sums[2] - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


class TestSyncBatchNorm:
    @pytest.mark.parametrize("recompute", [NORMS, MODULES])
    def test_one_process(self, recompute):
        """Without a process group: with one, even of one process, torch's class refuses a CPU."""
        plain = nn.SyncBatchNorm.convert_sync_batchnorm(make("streams", NONE)).train()
        assert plain.state_dict().keys() == make().state_dict().keys()
        norms = [m for m in plain.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in make().modules())
        ours = copy_with(plain, recompute)
        assert_same(outcome(ours, maps()), outcome(plain, maps()))
        assert {int(m.num_batches_tracked) for m in ours.modules() if isinstance(m, nn.SyncBatchNorm)} == {1}
        assert bytes_saved_by(ours, lambda: ours(*maps())) < 0.65 * bytes_saved_by(plain, lambda: plain(*maps()))

    @pytest.mark.slow
    def test_two_processes(self, tmp_path):
        """Statistics over both processes, updated once, and gradients under DistributedDataParallel, as one process has them."""
        from .. import forked  # not above: this file is a program as well

        processes = [
            forked.Popen([sys.executable, __file__, str(rank), str(tmp_path / "store"), str(tmp_path)]) for rank in (0, 1)
        ]
        assert [process.wait(240) for process in processes] == [0, 0]
        whole = make("streams", NONE).double()
        inputs = two_halves()
        total(whole(*[torch.cat(pair) for pair in zip(*inputs, strict=True)])).backward()
        for recompute in (NORMS, MODULES):
            for rank in (0, 1):
                state, grads = torch.load(tmp_path / f"{recompute}{rank}.pt")
                for name, p in whole.named_parameters():
                    torch.testing.assert_close(2 * grads[name], p.grad, rtol=1e-6, atol=1e-8)  # DDP's is the mean
                for name, b in whole.named_buffers():
                    torch.testing.assert_close(state[name], b, rtol=1e-8, atol=1e-8)


def two_halves():
    torch.manual_seed(5)
    return [[torch.randn(2, c, 12 >> i, 20 >> i, dtype=torch.float64) for i, c in enumerate((8, 12, 16))] for _ in range(2)]


def one_of_two_processes(rank, store, folder):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_default_dtype(torch.float64)
    for recompute in (NORMS, MODULES):
        torch.set_default_dtype(torch.float32)
        module = make("streams", recompute).double()
        torch.set_default_dtype(torch.float64)
        for parent in list(module.modules()):
            for child in parent.children():
                if isinstance(child, nn.BatchNorm2d):
                    child.__class__ = OverProcesses
        parallel = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
        total(parallel(*two_halves()[rank])).backward()
        state = module.state_dict()
        torch.save((state, {name: p.grad for name, p in module.named_parameters()}), f"{folder}/{recompute}{rank}.pt")
    dist.destroy_process_group()


class TestSetting:
    def kept(self, model):
        x = torch.randn(2, 3, 64, 64)
        return bytes_saved_by(model, lambda: model(x).logits)

    def test_of_the_model(self, tiny_config):
        model = RevHRNetForSemanticSegmentation(tiny_config()).train()
        default, kept = self.kept(model), {}
        for recompute in (NONE, NORMS, MODULES):
            model.activation_checkpointing_enable({"recompute": recompute})
            kept[recompute] = self.kept(model)
            assert model.is_activation_checkpointing == (recompute == MODULES)
        assert kept[MODULES] < kept[NORMS] == default < kept[NONE]
        model.activation_checkpointing_enable()
        assert self.kept(model) == kept[MODULES]
        model.activation_checkpointing_enable(every_n_layers=2)
        assert kept[MODULES] < self.kept(model) < kept[NORMS]
        model.activation_checkpointing_disable()
        assert self.kept(model) == default

    @pytest.mark.parametrize(("former", "now"), [("nothing", NONE), ("relus", NORMS)])
    def test_former_names(self, tiny_config, monkeypatch, former, now):
        said = []
        monkeypatch.setattr(logger, "warning_once", said.append)
        model = RevHRNetForSemanticSegmentation(tiny_config())
        model.activation_checkpointing_enable({"recompute": former})
        assert {m.recompute for m in model.modules() if isinstance(m, RecomputedModule)} == {now}
        assert said == [f"recompute: {former} is called {now} now"]

    def test_errors(self, tiny_config):
        model = RevHRNetForSemanticSegmentation(tiny_config())
        with pytest.raises(ValueError, match=r"one of none, norms, modules, got 'all'"):
            model.activation_checkpointing_enable({"recompute": "all"})
        with pytest.raises(ValueError, match=r"preserve_rng_state.* recompute='norms' does not use"):
            model.activation_checkpointing_enable({"recompute": "norms", "preserve_rng_state": False})


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [NORMS, MODULES])
def test_compiled(recompute):
    """One graph; gradients and statistics of the plain module, and as much less kept."""
    plain = make("streams", NONE).double()
    inputs = maps(dtype=torch.float64)
    kept = {}
    for setting in (NONE, recompute):
        torch._dynamo.reset()
        module = copy_with(plain, setting)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        kept[setting] = bytes_saved_by(module, lambda compiled=compiled: compiled(*inputs))
        module.load_state_dict(plain.state_dict())
        total(compiled(*inputs)).backward()
    expected = copy_with(plain, NONE)
    total(expected(*inputs)).backward()
    for a, b in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    for a, b in zip(module.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert kept[recompute] < 0.7 * kept[NONE]


if __name__ == "__main__":
    one_of_two_processes(int(sys.argv[1]), *sys.argv[2:])
