"""Image processor of RevHRNet with Pillow and NumPy, and the code that it shares with the torchvision backend.

Names of options, `segmentation_maps` → `labels` and `post_process_semantic_segmentation` are the same as in Transformers'
processors for semantic segmentation, above all SegFormer's, so that this processor can replace them.
"""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import logging

from .backbone import backbone_normalization
from .backbone_maps import layout_of
from .configuration_hrnetv2 import HRNetV2Config
from .configuration_revhrnet import RevHRNetConfig
from .keywords import LOADING_KEYWORDS, check_keywords
from .rgb import as_rgb, open_upright
from .upsampling import upsampled_argmax, working_dtype

logger = logging.get_logger(__name__)

Size = tuple[int, int]  # (height, width) in pixels

# Entries that Transformers writes into a preprocessor_config.json besides the options.
SAVED_BY_TRANSFORMERS = {"auto_map", "feature_extractor_type", "image_processor_type", "processor_class"}

# Options of a step, and the option that switches this step on; without it they have no effect.
SWITCH_OF = {
    "size": "do_resize",
    "resample": "do_resize",
    "pad_size": "do_pad",
    "size_divisor": "do_pad",
    "rescale_factor": "do_rescale",
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
}


class RevHRNetImageProcessorKwargs(ImagesKwargs, total=False):
    """Options that other image processors do not have.

    size_divisor (`int`, *optional*, defaults to 32):
        With `do_pad`, height and width are padded to a multiple of this number of pixels; 1 pads to the largest image only.
    ignore_index (`int`, *optional*, defaults to 255):
        The value of padded pixels in the label maps, and with `do_reduce_labels` of pixels that had the class id 0.
    do_reduce_labels (`bool`, *optional*, defaults to `False`):
        Subtract 1 from each class id of a label map, and replace 0 by `ignore_index`: for datasets such as ADE20K, in which id 0
        means that a pixel has no class. Pixels with `ignore_index` do not change.
    """

    size_divisor: int | None
    ignore_index: int
    do_reduce_labels: bool


