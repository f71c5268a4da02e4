"""Cards of the families of networks: what each costs, what has been measured with it so far, and the commands that measure it.

The results are those of `results.json`, which is filled from checkpoints' own records and by nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCardData

from ..models.backbone import TIMM_HRNETS
from ..models.configuration_revhrnet import DEFAULT_BACKBONE
from .model_card import LICENCE_NAMES, METRICS, PAPERS, Record, as_share, dataset_title, duration, table
from .model_table import ModelCosts

MARK = "<!-- Written by scripts/write_model_cards.py: change what it reads, not this file. -->"


@dataclass(frozen=True)
class Family:
    """Networks that share a card.

    Attributes:
        file: the card's name, without `.md`.
        title: what people call it.
        members: (model type, variant) of each network.
        costs: the rows of the table of costs (model_table.py).
        text: what it is, in a sentence or two.
        make: Python that makes one.
        recipes: of run_seg.py, with the datasets that they need; extra arguments may follow a recipe's name.
    """

    file: str
    title: str
    members: tuple[tuple[str, str], ...]
    costs: tuple[str, ...]
    text: str
    make: str
    recipes: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def base(self) -> str:
        """timm's name of the pretrained weights that its networks start from unless told otherwise."""
        model_type, variant = self.members[0]
        return DEFAULT_BACKBONE if model_type == "revhrnet" else TIMM_HRNETS[variant]


CHAINS = (("mapillary_vistas", "cityscapes"), ("mapillary_vistas", "camvid"), ("coco", "pascal_voc"))
CHAIN_FILES = ("mapillary_to_cityscapes", "mapillary_to_camvid", "coco_to_voc")


def _chains(ending: str = "", arguments: str = "") -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((f"{name}{ending}.yaml{arguments}", sets) for name, sets in zip(CHAIN_FILES, CHAINS, strict=True))


def _reverse(variant: str, recipes: tuple[tuple[str, tuple[str, ...]], ...]) -> Family:
    return Family(
        f"revhrnet-{variant}",
        f"RevHRNet-{variant.upper()}",
        (("revhrnet", variant),),
        (f"RevHRNet {variant}, frozen ResNet-50",),
        "A frozen, pretrained backbone gives maps at strides 4, 8, 16 and 32; a reverse HRNet fuses them from its first stage on "
        "and ends in one stream of stride 4, which is classified pixel by pixel.",
        f'RevHRNetConfig.from_variant("{variant}", num_labels=19)',
        recipes,
    )


FAMILIES = (
    _reverse("w18", (("camvid.yaml", ("camvid",)), *_chains(arguments=" --variant w18"))),
    _reverse("w32", _chains(arguments=" --variant w32")),
    _reverse("w48", _chains()),
    Family(
        "revhrnet-5stream",
        "Five streams",
        (("revhrnet", "w24-5stream"), ("hrnetv2", "w24-5stream")),
        ("RevHRNet w24-5stream, frozen ResNet-50", "HRNetV2 w24-5stream"),
        "A fifth stream at stride 2: for RevHRNet the activation of the backbone's stem, for HRNetV2 a stem that ends at stride "
        "2. Logits have stride 2. One module a stage, so that the memory stays comparable.",
        'RevHRNetConfig.from_variant("w24-5stream", num_labels=19)',
        _chains("_hrnet", " --variant w24-5stream --backbone_weights random"),
    ),
    Family(
        "hrnetv2",
        "HRNetV2, the baseline",
        tuple(("hrnetv2", variant) for variant in TIMM_HRNETS),
        tuple(f"HRNetV2 {variant}" for variant in TIMM_HRNETS),
        "The network that RevHRNet is compared with, trained whole: streams of falling resolution are added stage by stage, then "
        "all are upsampled, concatenated and classified.",
        'HRNetV2Config.from_variant("w48", num_labels=19)',
        _chains("_hrnet"),
    ),
)


def results_of(record: Record) -> list[dict[str, Any]]:
    """What a checkpoint's folder says was measured, one entry a split.

    Entries of a checkpoint whose scores or recipe are not recorded do not exist.
    """
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
            "how": result.how,
            "scores": {metric: result.scores[metric] for metric in METRICS},
            "class_iou": dict(zip(result.names, result.scores["per_category_iou"], strict=True)),
        }
        for result in record.results
    ]


