"""Score a semantic segmentation checkpoint on a data set, at the label maps' own size.

    python scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --split val
    accelerate launch --num_processes 2 scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --split val
    torchrun --nproc_per_node 2 scripts/evaluate_seg.py CHECKPOINT --dataset camvid --data_dir DIR --device cpu

CHECKPOINT is a folder or a Hub name; any model that Transformers loads as AutoModelForSemanticSegmentation will do, if
its classes are the data set's, or are joined to them by a table (Mapillary Vistas → Cityscapes, COCO → VOC, …): then the
probabilities of partners are summed. Prints a table and writes scores, confusion matrix and settings as JSON. The number of
processes does not change a digit (accelerate launch starts several on GPUs only; torchrun on the CPU too).
"""

import argparse
from pathlib import Path

import accelerate
import torch
from tqdm import tqdm

from revhrnet_hf.cli import run
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import class_sources, evaluate_dataset, format_scores, load_checkpoint, write_json
from revhrnet_hf.report.model_card import refresh_model_card
from revhrnet_hf.versions import versions


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained, or a Hub name")
    parser.add_argument("--dataset", required=True, help="data set by name: camvid, folder, hub …")
    parser.add_argument(
        "--data_dir", required=True, type=Path, help="the data set's folder, as its owner ships it; for hub, its name or folder"
    )
    parser.add_argument("--split", default="val", help="part of the data set to score (default: %(default)s)")
    parser.add_argument("--label_space", help="classes by name, or a label table (default: the data set's usual ones)")
    parser.add_argument("--image_column", help="for hub, the column of pictures (default: image)")
    parser.add_argument("--label_column", help="for hub, the column of label maps (default: label_map)")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file to write (default: scores_DATASET_SPLIT.json in the checkpoint's folder, or in the current "
        "one for a Hub name)",
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
        default=2,
        help="processes that read pictures for each process that runs the model; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="number format of weights and pictures; bfloat16 is faster on a GPU and changes some pixels (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    args = parse_arguments(arguments)
    state = accelerate.PartialState(cpu=args.device == "cpu")
    if args.device == "cuda" and state.device.type != "cuda":
        raise RecipeError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    if args.num_workers < 0:
        raise RecipeError(f"--num_workers {args.num_workers}: give 0 or more")
    output = output_file(args)
    dataset = load_segmentation_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        label_space=args.label_space,
        image_column=args.image_column,
        label_column=args.label_column,
    )
    label_space = label_space_of(dataset)
    model, image_processor = load_checkpoint(args.checkpoint, getattr(torch, args.dtype))
    sources = class_sources(model.config, label_space, args.dataset)
    if sources is not None and state.is_main_process:
        print(format_sources(model.config, label_space, sources))

    share = len(range(state.process_index, len(dataset), state.num_processes))
    with tqdm(total=share, unit="picture", disable=not state.is_main_process) as bar:
        confusion = evaluate_dataset(
            model.to(state.device),
            image_processor,
            dataset,
            label_space.num_classes,
            ignore_index=label_space.ignore_index,
            sources=sources,
            process_index=state.process_index,
            num_processes=state.num_processes,
            num_workers=args.num_workers,
            progress=bar.update,
        )
    confusion.matrix = accelerate.utils.reduce(confusion.matrix, reduction="sum")
    if state.is_main_process:
        report(args, output, state, len(dataset), label_space, confusion)
    state.destroy_process_group()


def format_sources(config, label_space, sources) -> str:
    """What each of the data set's classes is made of."""
    lines = [f"The checkpoint has other classes ({config.num_labels}); what each of {label_space.name!r} is made of:"]
    for name, of in zip(label_space.names, sources, strict=True):
        made_of = " + ".join(config.id2label[class_id] for class_id in of)
        lines.append(f"  {name} = {made_of or 'nothing: it is never predicted'}")
    return "\n".join(lines)


def output_file(args) -> Path:
    """Where the JSON goes; said before the work begins if it cannot go there."""
    folder = Path(args.checkpoint) if Path(args.checkpoint).is_dir() else Path()
    output = args.output or folder / f"scores_{args.dataset}_{args.split}.json"
    if not output.parent.is_dir():
        raise RecipeError(f"--output {output}: there is no folder {output.parent}; make it first")
    return output


def report(args, output, state, num_pictures, label_space, confusion) -> None:
    names = label_space.names
    scores = confusion.scores(names)
    print(format_scores(scores, names))
    print(f"pictures: {num_pictures}")
    record = {
        # A folder's place on this machine is nobody else's business.
        "checkpoint": Path(args.checkpoint).resolve().name if Path(args.checkpoint).is_dir() else args.checkpoint,
        "dataset": args.dataset,
        "split": args.split,
        "label_space": label_space.name,
        "pictures": num_pictures,
        "class_names": list(names),
        "scores": scores,
        "confusion_matrix": confusion.matrix.tolist(),
        "settings": {
            "device": state.device.type,
            "dtype": args.dtype,
            "num_processes": state.num_processes,
            "inference": "whole picture",
        },
        "versions": versions(),
    }
    write_json(output, record)
    if output.parent == Path(args.checkpoint):
        refresh_model_card(output.parent)
    print(f"written: {output}")


if __name__ == "__main__":
    run(main)
