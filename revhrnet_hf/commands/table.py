"""Print what every variant costs: parameters, multiply-adds, and memory kept for the backward pass.

    revhrnet table
    revhrnet table --output model_table.json
    revhrnet table --backbones

The networks have no values (the meta device), so that it takes half a minute and no memory on any machine. Multiply-adds are for
one image of 1024×2048 pixels, saved bytes for one of 512×1024 (float32, between the forward and the backward pass, with the
logits but without the loss, weights and optimizer). `--backbones` has eight backbones with each of w18, w32 and w48 instead, and
what it costs to train a part of them, in a minute and a half; `--share` times the backbone's share of a step as well, with
values.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, choose_device, run
from ..errors import RecipeError
from ..io import write_json


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write as well (default: none)")
    parser.add_argument("--backbones", action="store_true", help="eight backbones × w18, w32, w48, and parts of them trained")
    parser.add_argument("--share", choices=("cpu", "cuda"), help="time the backbone's share of a step there (default: not)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    if args.output and not args.output.parent.is_dir():
        raise RecipeError(f"--output {args.output}: there is no folder {args.output.parent}; make it first")
    if args.share:
        choose_device(args.share, "--share")  # an error now, not after the networks are measured
    # After parsing, so that --help answers at once.
    from tqdm import tqdm

    from ..hub.model_table import all_models, as_json, backbone_share, format_table, measure, models_on_backbones

    models = models_on_backbones() if args.backbones else all_models()
    rows = [measure(name, make_model) for name, make_model in tqdm(models.items(), unit="network", disable=None)]
    if args.share:
        for row in tqdm(rows, desc="share", unit="network", disable=None):
            if row.name.startswith("RevHRNet"):
                row.backbone_share = backbone_share(models[row.name], args.share)
    print(format_table(rows))
    if args.output:
        write_json(args.output, as_json(rows))
        print(f"written: {args.output}")


if __name__ == "__main__":
    run(main)
