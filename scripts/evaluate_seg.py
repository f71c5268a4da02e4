"""Score a semantic segmentation checkpoint on a dataset, at the label maps' own size.

    python scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --split val
    python scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --window 360 480 --scales 0.75 1 1.25 --flip
    python scripts/evaluate_seg.py CHECKPOINT --dataset cityscapes --data_dir DIR --split test --submission DIR
    accelerate launch --num_processes 2 scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --split val
    torchrun --nproc_per_node 2 scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --device cpu

CHECKPOINT is a folder or a Hub name; any model that Transformers loads as AutoModelForSemanticSegmentation will do, if
its classes are the dataset's, or are joined to them by a table (Mapillary Vistas → Cityscapes, COCO → VOC, …) or by equal names:
then the probabilities of partners are summed; a class without a partner is never predicted, which is said. Prints a table; writes
scores, confusion matrix and settings as JSON, and beside it a CSV with the scores of each image. The files are named for dataset,
split and settings; the scores of other data, classes or settings are not overwritten unless --overwrite is given. Cityscapes
with its instanceIds also gets the publisher's category and instance scores. The number of processes does not change a digit
(accelerate launch starts several on GPUs only; torchrun on the CPU too). An interrupted evaluation is resumed by the same
command.
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from revhrnet_hf.cli import ArgumentParser, run
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.loader import MOST_WORKERS
from revhrnet_hf.data.loading import loader_of
from revhrnet_hf.data.palette import default_palette
from revhrnet_hf.errors import RecipeError, RevHRNetError
from revhrnet_hf.evaluation import (
    ConfusionMatrix,
    add_inference_arguments,
    add_trust_argument,
    check_labelled,
    class_sources,
    format_scores,
    inference_settings,
    load_checkpoint,
    segment,
)
from revhrnet_hf.evaluation.boundary import boundary_scores
from revhrnet_hf.evaluation.by_image import bootstrap_intervals, worst_images, write_image_scores
from revhrnet_hf.evaluation.cityscapes import cityscapes_scores, matrix_of_ids
from revhrnet_hf.evaluation.recording import Recorder, instance_locations, is_labelled, record_images, weights_stamp
from revhrnet_hf.evaluation.results import (
    DATA,
    OWN,
    check_replaceable,
    dataset_name,
    digest_of_data,
    digest_of_ids,
    digest_of_table,
    named_data_dir,
    result_stem,
)
from revhrnet_hf.evaluation.submission import submission_format
from revhrnet_hf.evaluation.work import ImageRecord, WorkFolder
from revhrnet_hf.hub.model_card import refresh_model_card
from revhrnet_hf.images import save_image
from revhrnet_hf.io import write_json
from revhrnet_hf.training.processes import drop_empty_settings
from revhrnet_hf.versions import versions
from revhrnet_hf.viz.figures import overlay, stack_vertically, with_legend


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a Hub name")
    parser.add_argument("--dataset", required=True, help="dataset by name: camvid, folder, hub …; with --loader any name")
    parser.add_argument("--loader", help="how to read it, where --dataset is a name of your own: folder, hub, camvid …")
    parser.add_argument(
        "--data_dir",
        required=True,
        metavar="[NAME=]DIR",
        help="the dataset's folder, as its publisher ships it; for hub, its name or folder. NAME is what results are called by "
        "(default: the dataset's, for folder and hub the folder's own name)",
    )
    parser.add_argument("--split", default="val", help="part of the dataset to score (default: %(default)s)")
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the dataset's usual ones)")
    parser.add_argument("--image_column", help="for hub, the column of images (default: image)")
    parser.add_argument("--label_column", help="for hub, the column of label maps (default: label_map)")
    add_inference_arguments(parser)
    add_trust_argument(parser)
    parser.add_argument("--boundary", action="store_true", help="boundary IoU as well: what lies near the classes' borders")
    parser.add_argument(
        "--absent_as_zero",
        action="store_true",
        help="count classes that occur nowhere as 0 in the means, as the official HRNet does; else they are left out",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file to write (default: scores_DATASET_SPLIT.json, with the settings in its name where they are not the "
        "defaults, in the checkpoint's folder, or in the current one for a Hub name); what goes with it has its name and another "
        "ending",
    )
    parser.add_argument("--plot", action="store_true", help="the confusion matrix as PNG (needs matplotlib)")
    parser.add_argument(
        "--worst", type=int, default=0, metavar="N", help="the N images of lowest mIoU: truth and prediction laid over them"
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="DIR",
        help="write label maps as the servers of cityscapes, pascal_voc and mapillary_vistas take them; the split may lack them",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin anew where an interrupted evaluation could be resumed, and replace the scores of another one in --output",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model runs; auto takes a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        help="processes that read images, for each process that runs the model; 0: none (default: its share of the cores, half "
        f"of that beside a model on the CPU, at most {MOST_WORKERS})",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of weights and images; bfloat16 is faster on a GPU and changes some pixels (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    name, args.data_dir = named_data_dir(args.data_dir)
    if args.loader is not None:  # from here on, `dataset` is what reads it
        name, args.dataset = name or args.dataset, loader_of(args.dataset, args.loader)
    args.dataset_name = dataset_name(args.dataset, args.data_dir, name)
    args.is_named = name is not None
    return args


def main(arguments=None) -> None:
    args = parse_arguments(arguments)
    drop_empty_settings()
    # On CPUs the processes of a launcher find each other only if Accelerate is told that CPUs are meant.
    state = accelerate.PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    settings = check_arguments(args, state)
    output = output_file(args, settings)
    dataset = load_segmentation_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        label_space=args.label_space,
        image_column=args.image_column,
        label_column=args.label_column,
        unlabelled=args.submission is not None,
    )
    label_space = label_space_of(dataset)
    instances = instance_locations(args.dataset, dataset, label_space)
    data = on_main_process(state, lambda: digest_of_data(dataset, instances or ()))
    identity = identity_of(args, settings, dataset, label_space, data)
    replaces = not args.overwrite and check_replaceable(output, identity)
    recorder = Recorder(
        label_space,
        boundary=args.boundary,
        instances=instances,
        submission=args.submission and submission_format(args.dataset, label_space),
        submission_dir=args.submission,
    )
    model, image_processor = load_checkpoint(args.checkpoint, getattr(torch, args.dtype), args.trust_remote_code)
    sources = class_sources(model.config, label_space, args.dataset_name)
    if sources is not None and state.is_main_process:
        print(format_sources(model.config, label_space, sources))
    model.to(state.device)

    work = WorkFolder(output.with_name(f".{output.stem}.work"), what_is_scored(args, settings, state, dataset, label_space, data))
    on_main_process(state, lambda: work.claim(args.overwrite))
    done = work.read()
    state.wait_for_everyone()  # nobody writes before all have read, or they would share the images out differently
    remaining = [index for index in range(len(dataset)) if index not in done]
    if done and state.is_main_process:
        print(f"resumed: {len(done)} of {len(dataset)} images are done")
    share = remaining[state.process_index :: state.num_processes]
    with (
        work.append_to(state.process_index) as part,
        tqdm(total=len(share), unit="image", disable=not state.is_main_process) as bar,
    ):
        record_images(
            model,
            image_processor,
            dataset,
            share,
            recorder,
            part,
            settings=settings,
            sources=sources,
            num_workers=args.num_workers,
            progress=bar.update,
        )
    state.wait_for_everyone()
    if state.is_main_process:
        by_row = work.read()
        records = [by_row[index] for index in range(len(dataset))]
        if args.submission:
            recorder.submission.check(args.submission, {record.image_id: record.size for record in records})
            print(f"submission: {len(records)} label maps in {args.submission / recorder.submission.folder}, all checked")
        if is_labelled(dataset):
            matrices = np.stack([record.matrix(label_space.num_classes) for record in records])
            if not matrices.any():
                work.remove()  # `report` says so; label maps that are to be changed are no reason to resume
            if replaces:
                print(f"replaced: the scores of an earlier run of the same evaluation in {output}")
            report(args, settings, output, state, label_space, records, matrices, identity, unpartnered(label_space, sources))
            if args.worst:
                places = worst_images(matrices, args.worst)
                draw_worst(settings, output, places, dataset, label_space, model, image_processor, sources)
        work.remove()
    state.destroy_process_group()


def check_arguments(args, state):
    """The inference settings; what cannot be done is said before the work begins."""
    if args.device == "cuda" and state.device.type != "cuda":
        raise RecipeError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    for name in ("num_workers", "worst"):
        if (getattr(args, name) or 0) < 0:
            raise RecipeError(f"--{name} {getattr(args, name)}: give 0 or more")
    if args.plot and find_spec("matplotlib") is None:
        raise RecipeError("--plot needs matplotlib: pip install matplotlib, or leave it out")
    if args.submission and args.submission.exists() and not args.submission.is_dir():
        raise RecipeError(f"--submission {args.submission} is a file: name a folder")
    return inference_settings(args)


def on_main_process(state, action: Callable[[], Any]) -> Any:
    """Calls `action` on the main process; all wait for it and get its result, and an error there is one of all.

    So none waits for ever.
    """
    result = error = None
    if state.is_main_process:
        try:
            result = action()
        except (OSError, RevHRNetError) as raised:
            error = raised
    result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return result


def identity_of(args, settings, dataset, label_space, data: str) -> dict:
    """What tells this evaluation from others that could lie in the same file; see `results.IDENTITY`."""
    return {
        # A folder's place on this machine is nobody else's business.
        "checkpoint": Path(args.checkpoint).resolve().name if Path(args.checkpoint).is_dir() else args.checkpoint,
        "dataset": args.dataset_name,
        "loader": args.dataset,
        "split": args.split,
        "label_space": label_space.name,
        "label_table": digest_of_table(label_space),
        "image_ids": digest_of_ids(dataset["image_id"]),
        "data": data,
        "absent_as_zero": args.absent_as_zero,
        "dtype": args.dtype,
        "inference": settings.to_dict(),
    }


def what_is_scored(args, settings, state, dataset, label_space, data: str) -> dict:
    """All that the records of the images depend on."""
    return {
        "checkpoint": weights_stamp(args.checkpoint),
        "dataset": args.dataset,
        "split": args.split,
        "label_space": label_space.to_json(),
        "image_ids": digest_of_ids(dataset["image_id"]),
        "data": data,
        "inference": settings.to_dict(),
        "dtype": args.dtype,
        "device": state.device.type,
        "boundary": args.boundary,
        "submission": args.submission and str(args.submission.resolve()),
    }


def format_sources(config, label_space, sources) -> str:
    """The checkpoint's classes that each of the dataset's classes is made of."""
    lines = [f"The checkpoint has other classes ({config.num_labels}); what each of {label_space.name!r} is made of:"]
    for name, of in zip(label_space.names, sources, strict=True):
        made_of = " + ".join(config.id2label[class_id] for class_id in of)
        lines.append(f"  {name} = {made_of or 'nothing: it is never predicted'}")
    return "\n".join(lines)


def output_file(args, settings) -> Path:
    """Where the JSON goes; said before the work begins if it cannot go there."""
    is_folder = Path(args.checkpoint).is_dir()
    stem = result_stem(
        args.dataset_name,
        args.split,
        settings,
        loader=args.dataset if args.dataset in OWN and not args.is_named else None,
        dtype=args.dtype,
        label_space=args.label_space,
        absent_as_zero=args.absent_as_zero,
        checkpoint=None if is_folder else args.checkpoint,
    )
    output = args.output or (Path(args.checkpoint) if is_folder else Path()) / f"{stem}.json"
    if output.suffix != ".json":
        raise RecipeError(f"--output {output}: name a file that ends with .json; the CSV and the images beside it get its name")
    if not output.parent.is_dir():
        raise RecipeError(f"--output {output}: there is no folder {output.parent}; make it first")
    return output


def unpartnered(label_space, sources) -> list[str]:
    """The dataset's classes that no class of the checkpoint stands for."""
    return [name for name, of in zip(label_space.names, sources or [], strict=sources is not None) if not of]


