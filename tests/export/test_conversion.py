"""Official checkpoints: against a plain PyTorch HRNet with the official names, written from the paper's description alone."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.export.conversion import convert_official, read_official

from .. import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_hrnet.py"


def unit(given, out, size, stride=1, relu=False):
    layers = [nn.Conv2d(given, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class Residual(nn.Module):
    """Convolutions conv1, bn1, conv2, … with a shortcut."""

    def __init__(self, given, widths, sizes):
        super().__init__()
        self.depth = len(widths)
        for i, (before, out, size) in enumerate(zip([given, *widths], widths, sizes, strict=False), start=1):
            setattr(self, f"conv{i}", nn.Conv2d(before, out, size, 1, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(out))
        self.downsample = unit(given, widths[-1], 1) if given != widths[-1] else None

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = torch.relu(x + shortcut if i == self.depth else x)
        return x


class Module(nn.Module):
    def __init__(self, widths, blocks, align_corners):
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(nn.Sequential(*[Residual(c, [c, c], [3, 3]) for _ in range(blocks)]) for c in widths)
        self.fuse_layers = nn.ModuleList()
        for i, target in enumerate(widths):
            row = nn.ModuleList()
            for j, source in enumerate(widths):
                if j > i:
                    row.append(unit(source, target, 1))
                elif j == i:
                    row.append(None)
                else:
                    steps = [unit(source, source, 3, 2, relu=True) for _ in range(i - j - 1)]
                    row.append(nn.Sequential(*steps, unit(source, target, 3, 2)))
            self.fuse_layers.append(row)

    def forward(self, xs):
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        ys = []
        for i, row in enumerate(self.fuse_layers):
            y = 0
            for j, x in enumerate(xs):
                if j < i:
                    x = row[j](x)
                elif j > i:
                    x = F.interpolate(row[j](x), size=xs[i].shape[-2:], mode="bilinear", align_corners=self.align_corners)
                y = y + x
            ys.append(torch.relu(y))
        return ys


class OfficialHRNet(nn.Module):
    def __init__(self, widths, modules, blocks, bottlenecks, bottleneck_width, classes, align_corners):
        super().__init__()
        self.align_corners = align_corners
        self.conv1, self.bn1 = unit(3, 64, 3, 2)
        self.conv2, self.bn2 = unit(64, 64, 3, 2)
        w = bottleneck_width
        self.layer1 = nn.Sequential(*[Residual(64 if i == 0 else 4 * w, [w, w, 4 * w], [1, 3, 1]) for i in range(bottlenecks)])
        before = [4 * w]
        for s, count in enumerate(modules, start=2):
            layers = [unit(c, out, 3, relu=True) if c != out else None for c, out in zip(before, widths, strict=False)]
            layers.append(nn.Sequential(unit(before[-1], widths[s - 1], 3, 2, relu=True)))
            setattr(self, f"transition{s - 1}", nn.ModuleList(layers))
            setattr(self, f"stage{s}", nn.Sequential(*[Module(widths[:s], blocks, align_corners) for _ in range(count)]))
            before = widths[:s]
        c = sum(widths)
        self.last_layer = nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, classes, 1))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        xs = [self.layer1(x)]
        for s in range(2, 5):
            layers = getattr(self, f"transition{s - 1}")
            xs = [layer(x) if layer is not None else x for layer, x in zip(layers, [*xs, xs[-1]], strict=True)]
            xs = getattr(self, f"stage{s}")(xs)
        size = xs[0].shape[-2:]
        xs = [F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners) for x in xs]
        return self.last_layer(torch.cat(xs, 1))


def norm_relu(channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def ones(*widths):
    """1×1 convolutions without bias, each with its norm and ReLU in a sequence of their own."""
    return nn.Sequential(*[m for given, out in pairwise(widths) for m in (nn.Conv2d(given, out, 1, bias=False), norm_relu(out))])


class ObjectContextBlock(nn.Module):
    """By sums over single objects, as the paper's equations 3 to 5 have it."""

    def __init__(self, mid, key):
        super().__init__()
        self.f_pixel, self.f_object = ones(mid, key, key), ones(mid, key, key)
        self.f_down, self.f_up = ones(mid, key), ones(key, mid)

    def forward(self, pixels, objects):
        query, keys, values = self.f_pixel(pixels), self.f_object(objects), self.f_down(objects)
        weights = torch.einsum("bchw,bcko->bkhw", query, keys) / keys.shape[1] ** 0.5
        weights = weights.exp() / weights.exp().sum(1, keepdim=True)
        return self.f_up(sum(weights[:, k : k + 1] * values[:, :, k : k + 1] for k in range(objects.shape[2])))


