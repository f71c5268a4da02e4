"""The table of costs against closed formulas, real tensors, and figures computed independently for the same networks."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TimmBackboneConfig

import revhrnet_hf
from revhrnet_hf.commands import table
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.hub import model_table
from revhrnet_hf.hub.model_table import (
    QuickShapes,
    all_models,
    backbone_share,
    count_multiply_adds,
    count_saved_bytes,
    format_table,
    measure,
    models_on_backbones,
)

# 19 classes: parameters and trainable ones (millions, to the digit), 10⁹ multiply-adds at 1024×2048 (None: not known), GiB kept
# for the backward pass of 512×1024 pixels (with the loss, which the table leaves out: some 0.05 GiB).
COMPUTED = {
    "HRNetV2 w48": ("65.86", "65.86", 747.5, 2.34),
    "HRNetV2 w32": ("29.55", "29.55", 361.2, None),
    "HRNetV2 w18": ("9.64", "9.64", 147.4, 1.21),
    "HRNetV2 w24-5stream": ("23.2", "23.2", 847, 4.47),
    "RevHRNet w48, trained HRNetV2 w48": ("127.9", "127.9", 1304, 3.71),
    "RevHRNet w48, frozen ResNet-50": ("86.96", "63.45", 802, 1.73),
    "RevHRNet w48, frozen ResNet-50, bottlenecks": ("87.14", "63.64", 825, 2.09),
    "RevHRNet w32, frozen ResNet-50": ("51.96", "28.45", 453, 1.19),
    "RevHRNet w18, frozen ResNet-50": ("32.69", "9.19", 261, 0.71),
    "RevHRNet w24-5stream, frozen ResNet-50": ("44.09", "20.58", 520, 1.86),
}


# Those figures are with a head that convolves the concatenated maps at the finest one's size: stride and widths of what it takes.
HEADS = {
    "HRNetV2 w48": (4, (48, 96, 192, 384)),
    "HRNetV2 w32": (4, (32, 64, 128, 256)),
    "HRNetV2 w18": (4, (18, 36, 72, 144)),
    "HRNetV2 w24-5stream": (2, (24, 48, 96, 192, 384)),
}


def spared_by_the_head(name):
    """10⁹ multiply-adds at 1024×2048, and GiB of 512×1024, that convolving each map at its own size does without."""
    stride, widths = HEADS.get(name, (1, ()))
    pixels, channels = 1024 * 2048 / stride**2, sum(widths)
    at_own_size = sum(width / 4**i for i, width in enumerate(widths))
    return channels * (channels - at_own_size) * pixels / 1e9, channels * pixels / 4 * 4 / 2**30


class Plain(nn.Module):
    """A convolution, BatchNorm and ReLU whose costs are known on paper."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.device = torch.device("meta")

    def forward(self, x):
        return self.layers(x)


def test_on_paper():
    with torch.device("meta"):
        model = Plain()
    assert count_multiply_adds(model, (10, 12)) == 3 * 8 * 9 * 10 * 12
    # Image, the convolution's result, mean and deviation of 8 channels, the ReLU's result.
    assert count_saved_bytes(model, (10, 12)) == 4 * (3 * 120 + 8 * 120 + 2 * 8 + 8 * 120)
    assert count_saved_bytes(model, (10, 12), images=3) == 4 * (3 * (3 * 120 + 8 * 120 + 8 * 120) + 2 * 8)


def test_same_bytes_as_with_values():
    """What the meta device says, a network with values says too."""
    config = revhrnet_hf.RevHRNetConfig(
        backbone_config=TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]),
        stream_channels=[8, 12, 16, 20],
        num_modules=[1, 1, 1],
        num_blocks=1,
    )
    real = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train()
    with torch.device("meta"):
        meta = revhrnet_hf.RevHRNetForSemanticSegmentation(config).train()
    for recompute in ("none", "norms", "modules"):
        for model in (real, meta):
            model.activation_checkpointing_enable({"recompute": recompute})
        with QuickShapes():
            counted = count_saved_bytes(meta, (64, 96))
        assert count_saved_bytes(real, (64, 96)) == count_saved_bytes(meta, (64, 96)) == counted


