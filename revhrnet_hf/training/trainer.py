"""One stage of training on Accelerate: dataset → joint augmentation → model → loss → optimizer → checkpoint.

Everything random follows from the recipe's seed, the epoch, the step and the image's index. So a run that was interrupted ends as
one that was not, and the number of processes and workers does not change what is learnt from.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from accelerate.utils import broadcast_object_list, set_seed
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..adapters import add_adapters
from ..data import label_space_of
from ..data.class_counts import warn_of_unseen_classes
from ..errors import DataError, RunStopped
from ..evaluation import check_labelled
from .agreement import SharedErrors, SharedStop, lost_process
from .checkpoint import Checkpoints, TrainingState
from .class_weights import with_counted_weights
from .data import Batch, DataDirs, Sets, TrainingData, folders_by_name, load_sets
from .dataset_checks import fingerprint, refuse_unlabelled, warn_of_learnt_images
from .evaluation_hook import EvaluationHook, note_scores
from .feature_bank import BANK_FOLDER
from .learner import Learner
from .log import RunLog, check_trackers
from .network import build_model
from .output_dir import BEST, LAST, begin_anew, claim_output_dir
from .processes import TIMEOUT, fixed_sizes, out_of_memory, peak_memory_gib, start_processes
from .progress import Meter, progress_bar
from .recipe import LORA, Recipe
from .signals import StopSignals
from .transfer import transfer


class Stage:
    """One run of a recipe on a dataset's folder, or several datasets' folders.

    Args:
        recipe: what to train.
        data_dir: folder of the recipe's dataset; with `more_datasets`, folders by name.
        output_dir: gets checkpoints (`last/`, `checkpoint-STEP/`, `best/`), `log.jsonl` and the trackers' files.
        resume, overwrite: what to do with a run that is already in `output_dir`; without either it is an error.
        timeout: seconds without an answer from a loader's worker or another process, after which the run ends with an error.
        bank_dir: folder of the feature bank, which runs with the same maps can share; not given: in `output_dir`.
        sets: of `load_sets`, where they are loaded already.

    Raises:
        DataError, RecipeError, CheckpointError, OSError: before anything is written but the folder's lock file, and before an
            old run is deleted, where it can be known by then.
    """

    def __init__(
        self,
        recipe: Recipe,
        data_dir: str | Path | DataDirs,
        output_dir: str | Path,
        resume: bool = False,
        overwrite: bool = False,
        timeout: float = TIMEOUT,
        bank_dir: str | Path | None = None,
        sets: Sets | None = None,
    ):
        transformers_logging.disable_progress_bar()  # of saving and loading weights, between two lines of ours
        self.recipe, self.output_dir = recipe, Path(output_dir)
        self.accelerator = start_processes(recipe, timeout)
        self.errors = SharedErrors(self.accelerator, timeout)
        self.stop = SharedStop(StopSignals(self.accelerator.num_processes), self.errors)
        with self.errors.together():
            network, image_processor, eval_set = self._load(data_dir, resume, sets)
        self.lock: IO[bytes] | None = None  # in the main process
        try:
            with self.errors.together():  # files are written only when no process has found a fault
                resumes = self._claim(resume, overwrite) if self.accelerator.is_main_process else None
            (resumes,) = broadcast_object_list([resumes])
            self._assemble(network, image_processor, eval_set)
            self._resume_or_begin(resume, resumes, bank_dir)
        except BaseException:
            if self.lock is not None:
                self.lock.close()
            raise

    def _claim(self, resume: bool, overwrite: bool) -> bool:
        """Whether there is a run to resume in the output folder, which this process has to itself from now on."""
        resumes, self.lock = claim_output_dir(self.output_dir, self.recipe, resume, overwrite)
        return resumes

    def _resume_or_begin(self, resume: bool, resumes: bool, bank_dir: str | Path | None) -> None:
        """Restore the run in the output folder, or, where none `resumes`, begin a new one there, in place of an old one."""
        if resume and not resumes:
            self.accelerator.print(f"no run to resume in {self.output_dir}: a new one begins")
        if 0 < self.total_steps <= self.recipe.warmup_steps:
            self.accelerator.print(
                f"warmup_steps {self.recipe.warmup_steps}: the run has {self.total_steps} steps, in which the learning rate does "
                "not reach its full height"
            )
        if resumes:
            with self.errors.together():
                state = self.checkpoints.restore()
                self.meter.restore(state.losses)
                self.data.mark_bad(state.bad_images)
        elif self.transfer is not None:
            self.accelerator.print(self.transfer)
        with self.errors.together():
            # With the weights that the stage has now, a resumed one those of its checkpoint.
            self.data.make_bank(Path(bank_dir or self.output_dir / BANK_FOLDER), self.learner, self.fingerprint)
        with self.errors.together():
            if self.accelerator.is_main_process:
                self._check_before_deleting(bank_dir)
                if not resumes:
                    begin_anew(self.output_dir, self.lock)

    def _check_before_deleting(self, bank_dir: str | Path | None) -> None:
        """The last checks; a bank in the output folder is not looked at, for it is deleted with the old run."""
        if bank_dir is not None and self.data.bank is not None:
            self.data.bank.check_state()
        if self.state.step == 0:
            recipe, sets = self.recipe, self.data.sets
            warn_of_learnt_images(sets, self.evaluation.dataset, f"{recipe.dataset}:{recipe.eval_split}")
            warn_of_unseen_classes([entry.images for entry in sets], self.data.label_space)

    def _load(self, data_dir: str | Path | DataDirs, resume: bool, sets: Sets | None):
        """The network with its initial weights, its image processor, and the evaluation split; other things become attributes."""
        recipe = self.recipe
        check_trackers(recipe.trackers)
        train_sets, eval_set = sets or load_sets(recipe, folders_by_name(recipe, data_dir))
        if len(train_sets) > 1:
            self.accelerator.print("\n".join(map(str, train_sets)))
        label_space = label_space_of(eval_set)
        refuse_unlabelled(eval_set, f"{recipe.dataset}:{recipe.eval_split}", label_space.ignore_index)
        self.recipe = recipe = with_counted_weights(recipe, train_sets)
        self.fingerprint = fingerprint(train_sets, eval_set, recipe.eval_split)
        set_seed(recipe.seed)
        network, image_processor = build_model(recipe, label_space)
        self.data = TrainingData(recipe, train_sets, label_space, image_processor, self.errors)
        self.total_steps = recipe.epochs * self.data.batches.steps
        begins = recipe.init_from is not None and not (resume and (self.output_dir / LAST).exists())
        self.transfer = transfer(network, label_space, recipe.init_from, recipe.transfer_classifier) if begins else None
        if recipe.trainable_backbone == LORA:  # of the transferred weights, too
            add_adapters(network, recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)
        return network, image_processor, eval_set

    def _assemble(self, network, image_processor, eval_set) -> None:
        """Make the objects that the loop calls."""
        self.log = RunLog(self.output_dir, self.recipe.trackers, self.accelerator.is_main_process)
        self.learner = Learner(network, image_processor, self.recipe, self.accelerator, self.total_steps)
        self.meter = Meter(self.data, self.learner)
        self.evaluation = EvaluationHook(self.learner, eval_set, self.log, self.stop)
        state, history = TrainingState(data=self.fingerprint), [] if self.transfer is None else self.transfer.history
        self.checkpoints = Checkpoints(self.output_dir, self.learner, self.log, state, self.data.description, history, self.lock)

    @property
    def state(self) -> TrainingState:
        return self.checkpoints.state

    @property
    def finished(self) -> bool:
        patience = self.recipe.early_stopping_patience
        return self.state.epoch >= self.recipe.epochs or (patience is not None and self.state.evaluations_since_best >= patience)

    def run(self) -> dict[str, Any] | None:
        """Train to the recipe's last epoch; the scores of the last evaluation (none if the run was already finished).

        Raises:
            RunStopped: SIGINT or SIGTERM came; everything is saved, and the message says how to resume.
            TrainingError: the loss is no longer a number; a loader's worker died, or another process is gone.
            RevHRNetError: whatever another process raised.
        """
        with self.stop.signals:
            try:
                return self._run()
            except RuntimeError as error:
                said = self.data.loader_failure(error) or out_of_memory(error, self.recipe)
                raise said or lost_process(error, self.accelerator, self.errors.timeout) or error from error
            finally:
                try:
                    self.checkpoints.writer.wait()
                finally:
                    for part in filter(None, (self.log, self.lock, self.data.bank)):
                        part.close()

    def _run(self) -> dict[str, Any] | None:
        recipe = self.recipe
        if self.finished:
            self.accelerator.print(f"{self.output_dir} is finished: {self.state.epoch} of {recipe.epochs} epochs are done")
            return None
        self.checkpoints.start_clock()
        self.data.open_bank(self.state.step)
        with self.errors.together():
            self._start_log()
        if recipe.eval_at_start and self.state.step == 0:
            self.evaluate(epoch=0)
        with progress_bar(self.accelerator, self.total_steps, "training", "step", initial=self.state.step) as progress:
            while not self.finished:
                epoch = self.state.epoch
                self.train_epoch(epoch, progress)
                if self.stop.anywhere():
                    self.save()
                    raise self._stopped()
                scores = None
                if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs:
                    scores = self.evaluate(epoch + 1)
                self.state.epoch = epoch + 1
                saved = self.is_saved_after(epoch + 1)
                self.save(scores, last=saved)
                if self.stop.anywhere():
                    if not (saved or self.finished):
                        self.save()
                    raise self._stopped()
        with self.errors.together():  # the next stage of a chain reads `best` on all processes
            self.checkpoints.writer.wait()
        self.evaluation.report(scores, self.state, self.output_dir / BEST)
        return scores

    def is_saved_after(self, epochs: int) -> bool:
        """Whether the recipe asks for a checkpoint at the end of an epoch, after which `epochs` are done."""
        recipe = self.recipe
        at_step = recipe.save_every is not None and epochs * self.data.batches.steps % recipe.save_every == 0
        return epochs % recipe.save_every_epochs == 0 or epochs == recipe.epochs or at_step

    def _start_log(self) -> None:
        state, config = self.state, asdict(self.recipe)
        if state.step > 0:
            awaits_evaluation = state.step == (state.epoch + 1) * self.data.batches.steps
            self.log.start(config, state.log_lines, again_from=state.step if awaits_evaluation else state.step + 1)
            return
        self.log.start(config)
        if self.transfer is not None:
            self._write(0, {}, init_from=self.transfer.checkpoint, classifier_rows=self.transfer.rows)

    def train_epoch(self, epoch: int, progress: tqdm) -> None:
        """The steps of an epoch that are not done yet."""
        recipe, steps = self.recipe, self.data.batches.steps
        first = self.state.step - epoch * steps
        if first == steps:
            return  # it was interrupted between its last step and the end of its evaluation
        self.learner.model.train()
        self.data.start_at(epoch, first)
        started = time.perf_counter()
        self.meter.start(started)
        for done, passes in enumerate(self.data.steps(), first + 1):
            self.train_step(passes)
            progress.update()
            if done % recipe.log_every == 0 or done == steps:
                self._write(epoch + 1, self.meter.line(self.state.step, epoch, progress))
            if done < steps:  # the last step is followed by an evaluation or a checkpoint anyway
                if self.stop.after_this_step:
                    self.save()
                    raise self._stopped()
                if recipe.save_every is not None and self.state.step % recipe.save_every == 0:
                    self.save()
        numbers = {"epoch_seconds": time.perf_counter() - started, "peak_memory_gib": peak_memory_gib(self.accelerator.device)}
        self.state.bad_images = self.data.gather_bad(self.state.bad_images)
        skipped = {"skipped_images": self.data.image_ids(self.state.bad_images)} if recipe.on_bad_sample == "skip" else {}
        self._write(epoch + 1, numbers, **skipped)

    def train_step(self, passes: list[Batch]) -> None:
        """One step of the optimizer, on the batches of its forward passes."""
        with self.errors.hold():
            self.checkpoints.writer.raise_error()
        with fixed_sizes():
            losses = self.learner.learn(passes, self.state.step)
        self.state.step += 1
        self.meter.add(self.stop.sum_losses(losses))

    def _write(self, epoch: int, numbers: dict[str, float], **details: Any) -> None:
        with self.errors.hold():
            self.log.write(epoch, self.state.step, numbers, **details)

    def evaluate(self, epoch: int) -> dict[str, Any]:
        """Scores of the evaluation split after `epoch` epochs.

        A run that a signal or an image stops meanwhile is saved as it was before, and begins with the evaluation when it is
        resumed.

        Raises:
            DataError: an image cannot be scored; the message says that none is skipped, and how to resume.
        """
        try:
            scores = self.evaluation.run(epoch, self.state.step)
        except DataError as error:
            self._save_alone()
            raise DataError(f"{str(error).rstrip('.')}. {self._about_scored_images()}") from error
        except (RunStopped, RuntimeError) as error:
            # A signal may have reached another process first, which then does not answer any more.
            if isinstance(error, RuntimeError) and self.stop.signals.received is None:
                raise
            self._save_alone()
            raise self._stopped() from error
        check_labelled(scores, f"the evaluation split {self.recipe.eval_split!r} of {self.recipe.dataset}")
        return scores

    def _save_alone(self) -> None:
        """Write `last` without the other processes, which may be gone; nothing before the first step."""
        if self.state.step > 0 and self.accelerator.is_main_process:
            self.data.flush_bank()
            self.checkpoints.save(losses=[])

    def _about_scored_images(self) -> str:
        split, step = self.recipe.eval_split, self.state.step
        again = f"resume with --resume: step {step} is saved in {self.output_dir / LAST}" if step else "start again"
        return (
            f"The image is in {split!r}, which is scored: there no image is skipped (on_bad_sample is for training only). "
            f"Correct the file, and {again}"
        )

    def save(self, scores: dict[str, Any] | None = None, last: bool = True) -> None:
        """Write `last`, `best` where the scores are the best so far, and the report where there are scores.

        With `last=False`, `last` is written only if the run is finished.

        Raises:
            CheckpointError: it cannot be written.
            TrainingError: a loss since the last log line is not finite.
            RevHRNetError: whatever a process has raised meanwhile.
        """
        self.errors.raise_together()
        self.state.bad_images = self.data.gather_bad(self.state.bad_images)
        losses = self.meter.checked_losses(self.state.step, self.state.epoch)
        better = scores is not None and note_scores(self.state, scores)
        last = last or self.finished
        with self.errors.together():
            if self.accelerator.is_main_process:
                self.data.flush_bank()
                if better or last:
                    example = None if scores is None else self.evaluation.draw_for_card()
                    self.checkpoints.save(losses, scores, example, best=better, last=last)
                if scores is not None:
                    self.evaluation.write_report(self.output_dir, scores, self.state)

    def _stopped(self) -> RunStopped:
        step = self.state.step
        where = f"after step {step} of {self.total_steps}; saved in {self.output_dir / LAST}" if step else "before the first step"
        return self.stop.signals.stopped(f"stopped {where}. To resume, run the same command with --resume")
