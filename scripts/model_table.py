"""Print what every variant costs: parameters, multiply-adds, and memory kept for the backward pass.

    python scripts/model_table.py
    python scripts/model_table.py --output model_table.json
    python scripts/model_table.py --backbones

Measured on networks without values (the meta device), so that it takes half a minute and no memory on any machine. Multiply-adds
are for one image of 1024×2048 pixels, saved bytes for one of 512×1024 (float32, between the forward and the backward pass,
with the logits but without the loss; weights and optimizer not counted). `--backbones` has eight backbones with each of w18, w32
and w48 instead, and what training a part of them costs; `--share` times the backbone's share of a step as well, with values.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.hub.model_table import all_models, as_json, backbone_share, format_table, measure, models_on_backbones
from revhrnet_hf.io import write_json


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write as well (default: none)")
    parser.add_argument("--backbones", action="store_true", help="eight backbones × w18, w32, w48, and parts of them trained")
    parser.add_argument("--share", choices=("cpu", "cuda"), help="time the backbone's share of a step there (default: not)")
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    args = parse_arguments(arguments)
    if args.output and not args.output.parent.is_dir():
        raise RecipeError(f"--output {args.output}: there is no folder {args.output.parent}; make it first")
    models = models_on_backbones() if args.backbones else all_models()
    rows = [measure(name, make_model) for name, make_model in tqdm(models.items(), unit="network")]
    if args.share:
        for row in tqdm(rows, desc="share", unit="network"):
            if row.name.startswith("RevHRNet"):
                row.backbone_share = backbone_share(models[row.name], args.share)
    print(format_table(rows))
    if args.output:
        write_json(args.output, as_json(rows))
        print(f"written: {args.output}")


if __name__ == "__main__":
    run(main)
