"""Images of label maps, drawn with Pillow: colours, overlays, legends, image beside truth beside prediction."""

from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import PreTrainedConfig

from ..data.label_space import LabelSpace, known_label_space
from ..data.palette import default_palette
from ..errors import CheckpointError, RecipeError, did_you_mean, first_few
from ..images import Colour
from .fonts import font_for

MOST_CLASSES = 256  # of a palette PNG

BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
UNTINTED = "background"  # a class with this name shows the image alone, unless other classes are named
SWATCH_EDGE = (90, 90, 90)

# A light blue and a dark red: told apart with any colour vision, and in grey.
JUDGEMENTS = {"right": (158, 202, 225), "wrong": (178, 24, 43)}


def names_and_palette(config: PreTrainedConfig) -> tuple[list[str], list[Colour]]:
    """Name and colour of each class of a model.

    The colours are the config's `palette`; without one, those of the known dataset with these classes; else `default_palette`.

    Raises:
        CheckpointError: a class has no name, there are more than the 256 that a palette PNG holds, or the palette does not fit.
    """
    num_labels = config.num_labels
    if num_labels > MOST_CLASSES:
        raise CheckpointError(f"the checkpoint has {num_labels} classes; a palette PNG holds at most {MOST_CLASSES}")
    nameless = [index for index in range(num_labels) if index not in config.id2label]
    if nameless:
        raise CheckpointError(
            f"the checkpoint's `id2label` has no name for class {nameless[0]} of {num_labels}: give config.json the names "
            f"of the classes 0 to {num_labels - 1}"
        )
    names = [config.id2label[index] for index in range(num_labels)]
    palette = getattr(config, "palette", None) or _known_palette(names) or default_palette(num_labels)
    if len(palette) != num_labels:
        raise CheckpointError(f"the checkpoint's `palette` has {len(palette)} colours for {num_labels} classes")
    return names, [tuple(colour) for colour in palette]


def _known_palette(names: list[str]) -> list[Colour] | None:
    space = known_label_space(names)
    return list(space.colours) if space and any(map(any, space.colours)) else None


def colours_of(label_space: LabelSpace) -> list[Colour]:
    """The colours of a label space's classes, or others where it has only black."""
    colours = label_space.colours if any(map(any, label_space.colours)) else default_palette(label_space.num_classes)
    return [tuple(colour) for colour in colours]


def untinted_classes(names: Sequence[str], chosen: Collection[str] | None = None) -> frozenset[int]:
    """The ids of the classes that overlays leave untinted: their pixels show the image alone.

    Args:
        names: the name of each class id.
        chosen: the names of the untinted classes; none if it is empty. None: the class that is called background.

    Raises:
        RecipeError: a chosen name is no class.
    """
    if chosen is None:
        return frozenset(index for index, name in enumerate(names) if name.strip(" _").lower() == UNTINTED)
    for name in chosen:
        if name not in names:
            raise RecipeError(f"untinted: there is no class {name!r}{did_you_mean(name, names)}; the classes: {first_few(names)}")
    return frozenset(index for index, name in enumerate(names) if name in chosen)


def untinted_of(config: PreTrainedConfig) -> frozenset[int]:
    """The ids of a model's classes that overlays leave untinted: those of its label table, else the background."""
    untinted = getattr(config, "untinted", None)
    if untinted is not None:
        return frozenset(untinted)
    return untinted_classes([config.id2label[index] for index in range(config.num_labels)])


def overlay_legend(
    names: Sequence[str], colours: Sequence[Colour], untinted: Collection[int] = ()
) -> tuple[list[str], list[Colour]]:
    """Names and colours for the legend of an overlay: an untinted class has an empty swatch, and its name says so."""
    shown = [f"{name} (untinted)" if index in untinted else name for index, name in enumerate(names)]
    return shown, [BACKGROUND if index in untinted else tuple(colour) for index, colour in enumerate(colours)]


def class_shares(label_map: np.ndarray) -> dict[int, float]:
    """Share of the pixels of each class id that occurs, largest first."""
    ids, counts = np.unique(label_map, return_counts=True)
    return {int(ids[place]): counts[place] / label_map.size for place in np.argsort(-counts, kind="stable")}


def ignored_colour(colours: Sequence[Colour]) -> tuple[int, int, int]:
    """The colour of ignored pixels: black, or white if a class is black (VOC's background)."""
    return (255, 255, 255) if (0, 0, 0) in {tuple(colour) for colour in colours} else (0, 0, 0)


def colourise(label_map: np.ndarray, colours: Sequence[Colour], ignore_index: int = 255) -> Image.Image:
    """Draw a label map in colours.

    Args:
        label_map: (height, width) of whole numbers.
        colours: (red, green, blue), 0 to 255, of each class id.
        ignore_index: the id of pixels without a class; see [`ignored_colour`].

    Returns:
        An RGB image of the same size.

    Raises:
        ValueError: an id has no colour; the message names it.
    """
    label_map = np.asarray(label_map)
    unknown = (label_map != ignore_index) & ((label_map < 0) | (label_map >= len(colours)))
    if unknown.any():
        raise ValueError(f"class id {label_map[unknown][0]} has no colour: there are {len(colours)} colours")
    table = np.zeros((max(len(colours), ignore_index + 1), 3), dtype=np.uint8)
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8).reshape(-1, 3)
    table[ignore_index] = ignored_colour(colours)
    return Image.fromarray(table[label_map])


