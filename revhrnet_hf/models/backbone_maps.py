"""The maps that a backbone has, those that a network takes, and the image sizes that it can take.

Strides, the place of the channels and the sizes are read off the backbone itself, without values (on the meta device).
"""

import copy
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig, TimmBackbone, TimmBackboneConfig
from transformers.backbone_utils import BackboneMixin

from .keywords import did_you_mean

COARSEST_STRIDE = 32
PROBE_SIZE = 224  # height and width of an image where a backbone has no size of its own

# Image sizes that backbones may ask for multiples of, and the odd multiples that are tried: windows, patches, fused streams.
SIZE_MULTIPLES = {1: (101, 135), 4: (25, 33), 32: (3, 5), 64: (3, 5)}

# With either of them, timm's transformers take other sizes than that of their weights.
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False})

FAILURES = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class BackboneLayout:
    """What a network must know of a backbone's maps.

    Attributes:
        strides: of the maps that the configuration asks for; None where the backbone could not be tried without values.
        is_plain: whether all its maps have one stride, as those of a plain vision transformer.
        channels_last: whether maps are (batch, height, width, channels).
        multiple: images are padded to multiples of so many pixels.
        fixed_size: (height, width) of the only images that it takes.
    """

    strides: tuple[int, ...] | None
    is_plain: bool = False
    channels_last: bool = False
    multiple: int = 1
    fixed_size: tuple[int, int] | None = None

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises a ValueError for an image size (height, width) that the backbone cannot take."""
        if self.fixed_size is not None and tuple(size) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(
                f"The backbone takes images of {height}×{width} pixels only, got {size[0]}×{size[1]}: crop or resize to that "
                "size, or take a backbone whose size is free"
            )


def streams_strides(num_streams: int) -> list[int]:
    """Strides of the maps that so many streams start from, finest first; the last is 32."""
    return [COARSEST_STRIDE >> halvings for halvings in reversed(range(num_streams))]


def with_chosen_maps(config: PreTrainedConfig, num_streams: int) -> PreTrainedConfig:
    """The same backbone, giving one map a stream: at strides 4, 8, 16, 32 for four, or from evenly spaced layers.

    A plain vision transformer, whose maps all have one stride, gives the last layer of each `num_streams`-th part.

    Raises:
        ValueError: there is no such model, it has no map at one of the strides, or its maps are of other sizes than it says.
    """
    config = copy.deepcopy(config)
    if isinstance(config, TimmBackboneConfig):
        config.backbone = config.backbone.removeprefix("timm/")  # as the Hub has it
        strides = timm_strides(config.backbone)
        name = f"The timm model {config.backbone!r}"
    else:
        strides = _measured_strides(config)
        name = f"The backbone {config.name_or_path or config.model_type!r}"
    config.out_indices = _chosen(strides, num_streams, name)
    _check_that_it_works(config, name)
    return config


def _chosen(strides: tuple[int, ...], num_streams: int, name: str) -> list[int]:
    if _are_plain(strides):
        # Of Transformers' vision transformers the first map is the embedding, and not of another stride.
        layers = len(strides) - len(strides) % 2
        if layers < num_streams:
            raise ValueError(f"{name} has {layers} layers, and {num_streams} streams need a map each: take a deeper backbone")
        first = len(strides) - layers
        return [first + (part + 1) * layers // num_streams - 1 for part in range(num_streams)]
    wanted = streams_strides(num_streams)
    missing = [stride for stride in wanted if stride not in strides]
    if missing:
        fifth = " (five streams start at stride 2: take a variant of four)" if missing == [2] else ""
        raise ValueError(
            f"{name} has maps at strides {list(strides)}, and {num_streams} streams need {wanted}{fifth}: "
            "take another backbone, or set out_indices in backbone_config"
        )
    # Where several maps have a stride, the last has seen most.
    return [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]


def _are_plain(strides: tuple[int, ...]) -> bool:
    return len(strides) > 1 and len(set(strides)) == 1


@lru_cache
def timm_strides(name: str) -> tuple[int, ...]:
    """Strides of all the maps that a timm model can give, finest first, without making its tensors.

    Raises:
        ValueError: timm has no such model, or cannot take its maps.
    """
    try:
        try:
            network = _timm_features(name)
        except IndexError:  # of models with fewer maps than timm takes by default
            network = _timm_features(name, out_indices=(0,))
    # Of unknown names and tags, of models without maps, of names that the Hub must be asked about.
    except (*FAILURES, OSError, AttributeError) as error:
        raise ValueError(
            f"timm has no model {name!r} that gives maps ({type(error).__name__}: {error})"
            f"{did_you_mean(name.split('.')[0], timm.list_models())}"
        ) from error
    return tuple(level["reduction"] for level in network.feature_info.info)


def _timm_features(name: str, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, features_only=True, **options)


def _measured_strides(config: PreTrainedConfig) -> tuple[int, ...]:
    """Strides of all the maps of a Transformers backbone, found by trying it.

    Raises:
        ValueError: it is no backbone, or it cannot be tried.
    """
    try:
        config = copy.deepcopy(config)
        config.out_indices = list(range(len(config.stage_names)))
        backbone = without_values(config)
        maps = _maps_of(backbone, image_size_for(config))
    except (*FAILURES, AttributeError) as error:
        raise ValueError(
            f"Transformers gives no maps of a model of type {config.model_type!r} ({type(error).__name__}: {error}): take one "
            "of its backbones, such as DINOv3's, or a timm model"
        ) from error
    return _strides_of(maps, image_size_for(config))


def _check_that_it_works(config: PreTrainedConfig, name: str) -> None:
    """Raises a ValueError unless the maps have the strides that they are said to have."""
    size = image_size_for(config)
    try:
        backbone = without_values(config)
        maps = _maps_of(backbone, size)
        channels_last = _channels_last(backbone)
    except FAILURES as error:
        raise ValueError(
            f"{name} cannot serve as backbone ({type(error).__name__}: {str(error).rstrip('.')}): take another"
        ) from error
    found = [tuple(x.shape[1:3] if channels_last else x.shape[2:4]) for x in maps]
    strides = _said_strides(backbone) or _strides_of(maps, size)
    for stride, sides in zip(strides, found, strict=True):
        if any(abs(side - whole / stride) >= 2 for side, whole in zip(sides, size, strict=True)):
            raise ValueError(
                f"{name} gives maps of {found} pixels from images of {size[0]}×{size[1]}, not at strides {list(strides)} as it "
                "says: take another backbone, or set out_indices in backbone_config"
            )


def create_backbone(config: PreTrainedConfig) -> BackboneMixin:
    """The backbone of `config` with random weights, taking images of any size where it can.

    Raises:
        ValueError: a timm model has no map of one of the `out_indices`.
    """
    try:
        return _create_backbone(config)
    except IndexError as error:
        strides = timm_strides(config.backbone)
        raise ValueError(
            f"The timm model {config.backbone!r} has maps at strides {list(strides)}, out_indices 0 to {len(strides) - 1}, and "
            f"{', '.join(map(str, config.out_indices))} are not all among them: leave out_indices out to have the right ones"
        ) from error


def _create_backbone(config: PreTrainedConfig) -> BackboneMixin:
    cfg = timm.get_pretrained_cfg(config.backbone) if isinstance(config, TimmBackboneConfig) else None
    if cfg is not None and cfg.fixed_input_size:
        for options in ANY_SIZE:
            try:
                return AutoBackbone.from_config(config, **options)
            except TypeError as error:  # a model that does not know the option
                if not options.keys() & set(str(error).split("'")):
                    raise
    return AutoBackbone.from_config(config)


def layout_of(config: PreTrainedConfig) -> BackboneLayout:
    """What a network must know of the maps of a timm or Transformers backbone."""
    key = config.to_json_string(use_diff=False)
    if key not in _layouts:
        _layouts[key] = _read_layout(config)
    return _layouts[key]


_layouts: dict[str, BackboneLayout] = {}


def _read_layout(config: PreTrainedConfig) -> BackboneLayout:
    backbone = without_values(config)
    size, strides, channels_last = image_size_for(config), _said_strides(backbone), _channels_last(backbone)
    if strides is None:
        try:
            strides = _strides_of(_maps_of(backbone, size), size)
        except FAILURES:  # it cannot be tried; only the maps of a real image will tell
            return BackboneLayout(None)
    is_plain = _are_plain(strides)
    multiples = {strides[0]: (9, 13)} if is_plain else {**SIZE_MULTIPLES, size[0]: (1, 2)}
    for multiple, times in multiples.items():
        if _takes(backbone, (multiple * times[0], multiple * times[1])):
            return BackboneLayout(strides, is_plain, channels_last, multiple)
    # Where it does not even take its own size, it cannot be tried, and sizes are left to it.
    return BackboneLayout(strides, is_plain, channels_last, fixed_size=size if _takes(backbone, size) else None)


def without_values(config: PreTrainedConfig) -> BackboneMixin:
    """The backbone on the meta device, in eval mode; no random number is drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return create_backbone(copy.deepcopy(config)).eval()


