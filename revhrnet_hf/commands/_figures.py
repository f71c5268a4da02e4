"""The drawings of `revhrnet figure`. The command line is elsewhere, because it does not wait for PyTorch. Needs matplotlib."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data import label_space_of, load_segmentation_dataset
from ..data.label_space import LABEL_SPACES, find_label_space
from ..data.label_table import is_label_table
from ..errors import CheckpointError, DataError, RecipeError, did_you_mean
from ..evaluation import (
    InferenceSettings,
    check_same_classes,
    class_sources,
    load_checkpoint,
    load_for_inference,
    predict_label_maps,
    segment,
)
from ..evaluation.network_input import network_inputs
from ..evaluation.results import confusion_caption
from ..images import find_images, orient_to_fit, read_image
from ..viz import figures, plots
from ..viz.feature_maps import component_images, feature_maps, mean_images

CAPTIONS = {
    "pca": "Feature maps: the first three principal components of a map's channels as red, green and blue. Every map is "
    "projected by the same rule: components of its own model and stride, over all images here; a component's sign such that "
    "it is larger where the image is brighter; its 1st to 99th percentile as 0 to full colour.",
    "mean": "Feature maps: the mean over a map's channels, from dark (low) to light (high). Every map is scaled by the same "
    "rule: 1st to 99th percentile of its own model and stride, over all images here.",
}


def draw_comparison(args):
    images = [read_image(path) for path in find_images(args.images)]
    models = [load_checkpoint(checkpoint, trust_remote_code=args.trust_remote_code) for checkpoint in args.checkpoints]
    names, palette = shared_classes([model.config for model, _ in models], args.checkpoints)
    titles = args.names or short_names(args.checkpoints)
    predictions = [predict_label_maps(*model, images) for model in models]
    maps, shares = zip(*(drawn_maps(*model, images, args.map) for model in models), strict=True)
    strides = sorted({stride for of_model in maps for stride in of_model})
    blocks = []
    for place, image in enumerate(images):
        rows = []
        for title, label_maps, of_model in zip(titles, predictions, maps, strict=True):
            panels = [of_model[stride][place] if stride in of_model else None for stride in strides]
            rows.append((title, [figures.colourise(label_maps[place], palette, len(palette)), *panels]))
        blocks.append(plots.Block(image, rows))
    legend = legend_of([label_map for of_model in predictions for label_map in of_model], names, palette)
    said = " ".join(f"{title}: {share}.".removeprefix(": ") for title, share in zip(titles, shares, strict=True) if share)
    caption = CAPTIONS[args.map] + (f" Share of the variance in the three, by stride: {said}" if said else "")
    column_titles = ["prediction", *(f"stride {stride}" for stride in strides)]
    if args.columns is None:
        return plots.panel_figure(blocks, column_titles, legend, caption)
    tiles = [
        [("image", block.image), *(pair for pair in zip(column_titles, block.rows[0][1], strict=True) if pair[1] is not None)]
        for block in blocks
    ]
    return plots.tiled_figure(tiles, args.columns, legend, caption)


def shared_classes(configs, checkpoints) -> tuple[list[str], list]:
    """Names and colours of both models' classes, or of one model's; the names of one of two may be placeholders."""
    classes = [figures.names_and_palette(config) for config in configs]
    if len(classes) == 1:
        return classes[0]
    named, other = (1, 0) if classes[0][0][0] == "LABEL_0" else (0, 1)
    names, palette = classes[named]
    check_same_classes(configs[other], names, checkpoints[named])
    return names, palette


def drawn_maps(model, image_processor, images, how: str) -> tuple[dict[int, list[np.ndarray]], str]:
    """A model's maps as images, by stride and in the order of `images`, and the share of variance that they show, as text."""
    of_images = []
    for image in images:
        [whole] = network_inputs(image_processor, image, InferenceSettings())
        of_images.append(feature_maps(model, whole))
    by_stride = {stride: [maps[stride] for maps in of_images] for stride in of_images[0]}
    if how == "mean":
        return {stride: mean_images(maps) for stride, maps in by_stride.items()}, ""
    drawn = {stride: component_images(maps, images) for stride, maps in by_stride.items()}
    shares = ", ".join(f"{100 * share:.0f} %" for _, share in drawn.values())
    return {stride: maps for stride, (maps, _) in drawn.items()}, shares


def draw_overlay(args):
    if not 0 <= args.opacity <= 1:
        raise RecipeError(f"--opacity {args.opacity} is not between 0 and 1")
    images = [read_image(path) for path in find_images(args.images)]
    model, image_processor = load_for_inference(args.checkpoint, trust_remote_code=args.trust_remote_code)
    names, palette = figures.names_and_palette(model.config)
    untinted = figures.untinted_of(model.config)
    label_maps = predict_label_maps(model, image_processor, images)
    overlays = [
        figures.overlay(image, label_map, palette, args.opacity, len(palette), untinted)
        for image, label_map in zip(images, label_maps, strict=True)
    ]
    blocks = [plots.Block(image, [("", [seen])]) for image, seen in zip(images, overlays, strict=True)]
    return plots.panel_figure(blocks, ["prediction"], legend_of(label_maps, *figures.overlay_legend(names, palette, untinted)))


