"""The whole way in some minutes on two CPU cores: draw a miniature CamVid, train on it, load the checkpoint, look at it.

bash scripts/quickstart.sh              # makes the environment and calls this
python scripts/quickstart.py --output_dir DIR
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import pipeline

import revhrnet_hf  # noqa: F401 (registers the models)
from revhrnet_hf.cli import run
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.miniature import write_camvid
from revhrnet_hf.report.figures import triptych
from revhrnet_hf.report.pictures import save_picture
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.stage import Stage

RECIPE = Path(__file__).parent / "recipes" / "camvid_mini.yaml"
PICTURES = {"train": 64, "val": 16}
SIZE = (240, 320)  # height, width


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("quickstart"), help="where everything goes (default: quickstart)")
    parser.add_argument("--epochs", type=int, help="passes over the pictures (default: the recipe's)")
    arguments = parser.parse_args()
    data_dir, run_dir = arguments.output_dir / "camvid_mini", arguments.output_dir / "run"

    if not data_dir.exists():
        print(f"Drawing {sum(PICTURES.values())} street scenes in CamVid's layout in {data_dir}")
        write_camvid(data_dir, PICTURES, SIZE)
    recipe = Recipe.from_yaml(RECIPE)
    recipe.epochs = arguments.epochs or recipe.epochs
    print(f"Training a reverse HRNet-{recipe.variant} on a frozen, pretrained {recipe.backbone}; epoch 0 is before training")
    Stage(recipe, data_dir, run_dir, overwrite=True).run()

    checkpoint = run_dir / "best"
    pictures = load_segmentation_dataset(recipe.dataset, data_dir, recipe.eval_split).select(range(3))
    figure = arguments.output_dir / "predictions.png"
    save_picture(draw_predictions(checkpoint, pictures), figure)
    print(
        f"\nCheckpoint:  {checkpoint}\nLog:         {run_dir / 'log.jsonl'}; tensorboard --logdir {run_dir / 'tensorboard'}\n"
        f"Pictures:    {figure} (picture, truth, prediction)\n"
        f"Your own:    .venv/bin/python scripts/predict.py {checkpoint} PICTURE.jpg"
    )


def draw_predictions(checkpoint: Path, pictures):
    """Picture, truth and the pipeline's prediction, a row each."""
    segmenter = pipeline("image-segmentation", model=str(checkpoint))
    space = label_space_of(pictures)
    rows = []
    for row in pictures:
        prediction = np.zeros((row["image"].height, row["image"].width), dtype=np.uint8)
        for segment in segmenter(row["image"]):
            prediction[np.array(segment["mask"]) > 0] = space.label2id[segment["label"]]
        rows.append((row["image"], np.array(row["label_map"]), prediction))
    return triptych(rows, space.names, space.colours, space.ignore_index)


if __name__ == "__main__":
    run(main)
