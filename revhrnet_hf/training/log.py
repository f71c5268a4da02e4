"""The log of a run: log.jsonl, and the same numbers to Accelerate's trackers, whose failures do not end the run."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from ..errors import CheckpointError, RecipeError
from ..io import LOG_FILE, flush, without_nan
from .output_dir import TRACKER_FOLDER

logger = logging.getLogger(__name__)

PROJECT = "revhrnet"


def check_trackers(names: list[str]) -> None:
    """Raises a RecipeError for a tracker that Accelerate does not know, or whose package is not installed."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"Recipe field trackers: unknown {name!r}; known are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in available:
            raise RecipeError(f"Recipe field trackers: the package for {name} is not installed (pip install {name})")


class RunLog:
    """Lines of log.jsonl, and the same numbers to the trackers; only the main process writes.

    A line holds the epoch, the step, the time and the numbers. Epochs count from 1: the lines of an epoch's steps and of the
    evaluation after it have the same number; an evaluation before training has 0. (Before 0.2, the lines of steps had one less.)

    Args:
        output_dir: where log.jsonl and TensorBoard's files go.
        trackers: names, checked before (`check_trackers`).

    Attributes:
        lines: of log.jsonl, on all processes.
    """

    def __init__(self, output_dir: Path, trackers: list[str], is_main: bool):
        self.path, self.is_main, self.lines = output_dir / LOG_FILE, is_main, 0
        self._names = trackers if is_main else []
        self._trackers: dict[str, GeneralTracker] = {}

    def start(self, config: dict[str, Any], lines: int = 0, again_from: int | None = None) -> None:
        """Begin, or resume after `lines` lines: steps that an interrupted run logged after its last checkpoint are logged again.

        Args:
            config: the recipe's fields, for the trackers.
            lines: of log.jsonl that stay.
            again_from: the first step that will be logged (again); None for a new run.
        """
        self.lines = lines
        if not self.is_main:
            return
        kept = self._keep(lines)
        for name in self._names:
            self._guarded(name, lambda name=name: self._start(name, config, again_from))
        if again_from is not None:
            for entry in map(json.loads, kept):
                if entry["step"] >= again_from:
                    self._track(entry["step"], {k: v for k, v in entry.items() if k not in ("epoch", "step", "time")})

    def _keep(self, lines: int) -> list[bytes]:
        """Cut log.jsonl after its first `lines` lines, in one operation that cannot be half done."""
        kept = self.path.read_bytes().splitlines(keepends=True)[:lines] if self.path.exists() else []
        if len(kept) < lines:
            raise CheckpointError(f"{self.path} has {len(kept)} lines, and the run to resume had {lines}: bring them back")
        if self.path.exists():
            os.truncate(self.path, sum(map(len, kept)))
        return kept

    def _start(self, name: str, config: dict[str, Any], again_from: int | None) -> None:
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        settings: dict[str, Any] = {}
        if name == "tensorboard" and again_from is not None:
            settings["purge_step"] = again_from  # TensorBoard then forgets what it had of later steps
        if name == "trackio":
            settings = {"name": self.path.parent.resolve().name, "resume": "never" if again_from is None else "allow"}
        folder = [str(self.path.parent / TRACKER_FOLDER)] if tracker_class.requires_logging_directory else []
        tracker = tracker_class(PROJECT, *folder, **settings)
        tracker.start()
        self._trackers[name] = tracker
        if again_from is None:
            plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
            tracker.store_init_configuration(plain)

    def write(self, epoch: int, step: int, values: dict[str, float], **details: Any) -> None:
        """One line of log.jsonl; `values` go to the trackers too, `details` only if they are numbers by name.

        Raises:
            CheckpointError: the line cannot be written, for example because the disk is full.
        """
        self.lines += 1
        if not self.is_main:
            return
        entry = {"epoch": epoch, "step": step, "time": time.time(), **values, **details}
        try:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(without_nan(entry)) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"Cannot write {self.path}: {error.strerror}. Checkpoints are whole; make room, then resume with --resume"
            ) from error
        self._track(step, {**values, **details})

    def images(self, step: int, draw: Callable[[], Image.Image]) -> None:
        """Give the trackers the image that `draw` makes; it is not drawn where no tracker takes images."""
        takers = [name for name, tracker in self._trackers.items() if name == "trackio" or hasattr(tracker, "log_images")]
        if not takers:
            return
        image = draw()
        for name in takers:
            self._guarded(name, lambda name=name: _log_image(name, self._trackers[name], image, step))

    def flush(self) -> None:
        """Bring log.jsonl to the disk, before a checkpoint counts its lines."""
        if self.is_main and self.path.exists():
            flush(self.path)

    def close(self) -> None:
        for name in list(self._trackers):
            self._guarded(name, self._trackers[name].finish)

    def _track(self, step: int, values: dict[str, Any]) -> None:
        numbers = dict(_numbers(values))
        for name in list(self._trackers):
            self._guarded(name, lambda name=name: self._trackers[name].log(numbers, step=step))

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        """A tracker that fails (no server, a full disk) is named once and left out from then on; training continues."""
        try:
            call()
        except Exception as error:
            self._trackers.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            logger.warning(f"the tracker {name} failed and is left out from now on ({reason})")


def _log_image(name: str, tracker: GeneralTracker, image: Image.Image, step: int) -> None:
    if name == "tensorboard":
        _log_jpeg(tracker.writer, image, step)
    elif name == "trackio":  # Accelerate has no log_images for it
        import trackio

        tracker.log({"predictions": trackio.Image(np.asarray(image))}, step=step)
    else:
        tracker.log_images({"predictions": [np.asarray(image)]}, step=step)


def _log_jpeg(writer, image: Image.Image, step: int) -> None:
    """As `writer.add_image`, whose PNG is several times as large and takes as long as two predictions."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85, subsampling=0)  # with the label maps' colours at full resolution
    summary = Summary.Image(width=image.width, height=image.height, colorspace=3, encoded_image_string=file.getvalue())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="predictions", image=summary)]), step)


def _numbers(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Finite numbers by name; those of a mapping as `NAME/KEY`, as TensorBoard groups them."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            found.append((prefix + name, value))
    return found
