"""The command as a user gives it, on small datasets; scores against torchmetrics, the pipeline and the publishers' programs."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from revhrnet_hf.commands import evaluate
from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.evaluation import InferenceSettings, load_checkpoint, segment
from revhrnet_hf.evaluation.evaluator import Recorder
from revhrnet_hf.evaluation.submission import submission_format
from revhrnet_hf.hub.model_card import write_model_card
from revhrnet_hf.synthetic import write_cityscapes, write_mapillary_vistas, write_pascal_voc

from .. import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_seg.py"
SPACE = get_label_space("camvid11")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for part, high in (("val", 256), ("valannot", 12)):
        (folder / part).mkdir()
        for number in range(6):
            shape = (36, 52, 3) if part == "val" else (36, 52)
            PIL.Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(folder / part / f"{number}.png")
    return folder


def save_checkpoint(folder, id2label):
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, id2label=id2label
    )
    model = SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), SPACE.id2label)


def arguments(checkpoint, camvid, *more):
    given = [checkpoint, "--dataset", "camvid", "--data_dir", camvid, "--num_workers", "0", *more]
    return list(map(str, given))


def test_scores_are_those_of_pipeline_and_torchmetrics(checkpoint, camvid, tmp_path, capsys):
    output = tmp_path / "scores.json"
    evaluate.main(arguments(checkpoint, camvid, "--output", output))
    record = json.loads(output.read_text(encoding="utf-8"))

    segment = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    expected = torch.zeros(11, 11, dtype=torch.int64)
    for image in sorted((camvid / "val").iterdir()):
        prediction = torch.empty(36, 52, dtype=torch.int64)
        for part in segment(str(image)):
            prediction[torch.from_numpy(np.array(part["mask"])) == 255] = SPACE.label2id[part["label"]]
        reference = torch.from_numpy(np.array(PIL.Image.open(camvid / "valannot" / image.name))).long()
        expected += multiclass_confusion_matrix(prediction, reference, 11, ignore_index=11)
    assert record["confusion_matrix"] == expected.tolist()
    assert record["scores"]["overall_accuracy"] == pytest.approx((expected.trace() / expected.sum()).item(), rel=1e-6)
    assert record["class_names"] == list(SPACE.names)
    assert record["images"] == 6
    assert (record["dataset"], record["split"]) == ("camvid", "val")
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]

    printed = capsys.readouterr().out
    assert f"{100 * record['scores']['mean_iou']:.2f}" in printed
    assert "images: 6" in printed
    assert all(name in printed for name in SPACE.names)
    assert not list(tmp_path.glob(".*")), "the records of an evaluation that is finished are taken away"
    with output.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    pixels = np.array([float(row["labelled_pixels"]) for row in rows])
    right = np.array([float(row["overall_accuracy"]) for row in rows]) * pixels
    assert right.sum() / pixels.sum() == pytest.approx(record["scores"]["overall_accuracy"])
    low, high = record["confidence_intervals_95"]["mean_iou"]
    assert low < record["scores"]["mean_iou"] < high


def test_same_images_stored_elsewhere_give_the_same(checkpoint, camvid, tmp_path):
    """As a folder of one's own, and saved by `datasets` with other columns."""
    (tmp_path / "own" / "val").mkdir(parents=True)
    (tmp_path / "own" / "val" / "images").symlink_to(camvid / "val")
    (tmp_path / "own" / "val" / "labels").symlink_to(camvid / "valannot")
    rows = load_segmentation_dataset("folder", tmp_path / "own", "val", "camvid11")
    rows = rows.cast_column("label_map", datasets.Image()).rename_column("label_map", "mask").rename_column("image", "photo")
    rows.save_to_disk(tmp_path / "saved")
    columns = ["--image_column", "photo", "--label_column", "mask"]
    matrices = []
    for given in (
        ["--dataset", "camvid", "--data_dir", camvid],
        ["--dataset", "folder", "--data_dir", tmp_path / "own", "--label_space", "camvid11"],
        ["--dataset", "hub", "--data_dir", tmp_path / "saved", "--label_space", "camvid11", *columns],
    ):
        evaluate.main(arguments(checkpoint, camvid, "--output", tmp_path / "scores.json", "--overwrite", *given))
        record = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
        assert record["label_space"] == "camvid11"
        matrices.append(record["confusion_matrix"])
    assert matrices[0] == matrices[1] == matrices[2]


def test_scores_lie_beside_the_checkpoint_by_default(checkpoint, camvid):
    evaluate.main(arguments(checkpoint, camvid))
    text = (checkpoint / "scores_camvid_val.json").read_text(encoding="utf-8")
    assert json.loads(text)["checkpoint"] == checkpoint.name
    assert str(checkpoint.parent) not in text


def test_bad_input_is_named(checkpoint, camvid, tmp_path):
    five = save_checkpoint(tmp_path / "five", dict(enumerate("abcde")))
    for error, message, given in (
        (CheckpointError, r"5 classes \(a, b, c, d …\) is among the 11 of camvid \(Sky", arguments(five, camvid)),
        (CheckpointError, "there is no checkpoint folder", arguments(tmp_path / "absent", camvid)),
        (DataError, "does not exist", arguments(checkpoint, tmp_path / "absent")),
        (DataError, "no split 'test'", arguments(checkpoint, camvid, "--split", "test")),
        (RecipeError, "there is no folder .*absent", arguments(checkpoint, camvid, "--output", tmp_path / "absent/x.json")),
        (RecipeError, "x.csv: name a file that ends with .json", arguments(checkpoint, camvid, "--output", tmp_path / "x.csv")),
        (RecipeError, "--num_workers -1", arguments(checkpoint, camvid, "--num_workers", "-1")),
    ):
        with pytest.raises(error, match=message):
            evaluate.main(given)


