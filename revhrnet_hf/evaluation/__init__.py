"""Label maps of whole images, and the scores of a model on a dataset, all from one confusion matrix."""

from .checkpoint import check_same_classes, class_sources, find_checkpoint, load_checkpoint, load_for_inference
from .cityscapes import CityscapesMetric
from .confusion import ConfusionMatrix, SegmentationMetric
from .evaluator import evaluate_dataset
from .predict import Predicted, Segmentation, predict_dataset, predict_label_maps, segment, segment_frames
from .scores import check_labelled, format_scores
from .settings import InferenceSettings
from .trainer_metrics import TrainerMetrics

__all__ = [
    "CityscapesMetric",
    "ConfusionMatrix",
    "InferenceSettings",
    "Predicted",
    "Segmentation",
    "SegmentationMetric",
    "TrainerMetrics",
    "check_labelled",
    "check_same_classes",
    "class_sources",
    "evaluate_dataset",
    "find_checkpoint",
    "format_scores",
    "load_checkpoint",
    "load_for_inference",
    "predict_dataset",
    "predict_label_maps",
    "segment",
    "segment_frames",
]
