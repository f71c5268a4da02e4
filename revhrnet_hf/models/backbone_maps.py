"""The maps that a backbone has, the maps that a network uses, and the image sizes that the backbone accepts.

The backbone itself is run to find them, on the meta device: tensors there have shapes and no values, so this costs no time.
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
PROBE_SIZE = 224  # height and width of the image for backbones that specify no size

# Backbones may need image sizes that are multiples of these, because of windows, patches or fused streams; and the odd
# multiples with which this is tried (height, width).
SIZE_MULTIPLES = {1: (101, 135), 4: (25, 33), 32: (3, 5), 64: (3, 5)}

# One of these options makes timm's transformers accept other image sizes than the one they were trained with.
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False})

FAILURES = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class BackboneLayout:
    """Properties of a backbone's maps that a network needs to know.

    Attributes:
        strides: strides of the maps that the configuration selects; None if the backbone does not run on the meta device.
        is_plain: whether all maps have the same stride, as in a plain vision transformer.
        channels_last: whether maps are (batch, height, width, channels).
        multiple: images are padded to a multiple of this number of pixels.
        fixed_size: (height, width), if the backbone accepts images of one size only.
    """

    strides: tuple[int, ...] | None
    is_plain: bool = False
    channels_last: bool = False
    multiple: int = 1
    fixed_size: tuple[int, int] | None = None

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises a ValueError for an image size (height, width) that the backbone does not accept."""
        if self.fixed_size is not None and tuple(size) != self.fixed_size:
            height, width = self.fixed_size
            raise ValueError(
                f"The backbone takes images of {height}×{width} pixels only, got {size[0]}×{size[1]}: crop or resize to that "
                "size, or use a backbone that accepts any size"
            )