def test_an_error_is_one_line_and_status_1(checkpoint, camvid, tmp_path):
    output = tmp_path / "scores.json"
    command = [sys.executable, SCRIPT, *arguments(checkpoint, tmp_path / "absent", "--output", output)]
    done = forked.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: ")
    assert "\n" not in done.stderr.strip()
    assert done.stdout == ""
    assert not output.exists()


def test_windows_scales_and_all_that_can_be_written(checkpoint, camvid, tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "sliding.json"
    given = ["--window", "32", "40", "--scales", "1", "1.5", "--flip", "--boundary", "--absent_as_zero"]
    evaluate.main(arguments(checkpoint, camvid, "--output", output, *given, "--plot", "--worst", "2"))
    record = json.loads(output.read_text(encoding="utf-8"))
    model, image_processor = load_checkpoint(checkpoint)
    settings = InferenceSettings((32, 40), scales=(1.0, 1.5), flip=True)
    expected = torch.zeros(11, 11, dtype=torch.int64)
    for row in load_segmentation_dataset("camvid", camvid, "val"):
        prediction = torch.from_numpy(segment(model, image_processor, row["image"], settings).label_map)
        expected += multiclass_confusion_matrix(
            prediction.long(), torch.from_numpy(np.array(row["label_map"])).long(), 11, ignore_index=255
        )
    assert record["confusion_matrix"] == expected.tolist()
    assert record["settings"]["inference"] == str(settings) and record["settings"]["window"] == [32, 40]
    assert 0 < record["scores"]["boundary_iou"] < 1

    assert PIL.Image.open(tmp_path / "sliding_confusion.png").width > 300
    with output.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        by_score = sorted(csv.DictReader(file), key=lambda row: float(row["mean_iou"]))
    drawn = sorted(file.name for file in (tmp_path / "sliding_worst").iterdir())
    assert drawn == [f"{rank:03d}_{row['image_id']}.png" for rank, row in enumerate(by_score[:2], 1)]
    figure = PIL.Image.open(tmp_path / "sliding_worst" / drawn[0])
    assert figure.width >= 52 and figure.height > 2 * 36 + 3 * 20  # with three headings


def test_report(camvid, tmp_path, caplog):
    """Its scores and its worst image are those of the JSON and the CSV; a run's recipe and curves are in it; it is replaced."""
    run = tmp_path / "run"
    save_checkpoint(run / "best", SPACE.id2label)
    (run / "best" / "recipe.yaml").write_text("dataset: camvid  # marked")
    (run / "log.jsonl").write_text(json.dumps({"epoch": 0, "step": 1, "loss": 2.0, "time": 0.0}) + "\n")
    for _ in range(2):
        evaluate.main(arguments(run / "best", camvid, "--report"))
    text = (run / "best" / "scores_camvid_val_report.html").read_text(encoding="utf-8")
    record = json.loads((run / "best" / "scores_camvid_val.json").read_text(encoding="utf-8"))
    assert f"<b>{100 * record['scores']['mean_iou']:.1f} %</b>" in text
    with (run / "best" / "scores_camvid_val.csv").open(newline="", encoding="utf-8") as file:
        worst = min(csv.DictReader(file), key=lambda row: float(row["mean_iou"]))
    assert text.index(f"<h3>{worst['image_id']} · mIoU {100 * float(worst['mean_iou']):.1f} %</h3>") == text.index("<h3>")
    assert "dataset: camvid  # marked" in text and "<h2>Curves</h2>" in text
    (run / "log.jsonl").write_text("damaged\n")
    evaluate.main(arguments(run / "best", camvid, "--report"))
    assert "the report has no curves" in caplog.text and "log.jsonl, line 1 is no entry of a log" in caplog.text
    text = (run / "best" / "scores_camvid_val_report.html").read_text(encoding="utf-8")
    assert "dataset: camvid  # marked" in text and "<h2>Curves</h2>" not in text
    (run / "best" / "scores_camvid_val_report.html").write_text("my notes")
    with pytest.raises(DataError, match="no report of this program"):
        evaluate.main(arguments(run / "best", camvid, "--report"))


def test_another_librarys_model(camvid, tmp_path):
    """An UperNet, whose image processor makes squares of the images."""
    torch.manual_seed(0)
    backbone = ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=8, pool_scales=[1, 2], use_auxiliary_head=False, id2label=SPACE.id2label
    )
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "upernet")
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "upernet")
    evaluate.main(arguments(tmp_path / "upernet", camvid))
    record = json.loads((tmp_path / "upernet" / "scores_camvid_val.json").read_text(encoding="utf-8"))
    expected = 0
    segment_with = pipeline("image-segmentation", model=str(tmp_path / "upernet"), device="cpu")
    for image in (camvid / "val").iterdir():
        truth = np.array(PIL.Image.open(camvid / "valannot" / image.name))
        for part in segment_with(str(image)):
            expected += int(((np.array(part["mask"]) == 255) & (truth == SPACE.label2id[part["label"]])).sum())
    assert np.trace(record["confusion_matrix"]) == expected


class Stop(Exception):
    pass


