"""The card of a checkpoint: a README.md with the Hub's metadata, written from what lies in the folder.

`config.json` (with `training_history`), `recipe.yaml`, `versions.json`, the scores of training (`scores.json`) and of
evaluate_seg.py (`scores_*.json`), `example.png`: what is not there is not in the card.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig

from ..data.loading import DATASETS
from ..errors import CheckpointError
from ..escape import code, fenced, markdown
from ..io import write_text
from ..models.backbone import LICENCE_LINKS, TIMM_HRNETS, backbone_licence
from ..viz.figures import names_and_palette

CARD_FILE, EXAMPLE_FILE = "README.md", "example.png"
MARK = "<!-- Written by revhrnet_hf from the files beside it. Remove this line to keep a card that you have edited. -->"

TITLES = {"revhrnet": "RevHRNet", "hrnetv2": "HRNetV2"}
PAPERS = {
    "revhrnet": "[Early Fusion of Features for Semantic Segmentation](https://arxiv.org/abs/2402.06091)",
    "hrnetv2": "[Deep High-Resolution Representation Learning for Visual Recognition](https://arxiv.org/abs/1908.07919)",
}
CODE_LICENCE = "apache-2.0"
LICENCE_NAMES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
LICENCE_NAMES |= {name: f"{name}, [its own terms]({link})" for name, link in LICENCE_LINKS.items()}  # that the Hub does not list
OWN_DATA = {"folder", "hub"}  # names of datasets that say nothing to others
METRICS = {"mean_iou": "mIoU", "overall_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
HUB_METRICS = {"mean_iou": "mean_iou", "overall_accuracy": "accuracy", "mean_accuracy": "mean_accuracy"}
WEAK_IOU = 0.5  # a class below is named among the limits


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
        is_own = self.loader in OWN_DATA and self.dataset not in OWN_DATA
        return f"{f'{self.dataset} (own data)' if is_own else dataset_title(self.dataset)} {self.split}"


@dataclass
class Record:
    """What a checkpoint's folder says of it."""

    config: PreTrainedConfig
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    has_example: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was trained on, stage by stage."""
        stages = getattr(self.config, "training_history", None) or []
        return [{**stage, "images": _images(stage)} for stage in stages]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, those of the last stage first."""
        names = [name for stage in reversed(self.history) for name in stage["dataset"].split(" + ")]
        return list(dict.fromkeys(names))

    @property
    def title(self) -> str:
        model_type = self.config.model_type
        title = TITLES.get(model_type, model_type)
        if "variant" in self.recipe:
            title += f"-{self.recipe['variant'].upper()}"
        return f"{title} on {dataset_title(self.datasets[0])}" if self.datasets else title


def write_model_card(folder: str | Path, name: str | None = None) -> Path:
    """Write the card of the checkpoint in `folder`; one that somebody else wrote, or has taken over, is left as it is.

    Args:
        folder: of the checkpoint.
        name: on the Hub, such as `someone/revhrnet-w18-camvid`; the card's code then loads it from there.

    Returns:
        The card's file.

    Raises:
        CheckpointError: the folder's files cannot be read; the message names the file.
    """
    path = Path(folder) / CARD_FILE
    if not path.exists() or MARK in path.read_text(encoding="utf-8"):
        write_text(path, make_card(read_record(folder), name))  # two evaluations may end at once
    return path


def refresh_model_card(folder: str | Path) -> None:
    """Write a card anew where the program wrote one: the folder has got new scores."""
    if (Path(folder) / CARD_FILE).exists():
        write_model_card(folder)


def read_record(folder: str | Path) -> Record:
    """Raises a CheckpointError that names the file that cannot be read."""
    folder = Path(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)  # which asks nobody on the terminal
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{folder} holds no configuration of a model that can be read: {error}") from error
    record = Record(config, has_example=(folder / EXAMPLE_FILE).exists())
    for name, read, attribute in (("recipe.yaml", yaml.safe_load, "recipe"), ("versions.json", json.loads, "versions")):
        if (folder / name).exists():
            setattr(record, attribute, _read(folder / name, read))
    evaluated = [_evaluated(_read(path, json.loads), path) for path in sorted(folder.glob("scores_*.json"))]
    trained = _trained(record, folder)
    # The same measured anew; with windows or scales it is another measurement.
    covered = {(result.dataset, result.split) for result in evaluated if result.is_plain}
    record.results = [result for result in trained if (result.dataset, result.split) not in covered] + evaluated
    return record


