"""The settings that every segmentation network of this package has: its classes, its loss, its BatchNorms, its initialisation."""

import logging
import math
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .keywords import LOADING_KEYWORDS, check_keywords, did_you_mean

logger = logging.getLogger(__name__)

# Besides the fields: what Transformers takes, or has written into a config.json.
TRANSFORMERS_SETTINGS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}


@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    What [`RevHRNetConfig`] and [`HRNetV2Config`] share. Unknown keywords raise a `TypeError`.

    When the classes change (`num_labels`, `id2label`, in `from_pretrained` or set later), `palette` and
    `semantic_loss_class_weights` go, unless they are given anew, and `training_history` becomes `pretraining_history`; a warning
    in the log says so. New names for classes that had none (`LABEL_0`, …) are no change.

    Args:
        batch_norm_momentum (`float`, defaults to 0.01):
            Of the trained BatchNorms. HRNet's 0.01 suits long training; below some thousand steps 0.1 is better.
        initializer (`"hrnet"` or `"he"`, defaults to `"hrnet"`):
            Of the trained convolutions: HRNet's N(0, 0.001), or N(0, √(2 / fan-in)) (He et al., arXiv 1502.01852), whose
            larger weights want a higher learning rate.
        zero_init_residual (`bool`, defaults to `False`):
            Every trained residual block begins as the identity: weight 0 in its last BatchNorm (arXiv 1706.02677, section 5.1).
            Learns faster in short runs; not HRNet's.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count.
        semantic_loss_class_weights (`list[float]`, *optional*):
            One factor a class for the cross-entropy: none negative, not all 0.
        semantic_loss_ohem_threshold (`float`, *optional*):
            With a value (HRNet: 0.9), only pixels whose true class has a lower probability count …
        semantic_loss_ohem_min_kept (`int`, defaults to 131072):
            … but at least this many pixels a batch.
        palette (`list[list[int]]`, *optional*):
            Colour [red, green, blue] of each class, 0 to 255, for images of the label map.
        training_history (`list[dict]`, *optional*):
            What the network was trained on, stage by stage: data, recipe, scores; the last stage taught it the present classes.
            Written by training, read by nobody but people and model cards.
        pretraining_history (`list[dict]`, *optional*):
            The `training_history` that the network had when its classes were others.
    """

    batch_norm_momentum: float = 0.01
    initializer: Literal["hrnet", "he"] = "hrnet"
    zero_init_residual: bool = False
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float | int] | None = None
    semantic_loss_ohem_threshold: float | int | None = None
    semantic_loss_ohem_min_kept: int = 131_072
    palette: list[list[int]] | None = None
    training_history: list[dict] | None = None
    pretraining_history: list[dict] | None = None

    def __post_init__(self, **kwargs):
        check_keywords(kwargs, self.known_keywords(), type(self).__name__)
        classes = classes_of(kwargs.pop("num_labels", None), self.id2label, self.label2id)
        if classes is not None:
            self.id2label = classes
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = inverse(self.id2label)

    @classmethod
    def known_keywords(cls) -> set[str]:
        """What the constructor takes."""
        return {field.name for field in fields(cls)} | TRANSFORMERS_SETTINGS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """A configuration from the content of a config.json, changed by settings among `kwargs`.

        Entries of the file that this version does not know are kept. Keywords that are no settings are those of
        `from_pretrained`, returned with `return_unused_kwargs=True`.

        Raises:
            TypeError: a keyword is a setting misspelt.
            ValueError: the changed settings do not fit together.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        own = {name: kwargs.pop(name) for name in (*CLASS_SETTINGS, *OF_THE_CLASSES) if name in kwargs}
        known = cls.known_keywords()
        unknown = {name: value for name, value in config_dict.items() if name not in known}
        config_dict = without_old_classes({name: value for name, value in config_dict.items() if name in known})
        config, unused = super().from_dict(config_dict, **kwargs, return_unused_kwargs=True)
        for name, value in unknown.items():
            setattr(config, name, value)
        cls._refuse_misspelt(unused)
        num_labels, id2label, label2id = (own.pop(name, None) for name in CLASS_SETTINGS)
        is_named = id2label is not None or label2id is not None
        if is_named or num_labels not in (None, config.num_labels):  # as many classes as there were keep their names
            config.id2label = classes_of(num_labels, id2label, label2id)
        if label2id is not None:
            config.label2id = label2id
        for name, value in own.items():
            setattr(config, name, value)
        config.validate()
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def _refuse_misspelt(cls, unused: dict[str, Any]) -> None:
        # Keywords of other classes come by here as well, and Transformers has new ones with every version: only what resembles a
        # setting is refused. A model's `from_pretrained` refuses the rest.
        for keyword in unused:
            guess = did_you_mean(keyword, cls.known_keywords())
            if guess and keyword not in LOADING_KEYWORDS and not keyword.startswith("_"):
                raise TypeError(f"{cls.__name__}.from_pretrained does not know the keyword {keyword!r}{guess}")

    def __setattr__(self, name: str, value: Any):
        if name == "label2id" and value is not None:
            value = {class_name: int(class_id) for class_name, class_id in value.items()}
        if name != "id2label" or value is None:
            super().__setattr__(name, value)
            return
        before = self.__dict__.get("id2label")
        classes = {int(class_id): class_name for class_id, class_name in value.items()}
        super().__setattr__(name, classes)
        if before is not None and before != classes:
            self.label2id = inverse(classes)
            if not is_naming(before, classes):
                self._forget_classes()

    def _forget_classes(self):
        """What belongs to the classes that the network had before goes."""
        gone = [name for name in OF_THE_CLASSES if getattr(self, name) is not None]
        if self.training_history is not None:
            self.pretraining_history = [*(self.pretraining_history or []), *self.training_history]
        for name in gone:
            setattr(self, name, None)
        if gone:
            logger.warning(
                "The classes have changed. Removed from the configuration, because they belong to the old classes: %s%s",
                ", ".join(gone),
                " (kept as pretraining_history)" if "training_history" in gone else "",
            )

    def validate_classes(self):
        """Run by `strict` on construction: ids are 0, 1, 2, … and `label2id` says the same as `id2label`."""
        if not self.id2label:
            raise ValueError("a network needs at least one class: num_labels is 0")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must have the ids 0 to {len(self.id2label) - 1}, got {sorted(self.id2label)}")
        for name, class_id in (self.label2id or {}).items():
            if self.id2label.get(class_id) != name:
                raise ValueError(
                    f"label2id says that {name!r} is class {class_id}, id2label that class {class_id} is "
                    f"{self.id2label.get(class_id)!r}: give id2label alone, or the same classes in both"
                )

    def validate_loss(self):
        """Run by `strict` on construction: the loss's settings fit the classes."""
        weights = self.semantic_loss_class_weights
        if weights is not None:
            if len(weights) != self.num_labels:
                raise ValueError(
                    f"semantic_loss_class_weights must have one value a class: {len(weights)} for {self.num_labels} classes"
                )
            if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
                raise ValueError(
                    f"semantic_loss_class_weights must be finite, none negative, and at least one above 0, got {weights}"
                )
        threshold = self.semantic_loss_ohem_threshold
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"semantic_loss_ohem_threshold is a probability above 0 and up to 1, got {threshold}")
        if self.semantic_loss_ohem_min_kept < 0:
            raise ValueError(f"semantic_loss_ohem_min_kept must be 0 or more pixels, got {self.semantic_loss_ohem_min_kept}")

    def validate_palette(self):
        """Run by `strict` on construction: one colour a class."""
        if self.palette is None:
            return
        if len(self.palette) != self.num_labels:
            raise ValueError(f"palette must have one colour a class: {len(self.palette)} for {self.num_labels} classes")
        for colour in self.palette:
            if len(colour) != 3 or not all(0 <= channel <= 255 for channel in colour):
                raise ValueError(f"palette must have colours [red, green, blue] of 0 to 255, got {colour}")