def test_what_was_interrupted_goes_on(checkpoint, camvid, tmp_path, monkeypatch, caplog):
    whole, output = tmp_path / "whole.json", tmp_path / "scores.json"
    evaluate.main(arguments(checkpoint, camvid, "--output", whole))
    seen = []
    record_image = Recorder.record

    def record(self, image, confusion):
        if len(seen) == 4:
            raise Stop
        seen.append(image.image_id)
        return record_image(self, image, confusion)

    monkeypatch.setattr(Recorder, "record", record)
    with pytest.raises(Stop):
        evaluate.main(arguments(checkpoint, camvid, "--output", output))
    assert not output.exists()
    [part] = (tmp_path / ".scores.work").glob("part_*.jsonl")
    part.write_bytes(part.read_bytes()[:-9])  # as if killed while writing the fourth
    with pytest.raises(CheckpointError, match=r"other settings \(dtype was float32, is bfloat16\).*--overwrite"):
        evaluate.main(arguments(checkpoint, camvid, "--output", output, "--dtype", "bfloat16"))
    config = checkpoint / "config.json"
    os.utime(config, ns=(0, 0))  # another training's checkpoint under the same name
    with pytest.raises(CheckpointError, match=r"other settings \(checkpoint changed\)"):
        evaluate.main(arguments(checkpoint, camvid, "--output", output))
    begun = json.loads((tmp_path / ".scores.work" / "settings.json").read_text(encoding="utf-8"))
    os.utime(config, ns=(0, next(changed for name, _, changed in begun["checkpoint"] if name == "config.json")))

    seen.clear()
    caplog.set_level(logging.INFO, "revhrnet_hf")
    evaluate.main(arguments(checkpoint, camvid, "--output", output))
    assert seen == ["3", "4", "5"]
    assert "resumed: 3 of 6 images are done" in caplog.text
    assert output.read_bytes() == whole.read_bytes()
    assert output.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()


def test_two_evaluations_in_one_folder_at_once(camvid, tmp_path, monkeypatch):
    """In the middle of one, another begins and ends; then the first is interrupted, and resumed while a third is unfinished."""
    checkpoint = save_checkpoint(tmp_path / "model", SPACE.id2label)
    record_image, seen = Recorder.record, []

    def record(self, image, confusion):
        seen.append(image.image_id)
        if len(seen) == 3:
            evaluate.main(arguments(checkpoint, camvid, "--flip"))
        if len(seen) == 12:
            raise Stop
        return record_image(self, image, confusion)

    monkeypatch.setattr(Recorder, "record", record)
    with pytest.raises(Stop):
        evaluate.main(arguments(checkpoint, camvid))
    assert [file.name for file in checkpoint.glob(".*")] == [".scores_camvid_val.work"]
    with pytest.raises(Stop):
        seen[:] = seen[:9]
        evaluate.main(arguments(checkpoint, camvid, "--scales", "1.5"))
    assert seen[9:] == ["0", "1", "2"]
    evaluate.main(arguments(checkpoint, camvid))
    assert seen[12:] == ["5"]
    evaluate.main(arguments(checkpoint, camvid, "--scales", "1.5"))
    assert seen[13:] == ["2", "3", "4", "5"]
    names = ["scores_camvid_val", "scores_camvid_val_flip", "scores_camvid_val_scales1.5"]
    assert sorted(file.stem for file in checkpoint.glob("scores*.json")) == names and not list(checkpoint.glob(".*"))
    monkeypatch.setattr(Recorder, "record", record_image)
    alone = tmp_path / "alone.json"
    evaluate.main(arguments(checkpoint, camvid, "--output", alone))
    assert alone.read_bytes() == (checkpoint / "scores_camvid_val.json").read_bytes()


def test_overwrite_begins_anew(checkpoint, camvid, tmp_path, caplog):
    caplog.set_level(logging.INFO, "revhrnet_hf")
    (tmp_path / ".scores.work").mkdir()
    (tmp_path / ".scores.work" / "settings.json").write_text('{"dataset": "another"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="dataset was another, is camvid"):
        evaluate.main(arguments(checkpoint, camvid, "--output", tmp_path / "scores.json"))
    evaluate.main(arguments(checkpoint, camvid, "--output", tmp_path / "scores.json", "--overwrite"))
    assert "resumed" not in caplog.text and (tmp_path / "scores.json").exists()


def test_a_split_without_a_labelled_pixel_is_an_error(checkpoint, camvid, tmp_path):
    void = Path(shutil.copytree(camvid, tmp_path / "void"))
    for file in (void / "valannot").iterdir():
        PIL.Image.fromarray(np.full((36, 52), 11, np.uint8)).save(file)
    output = tmp_path / "scores.json"
    with pytest.raises(DataError, match="the split 'val' of camvid holds no labelled pixel"):
        evaluate.main(arguments(checkpoint, void, "--output", output, "--worst", "1"))
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("scores*"))


def test_one_labelled_image_has_no_intervals(checkpoint, camvid, tmp_path, capsys):
    one = Path(shutil.copytree(camvid, tmp_path / "one"))
    for file in sorted((one / "valannot").iterdir())[1:]:
        PIL.Image.fromarray(np.full((36, 52), 11, np.uint8)).save(file)
    evaluate.main(arguments(checkpoint, one, "--output", tmp_path / "scores.json"))
    record = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert record["confidence_intervals_95"] is None and "interval_block" not in record["settings"]
    printed = capsys.readouterr().out
    [mean_iou] = [line.split() for line in printed.splitlines() if line.startswith("mIoU")]
    assert mean_iou == ["mIoU", f"{100 * record['scores']['mean_iou']:.2f}"]
    assert "no 95 % intervals: one labelled image" in printed


