"""The record of a checkpoint: everything that its folder says about it, and nothing else.

Read are `config.json` (with `training_history`), `recipe.yaml`, `versions.json`, the scores of training (`scores.json`), those of
`revhrnet evaluate` (`scores_*.json`), and which files lie beside them: an `example.png`, networks for ONNX Runtime.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from ..data.loading import DATASETS
from ..errors import CheckpointError
from ..io import read_values
from ..models.backbone import TIMM_HRNETS, backbone_licence
from ..viz.figures import names_and_palette

EXAMPLE_FILE = "example.png"
ONNX_FILES = {"model.onnx": "float32", "model_int8.onnx": "eight bits"}
TITLES = {"revhrnet": "RevHRNet", "hrnetv2": "HRNetV2"}
OWN_DATA = {"folder", "hub"}  # names of datasets that say nothing to others
CODE_LICENCE = "apache-2.0"
UNKNOWN_LICENCE = "unknown"


@dataclass
class Result:
    """Scores of a checkpoint on a split.

    Attributes:
        names: of the classes that were scored, in the order of the per-class scores.
        how: what they were taken with, such as "float32, whole image".
        loader: what has read the dataset, where that is not said by the dataset's name.
        is_plain: whether images were taken whole, once, as in training's own evaluation.
    """

    dataset: str
    label_space: str | None
    split: str
    scores: dict[str, Any]
    names: Sequence[str]
    how: str
    images: int | None = None
    loader: str | None = None
    is_plain: bool = True

    @property
    def where(self) -> str:
        """The dataset and its split, as the card calls them."""
        return place_of(self.dataset, self.split, self.loader)


@dataclass
class Record:
    """What a checkpoint's folder says of it."""

    config: PreTrainedConfig
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    has_example: bool = False
    onnx_files: Sequence[str] = ()

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was trained on, stage by stage."""
        stages = getattr(self.config, "training_history", None) or []
        return [{**stage, "images": number_of_images(stage)} for stage in stages]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, those of the last stage first."""
        names = [name for stage in reversed(self.history) for name in stage["dataset"].split(" + ")]
        return list(dict.fromkeys(names))

    @property
    def pretrained_backbone(self) -> str | None:
        """timm's name for the pretrained weights in a checkpoint, or the Hub's, which has a slash; None where there are none."""
        if self.began_at_random:
            return None
        config = getattr(self.config, "backbone_config", self.config)
        if config.model_type == "hrnetv2":
            return TIMM_HRNETS.get(self.recipe.get("variant"))
        if self._has_transformers_backbone:
            return config.name_or_path or None
        known = getattr(config, "backbone", None)
        return known if known and timm.is_model_pretrained(known) else None

    @property
    def unnamed_backbone(self) -> str | None:
        """The kind of a backbone whose weights are pretrained, but have no public name; None if there is no such backbone.

        They come from a folder or file, whose path is not kept.
        """
        recorded = self.history or getattr(self.config, "backbone_license", None) or self._has_transformers_backbone
        if self.began_at_random or self.pretrained_backbone or not recorded:
            return None
        config = getattr(self.config, "backbone_config", self.config)
        return getattr(config, "backbone", None) or config.model_type

    @property
    def began_at_random(self) -> bool:
        """Whether it is recorded that all weights were random before training."""
        return bool(self.history) and self.history[0]["recipe"].get("backbone_weights") == "random"

    @property
    def _has_transformers_backbone(self) -> bool:
        config = getattr(self.config, "backbone_config", None)
        return config is not None and config.model_type not in ("hrnetv2", "timm_backbone")

    @property
    def licence(self) -> str:
        """The Hub's identifier: that of the pretrained weights; where all was trained from random weights, that of the code."""
        base, recorded = self.pretrained_backbone, getattr(self.config, "backbone_license", None)
        if recorded:
            return recorded
        if self.began_at_random:
            return CODE_LICENCE
        if self._has_transformers_backbone:  # from the Hub, or from a folder, which has no name
            return backbone_licence(self.config.backbone_config) or UNKNOWN_LICENCE
        if base:
            return timm.get_pretrained_cfg(base).license or UNKNOWN_LICENCE
        return UNKNOWN_LICENCE

    @property
    def title(self) -> str:
        model_type = self.config.model_type
        title = TITLES.get(model_type, model_type)
        if "variant" in self.recipe:
            title += f"-{self.recipe['variant'].upper()}"
        return f"{title} on {dataset_title(self.datasets[0])}" if self.datasets else title


