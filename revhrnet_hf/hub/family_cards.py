"""Cards of the families of networks: their costs, the results so far, and the commands that measure them.

The results come from `results.json`, which is filled from checkpoints' own records only; the text is family.md.jinja.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCardData

from ..errors import CheckpointError
from ..io import write_text
from ..models.backbone import TIMM_HRNETS
from ..models.configuration_revhrnet import DEFAULT_BACKBONE
from .card import LICENCE_NAMES, PAPERS, Markdown, code_span, render
from .model_card import METRICS
from .model_table import ModelCosts
from .record import Record, dataset_title, number_of_images, place_of

MARK = "<!-- Written by `revhrnet cards`: change what it reads, not this file. -->"


@dataclass(frozen=True)
class Family:
    """Networks that share a card.

    Attributes:
        file: the card's name, without `.md`.
        title: what people call it.
        members: (model type, variant) of each network.
        costs: names of the rows of the table of costs (model_table.py).
        text: a description in a sentence or two.
        shown: the variant that the card's Python code makes.
        recipes: for `revhrnet train`, with the datasets that they need; extra arguments may follow a recipe's name.
    """

    file: str
    title: str
    members: tuple[tuple[str, str], ...]
    costs: tuple[str, ...]
    text: str
    shown: str
    recipes: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def base(self) -> str:
        """timm's name of the pretrained weights that its networks start from by default."""
        return DEFAULT_BACKBONE if self.config == "RevHRNetConfig" else TIMM_HRNETS[self.shown]

    @property
    def config(self) -> str:
        """Name of the class of the first member's configuration."""
        model_type, _ = self.members[0]
        return "RevHRNetConfig" if model_type == "revhrnet" else "HRNetV2Config"


CHAINS = (("mapillary_vistas", "cityscapes"), ("mapillary_vistas", "camvid"), ("coco", "pascal_voc"))
CHAIN_FILES = ("mapillary_to_cityscapes", "mapillary_to_camvid", "coco_to_voc")


def _chains(ending: str = "", arguments: str = "") -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((f"{name}{ending}{arguments}", sets) for name, sets in zip(CHAIN_FILES, CHAINS, strict=True))


def _reverse(variant: str, recipes: tuple[tuple[str, tuple[str, ...]], ...]) -> Family:
    return Family(
        f"revhrnet-{variant}",
        f"RevHRNet-{variant.upper()}",
        (("revhrnet", variant),),
        (f"RevHRNet {variant}, frozen ResNet-50",),
        "A frozen, pretrained backbone gives maps at strides 4, 8, 16 and 32; a reverse HRNet fuses them from its first stage on "
        "and ends in one stream of stride 4, which is classified pixel by pixel.",
        variant,
        recipes,
    )


FAMILIES = (
    _reverse("w18", (("camvid", ("camvid",)), *_chains(arguments=" --variant w18"))),
    _reverse("w32", _chains(arguments=" --variant w32")),
    _reverse("w48", _chains()),
    Family(
        "revhrnet-5stream",
        "Five streams",
        (("revhrnet", "w24-5stream"), ("hrnetv2", "w24-5stream")),
        ("RevHRNet w24-5stream, frozen ResNet-50", "HRNetV2 w24-5stream"),
        "A fifth stream at stride 2: for RevHRNet the activation of the backbone's stem, for HRNetV2 a stem that ends at stride "
        "2. Logits have stride 2. One module a stage, so that the memory stays comparable.",
        "w24-5stream",
        (
            *_chains(arguments=" --variant w24-5stream"),
            *_chains("_hrnet", " --variant w24-5stream --backbone_weights random"),
        ),
    ),
    Family(
        "hrnetv2",
        "HRNetV2, the baseline",
        tuple(("hrnetv2", variant) for variant in TIMM_HRNETS),
        tuple(f"HRNetV2 {variant}" for variant in TIMM_HRNETS),
        "The network that RevHRNet is compared with, trained whole: streams of falling resolution are added stage by stage, then "
        "all are upsampled, concatenated and classified.",
        "w48",
        _chains("_hrnet"),
    ),
)


