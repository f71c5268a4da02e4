"""The work of `revhrnet predict`: segment images and videos, and write what was found. The command line is elsewhere, because it
does not wait for PyTorch."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..cli import choose_device, inference_settings
from ..data.palette import Colour
from ..download import download
from ..errors import DataError, RecipeError, first_few
from ..evaluation import InferenceSettings, load_for_inference, segment
from ..evaluation.sources import Source, find_sources
from ..images import allow_megapixels, save_image
from ..io import is_name_too_long, write_folder
from ..viz.figures import (
    class_shares,
    confidence_png,
    legend,
    names_and_palette,
    overlay,
    overlay_legend,
    palette_png,
    text_size,
    untinted_of,
    with_legend,
)
from . import check_installed

logger = logging.getLogger(__name__)


def predict_sources(args: argparse.Namespace) -> None:
    """Does what the command line says; see predict.py."""
    device, settings = choose_device(args.device), inference_settings(args)
    if args.max_megapixels is not None:
        allow_megapixels(args.max_megapixels)
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise RecipeError(f"--output_dir {args.output_dir} is a file: name a folder")
    sources = find_sources(args.images, args.recursive, args.output_dir, args.max_download)
    check_videos([source for source in sources if source.is_video], args)
    outputs = output_files(sources, args)
    model, image_processor = load_for_inference(
        args.checkpoint, device, trust_remote_code=args.trust_remote_code, compiled=args.compile
    )
    names, palette = names_and_palette(model.config)
    predictor = Predictor(args, model, image_processor, settings, names, palette, untinted_of(model.config))
    skipped = [source for source, files in outputs.items() if not predictor.predict(source, files)]
    if skipped:
        raise DataError(f"{len(skipped)} of {len(sources)} images could not be segmented: {', '.join(map(str, skipped))}")


def check_videos(videos: Sequence[Source], args: argparse.Namespace) -> None:
    """Raises a RecipeError if a video cannot be segmented as asked, before the work begins."""
    if videos:
        check_installed(f"the video {videos[0]} needs", "video", "av")
        if args.confidence is not None:
            raise RecipeError(f"--confidence writes maps of images, not of videos: leave it out, or {first_few(videos, 3)}")
    elif args.frame_labels:
        raise RecipeError(
            "--frame_labels is for videos, and none is given: leave it out (of images, label maps are always written)"
        )


def output_files(sources: Sequence[Source], args: argparse.Namespace) -> dict[Source, dict[str, Path]]:
    """The files that are written of each image and video, by kind.

    Raises:
        DataError: two sources would be written to one file, or a file exists and may not be replaced.
    """
    outputs: dict[Source, dict[str, Path]] = {}
    owners: dict[Path, Source] = {}
    for source in sources:
        if source.is_video:
            endings = {"overlay": ".mp4", "legend": ".png"} | ({"labels": ""} if args.frame_labels else {})
        else:
            endings = {"labels": ".png", "overlay": ".png"} | ({} if args.confidence is None else {"confidence": ".png"})
        files = {kind: args.output_dir / f"{source.name}_{kind}{ending}" for kind, ending in endings.items()}
        for output in files.values():
            owner = owners.setdefault(output, source)
            if owner is not source:
                raise DataError(
                    f"{owner} and {source} would both be written to {output}: predict them one after the other with different "
                    "--output_dir"
                )
            # The name of a file that cannot be there is an error of this source alone; see `Predictor.predict`.
            if not is_name_too_long(output.name) and output.exists() and not args.overwrite:
                raise DataError(f"{output} is there already: give --overwrite, or another --output_dir")
        outputs[source] = files
    return outputs


@dataclass(frozen=True)
class Predictor:
    """A checkpoint that is ready to run.

    Attributes:
        args: the command line.
        model, image_processor: the checkpoint, on the device where it runs.
        settings: how it is run.
        names, palette: name and colour of each class.
        untinted: ids of the classes that overlays show without colour.
    """

    args: argparse.Namespace
    model: torch.nn.Module
    image_processor: Any
    settings: InferenceSettings
    names: list[str]
    palette: list[Colour]
    untinted: frozenset[int]

    @property
    def legend_entries(self) -> tuple[list[str], list[Colour]]:
        """Names and colours for the legend of an overlay."""
        return overlay_legend(self.names, self.palette, self.untinted)

    def predict(self, source: Source, files: dict[str, Path]) -> bool:
        """Segments an image or a video and writes its files. If it cannot be, a warning says why, and False is returned."""
        try:
            check_names(source, files)
            if source.is_video:
                self._video(source, files)
            else:
                self._image(source, source.read_image(), files)
        except DataError as error:
            logger.warning("skipped: %s", error)
            return False
        return True

    def _image(self, source: Source, image: Image.Image, files: dict[str, Path]) -> None:
        with_confidence = "confidence" in files
        found = segment(
            self.model, self.image_processor, image, self.settings, name=str(source), return_confidence=with_confidence
        )
        shares = class_shares(found.label_map)
        make_folders(files)
        save_image(palette_png(found.label_map, self.palette), files["labels"])
        coloured = self._coloured(image, found.label_map)
        save_image(with_legend(coloured, *self.legend_entries, sorted(shares)), files["overlay"])
        if with_confidence:
            save_image(confidence_png(found.confidence, self.args.confidence), files["confidence"])
        print(f"{source} → {', '.join(map(str, files.values()))}")
        self._print_shares(shares)
        if with_confidence:
            print(f"  mean confidence {100 * found.confidence.mean():.1f} %")

    def _video(self, source: Source, files: dict[str, Path]) -> None:
        from ..evaluation.video import VideoFile  # PyAV is an extra

        file = download(source.place, source.limit) if source.is_address else source.place
        with VideoFile(file, str(source)) as video:
            make_folders(files)
            counts = np.zeros(len(self.names), np.int64)
            fill = partial(self._frames, source, video, files["overlay"], counts)
            if "labels" in files:
                write_folder(files["labels"], fill)
            else:
                fill(None)
            width = video.width
        shares = {int(index): counts[index] / counts.sum() for index in np.argsort(-counts, kind="stable") if counts[index]}
        drawn = legend(*self.legend_entries, sorted(shares), width=width, font_size=text_size(width))
        save_image(drawn, files["legend"])
        print(f"{source} → {', '.join(map(str, files.values()))}; {float(video.rate):.4g} frames a second")
        self._print_shares(shares)

    def _frames(self, source: Source, video, overlay_file: Path, counts: np.ndarray, labels: Path | None) -> None:
        """Segments the frames of a video one by one; writes the overlay and, into the folder `labels` if given, label maps.

        Args:
            counts: the pixels of each class are added to it.
        """
        from ..evaluation.video import write_video

        with ExitStack() as stack:
            writer = stack.enter_context(write_video(overlay_file, video.rate, video.time_base))
            bar = stack.enter_context(tqdm(total=video.frames, unit="frame", disable=None))
            for number, frame in enumerate(video):
                found = segment(self.model, self.image_processor, frame.image, self.settings, name=f"frame {number} of {source}")
                counts += np.bincount(found.label_map.ravel(), minlength=len(counts))
                writer.write(self._coloured(frame.image, found.label_map), frame.time, frame.pixel_aspect)
                if labels is not None:
                    palette_png(found.label_map, self.palette).save(labels / f"{number:06d}.png")
                bar.update()

    def _coloured(self, image: Image.Image, label_map: np.ndarray) -> Image.Image:
        # A prediction has no ignored pixels, so the ignore index is an id that does not occur.
        return overlay(image, label_map, self.palette, self.args.opacity, len(self.palette), self.untinted)

    def _print_shares(self, shares: dict[int, float]) -> None:
        """Prints how much of an image or a video each class covers."""
        width = max(len(self.names[index]) for index in shares)
        for index, pixels in shares.items():
            print(f"  {self.names[index]:<{width}}  {100 * pixels:5.1f} %")


def check_names(source: Source, files: dict[str, Path]) -> None:
    """Raises a DataError if file systems refuse the name of one of a source's files."""
    for file in files.values():
        if is_name_too_long(file.name):
            raise DataError(f"{source} cannot be segmented: {file.name} is too long a name for a file. Give it a shorter name.")


def make_folders(files: dict[str, Path]) -> None:
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
