"""Score a semantic segmentation checkpoint on a dataset, at the label maps' own size.

    revhrnet evaluate CHECKPOINT --dataset camvid --data_dir DIR --split val
    revhrnet evaluate CHECKPOINT --dataset camvid --data_dir DIR --window 360 480 --scales 0.75 1 1.25 --flip
    revhrnet evaluate CHECKPOINT --dataset cityscapes --data_dir DIR --split test --submission DIR
    revhrnet evaluate CHECKPOINT --dataset camvid --data_dir DIR --calibration --save_temperature
    accelerate launch --num_processes 2 -m revhrnet_hf.commands.evaluate CHECKPOINT --dataset camvid --data_dir DIR --split val
    torchrun --nproc_per_node 2 -m revhrnet_hf.commands.evaluate CHECKPOINT --dataset camvid --data_dir DIR --device cpu

CHECKPOINT is a folder or a Hub name of any model that Transformers loads as AutoModelForSemanticSegmentation. Its classes are the
dataset's, or are joined to them by a table (Mapillary Vistas → Cityscapes, COCO → VOC, …) or by equal names. Then the
probabilities of partners are summed. A class without a partner is never predicted, and the command says so.

The command prints a table. It writes scores, confusion matrix and settings as JSON, and beside it a CSV with the scores of each
image. The files are named for dataset, split and settings; the scores of other data, classes or settings are not overwritten
unless --overwrite is given. Cityscapes with its instanceIds also gets the publisher's category and instance scores.

With --calibration the model is run twice over the images: the first time the temperature is fitted that makes its confidences
most likely, the second time they are counted at that temperature (docs/unlabelled_images.md explains it).

The number of processes does not change a digit (accelerate launch starts several on GPUs only; torchrun on the CPU too). An
interrupted evaluation is resumed by the same command.
"""

import argparse
from pathlib import Path

from ..cli import (
    ArgumentParser,
    add_column_arguments,
    add_compile_argument,
    add_device_argument,
    add_inference_arguments,
    add_trust_argument,
    run,
)
from ..defaults import MOST_WORKERS
from ..errors import RecipeError
from . import check_installed


def build_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        usage="%(prog)s CHECKPOINT --dataset NAME --data_dir DIR [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder written by save_pretrained, a run's output folder (its best is used), or a Hub name",
    )
    add_trust_argument(parser)
    _add_data_arguments(parser.add_argument_group("data"))
    add_inference_arguments(parser)
    _add_result_arguments(parser.add_argument_group("results"))
    _add_device_arguments(parser.add_argument_group("machine"))
    return parser


def _add_data_arguments(group) -> None:
    group.add_argument("--dataset", required=True, help="dataset by name: camvid, folder, hub …; with --loader any name")
    group.add_argument("--loader", help="how to read it, where --dataset is a name of your own: folder, hub, camvid …")
    group.add_argument(
        "--data_dir",
        required=True,
        metavar="[NAME=]DIR",
        help="the dataset's folder, as its publisher ships it; for hub, its name or folder. Results are named NAME (default: the "
        "dataset's name; for folder and hub the folder's own name)",
    )
    group.add_argument("--split", default="val", help="part of the dataset to score (default: %(default)s)")
    group.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    add_column_arguments(group)


