"""Cards from Jinja templates: what goes into a template is escaped here, and only here."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..escape import code, fenced, markdown
from ..models.backbone import LICENCE_LINKS

TEMPLATES = Path(__file__).parent
PAPERS = {
    "revhrnet": "[Early Fusion of Features for Semantic Segmentation](https://arxiv.org/abs/2402.06091)",
    "hrnetv2": "[Deep High-Resolution Representation Learning for Visual Recognition](https://arxiv.org/abs/1908.07919)",
}
LICENCE_NAMES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
LICENCE_NAMES |= {name: f"{name} ({link})" for name, link in LICENCE_LINKS.items()}  # that the Hub does not list


class Markdown(str):
    """Text that is Markdown already, and goes into a card as it is. Any other text is escaped."""


def code_span(text: object) -> Markdown:
    return Markdown(code(text))


def code_block(text: str, language: str) -> Markdown:
    return Markdown(fenced(text, language))


def render(template: str, metadata: ModelCardData, data: Mapping[str, Any]) -> str:
    """A card's text.

    Args:
        template: name of a file beside this one. Besides `data`, it has `share` and `duration` to write numbers.
        metadata: the Hub's fields, which the template calls `card_data`.
        data: what the template names: text, numbers, lists and mappings of them. Text that is not [`Markdown`] is escaped, so
            that no name from elsewhere becomes markup.
    """
    values = {name: _escaped(value) for name, value in data.items()}
    path = TEMPLATES / template
    card = ModelCard.from_template(metadata, template_path=str(path), share=as_share, duration=duration, **values)
    return f"{str(card).rstrip()}\n"


def _escaped(value: Any) -> Any:
    if isinstance(value, Markdown) or value is None or isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return Markdown(markdown(value))
    if isinstance(value, Mapping):
        return {name: _escaped(entry) for name, entry in value.items()}
    if isinstance(value, Iterable):
        return [_escaped(entry) for entry in value]
    raise TypeError(f"a card cannot hold {type(value).__name__}")


def as_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
