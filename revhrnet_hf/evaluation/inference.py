"""Label maps from a model and pictures, and the confusion matrix of a model on a data set.

Any Transformers model for semantic segmentation will do, with its own image processor. Pictures are run one by one: a
batch of several can change the last bits of the logits, and then the label map would depend on a picture's neighbours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import CheckpointError, DataError
from .confusion import ConfusionMatrix


def predict_label_maps(model, image_processor, images, target_sizes=None) -> list[np.ndarray]:
    """Segments whole pictures; the label maps are those of `pipeline("image-segmentation")`.

    Args:
        model: a Transformers model for semantic segmentation, on any device. It is run in eval mode; each of its
            modules is then put back into the mode it was in.
        image_processor: its image processor, with `post_process_semantic_segmentation`.
        images: PIL pictures of any sizes.
        target_sizes: (height, width) of each label map; by default the pictures' own.

    Returns:
        One (height, width) array of class ids a picture: uint8, or uint16 where there are more than 256 classes.

    Raises:
        DataError: the numbers of pictures and of target sizes differ.
        CheckpointError: the model's logits are not finite.
    """
    sizes = [(image.height, image.width) for image in images] if target_sizes is None else target_sizes
    if len(sizes) != len(images):
        raise DataError(f"{len(sizes)} target sizes were given for {len(images)} pictures: give one a picture")
    with _inference(model):
        return [
            _predict(model, image_processor, _model_inputs(image_processor, image), size, f"picture {number}").cpu().numpy()
            for number, (image, size) in enumerate(zip(images, sizes, strict=True))
        ]


def evaluate_dataset(
    model,
    image_processor,
    dataset,
    num_labels: int,
    *,
    ignore_index: int = 255,
    sources: list[list[int]] | None = None,
    process_index: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ConfusionMatrix:
    """Scores a model on a data set: whole pictures, each prediction at its label map's own size.

    With several processes each takes every `num_processes`-th picture, so that every picture is counted once; the sum
    of their matrices (`accelerator.reduce(confusion.matrix, "sum")`) is then exactly the matrix of one process.

    Args:
        model, image_processor: as in `predict_label_maps`; the bare model, not one wrapped for distributed training.
        dataset: a `datasets.Dataset` with the columns `image` (PIL, RGB), `label_map` (PIL, mode L, train ids) and
            `image_id`.
        num_labels: number of classes of the label maps, and of the model unless `sources` is given.
        ignore_index: the id of pixels that do not count.
        sources: for each class of the label maps the model's classes that count as it, whose probabilities are summed;
            the model's own classes if None.
        process_index, num_processes: which share of the pictures to take, of how many.
        num_workers: processes that read and prepare pictures; 0 does it in this one.
        progress: is called with 1 after each picture (a progress bar's `update`).

    Returns:
        The matrix of this process's pictures, on the model's device.

    Raises:
        DataError: a picture cannot be read, or a label map holds an id that is neither a class nor ignored.
        CheckpointError: the model's logits are not finite.
    """
    confusion = ConfusionMatrix(num_labels, ignore_index, device=_parameter(model).device)
    samples = _Samples(dataset, range(process_index, len(dataset), num_processes), image_processor)
    loader = DataLoader(samples, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers)
    with _inference(model):
        for inputs, references, image_id in loader:
            where = f"picture {image_id}"
            predictions = _predict(model, image_processor, inputs, references.shape, where, sources)
            confusion.update(predictions, references, image_ids=[image_id])
            if progress is not None:
                progress(1)
    return confusion


class _Samples(Dataset):
    """A process's share of a data set: model inputs, reference ids (height, width), picture's id."""

    def __init__(self, dataset, indices, image_processor):
        self.dataset, self.indices, self.image_processor = dataset, indices, image_processor

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        row = self.dataset[self.indices[position]]
        references = torch.from_numpy(np.array(row["label_map"]))
        return _model_inputs(self.image_processor, row["image"]), references, row["image_id"]


def _as_it_is(sample):
    return sample


def _model_inputs(image_processor, image):
    return image_processor(images=[image], return_tensors="pt")


def merge_classes(logits: torch.Tensor, sources: list[list[int]]) -> torch.Tensor:
    """Logits of classes that are each made of several: their probabilities summed.

    A class without sources is never the best. As the softmax's denominator is common to all, the logit of a sum of probabilities
    is the logarithm of the sum of exponentials.

    Args:
        logits: (batch, classes, height, width).
        sources: for each new class the old classes it is made of.

    Returns:
        (batch, len(sources), height, width).
    """
    never = torch.full_like(logits[:, :1], torch.finfo(logits.dtype).min / 4)
    return torch.cat([logits[:, of].logsumexp(1, keepdim=True) if of else never for of in sources], dim=1)


def _predict(model, image_processor, inputs, size, where, sources=None):
    """Class ids (height, width) on the model's device, in the smallest type that holds them."""
    parameter = _parameter(model)
    # Dtype applies to the floating-point inputs only.
    outputs = model(**inputs.to(parameter.device, parameter.dtype))
    if not torch.isfinite(outputs.logits).all():
        raise CheckpointError(
            f"{where}: the model's logits hold NaN or infinity, so its label map would mean nothing; the training has "
            f"diverged, or {outputs.logits.dtype} is too narrow (try float32)"
        )
    if sources is not None:
        outputs.logits = merge_classes(outputs.logits, sources)
    label_map = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[tuple(size)])[0]
    return label_map.to(torch.uint8 if outputs.logits.shape[1] <= 256 else torch.uint16)


def _parameter(model):
    return next(model.parameters())


@contextmanager
def _inference(model) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in its own mode (parts may be frozen in eval)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