def _maps_of(backbone: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return backbone(torch.empty(1, 3, *size, device="meta"), return_dict=True).feature_maps


def _takes(backbone: nn.Module, size: tuple[int, int]) -> bool:
    try:
        _maps_of(backbone, size)
    except FAILURES:
        return False
    return True


def image_size_for(config: PreTrainedConfig) -> tuple[int, int]:
    """(height, width) of the images that the backbone was made for."""
    if isinstance(config, TimmBackboneConfig):
        cfg = timm.get_pretrained_cfg(config.backbone)
        return tuple(cfg.input_size[1:]) if cfg is not None else (PROBE_SIZE, PROBE_SIZE)
    size = getattr(config, "image_size", None) or PROBE_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def _said_strides(backbone: BackboneMixin) -> tuple[int, ...] | None:
    return tuple(backbone._backbone.feature_info.reduction()) if isinstance(backbone, TimmBackbone) else None


def _strides_of(maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[int, ...]:
    return tuple(max(round(size[0] / x.shape[-2]), 1) for x in maps)


def _channels_last(backbone: BackboneMixin) -> bool:
    return isinstance(backbone, TimmBackbone) and getattr(backbone._backbone, "output_fmt", None) == "NHWC"


def pad_to_multiple(pixel_values: Tensor, multiple: int) -> Tensor:
    """The image (…, height, width) with zeros, the mean colour, at the bottom and right."""
    if multiple == 1:
        return pixel_values
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, -width % multiple, 0, -height % multiple))


def cropped(maps: tuple[Tensor, ...], strides: tuple[int, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The part of each map that belongs to the image of `size` (height, width), which had been padded."""
    return tuple(x[..., : -(-size[0] // stride), : -(-size[1] // stride)] for x, stride in zip(maps, strides, strict=True))
