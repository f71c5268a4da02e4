"""The output folder of a run: one run at a time writes into it, and deletes nothing that a run has not written.

It holds checkpoints (`last`, the newest; `checkpoint-STEP`, those before it; `best`, the one with the best scores), `log.jsonl`,
`report.html`, the trackers' files, a feature bank and a lock.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from ..errors import CheckpointError, first_few
from ..io import BEST, LAST, LOG_FILE, lock_file, recover_folder
from ..viz.report import REPORT_FILE, is_report
from .checkpoint_files import (
    carry_over,
    checkpoint_files,
    damage,
    entries_of_others,
    is_checkpoint,
    refuse_pickles,
    remove_files,
    result_files,
    tracker_files,
    write_checkpoint,
)
from .feature_bank import BANK_FOLDER, bank_files
from .recipe import OF_THE_RUN, Recipe

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
TRACKER_FOLDER = "tensorboard"

# The names that a run gives in its output folder. The lock file says whether the entries with these names are a run's own; its
# text is replaced in place, which needs no room on a full disk.
RUN_ENTRIES = re.compile(
    rf"{LAST}|{BEST}|checkpoint-\d+|({LAST}|checkpoint-\d+)\.damaged(\.\d+)?|log\.jsonl|report\.html|{TRACKER_FOLDER}|{BANK_FOLDER}"
)
RUN_BEGUN = b"A run of revhrnet_hf writes into this folder; it has no checkpoint yet.\n"
RUN_SAVED = b"A run of revhrnet_hf writes into this folder; it has checkpoints.      \n"

# Fields that may change when a run is resumed: they do not change what it learns from there on.
FREE_TO_CHANGE = {
    *OF_THE_RUN,
    "eval_every",
    "eval_at_start",
    "early_stopping_patience",
    "recompute",
    "init_from",
    # Their contents are compared, or are in the checkpoint; paths may be spelt in several ways.
    "label_space",
    "backbone_weights",
    # How scores are taken, as far as a GPU's memory allows.
    "eval_size",
}


def claim_output_dir(output_dir: Path, recipe: Recipe, resume: bool, overwrite: bool) -> tuple[bool, IO[bytes]]:
    """Keep `output_dir` for a run that has it to itself. Nothing is deleted: a new run calls `begin_anew`, once it can begin.

    Returns:
        Whether there is a checkpoint to resume from, which is then in `last`; and the folder's lock, to be closed at the end.

    Raises:
        CheckpointError: the folder cannot be written to; another run is at work in it; it holds a run and neither `resume` nor
            `overwrite` is asked for; its run's checkpoints are missing, or none is whole; it holds files of others under a
            run's names; or the run to resume was started with another recipe.
    """
    refuse_second_run(output_dir, resume, overwrite)
    lock = _lock(output_dir)
    try:
        recover(output_dir)
        lock.seek(0)
        _check_entries(output_dir, lock.read(), resume, overwrite)
        resumes = resume and (output_dir / LAST).exists()
        if resumes:
            choose_whole(output_dir)
            check_same_recipe(output_dir / LAST / "recipe.yaml", recipe)
            _mark(lock, RUN_SAVED)
    except BaseException:
        lock.close()
        raise
    return resumes, lock


def begin_anew(output_dir: Path, lock: IO[bytes]) -> None:
    """Delete the run that was in a claimed folder, and note that a new one has begun. `lock` is that of `claim_output_dir`."""
    _remove_run(output_dir)
    _mark(lock, RUN_BEGUN)


def note_saved(lock: IO[bytes]) -> None:
    """Note in the lock file that the run has a checkpoint: if there is none later, somebody else has taken it away."""
    _mark(lock, RUN_SAVED)


def _mark(lock: IO[bytes], text: bytes) -> None:
    lock.seek(0)
    lock.write(text)


def _lock(output_dir: Path) -> IO[bytes]:
    """Keeps other processes out until it is closed or this process ends, in whatever way."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_file(output_dir / LOCK_FILE)
    except OSError as error:
        raise CheckpointError(f"Cannot write to the output folder {output_dir}: {error.strerror}") from error
    if lock is None:
        raise CheckpointError(f"Another run is at work in {output_dir}: wait for it or end it, or choose another --output_dir")
    return lock


