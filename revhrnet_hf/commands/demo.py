"""Serve a page to try one checkpoint, or two side by side: drop an image, see its classes.

    revhrnet demo CHECKPOINT
    revhrnet demo CHECKPOINT CHECKPOINT_B --examples street.jpg more_images/
    revhrnet demo CHECKPOINT --export_space space

The page is served on this machine only, at http://127.0.0.1:7860 or the next free port, and fetches nothing from elsewhere.
Needs the extra `demo`: pip install "revhrnet_hf[demo]"
--export_space writes a folder for a Space of the Hugging Face Hub instead: app.py, requirements.txt, README.md, this package,
and the checkpoints that are folders here.
"""

import argparse
from pathlib import Path

from ..cli import ArgumentParser, add_compile_argument, add_device_argument, add_trust_argument, choose_device, run
from ..errors import RecipeError
from . import check_installed

THIS_MACHINE = "127.0.0.1"


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    parser.add_argument("other", metavar="CHECKPOINT_B", nargs="?", help="a second one, shown beside it")
    parser.add_argument(
        "--examples",
        metavar="IMAGES",
        nargs="+",
        default=[],
        help="images to choose from (default: those in the checkpoint's folder `examples`, else two drawn streets)",
    )
    parser.add_argument("--host", help=f"address to listen on (default: {THIS_MACHINE}, this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    add_device_argument(parser)
    add_compile_argument(parser)
    add_trust_argument(parser)
    parser.add_argument("--export_space", type=Path, metavar="DIR", help="write a Space to this new folder, and serve nothing")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_arguments(args)
    check_installed("the page needs", "demo", "gradio")
    from ..demo.page import build_page, check_address, load_segmenter, serve
    from ..demo.space import export_space
    from ..evaluation import find_checkpoint
    from ..images import find_images, read_image

    checkpoints = [find_checkpoint(given) for given in (args.checkpoint, args.other) if given]
    examples = find_images(args.examples)
    for path in examples:
        read_image(path)  # a broken example is said now, not to the page's visitors
    if args.export_space:
        export_space(args.export_space, checkpoints, examples, args.trust_remote_code)
        print(f"written: {args.export_space}")
        return
    host, device = args.host or THIS_MACHINE, choose_device(args.device)
    check_address(host, args.port)  # before the checkpoints are loaded
    segmenters = [load_segmenter(checkpoint, device, args.trust_remote_code, args.compile) for checkpoint in checkpoints]
    serve(build_page(segmenters, examples), host, args.port)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises a RecipeError for options that would have no effect."""
    given = {"host": args.host, "port": args.port, "device": args.device != "auto" or None, "compile": args.compile or None}
    unused = [f"--{name}" for name, value in given.items() if value is not None]
    if args.export_space and unused:
        raise RecipeError(f"{', '.join(unused)}: for the page that is served here; leave it out with --export_space")


if __name__ == "__main__":
    run(main)