class Distribution(nn.Module):
    def __init__(self, mid, key):
        super().__init__()
        self.object_context_block = ObjectContextBlock(mid, key)
        self.conv_bn_dropout = nn.Sequential(nn.Conv2d(2 * mid, mid, 1, bias=False), norm_relu(mid), nn.Dropout2d(0.05))

    def forward(self, pixels, objects):
        return self.conv_bn_dropout(torch.cat([self.object_context_block(pixels, objects), pixels], 1))


class OfficialOcr(OfficialHRNet):
    """seg_hrnet_ocr: the same network with the head of arXiv 1909.11065."""

    def __init__(self, *args, mid, key, classes, **settings):
        super().__init__(*args, classes=classes, **settings)
        c = sum(settings["widths"])
        self.aux_head, self.last_layer = self.last_layer, nn.Identity()
        self.conv3x3_ocr = nn.Sequential(nn.Conv2d(c, mid, 3, 1, 1), nn.BatchNorm2d(mid), nn.ReLU())
        self.ocr_distri_head = Distribution(mid, key)
        self.cls_head = nn.Conv2d(mid, classes, 1)

    def forward(self, x):
        maps = super().forward(x)
        regions, pixels = self.aux_head(maps), self.conv3x3_ocr(maps)
        share = regions.exp() / regions.exp().sum((2, 3), keepdim=True)
        objects = torch.einsum("bkhw,bchw->bck", share, pixels)[..., None]
        return self.cls_head(self.ocr_distri_head(pixels, objects)), regions


def official(align_corners=False, kind=OfficialHRNet, **settings):
    shape = {
        "widths": [6, 10, 14, 18],
        "modules": [1, 2, 3],
        "blocks": 2,
        "bottlenecks": 2,
        "bottleneck_width": 8,
        "classes": 7,
    }
    torch.manual_seed(0)
    network = kind(**{**shape, **settings}, align_corners=align_corners)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return network.eval()