def draw_errors(args):
    dataset = load_segmentation_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        label_space=args.label_space,
        image_column=args.image_column,
        label_column=args.label_column,
        loader=args.loader,
    )
    space = label_space_of(dataset)
    dataset = dataset.select(chosen_images(dataset["image_id"], args.image_ids, args.count))
    model, image_processor = load_for_inference(args.checkpoint, trust_remote_code=args.trust_remote_code)
    sources = class_sources(model.config, space, args.dataset)
    blocks, maps, counts = [], [], np.zeros(2)
    for row in dataset:
        truth, image = np.array(row["label_map"]), orient_to_fit(row["image"], row["label_map"].size)
        prediction = segment(
            model, image_processor, image, target_size=truth.shape, sources=sources, name=row["image_id"]
        ).label_map
        panels = [figures.colourise(x, space.colours, space.ignore_index) for x in (truth, prediction)]
        judged = figures.right_and_wrong(truth, prediction, figures.ignored_colour(space.colours), space.ignore_index)
        blocks.append(plots.Block(image, [("", [*panels, judged])]))
        maps += [truth, prediction]
        counts += (truth == prediction).sum(), (truth != space.ignore_index).sum()
    legend = legend_of(maps, space.names, space.colours, space.ignore_index) + list(figures.JUDGEMENTS.items())
    caption = f"{args.dataset} {args.split}: {100 * counts[0] / max(1, counts[1]):.1f} % of the labelled pixels shown are right."
    return plots.panel_figure(blocks, ["truth", "prediction", "right and wrong"], legend, caption)


def chosen_images(image_ids: Sequence[str], wanted: Sequence[str] | None, count: int) -> list[int]:
    if wanted is None:
        if count < 1:
            raise RecipeError(f"--count {count}: give 1 or more")
        return sorted(set(np.linspace(0, len(image_ids) - 1, count).round().astype(int).tolist()))
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in wanted if image_id not in places]
    if unknown:
        raise DataError(f"--image_ids: there is no image {unknown[0]!r} in the split; the first is {image_ids[0]!r}")
    return [places[image_id] for image_id in wanted]


def draw_confusion(args):
    try:
        record = json.loads(args.scores.read_text(encoding="utf-8"))
        matrix, names = np.array(record["confusion_matrix"]), record["class_names"]
        caption = confusion_caption(record)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{args.scores} is no record of `revhrnet evaluate` with a confusion matrix ({error!r}): give the JSON that it writes"
        ) from error
    return plots.confusion_figure(matrix, names, caption)


def draw_legend(args):
    if args.classes in LABEL_SPACES or is_label_table(args.classes):
        space = find_label_space(args.classes)
        names, palette = space.names, space.colours
    else:
        names, palette = figures.names_and_palette(_config_of(args.classes, args.trust_remote_code))
    return plots.legend_figure(list(zip(names, palette, strict=True)))


def _config_of(checkpoint: str, trust_remote_code: bool):
    """A checkpoint's config. If it cannot be loaded, and its name is no path, the error names the label spaces too."""
    try:
        return load_checkpoint(checkpoint, trust_remote_code=trust_remote_code)[0].config
    except CheckpointError as error:
        if len(Path(checkpoint).parts) > 1 or Path(checkpoint).exists():
            raise
        raise DataError(
            f"{checkpoint!r} is no label space{did_you_mean(checkpoint, LABEL_SPACES)}; these are "
            f"{', '.join(sorted(LABEL_SPACES))}. A label table (.yaml), a checkpoint's folder or its name on the Hub is possible "
            f"too, but {error}"
        ) from error


def legend_of(label_maps, names, palette, ignore_index: int | None = None) -> list[tuple]:
    """Name and colour of each class that occurs in the maps, and of ignored pixels if there are any."""
    ids = sorted(set().union(*(np.unique(label_map).tolist() for label_map in label_maps)))
    found = [(names[index], palette[index]) for index in ids if index != ignore_index]
    return found + ([("ignored", figures.ignored_colour(palette))] if ignore_index in ids else [])


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Short names of checkpoints: their folders, or their runs for `best` and `last`; with the parent if these are the same."""
    parts = [Path(name).resolve().parts if Path(name).is_dir() else Path(name).parts for name in checkpoints]
    short = [of[-2] if of[-1] in ("best", "last") and len(of) > 1 else of[-1] for of in parts]
    return short if len(set(short)) > 1 else ["/".join(of[-2:]) for of in parts]


DRAWINGS = {
    "compare": draw_comparison,
    "maps": draw_comparison,
    "overlay": draw_overlay,
    "errors": draw_errors,
    "confusion": draw_confusion,
    "legend": draw_legend,
}
