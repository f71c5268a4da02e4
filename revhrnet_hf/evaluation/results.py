"""The results of an evaluation: how their files are named and what tells them from others, so that none overwrites another.

scores_camvid_val.json                                  whole images in float32
scores_camvid_val_window480x480_flip_bfloat16.json      other settings
scores_folder-photos_val.json                           a folder of one's own, called photos
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from ..data.archive import read_location
from ..data.features import self_contained_file
from ..data.label_space import LabelSpace
from ..data.listing import LONG_CHECK
from ..data.loading import STORED
from ..errors import RecipeError
from ..io import sha256_of, without_nan
from ..versions import versions
from .settings import InferenceSettings

OWN = ("folder", STORED)  # loaders whose name says nothing about the data
MAX_STEM = 150  # bytes; file systems take 255, and endings are added
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # beside a run's newest checkpoint there are files of the optimizer
DATA = ("dataset", "loader", "split", "label_space", "label_table", "image_ids", "data")
IDENTITY = ("checkpoint", "weights", *DATA, "absent_as_zero", "dtype", "inference")
"""Fields of a result; two results that differ in one of them are of different evaluations."""
CONFUSION, RELIABILITY, REPORT, WORST = "confusion.png", "reliability.png", "report.html", "worst"  # see `beside`
WORST_DRAWINGS = "[0-9]*_*.png"  # in the folder of the worst images


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint, the data that it is scored on, and how.

    Attributes:
        checkpoint: a folder or a name on the Hub.
        dataset_name: the dataset's own name; see `dataset_name`.
        loader: the name of the loader that reads it.
        split: part of the dataset.
        label_space: of the label maps.
        image_ids: the images' names.
        data: `digest_of_data`.
        settings: how the model is run.
        dtype: of the weights: "float32" or "bfloat16".
        absent_as_zero: see `ConfusionMatrix.scores`.
        compiled: whether `torch.compile` compiles the model, which changes the last bits of its logits.
        weights: `digest_of_weights`, if the checkpoint is a folder.
    """

    checkpoint: str
    dataset_name: str
    loader: str
    split: str
    label_space: LabelSpace
    image_ids: Sequence[str]
    data: str
    settings: InferenceSettings
    dtype: str = "float32"
    absent_as_zero: bool = False
    compiled: bool = False
    weights: str | None = None

    def identity(self) -> dict[str, Any]:
        """The values of `IDENTITY`."""
        is_folder = Path(self.checkpoint).is_dir()
        return {
            # The path of a folder may tell more about this machine than its user wants to publish.
            "checkpoint": Path(self.checkpoint).resolve().name if is_folder else self.checkpoint,
            "weights": self.weights,
            "dataset": self.dataset_name,
            "loader": self.loader,
            "split": self.split,
            "label_space": self.label_space.name,
            "label_table": digest_of_table(self.label_space),
            "image_ids": digest_of_ids(self.image_ids),
            "data": self.data,
            "absent_as_zero": self.absent_as_zero,
            "dtype": self.dtype,
            "inference": self.settings.to_dict(),
        }

    def record_settings(self, device: str, boundary: bool, submission_dir: Path | None) -> dict[str, Any]:
        """Everything that the records of single images depend on; see `records.WorkFolder`."""
        return {
            "checkpoint": weights_stamp(self.checkpoint),
            "dataset": self.loader,
            "split": self.split,
            "label_space": self.label_space.to_json(),
            "image_ids": digest_of_ids(self.image_ids),
            "data": self.data,
            "inference": self.settings.to_dict(),
            "dtype": self.dtype,
            "device": device,
            "boundary": boundary,
            "submission": submission_dir and str(submission_dir.resolve()),
            # Else as before, so that what an earlier version began can be resumed.
            **({"compiled": True} if self.compiled else {}),
        }

    def result(
        self,
        scores: dict,
        intervals: dict | None,
        matrix: np.ndarray,
        never_predicted: Sequence[str],
        device: str,
        num_processes: int,
    ) -> dict[str, Any]:
        """The contents of the JSON file.

        Args:
            scores, matrix: of `score_records`.
            intervals: of `bootstrap_intervals`, or None.
            never_predicted: the dataset's classes that the checkpoint lacks.
            device, num_processes: where the model ran; nothing depends on them but the time and last bits.
        """
        identity = self.identity()
        return {
            **{key: identity[key] for key in ("checkpoint", "weights", *DATA)},
            "images": len(self.image_ids),
            "class_names": list(self.label_space.names),
            "never_predicted": list(never_predicted),
            "scores": scores,
            "confidence_intervals_95": intervals,
            "confusion_matrix": matrix.tolist(),
            "settings": {
                "device": device,
                "dtype": self.dtype,
                "compiled": self.compiled,
                "absent_as_zero": self.absent_as_zero,
                "num_processes": num_processes,
                "inference": str(self.settings),
                **self.settings.to_dict(),
            },
            "versions": versions(),
        }


