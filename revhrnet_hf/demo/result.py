"""One checkpoint's answer to one image as a piece of HTML: overlay, values under the pointer, legend, label map to download.

It holds everything that the page needs, so that opacity and pointer send no request and no file is left on the server.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..images import Colour
from ..viz.figures import class_shares, palette_png

MOST_EDGE = 1280  # pixels of the longer side as shown; the label map to download has the image's own size


def result_html(
    title: str,
    image: Image.Image,
    label_map: np.ndarray,
    confidence: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Colour],
    file_name: str,
    note: str = "",
) -> str:
    """The answer as HTML, which page.css and page.js make interactive.

    Args:
        title: names the checkpoint.
        image: RGB.
        label_map: (height, width) of class ids, the image's size.
        confidence: (height, width) from 0 to 1, the share of the best class.
        names, palette: name and colour of each class id.
        file_name: of the image; the name of the label map is made from it.
        note: text that follows the image's size.
    """
    shown = _shown_size(image.size)
    ids = Image.fromarray(label_map.astype(np.uint8)).resize(shown, Image.Resampling.NEAREST)
    percent = Image.fromarray(np.rint(100 * confidence).astype(np.uint8)).resize(shown, Image.Resampling.NEAREST)
    image_url = _data_url(image.resize(shown, Image.Resampling.LANCZOS), "JPEG", quality=90)
    colours_url = _data_url(palette_png(np.asarray(ids), palette), "PNG")
    # Read under the pointer: red is the class id, green the confidence in percent.
    values_url = _data_url(Image.merge("RGB", (ids, percent, percent)), "PNG")
    download = f"{Path(file_name).stem}_labels.png"
    names_list = "".join(f"<li>{html.escape(name)}</li>" for name in names)
    return (
        f'<section class="seg-result"><h3>{html.escape(title)}</h3>'
        f'<div class="seg-stack" style="--seg-ratio:{image.width / image.height:.4f}">'
        f'<img class="seg-image" src="{image_url}" alt="the image">'
        f'<img class="seg-colours" src="{colours_url}" alt="its classes in colours">'
        f'<img class="seg-values" src="{values_url}" alt="" hidden>'
        '<i class="seg-dot" hidden></i><output class="seg-tip" hidden></output></div>'
        f'<ol class="seg-names" hidden>{names_list}</ol>'
        f"{_legend(class_shares(label_map), names, palette)}"
        f'<p class="seg-foot">{image.width} × {image.height} pixels, mean confidence {100 * confidence.mean():.0f} %'
        f"{html.escape(note)}</p>"
        f'<p class="seg-foot"><a download="{html.escape(download)}" href="{_data_url(palette_png(label_map, palette), "PNG")}">'
        "Download the label map</a> (PNG, its pixel values are the class ids)</p></section>"
    )


def error_html(message: str) -> str:
    """What is shown where a result would be."""
    return f'<section class="seg-error" role="alert">{html.escape(message)}</section>'


def _legend(shares: dict[int, float], names: Sequence[str], palette: Sequence[Colour]) -> str:
    rows = "".join(
        f'<tr><td><i style="background:rgb({",".join(map(str, palette[index]))})"></i></td>'
        f'<th scope="row">{html.escape(names[index])}</th>'
        f'<td class="seg-bar"><b style="width:{100 * share:.2f}%"></b></td><td>{100 * share:.1f} %</td></tr>'
        for index, share in shares.items()
    )
    return f'<table class="seg-legend"><caption>Share of the pixels</caption><tbody>{rows}</tbody></table>'


def _shown_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1, MOST_EDGE / max(size))
    return tuple(max(1, round(edge * factor)) for edge in size)


def _data_url(image: Image.Image, form: str, **options) -> str:
    data = io.BytesIO()
    image.save(data, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