def resized_size(image_size: Size, size: SizeDict) -> Size:
    """Height and width of an image of `image_size` after it is resized to `size`.

    Args:
        image_size: (height, width) of the image in pixels.
        size: exact `height` and `width`; or, keeping the aspect ratio, `shortest_edge`, `longest_edge`, or both (then
            `longest_edge` is a limit: the image gets smaller if its longest edge would exceed it).

    Raises:
        ValueError: `size` has none of these.
    """
    height, width = image_size
    shortest, longest = min(height, width), max(height, width)
    if size.height and size.width:
        return size.height, size.width
    if size.shortest_edge and size.longest_edge:
        new_height, new_width = get_size_with_aspect_ratio(image_size, size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        new_height, new_width = (int(size.shortest_edge * edge / shortest) for edge in image_size)
    elif size.longest_edge:
        new_height, new_width = ((2 * edge * size.longest_edge + longest) // (2 * longest) for edge in image_size)
    else:
        raise ValueError(
            f"size must have 'height' and 'width', or 'shortest_edge', or 'longest_edge', or both edges; got {dict(size)}"
        )
    return max(1, new_height), max(1, new_width)


def padded_size(image_sizes: Sequence[Size], size_divisor: int | None, pad_size: SizeDict | None) -> Size:
    """Size of a padded batch: `pad_size` if given, otherwise the largest size, rounded up to a multiple of the divisor."""
    if pad_size is not None:
        return pad_size.height, pad_size.width
    divisor = size_divisor or 1
    height, width = (math.ceil(max(edges) / divisor) * divisor for edges in zip(*image_sizes, strict=True))
    return height, width


def nearest_source_indices(length: int, new_length: int) -> np.ndarray:
    """For each of `new_length` pixels, the index of the pixel among `length` in which its centre lies, int64.

    The arithmetic is in whole numbers, so the result is the same for every library, dtype and device. Pillow and torch may round
    a tie differently.
    """
    return (2 * np.arange(new_length, dtype=np.int64) + 1) * length // (2 * new_length)


def canvas_size(content: Size, padded: Size, target: Size) -> tuple[float, float]:
    """Height and width of a padded image at the scale of `target`; they need not be whole numbers.

    Args:
        content: (height, width) of the image in the network's input, without padding.
        padded: (height, width) of the network's input.
        target: (height, width) of the image in the result.
    """
    height, width = (t * p / c for t, p, c in zip(target, padded, content, strict=True))
    return height, width


def resize_logits(logits: torch.Tensor, target: Size, canvas: tuple[float, float]) -> torch.Tensor:
    """Resize the logits of one image to the image's own size, by one bilinear interpolation.

    Args:
        logits: (num_labels, height, width), covering the whole padded image.
        target: (height, width) of the result.
        canvas: (height, width) of the padded image at the same scale.

    Returns:
        Logits (num_labels, *target), float32, or float64 for float64: the best classes are those of `upsampled_argmax`.
    """
    logits = logits.to(working_dtype(logits.dtype))
    if all(float(edge).is_integer() for edge in canvas):
        logits = F.interpolate(logits[None], size=[int(edge) for edge in canvas], mode="bilinear", align_corners=False)[0]
    else:
        # At the target's scale the padded image is not a whole number of pixels, so the factor is given instead of the size.
        # The tiny excess makes sure that a product such as 29.999… is rounded to 30 pixels.
        factors = [whole / edge * (1 + 1e-12) for whole, edge in zip(canvas, logits.shape[-2:], strict=True)]
        logits = F.interpolate(logits[None], scale_factor=factors, mode="bilinear", align_corners=False)[0]
    return logits[..., : target[0], : target[1]]


class RevHRNetImageProcessorMixin:
    """The code that both backends share: options, label maps, sizes and post-processing.

    Options and defaults:
        do_resize (`bool`, False): off, because the network accepts any size and images are scored at native size.
        size (`dict`, none): see [`resized_size`]; `do_resize` needs it.
        resample (bilinear): for images; label maps are always resized by nearest neighbour.
        do_rescale, rescale_factor (True, 1/255); do_normalize, image_mean, image_std (True, ImageNet's): one number, or one for
            each channel.
        do_convert_rgb (`bool`, True): grey, palette, CMYK, 16-bit and transparent images (on white) become RGB.
        do_pad, size_divisor, pad_size (False, 32, none): pad at the bottom and at the right, to the largest height and width
            of the batch, rounded up to a multiple of `size_divisor`; or to exactly `pad_size`. Images are padded with 0 after
            normalisation, label maps with `ignore_index`.
        ignore_index (`int`, 255).
        do_reduce_labels (`bool`, False): in label maps, replace 0 by `ignore_index` and subtract 1 from every other class id.
        input_data_format (none): channels first or last, for arrays and tensors whose shape does not show it.
        device (none): device on which the torchvision backend computes.

    No keyword is ignored. Unknown keywords raise a `TypeError`. Known keywords that are not supported raise a `ValueError`:
    cropping (`do_center_crop`, `crop_size`), `image_seq_length`, `data_format` other than channels first, a device other than the
    CPU for the Pillow backend, and options of a step that is off (`size` without `do_resize`).

    An image from a path or a URL is turned upright by its EXIF orientation. A `PIL.Image` is not turned, so that label maps and
    target sizes that were made for it fit; `PIL.ImageOps.exif_transpose` turns it.
    """

    do_resize = False
    size = None
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_convert_rgb = True
    do_pad = False
    size_divisor = 32
    ignore_index = 255
    do_reduce_labels = False

    def __init__(self, **kwargs: Unpack[RevHRNetImageProcessorKwargs]):
        check_keywords(kwargs, self.valid_kwargs.__annotations__.keys() | SAVED_BY_TRANSFORMERS, type(self).__name__)
        check_switches(kwargs, switches_of(self))
        self._check_options(**kwargs)
        super().__init__(**kwargs)

    @classmethod
    def for_backbone(cls, config: PreTrainedConfig, **options) -> Self:
        """The image processor with the mean and standard deviation of the images on which a backbone was trained.

        For a backbone that accepts images of one size only, it resizes images to that size, unless `size` is given.

        Args:
            config: configuration of a network of this package, or of a backbone.
            **options: any option of the image processor.

        Raises:
            ValueError: the mean and standard deviation of the backbone are not known.
        """
        backbone = getattr(config, "backbone_config", config)
        if not {"image_mean", "image_std"} <= options.keys():
            mean, std = backbone_normalization(backbone)
            options = {"image_mean": mean, "image_std": std, **options}
        is_hrnet = backbone.model_type == HRNetV2Config.model_type  # which takes any size
        fixed_size = None if is_hrnet else layout_of(backbone).fixed_size
        if fixed_size is not None and not {"do_resize", "size"} & options.keys():
            height, width = fixed_size
            options = {"do_resize": True, "size": {"height": height, "width": width}, **options}
        return cls(**options)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs):
        """An image processor from the content of a preprocessor_config.json, changed by the options in `kwargs`.

        `kwargs` may also hold keywords of `from_pretrained` that are not options; `return_unused_kwargs=True` returns them.

        Raises:
            TypeError: a keyword is neither an option nor a keyword of `from_pretrained`.
        """
        if not kwargs.get("return_unused_kwargs"):
            check_keywords(kwargs, cls._keywords_of_loading(), f"{cls.__name__}.from_pretrained")
        known = cls.valid_kwargs.__annotations__.keys() | SAVED_BY_TRANSFORMERS
        saved = {name: value for name, value in image_processor_dict.items() if name in known or name.startswith("_")}
        if len(saved) < len(image_processor_dict):
            logger.warning(
                "The saved image processor has entries that %s does not know; they have no effect: %s",
                cls.__name__,
                ", ".join(sorted(image_processor_dict.keys() - saved.keys())),
            )
        # A file holds all options. So an option of a step that is off is no mistake there, but it is one in a call.
        saved = {**switches_of(cls), **saved}
        check_switches(kwargs, saved)
        return super().from_dict(saved, **kwargs)

    @classmethod
    def _keywords_of_loading(cls) -> set[str]:
        """Keywords of `from_pretrained`: options, and keywords that Transformers passes to models and image processors alike."""
        model_settings = (RevHRNetConfig.known_keywords() | HRNetV2Config.known_keywords()) - {"backbone"}
        return {"return_unused_kwargs"} | cls.valid_kwargs.__annotations__.keys() | LOADING_KEYWORDS | model_settings

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[RevHRNetImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images, and label maps if given, into a batch for the network.

        Args:
            images: one image or a list of them: `PIL.Image`, array or tensor (grey, or with channels first or last), path, or
                URL. Values are 0 to 255, unless `rescale_factor` says otherwise.
            segmentation_maps: one label map for each image, (height, width) of class ids at the image's size; an axis for the
                only channel may come before or after.
            **kwargs: any option of the processor, for this call only; `return_tensors="pt"` stacks the batch. None counts as
                not given, but for options that are None by default (`pad_size=None`: no fixed size).

        Returns:
            `pixel_values`, float32 (3, height, width) for each image, and with `segmentation_maps` also `labels`, int64
            (height, width) for each image; stacked to (batch, …) with `return_tensors`, otherwise lists.

        Raises:
            TypeError: a keyword is not an option.
            ValueError: images and label maps differ in number or size, images of different sizes cannot be stacked, a label map
                has values that are not whole numbers, an array of integers has values above 255 and no `rescale_factor` of its
                own, or an option is not supported.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None or getattr(type(self), name, None) is None}
        known = ["images", "segmentation_maps", *self.valid_kwargs.__annotations__]
        check_keywords(kwargs, known, f"A call of {type(self).__name__}")
        check_switches(kwargs, switches_of(self))
        if kwargs.get("default_to_square") is not None and not isinstance(kwargs.get("size"), int):
            raise ValueError("default_to_square has no effect unless size is one number: give both")
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:
        """As in Transformers; but one mean or standard deviation for all channels becomes three, which other code relies on."""
        options = super()._standardize_kwargs(**kwargs)
        for name in ("image_mean", "image_std"):
            if isinstance(options[name], int | float):
                options[name] = (float(options[name]),) * 3
        return options

    def _validate_preprocess_kwargs(self, **kwargs):
        self._check_options(**kwargs)
        super()._validate_preprocess_kwargs(**kwargs)

    def _check_options(
        self,
        do_center_crop: bool | None = None,
        crop_size: "dict | SizeDict | int | None" = None,
        size_divisor: int | None = None,
        image_seq_length: int | None = None,
        data_format: str | ChannelDimension | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: "str | torch.device | None" = None,
        **supported,
    ):
        """Raises a ValueError for an option of Transformers' image processors that this one does not support."""
        if do_center_crop or crop_size is not None:
            raise ValueError("do_center_crop and crop_size are not supported: a segmentation model labels the whole image")
        if size_divisor is not None and size_divisor < 1:
            raise ValueError(f"size_divisor must be 1 or more pixels, got {size_divisor}")
        if image_seq_length is not None:
            raise ValueError("image_seq_length is not supported: it is for models that also read text")
        if data_format not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format must be 'channels_first', the format of the network's input, got {data_format!r}")
        formats = [each.value for each in ChannelDimension]
        if input_data_format not in (None, *formats):
            raise ValueError(f"input_data_format must be one of {formats}, got {input_data_format!r}")
        if self.backend == "pil" and device is not None and torch.device(device).type != "cpu":
            raise ValueError(f"The Pillow backend computes on the CPU, not on {device}: use backend='torchvision'")

    def _preprocess_image_like_inputs(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None,
        do_convert_rgb: bool,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | None,
        do_resize: bool,
        size: SizeDict | None,
        do_pad: bool,
        pad_size: SizeDict | None,
        size_divisor: int | None,
        ignore_index: int,
        do_reduce_labels: bool,
        device: "str | torch.device | None" = None,
        **kwargs,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(
            images=images, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, device=device
        )
        if kwargs["do_rescale"]:
            for image in prepared:
                check_range(image, kwargs["rescale_factor"])
        native_sizes = [tuple(image.shape[-2:]) for image in prepared]
        new_sizes = [resized_size(native, size) for native in native_sizes] if do_resize else native_sizes
        if do_pad:
            height, width = padded_size(new_sizes, size_divisor, pad_size)
            if too_large := [size for size in new_sizes if size[0] > height or size[1] > width]:
                found = "×".join(map(str, too_large[0]))
                raise ValueError(
                    f"an image of {found} pixels (height×width) is larger than pad_size, {height}×{width}: pass a larger one, "
                    "or do_resize=True with a size that fits"
                )
            pad_size = SizeDict(height=height, width=width)
        elif return_tensors is not None and len(set(new_sizes)) > 1:
            found = ", ".join(f"{height}×{width}" for height, width in dict.fromkeys(new_sizes))
            raise ValueError(
                f"images of different sizes ({found}) cannot be stacked into one batch: make the processor with do_pad=True, so "
                "that its post-processing cuts the padding off; or pass do_resize=True with an exact size, or one image at a time"
            )
        data = self._preprocess(
            prepared, do_resize=do_resize, size=size, do_pad=do_pad, pad_size=pad_size, return_tensors=None, **kwargs
        )
        if segmentation_maps is not None:
            label_maps = self._prepare_label_maps(segmentation_maps, native_sizes, device)
            if do_reduce_labels:
                label_maps = [reduced_labels(label_map, ignore_index) for label_map in label_maps]
            label_maps = [
                resize_label_map(label_map, new_size) for label_map, new_size in zip(label_maps, new_sizes, strict=True)
            ]
            if do_pad:
                label_maps = self.pad(label_maps, pad_size=pad_size, fill_value=ignore_index)
            data["labels"] = [label_map[0] for label_map in label_maps]
        return BatchFeature(data=dict(data), tensor_type=return_tensors)

    def fetch_images(self, image_url_or_urls):
        """Opens paths and URLs, with Pillow for both backends: Transformers' readers would clip 16 bits and drop transparency.

        What is no path, URL or base64 text is returned unchanged.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(each) for each in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, PathLike)):
            return open_upright(str(image_url_or_urls))
        return super().fetch_images(image_url_or_urls)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list:
        """A flat list of images; those of grey arrays may be (height, width)."""
        images = self.fetch_images(images)
        first = images[0] if isinstance(images, (list, tuple)) and images else images
        ndim = getattr(first, "ndim", expected_ndims)  # a PIL image has none
        if not 2 <= ndim <= 4:
            raise ValueError(
                f"an image is (height, width), or this with channels; a batch has one axis more; got {tuple(first.shape)}"
            )
        return super()._prepare_images_structure(images, expected_ndims=2 if ndim == 2 else expected_ndims)

    def process_image(self, image: ImageInput, **kwargs) -> "torch.Tensor | np.ndarray":
        """One image as an array or tensor of the backend, (channels, height, width); see the backend's `process_image`."""
        # PyTorch has neither big-endian numbers nor negative strides, such as those of `bgr[..., ::-1]`.
        if isinstance(image, PIL.Image.Image):
            image = as_rgb(image) if kwargs.get("do_convert_rgb") else image.convert("I") if image.mode == "I;16B" else image
        elif isinstance(image, np.ndarray):
            image = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("="))
        if getattr(image, "ndim", None) == 2:
            image, kwargs["input_data_format"] = image[None], ChannelDimension.FIRST
        return super().process_image(image, **kwargs)

    def _prepare_label_maps(
        self, segmentation_maps: ImageInput, image_sizes: list[Size], device: "str | torch.device | None"
    ) -> list:
        """Label maps as arrays or tensors of the backend, int64 (1, height, width), each as large as its image."""
        settings = {"do_convert_rgb": False, "input_data_format": ChannelDimension.FIRST, "device": device}
        given = flat_label_maps(self.fetch_images(segmentation_maps), image_sizes)
        label_maps = [self.process_image(label_map, **settings) for label_map in given]
        if len(label_maps) != len(image_sizes):
            raise ValueError(f"{len(image_sizes)} images but {len(label_maps)} segmentation maps were given")
        for index, (label_map, image_size) in enumerate(zip(label_maps, image_sizes, strict=True)):
            if tuple(label_map.shape) != (1, *image_size):
                raise ValueError(
                    f"segmentation map {index} must be one channel of class ids at its image's size, "
                    f"{image_size[0]}×{image_size[1]}; got (channels, height, width) = {tuple(label_map.shape)}"
                )
        return [as_class_ids(label_map, index) for index, label_map in enumerate(label_maps)]

    def resize(self, image: "torch.Tensor | np.ndarray", size: SizeDict, **kwargs) -> "torch.Tensor | np.ndarray":
        """Resize images (…, height, width) to `size`; [`resized_size`] explains its forms."""
        height, width = resized_size(tuple(image.shape[-2:]), size)
        return super().resize(image, SizeDict(height=height, width=width), **kwargs)

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: "Sequence[Size] | torch.Tensor | None" = None,
        return_segmentation_scores: bool = False,
    ) -> list:
        """Turn a model's logits into label maps.

        With `do_pad` the logits cover the padded batch, and the padding is cut off exactly. Then `target_sizes` must be the sizes
        of all images of the *whole batch* before processing, and the batch must have been made with the processor's own options,
        not with options of that call.

        Args:
            outputs: a model's output with `logits` (batch, num_labels, height, width).
            target_sizes: (height, width) in pixels of each map, usually the image's native size. Logits are resized
                to it bilinearly (`align_corners=False`) before the best class is chosen. With None the map has the logits' size.
            return_segmentation_scores: also return the resized logits, (num_labels, height, width) at the target's size. Without
                them, memory for a few rows is enough.

        Returns:
            A list of int64 maps (height, width), one for each image; with `return_segmentation_scores` a list of
            [`SemanticSegmentationPostProcessorOutput`] with `segmentation`, the same map, and `segmentation_scores`,
            (num_labels, height, width), float32 for half precision.

        Raises:
            ValueError: the number of target sizes is not the batch size, or one of them is not a positive (height, width).
        """
        logits = outputs.logits
        if target_sizes is None:
            targets = canvases = [tuple(logits.shape[-2:])] * len(logits)
        else:
            if len(target_sizes) != len(logits):
                raise ValueError(f"{len(target_sizes)} target sizes for a batch of {len(logits)} images")
            targets = [as_size(size) for size in target_sizes]
            canvases = self.canvas_sizes(targets)
        if not return_segmentation_scores:
            return [
                upsampled_argmax(image, target, canvas) for image, target, canvas in zip(logits, targets, canvases, strict=True)
            ]
        return [
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": image_scores.argmax(dim=0), "segmentation_scores": image_scores}
            )
            for image_scores in map(resize_logits, logits, targets, canvases)
        ]

    def canvas_sizes(self, target_sizes: Sequence[Size]) -> list[tuple[float, float]]:
        """Height and width of the area that the logits of each image cover, with padding, at the scale of its target size."""
        if not self.do_pad:
            return list(target_sizes)
        # They are dictionaries if they were set after construction (`processor.size = {…}`).
        options = self._standardize_kwargs(size=self.size, pad_size=self.pad_size, default_to_square=self.default_to_square)
        contents = [resized_size(target, options["size"]) for target in target_sizes] if self.do_resize else target_sizes
        padded = padded_size(contents, self.size_divisor, options["pad_size"])
        return [canvas_size(content, padded, target) for content, target in zip(contents, target_sizes, strict=True)]

    def to_dict(self) -> dict:
        """The options as they are saved in a checkpoint. With remote code, `auto_map` names the class of each backend."""
        # With remote code, only files that are imported are saved. This import makes a checkpoint contain both backends.
        from .image_processing_revhrnet import RevHRNetImageProcessor

        output = super().to_dict()
        output.pop("device", None)  # of this machine
        if self._auto_class is not None:
            backends = {"torchvision": RevHRNetImageProcessor, "pil": RevHRNetImageProcessorPil}
            output["auto_map"] = {
                self._auto_class: {
                    name: f"{backend.__module__.rpartition('.')[2]}.{backend.__name__}" for name, backend in backends.items()
                }
            }
        return output


