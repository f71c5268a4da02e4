"""Scores for `transformers.Trainer`, counted batch by batch in one confusion matrix: neither logits nor label maps are kept."""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from transformers import EvalPrediction

from ..models.upsampling import MAX_UINT8_CLASSES, upsampled_argmax
from .confusion import ConfusionMatrix
from .scores import SUMMARY, check_labelled

PADDING = -100  # Trainer pads label maps with it to one height for all processes


class TrainerMetrics:
    """The scores of this package as `compute_metrics` of `transformers.Trainer`.

        metrics = TrainerMetrics(model.config.id2label)
        arguments = TrainingArguments(…, batch_eval_metrics=True)
        Trainer(model, arguments, …, compute_metrics=metrics, preprocess_logits_for_metrics=metrics.label_maps)

    The label maps are predicted at the size of `labels`. If these have the images' own size, the confusion matrix is that of
    `revhrnet evaluate`. Images of different sizes need `per_device_eval_batch_size=1`.

    Args:
        id2label: name of each class id, as in a model's config.
        ignore_index: the label of pixels that do not count.

    Attributes:
        confusion: the counts since the last result.
    """

    def __init__(self, id2label: Mapping[int, str], ignore_index: int = 255):
        names = {int(class_id): name for class_id, name in id2label.items()}  # in a config.json the ids are text
        self.names = [names[class_id] for class_id in range(len(names))]
        self.ignore_index = ignore_index
        self.confusion = ConfusionMatrix(len(self.names), ignore_index)

    def label_maps(self, logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
        """Predicted class ids, (batch, height, width), for `preprocess_logits_for_metrics`.

        Args:
            logits: (batch, classes, h, w), or a model's outputs, of which they are the first.
            labels: (batch, height, width); rows that Trainer has padded, on several processes, are at the bottom.
        """
        logits = logits[0] if isinstance(logits, tuple) else logits
        height, width = labels.shape[1:]
        if self.ignore_index != PADDING and _on_several_processes():
            height = int((labels != PADDING).any(dim=2).any(dim=0).sum())
        dtype = torch.uint8 if len(self.names) <= MAX_UINT8_CLASSES else torch.int32
        maps = torch.zeros(labels.shape, dtype=dtype, device=logits.device)
        for place, image in enumerate(logits):
            maps[place, :height] = upsampled_argmax(image, (height, width), dtype=dtype)
        return maps

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Counts a batch of `label_maps`, or all of them.

        Args:
            prediction: its `predictions` are those of `label_maps`.
            compute_result: whether this is the last batch of an evaluation.

        Returns:
            After the last batch the means and the IoU of each class that occurs, shares from 0 to 1; else nothing.

        Raises:
            DataError: a label is neither a class nor ignored, or no pixel of the evaluation was labelled.
        """
        labels = torch.as_tensor(prediction.label_ids)
        padded = (labels == PADDING).all(dim=2).flip(1).cumprod(dim=1).flip(1).bool()  # the rows at the bottom of each image
        self.confusion.update(torch.as_tensor(prediction.predictions), labels.masked_fill(padded[..., None], self.ignore_index))
        if not compute_result:
            return {}
        scores = self.confusion.scores()
        self.confusion.reset()
        check_labelled(scores, "the evaluation dataset")
        of_classes = zip(self.names, scores["per_category_iou"], strict=True)
        return {name: scores[name] for name in SUMMARY} | {f"iou_{name}": iou for name, iou in of_classes if not math.isnan(iou)}


def _on_several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
