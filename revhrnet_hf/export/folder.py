"""The folder of an exported checkpoint: the network, its description, and on request a network of eight bits."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers.image_utils import PILImageResampling

from ..data import label_space_of
from ..defaults import MAX_DROP
from ..errors import ExportError
from ..evaluation import class_sources
from ..evaluation.evaluator import evaluate_images
from ..evaluation.network_input import network_inputs
from ..evaluation.settings import WHOLE
from ..io import refuse_used_folder, write_folder, write_json
from ..models.backbone_maps import fixed_size_in
from ..models.image_processing_pil_revhrnet import Size
from ..synthetic import draw_scenes
from ..versions import versions
from .agreement import check_agreement, drawn_batches
from .exported_model import ExportedModel
from .onnx_network import (
    CALIBRATION_IMAGES,
    INT8_FILE,
    ONNX_FILE,
    OnnxModel,
    calibration_batches,
    onnx_session,
    run_onnx,
    spread,
    write_int8,
    write_onnx,
)
from .openvino_network import (
    OPENVINO_FILE,
    OPENVINO_INT8_FILE,
    OpenVinoModel,
    compiled_openvino,
    run_openvino,
    write_openvino,
    write_openvino_int8,
)
from .program import INPUT, PROGRAM_FILE, export_program, label_dtype, without_backbone_dtype

DESCRIPTION_FILE = "model.json"
ODD_SIZE = (37, 53)  # (height, width) of the image on which an image processor's padding is seen
ONNX_FORMS = {"float32": ONNX_FILE, "int8": INT8_FILE}
OPENVINO_FORMS = {"float32": OPENVINO_FILE, "int8": OPENVINO_INT8_FILE}


@dataclass
class ScoredDataset:
    """A dataset's split, to measure what eight bits cost in mIoU, or to limit it."""

    name: str
    split: str
    rows: Any