def own_folder(folder, camvid):
    (folder / "val").mkdir(parents=True)
    (folder / "val" / "images").symlink_to(camvid / "val")
    (folder / "val" / "labels").symlink_to(camvid / "valannot")
    return folder


def test_no_evaluation_overwrites_another(camvid, tmp_path, caplog):
    """Other settings, other own folders, another name: each has its files, and all are in the card."""
    caplog.set_level(logging.INFO, "revhrnet_hf")
    checkpoint = save_checkpoint(tmp_path / "model", SPACE.id2label)
    write_model_card(checkpoint)
    own = ["--dataset", "folder", "--label_space", "camvid11", "--data_dir"]
    photos, slides = (own_folder(tmp_path / name, camvid) for name in ("photos", "slides"))
    ways = {
        "scores_camvid_val": [],
        "scores_camvid_val_flip": ["--flip"],
        "scores_folder-photos_val_camvid11": [*own, photos],
        "scores_evening_val_camvid11": [*own, f"evening={slides}"],
    }
    for way in ways.values():
        evaluate.main(arguments(checkpoint, camvid, *way))
    assert sorted(file.stem for file in checkpoint.glob("*.csv")) == sorted(ways)
    assert sorted(file.stem for file in checkpoint.glob("scores*.json")) == sorted(ways)
    assert "replaced" not in caplog.text
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if " val (6 images) | " in line]
    assert len(rows) == len(ways) == len(set(rows))
    names = {json.loads(file.read_text(encoding="utf-8"))["dataset"] for file in checkpoint.glob("scores*.json")}
    assert names == {"camvid", "photos", "evening"}
    evaluate.main(arguments(checkpoint, camvid, "--flip"))
    output = checkpoint / "scores_camvid_val_flip.json"
    assert f"the scores of an earlier run of the same evaluation in {output} will be replaced" in caplog.text


def test_a_folder_by_a_name_of_its_own(checkpoint, camvid, tmp_path):
    """As in a recipe (`{name: photos, loader: folder}`), or with the name before the folder."""
    data, model = own_folder(tmp_path / "data", camvid), save_checkpoint(tmp_path / "model", SPACE.id2label)
    ways = (["photos", "--loader", "folder", "--data_dir", data], ["folder", "--data_dir", f"slides={data}"])
    for name, way in zip(("photos", "slides"), ways, strict=True):
        evaluate.main([*map(str, (model, "--label_space", "camvid11", "--num_workers", "0", "--dataset", *way))])
        record = json.loads((model / f"scores_{name}_val_camvid11.json").read_text(encoding="utf-8"))
        assert (record["dataset"], record["loader"]) == (name, "folder")
    with pytest.raises(DataError, match="needs a loader"):
        evaluate.main(arguments(checkpoint, data, "--dataset", "photos"))


