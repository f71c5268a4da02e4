"""Label maps that a network makes for images without labels, to train on them: pixels that it is not sure of are ignored.

First every image is predicted, and its label map and confidences are kept in a work folder, so that an interrupted run can be
resumed. Then the thresholds are taken from the confidences of all images, and the dataset is written. It has the layout that the
loader `folder` reads: SPLIT/images, SPLIT/labels and a label table, with a report beside them.

Class-balanced thresholds are those of Zou et al., "Unsupervised Domain Adaptation for Semantic Segmentation via Class-Balanced
Self-Training" (arXiv 1810.07911): of the pixels predicted as a class, the same share is kept for every class, those of highest
confidence. With one threshold for all classes, rare and difficult classes would hardly be labelled.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ..data.archive import is_hidden
from ..data.label_table import FEWEST_CLASSES, IGNORED, MAX_CLASSES, USUAL_NAME, read_label_table
from ..errors import CheckpointError, DataError, RecipeError, did_you_mean, first_few
from ..images import SUFFIXES, Colour, read_image, save_image
from ..io import remove, write_folder, write_json, write_text
from ..text import table
from ..viz.figures import confidence_triptych, palette_png
from .predict import Segmentation

FULL = 65535  # the level of a confidence of 1; see `level_of`
WORK, REPORT, EXAMPLES = ".pseudo_label.work", "report.json", "report.png"
WRITTEN = ".pseudo_label.json"  # in the split's folder: the paths of the files there that were written, as a list
PREDICTIONS = "*.png"  # in the work folder
MOST_EXAMPLES, EXAMPLE_WIDTH = 5, 480


def level_of(confidence: np.ndarray | float) -> np.ndarray:
    """Confidences as numbers from 0 to `FULL`, not rounded, that divide finely those close to 1.

    Most pixels of an easy class have a probability of 0.9999 or more. In even steps of 16 bits many would be equal, and no share
    of them could be chosen.
    """
    return FULL * (1 - np.sqrt(1 - np.clip(confidence, 0, 1).astype(np.float64)))


def confidence_of(level: np.ndarray | int) -> np.ndarray:
    """The inverse of `level_of`."""
    return 1 - np.square(1 - np.asarray(level) / FULL)


@dataclass(frozen=True)
class Thresholds:
    """Which pixels are sure enough.

    Attributes:
        min_confidence: the least confidence, 0 to 1, of every class.
        by_class: least confidences of single classes by name, which replace all else.
        class_share: of the pixels predicted as each class, the share to keep at most; None: all above `min_confidence`.
    """

    min_confidence: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    class_share: float | None = None

    def check(self, names: Sequence[str]) -> None:
        """Raises a RecipeError for a class that is not among these names."""
        for name in self.by_class:
            if name not in names:
                raise RecipeError(f"the checkpoint has no class {name!r}{did_you_mean(name, names)}: it has {first_few(names)}")

    def least(self, counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The least confidence of each class, as a level.

        Args:
            counts: (classes, FULL + 1) pixels by predicted class and level of confidence, of all images.
        """
        least = np.full(len(names), math.ceil(level_of(self.min_confidence)))
        if self.class_share is not None:
            at_least = counts[:, ::-1].cumsum(axis=1)  # pixels of level FULL, FULL − 1 or more, …
            wanted = self.class_share * at_least[:, -1:] - 1e-6  # 0.14 × 300 is a little more than 42 in floating point
            least = np.maximum(least, FULL - (at_least >= np.maximum(wanted, 1)).argmax(axis=1))
        for name, confidence in self.by_class.items():
            least[names.index(name)] = math.ceil(level_of(confidence))
        return least


@dataclass
class Predictions:
    """The predictions of images in a work folder, one PNG each: the class id in red, the level of confidence in green and blue.

    Attributes:
        folder: the work folder.
    """

    folder: Path

    def file(self, image: Path) -> Path:
        return self.folder / f"{image.stem}.png"

    def write(self, image: Path, found: Segmentation) -> None:
        level = np.rint(level_of(found.confidence)).astype(np.uint16)
        channels = found.label_map, level >> 8, level & 255
        save_image(Image.fromarray(np.stack([channel.astype(np.uint8) for channel in channels], axis=-1)), self.file(image))

    def read(self, image: Path) -> tuple[np.ndarray, np.ndarray]:
        """The label map and the levels of confidence, (height, width) both."""
        label_map, high, low = np.moveaxis(np.asarray(read_image(self.file(image))), -1, 0)
        return label_map, high.astype(np.int64) << 8 | low

    def counts(self, images: Sequence[Path], num_classes: int) -> np.ndarray:
        """(num_classes, FULL + 1) pixels of these images by predicted class and level of confidence."""
        total = np.zeros(num_classes * (FULL + 1), np.int64)
        for image in images:
            label_map, level = self.read(image)
            total += np.bincount((label_map * np.int64(FULL + 1) + level).ravel(), minlength=len(total))
        return total.reshape(num_classes, FULL + 1)


