"""The work of `revhrnet evaluate`: open data and checkpoint, record each image, report. The command line is elsewhere, because it
does not wait for PyTorch."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..cli import inference_settings
from ..data import label_space_of, load_segmentation_dataset
from ..errors import CheckpointError, DataError, RecipeError, RevHRNetError
from ..evaluation.calibration import (
    Calibration,
    CalibrationCounts,
    calibration_result,
    classes_without_sources,
    fit_temperature,
    format_calibration,
    save_temperature,
    temperature_of,
    total_counts,
)
from ..evaluation.checkpoint import class_sources, load_for_inference
from ..evaluation.cityscapes import instance_locations
from ..evaluation.confusion import ConfusionMatrix
from ..evaluation.evaluator import Recorder, evaluate_images, score_records
from ..evaluation.predict import Predicted, segment
from ..evaluation.records import ImageRecord, WorkFolder, class_totals_by_image
from ..evaluation.report import best_and_worst, shown_images, terms_of
from ..evaluation.results import (
    CONFUSION,
    OWN,
    RELIABILITY,
    REPORT,
    WORST,
    Evaluation,
    beside,
    calibration_caption,
    check_replaceable,
    confusion_caption,
    digest_of_data,
    digest_of_weights,
    result_stem,
    stale_drawings,
)
from ..evaluation.scores import (
    bootstrap_intervals,
    check_labelled,
    format_scores,
    image_mean_ious,
    worst_images,
    write_image_scores,
)
from ..evaluation.settings import InferenceSettings
from ..evaluation.submission import submission_format
from ..evaluation.worst_images import draw_worst_images
from ..hub.model_card import refresh_model_card
from ..io import LOG_FILE, write_json
from ..viz.curves import read_log
from ..viz.figures import colours_of, untinted_classes
from ..viz.report import Report, ShownImage, check_report_place, is_report, write_report

logger = logging.getLogger(__name__)

OF_SCORES = ("boundary", "calibration", "save_temperature", "absent_as_zero", "plot", "worst", "report")
"""Options that have no effect without label maps."""


def output_file(args: argparse.Namespace, settings: InferenceSettings) -> Path:
    """The JSON file to write; a RecipeError before the work begins if it cannot be written there."""
    is_folder = Path(args.checkpoint).is_dir()
    stem = result_stem(
        args.dataset_name,
        args.split,
        settings,
        loader=args.dataset if args.dataset in OWN and not args.is_named else None,
        dtype=args.dtype,
        label_space=args.label_space,
        absent_as_zero=args.absent_as_zero,
        checkpoint=None if is_folder else args.checkpoint,
    )
    output = args.output or (Path(args.checkpoint) if is_folder else Path()) / f"{stem}.json"
    if output.suffix != ".json":
        raise RecipeError(f"--output {output}: name a file that ends with .json; the CSV and the images beside it get its name")
    if not output.parent.is_dir():
        raise RecipeError(f"--output {output}: there is no folder {output.parent}; make it first")
    return output


def on_main_process(state: accelerate.PartialState, action: Callable[[], Any]) -> Any:
    """Calls `action` on the main process. All processes get its result, or raise its error, so that none waits for ever."""
    result = error = None
    if state.is_main_process:
        try:
            result = action()
        except (OSError, RevHRNetError) as raised:
            error = raised
    result, error = broadcast_object_list([result, error])
    if error is not None:
        raise error
    return result


@dataclass(frozen=True)
class Job:
    """An evaluation that is ready to run.

    Attributes:
        args: the command line; see `evaluate.parse_arguments`.
        state: this process among all.
        evaluation: the checkpoint, the data and the settings.
        dataset: the images and label maps.
        output: the JSON file to write.
        recorder: makes the record of each image.
        model, image_processor: the checkpoint, on the device where it runs.
        sources: see `class_sources`.
        calibration: what to count of the confidences, or None.
    """

    args: argparse.Namespace
    state: accelerate.PartialState
    evaluation: Evaluation
    dataset: datasets.Dataset
    output: Path
    recorder: Recorder
    model: torch.nn.Module
    image_processor: Any
    sources: list[list[int]] | None
    calibration: Calibration | None = None

    def work_folder(self, kind: str = "work") -> WorkFolder:
        settings = self.evaluation.record_settings(self.state.device.type, self.args.boundary, self.args.submission)
        if self.calibration is not None:  # else as before, so that what an earlier version began can be resumed
            settings["calibration"] = self.calibration.temperature
        return WorkFolder(self.output.with_name(f".{self.output.stem}.{kind}"), settings)

    def record_remaining_images(self, work: WorkFolder) -> None:
        """Evaluates this process's share of the images that have no record yet, and writes their records."""
        state, evaluation = self.state, self.evaluation
        done = work.read()
        state.wait_for_everyone()  # nobody writes before all have read, or the processes would see different remaining images
        if done and state.is_main_process:
            logger.info("resumed: %d of %d images are done", len(done), len(self.dataset))
        remaining = [index for index in range(len(self.dataset)) if index not in done]
        share = remaining[state.process_index :: state.num_processes]
        quiet = None if state.is_main_process else True  # None: quiet where standard error is no terminal
        with work.append_to(state.process_index) as records, tqdm(total=len(share), unit="image", disable=quiet) as bar:

            def record(image: Predicted, confusion: ConfusionMatrix) -> None:
                records.write(self.recorder.record(image, confusion))
                bar.update()

            evaluate_images(
                self.model,
                self.image_processor,
                self.dataset,
                share,
                evaluation.label_space.num_classes,
                ignore_index=evaluation.label_space.ignore_index,
                settings=evaluation.settings,
                sources=self.sources,
                num_workers=self.args.num_workers,
                count_on_cpu=True,
                calibration=self.calibration,
                each_image=record,
            )

    def calibrate(self, work: WorkFolder) -> dict[str, Any] | None:
        """Fits the temperature to the records, and runs the model again to count the confidences at that temperature.

        If none can be fitted, it warns, and the confidences are those at the checkpoint's temperature alone.

        Returns:
            `calibration_result`; None unless it is asked for, and where no pixel is labelled.
        """
        if self.calibration is None:
            return None
        before = self.counted(work)
        self.state.wait_for_everyone()  # all have read, so that the main process may remove the records
        if not before.pixels:
            return None
        try:
            temperature = fit_temperature(before)
        except DataError as error:  # on all processes, which have the same counts
            if self.state.is_main_process:
                logger.warning("the calibration is that of the checkpoint's temperature alone: %s", error)
            return calibration_result(before, self.calibration.temperature, not_fitted=str(error))
        recorder = Recorder(self.evaluation.label_space)
        again = replace(self, recorder=recorder, calibration=replace(self.calibration, temperature=temperature))
        second = again.work_folder("calibrated.work")
        on_main_process(self.state, lambda: second.claim(self.args.overwrite))
        again.record_remaining_images(second)
        self.state.wait_for_everyone()
        after = self.counted(second)
        self.state.wait_for_everyone()  # all have read
        if self.state.is_main_process:
            second.remove()
        return calibration_result(before, self.calibration.temperature, after, temperature)

    def counted(self, work: WorkFolder) -> CalibrationCounts:
        """The sum of all images' confidences, the same bits on every process."""
        by_row = work.read()
        return total_counts(by_row[row].calibration for row in sorted(by_row) if by_row[row].calibration is not None)

    def finish(self, work: WorkFolder, calibration: dict[str, Any] | None) -> None:
        """Reports on the records of all images, and removes them."""
        by_row = work.read()
        records = [by_row[index] for index in range(len(self.dataset))]
        if self.recorder.submission:
            self.check_submission(records)
        if self.dataset.data.column("label_map").null_count == 0:
            if not any(len(record.cells) for record in records):
                work.remove()  # `report` raises an error; once the label maps are corrected, these records are of no use
            result, totals = self.report(records, calibration)
            if self.args.worst:
                self.draw_worst_images(totals)
            if self.args.report:
                self.write_report(result, totals)
        work.remove()
        if self.args.save_temperature:
            self.save_temperature(calibration)

    def check_submission(self, records: Sequence[ImageRecord]) -> None:
        submission, folder = self.recorder.submission, self.recorder.submission_dir
        submission.check(folder, {record.image_id: record.size for record in records})
        print(f"submission: {len(records)} label maps in {folder / submission.folder}, all checked")

    def report(self, records: Sequence[ImageRecord], calibration: dict[str, Any] | None) -> tuple[dict[str, Any], np.ndarray]:
        """Prints the scores and writes the files of the result.

        Returns:
            `Evaluation.result`, and `class_totals_by_image`, (images, 3, classes).
        """
        args, evaluation, names = self.args, self.evaluation, self.evaluation.label_space.names
        scores, matrix = score_records(records, evaluation.label_space, args.absent_as_zero)
        check_labelled(scores, f"the split {args.split!r} of {args.dataset_name}")
        totals = class_totals_by_image(records, len(names))
        is_single = np.count_nonzero(totals[:, 1].any(axis=1)) < 2  # image with a labelled pixel
        intervals = None if args.absent_as_zero or is_single else bootstrap_intervals(totals, block=args.interval_block)
        never_predicted = [] if self.sources is None else [name for name, of in zip(names, self.sources, strict=True) if not of]
        print(format_scores(scores, names, intervals, never_predicted))
        print(f"images: {len(records)}; {evaluation.settings}")
        if is_single and not args.absent_as_zero:
            print("no 95 % intervals: one labelled image does not tell how much images differ")
        if calibration is not None:
            print(format_calibration(calibration))
        result = evaluation.result(scores, intervals, matrix, never_predicted, self.state.device.type, self.state.num_processes)
        if intervals is not None:
            result["settings"]["interval_block"] = args.interval_block
        if calibration is not None:
            result["calibration"] = calibration
        self.write(result, matrix, totals)
        return result, totals

    def save_temperature(self, calibration: dict[str, Any]) -> None:
        """Writes the fitted temperature into the checkpoint's config; a DataError if there is none."""
        checkpoint = self.args.checkpoint
        if calibration["fitted"] is None:
            raise DataError(f"--save_temperature: {checkpoint} keeps its temperature: {calibration['not_fitted']}")
        temperature = calibration["fitted"]["temperature"]
        save_temperature(checkpoint, temperature)
        print(f"saved: temperature {temperature:.4g} in {Path(checkpoint) / 'config.json'}")

    def write(self, result: dict, matrix: np.ndarray, totals: np.ndarray) -> None:
        """Writes the JSON and the files beside it; if they lie in the checkpoint's folder, updates its model card too."""
        self.remove_stale_drawings(result)
        names, images = self.evaluation.label_space.names, self.output.with_suffix(".csv")
        write_image_scores(images, names, self.evaluation.image_ids, totals)
        written = [self.output, images]
        if self.args.plot:
            from ..viz.plots import confusion_figure, reliability_figure, save_figure  # matplotlib is an extra

            written.append(beside(self.output, CONFUSION))
            save_figure(confusion_figure(matrix, names, confusion_caption(result)), written[-1])
            if "calibration" in result:
                written.append(beside(self.output, RELIABILITY))
                save_figure(reliability_figure(result["calibration"], calibration_caption(result)), written[-1])
        write_json(self.output, result)
        if self.output.parent.resolve() == Path(self.args.checkpoint).resolve():
            refresh_model_card(self.output.parent)
        print(f"written: {', '.join(map(str, written))}")

    def remove_stale_drawings(self, result: dict[str, Any]) -> None:
        """Removes the drawings of the result that is replaced, as far as they would not show the new one."""
        stale = stale_drawings(self.output, self.evaluation.identity(), result)
        stale = [path for path in stale if path != beside(self.output, REPORT) or is_report(path)]
        for path in stale:
            path.unlink()
        folder = beside(self.output, WORST)
        if stale and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if stale:
            print(f"removed, as they show what is replaced: {', '.join(map(str, stale))}")

    def draw_worst_images(self, totals: np.ndarray) -> None:
        folder, worst = beside(self.output, WORST), worst_images(totals, self.args.worst)
        draw_worst_images(folder, self.shown(worst, image_mean_ious(totals)), self.evaluation.label_space)
        print(f"written: the {len(worst)} worst images, truth above prediction, in {folder}")

    def write_report(self, result: dict[str, Any], totals: np.ndarray) -> None:
        """Writes the report of this evaluation; with the curves and the recipe of the run whose checkpoint is evaluated."""
        path, args, space = beside(self.output, REPORT), self.args, self.evaluation.label_space
        mean_ious = image_mean_ious(totals)
        best, worst = (list(self.shown(rows, mean_ious)) for rows in best_and_worst(mean_ious))
        report = Report(
            title=f"{result['checkpoint']} on {args.dataset_name} {args.split}",
            facts={"scored on": f"{args.split}, {result['images']} images", "inference": str(self.evaluation.settings)},
            terms=terms_of(args.dataset),
            checkpoint=args.checkpoint,
            names=space.names,
            colours=colours_of(space),
            scores=result["scores"],
            matrix=np.array(result["confusion_matrix"]),
            best=best,
            worst=worst,
            ignore_index=space.ignore_index,
            untinted=untinted_classes(space.names, space.untinted),
            **run_of(Path(args.checkpoint)),
        )
        write_report(path, report)
        print(f"written: {path}")

    def shown(self, rows: Sequence[int], mean_ious: np.ndarray) -> Iterator[ShownImage]:
        """Images with truth and prediction, one by one."""

        def predict(_, content: dict[str, Any]) -> np.ndarray:
            truth = content["label_map"]
            return segment(
                self.model,
                self.image_processor,
                content["image"],
                self.evaluation.settings,
                target_size=(truth.height, truth.width),
                sources=self.sources,
                name=content["image_id"],
            ).label_map

        return shown_images(self.dataset, rows, mean_ious, predict)