def refuse_second_run(output_dir: Path, resume: bool, overwrite: bool) -> None:
    """Raises a CheckpointError if a run may not begin in the folder, or be resumed there; writes nothing."""
    if resume and overwrite:
        raise CheckpointError("--resume and --overwrite exclude each other")
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"{output_dir} is a file; --output_dir must be a folder")
    lock = output_dir / LOCK_FILE
    if lock.is_symlink() or (lock.exists() and not lock.is_file()):
        raise CheckpointError(f"{lock} is a link or no plain file: remove it, or choose another --output_dir")
    # Closing the file releases a lock that this process has on it, so it is read before it is locked.
    _check_entries(output_dir, lock.read_bytes() if lock.exists() else b"", resume, overwrite)


def _check_entries(output_dir: Path, mark: bytes, resume: bool, overwrite: bool) -> None:
    """As `refuse_second_run`; `mark` is the text of the folder's lock file."""
    if mark not in (b"", RUN_BEGUN, RUN_SAVED):
        raise CheckpointError(
            f"{output_dir / LOCK_FILE} was not written by this program: move it away, or choose another --output_dir"
        )
    entries = run_entries(output_dir)
    names = ", ".join(path.name for path in entries)
    to_resume = [path for path in (output_dir / LAST, *earlier_checkpoints(output_dir)) if path.exists()]
    checkpoints = [*to_resume, *(path for path in [output_dir / BEST] if path.exists())]
    if entries and not (mark or any((folder / "recipe.yaml").is_file() for folder in checkpoints)):
        raise CheckpointError(
            f"{output_dir} holds {names}, where a run would write, and no run of this program has written that: move it away, or "
            "choose another --output_dir"
        )
    others = first_few(path.relative_to(output_dir) for path in entries_no_run_wrote(output_dir))
    if checkpoints and not (resume or overwrite):
        raise CheckpointError(
            f"{output_dir} already holds a run: resume it by --resume, start anew by --overwrite"
            f"{f' after moving away {others}, which no run has written' if others else ''}, or choose another folder"
        )
    if others and not (resume and to_resume):  # a new run begins, and the old one is deleted
        raise CheckpointError(
            f"{output_dir} holds files that no run of this program has written: {others}. They would be deleted: move them away, "
            "or choose another --output_dir"
        )
    if entries and mark != RUN_BEGUN and not (to_resume or overwrite):
        raise CheckpointError(
            f"{output_dir} holds no checkpoint to resume from: {LAST}/ and checkpoint-STEP/ are missing; of its run there is "
            f"only {names}. Bring one of them back, or start anew with --overwrite"
        )


def check_same_recipe(path: Path, recipe: Recipe) -> None:
    """Raises a CheckpointError if the recipe of a run to resume, in the file `path`, is another one; it says how."""
    before, now = asdict(Recipe.from_yaml(path)), asdict(recipe)
    changed = [name for name in now if name not in FREE_TO_CHANGE and before[name] != now[name]]
    if changed:
        lines = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)
        raise CheckpointError(
            f"The run in {path.parent} was started with another recipe: {lines}. Resume with the same, or start a new run"
        )


def save_last(output_dir: Path, keep: int, fill: Callable[[Path], None]) -> None:
    """Write `last`; the `keep - 1` checkpoints before it stay beside it. Of older ones only the run's own files are deleted."""
    last = output_dir / LAST
    before = output_dir / f"checkpoint-{_step_of(last)}" if last.exists() else None
    write_checkpoint(last, fill, keep_old_as=before)
    for folder in earlier_checkpoints(output_dir)[keep - 1 :]:
        if files := checkpoint_files(folder):  # none through a link
            remove_files(folder, files)