def _add_result_arguments(group) -> None:
    group.add_argument(
        "--boundary", action="store_true", help="compute the boundary IoU too: of the pixels near class boundaries"
    )
    group.add_argument(
        "--calibration",
        action="store_true",
        help="measure how far confidences can be trusted too (expected calibration error), and fit a temperature to them; it "
        "takes twice the time. With --plot, a reliability diagram",
    )
    group.add_argument(
        "--save_temperature",
        action="store_true",
        help="with --calibration: write the temperature into the checkpoint's config.json, where predict --confidence, demo and "
        "pseudo_label use it. Fit it to images that were not trained on",
    )
    group.add_argument(
        "--absent_as_zero",
        action="store_true",
        help="count classes that occur nowhere as 0 in the means, as the official HRNet does; by default they are left out",
    )
    group.add_argument(
        "--interval_block",
        type=int,
        default=1,
        metavar="IMAGES",
        help="for the intervals, draw blocks of so many consecutive images: those of a video are alike, and if each were drawn "
        "by itself, the intervals would be too narrow (default: 1)",
    )
    group.add_argument(
        "--output",
        type=Path,
        help="JSON file to write (default: scores_DATASET_SPLIT.json, with the settings in its name where they are not the "
        "defaults, in the checkpoint's folder, or in the current one for a Hub name). The other files are named like it, with "
        "other endings",
    )
    group.add_argument(
        "--plot",
        action="store_true",
        help="draw the confusion matrix and, with --calibration, the reliability diagram as PNG (needs matplotlib)",
    )
    group.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="N",
        help="draw the N images of lowest mIoU, with truth and prediction laid over them",
    )
    group.add_argument(
        "--report",
        action="store_true",
        help="write a report as one HTML file too: scores, confusion matrix, best and worst images, curves and recipe of the "
        "run. It contains images of the dataset",
    )
    group.add_argument(
        "--submission",
        type=Path,
        metavar="DIR",
        help="write label maps as the servers of cityscapes, pascal_voc and mapillary_vistas take them; the split may lack them",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew where an interrupted evaluation could be resumed, and replace the scores of another one in --output",
    )


def _add_device_arguments(group) -> None:
    add_device_argument(group)
    group.add_argument(
        "--num_workers",
        type=int,
        help="processes that read images, for each process that runs the model; 0: none (default: its share of the cores, half "
        f"of that beside a model on the CPU, at most {MOST_WORKERS})",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of weights and images; bfloat16 is faster on a GPU and changes some pixels (default: %(default)s)",
    )
    add_compile_argument(group)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line. In the result, `dataset` is the loader's name, and `dataset_name` is the dataset's own."""
    args = build_parser().parse_args(arguments)
    from ..data.loading import loader_of  # after parsing, so that --help answers at once
    from ..evaluation.results import dataset_name, named_data_dir

    name, args.data_dir = named_data_dir(args.data_dir)
    if args.loader is not None:
        name, args.dataset = name or args.dataset, loader_of(args.dataset, args.loader)
    args.dataset_name = dataset_name(args.dataset, args.data_dir, name)
    args.is_named = name is not None
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    import accelerate
    import torch

    from ..evaluation.checkpoint import find_checkpoint, format_sources
    from ..training.processes import drop_empty_settings
    from ._evaluation import on_main_process, prepare

    drop_empty_settings()
    # On CPUs the processes of a launcher find each other only if Accelerate is told to use CPUs.
    state = accelerate.PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    args.checkpoint = find_checkpoint(args.checkpoint)
    check_arguments(args, state)
    job = prepare(args, state)
    if job.sources is not None and state.is_main_process:
        print(format_sources(job.model.config, job.evaluation.label_space, job.sources))
    work = job.work_folder()
    on_main_process(state, lambda: work.claim(args.overwrite))
    job.record_remaining_images(work)
    state.wait_for_everyone()
    calibration = job.calibrate(work)
    if state.is_main_process:
        job.finish(work, calibration)
    state.destroy_process_group()


def check_arguments(args: argparse.Namespace, state) -> None:
    """Raises a RecipeError for what cannot be done, before the work begins.

    Args:
        state: this process's `accelerate.PartialState`.
    """
    if args.device == "cuda" and state.device.type != "cuda":
        raise RecipeError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    for name in ("num_workers", "worst"):
        if (getattr(args, name) or 0) < 0:
            raise RecipeError(f"--{name} {getattr(args, name)}: give 0 or more")
    if args.interval_block < 1:
        raise RecipeError(f"--interval_block {args.interval_block}: give 1 or more")
    if args.interval_block > 1 and args.absent_as_zero:
        raise RecipeError("--interval_block would have no effect: with --absent_as_zero there are no intervals")
    if args.plot:
        check_installed("--plot needs", "plots", "matplotlib")
    if args.save_temperature and not args.calibration:
        raise RecipeError("--save_temperature saves what --calibration fits: give both")
    if args.save_temperature and not Path(args.checkpoint).is_dir():
        raise RecipeError(f"--save_temperature writes into the checkpoint's folder, and {args.checkpoint} is none: download it")
    if args.submission and args.submission.exists() and not args.submission.is_dir():
        raise RecipeError(f"--submission {args.submission} is a file: name a folder")


if __name__ == "__main__":
    run(main)