def merge_results(known: list[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The known results with the new ones; one of the same network, training, split and settings takes the old one's place."""

    def key(result):
        return tuple(result[name] for name in ("model_type", "variant", "backbone", "trained_on", "dataset", "split", "how"))

    return list({key(result): result for result in (*known, *new)}.values())


def family_card(family: Family, costs: dict[str, ModelCosts], results: list[dict[str, Any]]) -> str:
    """The card's text, metadata first."""
    licence = timm.get_pretrained_cfg(family.base).license
    types = list(dict.fromkeys(model_type for model_type, _ in family.members))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license=licence,
        base_model=timm.get_pretrained_cfg(family.base).hf_hub_id,
        tags=["semantic-segmentation", *types, "timm"],
    )
    own = [result for result in results if (result["model_type"], result["variant"]) in family.members]
    papers = " and ".join(PAPERS[model_type] for model_type in types)
    said = LICENCE_NAMES[licence] + (", not for commercial use" if "-nc" in licence else "")
    parts = [
        f"---\n{data.to_yaml()}\n---",
        MARK,
        f"# {family.title}",
        f"{family.text} From {papers}.",
        _costs([costs[name] for name in family.costs]),
        _measured(own),
        _commands(family),
        f"## Licence\n\nThe code is Apache-2.0. The default weights, `{family.base}`, are {said}, and so is every checkpoint "
        "that is made from them; with others, theirs hold. The data have their publishers' terms.",
    ]
    return "\n\n".join(parts) + "\n"


def _costs(rows: list[ModelCosts]) -> str:
    lines = [
        [
            row.name,
            f"{row.parameters / 1e6:.2f}",
            f"{row.trainable / 1e6:.2f}",
            f"{row.multiply_adds / 1e9:.1f}",
            f"{row.saved_bytes / 2**30:.2f}",
            f"{row.saved_bytes_checkpointed / 2**30:.2f}",
        ]
        for row in rows
    ]
    heads = ["network", "parameters M", "trained M", "multiply-adds G", "GiB", "GiB, checkpointed"]
    return (
        f"## Costs\n\n{table(heads, lines)}\n\n19 classes; multiply-adds for 1024×2048 pixels; GiB kept for the backward pass of "
        "one image of 512×1024 in float32, without and with gradient checkpointing. Measured by "
        "`python scripts/model_table.py`."
    )


def _measured(results: list[dict[str, Any]]) -> str:
    if not results:
        return "## Results\n\nNothing has been measured with it yet."
    rows = []
    for result in results:
        network = result["variant"] + (f" on {result['backbone']}" if result["backbone"] else "")
        made = f"{result['images']} images, {result['epochs']} epochs"
        if result["hardware"]:
            made += f", {result['hardware']}"
        if result["seconds"]:
            made += f", {duration(result['seconds'])}"
        where = f"{dataset_title(result['dataset'])} {result['split']}"
        scores = [as_share(result["scores"][metric]) for metric in METRICS]
        rows.append([network, result["trained_on"], where, *scores, result["how"], made])
    heads = ["network", "trained on", "scored on", *METRICS.values(), "how", "training"]
    classes = [
        f"IoU by class, {result['variant']} on {dataset_title(result['dataset'])} {result['split']}: "
        + ", ".join(f"{name} {as_share(iou)}" for name, iou in result["class_iou"].items())
        + "."
        for result in results
    ]
    return "\n\n".join(["## Results", table(heads, rows), *classes])


def _commands(family: Family) -> str:
    lines = []
    for recipe, sets in family.recipes:
        name = recipe.split(".")[0] + "_" + family.file
        dirs = f"{sets[0].upper()}_DIR" if len(sets) == 1 else " ".join(f"{of}={of.upper()}_DIR" for of in sets)
        last = sets[-1]
        lines += [
            f"python scripts/run_seg.py --recipe scripts/recipes/{recipe} --data_dir {dirs} --output_dir runs/{name}",
            f"python scripts/evaluate_seg.py runs/{name}/best --dataset {last} --data_dir {last.upper()}_DIR --split val",
            f"python scripts/write_model_cards.py runs/{name}/best",
        ]
    config = family.make.split(".")[0]
    model = config.replace("Config", "ForSemanticSegmentation")
    made = f"```python\nfrom revhrnet_hf import {config}, {model}\n\nmodel = {model}.from_pretrained_backbone({family.make})\n```"
    measured = "What measures it, and brings the result into this card:\n\n```bash\n" + "\n".join(lines) + "\n```"
    return f"## How to make and measure it\n\n{made}\n\n{measured}"


def needed_costs() -> list[str]:
    """Names of the networks in model_table.py that the cards show."""
    return [name for family in FAMILIES for name in family.costs]


def write_family_cards(folder: Path, costs: dict[str, ModelCosts], results: list[dict[str, Any]]) -> list[Path]:
    """Write a card a family into `folder`; the files."""
    paths = []
    for family in FAMILIES:
        path = folder / f"{family.file}.md"
        path.write_text(family_card(family, costs, results), encoding="utf-8")
        paths.append(path)
    return paths
