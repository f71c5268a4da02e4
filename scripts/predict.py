"""Segment pictures with a trained checkpoint.

    python scripts/predict.py CHECKPOINT PICTURES… --output_dir predictions

For each picture NAME.jpg two files are written: NAME_labels.png, a palette PNG of the picture's size whose pixel
values are the class ids, and NAME_overlay.png, the picture with the classes' colours laid over it and a legend.
CHECKPOINT may be any model that Transformers loads with AutoModelForSemanticSegmentation.
"""

import argparse
from pathlib import Path

from revhrnet_hf.cli import choose_device, run
from revhrnet_hf.errors import DataError, RecipeError
from revhrnet_hf.evaluation import add_inference_arguments, add_trust_argument, inference_settings, load_checkpoint, segment
from revhrnet_hf.report.figures import class_shares, names_and_palette, overlay, palette_png, with_legend
from revhrnet_hf.report.pictures import find_pictures, open_picture, save_picture


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a Hub name")
    parser.add_argument("pictures", metavar="PICTURES", nargs="+", help="picture files, or folders of them")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("predictions"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    parser.add_argument(
        "--opacity",
        type=share,
        default=0.5,
        help="of the colours in the overlay, from 0, none, to 1, colours only (default: %(default)s)",
    )
    add_inference_arguments(parser)
    add_trust_argument(parser)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs; auto takes a GPU if there is one (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main(arguments=None) -> None:
    args = parse_arguments(arguments)
    device, settings = choose_device(args.device), inference_settings(args)
    outputs = output_files(find_pictures(args.pictures), args.output_dir, args.overwrite)
    for path in outputs:
        open_picture(path)  # an unreadable picture is said before the work begins, not in the middle of it
    model, image_processor = load_checkpoint(args.checkpoint, trust_remote_code=args.trust_remote_code)
    names, palette = names_and_palette(model.config)
    model.to(device)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for path, (labels_file, overlay_file) in outputs.items():
        picture = open_picture(path)
        label_map = segment(model, image_processor, picture, settings, name=str(path)).label_map
        shares = class_shares(label_map)
        # No class id is "ignored" in a prediction.
        coloured = overlay(picture, label_map, palette, args.opacity, ignore_index=len(palette))
        save_picture(palette_png(label_map, palette), labels_file)
        save_picture(with_legend(coloured, names, palette, sorted(shares)), overlay_file)
        report(path, (labels_file, overlay_file), shares, names)


def output_files(pictures: list[Path], output_dir: Path, overwrite: bool) -> dict[Path, tuple[Path, Path]]:
    """Label map and overlay file of each picture; a file that would be written twice or replaced is an error."""
    if output_dir.exists() and not output_dir.is_dir():
        raise RecipeError(f"--output_dir {output_dir} is a file: name a folder")
    outputs, owners = {}, {}
    for picture in pictures:
        outputs[picture] = tuple(output_dir / f"{picture.stem}_{kind}.png" for kind in ("labels", "overlay"))
        for output in outputs[picture]:
            if output in owners:
                raise DataError(
                    f"{owners[output]} and {picture} would both be written to {output}: predict them one after the "
                    "other with different --output_dir"
                )
            owners[output] = picture
            if output.exists() and not overwrite:
                raise DataError(f"{output} is there already: give --overwrite, or another --output_dir")
    return outputs


def report(picture: Path, outputs: tuple[Path, ...], shares: dict[int, float], names: list[str]) -> None:
    print(f"{picture} → {', '.join(map(str, outputs))}")
    width = max(len(names[index]) for index in shares)
    for index, pixels in shares.items():
        print(f"  {names[index]:<{width}}  {100 * pixels:5.1f} %")


if __name__ == "__main__":
    run(main)
