"""Transformers' `pipeline("image-segmentation")`, reading images as the rest of this package does."""

import os

from PIL import Image
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline

from .errors import DataError

# This module is imported while Transformers' first import ends (see __init__.py), perhaps in the middle of an import of images.py
# or models/. So those are imported where they are used.
TASK = "image-segmentation"
DOWNLOAD_SECONDS = 30.0  # for a whole image, unless the pipeline is given a `timeout`


class SegmentationPipeline(ImageSegmentationPipeline):
    """For models of this package, images are read by images.py: Transformers' own reader would clip images of 16 bits, and show
    the hidden colours of transparent pixels. For all other models nothing is changed.
    """

    def preprocess(self, image, subtask=None, timeout=None):
        if _is_ours(self.model.config):
            image = load_rgb(image, timeout)
        return super().preprocess(image, subtask=subtask, timeout=timeout)


def _is_ours(config) -> bool:
    from .models import HRNetV2Config, RevHRNetConfig

    return config.model_type in (HRNetV2Config.model_type, RevHRNetConfig.model_type)


def load_rgb(image, timeout: float | None = None):
    """Opens an image, RGB, that is given as a file, an http address, base64 text or a PIL image.

    Args:
        image: the image; any other type is returned as it is, for Transformers to handle.
        timeout: seconds that fetching an address may take.

    Raises:
        DataError: the image cannot be fetched or read.
    """
    from .download import download
    from .images import decode_image, read_image, to_rgb
    from .models.fetching import is_address

    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, os.PathLike):
        return read_image(image)
    if not isinstance(image, str):
        return image
    if is_address(image):
        return decode_image(download(image, seconds=DOWNLOAD_SECONDS if timeout is None else timeout), image)
    return read_image(image) if os.path.isfile(image) else _from_base64(image)


def _from_base64(text: str) -> Image.Image:
    """Decodes base64 here: Transformers would let Pillow open any file format that it knows."""
    from .images import decode_image
    from .models.rgb import base64_bytes, quoted

    try:
        return decode_image(base64_bytes(text), "(given as base64)")
    except ValueError as error:
        raise DataError(f"{quoted(text)} is neither an existing file, an http address, nor an image as base64") from error


# Lets `pipeline("image-segmentation")` make a `SegmentationPipeline`.
PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = SegmentationPipeline