def report(args, settings, output, state, label_space, records: list[ImageRecord], matrices, identity, never) -> None:
    names = label_space.names
    confusion = ConfusionMatrix(label_space.num_classes, label_space.ignore_index)
    confusion.matrix = torch.from_numpy(matrices.sum(0))
    scores = confusion.scores(names, args.absent_as_zero)
    check_labelled(scores, f"the split {args.split!r} of {args.dataset_name}")
    if args.boundary:
        scores |= boundary_scores(sum(np.array(record.boundary) for record in records))
    if all(record.objects is not None for record in records):
        objects = np.concatenate([np.array(record.objects, np.int64).reshape(-1, 4) for record in records])
        scores |= cityscapes_scores(matrix_of_ids(confusion.matrix.numpy()), objects)
    intervals = bootstrap_intervals(matrices) if not args.absent_as_zero else None
    print(format_scores(scores, names, intervals, never))
    print(f"images: {len(records)}; {settings}")
    record = {
        **{key: identity[key] for key in ("checkpoint", *DATA)},
        "images": len(records),
        "class_names": list(names),
        "never_predicted": never,
        "scores": scores,
        "confidence_intervals_95": intervals,
        "confusion_matrix": confusion.matrix.tolist(),
        "settings": {
            "device": state.device.type,
            "dtype": args.dtype,
            "absent_as_zero": args.absent_as_zero,
            "num_processes": state.num_processes,
            "inference": str(settings),
            **settings.to_dict(),
        },
        "versions": versions(),
    }
    images = output.with_suffix(".csv")
    write_image_scores(images, names, [record.image_id for record in records], matrices)
    written = [output, images]
    if args.plot:
        written.append(output.with_name(f"{output.stem}_confusion.png"))
        plot(written[-1], confusion.matrix.numpy(), names, record)
    write_json(output, record)
    if output.parent.resolve() == Path(args.checkpoint).resolve():
        refresh_model_card(output.parent)
    print(f"written: {', '.join(map(str, written))}")