def _read(path: Path, read) -> Any:
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read for the model card: {error}") from error


def _trained(record: Record, folder: Path) -> list[Result]:
    """The scores that the training has taken, if it has."""
    path = folder / "scores.json"
    if not (path.exists() and record.history and record.recipe):
        return []
    stage, precision = record.history[-1], record.recipe["precision"]
    names, _ = names_and_palette(record.config)
    how = f"during training in {'float32' if precision == 'no' else precision}, whole image"
    dataset = record.recipe["dataset"]
    return [Result(dataset, stage["label_space"], record.recipe["eval_split"], _read(path, json.loads), names, how)]


def _images(record: dict[str, Any]) -> int:
    """The number of images in a record, which 0.1.0 wrote under `pictures`."""
    return record["images"] if "images" in record else record["pictures"]


def _evaluated(record: dict[str, Any], path: Path) -> Result:
    """The scores in a file of evaluate_seg.py."""
    try:
        settings = record["settings"]
        how = f"{settings['dtype']}, {settings['inference']}"
        if record["scores"].get("absent_as_zero"):
            how += ", absent classes as 0"
        is_plain = settings.get("window") is None and settings.get("scales") in (None, [1.0]) and not settings.get("flip")
        where = (record["dataset"], record["label_space"], record["split"])
        measured = (record["scores"], record["class_names"], how, _images(record), record.get("loader"), is_plain)
        return Result(*where, *measured)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no record of evaluate_seg.py ({error!r}): remove it, or score again") from error


def make_card(record: Record, name: str | None = None) -> str:
    """The card's text: metadata between `---`, then sections."""
    sections = [
        MARK,
        f"# {markdown(record.title)}",
        _introduction(record),
        _example(record),
        _results(record),
        _usage(name),
        _making(record),
        _limits(record),
        _licence(record),
    ]
    body = "\n\n".join(section for section in sections if section)
    return f"---\n{metadata(record, name).to_yaml()}\n---\n\n{body}\n"