def test_the_reference_has_the_published_size():
    """W48 with 19 classes: 65.86 million parameters; so what we compare with is HRNetV2, not a copy of our own idea."""
    with torch.device("meta"):
        network = official(widths=[48, 96, 192, 384], modules=[1, 4, 3], blocks=4, bottlenecks=4, bottleneck_width=64, classes=19)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 65.86


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("form", ["plain", "training", "old"])
def test_logits_equal(tmp_path, align_corners, form):
    network = official(align_corners)
    weights = network.state_dict()
    if form == "training":  # the training code wraps the network with its loss
        weights = {"loss.criterion.weight": torch.ones(7), **{f"model.{key}": value for key, value in weights.items()}}
        weights = {"epoch": 3, "best_mIoU": 0.5, "state_dict": weights}
    if form == "old":  # torch before 0.4.1
        weights = {key: value for key, value in weights.items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "official.pth")
    model, _ = convert_official(read_official(tmp_path / "official.pth"), align_corners)
    for size in ((64, 96), (75, 53)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = network(x)
            assert expected.std() > 0.01  # else anything would be equal
            torch.testing.assert_close(model(x).logits, expected, rtol=0, atol=1e-4)


OCR = {"kind": OfficialOcr, "mid": 12, "key": 8}


def test_the_ocr_reference_has_the_published_size():
    with torch.device("meta"):
        shape = {"widths": [48, 96, 192, 384], "modules": [1, 4, 3], "blocks": 4, "bottlenecks": 4, "bottleneck_width": 64}
        network = official(kind=OfficialOcr, **shape, classes=19, mid=512, key=256)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 70.37


@pytest.mark.parametrize("align_corners", [False, True])
def test_ocr_logits_and_regions_equal(tmp_path, align_corners):
    network = official(align_corners, **OCR)
    torch.save({f"model.{key}": value for key, value in network.state_dict().items()}, tmp_path / "official.pth")
    model, names = convert_official(read_official(tmp_path / "official.pth"), align_corners)
    assert model.config.head == "ocr" and len(set(names.values())) == len(names)
    seen = []
    model.head.register_forward_hook(lambda _, __, found: seen.append(found))
    for size in ((64, 96), (75, 53)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            logits, regions = network(x)
            assert min(logits.std(), regions.std()) > 0.01
            torch.testing.assert_close(model(x).logits, logits, rtol=0, atol=1e-4)
            torch.testing.assert_close(seen[-1][1], regions, rtol=0, atol=1e-4)


def test_script(tmp_path):
    """The command, and what it writes loaded by Transformers."""
    network = official(align_corners=True)
    torch.save(network.state_dict(), tmp_path / "official.pth")
    command = [sys.executable, SCRIPT, tmp_path / "official.pth", tmp_path / "out", "--align_corners"]
    said = forked.run(command, check=True, capture_output=True, text=True).stdout
    assert "last_layer* → head*" in said
    assert "stage4* → backbone.stage4*" in said
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    AutoImageProcessor.from_pretrained(tmp_path / "out")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, network(x), rtol=0, atol=1e-4)


def test_align_corners_matters():
    """The two branches differ on the same weights: the tests above could tell a setting that is not obeyed."""
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (official(False)(x) - official(True)(x)).abs().max() > 1e-2


def refused(weights, said):
    with pytest.raises(CheckpointError, match=said):
        convert_official(weights)


def test_missing_and_unused_keys_are_listed():
    weights = official().state_dict()
    del weights["stage3.1.branches.0.0.bn1.running_var"]
    weights["aux_head.0.weight"] = torch.zeros(1)
    refused(weights, r"Missing: backbone\.stage3\.1\.branches\.0\.0\.bn1\.running_var\. Unused: aux_head\.0\.weight")


def test_other_shape_and_other_network():
    weights = official().state_dict()
    weights["stage2.0.branches.1.0.conv2.weight"] = torch.zeros(10, 9, 3, 3)
    refused(weights, r"stage2\.0\.branches.1.0.conv2.weight is \(10, 9, 3, 3\) in the checkpoint")
    refused({"backbone.weight": torch.zeros(3)}, "not an official HRNet")


def test_file_that_cannot_be_read(tmp_path):
    class Planted:
        def __reduce__(self):
            return (print, ("code of the file was run",))

    with pytest.raises(CheckpointError, match="no checkpoint file"):
        read_official(tmp_path / "none.pth")
    torch.save({"conv1.weight": Planted()}, tmp_path / "planted.pth")
    with pytest.raises(CheckpointError, match=r"cannot read .* as weights only"):
        read_official(tmp_path / "planted.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_official(tmp_path / "list.pth")


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.02, 0.6])
def test_file_that_is_cut(tmp_path, kind, share):
    path = tmp_path / f"cut.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file({"conv1.weight": torch.zeros(1000)}, path)
    else:
        torch.save({"conv1.weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"cannot read .*cut\..* as weights only: \w"):
        read_official(path)


def test_nothing_is_written_over_or_by_halves(tmp_path):
    torch.save({"backbone.weight": torch.zeros(3)}, tmp_path / "alien.pth")
    command = [sys.executable, SCRIPT, tmp_path / "alien.pth", tmp_path / "out"]
    result = forked.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    result = forked.run(command, capture_output=True, text=True)
    assert "is not an empty folder" in result.stderr