CLASS_SETTINGS = ("num_labels", "id2label", "label2id")
PER_CLASS = ("palette", "semantic_loss_class_weights")
OF_THE_CLASSES = (*PER_CLASS, "training_history")


def classes_of(num_labels: int | None, id2label: dict | None, label2id: dict | None) -> dict[int, str] | None:
    """Name of each class id, as any of the three settings give it; None where none is given.

    Raises:
        ValueError: `num_labels` is another number than that of the names.
    """
    if id2label is not None:
        classes = {int(class_id): name for class_id, name in id2label.items()}
    elif label2id is not None:
        classes = {int(class_id): name for name, class_id in label2id.items()}
    elif num_labels is not None:
        classes = {class_id: generic_name(class_id) for class_id in range(num_labels)}
    else:
        return None
    if num_labels not in (None, len(classes)):
        raise ValueError(f"num_labels is {num_labels} and the names of {len(classes)} classes are given: they must agree")
    return classes


def without_old_classes(saved: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, less what was left in it of other classes.

    Version 0.1.0 could save it when a network was fine-tuned on other classes. `id2label` is what the network predicts.
    """
    saved = dict(saved)
    classes = saved.get("id2label")
    if classes is None:
        return saved
    saved.pop("label2id", None)
    for name in PER_CLASS:
        value = saved.get(name)
        if value is not None and len(value) != len(classes):
            logger.warning("config.json has %s for %d classes, and names of %d: it is left out", name, len(value), len(classes))
            del saved[name]
    return saved


def inverse(id2label: dict[int, str]) -> dict[str, int]:
    return {name: class_id for class_id, name in id2label.items()}


def generic_name(class_id: int) -> str:
    """What Transformers calls a class that nobody has named."""
    return f"LABEL_{class_id}"


def is_naming(before: dict[int, str], after: dict[int, str]) -> bool:
    """Whether classes are still the same, and were only without names before."""
    return before.keys() == after.keys() and all(name in (generic_name(i), after[i]) for i, name in before.items())


def check_streams(config: SegmentationConfig):
    """Raises a ValueError unless `config` has at least two streams and fitting, positive counts."""
    channels, num_modules = list(config.stream_channels), list(config.num_modules)
    if len(channels) < 2:
        raise ValueError(f"stream_channels needs at least two streams, got {channels}")
    if len(num_modules) != len(channels) - 1:
        raise ValueError(
            f"num_modules must have one entry fewer than stream_channels, got {num_modules} for {len(channels)} streams"
        )
    if min(*channels, *num_modules, config.num_blocks) < 1:
        raise ValueError("stream_channels, num_modules and num_blocks must be positive")