def check_range(image: "torch.Tensor | np.ndarray", rescale_factor: float) -> None:
    """Warns of an image of 0 to 1 that the usual factor, for 0 to 255, would make black.

    Raises:
        ValueError: whole numbers above 255 and the usual factor. They may be of 10, 12 or 16 bits, which only the caller knows.
            Or booleans, which the usual factor would make black.
    """
    # A tensor of the meta device has no values.
    if not math.isclose(rescale_factor, 1 / 255) or 0 in image.shape or str(image.device) == "meta":
        return
    if str(image.dtype).endswith("bool"):
        raise ValueError("an image of booleans would be black: give 255 for white, or do_rescale=False")
    if image.dtype.itemsize == 1:
        return
    is_tensor = isinstance(image, torch.Tensor)
    is_float = image.is_floating_point() if is_tensor else image.dtype.kind == "f"
    largest = (image.long() if is_tensor and not is_float else image).max().item()  # PyTorch has no maximum of uint16
    if is_float and 0 < largest <= 1:
        logger.warning_once(
            "Images have floating-point values of 0 to 1, which rescale_factor 1/255 makes black: give do_rescale=False for "
            "such images"
        )
    if not is_float and largest > 255:
        raise ValueError(
            f"an image of {image.dtype} has values up to {largest}, and rescale_factor 1/255 is for those up to 255: give the "
            "factor that makes its white 1, such as rescale_factor=1/65535 for 16 bits"
        )


