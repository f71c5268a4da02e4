"""Label maps of whole images, and the scores of a model on a dataset, all from one confusion matrix."""

from .checkpoint import add_trust_argument, check_same_classes, class_sources, load_checkpoint
from .cityscapes import CityscapesMetric
from .confusion import ConfusionMatrix, SegmentationMetric
from .evaluator import evaluate_dataset
from .predict import Predicted, Segmentation, predict_dataset, predict_label_maps, segment
from .scores import check_labelled, format_scores
from .settings import InferenceSettings, add_inference_arguments, inference_settings
from .trainer_metrics import TrainerMetrics

__all__ = [
    "CityscapesMetric",
    "ConfusionMatrix",
    "InferenceSettings",
    "Predicted",
    "Segmentation",
    "SegmentationMetric",
    "TrainerMetrics",
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
