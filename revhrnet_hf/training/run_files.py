"""Which entries of a run's folders are the run's: only these may be deleted, whatever else lies beside them.

A run writes plain files, never links. A checkpoint's files are those that its `SHA256SUMS` lists, its card, and, in case the list
is damaged, those that have the names of a checkpoint's files. Results of `evaluate_seg.py` belong to the package, but not to the
run: they say something about weights, and stay as long as nobody asks for a new run.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .. import models
from ..io import PICKLES

CHECKSUMS = "SHA256SUMS"
WEIGHTS = {".safetensors", *PICKLES}  # suffixes

# A folder that has one of these is a checkpoint of a run.
MARKS = (CHECKSUMS, "recipe.yaml", "training_state.json")
CHECKPOINT_FILES = {
    *MARKS,
    "README.md",
    "averaged.safetensors",
    "config.json",
    "example.png",
    "model.safetensors",
    "optimizer.safetensors",
    "preprocessor_config.json",
    "scores.json",
    "versions.json",
    *(path.name for path in Path(models.__file__).parent.glob("*.py")),  # the networks' code, for `trust_remote_code`
}
PARTIAL = re.compile(r"\..+\.\d+\.part")  # of a killed `io.whole_file`
TRACKER_FILES = re.compile(r"events\.out\.tfevents\..+|hparams\.yml")  # TensorBoard's, as Accelerate writes them
AIM_FOLDER = ".aim"  # the repository of the tracker Aim, whose files have many names
OLD_RESULTS = "scores_of_step_{}"  # folder in a checkpoint: results of the weights that it replaced


def is_checkpoint(folder: Path) -> bool:
    """Whether a run has written a checkpoint there, damaged or not."""
    return any((folder / name).is_file() for name in MARKS)


def checkpoint_files(folder: Path) -> set[Path]:
    """The files in a checkpoint folder that its run has written."""
    if not (_is_folder(folder) and is_checkpoint(folder)):
        return set()
    names = CHECKPOINT_FILES | _listed(folder)
    return {path for path in _files(folder) if path.relative_to(folder).as_posix() in names or PARTIAL.fullmatch(path.name)}


def _listed(folder: Path) -> set[str]:
    """The names in `SHA256SUMS`; none where it cannot be read."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    return {name for _, blanks, name in (line.partition("  ") for line in lines) if blanks}


def result_files(folder: Path) -> set[Path]:
    """What `evaluate_seg.py` has written into a checkpoint folder: records, and what goes with each, by its name."""
    found = set()
    for record in folder.glob("scores_*.json"):
        if _is_record(record):
            found |= {record, record.with_suffix(".csv"), record.with_name(f"{record.stem}_confusion.png")}
            found |= set(record.with_name(f"{record.stem}_worst").glob("[0-9]*_*.png"))
    for work in folder.glob(".scores_*.work"):  # an evaluation that was interrupted
        found |= {work / "settings.json", work / "lock", *work.glob("part_*.jsonl")}
    for old in folder.glob(OLD_RESULTS.format("*")):
        if _is_folder(old):
            found |= result_files(old)
    return found & set(_files(folder))


def _is_record(path: Path) -> bool:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"scores", "confusion_matrix", "settings"} <= record.keys()


def tracker_files(folder: Path) -> set[Path]:
    """What trackers have written into their folder."""
    return {
        path for path in _files(folder) if TRACKER_FILES.fullmatch(path.name) or AIM_FOLDER in path.relative_to(folder).parts[:-1]
    }


def entries_of_others(folder: Path, known: set[Path]) -> list[Path]:
    """The entries below a folder that are not `known` files; a folder without any of them is one entry."""
    found = []
    for path in sorted(folder.iterdir()):
        if not _is_folder(path):
            found += [] if path in known else [path]
        elif any(path in file.parents for file in known):
            found += entries_of_others(path, known)
        else:
            found.append(path)
    return found


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Delete these files below a folder, and the folders that are empty then, itself too.

    The marks go last: whenever it is killed, the rest is still known as the run's.
    """
    files = sorted(files, key=lambda path: (path.name in MARKS, path))
    for path in files:
        path.unlink(missing_ok=True)
    emptied = {folder, *(parent for path in files for parent in path.parents if folder in parent.parents)}
    for parent in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        if not any(parent.iterdir()):
            parent.rmdir()


def carry_over(old: Path, new: Path, old_stays: bool) -> None:
    """Move what a run has not written from a checkpoint folder to the one that replaces it.

    Args:
        old_stays: it is kept under another name. Results then stay with the weights that they are of, and so do weights of
            others, which would make the new checkpoint one that cannot be resumed from. Else results go into a folder of
            their own, so that they are not taken for those of the new weights.
    """
    if not _is_folder(old):
        return
    results = result_files(old)
    for path in entries_of_others(old, checkpoint_files(old) | results):
        if not (old_stays and path.suffix.lower() in WEIGHTS):
            _move(path, new / path.relative_to(old))
    if old_stays:
        return
    aside = OLD_RESULTS.format(_step_of(old))
    for path in sorted(results):
        name = path.relative_to(old)
        is_aside = len(name.parts) > 1 and name.parts[0].startswith(OLD_RESULTS.format(""))  # of weights before these
        _move(path, new / name if is_aside else new / aside / name)


def _step_of(folder: Path) -> str:
    """The step of a checkpoint that was scored; `unknown` where nothing says it."""
    try:
        return str(int(json.loads((folder / "scores.json").read_text(encoding="utf-8"))["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _move(path: Path, target: Path) -> None:
    """Give a file, link or folder another place on the same disk; where something is there already, with a number behind it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = (target.name, *(f"{target.name}.{number}" for number in range(2, 1000)))
    path.rename(next(free for free in map(target.with_name, names) if not os.path.lexists(free)))


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