def refuse_scores_without_label_maps(args: argparse.Namespace, dataset: datasets.Dataset) -> None:
    """Raises a RecipeError if options ask for scores of a split that has no label maps."""
    asked = [f"--{name}" for name in OF_SCORES if getattr(args, name)]
    if asked and dataset.data.column("label_map").null_count:
        raise RecipeError(f"The split {args.split!r} has no label maps, so no scores for {', '.join(asked)}")


def say_what_is_replaced(args: argparse.Namespace, output: Path, earlier: dict[str, Any]) -> None:
    """Logs that an earlier result of the same evaluation will be replaced; as a warning if that holds more than the new one."""
    had = {"boundary": "boundary_iou" in earlier.get("scores", {}), "calibration": "calibration" in earlier}
    lost = " ".join(f"--{option}" for option, was_asked in had.items() if was_asked and not getattr(args, option))
    text = f"the scores of an earlier run of the same evaluation in {output} will be replaced"
    if lost:
        logger.warning("%s, and those of %s will be lost: to keep them, end this run and give %s too", text, lost, lost)
    else:
        logger.info(text)


def run_of(checkpoint: Path) -> dict[str, Any]:
    """Curves and recipe of the run that has written a checkpoint's folder, as far as its files are there and can be read."""
    log, recipe = checkpoint.parent / LOG_FILE, checkpoint / "recipe.yaml"
    found: dict[str, Any] = {}
    if recipe.is_file():
        found["recipe"] = recipe.read_text(encoding="utf-8")
        if log.is_file():
            try:
                found["curves"] = read_log(log)
            except (CheckpointError, OSError) as error:
                logger.warning("the report has no curves: %s", error)
    return found


