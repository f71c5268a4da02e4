"""Train a grid of networks with several seeds, and write a table and figures of their scores and costs.

    python scripts/study.py scripts/studies/camvid_decoders.yaml --data_dir CamVid --output_dir studies/decoders
    python scripts/study.py scripts/studies/camvid_decoders.yaml --data_dir CamVid --output_dir studies/decoders --dry_run
    python scripts/study.py scripts/studies/camvid_decoders.yaml --data_dir CamVid --output_dir studies/decoders --times
    python scripts/study.py scripts/studies/camvid_decoders.yaml --data_dir CamVid --output_dir studies/decoders \\
        --report_only --results docs/results

A finished run is never done twice, and an interrupted one is resumed: run the same command again. First each network's learning
rate is chosen, on parts of the training split; then every network is trained with every seed. The table can be written at any
time, and shows what is not finished as a gap. A study file is a YAML mapping; `scripts/studies/` has examples.
"""

import argparse
import sys
from pathlib import Path

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.commands import check_installed
from revhrnet_hf.errors import RecipeError, RevHRNetError


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, metavar="STUDY", help="YAML file of the study")
    parser.add_argument(
        "--data_dir", nargs="+", required=True, help="folder of the recipe's dataset; for several datasets NAME=DIR NAME=DIR …"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--results", type=Path, help="folder for table and figures (default: the output folder)")
    parser.add_argument(
        "--records",
        type=Path,
        help="folder to which the results of finished runs are copied: as --output_dir, they need not be done again",
    )
    parser.add_argument("--report_only", action="store_true", help="write table and figures of the finished runs, train nothing")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="list the runs and their state, try a few steps of one run of each network, print what the runs will take, and "
        "write nothing",
    )
    parser.add_argument(
        "--times",
        action="store_true",
        help="measure seconds of a step and of an image for all networks, in turns, instead of training: on a machine that does "
        "nothing else. Table and figures then have these; otherwise those of each run, which other work may have slowed",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=[],
        help="GPUs by number, of those that CUDA_VISIBLE_DEVICES leaves: as many runs at once, one on each",
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a single run, by its folder: how this program calls itself
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    check_installed("A study needs", "benchmark", "segmentation_models_pytorch", "matplotlib")
    from studies.peers import register_peers
    from studies.plan import Study
    from studies.results import write_results
    from studies.runner import copy_records, diverged, do_run, find_run, waiting

    if args.devices and (args.report_only or args.times):
        raise RecipeError("--devices is for trainings: leave it out with --report_only or --times")
    register_peers()
    study = Study.from_yaml(args.study)
    if args.only is not None:
        do_run(find_run(study, args.output_dir, args.only), args.data_dir, args.output_dir)
        return
    if args.dry_run:
        rehearse(study, args)
        return
    results = args.results or args.output_dir
    if not args.report_only:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    for folder in (args.output_dir, results):  # before the trainings, which may take days
        if not folder.is_dir():
            raise RecipeError(f"There is no folder {folder}: make it first")
    if args.times:
        from studies.runner import check_classes
        from studies.times import measure_times

        check_classes(study, args.data_dir)
        measure_times(study, args.study.stem, args.data_dir, args.output_dir)
    failed = [] if args.report_only or args.times else train(study, args)
    if args.records is not None:
        copy_records(study, args.output_dir, args.records)
    print(f"written: {', '.join(map(str, write_results(study, args.output_dir, results, args.study.stem)))}")
    if names := waiting(study, args.output_dir):
        print(f"not in the results, because learning rates are still to be tried: {', '.join(names)}")
    if without_rate := diverged(study, args.output_dir):
        print(f"with all learning rates the loss was no number, so that there is no run of {', '.join(without_rate)}")
    if failed:
        raise RevHRNetError(
            f"{len(failed)} runs failed: {', '.join(run.folder for run in failed)}. Their errors are above; the same command "
            "tries them again"
        )


def train(study, args: argparse.Namespace) -> list:
    """Does all runs that are not finished, those that choose learning rates first; returns those that failed."""
    from studies.runner import check_classes, chosen_rates, remaining, work_through

    if remaining([*study.tuning_runs(), *study.runs(chosen_rates(study, args.output_dir))], args.output_dir):
        check_classes(study, args.data_dir)
    same = [str(args.study), "--data_dir", *args.data_dir, "--output_dir", str(args.output_dir)]
    command = [sys.executable, str(Path(__file__).resolve()), *same, "--only"]
    failed = work_through(remaining(study.tuning_runs(), args.output_dir), command, args.devices)
    return failed + work_through(
        remaining(study.runs(chosen_rates(study, args.output_dir)), args.output_dir), command, args.devices
    )


def rehearse(study, args: argparse.Namespace) -> None:
    """Prints each run with its state, and what those that are not finished will take."""
    from studies.estimates import estimate_runs
    from studies.runner import check_classes, chosen_rates, diverged, remaining, waiting

    # Which rate is chosen makes no difference to what a run takes.
    later = {name: study.rates_of(name)[0] for name in waiting(study, args.output_dir)}
    items = [*study.tuning_runs(), *study.runs({**chosen_rates(study, args.output_dir), **later})]
    blocked = [item for item in items if item.network in later and not item.is_tuning]
    to_do = remaining([item for item in items if item not in blocked], args.output_dir)
    for item in items:
        begun = "begun" if (args.output_dir / item.folder).exists() else "to do"
        state = "waiting" if item in blocked else begun if item in to_do else "finished"
        print(f"{state:9} {item.folder}")
    if blocked:
        print("(waiting: for the choice of the learning rate)")
    if gone := diverged(study, args.output_dir):
        print(f"with all learning rates the loss was no number: {', '.join(gone)}")
    if to_do or blocked:
        check_classes(study, args.data_dir)
        print(estimate_runs([*to_do, *blocked], args.data_dir, len(args.devices)))


if __name__ == "__main__":
    run(main)
