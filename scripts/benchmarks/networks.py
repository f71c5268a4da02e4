"""The networks that are measured, ours and others. All have random weights and return logits for normalised images."""

from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.models.high_resolution import HighResolutionPreTrainedModel, SegmentationHead
from revhrnet_hf.models.multi_scale import concatenate
from revhrnet_hf.models.recompute import NONE, SETTINGS

LITE = "tf_efficientnet_lite0"
PEER = "timm-hrnet-w48"


class TimmHRNet(nn.Module):
    """timm's HRNet, unchanged, with HRNetV2's head."""

    def __init__(self, name: str, num_labels: int):
        super().__init__()
        self.backbone = timm.create_model(name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
        self.head = SegmentationHead(sum(self.backbone.feature_info.channels()), num_labels)
        self.head.recompute = NONE

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(concatenate(self.backbone(pixel_values)))


def rev(variant: str, **settings) -> Callable[[int], nn.Module]:
    return lambda classes: RevHRNetForSemanticSegmentation(RevHRNetConfig.from_variant(variant, num_labels=classes, **settings))


def hrnet(variant: str) -> Callable[[int], nn.Module]:
    return lambda classes: HRNetV2ForSemanticSegmentation(HRNetV2Config.from_variant(variant, num_labels=classes))


def smp(architecture: str) -> Callable[[int], nn.Module]:
    """A network of segmentation_models_pytorch (in the extra `benchmark`) on ResNet-50."""

    def make(classes: int) -> nn.Module:
        try:
            import segmentation_models_pytorch
        except ImportError as error:
            raise RecipeError("This network needs pip install -c constraints.txt -e .[benchmark]") from error
        return getattr(segmentation_models_pytorch, architecture)("resnet50", encoder_weights=None, classes=classes)

    return make


def segformer(widths: list[int], depths: list[int], decoder: int) -> Callable[[int], nn.Module]:
    config = {"hidden_sizes": widths, "depths": depths, "decoder_hidden_size": decoder}
    return lambda classes: SegformerForSemanticSegmentation(SegformerConfig(**config, num_labels=classes))


def upernet(classes: int) -> nn.Module:
    backbone = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])  # ResNet-50
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, use_auxiliary_head=False, num_labels=classes))


def lite(out_indices=(1, 2, 3, 4)) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone=LITE, out_indices=list(out_indices))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "rev-w48": rev("w48"),
    "rev-w18": rev("w18"),
    "rev-w18-lite0": rev("w18", backbone_config=lite()),
    "rev-w48-finetuned": rev("w48", freeze_backbone=False),
    "rev-w48-bf16-backbone": rev("w48", frozen_backbone_dtype="bfloat16"),
    "hrnet-w48": hrnet("w48"),
    "hrnet-w18": hrnet("w18"),
    PEER: lambda classes: TimmHRNet("hrnet_w48", classes),
    "timm-hrnet-w18": lambda classes: TimmHRNet("hrnet_w18", classes),
    "smp-deeplabv3plus": smp("DeepLabV3Plus"),
    "smp-upernet": smp("UPerNet"),
    "smp-fpn": smp("FPN"),
    "segformer-b0": segformer([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "segformer-b2": segformer([64, 128, 320, 512], [3, 4, 6, 3], 768),
    "upernet-r50": upernet,
    # For tests of the benchmarks.
    "tiny-rev": rev("w18", stream_channels=[4, 6, 8, 10], backbone_config={
        "model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [1, 2, 3, 4]}, num_modules=[1, 1, 1]),
    "tiny-hrnet": hrnet("w18-small-v1"),
}  # fmt: skip


def build(name: str, classes: int, channels_last: bool = False) -> nn.Module:
    """A network by its name. `+` and a setting of `recompute` may follow for our networks: `rev-w48+modules`."""
    network, _, recompute = name.partition("+")
    if network not in NETWORKS or recompute not in ("", *SETTINGS):
        raise RecipeError(
            f"Unknown network {name!r}; known are {', '.join(NETWORKS)}, our networks also with +{', +'.join(SETTINGS)}"
        )
    model = NETWORKS[network](classes)
    is_ours = isinstance(model, HighResolutionPreTrainedModel)
    if recompute:
        if not is_ours:
            raise RecipeError(f"{network} has no setting +{recompute}: only our networks have it")
        model.activation_checkpointing_enable({"recompute": recompute})
    return model.to(memory_format=torch.channels_last) if is_ours or channels_last else model


def logits_of(model: nn.Module, pixel_values: Tensor) -> Tensor:
    outputs = model(pixel_values)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


class Step:
    """A whole step of training: forward, cross-entropy at the labels' size, backward, SGD with momentum."""

    def __init__(self, model: nn.Module, batch: int, size: tuple[int, int], classes: int, device: str, precision: str):
        self.model = model.to(device).train()
        self.pixel_values = torch.randn(batch, 3, *size, device=device)
        self.labels = torch.randint(0, classes, (batch, *size), device=device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4)
        # The meta device has no autocast, so the saved bytes are those of float32.
        is_bf16 = precision == "bf16" and device != "meta"
        self.precision = torch.autocast(torch.device(device).type, torch.bfloat16) if is_bf16 else nullcontext()

    def loss(self) -> Tensor:
        with self.precision:
            logits = logits_of(self.model, self.pixel_values)
        logits = F.interpolate(logits.float(), size=self.labels.shape[-2:], mode="bilinear")
        return F.cross_entropy(logits, self.labels)

    def own_loss(self) -> Tensor:
        """The loss that the network computes itself, as in training with this package."""
        with self.precision:
            return self.model(pixel_values=self.pixel_values, labels=self.labels).loss

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def add_network_arguments(parser, networks: list[str], height: int, width: int, batch: int):
    parser.add_argument("--networks", nargs="+", default=networks, help=f"of {', '.join(NETWORKS)}; default: %(default)s")
    parser.add_argument("--peer", default=PEER, help="the network to which ratios refer (default: %(default)s)")
    parser.add_argument("--height", type=int, default=height, help="height of an image, in pixels (default: %(default)s)")
    parser.add_argument("--width", type=int, default=width, help="width of an image, in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=batch, help="images in a step (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=19, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; each network runs once in each (default: %(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16 by autocast (default: %(default)s)")
    parser.add_argument(
        "--channels_last", action="store_true", help="channels-last memory for other networks too; ours always use it"
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="(default: %(default)s)")


def with_peer(arguments) -> list[str]:
    return list(dict.fromkeys([arguments.peer, *arguments.networks]))


def settings_of(arguments) -> dict:
    return {name: value for name, value in vars(arguments).items() if name not in ("command", "output")}