def metadata(record: Record, name: str | None = None) -> ModelCardData:
    """The Hub's fields: library, pipeline, tags, datasets, licence, base model, and the scores as `model-index`."""
    base = pretrained_backbone(record)
    measured = _by_place(record.results)
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=result.dataset,
            dataset_name=result.where,
            dataset_config=result.label_space,
            dataset_split=result.split,
            metric_type=HUB_METRICS[metric],
            metric_name=title if len(measured[result.where]) == 1 else f"{title} ({result.how})",
            metric_value=round(result.scores[metric], 4),
        )
        for result in record.results
        for metric, title in METRICS.items()
        if result.scores[metric] is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        **hub_licence(licence(record)),
        tags=["semantic-segmentation", record.config.model_type, "timm"],
        # Of a name of somebody's own the Hub may have another dataset.
        datasets=[name for name in record.datasets if name in DATASETS and name not in OWN_DATA] or None,
        base_model=base if not base or "/" in base else timm.get_pretrained_cfg(base).hf_hub_id,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=(name or record.title).rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _by_place(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results on each dataset's split, taken with one setting after the other."""
    places: dict[str, list[Result]] = {}
    for result in results:
        places.setdefault(result.where, []).append(result)
    return places


def dataset_title(name: str) -> str:
    return "own data" if name in OWN_DATA else getattr(DATASETS.get(name), "TITLE", name)


def pretrained_backbone(record: Record) -> str | None:
    """timm's name for the pretrained weights in a checkpoint, or the Hub's, which has a slash; None where there are none."""
    config = record.config
    if record.history and record.history[0]["recipe"].get("backbone_weights") == "random":
        return None
    config = getattr(config, "backbone_config", config)
    if config.model_type == "hrnetv2":
        return TIMM_HRNETS.get(record.recipe.get("variant"))
    known = getattr(config, "backbone", None)
    if known is None and config.model_type != "timm_backbone":
        return config.name_or_path or None  # of a checkpoint of Transformers
    return known if known and timm.is_model_pretrained(known) else None


def licence(record: Record) -> str:
    """The Hub's identifier: that of the pretrained weights; where all was trained from random weights, that of the code."""
    base = pretrained_backbone(record)
    recorded = getattr(record.config, "backbone_license", None)
    if recorded:
        return recorded
    if base and "/" in base:
        return backbone_licence(record.config.backbone_config) or "unknown"
    if base:
        return timm.get_pretrained_cfg(base).license or "unknown"
    return CODE_LICENCE if record.history else "unknown"


def hub_licence(identifier: str) -> dict[str, str]:
    """The Hub's fields for a licence; one that the Hub does not list is "other", with its name and link."""
    if identifier not in LICENCE_LINKS:
        return {"license": identifier}
    return {"license": "other", "license_name": identifier, "license_link": LICENCE_LINKS[identifier]}


def _introduction(record: Record) -> str:
    config, base = record.config, pretrained_backbone(record)
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    total, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    text = f"Semantic segmentation into {config.num_labels} classes"
    if config.model_type in PAPERS:
        text += f" with the network of {PAPERS[config.model_type]}"
    if base:
        frozen = getattr(config, "freeze_backbone", False)
        text += f", on {'the frozen, ' if frozen else ''}pretrained weights of {code(base)}"
    names, _ = names_and_palette(config)
    size = f"{total / 1e6:.2f} million parameters, {trainable / 1e6:.2f} million of them trained"
    return f"{text}. {size}.\n\nClasses: {', '.join(map(markdown, names))}."


def _example(record: Record) -> str:
    """The label maps that training has drawn; why there is no photograph is said with them."""
    if not record.has_example:
        return ""
    return (
        f"![Predicted label maps and their legend]({EXAMPLE_FILE})\n\n*Predictions on images of the split that training "
        "was scored on. The images themselves are not shown: not every publisher of a dataset allows passing them on.*"
    )


def _results(record: Record) -> str:
    if not record.results:
        return ""
    rows = [
        [
            markdown(result.where) + (f" ({result.images} images)" if result.images else ""),
            *(as_share(result.scores[metric]) for metric in METRICS),
            markdown(result.how),
        ]
        for result in record.results
    ]
    overview = table(["scored on", *METRICS.values(), "how"], rows)
    # All of them in the overview; class by class the first on each split.
    by_class = [_per_class(first, bool(others)) for first, *others in _by_place(record.results).values()]
    return "\n\n".join(["## Results", overview, "Label maps at native size.", *by_class])


def _per_class(result: Result, is_one_of_several: bool) -> str:
    scores = result.scores
    labelled = scores["labelled_pixels"]
    rows = [
        [markdown(name), as_share(iou), as_share(accuracy), as_share(pixels / labelled if labelled else None)]
        for name, iou, accuracy, pixels in zip(
            result.names,
            scores["per_category_iou"],
            scores["per_category_accuracy"],
            scores["per_category_pixels"],
            strict=True,
        )
    ]
    title = f"{markdown(result.where)}{f' ({markdown(result.how)})' if is_one_of_several else ''}, class by class:"
    return f"{title}\n\n{table(['class', 'IoU', 'accuracy', 'share of the pixels'], rows)}"


def _usage(name: str | None) -> str:
    where = "" if name else "  # this folder; a path or a name on the Hub will do"
    return f"""## How to use it

`pip install transformers timm torch torchvision pillow` is all it needs: the network's code comes with the checkpoint.

```python
import numpy as np
from transformers import pipeline

checkpoint = "{name or "."}"{where}
segmenter = pipeline("image-segmentation", model=checkpoint, trust_remote_code=True)
for segment in segmenter("street.jpg"):
    mask = np.array(segment["mask"]) > 0  # at the image's size
    print(segment["label"], f"{{mask.mean():.1%}}")
```"""


def _making(record: Record) -> str:
    parts = ["## How it was made"] if record.history or record.versions else []
    stages = [_stage(stage, number, len(record.history)) for number, stage in enumerate(record.history, start=1)]
    parts += [stage for stage in stages if stage]
    if record.versions:
        made_with = dict(record.versions)
        revision = made_with.pop("revision", None)
        parts.append("Made with " + ", ".join(markdown(f"{name} {version}") for name, version in made_with.items()) + ".")
        if revision:
            parts.append(f"Revision of revhrnet_hf: {code(revision)}.")
    return "\n\n".join(parts)


def _stage(stage: dict[str, Any], number: int, stages: int) -> str:
    """One stage of training in a sentence or two, and what its recipe says."""
    title = markdown(" and ".join(dataset_title(name) for name in stage["dataset"].split(" + ")))
    text = f"{f'Stage {number}: ' if stages > 1 else ''}{title} ({markdown(stage['label_space'])}), {stage['images']} images"
    published = _published(stage)
    if published not in (None, stage["images"]):
        text += f" (the dataset was published with {published} to train on)"
    text += f", {stage['epochs']} epoch{'s' * (stage['epochs'] != 1)}, {stage['steps']} steps"
    if "hardware" in stage:
        text += f", on {markdown(stage['hardware'])}"
    if "seconds" in stage:
        text += f", {duration(stage['seconds'])} with evaluation"
    if "scores" in stage and number < stages:
        text += f"; mIoU {as_share(stage['scores']['mean_iou'])} on {markdown(stage['eval_split'])}"
    settings = yaml.safe_dump({"dataset": stage["dataset"].split(" + ")[0], **stage["recipe"]}, sort_keys=False)
    return f"{text}. Its recipe, where it differs from the defaults of `scripts/run_seg.py`:\n\n{fenced(settings, 'yaml')}"


def _published(stage: dict[str, Any]) -> int | None:
    """How many images the publisher of the stage's dataset says there are, where the stage has one dataset."""
    counts = getattr(DATASETS.get(stage["dataset"]), "PUBLISHED_COUNTS", {})
    return counts.get(stage["recipe"].get("train_split", "train"))


def _limits(record: Record) -> str:
    if not record.results:
        return ""
    result = record.results[0]
    ious = {name: iou for name, iou in zip(result.names, result.scores["per_category_iou"], strict=True) if iou is not None}
    weak = sorted((iou, name) for name, iou in ious.items() if iou < WEAK_IOU)
    where = markdown(result.where)
    lines = [
        f"- Measured on {' and '.join(map(markdown, _by_place(record.results)))} only: other cameras, "
        "places and weather were not tried.",
        "- It knows the classes above and nothing else: whatever is in the image gets one of them.",
    ]
    if weak:
        named = ", ".join(f"{markdown(name)} ({as_share(iou)})" for iou, name in weak)
        lines.append(f"- Below IoU {WEAK_IOU} on {where}: {named}.")
    if result.scores["absent_classes"]:
        absent = ", ".join(map(markdown, result.scores["absent_classes"]))
        lines.append(f"- Occur nowhere in {where}, so nothing is known of them: {absent}.")
    return "\n".join(["## Limits", "", *lines])


def _licence(record: Record) -> str:
    base, identifier = pretrained_backbone(record), licence(record)
    if base:
        text = f"The checkpoint contains the weights of {code(base)}, or was trained from them, and these are "
        text += LICENCE_NAMES.get(identifier, identifier)
        text += ": not for commercial use." if "-nc" in identifier else "."
        given = record.history[0]["recipe"].get("backbone_weights") if record.history else None
        if given and not given.startswith("pip:"):
            text += f" (They were read from the file {code(Path(given).name)}, which was taken to hold just these.)"
    elif identifier == CODE_LICENCE:
        text = "Trained from random weights; the code is Apache-2.0."
    else:
        text = "What weights it was made from is not recorded, so its licence is unknown."
    if record.datasets:
        text += (
            f" The data ({', '.join(markdown(dataset_title(name)) for name in record.datasets)}) have their publishers' terms."
        )
    return f"## Licence\n\n{text}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column flush left, the others as they are."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def missing_from_card(folder: str | Path) -> list[str]:
    """What a card lacks that people and the Hub look for: fields of its metadata, and the section that says how to use it."""
    path = Path(folder) / CARD_FILE
    if not path.exists():
        return [CARD_FILE]
    card = ModelCard.load(path)
    lacking = [f"{name} in the metadata" for name in ("library_name", "pipeline_tag", "license") if not card.data.get(name)]
    if list(Path(folder).glob("scores*.json")) and not card.data.get("eval_results"):
        lacking.append("the scores (model-index) in the metadata")
    if "```python" not in card.text:
        lacking.append("code that says how to use it")
    return lacking


def as_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