def earlier_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints `checkpoint-STEP`, newest first; a folder with that name that holds only files of others is none."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    found = [path for path in found if is_checkpoint(path)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def _step_of(folder: Path) -> int:
    return json.loads((folder / "training_state.json").read_text(encoding="utf-8"))["step"]


def recover(output_dir: Path) -> None:
    """Undo what a killed `write_checkpoint` left: the old folder comes back if no new one took its place."""
    for name in (LAST, BEST):
        recover_folder(output_dir / name, carry_over)
    earlier = earlier_checkpoints(output_dir)
    if earlier and not (output_dir / LAST).exists():
        earlier[0].rename(output_dir / LAST)


def choose_whole(output_dir: Path) -> None:
    """Make `last` the newest checkpoint that is whole. Damaged ones are named in a warning and become `NAME.damaged`.

    Raises:
        CheckpointError: none is whole, or there is a file in one that loading might unpickle.
    """
    damaged = {}
    for folder in (output_dir / LAST, *earlier_checkpoints(output_dir)):
        refuse_pickles(folder)
        what = damage(folder)
        if what is None:
            break
        damaged[folder] = what
    else:
        said = "; ".join(f"{folder}: {what}" for folder, what in damaged.items())
        raise CheckpointError(f"No checkpoint to resume from is whole: {said}. Start anew with --overwrite")
    for broken, what in damaged.items():
        names = (f"{broken.name}.damaged{number}" for number in ("", *(f".{n}" for n in range(2, 1000))))
        aside = next(path for path in map(broken.with_name, names) if not os.path.lexists(path))
        logger.warning(f"{broken} is damaged: {what}. {folder.name} is used instead; it stays as {aside.name}")
        broken.rename(aside)
    if damaged:
        folder.rename(output_dir / LAST)


def run_entries(output_dir: Path) -> list[Path]:
    """The entries of an output folder that have the names that a run gives."""
    return sorted(path for path in output_dir.glob("*") if RUN_ENTRIES.fullmatch(path.name))


def _files_of(entry: Path) -> tuple[set[Path], set[Path]]:
    """The files of a run, and those of its evaluations, in an entry that has a name that a run gives."""
    if entry.is_symlink():
        return set(), set()
    if not entry.is_dir():
        is_own = entry.name == LOG_FILE or (entry.name == REPORT_FILE and is_report(entry))
        return ({entry} if is_own else set()), set()
    if entry.name == TRACKER_FOLDER:
        return tracker_files(entry), set()
    if entry.name == BANK_FOLDER:
        return bank_files(entry), set()
    return checkpoint_files(entry), result_files(entry)


def entries_no_run_wrote(output_dir: Path) -> list[Path]:
    """Files, links and folders under a run's names or in its folders that neither a run nor an evaluation has written."""
    found = []
    for entry in run_entries(output_dir):
        files, results = _files_of(entry)
        if entry.is_dir() and not entry.is_symlink():
            found += entries_of_others(entry, files | results)
        elif not files:
            found.append(entry)
    return found


def _remove_run(output_dir: Path) -> None:
    """Delete the files that a run and its evaluations have written, and nothing else.

    Call `claim_output_dir` first: it tells whether a run has written them, and keeps other runs out.
    """
    gone = []
    for entry in run_entries(output_dir):
        files, results = _files_of(entry)
        gone += sorted(str(path.relative_to(output_dir)) for path in results if path.suffix == ".json" and path.parent == entry)
        if entry.is_dir() and not entry.is_symlink():
            remove_files(entry, files | results)
        else:
            for file in files:
                file.unlink()
    if gone:
        logger.info(f"the scores that `revhrnet evaluate` has written of the old run are deleted with it: {first_few(gone)}")
