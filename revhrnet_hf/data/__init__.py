"""Pictures and label maps: from disk to tensors."""

from .augmentation import TrainingSamples, TrainingTransform
from .camvid import CamVid
from .label_map import LabelMap, Picture
from .label_space import LabelSpace, get_label_space
from .loading import label_space_of, load_segmentation_dataset

__all__ = [
    "CamVid",
    "LabelMap",
    "LabelSpace",
    "Picture",
    "TrainingSamples",
    "TrainingTransform",
    "get_label_space",
    "label_space_of",
    "load_segmentation_dataset",
]
