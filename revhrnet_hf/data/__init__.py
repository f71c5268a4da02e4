"""Pictures and label maps: from disk to tensors."""

from .augmentation import TrainingSamples, TrainingTransform
from .camvid import CamVid
from .cityscapes import Cityscapes
from .label_map import LabelMap, Picture
from .label_space import LabelSpace, get_label_space
from .loading import label_space_of, load_segmentation_dataset
from .mapillary_vistas import MapillaryVistas

__all__ = [
    "CamVid",
    "Cityscapes",
    "LabelMap",
    "LabelSpace",
    "MapillaryVistas",
    "Picture",
    "TrainingSamples",
    "TrainingTransform",
    "get_label_space",
    "label_space_of",
    "load_segmentation_dataset",
]
