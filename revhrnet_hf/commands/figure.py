"""Figures for papers, cards and talks, as PNG or PDF (needs the extra `plots`).

    revhrnet figure compare CHECKPOINT_A CHECKPOINT_B IMAGES… -o fig.png    # predictions and feature maps
    revhrnet figure maps CHECKPOINT IMAGES… -o maps.png    # the same for one model
    revhrnet figure overlay CHECKPOINT IMAGES… -o overlay.pdf
    revhrnet figure errors CHECKPOINT --dataset camvid --data_dir DIR --split val -o errors.png
    revhrnet figure confusion runs/camvid/best/scores_camvid_val.json -o confusion.pdf
    revhrnet figure legend CHECKPOINT -o legend.pdf    # or a label space, such as cityscapes, or a label table

CHECKPOINT is a folder or a Hub name. `compare` draws the paper's figure 2: one row for each model, with its prediction and its
feature maps at strides 4, 8, 16 and 32. `confusion` takes the JSON file of `revhrnet evaluate`.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, add_column_arguments, add_trust_argument, run
from . import check_installed

FIGURES = ("compare", "maps", "overlay", "errors", "confusion", "legend")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(
        dest="command", metavar="FIGURE", title="figures (revhrnet figure FIGURE --help explains one)"
    )

    def command(name: str, help: str) -> ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.add_argument("-o", "--output", type=Path, required=True, help="file to write, .png or .pdf")
        added.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
        add_trust_argument(added)
        return added

    compare = command("compare", "two models' predictions and feature maps, one below the other")
    compare.add_argument("checkpoints", metavar="CHECKPOINT", nargs=2, help="folder, also of a run, or Hub name")
    compare.add_argument("images", metavar="IMAGES", nargs="+", help="image files, or folders of them")
    _add_map_argument(compare)
    compare.add_argument("--names", nargs=2, metavar="NAME", help="names of the two models (default: their folders')")
    compare.set_defaults(columns=None)

    maps = command("maps", "a model's prediction and feature maps")
    maps.add_argument("checkpoints", metavar="CHECKPOINT", nargs=1, help="folder or Hub name")
    maps.add_argument("images", metavar="IMAGES", nargs="+", help="image files, or folders of them")
    _add_map_argument(maps)
    maps.add_argument("--columns", type=_positive, metavar="N", help="panels in a row (default: all of an image in one row)")
    maps.set_defaults(names=[""])

    overlay = command("overlay", "images beside a model's predictions, laid over them")
    overlay.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, also of a run, or Hub name")
    overlay.add_argument("images", metavar="IMAGES", nargs="+", help="image files, or folders of them")
    overlay.add_argument("--opacity", type=float, default=0.5, help="opacity of the colours, 0 to 1 (default: %(default)s)")

    _add_errors_arguments(command("errors", "where a model is right and wrong: image, truth, prediction, right/wrong/ignored"))

    confusion = command("confusion", "which classes are taken for which")
    confusion.add_argument("scores", metavar="SCORES", type=Path, help="JSON file of `revhrnet evaluate`")

    legend = command("legend", "the classes' names and colours")
    legend.add_argument("classes", metavar="CLASSES", help="checkpoint, label space by name, or label table (.yaml)")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"give 1 or more, not {number}")
    return number


def _add_map_argument(figure: ArgumentParser) -> None:
    figure.add_argument(
        "--map",
        choices=("pca", "mean"),
        default="pca",
        help="how a feature map becomes an image: principal components as colours, or mean activation (default: %(default)s)",
    )


def _add_errors_arguments(errors: ArgumentParser) -> None:
    errors.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, also of a run, or Hub name")
    errors.add_argument("--dataset", required=True, help="dataset by name: camvid, folder, hub …; with --loader any name")
    errors.add_argument("--loader", help="how to read it, where --dataset is a name of your own: folder, hub, camvid …")
    errors.add_argument("--data_dir", required=True, type=Path, help="the dataset's folder; for hub, its name or folder")
    errors.add_argument("--split", default="val", help="part of the dataset (default: %(default)s)")
    errors.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    add_column_arguments(errors)
    errors.add_argument("--image_ids", nargs="+", metavar="ID", help="images to draw (default: --count of them)")
    errors.add_argument("--count", type=int, default=3, help="images, evenly spread over the split (default: %(default)s)")


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.error(f"say which figure: {', '.join(FIGURES)}")
    check_installed("figures need", "plots", "matplotlib")
    from ..viz import plots
    from ._figures import DRAWINGS

    plots.check_output(args.output, args.overwrite)
    plots.save_figure(DRAWINGS[args.command](args), args.output)
    print(f"written: {args.output}")


if __name__ == "__main__":
    run(main)
