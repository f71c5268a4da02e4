"""The card of a checkpoint: a README.md with the Hub's metadata.

Its data are the folder's record (record.py), its text is the template checkpoint.md.jinja. What is not recorded is left out.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoModelForSemanticSegmentation

from ..data.loading import DATASETS
from ..errors import HubError
from ..io import write_text
from ..models.backbone import LICENCE_LINKS
from ..viz.figures import names_and_palette
from .card import LICENCE_NAMES, PAPERS, Markdown, code_block, code_span, render
from .record import EXAMPLE_FILE, ONNX_FILES, OWN_DATA, UNKNOWN_LICENCE, Record, Result, dataset_title, read_record

CARD_FILE = "README.md"
MARK = "<!-- Written by revhrnet_hf from the files beside it. Remove this line to keep a card that you have edited. -->"
METRICS = {"mean_iou": "mIoU", "overall_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy"}
HUB_METRICS = {"mean_iou": "mean_iou", "overall_accuracy": "accuracy", "mean_accuracy": "mean_accuracy"}
WEAK_IOU = 0.5  # a class below is named among the limits


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
    if not path.exists() or MARK.encode() in path.read_bytes():  # somebody's own card may have another encoding
        write_text(path, make_card(read_record(folder), name))  # two evaluations may end at once
    return path


def refresh_model_card(folder: str | Path) -> None:
    """Write a card anew where the program wrote one: the folder has got new scores."""
    if (Path(folder) / CARD_FILE).exists():
        write_model_card(folder)


def make_card(record: Record, name: str | None = None) -> str:
    """The card's text: metadata between `---`, then sections."""
    return render("checkpoint.md.jinja", metadata(record, name), card_data(record, name))


def card_data(record: Record, name: str | None) -> dict[str, Any]:
    """What the template names, without the Hub's metadata."""
    config = record.config
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    paper = PAPERS.get(config.model_type)
    versions = {name: version for name, version in record.versions.items() if name != "revision"}
    revision = record.versions.get("revision")
    return {
        "mark": Markdown(MARK),
        "title": record.title,
        "classes": names_and_palette(config)[0],
        "paper": Markdown(paper) if paper else None,
        "backbone": _backbone(record),
        "frozen": getattr(config, "freeze_backbone", False),
        "adapted": any(stage["recipe"].get("trainable_backbone") == "lora" for stage in record.history),
        "parameters": model.num_parameters(),
        "trained": model.num_parameters(only_trainable=True),
        "example": EXAMPLE_FILE if record.has_example else None,
        "results": [_overview(result) for result in record.results],
        # The overview holds all of them; class by class only the first on each split is shown.
        "by_class": [_by_class(first, bool(others)) for first, *others in _by_place(record.results).values()],
        "checkpoint": Markdown(name) if name else None,
        "onnx": [Markdown(f"{code_span(name)} ({ONNX_FILES[name]})") for name in record.onnx_files],
        "stages": [_stage(stage, number < len(record.history)) for number, stage in enumerate(record.history, start=1)],
        "versions": [f"{package} {version}" for package, version in versions.items()],
        "revision": code_span(revision) if revision else None,
        "limits": _limits(record),
        "licence": _licence(record),
        "datasets": [dataset_title(name) for name in record.datasets],
    }


def _backbone(record: Record) -> Markdown | None:
    """The backbone whose pretrained weights are in the checkpoint."""
    if record.pretrained_backbone:
        return code_span(record.pretrained_backbone)
    kind = record.unnamed_backbone
    return Markdown(f"a backbone of type {code_span(kind)}, whose name is not recorded") if kind else None


def _overview(result: Result) -> dict[str, Any]:
    scores = {metric: result.scores[metric] for metric in METRICS}
    return {"where": result.where, "images": result.images, "how": result.how, **scores}


def _by_class(result: Result, is_one_of_several: bool) -> dict[str, Any]:
    scores, labelled = result.scores, result.scores["labelled_pixels"]
    columns = (scores[f"per_category_{name}"] for name in ("iou", "accuracy", "pixels"))
    rows = [
        {"name": name, "iou": iou, "accuracy": accuracy, "share": pixels / labelled if labelled else None}
        for name, iou, accuracy, pixels in zip(result.names, *columns, strict=True)
    ]
    return {"where": result.where, "how": result.how if is_one_of_several else None, "rows": rows}


