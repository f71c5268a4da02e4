"""How a network is run on an image: on the whole image or in windows, at which scales, mirrored or not."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import RecipeError
from ..models.image_processing_pil_revhrnet import Size


@dataclass(frozen=True)
class InferenceSettings:
    """With the defaults the network sees the whole image once, as in `pipeline("image-segmentation")`.

    With windows or scales, the image processor's own padding and cropping are switched off.

    Attributes:
        window: (height, width) in pixels of the windows that slide over the network's input at each scale; None: no windows. An
            input that is smaller than the window in one direction is taken whole in that direction.
        stride: (rows, columns) in pixels from one window to the next, at most the window; None: 2/3 of the window. The last
            window is moved back so that it ends with the image.
        scales: factors on the size that the image processor gives the image (the image's own size, unless the processor resizes).
        flip: whether the network is also run on the mirrored image, or on each mirrored window.
        average: how several results for one pixel are joined. "softmax" averages the probabilities. "exp" does as the official
            HRNet: the logits of the image and of the mirrored image are averaged, their exponentials are averaged over windows
            at the resized image's size, and these are summed over the scales.
        batch_size: windows in one forward pass. More than 1 can change the last bits of the logits.

    Raises:
        RecipeError: a value is impossible; the message names the field.
    """

    window: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: Literal["softmax", "exp"] = "softmax"
    batch_size: int = 1

    def __post_init__(self):
        if self.window is not None and min(self.window) < 1:
            raise RecipeError(f"window {self.window}: height and width must be 1 pixel or more")
        if self.stride is not None:
            if self.window is None:
                raise RecipeError("stride is the step from one window to the next: give a window as well")
            if not all(1 <= step <= edge for step, edge in zip(self.stride, self.window, strict=True)):
                raise RecipeError(
                    f"stride {self.stride} must be at least 1 and at most the window {self.window}, or pixels would be left out"
                )
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):  # NaN is in no range
            raise RecipeError(f"scales {self.scales}: give one or more finite factors above 0")
        if self.average not in ("softmax", "exp"):
            raise RecipeError(f"average {self.average!r}: 'softmax' and 'exp' are known")
        if self.batch_size < 1:
            raise RecipeError(f"batch_size {self.batch_size}: give 1 window or more")

    @property
    def is_whole(self) -> bool:
        """Whether there are neither windows nor scales, so that the image processor's own padding stays."""
        return self.window is None and self.scales == (1.0,)

    @property
    def steps(self) -> Size:
        """The stride, by default 2/3 of the window."""
        height, width = self.window
        return self.stride or (max(1, height * 2 // 3), max(1, width * 2 // 3))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """The settings in words: `whole image`; `windows of 720×960 every 480×640, scales 0.5, 1, averaged softmax`."""
        parts = ["whole image"]
        if self.window is not None:
            (height, width), (down, across) = self.window, self.steps
            parts = [f"windows of {height}×{width} every {down}×{across}"]
        if self.scales != (1.0,):
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            parts.append("with flip")
        return ", ".join(parts if parts == ["whole image"] else [*parts, f"averaged {self.average}"])


WHOLE = InferenceSettings()
