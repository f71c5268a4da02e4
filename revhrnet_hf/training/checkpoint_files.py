"""The files of a checkpoint folder: which of them its run has written, whether they are whole, how the folder is replaced.

A run writes plain files, never links, and lists their checksums in `SHA256SUMS`, which `sha256sum -c SHA256SUMS` checks as well.
Only a run's own files may be deleted, whatever else lies beside them. They are the files that `SHA256SUMS` lists, the model card,
and, in case the list is damaged, the files with the usual names. Results of `revhrnet evaluate` belong to the package, but not to
the run: they describe the weights, and stay until a new run is asked for.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from safetensors import SafetensorError

from .. import models
from ..errors import CheckpointError
from ..evaluation.results import drawings_of, is_result
from ..io import CHECKSUMS, PICKLES, sha256_of, write_folder

CHANGING = {"README.md"}  # the model card, which people edit and evaluations write anew: it has no checksum
WEIGHTS = {".safetensors", *PICKLES}  # suffixes

# A folder that has one of these is a checkpoint of a run.
MARKS = (CHECKSUMS, "recipe.yaml", "training_state.json")
CHECKPOINT_FILES = {
    *MARKS,
    "README.md",
    "averaged.safetensors",
    "config.json",
    "example.png",
    "lora.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "preprocessor_config.json",
    "scores.json",
    "versions.json",
    *(path.name for path in Path(models.__file__).parent.glob("*.py")),  # the networks' code, for `trust_remote_code`
}
PARTIAL = re.compile(r"\..+\.\d+\.part")  # left by an `io.whole_file` that was killed
TRACKER_FILES = re.compile(r"events\.out\.tfevents\..+|hparams\.yml")  # TensorBoard's, as Accelerate writes them
AIM_FOLDER = ".aim"  # the repository of the tracker Aim, whose files have many names
OLD_RESULTS = "scores_of_step_{}"  # folder in a checkpoint: results of the weights that it replaced


def write_checkpoint(target: Path, fill: Callable[[Path], None], keep_old_as: Path | None = None) -> None:
    """Replace the folder `target` by what `fill` writes, with checksums; see `io.write_folder`. Files of others in it stay.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full; `target` is as it was.
    """

    def fill_and_sum(folder: Path) -> None:
        fill(folder)
        write_checksums(folder)

    try:
        write_folder(target, fill_and_sum, keep_old_as, carry_over)
    except (OSError, SafetensorError) as error:
        standing = "what was saved before is whole" if target.exists() else "nothing was saved before"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot write {target}: {reason}; {standing}. Make room, then resume with --resume") from error


def write_checksums(folder: Path, without: Collection[str] = CHANGING) -> None:
    """Write `SHA256SUMS`: a line for each file below the folder whose name is not in `without`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {CHECKSUMS, *without})
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Describes the first damage found in a folder that `write_checkpoint` wrote; None if each file is as it was written."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        sums = [line.split("  ", 1) for line in lines]
        for name in dict.fromkeys(name for _, name in sums):
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if [sha256_of(path), name] not in sums:  # a file that was being changed has two lines (io.change_text)
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read ({getattr(error, 'strerror', None) or error})"
    listed = {name for _, name in sums}
    unlisted = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in listed)
    return f"{unlisted[0]} is not in {CHECKSUMS}" if unlisted else None if sums else f"{CHECKSUMS} is empty"


def refuse_pickles(folder: Path) -> None:
    """Raises a CheckpointError if there is a file that loading could unpickle, which runs whatever code is in it.

    A run writes safetensors and text only, so somebody else has put such a file there.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(
                f"{path} was not written by this program, and loading such a file can run code that is hidden in it: find out "
                "where it comes from, and remove it before resuming"
            )


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
    """The files that `revhrnet evaluate` has written into a checkpoint folder: records, and the files named after each record."""
    found = set()
    for record in folder.glob("scores_*.json"):
        if is_result(record):
            found |= {record, record.with_suffix(".csv"), *drawings_of(record)}
    for work in folder.glob(".scores_*.work"):  # an evaluation that was interrupted
        found |= {work / "settings.json", work / "lock", *work.glob("part_*.jsonl")}
    for old in folder.glob(OLD_RESULTS.format("*")):
        if _is_folder(old):
            found |= result_files(old)
    return found & set(_files(folder))


def tracker_files(folder: Path) -> set[Path]:
    """The files that trackers have written into their folder."""
    return {
        path for path in _files(folder) if TRACKER_FILES.fullmatch(path.name) or AIM_FOLDER in path.relative_to(folder).parts[:-1]
    }


def entries_of_others(folder: Path, known: set[Path]) -> list[Path]:
    """The entries below a folder that are not `known` files; a folder without any known file is one entry."""
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
    """Delete these files below a folder, then the folders that have become empty, `folder` included.

    The marks are deleted last, so that the rest is still known as the run's if the process is killed on the way.
    """
    files = sorted(files, key=lambda path: (path.name in MARKS, path))
    for path in files:
        path.unlink(missing_ok=True)
    emptied = {folder, *(parent for path in files for parent in path.parents if folder in parent.parents)}
    for parent in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        if not any(parent.iterdir()):
            parent.rmdir()


def carry_over(old: Path, new: Path, old_stays: bool) -> None:
    """Move everything that a run has not written from a checkpoint folder to the one that replaces it.

    Args:
        old_stays: the old folder is kept under another name. Then results stay with the weights that they describe, and so do
            weights of others, with which the new checkpoint could not be resumed. Otherwise results move to a folder of their
            own, so that they are not taken for results of the new weights.
    """
    if not _is_folder(old):
        return
    results = result_files(old)
    for path in entries_of_others(old, checkpoint_files(old) | results):
        if not (old_stays and path.suffix.lower() in WEIGHTS):
            _move(path, new / path.relative_to(old))
    if old_stays:
        return
    aside = OLD_RESULTS.format(_scored_step(old))
    for path in sorted(results):
        name = path.relative_to(old)
        is_aside = len(name.parts) > 1 and name.parts[0].startswith(OLD_RESULTS.format(""))  # of weights before these
        _move(path, new / name if is_aside else new / aside / name)


def _scored_step(folder: Path) -> str:
    """The step at which a checkpoint was scored; `unknown` where nothing says it."""
    try:
        return str(int(json.loads((folder / "scores.json").read_text(encoding="utf-8"))["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _move(path: Path, target: Path) -> None:
    """Move a file, link or folder on the same disk; if something has that name already, add a number."""
    target.parent.mkdir(parents=True, exist_ok=True)
    names = (target.name, *(f"{target.name}.{number}" for number in range(2, 1000)))
    path.rename(next(free for free in map(target.with_name, names) if not os.path.lexists(free)))


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