def _stage(stage: dict[str, Any], is_followed: bool) -> dict[str, Any]:
    """One stage of training, with the settings in which its recipe differs from the defaults."""
    names = stage["dataset"].split(" + ")
    published = _published(stage)
    return {
        "title": " and ".join(map(dataset_title, names)),
        "label_space": stage["label_space"],
        "images": stage["images"],
        "splits": [{"title": f"{dataset_title(one['dataset'])} {one['split']}", **one} for one in stage.get("splits", [])],
        "published": published if published != stage["images"] else None,
        "epochs": stage["epochs"],
        "steps": stage["steps"],
        "hardware": stage.get("hardware"),
        "seconds": stage.get("seconds"),
        # The last stage's score is the checkpoint's, which stands among the results.
        "mean_iou": stage["scores"]["mean_iou"] if is_followed and "scores" in stage else None,
        "eval_split": stage.get("eval_split"),
        "recipe": code_block(yaml.safe_dump({"dataset": names[0], **stage["recipe"]}, sort_keys=False), "yaml"),
    }


def _published(stage: dict[str, Any]) -> int | None:
    """How many images the publisher of the stage's dataset says there are, where the stage has one dataset."""
    counts = getattr(DATASETS.get(stage["dataset"]), "PUBLISHED_COUNTS", {})
    return counts.get(stage["recipe"].get("train_split", "train"))


def _limits(record: Record) -> dict[str, Any] | None:
    """Weak and absent classes in the first result."""
    if not record.results:
        return None
    result = record.results[0]
    ious = zip(result.names, result.scores["per_category_iou"], strict=True)
    weak = sorted((iou, name) for name, iou in ious if iou is not None and iou < WEAK_IOU)
    return {
        "places": list(_by_place(record.results)),
        "where": result.where,
        "weak_iou": WEAK_IOU,
        "weak": [{"name": name, "iou": iou} for iou, name in weak],
        "absent": result.scores["absent_classes"],
    }


def _licence(record: Record) -> dict[str, Any]:
    identifier = record.licence
    given = record.history[0]["recipe"].get("backbone_weights") if record.history else None
    is_file = given is not None and not given.startswith("pip:")
    return {
        "name": LICENCE_NAMES.get(identifier, identifier) if identifier != UNKNOWN_LICENCE else None,
        "non_commercial": "-nc" in identifier,
        "file": code_span(Path(given).name) if is_file else None,
        "is_of_a_name": record.pretrained_backbone is not None,
        "from_random": record.began_at_random,
    }


def metadata(record: Record, name: str | None = None) -> ModelCardData:
    """The Hub's fields: library, pipeline, tags, datasets, licence, base model, and the scores as `model-index`."""
    base = record.pretrained_backbone
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
        **hub_licence(record.licence),
        tags=["semantic-segmentation", record.config.model_type, "timm"],
        # Of a name of somebody's own the Hub may have another dataset.
        datasets=[name for name in record.datasets if name in DATASETS and name not in OWN_DATA] or None,
        base_model=base if not base or "/" in base else timm.get_pretrained_cfg(base).hf_hub_id,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=(name or record.title).rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def hub_licence(identifier: str) -> dict[str, str]:
    """The Hub's fields for a licence; one that the Hub does not list is "other", with its name and link."""
    if identifier not in LICENCE_LINKS:
        return {"license": identifier}
    return {"license": "other", "license_name": identifier, "license_link": LICENCE_LINKS[identifier]}


def _by_place(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results on each dataset's split, taken with one setting after the other."""
    places: dict[str, list[Result]] = {}
    for result in results:
        places.setdefault(result.where, []).append(result)
    return places


def missing_from_card(folder: str | Path) -> list[str]:
    """What a card lacks that people and the Hub look for: fields of its metadata, and the section that says how to use it.

    Raises:
        HubError: the card cannot be read.
    """
    path = Path(folder) / CARD_FILE
    if not path.exists():
        return [CARD_FILE]
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise HubError(
            f"{CARD_FILE} cannot be read as a card ({' '.join(str(error).split())}): correct it (UTF-8, its metadata in YAML "
            "between two lines of ---), or remove it to have it written"
        ) from error
    lacking = [f"{name} in the metadata" for name in ("library_name", "pipeline_tag", "license") if not card.data.get(name)]
    if list(Path(folder).glob("scores*.json")) and not card.data.get("eval_results"):
        lacking.append("the scores (model-index) in the metadata")
    if "```python" not in card.text:
        lacking.append("code that says how to use it")
    return lacking
