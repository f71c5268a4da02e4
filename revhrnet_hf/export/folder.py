"""The folder of an exported checkpoint: the network, its description, and on request a network of eight bits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.image_utils import PILImageResampling

from ..data import label_space_of
from ..evaluation import class_sources, evaluate_dataset
from ..io import write_folder, write_json
from ..models.image_processing_pil_revhrnet import Size
from ..versions import versions
from .agreement import check_agreement, drawn_batches
from .onnx_network import (
    CALIBRATION_IMAGES,
    INT8_FILE,
    ONNX_FILE,
    OnnxModel,
    calibration_batches,
    onnx_session,
    run_onnx,
    write_int8,
    write_onnx,
)
from .program import INPUT, PROGRAM_FILE, export_program

DESCRIPTION_FILE = "model.json"


@dataclass
class ScoredDataset:
    """A dataset's split, to measure what eight bits cost in mIoU."""

    name: str
    split: str
    rows: Any


@dataclass
class Export:
    """What is to be written.

    Args:
        model: any Transformers model for semantic segmentation.
        image_processor: the checkpoint's.
        format: onnx, or torch_export for a `torch.export` program.
        size: (height, width) of the one image that the network takes, pixels; None: any number of images of any size.
        opset: of ONNX; None: the one that PyTorch chooses.
        with_argmax: the network gives label maps instead of logits.
        calibration: files of images; with some, a network of eight bits is written, too (ONNX only).
        scored: with `calibration`, the dataset to compare both networks on.
    """

    model: torch.nn.Module
    image_processor: Any
    format: Literal["onnx", "torch_export"]
    size: Size | None = None
    opset: int | None = None
    with_argmax: bool = False
    calibration: Sequence[Path] = ()
    scored: ScoredDataset | None = None

    def write(self, output_dir: Path) -> None:
        """Write the folder, whole or not at all, and print what was checked.

        Raises:
            ExportError: the exported network does not agree with the checkpoint.
        """
        write_folder(output_dir, self.fill)

    def fill(self, folder: Path) -> None:
        """As `write`, into a folder that exists."""
        image_processor = for_size(self.image_processor, self.size)
        print("exporting (a minute or two)", flush=True)
        exported, record = self._write_network(folder)
        agreement = check_agreement(self.model, exported, drawn_batches(image_processor, self.size))
        difference = agreement.largest_difference
        logits = "" if difference is None else f"logits differ by {difference:.1e} at most, "
        print(
            f"agrees with the checkpoint on {agreement.images} drawn images: {logits}{100 * agreement.equal_pixels:.3f} % of the "
            "pixels get the same class",
            flush=True,
        )
        record = describe(self.model, image_processor, self.with_argmax) | record
        record |= {"sizes": self.size or "any", "agreement_with_the_checkpoint": asdict(agreement)}
        if self.calibration:
            record["int8"] = self._write_int8(folder, image_processor)
        write_json(folder / DESCRIPTION_FILE, record | {"versions": versions()})

    def _write_network(self, folder: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """The network as it was written and read again, and what the description says of its format."""
        program = export_program(self.model, self.size, self.with_argmax)
        if self.format == "onnx":
            opset = write_onnx(program, folder / ONNX_FILE, self.opset)
            session = onnx_session(folder / ONNX_FILE)
            return lambda pixel_values: run_onnx(session, pixel_values), {"format": "onnx", "opset": opset}
        torch.export.save(program, folder / PROGRAM_FILE)
        return torch.export.load(folder / PROGRAM_FILE).module(), {"format": "torch_export"}

    def _write_int8(self, folder: Path, image_processor) -> dict[str, Any]:
        batches = calibration_batches(image_processor, self.calibration)
        write_int8(folder / ONNX_FILE, folder / INT8_FILE, batches)
        record: dict[str, Any] = {"calibration_images": min(len(self.calibration), CALIBRATION_IMAGES)}
        if self.scored:
            record["mean_iou"] = self._int8_scores(folder, image_processor, self.scored)
        return record

    def _int8_scores(self, folder: Path, image_processor, scored: ScoredDataset) -> dict[str, Any]:
        """mIoU on the dataset of the network in 32 bits and in eight."""
        label_space = label_space_of(scored.rows)
        sources = class_sources(self.model.config, label_space, scored.name)
        scores = {"dataset": scored.name, "split": scored.split, "images": len(scored.rows)}
        for name, file in (("float32", ONNX_FILE), ("int8", INT8_FILE)):
            confusion = evaluate_dataset(
                OnnxModel(folder / file),
                image_processor,
                scored.rows,
                label_space.num_classes,
                ignore_index=label_space.ignore_index,
                sources=sources,
            )
            scores[name] = confusion.scores(label_space.names)["mean_iou"]
            print(f"mIoU on {scored.name} {scored.split}, {name}: {scores[name]:.4f}", flush=True)
        return scores


def for_size(image_processor, size: Size | None):
    """An image processor that resizes every image to `size`; the same one if any size is allowed."""
    if size is None:
        return image_processor
    settings = image_processor.to_dict() | {"do_resize": True, "size": {"height": size[0], "width": size[1]}}
    return type(image_processor).from_dict(settings | {"do_pad": False, "do_center_crop": False})


def describe(model, image_processor, with_argmax: bool) -> dict[str, Any]:
    """The description of an exported network, for programs that do not have this package."""
    config, options = model.config, image_processor
    resize = None
    channels = "BGR" if getattr(options, "do_flip_channel_order", None) else "RGB"
    if options.do_resize:
        resize = {"size": dict(options.size), "resample": PILImageResampling(options.resample).name.lower()}
    label_map = "class ids, int64 (batch, height, width)"
    logits = (
        "logits, float32 (batch, classes, rows, columns): resize them bilinearly (half-pixel centres) to the size wanted, "
        "then take the largest"
    )
    return {
        "input": {
            "name": INPUT,
            "shape": f"(batch, 3, height, width), float32, {channels}",
            "resize": resize,
            "values": "(value * rescale_factor - mean) / std, of values from 0 to 255",
            "rescale_factor": options.rescale_factor if options.do_rescale else 1,
            "mean": list(options.image_mean) if options.do_normalize else [0.0] * 3,
            "std": list(options.image_std) if options.do_normalize else [1.0] * 3,
        },
        "output": {"name": "label_map", "is": label_map} if with_argmax else {"name": "logits", "is": logits},
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "palette": getattr(config, "palette", None),
    }
