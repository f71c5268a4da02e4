"""Video files: their frames as upright RGB images, and a video of drawn frames at the same times. Needs the extra `video` (PyAV).

Frames are decoded and encoded one by one, so that a video of any length needs the memory of a few frames.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import PIL.Image
from av.video.reformatter import Colorspace
from PIL.Image import Transpose

from ..errors import DataError
from ..images import check_size, to_rgb
from ..io import whole_file

# Counter-clockwise degrees by which a player turns the stored frames → the operation that does so.
TURNS = {90: Transpose.ROTATE_90, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_270}
SIDEWAYS = (90, 270)  # the turns that swap height and width
ENCODERS = ("libx264", "mpeg4")  # in this order of preference; a build of FFmpeg may lack the first
QUALITY = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "2"}}
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers of these colours
USUAL_RATE = Fraction(25)  # frames a second of a video that does not say it
SQUARE = Fraction(1)  # the shape of pixels in a video that does not say it


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: upright, RGB.
        time: when it is shown, in units of `VideoFile.time_base`.
        pixel_aspect: how wide a pixel is shown, in heights of a pixel.
    """

    image: PIL.Image.Image
    time: int
    pixel_aspect: Fraction = SQUARE


class VideoFile:
    """An opened video file; use it as a context.

    Args:
        file: its path, or its bytes.
        name: what errors call it.

    Attributes:
        rate: frames a second, on average.
        time_base: seconds of a unit of `Frame.time`.
        frames: how many frames it says it has; None if it does not say.
        width: of the frames that were read last, upright, in pixels; 0 before.

    Raises:
        DataError: it cannot be opened, or has no video in it.
    """

    def __init__(self, file: Path | str | bytes, name: str):
        self.name = name
        with _unreadable(name):
            self.container = av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file))
        if not self.container.streams.video:
            self.container.close()
            raise DataError(f"Video {name} cannot be read: there is no video in it. Leave it out.")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "SLICE"  # FFmpeg's frame threads lose the errors of the last frames
        self.rate = self.stream.average_rate or self.stream.guessed_rate or USUAL_RATE
        self.time_base = self.stream.time_base or 1 / self.rate
        self.frames = self.stream.frames or None
        self.width = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown.

        Raises:
            DataError: the file is damaged, a frame is larger than the limit of images, or there is none.
        """
        before = None
        pixel_aspect = self.stream.sample_aspect_ratio or SQUARE  # 0 and None: not said
        decoded = self.container.decode(self.stream)
        while True:
            with _unreadable(self.name):
                frame = next(decoded, None)
                if frame is None:
                    break
                check_size((frame.width, frame.height))
                turn = round(frame.rotation / 90) * 90 % 360
                image = _upright(frame, turn)
            step = max(1, round(1 / (self.rate * self.time_base)))
            time = frame.pts if frame.pts is not None else 0 if before is None else before + step
            before = time if before is None else max(time, before + 1)  # an encoder refuses a time that does not grow
            self.width = image.width
            yield Frame(image, before, 1 / pixel_aspect if turn in SIDEWAYS else pixel_aspect)
        if before is None:
            raise DataError(f"Video {self.name} cannot be read: no frame of it can be decoded. Leave it out.")


def _upright(frame, turn: int) -> PIL.Image.Image:
    """The frame as a player shows it: turned by the rotation in the file's metadata, as phones write it, in degrees."""
    image = to_rgb(PIL.Image.fromarray(frame.to_ndarray(format="rgb24")))
    return image.transpose(TURNS[turn]) if turn in TURNS else image


@contextmanager
def _unreadable(name: str) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"Video {name} cannot be read ({reason}): it is damaged, or of a kind that FFmpeg does not know. Fetch it again, or "
            "leave it out."
        ) from error


class VideoWriter:
    """Writes frames as an MP4 file; made by `write_video`."""

    def __init__(self, container, rate: Fraction, time_base: Fraction):
        self.container, self.rate, self.time_base, self.stream = container, rate, time_base, None

    def write(self, image: PIL.Image.Image, time: int, pixel_aspect: Fraction = SQUARE) -> None:
        """Appends a frame; all have the size of the first, and are shown with its pixels' shape.

        Args:
            image: RGB.
            time: when it is shown, in units of the time base.
            pixel_aspect: how wide a pixel is shown, in heights of a pixel.
        """
        pixels = _even(np.asarray(image))
        if self.stream is None:
            self._begin(*pixels.shape[:2], pixel_aspect)
        if pixels.shape[:2] != (self.stream.height, self.stream.width):
            raise DataError(
                f"a frame of {image.width}×{image.height} pixels is of another size than the first: cut the video there"
            )
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = time, self.time_base
        self.container.mux(self.stream.encode(frame))

    def _begin(self, height: int, width: int, pixel_aspect: Fraction) -> None:
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        self.stream = self.container.add_stream(encoder, rate=self.rate, options=QUALITY[encoder])
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"  # which every player shows
        context = self.stream.codec_context
        context.time_base, context.sample_aspect_ratio = self.time_base, pixel_aspect
        # Said in the file, because players guess it by the size otherwise.
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE

    def finish(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode(None))


@contextmanager
def write_video(path: Path, rate: Fraction, time_base: Fraction) -> Iterator[VideoWriter]:
    """Writes an MP4 file, whole or not at all.

    Colours have half the resolution (4:2:0), so sides are even: an odd side is longer by one line, a copy of the last.

    Args:
        path: of the file.
        rate: frames a second, on average.
        time_base: seconds of a unit of the frames' times.
    """
    with whole_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        writer = VideoWriter(container, rate, time_base)
        yield writer
        writer.finish()


def _even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
