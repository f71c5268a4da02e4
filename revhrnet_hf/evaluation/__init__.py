"""Judging: label maps of whole images, one confusion matrix over a dataset, and every score read off it."""

from .checkpoint import add_trust_argument, check_same_classes, class_sources, load_checkpoint
from .cityscapes import CityscapesMetric
from .confusion import ConfusionMatrix, SegmentationMetric
from .predict import Predicted, Segmentation, evaluate_dataset, predict_dataset, predict_label_maps, segment
from .scores import check_labelled, format_scores
from .settings import InferenceSettings, add_inference_arguments, inference_settings

__all__ = [
    "CityscapesMetric",
    "ConfusionMatrix",
    "InferenceSettings",
    "Predicted",
    "Segmentation",
    "SegmentationMetric",
    "add_inference_arguments",
    "add_trust_argument",
    "check_labelled",
    "check_same_classes",
    "class_sources",
    "evaluate_dataset",
    "format_scores",
    "inference_settings",
    "load_checkpoint",
    "predict_dataset",
    "predict_label_maps",
    "segment",
]