def prepare(args: argparse.Namespace, state: accelerate.PartialState) -> Job:
    """Opens data and checkpoint, and checks that the result may be written."""
    settings = inference_settings(args)
    output = output_file(args, settings)
    dataset = load_segmentation_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        label_space=args.label_space,
        image_column=args.image_column,
        label_column=args.label_column,
        unlabelled=args.submission is not None,
    )
    refuse_scores_without_label_maps(args, dataset)
    if args.interval_block > max(1, len(dataset) // 2):
        raise RecipeError(f"--interval_block {args.interval_block}: {len(dataset)} images are less than two such blocks")
    space = label_space_of(dataset)
    instances = instance_locations(args.dataset, dataset, space)
    evaluation = Evaluation(
        checkpoint=args.checkpoint,
        dataset_name=args.dataset_name,
        loader=args.dataset,
        split=args.split,
        label_space=space,
        image_ids=list(dataset["image_id"]),
        data=on_main_process(state, lambda: digest_of_data(dataset, instances or ())),
        settings=settings,
        dtype=args.dtype,
        absent_as_zero=args.absent_as_zero,
        compiled=args.compile,
        weights=on_main_process(state, lambda: digest_of_weights(args.checkpoint)) if Path(args.checkpoint).is_dir() else None,
    )
    earlier = None if args.overwrite else check_replaceable(output, evaluation.identity())
    if earlier is not None and state.is_main_process:
        say_what_is_replaced(args, output, earlier)
    if args.report:
        check_report_place(beside(output, REPORT))
    submission = args.submission and submission_format(args.dataset, space)
    recorder = Recorder(space, args.boundary, instances, submission, args.submission)
    model, image_processor = load_for_inference(
        args.checkpoint,
        state.device,
        getattr(torch, args.dtype),
        trust_remote_code=args.trust_remote_code,
        compiled=args.compile,
    )
    sources = class_sources(model.config, space, args.dataset_name)
    if args.save_temperature and sources is not None:
        raise RecipeError(
            f"--save_temperature: {args.dataset_name} has other classes than the checkpoint, and the temperature is of its own: "
            "fit it to a dataset with the checkpoint's classes"
        )
    calibration = None
    if args.calibration:
        calibration = Calibration(temperature_of(model.config), space.ignore_index, classes_without_sources(sources))
    return Job(args, state, evaluation, dataset, output, recorder, model, image_processor, sources, calibration)