def confusion_caption(result: Mapping[str, Any]) -> str:
    """The text below a drawing of a result's confusion matrix."""
    return f"{_measured(result)}. A row adds up to all pixels of a true class; grey: a class that is never true."


def calibration_caption(result: Mapping[str, Any]) -> str:
    """The text below a reliability diagram of a result."""
    text = f"{_measured(result)}. On the diagonal, confidence is accuracy; below it, the network is too sure of itself."
    return text if result["calibration"]["fitted"] else f"{text} No temperature can be fitted to this split."


def _measured(result: Mapping[str, Any]) -> str:
    """The checkpoint, data and settings of a result, as captions begin."""
    parts = [f"{result['checkpoint']} on {result['dataset']} {result['split']}", f"{result['images']} images"]
    parts += [settings["inference"]] if "inference" in (settings := result.get("settings", {})) else []
    return ", ".join(parts)


def weights_stamp(checkpoint: str | Path) -> list | str:
    """Names, sizes and times of a checkpoint's files, which change when the files do; for a name on the Hub the name.

    Args:
        checkpoint: not a run's output folder, which holds no such files: `find_checkpoint` gives the checkpoint in it.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    patterns = (*WEIGHTS, "config.json", "preprocessor_config.json")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def digest_of_weights(checkpoint: str | Path) -> str:
    """A short hash of the files of weights in a checkpoint's folder, which tells two runs' `best` apart."""
    digest = hashlib.sha256()
    for path in sorted(file for pattern in WEIGHTS for file in Path(checkpoint).glob(pattern)):
        digest.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def named_data_dir(text: str) -> tuple[str | None, str]:
    """Splits `NAME=DIR` into (NAME, DIR); gives (None, DIR) for DIR alone, even if an existing folder has a "=" in its name."""
    name, equals, folder = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.-]+", name) or Path(text).exists():
        return None, text
    if not folder:
        raise RecipeError(f"--data_dir {text}: say where the dataset lies, {name}=DIR")
    return name, folder


def dataset_name(loader: str, data_dir: str | Path, name: str | None = None) -> str:
    """A dataset's own name.

    It is the name given, if there is one; else the loader's, unless that says nothing about the data; else the name of the folder
    or the name on the Hub.
    """
    if name or loader not in OWN:
        return name or loader
    folder = Path(data_dir).expanduser()
    # Without the path to it, which is not to be published. A name on the Hub has two parts and stays as it is.
    return folder.resolve().name if folder.exists() else str(data_dir)


def result_stem(
    dataset: str,
    split: str,
    settings: InferenceSettings,
    *,
    loader: str | None = None,
    dtype: str = "float32",
    label_space: str | None = None,
    absent_as_zero: bool = False,
    checkpoint: str | None = None,
) -> str:
    """The name of the files of an evaluation, without the ending.

    Args:
        dataset: the dataset's own name.
        loader: is put before the dataset's name, where that is the name of a folder or on the Hub.
        label_space: the name or label table, if the user gave one.
        checkpoint: the checkpoint's name on the Hub, where the files do not lie in the checkpoint's own folder.
    """
    parts = ["scores", checkpoint, f"{loader}-{dataset}" if loader else dataset, split]
    parts.append(label_space and Path(label_space).stem)
    parts += settings_parts(settings)
    parts += [dtype if dtype != "float32" else None, "absent0" if absent_as_zero else None]
    stem = "_".join(re.sub(r"[^\w.-]", "-", part) for part in parts if part)
    if len(stem.encode()) <= MAX_STEM:
        return stem
    digest = hashlib.sha256(stem.encode()).hexdigest()[:12]
    return stem.encode()[: MAX_STEM - 13].decode(errors="ignore") + f"_{digest}"


def settings_parts(settings: InferenceSettings) -> list[str]:
    """Parts of a file's name for the settings that are not the defaults."""
    parts = []
    if settings.window is not None:
        parts.append("window{}x{}".format(*settings.window))
        if settings.stride is not None:
            parts.append("stride{}x{}".format(*settings.stride))
    if settings.scales != (1.0,):
        parts.append("scales" + "-".join(repr(float(scale)).removesuffix(".0") for scale in settings.scales))
    if settings.flip:
        parts.append("flip")
    if settings.average != "softmax":
        parts.append(settings.average)
    if settings.batch_size > 1:
        parts.append(f"batch{settings.batch_size}")
    return parts


