"""Datasets: images and label maps, from files to tensors."""

from .datasets.camvid import CamVid
from .datasets.cityscapes import Cityscapes
from .datasets.coco import Coco
from .datasets.mapillary_vistas import MapillaryVistas
from .datasets.pascal_voc import PascalVoc
from .features import LabelMap, RgbImage
from .label_space import LabelSpace, get_label_space
from .loading import label_space_of, load_segmentation_dataset
from .transforms import TrainingSamples, TrainingTransform
from .translation import translate

__all__ = [
    "CamVid",
    "Cityscapes",
    "Coco",
    "LabelMap",
    "LabelSpace",
    "MapillaryVistas",
    "PascalVoc",
    "RgbImage",
    "TrainingSamples",
    "TrainingTransform",
    "get_label_space",
    "label_space_of",
    "load_segmentation_dataset",
    "translate",
]
