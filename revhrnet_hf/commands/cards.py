"""Write the cards of the families of networks, model_cards/*.md.

    revhrnet cards                           # measures the costs (half a minute), keeps the known results
    revhrnet cards runs/camvid/best …        # adds the results of these checkpoints

The known results are in results.json in the folder of the cards; in an empty folder there are none. They come from the records
that training and `revhrnet evaluate` leave in the checkpoints' folders. (A checkpoint's own card, README.md in its folder, is
written when the checkpoint is saved.)
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, run
from ..errors import CheckpointError
from ..io import write_json


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints", metavar="CHECKPOINT", type=Path, nargs="*", help="folders with recorded scores, also of runs"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("model_cards"), help="folder of the cards (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    # After parsing, so that --help answers at once.
    from tqdm import tqdm

    from ..hub.family_cards import card_files, merge_results, needed_costs, write_family_cards
    from ..hub.model_table import all_models, measure
    from ..io import read_values

    new = [result for checkpoint in args.checkpoints for result in recorded(checkpoint)]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / "results.json"
    known = read_values(file, kind=list) if file.exists() else []
    results = merge_results(known, new)
    card_files(args.output_dir)  # an error comes before half a minute of measuring
    models = all_models()
    costs = {name: measure(name, models[name]) for name in tqdm(needed_costs(), unit="network", disable=None)}
    write_json(file, results)
    for path in write_family_cards(args.output_dir, costs, results):
        print(f"written: {path}")


def recorded(checkpoint: Path) -> list[dict]:
    from ..evaluation.checkpoint import find_checkpoint
    from ..hub.family_cards import results_of
    from ..hub.record import read_record

    results = results_of(read_record(find_checkpoint(checkpoint)))
    if not results:
        raise CheckpointError(
            f"{checkpoint} has no scores with their recipe: score it with `revhrnet evaluate`, or give another checkpoint"
        )
    return results


if __name__ == "__main__":
    run(main)