def flat_label_maps(given: Any, image_sizes: Sequence[Size]) -> list:
    """Label maps one by one, without an axis for their only channel; what is no label map is left for an error.

    Args:
        given: a label map, (height, width), (1, height, width) or (height, width, 1), a batch of them, or a list of any.
        image_sizes: (height, width) of the images.
    """
    if isinstance(given, (list, tuple)):
        return [label_map for each in given for label_map in flat_label_maps(each, image_sizes)]
    shape = tuple(given.shape) if getattr(given, "ndim", 2) > 2 else ()  # a PIL image has none
    if len(shape) == 3 and shape[2] == 1 and shape[:2] in image_sizes:
        return [given[..., 0]]
    is_batch = len(shape) == 4 or (len(shape) == 3 and (shape[1:] in image_sizes or shape[0] == len(image_sizes)))
    return flat_label_maps(list(given), image_sizes) if is_batch else [given]


def resize_label_map(label_map: "torch.Tensor | np.ndarray", new_size: Size) -> "torch.Tensor | np.ndarray":
    """Resize a label map (1, height, width) by nearest neighbour, so that no new class id appears."""
    if tuple(label_map.shape[-2:]) == new_size:
        return label_map
    rows, columns = (nearest_source_indices(old, new) for old, new in zip(label_map.shape[-2:], new_size, strict=True))
    return label_map[:, rows][:, :, columns]


