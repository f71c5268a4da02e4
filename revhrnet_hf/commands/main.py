"""`revhrnet COMMAND …`: find the command's module and call it."""

import argparse
import sys
from importlib import import_module

from .. import __version__
from ..cli import ArgumentParser, run
from ..errors import did_you_mean
from . import COMMANDS


def build_parser() -> ArgumentParser:
    """The parser of what stands before a command's own arguments: it knows --help and --version."""
    width = max(map(len, COMMANDS))
    parser = ArgumentParser(
        prog="revhrnet",
        usage="revhrnet COMMAND …",
        description="Reverse HRNet on a frozen backbone for semantic segmentation.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {help}" for name, help in COMMANDS.items())
        + "\n\n`revhrnet COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"revhrnet_hf {__version__}")
    return parser


def main(arguments: list[str] | None = None) -> None:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        sys.argv = [f"revhrnet {name}", *rest]  # what the command's parser calls itself
        import_module(f"{__package__}.{name}").main(rest)
        return
    parser = build_parser()
    if name.startswith("-"):
        parser.parse_args([name])  # which ends here: with help or version, or with an error
    parser.error(f"unknown command {name}{did_you_mean(name, COMMANDS)}")


def console() -> None:
    """The entry point of the installed command: errors of the user are one line."""
    run(main)


if __name__ == "__main__":
    console()
