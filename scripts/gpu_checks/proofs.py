"""Part a: the device computes what the CPU computes, and every way of computing gives what the plain way gives.

Rounding is judged by a yardstick: both are compared with the same computation in float64, and the device may be so many times as
far from it as the CPU is, in the same precision. TF32 is off.
"""

import copy
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from benchmarks.networks import build, logits_of
from torch import Tensor, nn

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.evaluation import ConfusionMatrix, evaluate_dataset
from revhrnet_hf.models.losses import segmentation_loss
from revhrnet_hf.models.recompute import MODULES, NONE, NORMS
from revhrnet_hf.models.upsampling import upsampled_argmax
from revhrnet_hf.training.optimisation import synchronise_batch_norms
from revhrnet_hf.training.processes import set_tf32

from .killed import frozen_backbone, resumed_run
from .record import Check, Difference, NotPossible
from .stages import Setup

CLASSES = 11
TIMES = 10  # so many times the CPU's own rounding
TIMES_HALF = 1.5  # of the CPU's rounding in bf16, which is so coarse that it is much the same on all devices
LEAST = 1e-6  # relative; differences below are rounding in any case
# Where rounding puts a number to the other side of 0, the gradient of a ReLU jumps, on one device and not on another.
LEAST_OF_DEVICES = {"gradients": 1e-3, "worst gradient": 1e-2}
NETWORKS = {
    False: ["rev-w48", "hrnet-w48", "rev-w18", "rev-w24-5stream", "rev-w48-finetuned", "hrnet-w18"],
    True: ["tiny-rev", "tiny-hrnet"],
}
SIZE = {False: (192, 256), True: (64, 96)}
HALVES = {"bf16": torch.bfloat16, "fp16 with its scaler": torch.float16}
SCALE = 2.0**10  # of the loss, in fp16

Outcome = dict[str, Tensor]
"""Results of a step by name, in float64 on the CPU; gradients as `gradient NAME`, statistics as `statistic NAME`."""


def checks(setup: Setup) -> list[Check]:
    """The most telling first: those that the others rest on, and those that no CPU has ever shown."""
    names = NETWORKS[setup.quick]
    halves = [(half, in_half, half) for half in HALVES if setup.is_gpu or half == "bf16"]
    precisions = ["no", "bf16", "fp16"] if setup.is_gpu else ["no"]
    ways = [
        (name, way, said, dtype)
        for said, dtype in (("float32", None), ("bf16", torch.bfloat16))
        for name in names[: 1 if setup.quick else 2]
        for way in (NORMS, MODULES)
    ]
    kinds = [(19, ""), (66, ""), *((19, kind) for kind in LOSSES if kind), *([] if setup.quick else [(150, "")])]
    return [
        *(
            Check(f"CPU = device, {kind}", name, partial(work, setup, name, *more), needs=3)
            for number, name in enumerate(names[:4])
            for kind, work, *more in (("float32", as_on_cpu), *(halves if number < 2 else ()))
        ),
        Check("scores of drawn scenes", "tiny-rev", partial(scores, setup)),
        *(
            Check("banded loss = plain loss", f"{classes} classes {kind}".strip(), partial(banded_loss, setup, classes, kind))
            for classes, kind in kinds
        ),
        *(
            Check(f"recomputed = plain, {said}", f"{name}+{way}", partial(recomputed, setup, name, way, dtype))
            for name, way, said, dtype in ways
        ),
        Check("SyncBatchNorm in a group of one = BatchNorm", "tiny-rev", partial(sync_batch_norm, setup)),
        *(Check("frozen backbone's bits", f"precision {each}", partial(frozen_backbone, setup, each), 5) for each in precisions),
        Check("resumed after SIGKILL", "precision no", partial(resumed_run, setup, "no"), 10),
        *(
            Check("compiled = eager", name, partial(compiled, setup, name), 10 if setup.quick else 40)
            for name in ("tiniest-rev", "tiniest-hrnet")
        ),
        *(Check("resumed after SIGKILL", f"precision {each}", partial(resumed_run, setup, each), 10) for each in precisions[1:]),
        *(Check("CPU = device, float32", name, partial(as_on_cpu, setup, name), needs=5) for name in names[4:]),
    ]


# --- Networks and their outcomes ---