def palette_png(label_map: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """A label map as a palette image (mode P): the pixel's index is the train id, the palette gives its colour.

    Args:
        label_map: (height, width) of ids from 0 to 255; ids beyond the palette, such as 255 for ignored, are black.
        palette: (red, green, blue), 0 to 255, of each class id; at most 256.

    Raises:
        ValueError: an id or the palette does not fit into eight bits.
    """
    label_map = np.asarray(label_map)
    if len(palette) > MOST_CLASSES or (label_map.size and not 0 <= label_map.min() <= label_map.max() <= 255):
        raise ValueError(
            f"a palette PNG holds ids 0 to 255; this label map has {label_map.min()} to {label_map.max()} and "
            f"{len(palette)} colours"
        )
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette(np.asarray(palette, dtype=np.uint8).tobytes() + bytes(3 * (256 - len(palette))))
    return image


def confidence_png(confidence: np.ndarray, bits: int = 8) -> Image.Image:
    """A map of confidences, (height, width) from 0 to 1, as a grey image of 8 or 16 bits, where 255 or 65535 is 1."""
    largest, dtype = {8: (255, np.uint8), 16: (65535, np.uint16)}[bits]
    return Image.fromarray(np.rint(largest * np.clip(confidence, 0, 1).astype(np.float64)).astype(dtype))


def overlay(
    image: Image.Image,
    label_map: np.ndarray,
    colours: Sequence[Colour],
    opacity: float = 0.5,
    ignore_index: int = 255,
    untinted: Collection[int] = (),
) -> Image.Image:
    """An image with its label map's colours laid over it; ignored pixels and untinted classes show the image alone.

    Args:
        image: the image; any mode.
        label_map: (height, width), the image's size.
        colours: (red, green, blue), 0 to 255, of each class id.
        opacity: from 0, only the image, to 1, only the colours.
        ignore_index: the id of pixels without a class.
        untinted: class ids without colour; see `untinted_classes`.

    Raises:
        ValueError: sizes differ, an id has no colour, or the opacity is not between 0 and 1.
    """
    label_map = np.asarray(label_map)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity}")
    if label_map.shape != (image.height, image.width):
        raise ValueError(f"the label map is {label_map.shape[0]}×{label_map.shape[1]}, its image {image.height}×{image.width}")
    image = image.convert("RGB")
    blended = Image.blend(image, colourise(label_map, colours, ignore_index), opacity)
    blended.paste(image, mask=Image.fromarray(np.isin(label_map, [ignore_index, *untinted])))
    return blended


def right_and_wrong(
    truth: np.ndarray, prediction: np.ndarray, ignored: Colour = (0, 0, 0), ignore_index: int = 255
) -> Image.Image:
    """The right, wrong and ignored pixels of a prediction, the first two in the colours of `JUDGEMENTS`.

    Args:
        truth: (height, width) of class ids, or `ignore_index`.
        prediction: (height, width) of class ids.
        ignored: colour of pixels that are not judged.
        ignore_index: the id of pixels that do not count.

    Raises:
        ValueError: the sizes differ.
    """
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in size")
    judgement = np.where(truth == ignore_index, 2, truth != prediction)
    return colourise(judgement, [*JUDGEMENTS.values(), ignored])