def as_class_ids(label_map: "torch.Tensor | np.ndarray", index: int) -> "torch.Tensor | np.ndarray":
    """Label map number `index` as int64.

    Raises:
        ValueError: a pixel is NaN, infinite, or not a whole number.
    """
    library = torch if isinstance(label_map, torch.Tensor) else np
    with np.errstate(invalid="ignore"):  # NaN is reported below
        ids = label_map.to(torch.int64) if library is torch else label_map.astype(np.int64)
    is_float = label_map.is_floating_point() if library is torch else label_map.dtype.kind not in "biu"
    if is_float:
        invalid = (ids != label_map) | ~library.isfinite(label_map)
        if invalid.any():
            raise ValueError(
                f"segmentation map {index} must hold class ids, which are whole numbers; it holds {label_map[invalid][0].item()}"
            )
    return ids


def reduced_labels(label_map: "torch.Tensor | np.ndarray", ignore_index: int) -> "torch.Tensor | np.ndarray":
    """Class ids (int64) minus 1. Pixels with 0 or `ignore_index` get `ignore_index`."""
    where = torch.where if isinstance(label_map, torch.Tensor) else np.where
    return where((label_map == 0) | (label_map == ignore_index), ignore_index, label_map - 1)


def as_size(size: "Sequence[int] | torch.Tensor") -> Size:
    """(height, width) as integers. Raises a ValueError unless both are positive."""
    try:
        height, width = (int(edge) for edge in size)
    except TypeError as error:
        raise ValueError(f"target_sizes must have one (height, width) for each image, got {size!r} for one of them") from error
    if min(height, width) < 1:
        raise ValueError(f"a target size must be positive, got {height}×{width}")
    return height, width


def switches_of(processor) -> dict[str, bool]:
    """Whether each step is on, in an image processor or by default in its class."""
    return {switch: bool(getattr(processor, switch)) for switch in SWITCH_OF.values()}


def check_switches(given: dict[str, Any], switches: dict[str, bool]) -> None:
    """Raises a ValueError for an option of a step that is off, unless the same call switches the step off.

    Args:
        given: the options of the caller; None counts as not given.
        switches: whether each step is on if the caller does not say it.
    """
    for option, switch in SWITCH_OF.items():
        if given.get(option) is not None and given.get(switch) is None and not switches[switch]:
            raise ValueError(
                f"{option} has no effect, because {switch} is off: also give {switch}=True (or {switch}=False, to keep "
                f"{option} for later)"
            )


class RevHRNetImageProcessorPil(RevHRNetImageProcessorMixin, PilBackend):
    """Image processor of RevHRNet with Pillow and NumPy: the one for `backend="pil"`."""

    valid_kwargs = RevHRNetImageProcessorKwargs


__all__ = ["RevHRNetImageProcessorPil"]