def digest_of_ids(image_ids: Sequence[str]) -> str:
    """A hash of the images' names in their order."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def digest_of_table(label_space: LabelSpace) -> str:
    """A short hash of what the ids and colours in label maps mean; the colours of drawings do not count."""
    raw = (sorted(label_space.raw_ids.items()), sorted(label_space.raw_colours.items()))
    return hashlib.sha256(json.dumps([label_space.names, label_space.ignore_index, *raw]).encode()).hexdigest()[:16]


def digest_of_data(dataset: datasets.Dataset, more_files: Sequence[str] = ()) -> str:
    """A short hash of the contents of all images and label maps as they are stored; it is the same for a copy elsewhere.

    Every file is read, and none is decoded.

    Args:
        dataset: with the columns `image` and `label_map`.
        more_files: locations (see data/archive.py) of further files that scores depend on.

    Raises:
        DataError: a file cannot be read.
    """
    columns = [dataset.select_columns(name).cast_column(name, datasets.Image(decode=False)) for name in ("image", "label_map")]
    digest = hashlib.sha256()
    rows = zip(*columns, strict=True)
    quiet = True if len(dataset) < LONG_CHECK else None  # None: quiet where standard error is no terminal
    for row in tqdm(rows, "comparing files", len(dataset), unit="image", leave=False, disable=quiet):
        for value in (row[0]["image"], row[1]["label_map"]):
            # A test split has no label maps.
            stored = {"path": None, "bytes": b""} if value is None else self_contained_file(value)
            digest.update(f"{stored['path']}\0{hashlib.sha256(stored['bytes']).hexdigest()}\n".encode())
    for location in more_files:
        digest.update(hashlib.sha256(read_location(location)).digest())
    return digest.hexdigest()[:16]


def beside(output: Path, what: str) -> Path:
    """The file or folder of drawings that belongs to a result's JSON file, such as its `CONFUSION`."""
    return output.with_name(f"{output.stem}_{what}")


def is_result(path: Path) -> bool:
    """Whether the file is the JSON file of an evaluation."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(result, dict) and {"scores", "confusion_matrix", "settings"} <= result.keys()


def drawings_of(output: Path) -> list[Path]:
    """The drawings and the report that an evaluation has written beside its JSON file; none if that is no result."""
    if not is_result(output):
        return []
    files = (beside(output, what) for what in (CONFUSION, RELIABILITY, REPORT))
    return [path for path in (*files, *sorted(beside(output, WORST).glob(WORST_DRAWINGS))) if path.is_file()]


def stale_drawings(output: Path, identity: dict[str, Any], result: Mapping[str, Any]) -> list[Path]:
    """The drawings beside an earlier result that do not show the result that will replace it.

    These are all drawings of another evaluation. Those of the same evaluation show the new result too, but for a reliability
    diagram of confidences that the new result does not hold: at another temperature, or without `calibration`.

    Args:
        output: the JSON file.
        identity, result: `Evaluation.identity` and contents of the new result.
    """
    drawings = drawings_of(output)
    try:
        earlier = check_replaceable(output, identity)
    except RecipeError:  # of another evaluation
        return drawings
    calibration = without_nan(result.get("calibration"))
    if earlier is None or (calibration is not None and earlier.get("calibration") == calibration):
        return []
    return [path for path in drawings if path == beside(output, RELIABILITY)]


def check_replaceable(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The earlier result of the same evaluation that the file holds; None where there is no file.

    Args:
        output: the JSON file.
        identity: `Evaluation.identity` of the result that is to be written there.

    Raises:
        RecipeError: the file holds anything else.
    """
    if not output.exists():
        return None
    advice = "give another --output, or --overwrite to replace it"
    try:
        before = json.loads(output.read_text(encoding="utf-8"))
        known = {**before, **before["settings"]}
        known["inference"] = {key: before["settings"][key] for key in identity["inference"]}
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{output} is there and is no record of an evaluation: {advice}") from error
    identity = json.loads(json.dumps(identity))
    other = [key for key in IDENTITY if key in known and known[key] != identity[key]]
    if other:
        raise RecipeError(f"{output} holds the scores of another evaluation ({', '.join(other)} differ): {advice}")
    return before