def legend(
    names: Sequence[str],
    colours: Sequence[Colour],
    present: Sequence[int] | None = None,
    width: int = 480,
    font_size: int = 16,
) -> Image.Image:
    """Colour swatches with the classes' names, in as many columns as fit.

    Args:
        names: the name of each class id, or the text to print for it.
        colours: (red, green, blue), 0 to 255, of each class id.
        present: the class ids to show, in this order; None shows all.
        width: of the image in pixels; a name that is wider makes it wider.
        font_size: in pixels.
    """
    present = list(range(len(names)) if present is None else present)
    font = font_for("".join(names[index] for index in present), font_size)
    line, gap = round(font_size * 1.6), font_size // 2
    column = max((font.getlength(names[index]) for index in present), default=0) + line + 2 * gap
    num_columns = min(max(1, int((width - gap) // column)), max(1, len(present)))
    num_rows = -(-len(present) // num_columns)
    canvas = Image.new("RGB", (max(width, int(num_columns * column) + gap), num_rows * line + 2 * gap), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for place, index in enumerate(present):
        left, top = gap + (place // num_rows) * column, gap + (place % num_rows) * line
        swatch = (left, top + line // 8, left + line - gap // 2, top + line - line // 8)
        draw.rectangle(swatch, fill=tuple(colours[index]), outline=SWATCH_EDGE)
        draw.text((left + line + gap // 2, top + line / 2), names[index], fill=INK, font=font, anchor="lm")
    return canvas


def with_legend(image: Image.Image, names: Sequence[str], colours: Sequence[Colour], present: Sequence[int]) -> Image.Image:
    """An image with a legend of the classes `present` below it."""
    return stack_vertically([image, legend(names, colours, present, width=image.width, font_size=text_size(image.width))])


def triptych(
    rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
    ignore_index: int = 255,
    column_width: int | None = None,
) -> Image.Image:
    """Image | truth | prediction, one row an image, with column titles and a legend of the classes that occur.

    Args:
        rows: the image, its true and its predicted label map, (height, width), all of one size. Rows may differ in
            size: each is scaled to one width.
        names: the name of each class id.
        colours: (red, green, blue), 0 to 255, of each class id.
        ignore_index: the id of pixels without a class.
        column_width: in pixels; the first image's width if it is not given.
    """
    if not rows:
        raise ValueError("a triptych needs at least one row of image, truth and prediction")
    panels = [
        (image.convert("RGB"), colourise(truth, colours, ignore_index), colourise(prediction, colours, ignore_index))
        for image, truth, prediction in rows
    ]
    label_maps = [label_map for _, *label_maps in rows for label_map in label_maps]
    return _panel_rows(("image", "truth", "prediction"), panels, label_maps, names, colours, ignore_index, column_width)


def confidence_triptych(
    rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
    ignore_index: int = 255,
    column_width: int | None = None,
) -> Image.Image:
    """As `triptych`, with image | label map | confidence; the confidences, (height, width) from 0 to 1, are grey."""
    panels = [
        (image.convert("RGB"), colourise(label_map, colours, ignore_index), confidence_png(confidence).convert("RGB"))
        for image, label_map, confidence in rows
    ]
    label_maps = [label_map for _, label_map, _ in rows]
    return _panel_rows(("image", "label map", "confidence"), panels, label_maps, names, colours, ignore_index, column_width)


def _panel_rows(titles, rows, label_maps, names, colours, ignore_index, column_width):
    """Rows of RGB panels below their titles, above a legend of the classes in `label_maps`."""
    column_width = column_width or rows[0][0].width
    font_size, gap = text_size(column_width), max(2, column_width // 120)
    titles = _titles(titles, column_width, gap, font_size)
    strips = []
    for panels in rows:
        height = max(1, round(panels[0].height * column_width / panels[0].width))
        strip = Image.new("RGB", (titles.width, height + gap), BACKGROUND)
        for place, panel in enumerate(panels):
            resample = Image.Resampling.NEAREST if place else Image.Resampling.BILINEAR  # no mixed colours in maps
            strip.paste(panel.resize((column_width, height), resample), (place * (column_width + gap), 0))
        strips.append(strip)
    ids = np.unique(np.concatenate([np.unique(label_map) for label_map in label_maps]))
    present = [int(index) for index in ids if index != ignore_index]
    names, colours = list(names), list(colours)
    if ignore_index in ids:
        present.append(len(names))
        names.append("ignored")
        colours.append(ignored_colour(colours))
    return stack_vertically([titles, *strips, legend(names, colours, present, titles.width, font_size)])


def label_map_strip(
    label_maps: Sequence[np.ndarray], names: Sequence[str], colours: Sequence[Colour], height: int
) -> Image.Image:
    """Label maps in colours side by side, above a legend of the classes that occur; the images are not shown.

    Args:
        label_maps: (height, width) of class ids; each is scaled to one height.
        names: the name of each class id.
        colours: (red, green, blue), 0 to 255, of each class id.
        height: of the strip in pixels, without the legend.
    """
    gap = max(2, height // 60)
    panels = [colourise(label_map, colours) for label_map in label_maps]
    widths = [max(1, round(panel.width * height / panel.height)) for panel in panels]
    strip = Image.new("RGB", (sum(widths) + gap * (len(panels) - 1), height), BACKGROUND)
    left = 0
    for panel, width in zip(panels, widths, strict=True):
        strip.paste(panel.resize((width, height), Image.Resampling.NEAREST), (left, 0))
        left += width + gap
    present = sorted({int(index) for label_map in label_maps for index in np.unique(label_map)})
    return stack_vertically([strip, legend(names, colours, present, strip.width, font_size=max(12, height // 15))])


def stack_vertically(images: Sequence[Image.Image]) -> Image.Image:
    """Images one below another on white, flush left."""
    canvas = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), BACKGROUND)
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


def text_size(width: int) -> int:
    """Height in pixels of text that is readable when an image of this width in pixels is viewed as a whole."""
    return max(12, round(width / 28))


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text without as much of its beginning as makes it fit; ends of names differ more often than their beginnings."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"…{text.lstrip('…')[1:]}"
    return text


def _titles(titles: Sequence[str], column_width: int, gap: int, font_size: int) -> Image.Image:
    width = len(titles) * (column_width + gap) - gap
    canvas = Image.new("RGB", (width, round(font_size * 1.7)), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), font_for("".join(titles), font_size)
    for place, title in enumerate(titles):
        middle = place * (column_width + gap) + column_width / 2
        draw.text((middle, canvas.height / 2), title, fill=INK, font=font, anchor="mm")
    return canvas
