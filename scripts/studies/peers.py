"""Other decoders on the same backbone as the reverse HRNet, trained and scored by the same code.

A decoder gets the maps of the frozen backbone and returns one map, which a convolution classifies. `fpn`, `unet`, `upernet`,
`deeplabv3plus`, `pan` and `segformer` are the decoders of segmentation_models_pytorch with its settings. `linear` normalizes the
maps and classifies them, and `concat` is RevHRNet's head on the maps, without its streams. `late` has the residual blocks of the
reverse HRNet in streams that meet only in the head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from revhrnet_hf import RevHRNetConfig, RevHRNetImageProcessor
from revhrnet_hf.models.backbone_maps import create_backbone, layout_of, pad_to_multiple
from revhrnet_hf.models.high_resolution import BasicBlock, RecomputedBlocks, SegmentationHead, conv_bn
from revhrnet_hf.models.losses import configured_loss
from revhrnet_hf.models.modeling_revhrnet import RevHRNetModel, RevHRNetModelOutput, RevHRNetPreTrainedModel
from revhrnet_hf.models.multi_scale import ConvOverScales
from revhrnet_hf.training.network import ARCHITECTURES
from revhrnet_hf.training.recipe import LORA, Recipe

COARSEST = 32  # images are padded to a multiple of it, because some decoders double the sizes of their maps
# Blocks of the streams of `late`. With these it has the parameters (1.005 times) and multiply-adds (0.997 times) of the reverse
# HRNet-W18 with one module in each of R1, R2 and R3, whose streams have 16, 12, 8 and 4 blocks.
LATE_BLOCKS = [16, 12, 9, 4]
UNUSED = 1  # channels of a map that a decoder counts, but does not read


class Late(nn.Module):
    """Streams of residual blocks that do not exchange anything; returns their maps, finest first."""

    def __init__(self, given: list[int], channels: list[int], num_blocks: list[int], momentum: float):
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(*conv_bn(source, width, 1, momentum=momentum), nn.ReLU(inplace=True))
            for source, width in zip(given, channels, strict=True)
        )
        self.streams = nn.ModuleList(
            RecomputedBlocks(BasicBlock, width, width, count, momentum) for width, count in zip(channels, num_blocks, strict=True)
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(stream(lateral(x)) for stream, lateral, x in zip(self.streams, self.laterals, maps, strict=True))


class LinearHead(nn.Module):
    """BatchNorm and a 1×1 classifier of the concatenated maps, as DINOv2's evaluation has it; nothing in it is not linear."""

    def __init__(self, channels: list[int], num_labels: int, momentum: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count, momentum=momentum) for count in channels)
        self.classifier = ConvOverScales(sum(channels), num_labels, 1)

    def forward(self, *maps: Tensor) -> Tensor:
        return self.classifier([norm(x) for norm, x in zip(self.norms, maps, strict=True)])


@dataclass(frozen=True)
class Peer:
    """A decoder of segmentation_models_pytorch.

    Attributes:
        make: from the channels at strides 1, 2, 4, 8, 16, 32.
        kernel: of the convolution that classifies.
        out_channels: of the decoder's map.
        strides: of the backbone's maps that the decoder reads.
        output_stride: of the backbone; 16 dilates its last stage, as the decoder's authors do.
    """

    make: Callable[[list[int]], nn.Module]
    kernel: int
    out_channels: int
    strides: tuple[int, ...] = (4, 8, 16, 32)
    output_stride: int | None = None


PEERS = {
    "fpn": Peer(FPNDecoder, kernel=1, out_channels=128),
    "unet": Peer(lambda channels: UnetDecoder(channels, (256, 128, 64, 32, 16)), 3, out_channels=16, strides=(2, 4, 8, 16, 32)),
    "upernet": Peer(UPerNetDecoder, kernel=1, out_channels=256),
    "deeplabv3plus": Peer(
        lambda channels: DeepLabV3PlusDecoder(
            channels, 5, 256, (12, 24, 36), output_stride=16, aspp_separable=True, aspp_dropout=0.5
        ),
        kernel=1,
        out_channels=256,
        output_stride=16,
    ),
    "pan": Peer(lambda channels: PANDecoder(channels, 5, 32), kernel=3, out_channels=32, output_stride=16),
    "segformer": Peer(SegformerDecoder, kernel=1, out_channels=256, strides=(2, 4, 8, 16, 32)),
}
DECODERS = (*PEERS, "linear", "concat", "late")


@strict
class PeerConfig(RevHRNetConfig):
    """A `RevHRNetConfig` whose network has another decoder.

    Args:
        decoder: one of `DECODERS`.
        late_blocks: residual blocks of each stream of `late`, finest first.
    """

    model_type = "study_peer"

    decoder: str = "linear"
    late_blocks: list[int] | None = None

    def validate_decoder(self):
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, got {self.decoder!r}")
        if (self.decoder == "late") != (self.late_blocks is not None):
            raise ValueError("late_blocks are for the decoder 'late', which needs them")


