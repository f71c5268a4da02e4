"""The costs of every variant: parameters, multiply-adds, and the bytes that one training image keeps for the backward pass.

They are measured on the meta device, where tensors have shapes but no values: it takes no weights and little time, and gives the
same figures on every machine. Only a backbone's share of a step's time (`backbone_share`) is measured with values.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..adapters import add_adapters, merged
from ..models import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetConfig, RevHRNetForSemanticSegmentation
from ..models import configuration_hrnetv2 as hrnetv2
from ..models import configuration_revhrnet as revhrnet
from ..text import table

NUM_CLASSES = 19  # Cityscapes
WHOLE_IMAGE = (1024, 2048)  # height, width: Cityscapes at native size
TRAINING_CROP = (512, 1024)
SHARE_STEPS = 3  # timed, after one that is not

# Backbones worth freezing, small to large, of three kinds: convolutions, windows of attention, plain vision transformers.
BACKBONES = (
    "tf_efficientnet_lite0",
    "resnet50.fb_ssl_yfcc100m_ft_in1k",
    "convnext_tiny.dinov3_lvd1689m",
    "convnext_small.dinov3_lvd1689m",
    "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "vit_base_patch16_dinov3.lvd1689m",
)
WIDTHS = ("w18", "w32", "w48")
LORA_RANK, LORA_ALPHA = 8, 16.0  # the defaults of recipes
PARTLY_TRAINED = ("convnext_tiny.dinov3_lvd1689m", "vit_small_patch16_dinov3.lvd1689m")


@dataclass
class ModelCosts:
    """Costs of one network with 19 classes.

    Args:
        parameters: all of them.
        trainable: those that are not frozen.
        multiply_adds: of convolutions, for the logits of one image of 1024×2048.
        saved_bytes: kept for the backward pass by the logits of one image of 512×1024, in float32, where norms and activations
            are recomputed, which is the default; each storage once, parameters and running statistics excluded.
        saved_bytes_plain: the same where nothing is recomputed (`recompute="none"`).
        saved_bytes_checkpointed: the same where whole modules are (`activation_checkpointing_enable()`).
        backbone_share: of the time of a training step on one such image, what the backbone's forward pass takes, 0 to 1; None
            where it was not measured.
    """

    name: str
    parameters: int
    trainable: int
    multiply_adds: int
    saved_bytes: int
    saved_bytes_plain: int
    saved_bytes_checkpointed: int
    backbone_share: float | None = None


def all_models() -> dict[str, Callable[[], nn.Module]]:
    """Functions that make each variant, by the name that the table prints."""

    def hrnet(variant):
        return lambda: HRNetV2ForSemanticSegmentation(HRNetV2Config.from_variant(variant, num_labels=NUM_CLASSES))

    def reverse(variant, **settings):
        config = RevHRNetConfig.from_variant(variant, num_labels=NUM_CLASSES, **settings)
        return lambda: RevHRNetForSemanticSegmentation(config)

    full = {"backbone_config": HRNetV2Config.from_variant("w48"), "freeze_backbone": False}
    return {
        **{f"HRNetV2 {variant}": hrnet(variant) for variant in hrnetv2.VARIANTS},
        **{f"RevHRNet {variant}, frozen ResNet-50": reverse(variant) for variant in revhrnet.VARIANTS},
        "RevHRNet w48, frozen ResNet-50, bottlenecks": reverse("w48", final_block="bottleneck"),
        "RevHRNet w48, trained HRNetV2 w48": reverse("w48", **full),
    }


def models_on_backbones() -> dict[str, Callable[[], nn.Module]]:
    """`BACKBONES` with each of `WIDTHS`, frozen; then what it costs to train a part of some, under the table's names."""

    def reverse(width, backbone, choice):
        part = "none" if choice == "lora" else choice
        config = RevHRNetConfig.from_variant(width, backbone=backbone, trainable_backbone=part, num_labels=NUM_CLASSES)
        model = RevHRNetForSemanticSegmentation(config)
        if choice == "lora":
            add_adapters(model, LORA_RANK, LORA_ALPHA)
        return model

    frozen = [(width, backbone, "none") for backbone in BACKBONES for width in WIDTHS]
    partly = [("w32", backbone, choice) for backbone in PARTLY_TRAINED for choice in ("last_stage", "norms", "lora", "all")]
    return {
        f"RevHRNet {width}, {backbone}, trained: {choice}": partial(reverse, width, backbone, choice)
        for width, backbone, choice in (*frozen, *partly)
    }


