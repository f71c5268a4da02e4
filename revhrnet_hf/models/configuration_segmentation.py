"""The settings that all segmentation networks of this package share: classes, loss, BatchNorms and initialisation."""

import logging
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .keywords import LOADING_KEYWORDS, check_keywords, did_you_mean

logger = logging.getLogger(__name__)

# Keywords besides the fields: Transformers accepts them, or has written them into a config.json.
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


CLASS_SETTINGS = ("num_labels", "id2label", "label2id")
PER_CLASS = ("palette", "semantic_loss_class_weights")
# They belong to the classes, and are removed with them. The temperature was fitted to the logits of the old classes.
CLASS_DEPENDENT = (*PER_CLASS, "untinted", "confidence_temperature", "training_history")
UNFITTED_TEMPERATURE = 1.0
WITHOUT_CLASSES = {"confidence_temperature": UNFITTED_TEMPERATURE}  # what is set then, where it is not None

CROSS_ENTROPY, FOCAL, DICE, TVERSKY, LOVASZ = LOSS_TERMS = ("cross_entropy", "focal", "dice", "tversky", "lovasz")


@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    The settings that [`RevHRNetConfig`] and [`HRNetV2Config`] share. Unknown keywords raise a `TypeError`.

    When the classes change (`num_labels` or `id2label`, in `from_pretrained` or later), `palette`, `untinted` and
    `semantic_loss_class_weights` are removed, unless new ones are given, `confidence_temperature` is 1 again, unless another is
    given, and `training_history` becomes `pretraining_history`. A warning in the log says so. Names for classes that had none
    (`LABEL_0`, …) do not count as a change.

    Args:
        batch_norm_momentum (`float`, defaults to 0.01):
            Momentum of the trained BatchNorms. HRNet's 0.01 is for long training; for less than some thousand steps 0.1 is
            better.
        initializer (`"hrnet"` or `"he"`, defaults to `"hrnet"`):
            Initialisation of the trained convolutions: HRNet's N(0, 0.001), or N(0, √(2 / fan-in)) (He et al., arXiv
            1502.01852). The second gives larger weights, which need a higher learning rate.
        zero_init_residual (`bool`, defaults to `False`):
            Whether each trained residual block starts as the identity, with weight 0 in its last BatchNorm (arXiv 1706.02677,
            section 5.1). The network learns faster in short runs. HRNet does not do it.
        zero_init_exchange (`bool`, defaults to `False`):
            Whether each exchange unit starts as the identity, with weight 0 in the last BatchNorm of every path from another
            stream. Otherwise the streams start as sums in which random maps outweigh their own. In short runs such paths learn
            little, so it is for heads that read all streams. HRNet does not do it.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that are ignored by the loss.
        semantic_loss_class_weights (`list[float]`, *optional*):
            One factor for each class in cross-entropy and focal: none negative, not all 0.
        semantic_loss_ohem_threshold (`float`, *optional*):
            If given (HRNet: 0.9), only pixels whose true class has a lower probability than this count in the cross-entropy …
        semantic_loss_ohem_min_kept (`int`, defaults to 131072):
            … but at least this number of pixels in each batch.
        semantic_loss_terms (`dict[str, float]`, *optional*):
            The terms of the loss and their weights, of `"cross_entropy"`, `"focal"`, `"dice"`, `"tversky"` and `"lovasz"`; by
            default the cross-entropy alone.
        semantic_loss_label_smoothing (`float`, defaults to 0.0):
            Share of the truth that the cross-entropy spreads over all classes.
        semantic_loss_boundary_relaxation (`bool`, defaults to `False`):
            Whether in the cross-entropy a pixel may be of any class in its 3×3 neighbourhood (arXiv 1812.01593).
        semantic_loss_focal_gamma (`float`, defaults to 2.0):
            Exponent of the focal term: 0 gives the cross-entropy, larger ones count easy pixels less.
        semantic_loss_tversky_alpha (`float`, defaults to 0.3), semantic_loss_tversky_beta (`float`, defaults to 0.7):
            Weights of false positives and of false negatives in the Tversky term.
        auxiliary_loss_weight (`float`, *optional*):
            If given (usually 0.4), each coarser stream has a 1×1 classifier, and in training the mean of their losses is added to
            the loss with this weight. They take no part in the logits. As Transformers does with UperNet's auxiliary head,
            checkpoints include them; loading one with `auxiliary_loss_weight=None` leaves them out.
        ocr_channels (`int`, defaults to 512), ocr_key_channels (`int`, defaults to 256):
            With `head="ocr"`: channels of the representations of pixels and objects, and those in which they are compared.
        confidence_temperature (`float`, defaults to 1.0):
            Divisor of the logits where their softmax is shown as a confidence (arXiv 1706.04599); above 1 the network is less
            sure. It changes no label map. (Not called `temperature`: Transformers refuses to save a config with that name.)
        palette (`list[list[int]]`, *optional*):
            Colour [red, green, blue] of each class, 0 to 255, for drawing label maps.
        untinted (`list[int]`, *optional*):
            Ids of the classes that overlays show without colour; by default the class that is called background, if there is one.
        training_history (`list[dict]`, *optional*):
            Data, recipe and scores of each stage of training; the network has the classes of the last stage. Training writes it,
            for people and model cards; the network does not use it.
        pretraining_history (`list[dict]`, *optional*):
            The `training_history` from before the classes were changed.
    """

    batch_norm_momentum: float = 0.01
    initializer: Literal["hrnet", "he"] = "hrnet"
    zero_init_residual: bool = False
    zero_init_exchange: bool = False
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float | int] | None = None
    semantic_loss_ohem_threshold: float | int | None = None
    semantic_loss_ohem_min_kept: int = 131_072
    semantic_loss_terms: dict[str, float | int] | None = None
    semantic_loss_label_smoothing: float | int = 0.0
    semantic_loss_boundary_relaxation: bool = False
    semantic_loss_focal_gamma: float | int = 2.0
    semantic_loss_tversky_alpha: float | int = 0.3
    semantic_loss_tversky_beta: float | int = 0.7
    auxiliary_loss_weight: float | int | None = None
    ocr_channels: int = 512
    ocr_key_channels: int = 256
    confidence_temperature: float | int = UNFITTED_TEMPERATURE
    palette: list[list[int]] | None = None
    untinted: list[int] | None = None
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
        """Names of the keywords that the constructor accepts."""
        return {field.name for field in fields(cls)} | TRANSFORMERS_SETTINGS

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """A configuration from the content of a config.json, changed by the settings in `kwargs`.

        Entries of the file that this version does not know are kept. `kwargs` may also hold keywords of `from_pretrained` that
        are not settings; `return_unused_kwargs=True` returns them.

        Raises:
            TypeError: a keyword looks like a misspelt setting.
            ValueError: the changed settings contradict each other.
        """
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        own = {name: kwargs.pop(name) for name in (*CLASS_SETTINGS, *CLASS_DEPENDENT) if name in kwargs}
        known = cls.known_keywords()
        unknown = {name: value for name, value in config_dict.items() if name not in known}
        config_dict = without_old_classes({name: value for name, value in config_dict.items() if name in known})
        config, unused = super().from_dict(config_dict, **kwargs, return_unused_kwargs=True)
        for name, value in unknown.items():
            setattr(config, name, value)
        cls._check_misspelt(unused)
        num_labels, id2label, label2id = (own.pop(name, None) for name in CLASS_SETTINGS)
        is_named = id2label is not None or label2id is not None
        if is_named or num_labels not in (None, config.num_labels):  # the same number of classes keep their names
            config.id2label = classes_of(num_labels, id2label, label2id)
        if label2id is not None:
            config.label2id = label2id
        for name, value in own.items():
            setattr(config, name, value)
        config.validate()
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def _check_misspelt(cls, unused: dict[str, Any]) -> None:
        # Keywords for other classes are passed here too, and every version of Transformers has new ones. So only a keyword that
        # resembles a setting is an error here; the model's `from_pretrained` reports the others.
        for keyword in unused:
            guess = did_you_mean(keyword, cls.known_keywords())
            if guess and keyword not in LOADING_KEYWORDS and not keyword.startswith("_"):
                raise TypeError(f"{cls.__name__}.from_pretrained does not know the keyword {keyword!r}{guess}")

    def __setattr__(self, name: str, value: Any):
        if name in ("id2label", "label2id"):
            check_names(name, value)
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
        """Remove the settings that belong to the old classes."""
        notes = {
            "confidence_temperature": f" ({self.confidence_temperature}, now {UNFITTED_TEMPERATURE})",
            "training_history": " (kept as pretraining_history)",
        }
        removed = [name for name in CLASS_DEPENDENT if getattr(self, name) != WITHOUT_CLASSES.get(name)]
        if self.training_history is not None:
            self.pretraining_history = [*(self.pretraining_history or []), *self.training_history]
        for name in removed:
            setattr(self, name, WITHOUT_CLASSES.get(name))
        if removed:
            logger.warning(
                "The classes have changed. Removed from the configuration, because they belong to the old classes: %s",
                ", ".join(name + notes.get(name, "") for name in removed),
            )

    def validate_classes(self):
        """`strict` calls it on construction. Checks that ids are 0, 1, 2, … and that `label2id` agrees with `id2label`."""
        if len(self.id2label) < 2:
            raise ValueError(
                f"a network needs at least two classes, got num_labels={len(self.id2label)}: the background is a class too, with "
                "id 0 in the label maps (the loss is a softmax over classes)"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must have the ids 0 to {len(self.id2label) - 1}, got {sorted(self.id2label)}")
        if self.semantic_loss_ignore_index in self.id2label:
            logger.warning_once(
                "semantic_loss_ignore_index is %d, so the class %r is never trained: if it should be, give an index that is no "
                "class, such as -100, here and as the image processor's ignore_index",
                self.semantic_loss_ignore_index,
                self.id2label[self.semantic_loss_ignore_index],
            )
        for name, class_id in (self.label2id or {}).items():
            if self.id2label.get(class_id) != name:
                raise ValueError(
                    f"label2id says that {name!r} is class {class_id}, but id2label says that class {class_id} is "
                    f"{self.id2label.get(class_id)!r}: give only id2label, or the same classes in both"
                )

    def validate_loss(self):
        """`strict` calls it on construction. Checks the settings of the loss."""
        weights = self.semantic_loss_class_weights
        if weights is not None:
            if len(weights) != self.num_labels:
                raise ValueError(
                    f"semantic_loss_class_weights must have one value for each class, got {len(weights)} for "
                    f"{self.num_labels} classes"
                )
            if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
                raise ValueError(
                    f"semantic_loss_class_weights must be finite, none negative, and at least one above 0, got {weights}"
                )
        threshold = self.semantic_loss_ohem_threshold
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"semantic_loss_ohem_threshold is a probability above 0 and at most 1, got {threshold}")
        if self.semantic_loss_ohem_min_kept < 0:
            raise ValueError(f"semantic_loss_ohem_min_kept must be 0 or more pixels, got {self.semantic_loss_ohem_min_kept}")
        self._check_loss_terms()

    def _check_loss_terms(self):
        settings = {
            "terms": self.semantic_loss_terms,
            "label_smoothing": self.semantic_loss_label_smoothing,
            "boundary_relaxation": self.semantic_loss_boundary_relaxation,
            "ohem_threshold": self.semantic_loss_ohem_threshold,
            "focal_gamma": self.semantic_loss_focal_gamma,
            "tversky_alpha": self.semantic_loss_tversky_alpha,
            "tversky_beta": self.semantic_loss_tversky_beta,
        }
        fault = loss_fault(**settings)
        if fault is not None:
            name, text = fault
            raise ValueError(f"semantic_loss_{name} {text}")
        if self.auxiliary_loss_weight is not None and not is_weight(self.auxiliary_loss_weight):
            raise ValueError(f"auxiliary_loss_weight must be positive and finite, or not given; got {self.auxiliary_loss_weight}")

    def validate_temperature(self):
        """`strict` calls it on construction. Checks that the temperature is a positive number."""
        if not (math.isfinite(self.confidence_temperature) and self.confidence_temperature > 0):
            raise ValueError(f"confidence_temperature must be a finite number above 0, got {self.confidence_temperature}")

    def validate_palette(self):
        """`strict` calls it on construction. Checks that there is one colour for each class."""
        if self.palette is None:
            return
        if len(self.palette) != self.num_labels:
            raise ValueError(
                f"palette must have one colour for each class, got {len(self.palette)} for {self.num_labels} classes"
            )
        for colour in self.palette:
            if len(colour) != 3 or not all(0 <= channel <= 255 for channel in colour):
                raise ValueError(f"palette must have colours [red, green, blue], each from 0 to 255, got {colour}")

    def validate_untinted(self):
        """`strict` calls it on construction. Checks that there is a class for each id."""
        unknown = [class_id for class_id in self.untinted or [] if not 0 <= class_id < self.num_labels]
        if unknown:
            raise ValueError(f"untinted must have ids of classes, 0 to {self.num_labels - 1}, got {unknown[0]}")


def loss_fault(
    terms: dict[str, float] | None,
    label_smoothing: float,
    boundary_relaxation: bool,
    ohem_threshold: float | None,
    focal_gamma: float,
    tversky_alpha: float,
    tversky_beta: float,
) -> tuple[str, str] | None:
    """The first setting of the loss that is wrong, and a text about it; None if all are right."""
    given = {CROSS_ENTROPY: 1.0} if terms is None else terms
    for name, weight in given.items():
        if name not in LOSS_TERMS:
            return "terms", f"must be of {', '.join(LOSS_TERMS)}, got {name!r}{did_you_mean(name, LOSS_TERMS)}"
        if not is_weight(weight):
            return "terms", f"must have positive and finite weights, got {weight} for {name}"
    if not given:
        return "terms", "must name one term at least"
    if not 0 <= label_smoothing < 1:
        return "label_smoothing", f"is a share from 0 to less than 1, got {label_smoothing}"
    if not 0 <= focal_gamma < math.inf:
        return "focal_gamma", f"must be 0 or more, got {focal_gamma}"
    for name, value in (("tversky_alpha", tversky_alpha), ("tversky_beta", tversky_beta)):
        if not is_weight(value):
            return name, f"must be positive and finite, got {value}"
    used = {"label_smoothing": label_smoothing, "boundary_relaxation": boundary_relaxation, "ohem_threshold": ohem_threshold}
    for name, value in used.items():
        if value and CROSS_ENTROPY not in given:
            return (
                name,
                f"belongs to {CROSS_ENTROPY}, which is no term of the loss ({', '.join(given)}): add it, or leave this out",
            )
    if boundary_relaxation and ohem_threshold is not None:
        return "boundary_relaxation", "forgives the pixels at borders, which OHEM selects: give one of the two"
    return None


def is_weight(value: float) -> bool:
    return 0 < value < math.inf


def check_names(setting: str, value: Any) -> None:
    """Raises a TypeError for a list of names in place of a mapping."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{setting} must be a mapping, such as id2label=dict(enumerate(names)), got {value!r}")