class PeerModel(RevHRNetModel):
    """The backbone and a decoder. What concerns the backbone (freezing, precision, no graph) is inherited."""

    config: PeerConfig
    config_class = PeerConfig

    def __init__(self, config: PeerConfig):
        RevHRNetPreTrainedModel.__init__(self, config)
        self.backbone, self.layout = create_backbone(config.backbone_config), layout_of(config.backbone_config)
        self.coarsest_stride = COARSEST
        given, momentum = list(self.backbone.channels), config.batch_norm_momentum
        if config.decoder in PEERS:
            peer = PEERS[config.decoder]
            above = [3] if 2 in peer.strides else [3, UNUSED]
            self.decoder = peer.make([*above, *given])
            self.num_above = len(above)
            self.out_channels = peer.out_channels
            for module in self.decoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = momentum
        elif config.decoder == "late":
            self.decoder = Late(given, list(config.stream_channels), config.late_blocks, momentum)
            self.out_channels = sum(config.stream_channels)
        else:
            self.decoder = nn.Identity()
            self.out_channels = sum(given)
        self.post_init()
        self.freeze()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs) -> RevHRNetModelOutput:
        maps = self.backbone_maps(pixel_values)
        if self.config.decoder in PEERS:
            above = [pixel_values, pixel_values[:, :UNUSED, ::2, ::2]][: self.num_above]
            maps = (self.decoder([*above, *maps]),)
        else:
            maps = self.decoder(maps)
        return RevHRNetModelOutput(last_hidden_state=maps[0], feature_maps=maps)


class PeerForSemanticSegmentation(RevHRNetPreTrainedModel):
    """A decoder with a pixel classifier, called like `RevHRNetForSemanticSegmentation`."""

    config: PeerConfig
    config_class = PeerConfig

    def __init__(self, config: PeerConfig):
        super().__init__(config)
        self.revhrnet = PeerModel(config)
        channels = self.revhrnet.out_channels
        if config.decoder in PEERS:
            kernel = PEERS[config.decoder].kernel
            self.head = nn.Conv2d(channels, config.num_labels, kernel, padding=kernel // 2)
        elif config.decoder == "linear":
            self.head = LinearHead(self.revhrnet.backbone.channels, config.num_labels, config.batch_norm_momentum)
        else:
            self.head = SegmentationHead(channels, config.num_labels, config.batch_norm_momentum)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        pixel_share: Tensor | float | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        """As of `RevHRNetForSemanticSegmentation`; logits have the stride of the decoder's map."""
        padded = pad_to_multiple(pixel_values, COARSEST)
        maps = self.revhrnet(padded, return_dict=True).feature_maps
        logits, *maps = (without_padding(x, padded, pixel_values) for x in (self.head(*maps), *maps))
        return SemanticSegmenterOutput(
            loss=configured_loss(logits, labels, self.config, pixel_share),
            logits=logits,
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


def without_padding(x: Tensor, padded: Tensor, image: Tensor) -> Tensor:
    """The part of a map that belongs to the image before it was padded at the right and bottom."""
    stride = padded.shape[-1] // x.shape[-1]
    height, width = (-(-size // stride) for size in image.shape[-2:])
    return x[..., :height, :width]


def peer_config(settings: dict) -> PeerConfig:
    """The configuration of a decoder that reads the maps which it needs of the backbone.

    Args:
        settings: of a `PeerConfig`, with the backbone's timm name as `backbone`.
    """
    peer = PEERS.get(settings["decoder"])
    if peer is not None:  # the streams say only which maps are taken
        count = len(peer.strides)
        settings = {**settings, "stream_channels": [8] * count, "num_modules": [1] * (count - 1)}
    else:
        settings = {"stream_channels": [18, 36, 72, 144], "num_modules": [1, 1, 1], **settings}
    config = PeerConfig(**settings)
    if peer is not None and peer.output_stride is not None:
        config.backbone_config.output_stride = peer.output_stride
    return config


def _config_of_recipe(decoder: str) -> Callable[[Recipe, dict[str, Any]], PeerConfig]:
    def make(recipe: Recipe, settings: dict[str, Any]) -> PeerConfig:
        for name in ("auxiliary_loss_weight", "pyramid"):
            if getattr(recipe, name) != getattr(Recipe(recipe.dataset), name):
                raise ValueError(f"{name} has no effect on the decoder {decoder!r}: leave it out of the settings of all networks")
        late = {"late_blocks": LATE_BLOCKS} if decoder == "late" else {}
        own = {
            "decoder": decoder,
            "backbone": recipe.backbone,
            "trainable_backbone": "none" if recipe.trainable_backbone == LORA else recipe.trainable_backbone,
            "frozen_backbone_dtype": None if recipe.backbone_dtype == "float32" else recipe.backbone_dtype,
            **late,
        }
        return peer_config({**settings, **own})

    return make


def register_peers() -> None:
    """Makes recipes train these networks (`architecture: fpn`), and the Auto classes load them, in this process."""
    for decoder in DECODERS:
        ARCHITECTURES[decoder] = (_config_of_recipe(decoder), PeerForSemanticSegmentation)
    AutoConfig.register(PeerConfig.model_type, PeerConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(PeerConfig, PeerForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(PeerConfig, RevHRNetImageProcessor, exist_ok=True)
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[PeerConfig.model_type] = PeerForSemanticSegmentation.__name__
