"""Send a checkpoint to the Hugging Face Hub: model, image processor, code, card, scores and curves, in one commit.

    hf auth login                                                         # once; or HF_TOKEN=…
    revhrnet push runs/camvid/best someone/revhrnet-w18-camvid --dry_run
    revhrnet push runs/camvid/best someone/revhrnet-w18-camvid --private

Before anything is sent, the checkpoint is loaded in a fresh process without this package. No file may hold a token or a path of
this machine, and the card must be complete. Anybody can then load it with
AutoModelForSemanticSegmentation.from_pretrained("someone/revhrnet-w18-camvid", trust_remote_code=True).
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, run


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="folder, such as runs/camvid/best, or a run's output folder (its best is used)",
    )
    parser.add_argument("name", metavar="NAME", help="on the Hub: NAMESPACE/NAME, or NAME in your own namespace")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to send to, created if it does not exist (default: main)")
    parser.add_argument(
        "--dry_run", action="store_true", help="check and list everything, but send nothing; needs no network or token"
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run and send the checkpoint's Python files although they differ from this package's",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    # After parsing, so that --help answers at once.
    from ..evaluation.checkpoint import find_checkpoint
    from ..hub.push import push_checkpoint

    push_checkpoint(
        find_checkpoint(args.checkpoint),
        args.name,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
        trust_remote_code=args.trust_remote_code,
    )


if __name__ == "__main__":
    run(main)