def read_record(folder: str | Path) -> Record:
    """Raises a CheckpointError that names the file that cannot be read."""
    folder = Path(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # which asks nobody on the terminal
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder} holds no configuration of a model that can be read: {error}") from error
    exported = [name for name in ONNX_FILES if (folder / name).exists()]
    record = Record(config, has_example=(folder / EXAMPLE_FILE).exists(), onnx_files=exported)
    for name, read, attribute in (("recipe.yaml", yaml.safe_load, "recipe"), ("versions.json", json.loads, "versions")):
        if (folder / name).exists():
            setattr(record, attribute, read_values(folder / name, read))
    evaluated = [_evaluated(read_values(path), path) for path in sorted(folder.glob("scores_*.json"))]
    trained = _trained(record, folder)
    record.results = [result for result in trained if not any(_covers(other, result) for other in evaluated)] + evaluated
    return record


def _covers(evaluated: Result, trained: Result) -> bool:
    """Whether an evaluation measures anew what training has measured; with windows or scales it is another measurement.

    Training knows data of one's own by the loader, an evaluation by the folder's name: the pixels of each class tell whether they
    are the same data.
    """
    of_both = [(result.loader or result.dataset, result.split, result.label_space) for result in (evaluated, trained)]
    if not evaluated.is_plain or of_both[0] != of_both[1]:
        return False
    pixels = [result.scores.get("per_category_pixels") for result in (evaluated, trained)]
    return evaluated.dataset == trained.dataset or pixels[0] == pixels[1]


def _trained(record: Record, folder: Path) -> list[Result]:
    """The scores that the training has taken, if it has."""
    path = folder / "scores.json"
    if not (path.exists() and record.history and record.recipe):
        return []
    stage, precision = record.history[-1], record.recipe["precision"]
    names, _ = names_and_palette(record.config)
    how = f"during training in {'float32' if precision == 'no' else precision}, whole image"
    dataset = record.recipe["dataset"]
    where = (dataset, stage["label_space"], record.recipe["eval_split"])
    return [Result(*where, read_values(path), names, how, loader=record.recipe.get("loader") or dataset)]


def number_of_images(record: dict[str, Any]) -> int:
    """The number of images in a record; 0.1.0 wrote it under `pictures`."""
    return record["images"] if "images" in record else record["pictures"]


def _evaluated(record: dict[str, Any], path: Path) -> Result:
    """The scores in a file of `revhrnet evaluate`."""
    try:
        settings = record["settings"]
        how = f"{settings['dtype']}, {settings['inference']}"
        if record["scores"].get("absent_as_zero"):
            how += ", absent classes as 0"
        is_plain = settings.get("window") is None and settings.get("scales") in (None, [1.0]) and not settings.get("flip")
        where = (record["dataset"], record["label_space"], record["split"])
        measured = (record["scores"], record["class_names"], how, number_of_images(record), record.get("loader"), is_plain)
        return Result(*where, *measured)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no record of `revhrnet evaluate` ({error!r}): remove it, or score again") from error


def place_of(dataset: str, split: str, loader: str | None) -> str:
    """A dataset and its split, as the cards call them."""
    is_own = loader in OWN_DATA and dataset not in OWN_DATA
    return f"{f'{dataset} (own data)' if is_own else dataset_title(dataset)} {split}"


def dataset_title(name: str) -> str:
    return "own data" if name in OWN_DATA else getattr(DATASETS.get(name), "TITLE", name)
