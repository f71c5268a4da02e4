"""Transformers' `pipeline("image-segmentation")`, which this package's models see pictures through as a person does."""

import os
from io import BytesIO
from urllib.request import urlopen

from PIL import Image
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline

from .models import HRNetV2Config, RevHRNetConfig
from .report.pictures import as_seen, open_picture

OURS = {HRNetV2Config.model_type, RevHRNetConfig.model_type}
TASK = "image-segmentation"


class SegmentationPipeline(ImageSegmentationPipeline):
    """For models of this package 16-bit pictures are scaled to 8 bits and transparency is white; Transformers clips the one and
    uncovers what lies under the other. For all other models nothing is changed.
    """

    def preprocess(self, image, subtask=None, timeout=None):
        if self.model.config.model_type in OURS:
            image = read_picture(image, timeout)
        return super().preprocess(image, subtask=subtask, timeout=timeout)


def read_picture(image, timeout: float | None = None):
    """A file, an address or a picture as an RGB picture; anything else, such as base64, is left to Transformers.

    Raises:
        DataError: a file is no picture that can be read.
    """
    if isinstance(image, Image.Image):
        return as_seen(image)
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        with urlopen(image, timeout=timeout) as answer:
            return as_seen(Image.open(BytesIO(answer.read())))
    return open_picture(image) if isinstance(image, str) and os.path.isfile(image) else image


def register() -> None:
    """Let `pipeline("image-segmentation")` make a `SegmentationPipeline`."""
    PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = SegmentationPipeline
