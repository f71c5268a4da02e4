"""Judging: label maps of whole pictures, one confusion matrix over a data set, and every score read off it."""

from .checkpoint import check_same_classes, class_sources, load_checkpoint
from .confusion import ConfusionMatrix, SegmentationMetric
from .inference import evaluate_dataset, predict_label_maps
from .scores import format_scores, without_nan, write_json

__all__ = [
    "ConfusionMatrix",
    "SegmentationMetric",
    "check_same_classes",
    "class_sources",
    "evaluate_dataset",
    "format_scores",
    "load_checkpoint",
    "predict_label_maps",
    "without_nan",
    "write_json",
]
