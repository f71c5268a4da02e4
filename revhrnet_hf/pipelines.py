"""Transformers' `pipeline("image-segmentation")`, through which this package's models see images as everywhere else."""

import base64
import binascii
import os
import time
from http.client import HTTPException
from urllib.request import urlopen

from PIL import Image
from transformers.pipelines import PIPELINE_REGISTRY, ImageSegmentationPipeline

from .errors import DataError
from .images import decode_image, read_image, to_rgb
from .models import HRNetV2Config, RevHRNetConfig

OURS = {HRNetV2Config.model_type, RevHRNetConfig.model_type}
TASK = "image-segmentation"
ADDRESSES = ("http://", "https://")
DATA_ADDRESS = "data:image/"
DOWNLOAD_SECONDS = 30.0  # for a whole image, if the pipeline's `timeout` says nothing else
DOWNLOAD_BYTES = 100_000_000
CHUNK = 1 << 16
SHOWN = 80  # characters of a text that errors quote


class SegmentationPipeline(ImageSegmentationPipeline):
    """For models of this package images are read by images.py; Transformers would clip 16 bits, and uncover what lies under
    transparency. For all other models nothing is changed.
    """

    def preprocess(self, image, subtask=None, timeout=None):
        if self.model.config.model_type in OURS:
            image = load_rgb(image, timeout)
        return super().preprocess(image, subtask=subtask, timeout=timeout)


def load_rgb(image, timeout: float | None = None):
    """A file, an address, base64 or a PIL image as an RGB image; what is no text is left to Transformers.

    Args:
        timeout: seconds that fetching an address may take.

    Raises:
        DataError: it is no image that can be read, or it cannot be fetched.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, os.PathLike):
        return read_image(image)
    if not isinstance(image, str):
        return image
    if image.startswith(ADDRESSES):
        return decode_image(fetch(image, DOWNLOAD_SECONDS if timeout is None else timeout), image)
    return read_image(image) if os.path.isfile(image) else _from_base64(image)


def fetch(address: str, seconds: float) -> bytes:
    """What lies at an http or https address.

    Raises:
        DataError: it cannot be fetched, takes longer than `seconds`, or is larger than `DOWNLOAD_BYTES`.
    """
    deadline, data = time.monotonic() + seconds, bytearray()
    try:
        with urlopen(address, timeout=seconds) as answer:
            while chunk := answer.read1(CHUNK):
                data += chunk
                if len(data) > DOWNLOAD_BYTES:
                    raise ValueError(f"it is larger than {DOWNLOAD_BYTES / 1e6:.0f} MB; fetch it yourself, and give the file")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it takes longer than {seconds:g} seconds")
    except (OSError, ValueError, HTTPException) as error:
        raise DataError(f"{address} cannot be fetched: {error}") from error
    return bytes(data)


def _from_base64(text: str) -> Image.Image:
    """Not left to Transformers, whose decoders are all that Pillow has."""
    encoded = text.partition(",")[2] if text.startswith(DATA_ADDRESS) else text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
        return decode_image(data, "(given as base64)")
    except (binascii.Error, ValueError) as error:
        shown = repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
        raise DataError(f"{shown} is no file that is there, no http address, and no image as base64") from error


def register() -> None:
    """Let `pipeline("image-segmentation")` make a `SegmentationPipeline`."""
    PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = SegmentationPipeline