def plot(file, matrix, names, record) -> None:
    from revhrnet_hf.viz.plots import confusion_figure, save_figure  # matplotlib is an extra

    caption = f"{record['checkpoint']} on {record['dataset']} {record['split']}, {record['settings']['inference']}"
    save_figure(confusion_figure(matrix, names, caption), file)


def draw_worst(settings, output, places, dataset, label_space, model, image_processor, sources) -> None:
    """Truth above prediction, each laid over the image."""
    folder = output.with_name(f"{output.stem}_worst")
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9]*_*.png"):
        old.unlink()
    colours = label_space.colours if any(map(any, label_space.colours)) else default_palette(label_space.num_classes)
    for rank, place in enumerate(places, 1):
        row = dataset[place]
        image, truth = row["image"], np.array(row["label_map"])
        prediction = segment(
            model, image_processor, image, settings, target_size=truth.shape, sources=sources, name=row["image_id"]
        ).label_map
        image = image.resize(truth.shape[::-1])
        shown = [overlay(image, label_map, colours, 0.6, label_space.ignore_index) for label_map in (truth, prediction)]
        present = sorted({*np.unique(truth).tolist(), *np.unique(prediction).tolist()} - {label_space.ignore_index})
        figure = with_legend(stack_vertically(shown), label_space.names, colours, present)
        save_image(figure, folder / f"{rank:03d}_{row['image_id'].replace('/', '_')}.png")
    print(f"written: the {len(places)} worst images, truth above prediction, in {folder}")


if __name__ == "__main__":
    run(main)
