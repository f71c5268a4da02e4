"""Segment images with a trained checkpoint.

    revhrnet predict CHECKPOINT IMAGES… --output_dir predictions

For each image NAME.jpg two files are written: NAME_labels.png, a palette PNG of the image's size whose pixel
values are the class ids, and NAME_overlay.png, the image with the classes' colours laid over it and a legend. With --confidence
there is NAME_confidence.png too, a grey PNG whose values are the probability of each pixel's class: 255 (or, with 16 bits, 65535)
is 100 %. It is computed at the checkpoint's temperature (`revhrnet evaluate --calibration --save_temperature`).
CHECKPOINT may be any model that Transformers loads with AutoModelForSemanticSegmentation.
Files in folders that are no images are skipped. If an image cannot be read, a warning names it, the others are segmented, and
the exit status is 1.
"""

import argparse
import logging
from pathlib import Path

from ..cli import ArgumentParser, add_device_argument, add_inference_arguments, add_trust_argument, choose_device, run
from ..errors import DataError, RecipeError

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, or folders of them")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("predictions"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    parser.add_argument(
        "--confidence",
        type=int,
        nargs="?",
        const=8,
        choices=(8, 16),
        metavar="BITS",
        help="also write a map of the confidence, as a grey PNG of 8 (without a number) or 16 bits",
    )
    parser.add_argument(
        "--opacity",
        type=share,
        default=0.5,
        help="opacity of the colours in the overlay, from 0 (image only) to 1 (colours only) (default: %(default)s)",
    )
    parser.add_argument(
        "--max_megapixels",
        type=megapixels,
        help="refuse images with more, because a small damaged file could fill the memory (default: 179)",
    )
    add_inference_arguments(parser)
    add_trust_argument(parser)
    add_device_argument(parser)
    return parser


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def megapixels(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return value


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    # After parsing, so that --help answers at once.
    from ..evaluation import inference_settings, load_checkpoint, segment
    from ..images import allow_megapixels, find_images, read_image, save_image
    from ..viz.figures import class_shares, confidence_png, names_and_palette, overlay, palette_png, with_legend

    device, settings = choose_device(args.device), inference_settings(args)
    if args.max_megapixels is not None:
        allow_megapixels(args.max_megapixels)
    outputs = output_files(find_images(args.images), args.output_dir, args.overwrite, args.confidence is not None)
    model, image_processor = load_checkpoint(args.checkpoint, trust_remote_code=args.trust_remote_code)
    names, palette = names_and_palette(model.config)
    model.to(device)
    unreadable = []
    for path, files in outputs.items():
        try:
            image = read_image(path)
        except DataError as error:
            logger.warning("skipped: %s", error)
            unreadable.append(path)
            continue
        args.output_dir.mkdir(parents=True, exist_ok=True)
        found = segment(model, image_processor, image, settings, name=str(path), return_confidence=args.confidence is not None)
        label_map = found.label_map
        shares = class_shares(label_map)
        # A prediction has no ignored pixels, so the ignore index is an id that does not occur.
        coloured = overlay(image, label_map, palette, args.opacity, ignore_index=len(palette))
        save_image(palette_png(label_map, palette), files[0])
        save_image(with_legend(coloured, names, palette, sorted(shares)), files[1])
        if args.confidence is not None:
            save_image(confidence_png(found.confidence, args.confidence), files[2])
        print_shares(path, files, shares, names)
        if args.confidence is not None:
            print(f"  mean confidence {100 * found.confidence.mean():.1f} %")
    if unreadable:
        raise DataError(f"{len(unreadable)} of {len(outputs)} images could not be read: {', '.join(map(str, unreadable))}")


def output_files(
    images: list[Path], output_dir: Path, overwrite: bool, with_confidence: bool = False
) -> dict[Path, tuple[Path, ...]]:
    """The label map, overlay and, if it is asked for, confidence file of each image.

    Raises:
        DataError: two images would be written to one file, or a file exists and `overwrite` is False.
        RecipeError: `output_dir` is a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"--output_dir {output_dir} is a file: name a folder")
    outputs, owners = {}, {}
    kinds = ("labels", "overlay", "confidence")[: 3 if with_confidence else 2]
    for image in images:
        outputs[image] = tuple(output_dir / f"{image.stem}_{kind}.png" for kind in kinds)
        for output in outputs[image]:
            if output in owners:
                raise DataError(
                    f"{owners[output]} and {image} would both be written to {output}: predict them one after the "
                    "other with different --output_dir"
                )
            owners[output] = image
            if output.exists() and not overwrite:
                raise DataError(f"{output} is there already: give --overwrite, or another --output_dir")
    return outputs


def print_shares(image: Path, outputs: tuple[Path, ...], shares: dict[int, float], names: list[str]) -> None:
    """Prints where the results of an image are, and how much of the image each class covers."""
    print(f"{image} → {', '.join(map(str, outputs))}")
    width = max(len(names[index]) for index in shares)
    for index, pixels in shares.items():
        print(f"  {names[index]:<{width}}  {100 * pixels:5.1f} %")


if __name__ == "__main__":
    run(main)
