"""Whether an exported network agrees with its checkpoint."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..models.image_processing_pil_revhrnet import Size
from ..synthetic import draw_scenes
from .program import logits_or_label_map

ALLOWED_DIFFERENCE = 1e-3  # of logits
REQUIRED_EQUAL = 0.999  # share of the pixels that get the same class
CHECKED_SIZES = ((96, 128), (150, 107), (240, 320))  # (height, width); odd ones too


@dataclass(frozen=True)
class Agreement:
    """How much an exported network differs from the checkpoint.

    Attributes:
        images: number of images that were compared.
        largest_difference: of logits; None if the network gives label maps.
        equal_pixels: share of the pixels with the same class, at the input's size.
    """

    images: int
    largest_difference: float | None
    equal_pixels: float


def check_agreement(
    model: nn.Module,
    exported: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    allowed_difference: float = ALLOWED_DIFFERENCE,
    required_equal: float = REQUIRED_EQUAL,
) -> Agreement:
    """Compare an exported network with the checkpoint.

    Args:
        model: the checkpoint, not changed for the export.
        exported: `pixel_values` → logits or label maps.
        batches: `pixel_values` (batch, 3, height, width).
        allowed_difference: of logits.
        required_equal: share of the pixels that must get the same class.

    Raises:
        ExportError: the exported network does not take one of the sizes;
            logits differ by more than `allowed_difference`, or a share below `required_equal` of the pixels is equal;
            shapes or types differ; logits of either hold NaN or infinity; there is no image to compare.
    """
    images, differences, equal, pixels = 0, [], 0, 0
    with torch.inference_mode():
        for pixel_values in batches:
            logits, found = model(pixel_values=pixel_values).logits, _run(exported, pixel_values)
            label_maps = logits_or_label_map(logits, pixel_values, with_argmax=True)
            _check_form(found, logits, label_maps)
            if found.is_floating_point():
                differences.append(float((found - logits).abs().max()))
                found = logits_or_label_map(found, pixel_values, with_argmax=True)
            equal += int((found == label_maps).sum())
            pixels += label_maps.numel()
            images += len(pixel_values)
    if not pixels:
        raise ExportError("there is no image to compare what was exported with the checkpoint on. Nothing was written")
    largest = max(differences, default=None)
    agreement = Agreement(images, largest, equal / pixels)
    # Written so that NaN does not pass.
    same_logits = largest is None or largest <= allowed_difference
    if not (same_logits and agreement.equal_pixels >= required_equal):
        raise ExportError(
            f"what was exported is not the checkpoint: logits differ by {largest}, {100 * agreement.equal_pixels:.2f} % of the "
            f"pixels are equal; {allowed_difference} and {100 * required_equal} % are allowed. Nothing was written"
        )
    return agreement


def _run(exported: Callable[[Tensor], Tensor], pixel_values: Tensor) -> Tensor:
    try:
        return exported(pixel_values)
    except Exception as error:  # of torch.export or of ONNX Runtime, each of which has its own kinds
        height, width = pixel_values.shape[-2:]
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"what was exported does not take images of {height}×{width} pixels ({reason}): a part of the network, such as "
            "position embeddings that are kept from call to call, is fixed to the size of the traced image. Export it for one "
            "size: --size HEIGHT WIDTH. Nothing was written"
        ) from error


def _check_form(found: Tensor, logits: Tensor, label_maps: Tensor) -> None:
    """Check shape, type and finiteness of an exported network's output, before its values are compared."""
    expected = logits if found.is_floating_point() else label_maps
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ExportError(
            f"what was exported gives {found.dtype} of shape {tuple(found.shape)} where the checkpoint gives {expected.dtype} of "
            f"shape {tuple(expected.shape)}. Nothing was written"
        )
    for whose, values in (("the checkpoint", logits), ("what was exported", found)):
        if not torch.isfinite(values).all():
            raise ExportError(f"the logits of {whose} hold NaN or infinity, so nothing can be compared. Nothing was written")


def drawn_batches(image_processor, size: Size | None) -> list[Tensor]:
    """Drawn street scenes as `pixel_values`: one of the fixed size, or batches of 1, 2, … of several sizes.

    They are not padded: the network itself is to be compared at these sizes.
    """
    options = {"do_resize": False} | ({"do_pad": False} if getattr(image_processor, "do_pad", None) else {})
    batches = []
    for number, (height, width) in enumerate([size] if size else CHECKED_SIZES, start=1):
        scenes = draw_scenes("val", 1 if size else number, (height, width), seed=0)
        images = [scene.image for scene in scenes]
        batches.append(image_processor(images=images, **options, return_tensors="pt")["pixel_values"])
    return batches