def test_a_file_of_something_else_is_not_overwritten(checkpoint, camvid, tmp_path, capsys):
    output = tmp_path / "scores.json"
    given = arguments(checkpoint, camvid, "--output", output)
    evaluate.main(given)
    before = output.read_bytes()
    other = shutil.copytree(camvid, tmp_path / "other")
    (other / "val" / "5.png").unlink()
    (other / "valannot" / "5.png").unlink()
    for more, differs in (
        (["--flip"], "inference"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--data_dir", other], "image_ids, data"),
        (["--absent_as_zero"], "absent_as_zero"),
        (["--data_dir", f"mine={camvid}"], "dataset"),
    ):
        with pytest.raises(RecipeError, match=rf"scores.json holds the scores of another evaluation \({differs} differ\)"):
            evaluate.main([*given, *map(str, more)])
        assert output.read_bytes() == before
    evaluate.main([*given, "--flip", "--overwrite"])
    assert output.read_bytes() != before
    output.write_text('{"my": "notes"}', encoding="utf-8")
    with pytest.raises(RecipeError, match="is no record of an evaluation"):
        evaluate.main(given)
    assert json.loads(output.read_text(encoding="utf-8")) == {"my": "notes"}
    assert not list(tmp_path.glob(".*"))


def test_no_drawing_of_other_data_stays_beside_new_scores(sure, camvid, tmp_path, caplog, capsys):
    """Those of the same data do, but for a reliability diagram that the scores do not hold; the scores that go are named."""
    pytest.importorskip("matplotlib")
    caplog.set_level(logging.INFO, "revhrnet_hf")
    given = arguments(sure, camvid, "--output", tmp_path / "scores.json")
    everything = ["--boundary", "--calibration", "--plot", "--report", "--worst", "1"]
    (tmp_path / "scores_worst").mkdir()
    (tmp_path / "scores_worst" / "mine.png").touch()
    evaluate.main([*given, *everything])
    evaluate.main([*given, *everything])
    drawings = {tmp_path / f"scores_{what}" for what in ("confusion.png", "reliability.png", "report.html", "worst")}
    assert all(path.exists() for path in drawings) and len(list((tmp_path / "scores_worst").iterdir())) == 2
    assert "lost" not in caplog.text and "removed" not in capsys.readouterr().out
    evaluate.main(given)
    assert "replaced, and those of --boundary --calibration will be lost" in caplog.text
    assert {path for path in drawings if not path.exists()} == {tmp_path / "scores_reliability.png"}
    other = Path(shutil.copytree(camvid, tmp_path / "other"))
    relabelled(other)
    evaluate.main([*given, "--data_dir", str(other), "--overwrite"])
    assert {path for path in drawings if path.exists()} == {tmp_path / "scores_worst"}
    assert [path.name for path in (tmp_path / "scores_worst").iterdir()] == ["mine.png"]
    assert f"removed, as they show what is replaced: {tmp_path / 'scores_confusion.png'}" in capsys.readouterr().out


def test_scores_of_another_checkpoint_of_the_same_name_are_not_overwritten(camvid, tmp_path):
    best = [save_checkpoint(tmp_path / run / "best", SPACE.id2label) for run in "ab"]
    other = SegformerForSemanticSegmentation.from_pretrained(best[1])
    torch.nn.init.ones_(other.decode_head.classifier.bias)
    other.save_pretrained(best[1])
    output = tmp_path / "scores.json"
    evaluate.main(arguments(best[0], camvid, "--output", output))
    before = output.read_bytes()
    shutil.copytree(best[0], tmp_path / "copy" / "best")
    evaluate.main(arguments(tmp_path / "copy" / "best", camvid, "--output", output))
    with pytest.raises(RecipeError, match=r"another evaluation \(weights differ\)"):
        evaluate.main(arguments(best[1], camvid, "--output", output))
    assert output.read_bytes() == before
    record = json.loads(before)
    del record["weights"]  # as earlier versions wrote it
    output.write_text(json.dumps(record))
    evaluate.main(arguments(best[1], camvid, "--output", output))


def relabelled(folder, name="0.png"):
    """One pixel of a label map gets another class; size in pixels and time of change stay."""
    file, changed = folder / "valannot" / name, (folder / "valannot" / name).stat().st_mtime_ns
    labels = np.array(PIL.Image.open(file))
    labels[0, 0] = (labels[0, 0] + 1) % 11
    PIL.Image.fromarray(labels).save(file)
    os.utime(file, ns=(0, changed))


def test_data_of_the_same_names_are_not_taken_for_the_same(camvid, tmp_path):
    """Two folders whose folders, files and image sizes are called alike; a copy to elsewhere is the same."""
    checkpoint = save_checkpoint(tmp_path / "model", SPACE.id2label)
    folds = [own_folder(tmp_path / fold / "data", Path(shutil.copytree(camvid, tmp_path / fold / "files"))) for fold in "ab"]
    own = ["--dataset", "folder", "--label_space", "camvid11", "--data_dir"]
    given = [arguments(checkpoint, camvid, *own, fold) for fold in folds]
    for arguments_ in given:
        evaluate.main(arguments_)
    output = checkpoint / "scores_folder-data_val_camvid11.json"
    before = output.read_bytes()
    assert str(tmp_path) not in before.decode()
    relabelled(tmp_path / "b" / "files")
    with pytest.raises(RecipeError, match=r"another evaluation \(data differ\).*--overwrite"):
        evaluate.main(given[1])
    assert output.read_bytes() == before
    PIL.Image.effect_noise((52, 36), 90).convert("RGB").save(tmp_path / "a" / "files" / "val" / "3.png")
    with pytest.raises(RecipeError, match=r"another evaluation \(data differ\)"):
        evaluate.main(given[0])
    evaluate.main([*given[1], "--overwrite"])
    assert output.read_bytes() != before


def test_label_tables_of_the_same_name_are_not_taken_for_the_same(checkpoint, camvid, tmp_path):
    data, tables = own_folder(tmp_path / "data", camvid), [tmp_path / name / "table.yaml" for name in "ab"]
    for table, names in zip(tables, (SPACE.names, SPACE.names[::-1]), strict=True):
        table.parent.mkdir()
        table.write_text(f"names: [{', '.join(names)}]\nignore: [11]\n")
    given = ["--dataset", "folder", "--data_dir", data, "--output", tmp_path / "scores.json", "--label_space"]
    evaluate.main(arguments(checkpoint, camvid, *given, tables[0]))
    with pytest.raises(RecipeError, match=r"another evaluation \(label_table differ\)"):
        evaluate.main(arguments(checkpoint, camvid, *given, tables[1]))


def test_an_evaluation_of_edited_label_maps_is_not_resumed(checkpoint, camvid, tmp_path, monkeypatch):
    data = Path(shutil.copytree(camvid, tmp_path / "data"))
    record_image, seen = Recorder.record, []

    def record(self, image, confusion):
        if len(seen) == 2:
            raise Stop
        seen.append(image.image_id)
        return record_image(self, image, confusion)

    monkeypatch.setattr(Recorder, "record", record)
    given = arguments(checkpoint, data, "--output", tmp_path / "scores.json")
    with pytest.raises(Stop):
        evaluate.main(given)
    relabelled(data)
    with pytest.raises(CheckpointError, match=r"other settings \(data changed\).*--overwrite"):
        evaluate.main(given)
    assert seen == ["0", "1"]


def test_a_dataset_that_was_mixed_in_is_scored_by_its_own_classes(tmp_path, capsys):
    """A network of [road, car, sky] on images of [sky, road, cat]: against the merged probabilities of the pipeline's model."""
    checkpoint = save_checkpoint(tmp_path / "model", dict(enumerate(["road", "car", "sky"])))
    rng = np.random.default_rng(1)
    for kind, shape, high in (("images", (32, 48, 3), 256), ("labels", (32, 48), 3)):
        (tmp_path / "scans" / "val" / kind).mkdir(parents=True)
        PIL.Image.fromarray(rng.integers(0, high, shape, dtype=np.uint8)).save(tmp_path / "scans" / "val" / kind / "a.png")
    (tmp_path / "table.yaml").write_text("names: [sky, road, cat]\n")
    given = ["--dataset", "folder", "--data_dir", tmp_path / "scans", "--label_space", tmp_path / "table.yaml"]
    evaluate.main(arguments(checkpoint, tmp_path, *given, "--output", tmp_path / "scores.json"))
    printed = capsys.readouterr().out
    for line in ("sky = sky", "road = road", "cat = nothing: it is never predicted", "so never predicted: cat"):
        assert line in printed
    record = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert record["never_predicted"] == ["cat"]
    model, image_processor = load_checkpoint(checkpoint)
    image = PIL.Image.open(tmp_path / "scans" / "val" / "images" / "a.png")
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits[:, [2, 0]]
    best = torch.nn.functional.interpolate(logits, (32, 48), mode="bilinear").argmax(1)[0]
    truth = torch.from_numpy(np.array(PIL.Image.open(tmp_path / "scans" / "val" / "labels" / "a.png"))).long()
    assert record["confusion_matrix"] == multiclass_confusion_matrix(best, truth, 3).tolist()


def test_cityscapes_own_scores(tmp_path, monkeypatch):
    """The files of a submission go through the publisher's program; it must find them by their names."""
    write_cityscapes(tmp_path / "data", {"val": 4}, size=(64, 128))
    checkpoint = save_checkpoint(tmp_path / "model", get_label_space("cityscapes").id2label)
    given = ["--dataset", "cityscapes", "--data_dir", tmp_path / "data", "--submission", tmp_path / "sub"]
    evaluate.main(arguments(checkpoint, tmp_path, *given, "--output", tmp_path / "scores.json"))
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["scores"]

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(official.args, "quiet", True)
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "predictionPath", str(tmp_path / "sub"))
    monkeypatch.setattr(official.args, "predictionWalk", None)
    truth = sorted(map(str, (tmp_path / "data" / "gtFine").rglob("*_labelIds.png")))
    expected = official.evaluateImgLists([official.getPrediction(official.args, file) for file in truth], truth, official.args)
    assert scores["mean_iou"] == pytest.approx(scores["iou_class"], abs=1e-12)
    for ours, theirs in (
        ("iou_class", "averageScoreClasses"),
        ("iiou_class", "averageScoreInstClasses"),
        ("iou_category", "averageScoreCategories"),
        ("iiou_category", "averageScoreInstCategories"),
    ):
        assert scores[ours] == pytest.approx(expected[theirs], abs=1e-9)


