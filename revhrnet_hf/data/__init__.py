"""Pictures and label maps: from disk to tensors."""

from .augmentation import TrainingSamples, TrainingTransform
from .camvid import CamVid
from .cityscapes import Cityscapes
from .coco import Coco
from .label_map import LabelMap, Picture
from .label_space import LabelSpace, get_label_space
from .loading import label_space_of, load_segmentation_dataset
from .mapillary_vistas import MapillaryVistas
from .pascal_voc import PascalVoc
from .translation import translate

__all__ = [
    "CamVid",
    "Cityscapes",
    "Coco",
    "LabelMap",
    "LabelSpace",
    "MapillaryVistas",
    "PascalVoc",
    "Picture",
    "TrainingSamples",
    "TrainingTransform",
    "get_label_space",
    "label_space_of",
    "load_segmentation_dataset",
    "translate",
]
