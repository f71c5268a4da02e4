"""Draw the loss and mIoU curves of one or several runs as a PNG. Needs matplotlib: pip install -e .[plots]

    python scripts/plot_run.py runs/camvid
    python scripts/plot_run.py runs/a runs/b --output compared.png

A chain's folder shows each of its stages; a run that has not ended is shown as far as it is.
"""

from importlib.util import find_spec
from pathlib import Path

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.errors import RecipeError


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="output folders of run_seg.py")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="PNG to write (default: %(default)s)")
    arguments = parser.parse_args()
    if find_spec("matplotlib") is None:
        raise RecipeError("curves need matplotlib: pip install -c constraints.txt -e .[plots]")
    from revhrnet_hf.viz.curves import draw_curves, read_curves  # after parsing, so that --help answers at once

    draw_curves(read_curves(arguments.runs)).savefig(arguments.output, dpi=150, format="png")
    print(arguments.output)


if __name__ == "__main__":
    run(main)