@pytest.mark.parametrize("is_training", [True, False])
def test_quick_shapes_are_torchs_own(is_training):
    x = torch.empty(2, 6, 5, 7, device="meta").to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(6, device="meta").train(is_training)
    operations = (norm, lambda x: torch.nn.functional.interpolate(x, (9, 11), mode="bilinear"))
    for operation in operations:
        plain = saved_and_given(operation, x)
        with QuickShapes():
            assert saved_and_given(operation, x) == plain


def saved_and_given(operation, x):
    """The forms of what an operation keeps for the backward pass, and of its result."""
    forms = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: forms.append(form(kept)) or kept, lambda kept: kept):
        forms.append(form(operation(x.requires_grad_())))
    return forms


def form(tensor):
    return tensor.shape, tensor.dtype, tensor.device


# Whose multiply-adds and bytes are counted: each family, number of streams, block and backbone; the others differ in width only.
COUNTED = [
    "HRNetV2 w18",
    "HRNetV2 w24-5stream",
    "RevHRNet w18, frozen ResNet-50",
    "RevHRNet w48, frozen ResNet-50, bottlenecks",
    "RevHRNet w48, trained HRNetV2 w48",
]


@pytest.mark.parametrize("name", COMPUTED)
def test_parameters_equal_independent_figures(name):
    with torch.device("meta"):
        model = all_models()[name]()
    for millions, only_trainable in zip(COMPUTED[name][:2], (False, True), strict=True):
        count = model.num_parameters(only_trainable=only_trainable)
        assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions


@pytest.mark.slow
def test_equals_independent_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model_table, "all_models", lambda: {name: all_models()[name] for name in COUNTED})
    table.main(["--output", str(tmp_path / "table.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "table.json").read_text())["models"]}
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    for name, row in rows.items():
        parameters, trainable, multiply_adds, gibibytes = COMPUTED[name]
        spared, unkept = spared_by_the_head(name)
        for millions, count in ((parameters, row["parameters"]), (trainable, row["trainable"])):
            assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions, name
        assert row["multiply_adds"] / 1e9 == pytest.approx(multiply_adds - spared, rel=0.005), name
        if gibibytes is not None:
            assert row["saved_bytes_plain"] / 2**30 == pytest.approx(gibibytes - unkept, rel=0.1), name
        kept = [row[f"saved_bytes{how}"] for how in ("_plain", "", "_checkpointed")]
        assert kept == sorted(kept, reverse=True)
        assert kept[-1] < kept[0] / 1.5, name


def test_models_on_backbones():
    """Eight backbones with three widths; the cheaper of two ways to train has never more bytes."""
    models = models_on_backbones()
    assert sum(name.endswith("trained: none") for name in models) == 24
    name = "RevHRNet w18, vit_small_patch16_dinov3.lvd1689m, trained: none"
    row = measure(name, models[name])
    assert (row.parameters - row.trainable) / 1e6 == pytest.approx(21.6, rel=0.01)  # as DINOv3's paper has ViT-S/16
    assert row.saved_bytes_checkpointed < row.saved_bytes < row.saved_bytes_plain
    # The transformer's matrices on 64 · 128 tokens, without attention: 12 · width² a layer.
    assert row.multiply_adds > 12 * 12 * 384**2 * 64 * 128
    printed = format_table([row])
    assert name in printed and "share" not in printed
    *_, multiply_adds, norms, none, modules = printed.splitlines()[-1].split()
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert (
        f"| `vit_small_patch16_dinov3.lvd1689m` | w18 | 30.48 | 8.90 | {multiply_adds} | {none} | {norms} | {modules} |" in page
    )


def test_a_share_on_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(model_table, "measure", None)  # nothing is measured before
    with pytest.raises(RecipeError, match=r"^--share cuda: PyTorch sees no GPU here; use --share cpu$"):
        table.main(["--share", "cuda"])


def test_share_of_a_step(tiny_config):
    share = backbone_share(lambda: revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(num_labels=19)), "cpu", (64, 64))
    assert 0 < share < 1
