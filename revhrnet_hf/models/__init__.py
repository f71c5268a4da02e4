"""The code that travels inside a Hub checkpoint: flat files that import only their siblings, torch, timm and transformers.

Importing this package registers the models with Transformers' Auto classes.
"""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation

from .configuration_hrnetv2 import HRNetV2Config
from .configuration_revhrnet import RevHRNetConfig
from .image_processing_pil_revhrnet import RevHRNetImageProcessorPil
from .image_processing_revhrnet import RevHRNetImageProcessor
from .modeling_hrnetv2 import HRNetV2Backbone, HRNetV2ForSemanticSegmentation
from .modeling_revhrnet import RevHRNetForSemanticSegmentation, RevHRNetModel

__all__ = [
    "HRNetV2Backbone",
    "HRNetV2Config",
    "HRNetV2ForSemanticSegmentation",
    "RevHRNetConfig",
    "RevHRNetForSemanticSegmentation",
    "RevHRNetImageProcessor",
    "RevHRNetImageProcessorPil",
    "RevHRNetModel",
]

for config, base_model, segmentation_model in (
    (HRNetV2Config, HRNetV2Backbone, HRNetV2ForSemanticSegmentation),
    (RevHRNetConfig, RevHRNetModel, RevHRNetForSemanticSegmentation),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, base_model)
    AutoModelForSemanticSegmentation.register(config, segmentation_model)
    AutoImageProcessor.register(
        config, image_processor_classes={"torchvision": RevHRNetImageProcessor, "pil": RevHRNetImageProcessorPil}
    )
    # `save_pretrained` then writes our code beside the weights, for `trust_remote_code=True` without this package.
    config.register_for_auto_class()
    base_model.register_for_auto_class("AutoModel")
    segmentation_model.register_for_auto_class("AutoModelForSemanticSegmentation")

AutoBackbone.register(HRNetV2Config, HRNetV2Backbone)
RevHRNetImageProcessor.register_for_auto_class()
RevHRNetImageProcessorPil.register_for_auto_class()
