"""Draw the loss and mIoU curves of one or several runs as a PNG. Needs matplotlib: pip install "revhrnet_hf[plots]"

    revhrnet plot runs/camvid
    revhrnet plot runs/a runs/b --output compared.png
    revhrnet plot runs

A chain's folder shows each of its stages; a folder of runs shows each run; a run that has not ended is shown as far as it is.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, run
from . import check_installed


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of `revhrnet train`, or folders of them")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="PNG or PDF to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_installed("curves need", "plots", "matplotlib")
    from ..viz.curves import draw_curves, read_curves
    from ..viz.plots import check_output, save_figure

    check_output(args.output, args.overwrite)
    save_figure(draw_curves(read_curves(args.runs)), args.output)
    print(args.output)


if __name__ == "__main__":
    run(main)
