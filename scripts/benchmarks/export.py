"""Size, CPU time and mIoU of every form of a checkpoint, compared with the checkpoint in eager PyTorch, or with another network.

    python scripts/benchmark.py export CHECKPOINT --exported exported/onnx exported/openvino --size 540 720
    python scripts/benchmark.py export CHECKPOINT --compile --peer timm-hrnet-w48 --dataset camvid --data_dir CamVid --images 25

The forms are PyTorch's (eager, optimized for inference, in bfloat16, with --compile compiled), and those in the folders EXPORTED,
which `revhrnet export` wrote with --dynamic (or for this size) and without --with_argmax. They run one image at a time, in turns.
With one thread (OMP_NUM_THREADS=1) seconds are the processor's, so that other programs count less.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from revhrnet_hf import export
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.evaluation import class_sources, load_checkpoint, load_for_inference
from revhrnet_hf.evaluation.evaluator import evaluate_images
from revhrnet_hf.evaluation.sliding import first_parameter
from revhrnet_hf.export.onnx_network import spread

from .networks import NETWORKS, build, logits_of
from .timing import print_rows, take_turns

EAGER = "PyTorch"


def add_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder written by save_pretrained")
    parser.add_argument("--exported", type=Path, nargs="+", default=[], help="folders that `revhrnet export` wrote")
    parser.add_argument("--compile", action="store_true", help="by torch.compile too, which takes many minutes")
    parser.add_argument("--peer", choices=NETWORKS, help="network to whose eager time ratios refer (default: the checkpoint)")
    parser.add_argument("--size", type=int, nargs=2, default=(540, 720), metavar=("HEIGHT", "WIDTH"), help="default: 540 720")
    parser.add_argument("--rounds", type=int, default=5, help="turns; each network runs once in each (default: %(default)s)")
    parser.add_argument("--dataset", help="measure the mIoU of every form on this dataset too")
    parser.add_argument("--data_dir", type=Path, help="the dataset's folder")
    parser.add_argument("--split", default="val", help="part of the dataset (default: %(default)s)")
    parser.add_argument("--images", type=int, help="number of its images, evenly spread (default: all)")


@dataclass
class Form:
    """A network that gives logits like a Transformers model, and how many bytes it takes."""

    model: nn.Module
    size: int


def main(arguments) -> dict:
    forms = pytorch_forms(arguments)
    for folder in arguments.exported:
        forms |= exported_forms(folder)
    pixel_values = torch.randn(1, 3, *arguments.size)
    calls = {name: call_of(form.model, pixel_values) for name, form in forms.items()}
    if arguments.peer:
        peer = build(arguments.peer, forms[EAGER].model.config.num_labels).eval()
        calls = {arguments.peer: lambda: logits_of(peer, pixel_values)} | calls
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.inference_mode():
        rows = take_turns(calls, arguments.peer or EAGER, arguments.rounds, "cpu", clock)
    scores = mean_ious(forms, arguments) if arguments.dataset else {}
    for row in rows:
        row |= {"MB": forms[row["name"]].size / 1e6 if row["name"] in forms else None, "mIoU": scores.get(row["name"])}
    print_rows(rows, {"name": "", "MB": ".1f", "seconds": ".3f", "ratio": ".3f", "mIoU": ".4f"})
    return {"size": list(arguments.size), "rounds": arguments.rounds, "images": arguments.images, "forms": rows}


def call_of(model: nn.Module, pixel_values: torch.Tensor):
    inputs = pixel_values.to(first_parameter(model).dtype)
    return lambda: model(pixel_values=inputs)


def pytorch_forms(arguments) -> dict[str, Form]:
    """The forms that need no export. Networks of other packages cannot be optimized, and have the eager form only."""
    model, _ = load_checkpoint(arguments.checkpoint)
    forms = {EAGER: model}
    if hasattr(model, "optimize_for_inference"):
        forms["optimized"], _ = load_for_inference(arguments.checkpoint)
        forms["optimized, bfloat16"], _ = load_for_inference(arguments.checkpoint, dtype=torch.bfloat16)
    if arguments.compile:
        forms["compiled"], _ = load_for_inference(arguments.checkpoint, compiled=True)
    return {name: Form(form, sum(x.nbytes for x in form.state_dict().values())) for name, form in forms.items()}


def exported_forms(folder: Path) -> dict[str, Form]:
    """The networks in a folder, by the name for the table."""
    if not (folder / export.DESCRIPTION_FILE).is_file():
        raise RecipeError(f"--exported {folder} has no {export.DESCRIPTION_FILE}: give a folder that `revhrnet export` wrote")
    kind = json.loads((folder / export.DESCRIPTION_FILE).read_text(encoding="utf-8"))["format"]
    found = {}
    for file in (export.ONNX_FILE, export.INT8_FILE):
        if (folder / file).is_file():
            found[f"{kind}, {file}"] = Form(export.OnnxModel(folder / file), (folder / file).stat().st_size)
    for file, precision in ((export.OPENVINO_FILE, "f32"), (export.OPENVINO_FILE, "bf16"), (export.OPENVINO_INT8_FILE, "f32")):
        if (folder / file).is_file():
            size = sum((folder / file).with_suffix(ending).stat().st_size for ending in (".xml", ".bin"))
            found[f"{kind}, {file}, {precision}"] = Form(export.OpenVinoModel(folder / file, precision=precision), size)
    if (folder / export.PROGRAM_FILE).is_file():
        program = torch.export.load(folder / export.PROGRAM_FILE).module()
        found[f"torch.export, {export.PROGRAM_FILE}"] = Form(
            export.ExportedModel(program), (folder / export.PROGRAM_FILE).stat().st_size
        )
    return found


def mean_ious(forms: dict[str, Form], arguments) -> dict[str, float]:
    """The mIoU of each form, by the code of scripts/evaluate_seg.py."""
    rows = load_segmentation_dataset(arguments.dataset, arguments.data_dir, arguments.split)
    space = label_space_of(rows)
    _, image_processor = load_checkpoint(arguments.checkpoint)
    sources = class_sources(forms[EAGER].model.config, space, arguments.dataset)
    indices = spread(len(rows), arguments.images or len(rows))
    scores = {}
    for name, form in forms.items():
        confusion = evaluate_images(
            form.model, image_processor, rows, indices, space.num_classes, ignore_index=space.ignore_index, sources=sources
        )
        scores[name] = confusion.scores(space.names)["mean_iou"]
        print(f"mIoU of {name} on {len(indices)} images: {scores[name]:.4f}", flush=True)
    return scores