def fixed_size_in(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the only images that the backbone in `model` accepts; None if it accepts others, or there is none."""
    layouts = (getattr(module, "layout", None) for module in model.modules())
    return next((layout.fixed_size for layout in layouts if isinstance(layout, BackboneLayout)), None)


def streams_strides(num_streams: int) -> list[int]:
    """Strides of the maps that `num_streams` streams start from, finest first; the last is 32."""
    return [COARSEST_STRIDE >> halvings for halvings in reversed(range(num_streams))]


def with_chosen_maps(config: PreTrainedConfig, num_streams: int) -> PreTrainedConfig:
    """The configuration of the same backbone with one map for each stream: strides 4, 8, 16 and 32 for four streams.

    All maps of a plain vision transformer have the same stride. Its layers are divided into `num_streams` equal parts, and the
    last layer of each part is used.

    Raises:
        ValueError: there is no such model, it has no map at one of the strides, or the sizes of its maps contradict its strides.
    """
    config = copy.deepcopy(config)
    if isinstance(config, TimmBackboneConfig):
        config.backbone = config.backbone.removeprefix("timm/")  # the prefix of names on the Hub
        strides = timm_strides(config.backbone)
        name = f"The timm model {config.backbone!r}"
    else:
        strides = _measured_strides(config)
        name = f"The backbone {config.name_or_path or config.model_type!r}"
    config.out_indices = _choose_maps(strides, num_streams, name)
    _check_that_it_works(config, name)
    return config


def _choose_maps(strides: tuple[int, ...], num_streams: int, name: str) -> list[int]:
    """Indices of the maps that the streams start from."""
    if _are_plain(strides):
        # The first map of Transformers' vision transformers is the embedding, which has the same stride and is no layer.
        layers = len(strides) - len(strides) % 2
        if layers < num_streams:
            raise ValueError(f"{name} has {layers} layers, but {num_streams} streams need a map each: use a deeper backbone")
        first = len(strides) - layers
        return [first + (part + 1) * layers // num_streams - 1 for part in range(num_streams)]
    wanted = streams_strides(num_streams)
    missing = [stride for stride in wanted if stride not in strides]
    if missing:
        fifth = " (five streams start at stride 2: use a variant with four streams)" if missing == [2] else ""
        raise ValueError(
            f"{name} has maps at strides {list(strides)}, but {num_streams} streams need {wanted}{fifth}: "
            "use another backbone, or set out_indices in backbone_config"
        )
    # If several maps have the same stride, the last one is used: it comes from the deepest layer.
    return [len(strides) - 1 - strides[::-1].index(stride) for stride in wanted]


def _are_plain(strides: tuple[int, ...]) -> bool:
    return len(strides) > 1 and len(set(strides)) == 1


@lru_cache
def timm_strides(name: str) -> tuple[int, ...]:
    """Strides of all maps that a timm model can return, finest first; no weights are allocated.

    Raises:
        ValueError: timm has no such model, or cannot return its maps.
    """
    try:
        try:
            network = _timm_features(name)
        except IndexError:  # the model has fewer maps than timm selects by default
            network = _timm_features(name, out_indices=(0,))
    # These come from unknown names and tags, models without maps, and names that timm looks up on the Hub.
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
    """Strides of all maps of a Transformers backbone, found by running it on the meta device.

    Raises:
        ValueError: it is not a backbone, or it does not run on the meta device.
    """
    try:
        config = copy.deepcopy(config)
        config.out_indices = list(range(len(config.stage_names)))
        backbone = without_values(config)
        maps = _maps_of(backbone, image_size_for(config))
    except (*FAILURES, AttributeError) as error:
        raise ValueError(
            f"Transformers returns no maps for a model of type {config.model_type!r} ({type(error).__name__}: {error}): use one "
            "of its backbones, such as DINOv3's, or a timm model"
        ) from error
    return _strides_of(maps, image_size_for(config))


def _check_that_it_works(config: PreTrainedConfig, name: str) -> None:
    """Raises a ValueError unless the maps have the strides that the backbone states."""
    size = image_size_for(config)
    try:
        backbone = without_values(config)
        maps = _maps_of(backbone, size)
        channels_last = _channels_last(backbone)
    except FAILURES as error:
        raise ValueError(
            f"{name} cannot serve as backbone ({type(error).__name__}: {str(error).rstrip('.')}): use another one"
        ) from error
    found = [tuple(x.shape[1:3] if channels_last else x.shape[2:4]) for x in maps]
    strides = _stated_strides(backbone) or _strides_of(maps, size)
    for stride, sides in zip(strides, found, strict=True):
        if any(abs(side - whole / stride) >= 2 for side, whole in zip(sides, size, strict=True)):
            raise ValueError(
                f"{name} gives maps of {found} pixels for images of {size[0]}×{size[1]}, which contradicts its strides "
                f"{list(strides)}: use another backbone, or set out_indices in backbone_config"
            )


def create_backbone(config: PreTrainedConfig) -> BackboneMixin:
    """The backbone of `config` with random weights. If the model can accept images of any size, it does.

    Raises:
        ValueError: a timm model has no map for one of the `out_indices`.
    """
    try:
        return _create_backbone(config)
    except IndexError as error:
        strides = timm_strides(config.backbone)
        raise ValueError(
            f"The timm model {config.backbone!r} has maps at strides {list(strides)}, out_indices 0 to {len(strides) - 1}; "
            f"{', '.join(map(str, config.out_indices))} are not all among them: omit out_indices to get suitable ones"
        ) from error


def _create_backbone(config: PreTrainedConfig) -> BackboneMixin:
    dtype = torch.get_default_dtype()  # that of the network, not the one that the backbone's checkpoint was saved in
    cfg = timm.get_pretrained_cfg(config.backbone) if isinstance(config, TimmBackboneConfig) else None
    if cfg is not None and cfg.fixed_input_size:
        for options in ANY_SIZE:
            try:
                return AutoBackbone.from_config(config, dtype=dtype, **options)
            except TypeError as error:  # the model does not have this option
                if not options.keys() & set(str(error).split("'")):
                    raise
    return AutoBackbone.from_config(config, dtype=dtype)


def layout_of(config: PreTrainedConfig) -> BackboneLayout:
    """The layout of the maps of a timm or Transformers backbone; found once for each configuration."""
    key = config.to_json_string(use_diff=False)
    if key not in _layouts:
        _layouts[key] = _read_layout(config)
    return _layouts[key]


_layouts: dict[str, BackboneLayout] = {}


def _read_layout(config: PreTrainedConfig) -> BackboneLayout:
    backbone = without_values(config)
    size, strides, channels_last = image_size_for(config), _stated_strides(backbone), _channels_last(backbone)
    if strides is None:
        try:
            strides = _strides_of(_maps_of(backbone, size), size)
        except FAILURES:  # does not run on the meta device; the maps of a real image will show the strides
            return BackboneLayout(None)
    is_plain = _are_plain(strides)
    multiples = {strides[0]: (9, 13)} if is_plain else {**SIZE_MULTIPLES, size[0]: (1, 2)}
    for multiple, times in multiples.items():
        if _accepts(backbone, (multiple * times[0], multiple * times[1])):
            return BackboneLayout(strides, is_plain, channels_last, multiple)
    # If it does not accept even its own size, it does not run on the meta device. It then checks sizes itself.
    return BackboneLayout(strides, is_plain, channels_last, fixed_size=size if _accepts(backbone, size) else None)


def without_values(config: PreTrainedConfig) -> BackboneMixin:
    """The backbone on the meta device, in eval mode. The state of the random generators does not change."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return create_backbone(copy.deepcopy(config)).eval()


def _maps_of(backbone: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return backbone(torch.empty(1, 3, *size, device="meta"), return_dict=True).feature_maps


def _accepts(backbone: nn.Module, size: tuple[int, int]) -> bool:
    try:
        _maps_of(backbone, size)
    except FAILURES:
        return False
    return True


def image_size_for(config: PreTrainedConfig) -> tuple[int, int]:
    """(height, width) of the images that the backbone was trained with."""
    if isinstance(config, TimmBackboneConfig):
        cfg = timm.get_pretrained_cfg(config.backbone)
        return tuple(cfg.input_size[1:]) if cfg is not None else (PROBE_SIZE, PROBE_SIZE)
    size = getattr(config, "image_size", None) or PROBE_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def _stated_strides(backbone: BackboneMixin) -> tuple[int, ...] | None:
    return tuple(backbone._backbone.feature_info.reduction()) if isinstance(backbone, TimmBackbone) else None


def _strides_of(maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[int, ...]:
    return tuple(max(round(size[0] / x.shape[-2]), 1) for x in maps)


def _channels_last(backbone: BackboneMixin) -> bool:
    return isinstance(backbone, TimmBackbone) and getattr(backbone._backbone, "output_fmt", None) == "NHWC"


def pad_to_multiple(pixel_values: Tensor, multiple: int) -> Tensor:
    """The image (…, height, width), padded with zeros (the mean colour) at the bottom and at the right."""
    if multiple == 1:
        return pixel_values
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, -width % multiple, 0, -height % multiple))


def cropped(maps: tuple[Tensor, ...], strides: tuple[int, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """The part of each map that belongs to the image of `size` (height, width), without its padding."""
    return tuple(cropped_map(x, stride, size) for x, stride in zip(maps, strides, strict=True))


def cropped_map(x: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """The part of a map (…, rows, columns) that belongs to the image of `size` (height, width)."""
    rows, columns = -(-size[0] // stride), -(-size[1] // stride)
    if not torch.compiler.is_exporting():
        return x[..., :rows, :columns]
    # A slice is a view, and an exporter would decide for all sizes whether it is the whole map. A copy leaves that open.
    x = x.index_select(-2, torch.arange(rows, device=x.device))
    return x.index_select(-1, torch.arange(columns, device=x.device))