def results_of(record: Record) -> list[dict[str, Any]]:
    """The results that a checkpoint's folder records, one entry for each; none where the recipe is not recorded."""
    if not record.history or "variant" not in record.recipe:
        return []
    stage = record.history[-1]
    chain = " → ".join(dataset_title(of["dataset"]) for of in record.history)
    return [
        {
            "model_type": record.config.model_type,
            "variant": record.recipe["variant"],
            "backbone": getattr(getattr(record.config, "backbone_config", None), "backbone", None),
            "trained_on": chain,
            "images": stage["images"],
            "epochs": stage["epochs"],
            "hardware": stage.get("hardware"),
            "seconds": sum(of["seconds"] for of in record.history) if all("seconds" in of for of in record.history) else None,
            "revision": record.versions.get("revision"),
            "dataset": result.dataset,
            "split": result.split,
            "loader": result.loader,
            "how": result.how,
            "scores": {metric: result.scores[metric] for metric in METRICS},
            "class_iou": dict(zip(result.names, result.scores["per_category_iou"], strict=True)),
        }
        for result in record.results
    ]


def merge_results(known: list[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The known results with the new ones; one of the same network, training, split and settings takes the old one's place."""

    def key(result):
        names = ("model_type", "variant", "backbone", "trained_on", "epochs", "dataset", "split", "how")
        return number_of_images(result), *(result[name] for name in names)

    return list({key(result): result for result in (*known, *new)}.values())


def family_card(family: Family, costs: dict[str, ModelCosts], results: list[dict[str, Any]]) -> str:
    """The card's text, metadata first."""
    weights = timm.get_pretrained_cfg(family.base)
    types = list(dict.fromkeys(model_type for model_type, _ in family.members))
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=weights.license,
        base_model=weights.hf_hub_id,
        tags=["semantic-segmentation", *types, "timm"],
    )
    data = {
        "mark": Markdown(MARK),
        "title": family.title,
        "text": family.text,
        "papers": [Markdown(PAPERS[model_type]) for model_type in types],
        "costs": [asdict(costs[name]) for name in family.costs],
        "results": [_shown(result) for result in results if (result["model_type"], result["variant"]) in family.members],
        "config": Markdown(family.config),
        "model": Markdown(family.config.replace("Config", "ForSemanticSegmentation")),
        "make": Markdown(f'{family.config}.from_variant("{family.shown}", num_labels=19)'),
        "commands": [_commands(family, *recipe) for recipe in family.recipes],
        "weights": code_span(family.base),
        "licence": LICENCE_NAMES[weights.license],
        "non_commercial": "-nc" in weights.license,
    }
    return render("family.md.jinja", metadata, data)


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """A recorded result as the card's table has it."""
    network = result["variant"] + (f" on {result['backbone']}" if result["backbone"] else "")
    where = place_of(result["dataset"], result["split"], result.get("loader"))  # 0.1.0 recorded no loader
    classes = [{"name": name, "iou": iou} for name, iou in result["class_iou"].items()]
    return {**result, "network": network, "where": where, "images": number_of_images(result), "classes": classes}


def _commands(family: Family, recipe: str, datasets: tuple[str, ...]) -> dict[str, Markdown]:
    """What to fill into the commands that train by a recipe and score the result."""
    folders = {name: f"{name.upper()}_DIR" for name in datasets}
    named = " ".join(f"{name}={folder}" for name, folder in folders.items())
    values = {
        "recipe": recipe,
        "data_dir": named if len(folders) > 1 else folders[datasets[0]],
        "output_dir": f"runs/{recipe.split()[0]}_{family.file}",
        "dataset": datasets[-1],
        "dataset_dir": folders[datasets[-1]],
    }
    return {name: Markdown(value) for name, value in values.items()}


def needed_costs() -> list[str]:
    """Names of the networks of model_table.py that the cards show."""
    return [name for family in FAMILIES for name in family.costs]


def write_family_cards(folder: Path, costs: dict[str, ModelCosts], results: list[dict[str, Any]]) -> list[Path]:
    """Write the card of each family into `folder`; returns the files."""
    files = card_files(folder)
    for family, file in zip(FAMILIES, files, strict=True):
        write_text(file, family_card(family, costs, results))
    return files


def card_files(folder: Path) -> list[Path]:
    """The file of each family's card; a CheckpointError if one is there that was not written here."""
    files = [folder / f"{family.file}.md" for family in FAMILIES]
    for file in files:
        if file.exists() and MARK.encode() not in file.read_bytes():
            raise CheckpointError(f"{file} was not written by `revhrnet cards`: move it away, or give another --output_dir")
    return files