def check_classes(names: Sequence[str]) -> None:
    """Raises a CheckpointError for class names that cannot be written as a label table."""
    if not FEWEST_CLASSES <= len(names) <= MAX_CLASSES:
        raise CheckpointError(f"a label table has {FEWEST_CLASSES} to {MAX_CLASSES} classes, and the checkpoint {len(names)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise CheckpointError(f"two classes of the checkpoint are called {twice!r}: give them different names in config.json")


def check_distinct(images: Sequence[Path]) -> None:
    """Raises a DataError if two images have one name, which both label maps would have."""
    owners: dict[str, Path] = {}
    for image in images:
        owner = owners.setdefault(image.stem.casefold(), image)
        if owner != image:
            raise DataError(f"{owner} and {image} would have one label map: label them one after the other, in different folders")


def check_not_replaced(images: Sequence[Path], output_dir: Path, split: str) -> None:
    """Raises a RecipeError if an image is the sheet of examples, or lies below the folder of the split: both are replaced."""
    folder, examples = (output_dir / split).resolve(), (output_dir / EXAMPLES).resolve()
    places = {image: Path(os.path.realpath(image)) for image in images}
    if inside := [image for image, place in places.items() if folder in place.parents or place == examples]:
        raise RecipeError(
            f"{first_few(inside)} would be deleted: {output_dir / split} and {EXAMPLES} are replaced by what is written. Give "
            "another --output_dir, or copies of the images in another folder"
        )


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Raises a RecipeError unless the folder is new, empty, unfinished, or (with `overwrite`) the result of an earlier run."""
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--output_dir {folder} is a file: name a folder")
    if (folder / REPORT).is_file() and (folder / USUAL_NAME).is_file():
        if not overwrite:
            resumes = " (the run that was interrupted is then resumed)" if (folder / WORK).is_dir() else ""
            raise RecipeError(
                f"--output_dir {folder} holds a finished dataset of pseudo-labels: give another, or --overwrite to replace "
                f"it{resumes}"
            )
    elif folder.is_dir() and any(folder.iterdir()) and not (folder / WORK).is_dir():
        raise RecipeError(f"--output_dir {folder} holds files that pseudo_label has not written: name another folder")


def check_other_files(folder: Path, split: str, names: Sequence[str]) -> None:
    """Checks that the files of others in a dataset's folder keep their meaning, and that none is deleted.

    Args:
        folder: of the dataset.
        split: the split that is written; its folder is replaced.
        names: the classes of the label table that is written.

    Raises:
        RecipeError: the split's folder holds files that were not written here, or there are other splits whose label table has
            other classes or is missing.
        DataError: there are other splits, and their label table cannot be read.
    """
    if others := sorted(_files_below(folder / split) - _written_files(folder / split)):
        raise RecipeError(
            f"{folder / split} is replaced, and holds files that pseudo_label has not written: {first_few(others, 5)}. Move "
            "them to another folder, or give another --output_dir or --split"
        )
    splits, table = other_splits(folder, split), folder / USUAL_NAME
    if splits and not (table.is_file() and _has_classes(table, names)):
        fault = "has other classes than the checkpoint" if table.is_file() else "is missing"
        raise RecipeError(
            f"{folder} holds {first_few(splits, 5)} as well, and {table.name}, which tells their classes too, {fault}: give "
            f"another --output_dir, or move {first_few(splits, 5)} with its label table to another folder"
        )


def other_splits(folder: Path, split: str) -> list[str]:
    """The names of the folders beside a split's, which the loader may take for splits."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and path.name != split and not is_hidden(path.name))


def _files_below(folder: Path) -> set[str]:
    """The paths below a folder of all files and links, except hidden ones and those that operating systems create."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in files if not is_hidden(path.name)}


def _written_files(folder: Path) -> set[str]:
    file = folder / WRITTEN
    return set(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else set()


def _has_classes(label_table: Path, names: Sequence[str]) -> bool:
    """Whether a label table has these classes, with the ids that pseudo-labels have."""
    found = read_label_table(label_table)
    return found.names == list(names) and found.raw_ids == {**{i: i for i in range(len(names))}, IGNORED: IGNORED}


@dataclass(frozen=True)
class PseudoLabels:
    """The dataset to write.

    Attributes:
        folder: where it is written.
        split: the name of the split.
        names, palette: name and colour of each class.
        predictions: of the images.
        link: make links to the images instead of copies.
    """

    folder: Path
    split: str
    names: list[str]
    palette: Sequence[Colour]
    predictions: Predictions
    link: bool = False

    def write(self, images: Sequence[Path], thresholds: Thresholds, about: Mapping[str, Any]) -> dict[str, Any]:
        """Writes images, label maps, label table and report; the label table last but the report, so that no half is read.

        Args:
            images: that have a prediction.
            about: what the report says of the checkpoint and of how it was run.

        Returns:
            The report.

        Raises:
            DataError: no pixel is sure enough.
            RecipeError: as in `check_other_files`.
        """
        counts = self.predictions.counts(images, len(self.names))
        least = thresholds.least(counts, self.names)
        report = {**about, **self._coverage(counts, least)}
        if not any(entry["kept"] for entry in report["classes"]):
            raise DataError(
                "no pixel of these images is sure enough, so there is nothing to train on: give a lower --min_confidence (the "
                f"highest confidence is {confidence_of(counts.any(axis=0).nonzero()[0].max()):.3f}), or --class_share"
            )
        check_other_files(self.folder, self.split, self.names)  # some may be new since the run began
        stale = [REPORT, EXAMPLES]  # of an earlier run: not beside other label maps
        if not other_splits(self.folder, self.split):  # else the label table is theirs too, and has the same classes
            stale.append(USUAL_NAME)
        for name in stale:
            remove(self.folder / name)
        used: list[Path] = []
        write_folder(self.folder / self.split, lambda fresh: used.extend(self._fill(fresh, images, least)))
        with_labels = set(used)
        report |= {"images": len(used), "images_without_a_sure_pixel": [i.name for i in images if i not in with_labels]}
        save_image(self._examples(used, least), self.folder / EXAMPLES)
        write_text(self.folder / USUAL_NAME, self._label_table())
        write_json(self.folder / REPORT, report)
        return report

    def kept(self, image: Path, least: np.ndarray) -> np.ndarray:
        """The label map of an image, (height, width) uint8, with `IGNORED` where it is not sure."""
        label_map, level = self.predictions.read(image)
        return np.where(level >= least[label_map], label_map, IGNORED).astype(np.uint8)

    def _fill(self, folder: Path, images: Sequence[Path], least: np.ndarray) -> list[Path]:
        """Writes the images that have a sure pixel, their label maps, and the list of these files."""
        for name in ("images", "labels"):
            (folder / name).mkdir()
        used = []
        for image in images:
            label_map = self.kept(image, least)
            if (label_map != IGNORED).any():
                self._add_image(image, folder / "images")
                save_image(palette_png(label_map, self.palette), folder / "labels" / f"{image.stem}.png")
                used.append(image)
        write_json(folder / WRITTEN, sorted(_files_below(folder)))
        return used

    def _add_image(self, image: Path, folder: Path) -> None:
        if image.suffix.lower() not in SUFFIXES:  # a kind of file that the loader does not look for
            save_image(read_image(image), folder / f"{image.stem}.png")
        elif self.link:
            (folder / image.name).symlink_to(image.resolve())
        else:
            shutil.copyfile(image, folder / image.name)

    def _label_table(self) -> str:
        """Ids without colours: the palette's black stands for ignored pixels, and may be a class's colour too."""
        classes = {name: class_id for class_id, name in enumerate(self.names)}
        return yaml.safe_dump({"names": classes, "ignore": IGNORED}, sort_keys=False, allow_unicode=True)

    def _coverage(self, counts: np.ndarray, least: np.ndarray) -> dict[str, Any]:
        confidences = confidence_of(np.arange(FULL + 1))
        classes = []
        for name, pixels, limit in zip(self.names, counts, least, strict=True):
            predicted, kept = int(pixels.sum()), int(pixels[limit:].sum())
            mean = float(pixels @ confidences) / predicted if predicted else None
            entry = {"name": name, "min_confidence": float(confidence_of(limit)), "predicted": predicted, "kept": kept}
            classes.append({**entry, "mean_confidence": mean})
        return {"pixels": int(counts.sum()), "kept": sum(entry["kept"] for entry in classes), "classes": classes}

    def _examples(self, images: Sequence[Path], least: np.ndarray) -> Image.Image:
        """Some of the images, evenly spread, with their label maps and confidences."""
        places = np.unique(np.linspace(0, len(images) - 1, min(MOST_EXAMPLES, len(images))).round().astype(int))
        rows = []
        for image in (images[place] for place in places):
            confidence = confidence_of(self.predictions.read(image)[1])
            rows.append((read_image(image), self.kept(image, least), confidence))
        return confidence_triptych(rows, self.names, self.palette, IGNORED, EXAMPLE_WIDTH)


def format_report(report: Mapping[str, Any]) -> str:
    """The coverage by class as a table."""
    rows = [["class", ">least confidence", ">predicted %", ">kept of it %", ">mean confidence"]]
    for entry in report["classes"]:
        share = f"{100 * entry['kept'] / entry['predicted']:.1f}" if entry["predicted"] else "–"
        mean = "–" if entry["mean_confidence"] is None else f"{entry['mean_confidence']:.3f}"
        limit = f"{entry['min_confidence']:.3f}"
        rows.append([entry["name"], limit, f"{100 * entry['predicted'] / report['pixels']:.2f}", share, mean])
    rows.append(["all", "", "100.00", f"{100 * report['kept'] / report['pixels']:.1f}", ""])
    return table(rows)