def classes_of(num_labels: int | None, id2label: dict | None, label2id: dict | None) -> dict[int, str] | None:
    """Name of each class id, from any of the three settings; None if none of them is given.

    Raises:
        TypeError: the names are not in a mapping.
        ValueError: `num_labels` is not the number of the names.
    """
    check_names("id2label", id2label)
    check_names("label2id", label2id)
    if id2label is not None:
        classes = {int(class_id): name for class_id, name in id2label.items()}
    elif label2id is not None:
        classes = {int(class_id): name for name, class_id in label2id.items()}
    elif num_labels is not None:
        classes = {class_id: generic_name(class_id) for class_id in range(num_labels)}
    else:
        return None
    if num_labels not in (None, len(classes)):
        raise ValueError(f"num_labels is {num_labels}, but the names of {len(classes)} classes are given: they must agree")
    return classes


def without_old_classes(saved: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, without settings that belong to other classes than `id2label`.

    Version 0.1.0 left them in the file when a network was fine-tuned on other classes. The network predicts `id2label`.
    """
    saved = dict(saved)
    classes = saved.get("id2label")
    if classes is None:
        return saved
    saved.pop("label2id", None)
    for name in PER_CLASS:
        value = saved.get(name)
        if value is not None and len(value) != len(classes):
            logger.warning("config.json has %s for %d classes, but names of %d: it is not used", name, len(value), len(classes))
            del saved[name]
    return saved


def inverse(id2label: dict[int, str]) -> dict[str, int]:
    return {name: class_id for class_id, name in id2label.items()}


def generic_name(class_id: int) -> str:
    """The name that Transformers gives to a class without one."""
    return f"LABEL_{class_id}"


def is_naming(before: dict[int, str], after: dict[int, str]) -> bool:
    """Whether the classes are the same, and only those without names have got one."""
    return before.keys() == after.keys() and all(name in (generic_name(i), after[i]) for i, name in before.items())


def check_streams(config: SegmentationConfig):
    """Raises a ValueError unless `config` has at least two streams, and counts that are positive and agree with them."""
    channels, num_modules = list(config.stream_channels), list(config.num_modules)
    if len(channels) < 2:
        raise ValueError(f"stream_channels needs at least two streams, got {channels}")
    if len(num_modules) != len(channels) - 1:
        raise ValueError(
            f"num_modules must have one entry fewer than stream_channels, got {num_modules} for {len(channels)} streams"
        )
    if min(*channels, *num_modules, config.num_blocks, config.ocr_channels, config.ocr_key_channels) < 1:
        raise ValueError("stream_channels, num_modules, num_blocks, ocr_channels and ocr_key_channels must be positive")