@dataclass
class Export:
    """What is to be written.

    Args:
        model: any Transformers model for semantic segmentation.
        image_processor: the checkpoint's.
        format: onnx, openvino, or torch_export for a `torch.export` program.
        size: (height, width) of the one image that the network takes, pixels; None: any number of images of any size.
        opset: of ONNX; None: the one that PyTorch chooses.
        with_argmax: the network gives label maps instead of logits.
        calibration: files of images; with some, a network of eight bits is written, too (ONNX only).
        control: labelled images; with some, a network of eight bits is written, too (OpenVINO only), whose mIoU on
            `CALIBRATION_IMAGES` of them is controlled.
        max_drop: the most by which that mIoU may fall.
        scored: with `calibration` or `control`, the dataset to compare both networks on.
    """

    model: torch.nn.Module
    image_processor: Any
    format: Literal["onnx", "openvino", "torch_export"]
    size: Size | None = None
    opset: int | None = None
    with_argmax: bool = False
    calibration: Sequence[Path] = ()
    control: ScoredDataset | None = None
    max_drop: float = MAX_DROP
    scored: ScoredDataset | None = None

    def write(self, output_dir: Path) -> None:
        """Write the folder, whole or not at all, and print what was checked.

        Raises:
            CheckpointError: there is such a folder, and it is not empty.
            ExportError: the exported network does not agree with the checkpoint.
        """
        refuse_used_folder(output_dir)
        write_folder(output_dir, self.fill)

    def fill(self, folder: Path) -> None:
        """As `write`, into a folder that exists."""
        self._check_size()
        image_processor = for_size(self.image_processor, self.size)
        print("exporting (a minute or two)", flush=True)
        exported, record = self._write_network(folder)
        with without_backbone_dtype(self.model):
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
        if self.calibration or self.control:
            record["int8"] = self._write_int8(folder, image_processor)
        write_json(folder / DESCRIPTION_FILE, record | {"versions": versions()})

    def _check_size(self) -> None:
        """Raises an ExportError if the network's backbone accepts images of one size only, and `size` is not that size."""
        fixed_size = fixed_size_in(self.model)
        if fixed_size not in (None, self.size):
            height, width = fixed_size
            raise ExportError(
                f"the checkpoint's backbone takes images of {height}×{width} pixels only: export it with --size {height} "
                f"{width}. Nothing was written"
            )

    def _write_network(self, folder: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
        """The network as it was written and read again, and what the description says of its format."""
        program = export_program(self.model, self.size, self.with_argmax)
        if self.format == "onnx":
            opset = write_onnx(program, folder / ONNX_FILE, self.opset)
            session = onnx_session(folder / ONNX_FILE)
            return lambda pixel_values: run_onnx(session, pixel_values), {"format": "onnx", "opset": opset}
        if self.format == "openvino":
            write_openvino(program, folder / OPENVINO_FILE)
            network = compiled_openvino(folder / OPENVINO_FILE)
            return lambda pixel_values: run_openvino(network, pixel_values), {"format": "openvino"}
        torch.export.save(program, folder / PROGRAM_FILE)
        return torch.export.load(folder / PROGRAM_FILE).module(), {"format": "torch_export"}

    def _write_int8(self, folder: Path, image_processor) -> dict[str, Any]:
        if self.format == "openvino":
            record = self._write_openvino_int8(folder, image_processor, self.control)
            forms = {name: OpenVinoModel(folder / file) for name, file in OPENVINO_FORMS.items()}
        else:
            batches = calibration_batches(image_processor, self.calibration)
            write_int8(folder / ONNX_FILE, folder / INT8_FILE, batches)
            record = {"calibration_images": min(len(self.calibration), CALIBRATION_IMAGES)}
            forms = {name: OnnxModel(folder / file) for name, file in ONNX_FORMS.items()}
        if self.scored:
            record["mean_iou"] = self._scores(forms, image_processor, self.scored)
        return record

    def _write_openvino_int8(self, folder: Path, image_processor, control: ScoredDataset) -> dict[str, Any]:
        """A network of eight bits under the control of mIoU, and what the description says of it."""
        rows = control.rows.select(spread(len(control.rows), CALIBRATION_IMAGES))

        def pixel_values(number: int) -> Tensor:
            [whole] = network_inputs(image_processor, rows[number]["image"], WHOLE)
            return whole.tensors["pixel_values"]

        def score(network: ExportedModel, numbers: Iterable[int]) -> float:
            return self._mean_iou(network, image_processor, control.name, rows, list(numbers))

        print(f"quantising under the control of the mIoU of {len(rows)} images (minutes, or hours if it falls)", flush=True)
        write_openvino_int8(folder / OPENVINO_FILE, folder / OPENVINO_INT8_FILE, len(rows), pixel_values, score, self.max_drop)
        everything = range(len(rows))
        before, after = (score(OpenVinoModel(folder / file), everything) for file in OPENVINO_FORMS.values())
        print(f"mIoU on these images: {before:.4f} in float32, {after:.4f} in int8", flush=True)
        if before - after > self.max_drop:
            raise ExportError(
                f"in eight bits the mIoU falls by {before - after:.4f} on {control.name} {control.split}, more than --max_drop "
                f"{self.max_drop}, whatever is left in 32 bits. Nothing was written"
            )
        return {
            "calibration_images": len(rows),
            "max_drop": self.max_drop,
            "control": {"dataset": control.name, "split": control.split, "float32": before, "int8": after},
        }

    def _scores(self, forms: dict[str, ExportedModel], image_processor, scored: ScoredDataset) -> dict[str, Any]:
        """mIoU on the dataset of the network in 32 bits and in eight."""
        scores = {"dataset": scored.name, "split": scored.split, "images": len(scored.rows)}
        for name, network in forms.items():
            scores[name] = self._mean_iou(network, image_processor, scored.name, scored.rows, range(len(scored.rows)))
            print(f"mIoU on {scored.name} {scored.split}, {name}: {scores[name]:.4f}", flush=True)
        return scores

    def _mean_iou(self, network: ExportedModel, image_processor, dataset_name: str, rows, indices: Sequence[int]) -> float:
        label_space = label_space_of(rows)
        confusion = evaluate_images(
            network,
            image_processor,
            rows,
            indices,
            label_space.num_classes,
            ignore_index=label_space.ignore_index,
            sources=class_sources(self.model.config, label_space, dataset_name),
        )
        return confusion.scores(label_space.names)["mean_iou"]


def for_size(image_processor, size: Size | None):
    """An image processor that resizes every image to `size`; the same one if any size is allowed."""
    if size is None:
        return image_processor
    settings = image_processor.to_dict() | {"do_resize": True, "size": {"height": size[0], "width": size[1]}}
    return type(image_processor).from_dict(settings | {"do_pad": False, "do_center_crop": False})


def padding_of(image_processor) -> dict[str, Any] | None:
    """The description of an image processor's padding; None if it does not pad.

    Raises:
        ExportError: it pads in a way for which a description has no words.
    """
    if not getattr(image_processor, "do_pad", None):
        return None
    size = getattr(image_processor, "pad_size", None)
    multiple = getattr(image_processor, "size_divisor", None) or 1
    # Seen on an image, because other image processors have these options too, and some of them centre the image.
    [scene] = draw_scenes("val", 1, ODD_SIZE, seed=0)
    [drawn] = network_inputs(image_processor, Image.fromarray(scene.image), WHOLE)
    (height, width), pixel_values = drawn.size, drawn.tensors["pixel_values"]
    padded = (size["height"], size["width"]) if size else (height + -height % multiple, width + -width % multiple)
    expected = torch.zeros(1, 3, *padded)
    expected[..., :height, :width] = pixel_values[..., :height, :width]
    if drawn.place != (0, 0) or not torch.equal(pixel_values, expected):
        raise ExportError(
            f"{type(image_processor).__name__} pads images in a way that {DESCRIPTION_FILE} cannot describe: set do_pad to false "
            "in its preprocessor_config.json, or export it with --size HEIGHT WIDTH. Nothing was written"
        )
    to = {"size": {"height": padded[0], "width": padded[1]}} if size else {"multiple": multiple}
    return {**to, "is": "rows at the bottom and columns at the right, of 0, after normalization; logits cover them too"}


def describe(model, image_processor, with_argmax: bool) -> dict[str, Any]:
    """The description of an exported network, for programs that do not have this package."""
    config, options = model.config, image_processor
    resize = None
    channels = "BGR" if getattr(options, "do_flip_channel_order", None) else "RGB"
    if options.do_resize:
        resize = {"size": dict(options.size), "resample": PILImageResampling(options.resample).name.lower()}
    label_map = f"class ids, {str(label_dtype(config.num_labels)).removeprefix('torch.')} (batch, height, width)"
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
            "pad": padding_of(image_processor),
        },
        "output": {"name": "label_map", "is": label_map} if with_argmax else {"name": "logits", "is": logits},
        "labels": [config.id2label[index] for index in range(config.num_labels)],
        "palette": getattr(config, "palette", None),
    }