def hide_labels(data, split, name):
    """The split's images as a test split: under another name, without label maps."""
    if name == "cityscapes":
        shutil.move(data / "leftImg8bit" / split, data / "leftImg8bit" / "test")
    elif name == "mapillary_vistas":
        (data / "testing").mkdir()
        shutil.move(data / "validation" / "images", data / "testing" / "images")
    else:
        lists = data / "ImageSets" / "Segmentation"
        shutil.move(lists / f"{split}.txt", lists / "test.txt")
        shutil.rmtree(data / "SegmentationClass")


@pytest.mark.parametrize(
    ("name", "write", "label_space", "folder", "mode"),
    [
        ("cityscapes", write_cityscapes, "cityscapes", ".", "L"),
        ("mapillary_vistas", write_mapillary_vistas, "mapillary_vistas_v1.2", ".", "P"),
        ("pascal_voc", write_pascal_voc, "voc21", "results/VOC2012/Segmentation/comp6_test_cls", "P"),
    ],
)
def test_submission_of_a_split_without_labels(name, write, label_space, folder, mode, tmp_path, capsys):
    write(tmp_path / "data", {"train": 1, "val": 2}, (48, 64))
    data = next((tmp_path / "data").rglob("JPEGImages"), tmp_path / "data" / "x").parent
    hide_labels(data, "val", name)
    space = get_label_space(label_space)
    checkpoint = save_checkpoint(tmp_path / "model", space.id2label)
    given = arguments(checkpoint, tmp_path, "--dataset", name, "--data_dir", tmp_path / "data", "--split", "test")
    with pytest.raises(DataError, match="'test' has no label maps, its publisher keeps them"):
        evaluate.main(given)
    given += ["--submission", str(tmp_path / "sub"), "--output", str(tmp_path / "scores.json")]
    with pytest.raises(RecipeError, match="'test' has no label maps, so no scores for --boundary, --calibration, --worst"):
        evaluate.main([*given, "--boundary", "--calibration", "--worst", "2"])
    evaluate.main(given)
    assert "submission: 2 label maps" in capsys.readouterr().out
    assert not (tmp_path / "scores.json").exists() and not list(tmp_path.glob(".*.work"))

    rows = load_segmentation_dataset(name, tmp_path / "data", "test", unlabelled=True)
    files = sorted((tmp_path / "sub").rglob("*.png"))
    assert files == sorted(tmp_path / "sub" / folder / f"{row['image_id']}.png" for row in rows)
    model, image_processor = load_checkpoint(checkpoint)
    raw_id = {train_id: raw for raw, train_id in space.raw_ids.items()}
    for row, file in zip(sorted(rows, key=lambda row: row["image_id"]), files, strict=True):
        written = PIL.Image.open(file)
        assert (written.mode, written.size) == (mode, row["image"].size)
        expected = np.vectorize(raw_id.get)(segment(model, image_processor, row["image"]).label_map)
        assert np.array_equal(np.array(written), expected)
        if mode == "P":
            assert written.getpalette()[: 3 * space.num_classes] == [value for colour in space.colours for value in colour]


