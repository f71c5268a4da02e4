"""The settings that every segmentation network of this package has: its loss, its BatchNorms, its initialisation."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    What [`RevHRNetConfig`] and [`HRNetV2Config`] share.

    Args:
        batch_norm_momentum (`float`, defaults to 0.01):
            Of the trained BatchNorms. HRNet's 0.01 suits long training; below some thousand steps 0.1 is better.
        initializer (`"hrnet"` or `"he"`, defaults to `"hrnet"`):
            Of the trained convolutions: HRNet's N(0, 0.001), or N(0, √(2 / fan-in)) (He et al., arXiv 1502.01852), whose
            larger weights want a higher learning rate.
        zero_init_residual (`bool`, defaults to `False`):
            Every trained residual block begins as the identity: weight 0 in its last BatchNorm (arXiv 1706.02677, section 5.1).
            Learns faster in short runs; not HRNet's.
        semantic_loss_ignore_index (`int`, defaults to 255):
            Label of pixels that do not count.
        semantic_loss_class_weights (`list[float]`, *optional*):
            One factor a class for the cross-entropy.
        semantic_loss_ohem_threshold (`float`, *optional*):
            With a value (HRNet: 0.9), only pixels whose true class has a lower probability count …
        semantic_loss_ohem_min_kept (`int`, defaults to 131072):
            … but at least this many pixels a batch.
        palette (`list[list[int]]`, *optional*):
            Colour [red, green, blue] of each class, for pictures of the label map.
        training_history (`list[dict]`, *optional*):
            What the network was trained on, stage by stage: data, recipe, scores. Written by training, read by nobody but people
            and model cards.
    """

    batch_norm_momentum: float = 0.01
    initializer: Literal["hrnet", "he"] = "hrnet"
    zero_init_residual: bool = False
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: list[float] | None = None
    semantic_loss_ohem_threshold: float | None = None
    semantic_loss_ohem_min_kept: int = 131_072
    palette: list[list[int]] | None = None
    training_history: list[dict] | None = None

    def validate_loss(self):
        """Run by `strict` on construction: the loss's settings fit the classes."""
        weights = self.semantic_loss_class_weights
        if weights is not None and len(weights) != self.num_labels:
            raise ValueError(
                f"semantic_loss_class_weights must have one value a class: {len(weights)} for {self.num_labels} classes"
            )


def check_streams(config: SegmentationConfig):
    """Raises a ValueError unless `config` has at least two streams and fitting, positive counts."""
    channels, num_modules = list(config.stream_channels), list(config.num_modules)
    if len(channels) < 2:
        raise ValueError(f"stream_channels needs at least two streams, got {channels}")
    if len(num_modules) != len(channels) - 1:
        raise ValueError(
            f"num_modules must have one entry fewer than stream_channels, got {num_modules} for {len(channels)} streams"
        )
    if min(*channels, *num_modules, config.num_blocks) < 1:
        raise ValueError("stream_channels, num_modules and num_blocks must be positive")
