"""One checkpoint's answer to one image as a piece of HTML: overlay, values under the pointer, legend, files to download.

It holds everything that the page needs, so that opacity, legend and pointer send no request and no file is left on the server.
"""

import base64
import html
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..images import Colour
from ..viz.figures import class_shares, palette_png

MOST_EDGE = 1280  # pixels of the longer side as shown; the label map to download has the image's own size


@dataclass(frozen=True)
class Answer:
    """A checkpoint's answer to an image.

    Attributes:
        title: names the checkpoint.
        image: RGB.
        label_map: (height, width) of class ids, the image's size.
        confidence: (height, width) from 0 to 1, the share of the best class.
        names, palette: name and colour of each class id.
        untinted: ids of the classes that are off until the visitor turns them on.
        file_name: of the image; the names of the files to download are made from it.
        note: text that follows the image's size.
    """

    title: str
    image: Image.Image
    label_map: np.ndarray
    confidence: np.ndarray
    names: Sequence[str]
    palette: Sequence[Colour]
    untinted: Collection[int]
    file_name: str
    note: str = ""

    @property
    def shares(self) -> dict[str, float]:
        """Share of the pixels by name of a class in lower case; classes of one name are added up."""
        shares: dict[str, float] = {}
        for index, share in class_shares(self.label_map).items():
            name = self.names[index].casefold()
            shares[name] = shares.get(name, 0) + share
        return shares


def results_html(answers: Sequence[Answer]) -> list[str]:
    """The answers as HTML, which page.css and page.js make interactive. All legends have their classes in one order."""
    order = class_order(answer.shares for answer in answers)
    return [_result_html(answer, order) for answer in answers]


def class_order(shares: Iterable[dict[str, float]]) -> list[str]:
    """Names of the classes that occur, those of the largest share, added up over the answers, first: `Road` is `road`."""
    total: dict[str, float] = {}
    for answer in shares:
        for name, share in answer.items():
            total[name] = total.get(name, 0) + share
    return sorted(total, key=lambda name: -total[name])


def _result_html(answer: Answer, order: Sequence[str]) -> str:
    image, label_map, names, palette = answer.image, answer.label_map, answer.names, answer.palette
    shown = _shown_size(image.size)
    ids = Image.fromarray(label_map.astype(np.uint8)).resize(shown, Image.Resampling.NEAREST)
    percent = Image.fromarray(np.rint(100 * answer.confidence).astype(np.uint8)).resize(shown, Image.Resampling.NEAREST)
    image_url = _data_url(image.resize(shown, Image.Resampling.LANCZOS), "JPEG", quality=90)
    opaque = bytes(0 if index in answer.untinted else 255 for index in range(len(names)))
    colours_url = _data_url(palette_png(np.asarray(ids), palette), "PNG", transparency=opaque)
    # Read under the pointer: red is the class id, green the confidence in percent.
    values_url = _data_url(Image.merge("RGB", (ids, percent, percent)), "PNG")
    labels_url = _data_url(palette_png(label_map, palette), "PNG")
    stem = html.escape(Path(answer.file_name).stem)
    names_list = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return (
        f'<section class="seg-result"><h3>{html.escape(answer.title)}</h3>'
        f'<div class="seg-stack" style="--seg-ratio:{image.width / image.height:.4f}">'
        f'<img class="seg-image" src="{image_url}" alt="the image">'
        f'<img class="seg-colours" src="{colours_url}" alt="its classes in colours">'
        f'<img class="seg-values" src="{values_url}" alt="" hidden>'
        '<i class="seg-dot" hidden></i><output class="seg-tip" hidden></output></div>'
        '<label class="seg-opacity">Opacity of the classes <input type="range" min="0" max="1" step="0.01" value="0.5"></label>'
        f'<ol class="seg-names" hidden>{names_list}</ol>'
        f"{_legend(answer, order)}"
        f'<p class="seg-foot">{image.width} × {image.height} pixels, mean confidence {100 * answer.confidence.mean():.0f} %'
        f"{html.escape(answer.note)}</p>"
        f'<p class="seg-foot">Download <a class="seg-overlay" download="{stem}_overlay.png" href="#">the overlay</a> '
        f'as it is shown, or <a class="seg-labels" download="{stem}_labels.png" href="{labels_url}">'
        "the label map</a>, whose pixel values are the class ids.</p></section>"
    )


def error_html(message: str) -> str:
    """What is shown where a result would be."""
    return f'<section class="seg-error" role="alert">{html.escape(message)}</section>'


def _legend(answer: Answer, order: Sequence[str]) -> str:
    """The classes of `order` that the checkpoint knows, with a box to turn each on and off; 0 % where a class does not occur."""
    shares, names = class_shares(answer.label_map), list(answer.names)
    ids = [index for name in order for index, own in enumerate(names) if own.casefold() == name]
    rows = "".join(_legend_row(index, shares.get(index, 0), answer) for index in ids)
    switches = '<button type="button" data-show="all">all</button> · <button type="button" data-show="none">none</button>'
    caption = f"<caption>Share of the pixels <span>show {switches}</span></caption>"
    return f'<table class="seg-legend">{caption}<tbody>{rows}</tbody></table>'


def _legend_row(index: int, share: float, answer: Answer) -> str:
    colour, name = ",".join(map(str, answer.palette[index])), html.escape(answer.names[index])
    checked = "" if index in answer.untinted else " checked"
    return (
        f'<tr><th scope="row"><label><input type="checkbox" data-id="{index}" data-colour="{colour}"{checked}>'
        f'<i style="background:rgb({colour})"></i><span>{name}</span></label></th>'
        f'<td class="seg-bar"><b style="width:{100 * share:.2f}%"></b></td><td>{100 * share:.1f} %</td></tr>'
    )


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1, MOST_EDGE / max(size))
    return tuple(max(1, round(edge * factor)) for edge in size)


def _data_url(image: Image.Image, form: str, **options) -> str:
    data = io.BytesIO()
    image.save(data, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