@lru_cache(maxsize=1)  # the checks of one network follow each other
def example(name: str, size: tuple[int, int]) -> tuple[nn.Module, Tensor, Tensor]:
    """A network on the CPU whose statistics and classifier are not those of initialisation, with images and labels.

    The labels can be seen in the images, so that gradients are no sums of noise.
    """
    torch.manual_seed(0)
    model = build(name, CLASSES)
    areas = torch.randint(0, CLASSES, (2, 4, 6))
    labels = F.interpolate(areas[:, None].double(), size, mode="nearest")[:, 0].long()
    images = torch.randn(CLASSES, 3)[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(2, 3, *size)
    labels[:, : size[0] // 8] = 255
    nn.init.normal_([m for m in model.modules() if isinstance(m, nn.Conv2d)][-1].weight, std=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model, images, labels


def outcome(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype | None = None) -> Outcome:
    """Of a step of training, in autocast to `dtype`; with fp16 through a loss scaler. The model gets gradients and statistics."""
    device = images.device.type
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, enabled=dtype == torch.float16)
    model.train().zero_grad()
    with torch.autocast(device, dtype) if dtype else nullcontext():
        outputs = model(pixel_values=images, labels=labels)
    scaler.scale(outputs.loss).backward()
    gradients = {f"gradient {name}": p.grad / scaler.get_scale() for name, p in model.named_parameters() if p.grad is not None}
    statistics = {f"statistic {name}": x for name, x in model.named_buffers() if x.is_floating_point()}
    found = {"loss": outputs.loss, "logits": outputs.logits, **gradients, **statistics}
    return {name: x.detach().cpu().double() for name, x in found.items()}


def relative(ours: Outcome, exact: Outcome) -> dict[str, float]:
    """Distances to `exact`: of loss, logits, all gradients, the worst single one (small ones in proportion), all statistics."""
    found = {name: far(ours[name], exact[name]) for name in ("loss", "logits")}
    for kind in ("gradient", "statistic"):
        names = [name for name in exact if name.startswith(kind)]
        found[f"{kind}s"] = far(*(torch.cat([x[name].flatten() for name in names]) for x in (ours, exact))) if names else 0.0
    names = [name for name in exact if name.startswith("gradient")]
    norms = {name: exact[name].norm() for name in names}
    typical = torch.stack(list(norms.values())).square().mean().sqrt()
    found["worst gradient"] = max(float((ours[name] - exact[name]).norm() / (norms[name] + typical / 10)) for name in names)
    return found


def far(ours: Tensor, exact: Tensor) -> float:
    """The norm of the difference, relative to the norm."""
    return float((ours - exact).norm() / exact.norm().clamp(min=1e-300))


def by_yardstick(
    found: dict[str, float], usual: dict[str, float], times: float = TIMES, least: dict[str, float] | None = None
) -> list[Difference]:
    """`usual` are the differences of the yardstick; `least` what is allowed in any case."""
    allowed = {name: max(times * usual[name], (least or {}).get(name, LEAST)) for name in found}
    return [Difference(name, value, allowed[name]) for name, value in found.items()]


def moved(setup: Setup, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A copy of the example on the device."""
    model, images, labels = example(name, SIZE[setup.quick])
    return copy.deepcopy(model).to(setup.device), images.to(setup.device), labels.to(setup.device)


@lru_cache(maxsize=1)
def exact_outcome(name: str, size: tuple[int, int]) -> Outcome:
    model, images, labels = example(name, size)
    return outcome(copy.deepcopy(model).double(), images.double(), labels)


@lru_cache(maxsize=1)
def cpu_outcome(name: str, size: tuple[int, int], dtype: torch.dtype | None) -> Outcome:
    model, images, labels = example(name, size)
    return outcome(copy.deepcopy(model), images, labels, dtype)


@contextmanager
def full_precision(repeatable: bool = False):
    """float32 without TF32; with `repeatable`, algorithms that give the same bits each time, where there are any."""
    set_tf32(False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(repeatable, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


# --- The checks ---


def as_on_cpu(setup: Setup, name: str) -> dict:
    size = SIZE[setup.quick]
    exact = exact_outcome(name, size)
    with full_precision():
        ours = relative(outcome(*moved(setup, name)), exact)
        maps = label_maps(setup, name)
    usual = relative(cpu_outcome(name, size, None), exact)
    return {"differences": by_yardstick(ours, usual, least=LEAST_OF_DEVICES) + maps}


@torch.no_grad()
def label_maps(setup: Setup, name: str) -> list[Difference]:
    """Shares of pixels with another class than in float64, the mIoU, and the counts of one label map on both devices."""
    model, images, labels = example(name, SIZE[setup.quick])
    exact = label_map(copy.deepcopy(model).double(), images.double())
    on_cpu, on_device = label_map(copy.deepcopy(model), images), label_map(*moved(setup, name)[:2])
    usual, found = (float((found.cpu() != exact).double().mean()) for found in (on_cpu, on_device))
    counts, counted_on_cpu = (confusion(labels, on_device.to(device)) for device in (setup.device, "cpu"))
    means = [confusion(labels, found.cpu()).scores()["mean_iou"] for found in (on_device, exact)]
    return [
        Difference("pixels of the label map", found, max(TIMES * usual, 1e-4)),
        Difference("mIoU", abs(means[0] - means[1]), 1e-3),
        Difference("counted pixels", int((counts.matrix.cpu() - counted_on_cpu.matrix).abs().sum()), 0),
    ]


def label_map(model: nn.Module, images: Tensor) -> Tensor:
    return torch.stack([upsampled_argmax(logits, images.shape[-2:]) for logits in logits_of(model.eval(), images)])


def confusion(labels: Tensor, label_map: Tensor) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CLASSES, device=label_map.device)
    matrix.update(label_map, labels.to(label_map.device))
    return matrix


def in_half(setup: Setup, name: str, half: str) -> dict:
    """Against the CPU's bf16: fp16 has more digits, so it is held to the same."""
    size, dtype = SIZE[setup.quick], HALVES[half]
    exact = exact_outcome(name, size)
    with full_precision():
        found = relative(outcome(*moved(setup, name), dtype), exact)
    return {"differences": by_yardstick(found, relative(cpu_outcome(name, size, torch.bfloat16), exact), TIMES_HALF)}


def scores(setup: Setup) -> dict:
    """The evaluation of a dataset, on both devices."""
    dataset = load_segmentation_dataset("camvid", setup.streets, "val")
    classes = label_space_of(dataset).num_classes
    model, _, _ = example("tiny-rev", SIZE[True])
    processor = RevHRNetImageProcessor()
    with full_precision():
        matrices = [
            evaluate_dataset(copy.deepcopy(model).to(device), processor, dataset, classes).matrix.cpu()
            for device in (setup.device, "cpu")
        ]
    share = float((matrices[0] - matrices[1]).abs().sum() / matrices[1].sum() / 2)
    totals = int((matrices[0].sum(1) - matrices[1].sum(1)).abs().sum())  # of the true classes
    return {"differences": [Difference("pixels counted otherwise", share, 1e-4), Difference("pixels of true classes", totals, 0)]}


def banded_loss(setup: Setup, classes: int, kind: str) -> dict:
    """Value and gradient of the loss in bands, against the plain formula in float64 and float32; and the memory of both."""
    height, width = (8, 12) if setup.quick else (128, 256)
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, classes, height, width, device=setup.device)
    labels = torch.randint(0, classes, (2, 4 * height, 4 * width), device=setup.device)
    labels[:, :height] = 255
    settings = {
        "OHEM": {"ohem_threshold": 0.3, "ohem_min_kept": labels.numel() // 4},
        "class weights": {"class_weights": torch.linspace(0.5, 2, classes).tolist()},
        "focal": {"terms": {"focal": 1.0}},
        "Dice": {"terms": {"dice": 1.0}},
    }.get(kind, {})
    plain_loss = LOSSES[kind]
    plainly = {} if "terms" in settings else settings
    with full_precision():
        exact = loss_and_gradient(plain_loss, logits.double(), labels, plainly)
        plain = loss_and_gradient(plain_loss, logits, labels, plainly)
        banded = loss_and_gradient(segmentation_loss, logits, labels, settings)
    found, usual = ({name: far(x[name], exact[name]) for name in ("loss", "gradient")} for x in (banded, plain))
    memory = {"MiB": banded["MiB"], "plain MiB": plain["MiB"]} if setup.is_gpu else {}
    said = f"{banded['MiB']:.0f} MiB, plain {plain['MiB']:.0f} MiB" if memory else ""
    return {"differences": by_yardstick(found, usual), "said": said, **memory}


def upsampled(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def plain_cross_entropy(logits: Tensor, labels: Tensor, class_weights=None) -> Tensor:
    scores = upsampled(logits, labels)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=scores.dtype, device=scores.device)
    return F.cross_entropy(scores, labels, weight=weight, ignore_index=255)


def plain_ohem(logits: Tensor, labels: Tensor, ohem_threshold: float, ohem_min_kept: int) -> Tensor:
    """As HRNet's `OhemCrossEntropy` has it."""
    losses = F.cross_entropy(upsampled(logits, labels), labels, ignore_index=255, reduction="none")[labels != 255]
    probability = (-losses.detach()).exp()
    limit = probability.sort().values[min(ohem_min_kept, len(losses) - 1)].clamp(min=ohem_threshold)
    return losses[probability < limit].mean()


def plain_focal(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(upsampled(logits, labels), labels, ignore_index=255, reduction="none")[labels != 255]
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def plain_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """All classes occur."""
    probability = upsampled(logits, labels).softmax(1).movedim(1, -1)[labels != 255]
    truth = F.one_hot(labels[labels != 255], logits.shape[1])
    return (1 - 2 * (probability * truth).sum(0) / (probability.sum(0) + truth.sum(0))).mean()


LOSSES = {
    "": plain_cross_entropy,
    "OHEM": plain_ohem,
    "class weights": plain_cross_entropy,
    "focal": plain_focal,
    "Dice": plain_dice,
}
"""The losses, as their definitions have them: all logits are upsampled."""


def loss_and_gradient(function, logits: Tensor, labels: Tensor, settings: dict) -> dict:
    """`loss` and `gradient` in float64 on the CPU, and `MiB`, the peak of memory above the start."""
    logits = logits.detach().requires_grad_()
    is_gpu = logits.device.type == "cuda"
    before = torch.cuda.memory_allocated() if is_gpu else 0
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    loss = function(logits, labels, **settings)
    (gradient,) = torch.autograd.grad(loss, logits)
    peak = torch.cuda.max_memory_allocated() if is_gpu else 0
    return {"loss": loss.detach().cpu().double(), "gradient": gradient.cpu().double(), "MiB": (peak - before) / 2**20}


def recomputed(setup: Setup, name: str, way: str, dtype: torch.dtype | None) -> dict:
    """Against the network that recomputes nothing; the yardstick is how well that one repeats itself."""
    with full_precision(repeatable=True):
        plain, again, ours = (outcome_with(setup, name, each, dtype) for each in (NONE, NONE, way))
    found, usual = relative(ours, plain), relative(again, plain)
    said = "" if any(found.values()) else "all bits are equal"
    return {"differences": by_yardstick(found, usual), "said": said}


def outcome_with(setup: Setup, name: str, recompute: str, dtype: torch.dtype | None) -> Outcome:
    model, images, labels = moved(setup, name)
    model.activation_checkpointing_enable({"recompute": recompute})
    return outcome(model, images, labels, dtype)


def sync_batch_norm(setup: Setup) -> dict:
    """torch's SyncBatchNorm skips the messages in a group of one; here they are sent."""
    if not setup.is_gpu:
        raise NotPossible("SyncBatchNorm needs a GPU")
    with full_precision():
        plain = outcome_with(setup, "tiny-rev", NONE, None)
        again = outcome_with(setup, "tiny-rev", NONE, None)
        with group_of_one(setup):
            model, images, labels = moved(setup, "tiny-rev")
            synchronise_batch_norms(model)
            changed = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
            for module in changed:
                module.forward = partial(synchronised, module)
            ours = outcome(model, images, labels)
    exact = exact_outcome("tiny-rev", SIZE[setup.quick])
    usual = relative(cpu_outcome("tiny-rev", SIZE[setup.quick], None), exact)
    repeats = relative(again, plain)
    usual = {name: max(value, repeats[name]) for name, value in usual.items()}
    differences = by_yardstick(relative(ours, plain), usual, least=LEAST_OF_DEVICES)
    return {"differences": differences, "said": f"{len(changed)} layers, {dist.Backend.NCCL}"}


@contextmanager
def group_of_one(setup: Setup):
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{setup.folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def synchronised(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What `SyncBatchNorm.forward` does in training, where there are several processes."""
    norm.num_batches_tracked.add_(1)
    function = torch.nn.modules._functions.SyncBatchNorm
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.momentum
    return function.apply(x, norm.weight, norm.bias, *statistics, dist.group.WORLD, 1)


def compiled(setup: Setup, name: str) -> dict:
    """On a CPU the graphs are run as they are: to compile them would take minutes."""
    if setup.quick:
        raise NotPossible("takes a minute; leave --quick out")
    size = SIZE[setup.quick]
    exact = exact_outcome(name, size)
    with full_precision():
        model, images, labels = moved(setup, name)
        model.compile(backend="inductor" if setup.is_gpu else "aot_eager")
        found = relative(outcome(model, images, labels), exact)
    usual = relative(cpu_outcome(name, size, None), exact)
    return {"differences": by_yardstick(found, usual, least=LEAST_OF_DEVICES)}