def test_a_submission_that_does_not_fit_is_not_called_done(checkpoint, camvid, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="no server takes camvid in the classes 'camvid11'"):
        evaluate.main(arguments(checkpoint, camvid, "--submission", tmp_path / "sub", "--output", tmp_path / "x.json"))
    write_pascal_voc(tmp_path / "data", {"train": 1, "val": 2}, (48, 64))
    voc = save_checkpoint(tmp_path / "model", get_label_space("voc21").id2label)
    given = ["--dataset", "pascal_voc", "--data_dir", tmp_path / "data", "--submission", tmp_path / "sub"]
    given = arguments(voc, camvid, *given, "--output", tmp_path / "scores.json")
    evaluate.main(given)
    files = sorted((tmp_path / "sub").rglob("*.png"))
    form = submission_format("pascal_voc", get_label_space("voc21"))
    sizes = {file.stem: PIL.Image.open(file).size[::-1] for file in files}
    form.check(tmp_path / "sub", sizes)
    good = files[0].read_bytes()
    for damage, message in (
        (lambda file: PIL.Image.open(file).resize((9, 9), 0).save(file), r"is 9×9, mode P, but its image"),
        (lambda file: PIL.Image.open(file).convert("RGB").save(file), "mode RGB"),
        (lambda file: PIL.Image.fromarray(np.full(sizes[file.stem], 99, np.uint8)).convert("P").save(file), "holds the id 99"),
        (lambda file: file.write_bytes(good[:40]), "cannot be read"),
        (lambda file: file.unlink(), "cannot be read"),
    ):
        damage(files[0])
        with pytest.raises(DataError, match=message):
            form.check(tmp_path / "sub", sizes)
        files[0].write_bytes(good)
    stray = files[0].with_name("stray.png")
    stray.write_bytes(good)
    with pytest.raises(DataError, match=r"stray.png \(1 such\) belongs to no image"):
        form.check(tmp_path / "sub", sizes)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_another_number_of_processes(checkpoint, camvid, tmp_path):
    """Killed, not asked to stop; then two processes share what is left."""
    whole, output = tmp_path / "whole.json", tmp_path / "scores.json"
    evaluate.main(arguments(checkpoint, camvid, "--output", whole, "--scales", "6"))
    slow = arguments(checkpoint, camvid, "--output", output, "--scales", "6")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = forked.Popen([sys.executable, SCRIPT, *slow], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=one_thread)
    part = tmp_path / ".scores.work" / "part_0.jsonl"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists() and part.read_bytes().count(b"\n") in range(2, 6)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, *slow]
    done = forked.run(command, check=True, capture_output=True, text=True, timeout=300, env=one_thread)
    assert "resumed" in done.stderr
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (whole, output))
    assert (one["settings"].pop("num_processes"), two["settings"].pop("num_processes")) == (1, 2)
    assert one == two


@pytest.mark.slow
def test_two_processes_give_the_same_digits(checkpoint, camvid, tmp_path):
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    evaluate.main(arguments(checkpoint, camvid, "--output", alone))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    command += arguments(checkpoint, camvid, "--output", together)
    forked.run(command, check=True, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (alone, together))
    assert two["settings"].pop("num_processes") == 2
    assert one["settings"].pop("num_processes") == 1
    assert one == two


@pytest.fixture(scope="module")
def sure(checkpoint, tmp_path_factory):
    """The checkpoint with logits that differ by some units."""
    folder = tmp_path_factory.mktemp("sure")
    model, image_processor = load_checkpoint(checkpoint)
    classifier = model.decode_head.classifier
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 36, 52)).logits
        classifier.weight.mul_(2 / logits.std(dim=(2, 3)).view(-1, 1, 1, 1))
        classifier.bias.sub_(model(torch.randn(1, 3, 36, 52)).logits.mean(dim=(0, 2, 3)))
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictable(sure, camvid, tmp_path_factory):
    """The same images with label maps drawn with the checkpoint's probabilities at a temperature of 0.6."""
    folder, rng = tmp_path_factory.mktemp("predictable"), np.random.default_rng(0)
    shutil.copytree(camvid / "val", folder / "val")
    (folder / "valannot").mkdir()
    model, image_processor = load_checkpoint(sure)
    for file in (folder / "val").iterdir():
        found = segment(model, image_processor, PIL.Image.open(file), return_probabilities=True).probabilities
        scores = np.log(found) / 0.6 + rng.gumbel(size=found.shape)
        truth = np.where(rng.random(found.shape[1:]) < 0.9, scores.argmax(0), 11)  # 11 is ignored
        PIL.Image.fromarray(truth.astype(np.uint8)).save(folder / "valannot" / file.name)
    return folder


