"""Evaluation during training: scores of the evaluation split, the images that are drawn of it, and which scores are the best."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..adapters import merged
from ..data import label_space_of
from ..errors import CheckpointError, DataError, RecipeError, RunStopped
from ..evaluation import ConfusionMatrix, Predicted, evaluate_dataset, format_scores, predict_label_maps
from ..evaluation.report import best_and_worst, shown_images, terms_of
from ..evaluation.scores import image_mean_ious
from ..hub.record import dataset_title
from ..images import orient_to_fit
from ..viz.curves import read_log
from ..viz.figures import colours_of, label_map_strip, triptych, untinted_classes
from ..viz.report import REPORT_FILE, Report, write_report
from .agreement import SharedStop
from .checkpoint import SUMMARY, TrainingState
from .learner import Learner
from .log import RunLog
from .output_dir import BEST, LAST
from .progress import progress_bar

logger = logging.getLogger(__name__)

IMAGE_SIDE = 480  # pixels, of the images that trackers get
CARD_IMAGES, CARD_HEIGHT = 3, 240  # label maps in a model card, and their height in pixels


class EvaluationHook:
    """Scores the stage's network on the evaluation split, by all processes together.

    Args:
        learner: its `scored_network` is evaluated.
        dataset: the evaluation split.
        log: gets the scores and the drawn images.
        stop: ends an evaluation early in all processes.

    Attributes:
        shown: the last evaluation's label maps of the images that are drawn, by row.
        confusion: of the last evaluation, of all processes.
        mean_ious: of each image in the last evaluation.
    """

    def __init__(self, learner: Learner, dataset: Dataset, log: RunLog, stop: SharedStop):
        self.learner, self.dataset, self.log, self.stop = learner, dataset, log, stop
        self.recipe, self.accelerator = learner.recipe, learner.accelerator
        self.label_space = label_space_of(dataset)
        self.shown: dict[int, np.ndarray] = {}
        self.confusion: ConfusionMatrix | None = None
        self.mean_ious = np.empty(0)

    def run(self, epoch: int, step: int) -> dict[str, Any]:
        """Scores at the label maps' native size, each image counted once whatever the number of processes.

        Args:
            epoch, step: finished, for the log.

        Raises:
            RunStopped: a signal came to any process.
        """
        started = time.perf_counter()
        self.learner.share_buffers()
        with self.accelerator.autocast(), self._as_in_checkpoints():
            confusion = self.confusion = self._confusion()
            if self.recipe.log_images:
                with self.stop.errors.hold():
                    self.log.images(step, lambda: self.draw(self.recipe.log_images))
        scores = confusion.scores(self.label_space.names)
        summary = {name: scores[name] for name in SUMMARY}
        self.accelerator.print(
            f"epoch {epoch}: mIoU {summary['mean_iou']:.4f}, pixel accuracy {summary['overall_accuracy']:.4f}, "
            f"mean accuracy {summary['mean_accuracy']:.4f}"
        )
        per_class = dict(zip(self.label_space.names, scores["per_category_iou"], strict=True))
        with self.stop.errors.hold():
            seconds = time.perf_counter() - started
            self.log.write(epoch, step, {**summary, "evaluation_seconds": seconds}, iou=per_class)
        return scores

    def _confusion(self) -> ConfusionMatrix:
        """The sum of all processes' confusion matrices; label maps that are to be drawn are kept in `shown`."""
        accelerator, confusion, self.shown = self.accelerator, None, {}
        drawn = {*self._drawn_rows(self.recipe.log_images), *self._drawn_rows(CARD_IMAGES)}
        totals: dict[int, torch.Tensor] = {}

        def keep(image: Predicted, counts: ConfusionMatrix):
            totals[image.index] = counts.class_totals  # stays on the device, which nobody waits for
            if accelerator.is_main_process and image.index in drawn:
                self.shown[image.index] = image.label_map.cpu().numpy()

        with progress_bar(accelerator, len(self.dataset), "evaluating", "image", leave=False) as progress:

            def tick(done: int):
                progress.update(done * accelerator.num_processes)
                if self.stop.signals.received is not None:
                    raise self.stop.signals.stopped("")

            with suppress(RunStopped), self.stop.errors.hold(), self._enough_memory():  # until the other processes know
                confusion = evaluate_dataset(
                    self.learner.scored_network,
                    self.learner.image_processor,
                    self.dataset,
                    self.label_space.num_classes,
                    ignore_index=self.label_space.ignore_index,
                    process_index=accelerator.process_index,
                    num_processes=accelerator.num_processes,
                    num_workers=self.recipe.num_workers,
                    timeout=self.stop.errors.timeout,
                    progress=tick,
                    look=keep,
                )
            if self.stop.anywhere():
                self.stop.errors.raise_together()
                raise self.stop.signals.stopped("stopped in an evaluation")
        confusion.matrix = accelerator.reduce(confusion.matrix, "sum")
        self.mean_ious = self._mean_ious(totals)
        return confusion

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Says what to do in training where the GPU's memory is not enough to score an image."""
        try:
            yield
        except (torch.OutOfMemoryError, RecipeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            raise RecipeError(
                f"The GPU's memory is not enough to score an image (eval_size: {self.recipe.eval_size or 'its own'}): set "
                "eval_size, the long side of the images that are scored, to less, and resume with --resume. Afterwards "
                "`revhrnet evaluate --window` scores the images at their full size"
            ) from error

    def _mean_ious(self, totals: dict[int, torch.Tensor]) -> np.ndarray:
        """The mean IoU of each image of the split, of the `class_totals` of this process's images by row."""
        ious = torch.zeros(len(self.dataset))  # each row is another process's, or none's
        if totals:
            own = image_mean_ious(torch.stack(list(totals.values())).cpu().numpy())
            ious[list(totals)] = torch.from_numpy(own).to(ious.dtype)
        return self.accelerator.reduce(ious.to(self.accelerator.device), "sum").cpu().numpy()

    def report(self, scores: dict[str, Any], state: TrainingState, best: Path) -> None:
        """Print the last scores of a stage, class by class, and where the best checkpoint is."""
        self.accelerator.print(format_scores(scores, self.label_space.names))
        mean_iou = "none yet" if state.best_mean_iou is None else f"{state.best_mean_iou:.4f}"
        self.accelerator.print(f"{state.epoch} {'epoch' if state.epoch == 1 else 'epochs'}; best mIoU {mean_iou} in {best}")

    @contextmanager
    def _as_in_checkpoints(self) -> Iterator[None]:
        """Runs the scored network with its adapters merged, and not compiled: each of the many image sizes would be compiled."""
        uncompiled = torch.compiler.set_stance("force_eager") if self.recipe.torch_compile else nullcontext()
        with merged(self.learner.scored_network), uncompiled:
            yield

    def draw(self, count: int) -> Image.Image:
        """Image, truth and prediction of `count` images spread over the evaluation split, small."""
        space = self.label_space
        return triptych(self._predictions(count), space.names, space.colours, space.ignore_index)

    def draw_for_card(self) -> Image.Image:
        """Predictions on a few images.

        A card is made to be passed on, and Cityscapes' and Mapillary Vistas' terms forbid that for images and annotations: so
        it has predictions only, whatever the dataset.
        """
        with self._as_in_checkpoints():
            predictions = [prediction for _, _, prediction in self._predictions(CARD_IMAGES)]
        return label_map_strip(predictions, self.label_space.names, self.label_space.colours, CARD_HEIGHT)

    def write_report(self, output_dir: Path, scores: dict[str, Any], state: TrainingState) -> None:
        """Write the report of the run so far; where that fails, a warning says so, and training continues without it.

        Args:
            output_dir: of the run, with its checkpoints.
            scores: of the last evaluation.
            state: after it.
        """
        try:
            with self._as_in_checkpoints():
                report = self._report(output_dir, scores, state)
            write_report(output_dir / REPORT_FILE, report)
        except (OSError, DataError, CheckpointError) as error:  # of the log, that one
            logger.warning(f"{output_dir / REPORT_FILE} was not written, and training continues: {error}")

    def _report(self, output_dir: Path, scores: dict[str, Any], state: TrainingState) -> Report:
        recipe, space = self.recipe, self.label_space
        best, worst = (
            list(shown_images(self.dataset, rows, self.mean_ious, self._prediction)) for rows in best_and_worst(self.mean_ious)
        )
        best_mean_iou = "none yet" if state.best_mean_iou is None else f"{100 * state.best_mean_iou:.2f} %, in {BEST}"
        return Report(
            title=f"{output_dir.resolve().name}: {recipe.architecture} {recipe.variant} on {dataset_title(recipe.dataset)}",
            facts={
                "scored on": f"{recipe.eval_split}, {len(self.dataset)} images",
                "epoch": f"{state.epoch} of {recipe.epochs}, after step {state.step}",
                "best mIoU so far": best_mean_iou,
                "classes": f"{space.num_classes}, {space.name}",
            },
            terms=terms_of(recipe.loader or recipe.dataset),
            checkpoint=str(output_dir / (BEST if (output_dir / BEST).is_dir() else LAST)),
            names=space.names,
            colours=colours_of(space),
            scores=scores,
            matrix=self.confusion.matrix.cpu().numpy(),
            best=best,
            worst=worst,
            curves=read_log(self.log.path),
            recipe=recipe.to_yaml(),
            ignore_index=space.ignore_index,
            untinted=untinted_classes(space.names, space.untinted),
        )

    def _drawn_rows(self, count: int) -> list[int]:
        """Rows of `count` images spread over the evaluation split."""
        count = min(count, len(self.dataset))
        return [place * len(self.dataset) // count for place in range(count)]

    def _predictions(self, count: int) -> list[tuple[Image.Image, np.ndarray, np.ndarray]]:
        """Image, true and predicted label map of `count` images spread over the evaluation split, small."""
        rows = []
        for index in self._drawn_rows(count):
            row = self.dataset[index]
            truth = row["label_map"]
            row["image"] = image = orient_to_fit(row["image"], truth.size)
            prediction = self._prediction(index, row)
            scale = min(1, IMAGE_SIDE / max(image.size))
            size = [max(1, round(side * scale)) for side in image.size]
            small = (np.asarray(ids.resize(size, Image.Resampling.NEAREST)) for ids in (truth, Image.fromarray(prediction)))
            rows.append((image.resize(size), *small))
        return rows

    def _prediction(self, index: int, row: dict[str, Any]) -> np.ndarray:
        """The predicted label map of a row, predicted again only if the evaluation has not kept it."""
        if index not in self.shown:
            truth = row["label_map"]
            with self.accelerator.autocast():
                (self.shown[index],) = predict_label_maps(
                    self.learner.scored_network, self.learner.image_processor, [row["image"]], [(truth.height, truth.width)]
                )
        return self.shown[index]


def note_scores(state: TrainingState, scores: dict[str, Any]) -> bool:
    """Note an evaluation's scores in the state; whether they are the best so far."""
    mean_iou = scores["mean_iou"]
    better = state.best_mean_iou is None or mean_iou > state.best_mean_iou
    if better:
        state.best_mean_iou = mean_iou
    state.evaluations_since_best = 0 if better else state.evaluations_since_best + 1
    return better
