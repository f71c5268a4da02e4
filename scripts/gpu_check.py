"""Everything that only a GPU can show, in one command of eight minutes: proofs, waits, times and memory, CamVid.

    python scripts/gpu_check.py
    python scripts/gpu_check.py --camvid CamVid --output gpu_check
    python scripts/gpu_check.py --parts a b
    python scripts/gpu_check.py --device cpu --quick     # tiny networks, to try the command itself

    a  the GPU computes what the CPU computes (float32 without TF32, bf16, fp16); recomputation, the loss in bands, SyncBatchNorm,
       torch.compile, a run that was killed and resumed, and a frozen backbone change nothing
    b  a training step waits for the GPU nowhere
    c  seconds and peak memory of training steps and forward passes, of our networks and others
    d  the standing recipe on CamVid, where its folder is given

It needs no dataset (it draws street scenes) and no internet. Each result is written to a JSON file at once, in a folder for this
machine and this state of the code. The same command continues: checks whose results are there are not made again. The exit status
is 1 if a proof failed, and 3 if none failed but the time was over before all proofs were made.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from revhrnet_hf.cli import ArgumentParser, run

MINUTES = 8.0
SHARES = {"a": 190.0, "b": 60.0, "c": 190.0, "d": 40.0}
"""Seconds of eight minutes; time that a part leaves goes to the next ones."""
TITLES = {"a": "Proofs", "b": "Waits in a training step", "c": "Time and memory", "d": "CamVid"}
FAILED, NOT_ALL = 1, 3


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images: tries the command, measures nothing")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), help="default: all")
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="folder of CamVid, for part d")
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together (default: %(default)g)")
    parser.add_argument("--again", action="store_true", help="make all checks anew, also those whose results are there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    args = parse_arguments(arguments)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the training loop takes a GPU if it sees one
    results = check(args, started)
    report(results)
    status = exit_status(results)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    if status:
        sys.exit(status)


def check(args: argparse.Namespace, started: float) -> dict:
    """The parts that were run, by letter."""
    import torch
    from gpu_checks.record import Part, folder_of
    from gpu_checks.stages import Setup

    from revhrnet_hf.errors import RecipeError

    if args.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("torch finds no GPU here; --device cpu --quick tries the command on a CPU")
    folder = folder_of(args.output, args.device, args.quick)
    print(f"results: {folder}")
    letters = [letter for letter in SHARES if letter in args.parts and (letter != "d" or args.camvid)]
    total, deadline, parts = sum(SHARES[letter] for letter in letters), started, {}
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as scratch:
        setup = Setup(args.device, args.quick, Path(scratch))
        for letter in letters:
            deadline += 60 * args.minutes * SHARES[letter] / total
            parts[letter] = Part(letter, TITLES[letter], folder, deadline, args.again)
            parts[letter].run(checks_of(letter, setup, args.camvid))
    return parts


def checks_of(letter: str, setup, camvid_dir: Path | None) -> list:
    """A part's checks; its module is imported only now."""
    if letter == "a":
        from gpu_checks import proofs

        return proofs.checks(setup)
    if letter == "b":
        from gpu_checks import waits

        return waits.checks(setup)
    if letter == "c":
        from gpu_checks import measures

        return measures.checks(setup)
    from gpu_checks import camvid

    return camvid.checks(setup, camvid_dir.resolve())


def report(parts: dict) -> None:
    from gpu_checks.measures import print_cells
    from gpu_checks.record import print_proofs

    for letter, part in parts.items():
        print(f"\n{letter}. {part.title}")
        (print_cells if letter == "c" else print_proofs)(part.rows)
    rows = [row for part in parts.values() for row in part.rows]
    statuses = [row["status"] for row in rows]
    print("\n" + ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)))


def exit_status(parts: dict) -> int:
    """For proofs and cells alike an error is a failure; only proofs have to be made within the time."""
    from gpu_checks.record import ERROR, OUT_OF_TIME
    from gpu_checks.record import FAILED as NOT_PROVED

    if any(row["status"] in (NOT_PROVED, ERROR) for part in parts.values() for row in part.rows):
        return FAILED
    missing = any(row["status"] == OUT_OF_TIME for letter in "ab" if letter in parts for row in parts[letter].rows)
    return NOT_ALL if missing else 0


if __name__ == "__main__":
    run(main)