def backbone_share(make_model: Callable[[], nn.Module], device: str, size: tuple[int, int] = TRAINING_CROP) -> float:
    """The share of a training step (forward, backward; one image of `size`) that the backbone's forward pass takes, 0 to 1."""
    model = make_model().to(device).train()
    pixel_values = torch.randn(1, 3, *size, device=device)
    labels = torch.randint(0, NUM_CLASSES, (1, *size), device=device)
    spent = {"backbone": 0.0, "step": 0.0}
    for step in range(1 + SHARE_STEPS):
        if step == 1:
            spent = dict.fromkeys(spent, 0.0)
        spent["backbone"] += _seconds(lambda: model.base_model.backbone_maps(pixel_values), device)
        spent["step"] += _seconds(lambda: model(pixel_values, labels=labels).loss.backward(), device)
        model.zero_grad()
    return spent["backbone"] / spent["step"]


def _seconds(action: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def measure(name: str, make_model: Callable[[], nn.Module]) -> ModelCosts:
    """The costs of one network. `make_model` is called on the meta device."""
    with torch.device("meta"):
        model = make_model()
    with torch.device("meta"), QuickShapes():
        with merged(model):  # adapters, as in checkpoints
            multiply_adds = count_multiply_adds(model.eval(), WHOLE_IMAGE)
        saved = [count_saved_bytes(model.train(), TRAINING_CROP)]
        for recompute in ("none", "modules"):
            model.activation_checkpointing_enable({"recompute": recompute})
            saved.append(count_saved_bytes(model, TRAINING_CROP))
    parameters, trainable = (model.num_parameters(only_trainable=choice) for choice in (False, True))
    return ModelCosts(name, parameters, trainable, multiply_adds, *saved)


class QuickShapes(TorchDispatchMode):
    """On the meta device: results of norms and upsampling with their shapes alone.

    torch derives these shapes by Python code that imitates the whole computation, in three quarters of a forward pass's time.
    """

    def __torch_dispatch__(self, operation, _types, arguments=(), settings=None):
        make_results = RESULTS.get(operation)
        if make_results is None or not arguments[0].is_meta:
            return operation(*arguments, **(settings or {}))
        return make_results(*arguments)


def _norm(count: int, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(x), x.new_empty(count), x.new_empty(count)  # the batch's mean and deviation


RESULTS: dict[torch._ops.OpOverload, Callable[..., tuple[torch.Tensor, ...] | torch.Tensor]] = {
    torch.ops.aten.native_batch_norm.default: lambda x, *_: _norm(x.shape[1], x),
    torch.ops.aten._native_batch_norm_legit_no_training.default: lambda x, *_: _norm(0, x),
    torch.ops.aten.upsample_bilinear2d.default: lambda x, size, *_: x.new_empty(*x.shape[:2], *size),
}
"""Operation → its results on the meta device."""


def count_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiplications with their additions in the forward pass of one image of `size` (height, width) pixels."""
    return multiply_adds_of(model, image(model, size))


def multiply_adds_of(network: Callable, pixel_values: torch.Tensor) -> int:
    """Multiplications with their additions in `network(pixel_values)`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(pixel_values)
    return counter.get_total_flops() // 2


def count_saved_bytes(model: nn.Module, size: tuple[int, int], images: int = 1) -> int:
    """Bytes that autograd keeps between forward and backward for `images` images of `size` (height, width) pixels."""
    return bytes_saved_by(model, lambda: model(image(model, size, images)))


def bytes_saved_by(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps after `forward()`, each storage once, without the parameters and buffers of `model`."""
    weights = {storage_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def pack(tensor):
        storage = storage_of(tensor)
        if storage not in weights:
            saved[storage] = tensor  # kept alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 on the meta device


def image(model: nn.Module, size: tuple[int, int], images: int = 1) -> torch.Tensor:
    return torch.empty(images, 3, *size, device=model.device)


def format_table(rows: list[ModelCosts]) -> str:
    """The rows as text: parameters in millions, multiply-adds in 10⁹, saved bytes in GiB."""
    titles = [">parameters M", ">trained M", ">multiply-adds G", ">saved GiB", ">plain GiB", ">checkpointed GiB"]
    has_shares = any(row.backbone_share is not None for row in rows)
    cells = [
        [
            row.name,
            f"{row.parameters / 1e6:.2f}",
            f"{row.trainable / 1e6:.2f}",
            f"{row.multiply_adds / 1e9:.1f}",
            f"{row.saved_bytes / 2**30:.2f}",
            f"{row.saved_bytes_plain / 2**30:.2f}",
            f"{row.saved_bytes_checkpointed / 2**30:.2f}",
        ]
        for row in rows
    ]
    if has_shares:
        titles.append(">backbone's share")
        for row, cell in zip(rows, cells, strict=True):
            cell.append("–" if row.backbone_share is None else f"{row.backbone_share:.0%}")
    return table([[f"{NUM_CLASSES} classes", *titles], *cells])


def as_json(rows: list[ModelCosts]) -> dict:
    """The rows and the sizes that they were measured at, for `json.dump`."""
    return {
        "num_classes": NUM_CLASSES,
        "multiply_adds_size": list(WHOLE_IMAGE),
        "saved_bytes_size": list(TRAINING_CROP),
        "models": [asdict(row) for row in rows],
    }