def test_calibration(sure, predictable, tmp_path, capsys):
    """The command's numbers are netcal's; the temperature is saved, and is then the checkpoint's own."""
    netcal = pytest.importorskip("netcal.metrics")
    own = shutil.copytree(sure, tmp_path / "own")
    before = {file.name: file.read_bytes() for file in own.iterdir()}
    output = tmp_path / "scores.json"
    evaluate.main(arguments(own, predictable, "--output", output, "--calibration", "--save_temperature", "--plot"))
    printed, result = capsys.readouterr().out, json.loads(output.read_text(encoding="utf-8"))["calibration"]
    fitted = result["fitted"]["temperature"]
    assert f"saved: temperature {fitted:.4g}" in printed and result["checkpoint"]["temperature"] == 1
    assert PIL.Image.open(tmp_path / "scores_reliability.png").width > 300
    assert not list(tmp_path.glob(".*"))
    changed = {file.name for file in own.iterdir() if before.get(file.name) != file.read_bytes()}
    assert changed == {"config.json"}

    for part, model_folder in (("checkpoint", sure), ("fitted", own)):
        model, image_processor = load_checkpoint(model_folder)
        probabilities, truth = [], []
        for row in load_segmentation_dataset("camvid", predictable, "val"):
            label_map = np.array(row["label_map"])
            found = segment(model, image_processor, row["image"], return_probabilities=True).probabilities
            probabilities.append(found[:, label_map != 255].T)
            truth.append(label_map[label_map != 255])
        probabilities, truth = np.concatenate(probabilities), np.concatenate(truth)
        assert result[part]["expected_calibration_error"] == pytest.approx(netcal.ECE(15).measure(probabilities, truth), abs=1e-5)
        expected = -np.log(probabilities[np.arange(len(truth)), truth].astype(float)).mean()
        assert result[part]["negative_log_likelihood"] == pytest.approx(expected, rel=1e-4)
        assert result["pixels"] == len(truth) == sum(row["pixels"] for row in result[part]["reliability"])
    assert fitted == pytest.approx(0.6, rel=0.1)
    assert result["fitted"]["negative_log_likelihood"] < result["checkpoint"]["negative_log_likelihood"]

    evaluate.main(arguments(own, predictable, "--output", output, "--calibration"))
    again = json.loads(output.read_text(encoding="utf-8"))["calibration"]
    assert again["checkpoint"]["temperature"] == again["fitted"]["temperature"] == fitted
    for given, message in (
        (arguments(own, predictable, "--save_temperature"), "give both"),
        (arguments("someone/net", predictable, "--calibration", "--save_temperature"), "someone/net is none"),
        (arguments(own, predictable, "--interval_block", "0"), "give 1 or more"),
        (arguments(own, predictable, "--interval_block", "500"), "images are less than two such blocks"),
        (arguments(own, predictable, "--interval_block", "2", "--absent_as_zero"), "there are no intervals"),
    ):
        with pytest.raises(RecipeError, match=message):
            evaluate.main(given)


def test_calibration_that_no_temperature_fits(sure, camvid, tmp_path, capsys, caplog):
    """Label maps that are the predictions: all is written, at the checkpoint's temperature, and nothing is saved."""
    pytest.importorskip("matplotlib")
    caplog.set_level(logging.INFO, "revhrnet_hf")
    own, certain = shutil.copytree(sure, tmp_path / "own"), shutil.copytree(camvid, tmp_path / "certain")
    model, image_processor = load_checkpoint(own)
    for file in (certain / "val").iterdir():
        label_map = segment(model, image_processor, PIL.Image.open(file)).label_map
        PIL.Image.fromarray(label_map.astype(np.uint8)).save(certain / "valannot" / file.name)
    given = arguments(own, certain, "--output", tmp_path / "scores.json", "--calibration", "--plot")
    evaluate.main(given)
    assert "checkpoint's temperature alone: no temperature can be fitted, as the best one is below 0.25" in caplog.text
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    result = written["calibration"]
    assert written["scores"]["overall_accuracy"] == 1
    assert result["fitted"] is None and "below 0.25" in result["not_fitted"]
    assert result["checkpoint"]["temperature"] == 1 and result["checkpoint"]["expected_calibration_error"] > 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("fitted")]
    assert row == ["fitted", "to", "this", "split", "–", "–", "–"]
    with PIL.Image.open(tmp_path / "scores_reliability.png") as figure:
        assert figure.height > figure.width > 300  # one diagram
    before = (own / "config.json").read_bytes()
    with pytest.raises(DataError, match=r"--save_temperature: .* keeps its temperature: no temperature can be fitted"):
        evaluate.main([*given, "--save_temperature", "--worst", "1"])
    assert (own / "config.json").read_bytes() == before and list((tmp_path / "scores_worst").iterdir())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_calibration_of_several_processes(sure, predictable, tmp_path):
    """Two processes count the pixels that one counts, and give its numbers but for the rounding of float32."""
    outputs = tmp_path / "one.json", tmp_path / "two.json"
    evaluate.main(arguments(sure, predictable, "--output", outputs[0], "--calibration", "--device", "cpu"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    given = arguments(sure, predictable, "--output", outputs[1], "--calibration", "--device", "cpu")
    done = forked.run([*launcher, SCRIPT, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads(output.read_text(encoding="utf-8")) for output in outputs)
    counted, numbers = zip(*(numbers_of(result["calibration"]) for result in (one, two)), strict=True)
    assert counted[0] == counted[1] and numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert two["settings"]["num_processes"] == 2


def numbers_of(entry):
    """The whole numbers of nested lists and dicts, and the other ones."""
    whole, others, left = [], [], [entry]
    while left:
        item = left.pop()
        if isinstance(item, dict | list):
            left += item.values() if isinstance(item, dict) else item
        else:
            (whole if isinstance(item, int) or item is None else others).append(item)
    return whole, others
