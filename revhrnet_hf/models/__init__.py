"""What travels inside a Hub checkpoint: flat files that import only their siblings, torch, timm and transformers.

Importing this package registers the models with Transformers' Auto classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .configuration_revhrnet import RevHRNetConfig
from .image_processing_pil_revhrnet import RevHRNetImageProcessorPil
from .image_processing_revhrnet import RevHRNetImageProcessor
from .modeling_revhrnet import RevHRNetForSemanticSegmentation, RevHRNetModel

__all__ = [
    "RevHRNetConfig",
    "RevHRNetForSemanticSegmentation",
    "RevHRNetImageProcessor",
    "RevHRNetImageProcessorPil",
    "RevHRNetModel",
]

AutoConfig.register(RevHRNetConfig.model_type, RevHRNetConfig)
AutoModel.register(RevHRNetConfig, RevHRNetModel)
AutoModelForSemanticSegmentation.register(RevHRNetConfig, RevHRNetForSemanticSegmentation)
AutoImageProcessor.register(
    RevHRNetConfig, image_processor_classes={"torchvision": RevHRNetImageProcessor, "pil": RevHRNetImageProcessorPil}
)
# The image-segmentation pipeline looks for the model's name here, and calls it unsupported otherwise.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[RevHRNetConfig.model_type] = RevHRNetForSemanticSegmentation.__name__

# `save_pretrained` then writes our files beside the weights, for `trust_remote_code=True` where this package is absent.
RevHRNetConfig.register_for_auto_class()
RevHRNetModel.register_for_auto_class("AutoModel")
RevHRNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
RevHRNetImageProcessor.register_for_auto_class()
RevHRNetImageProcessorPil.register_for_auto_class()
