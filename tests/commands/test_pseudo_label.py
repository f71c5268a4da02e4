"""Pseudo-labels: thresholds against brute force, the dataset as its loader reads it, interrupted and finished runs."""

import json
import logging
import shutil
import signal
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from revhrnet_hf.commands import pseudo_label
from revhrnet_hf.commands._pseudo_label import print_report
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.data.audit import audit_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.evaluation import load_checkpoint, segment
from revhrnet_hf.evaluation.calibration import save_temperature
from revhrnet_hf.evaluation.pseudo_labels import (
    FULL,
    Predictions,
    PseudoLabels,
    Thresholds,
    check_classes,
    confidence_of,
    level_of,
)
from revhrnet_hf.images import read_image

from .. import forked

NAMES = ["road", "sky & <b>clouds</b>", "car", "tree"]

# The command, killed before the image is kept that the first argument names.
KILLED = """
import os, signal, sys
from revhrnet_hf.commands import pseudo_label
from revhrnet_hf.evaluation.pseudo_labels import Predictions

def write_or_die(self, image, found, write=Predictions.write):
    if image.stem == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, image, found)

Predictions.write = write_or_die
pseudo_label.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images, of which one is stored turned."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("turned.jpg", (40, 60)), ("c.jfif", (64, 48))):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name.startswith("turned") else 1
        image.save(folder / name, format=None if name.endswith("png") else "JPEG", exif=exif)
    return folder


def label(checkpoint, photos, output_dir, *more):
    pseudo_label.main(list(map(str, [checkpoint, photos, "--output_dir", output_dir, *more])))


def killed_at(image, checkpoint, photos, output_dir, *more):
    """The same in a process that is killed before the prediction of an image is written."""
    arguments = map(str, [image, checkpoint, photos, "--output_dir", output_dir, *more])
    done = forked.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def with_other_classes(checkpoint, folder):
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(enumerate(["lorry", *NAMES[1:]]))
    config.pop("label2id")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def confidences(checkpoint, photos):
    """Name → label map and confidence, as `segment` gives them."""
    found = {}
    for path in sorted(photos.iterdir()):
        if path.suffix in (".png", ".jpg", ".jfif"):
            result = segment(*load_checkpoint(checkpoint), read_image(path), return_confidence=True)
            found[path.stem] = result.label_map, result.confidence
    return found


def test_dataset_is_what_the_loader_reads(tiny_checkpoint, photos, tmp_path, capsys):
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    save_temperature(checkpoint, 0.8)
    label(checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.7", "--class_confidence", "car=0.95")
    dataset = load_segmentation_dataset("folder", tmp_path / "pseudo", "train")
    assert label_space_of(dataset).names == tuple(NAMES) and len(dataset) == 3
    expected, report = confidences(checkpoint, photos), json.loads((tmp_path / "pseudo" / "report.json").read_text())
    limits = np.array([0.7, 0.7, 0.95, 0.7])
    for row in dataset:
        label_map, confidence = expected[row["image_id"]]
        limit = limits[label_map]
        clear = np.abs(confidence - limit) > 1e-4  # beyond the rounding to 16 bits
        truth = np.where(confidence >= limit, label_map, 255)
        assert row["image"].size == row["label_map"].size == label_map.shape[::-1]
        np.testing.assert_array_equal(np.array(row["label_map"])[clear], truth[clear])
        source = next(photos.glob(f"{row['image_id']}.*"))
        assert np.array_equal(np.array(row["image"]), np.array(read_image(source)))
    for class_id, entry in enumerate(report["classes"]):
        of_class = [(confidence[label_map == class_id]) for label_map, confidence in expected.values()]
        assert entry["name"] == NAMES[class_id]
        assert entry["predicted"] == sum(map(len, of_class))
        assert entry["kept"] == pytest.approx(sum((part >= limits[class_id]).sum() for part in of_class), abs=3)
    assert 0 < report["kept"] < report["pixels"] == 3 * 2400 + 672
    assert report["temperature"] == 0.8 and report["checkpoint"] == "checkpoint" and str(tmp_path) not in json.dumps(report)
    # The one thing that the audit may find is a class of which no pixel was sure.
    absent = [entry["name"] for entry in report["classes"] if not entry["kept"]]
    findings = audit_dataset("folder", tmp_path / "pseudo", ["train"], num_workers=0, most_ignored=100).findings
    assert len(findings) == len(absent) and {problem.kind for problem in findings} <= {"class"}
    assert Image.open(tmp_path / "pseudo" / "report.png").height > 3 * 40
    printed = capsys.readouterr().out
    assert "temperature 0.8" in printed and "sky & <b>clouds</b>" in printed
    assert not (tmp_path / "pseudo" / ".pseudo_label.work").exists()


def test_image_whose_suffix_the_loader_does_not_look_for(tiny_checkpoint, photos, tmp_path):
    shutil.copy(photos / "c.jfif", tmp_path / "c.picture")
    label(tiny_checkpoint, tmp_path / "c.picture", tmp_path / "pseudo", "--min_confidence", "0.01")
    (row,) = load_segmentation_dataset("folder", tmp_path / "pseudo", "train")
    assert np.array_equal(np.array(row["image"]), np.array(read_image(photos / "c.jfif")))


def test_class_balanced(tiny_checkpoint, photos, tmp_path):
    """Of each class the same share, those of highest confidence, counted over all images by sorting."""
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    save_temperature(checkpoint, 3.0)  # at 1 many are 1 within rounding, and equal confidences are kept together
    label(checkpoint, photos, tmp_path / "pseudo", "--class_share", "0.3", "--link")
    report = json.loads((tmp_path / "pseudo" / "report.json").read_text())
    expected = list(confidences(checkpoint, photos).values())
    assert (tmp_path / "pseudo" / "train" / "images" / "a.png").is_symlink()
    for class_id, entry in enumerate(report["classes"]):
        if not entry["predicted"]:
            continue
        ranked = np.sort(np.concatenate([confidence[label_map == class_id] for label_map, confidence in expected]))[::-1]
        least = ranked[int(np.ceil(0.3 * len(ranked))) - 1]
        assert entry["min_confidence"] == pytest.approx(least, abs=4 / FULL)
        assert entry["kept"] >= 0.3 * len(ranked) - 1e-9 and entry["kept"] == pytest.approx(0.3 * len(ranked), abs=10)


@given(st.integers(0, 50), st.floats(0.01, 1), st.floats(0, 1))
def test_thresholds(seed, share, minimum):
    rng = np.random.default_rng(seed)
    counts = np.zeros((3, FULL + 1), np.int64)
    pixels = [np.sort(rng.integers(0, FULL + 1, size))[::-1] for size in (1, 40, 300)]
    for row, values in zip(counts, pixels, strict=True):
        np.add.at(row, values, 1)
    least = Thresholds(minimum, {"b": 0.5}, share).least(counts, ["a", "b", "c"])
    assert confidence_of(least[1]) == pytest.approx(0.5, abs=4 / FULL)
    for class_id in (0, 2):
        values = pixels[class_id]
        wanted = values[max(int(np.ceil(share * len(values) - 1e-9)), 1) - 1]
        assert least[class_id] == max(wanted, np.ceil(level_of(minimum)))
    assert (Thresholds(minimum).least(counts, ["a", "b", "c"]) == np.ceil(level_of(minimum))).all()


def test_a_class_that_is_never_predicted_has_no_threshold_of_its_own():
    assert Thresholds(0.25, class_share=0.5).least(np.zeros((1, FULL + 1), np.int64), ["a"])[0] >= level_of(0.25)


def test_confidences_survive_the_work_folder(tmp_path):
    rng = np.random.default_rng(0)
    found = pseudo_label_result(rng.integers(0, 255, (30, 40), dtype=np.uint8), rng.random((30, 40), dtype=np.float32))
    Predictions(tmp_path).write(tmp_path / "x.jpg", found)
    label_map, level = Predictions(tmp_path).read(tmp_path / "x.jpg")
    assert np.array_equal(label_map, found.label_map)
    np.testing.assert_allclose(confidence_of(level), found.confidence, atol=2 / FULL)


def test_confidences_close_to_1_are_told_apart():
    """All those that float32 tells apart, and their distance from 1 within a tenth."""
    confidence = np.float32(1) - np.float32(2**-24) * 2 ** np.arange(1, 20).astype(np.float32)
    levels = np.rint(level_of(confidence))
    assert len(set(levels)) == len(confidence) and levels[0] < FULL
    np.testing.assert_allclose((1 - confidence_of(levels)) / (1 - confidence), 1, rtol=0.1)


def pseudo_label_result(label_map, confidence):
    from revhrnet_hf.evaluation import Segmentation

    return Segmentation(label_map, confidence)


class Stop(Exception):
    pass


def interrupt_at(monkeypatch, image):
    """Stops before the image with this name is predicted; the names of those predicted are listed."""
    seen, write = [], Predictions.write

    def stop_or_write(self, path, found):
        if path.stem == image:
            raise Stop
        seen.append(path.stem)
        write(self, path, found)

    monkeypatch.setattr(Predictions, "write", stop_or_write)
    return seen


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_interrupted_run_is_resumed(tiny_checkpoint, photos, tmp_path, monkeypatch, caplog):
    label(tiny_checkpoint, photos, tmp_path / "whole", "--min_confidence", "0.4")
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "turned")
        with pytest.raises(Stop):
            label(tiny_checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.9")
    assert seen == ["a", "c"] and not (tmp_path / "pseudo" / "labels.yaml").exists()
    with pytest.raises(CheckpointError, match=r"unfinished run of pseudo_label with other settings \(inference was"):
        label(tiny_checkpoint, photos, tmp_path / "pseudo", "--flip")
    caplog.set_level(logging.INFO, "revhrnet_hf")
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        label(tiny_checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.4")  # thresholds may be others
    assert seen == ["turned"] and "resumed: 2 of 3 images are done" in caplog.text
    assert files_in(tmp_path / "pseudo") == files_in(tmp_path / "whole")


def test_a_run_whose_best_has_changed_is_not_resumed(tiny_checkpoint, photos, tmp_path):
    run = tmp_path / "camvid"
    shutil.copytree(tiny_checkpoint, run / "best")
    label(run, photos, tmp_path / "whole", "--min_confidence", "0.4")
    killed_at("turned", run, photos, tmp_path / "pseudo", "--min_confidence", "0.4")
    save_temperature(run / "best", 2.0)
    with pytest.raises(CheckpointError, match=r"unfinished run of pseudo_label with other settings \(checkpoint changed\)"):
        label(run, photos, tmp_path / "pseudo", "--min_confidence", "0.4")
    label(run, photos, tmp_path / "pseudo", "--min_confidence", "0.4", "--overwrite")
    label(run / "best", photos, tmp_path / "anew", "--min_confidence", "0.4")
    assert files_in(tmp_path / "pseudo") == files_in(tmp_path / "anew") != files_in(tmp_path / "whole")
    assert json.loads((tmp_path / "pseudo" / "report.json").read_text())["checkpoint"] == "camvid/best"


def test_interrupted_overwriting_is_resumed(tiny_checkpoint, photos, tmp_path, monkeypatch):
    """Killed while predicting: the old dataset is still there. Stopped while writing: nothing is predicted again."""
    label(tiny_checkpoint, photos, tmp_path / "whole", "--min_confidence", "0.4")
    output, more = tmp_path / "pseudo", ["--min_confidence", "0.4", "--overwrite"]
    label(tiny_checkpoint, photos, output, "--min_confidence", "0.3")
    before = files_in(output)
    killed_at("turned", tiny_checkpoint, photos, output, *more)
    assert before.items() < files_in(output).items() and (output / ".pseudo_label.work").is_dir()
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        patch.setattr(PseudoLabels, "_label_table", lambda self: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            label(tiny_checkpoint, photos, output, *more)
    assert seen == ["turned"]
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        label(tiny_checkpoint, photos, output, *more)
    assert seen == [] and files_in(output) == files_in(tmp_path / "whole")
    killed_at("c", tiny_checkpoint, photos, output, *more)
    with pytest.raises(RecipeError, match=r"--overwrite to replace it \(the run that was interrupted is then resumed"):
        label(tiny_checkpoint, photos, output, "--min_confidence", "0.4")
    # Predictions on another basis are forgotten.
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        label(tiny_checkpoint, photos, output, *more, "--flip")
    assert seen == ["a", "c", "turned"]


def test_interruption_while_the_dataset_is_written(tiny_checkpoint, photos, tmp_path, monkeypatch):
    """The dataset cannot be loaded half-written; the next run predicts nothing again."""
    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabels, "_label_table", lambda self: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            label(tiny_checkpoint, photos, tmp_path, "--min_confidence", "0.4")
    with pytest.raises(DataError, match=r"labels\.yaml is missing"):
        load_segmentation_dataset("folder", tmp_path, "train")
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        label(tiny_checkpoint, photos, tmp_path, "--min_confidence", "0.4")
    assert seen == [] and len(load_segmentation_dataset("folder", tmp_path, "train")) == 3


def test_no_dataset_is_overwritten_by_accident(tiny_checkpoint, photos, tmp_path):
    label(tiny_checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.4")
    before = files_in(tmp_path / "pseudo")
    with pytest.raises(RecipeError, match="holds a finished dataset of pseudo-labels"):
        label(tiny_checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.4")
    assert files_in(tmp_path / "pseudo") == before
    label(tiny_checkpoint, photos, tmp_path / "pseudo", "--min_confidence", "0.4", "--overwrite")
    assert files_in(tmp_path / "pseudo") == before

    (tmp_path / "own" / "train" / "images").mkdir(parents=True)
    (tmp_path / "own" / "labels.yaml").write_text("names: [a, b]")
    for more in ([], ["--overwrite"]):
        with pytest.raises(RecipeError, match="holds files that pseudo_label has not written"):
            label(tiny_checkpoint, photos, tmp_path / "own", *more)
    assert set(files_in(tmp_path / "own")) == {(tmp_path / "own" / "labels.yaml").relative_to(tmp_path / "own")}


def test_files_of_others_are_not_deleted(tiny_checkpoint, photos, tmp_path, monkeypatch):
    output, more = tmp_path / "pseudo", ["--min_confidence", "0.4", "--overwrite"]
    label(tiny_checkpoint, photos, output, *more)
    mine = output / "train" / "labels" / "mine.png"
    for name in ("images", "labels"):
        shutil.copy(photos / "a.png", output / "train" / name / "mine.png")
    (output / "train" / ".DS_Store").write_text("of the system")
    refusal = r"train is replaced, and holds files .* not written: images/mine\.png, labels/mine\.png\. Move them"
    before = files_in(output)
    with pytest.raises(RecipeError, match=refusal):
        label(tiny_checkpoint, photos, output, *more)
    assert files_in(output) == before

    # Added while the images are predicted: nothing is predicted again when they are gone.
    for name in ("images", "labels"):
        (output / "train" / name / "mine.png").unlink()
    with monkeypatch.context() as patch, pytest.raises(RecipeError, match=r"not written: labels/mine\.png"):
        write = Predictions.write
        patch.setattr(Predictions, "write", lambda *given: (write(*given), mine.write_text("mine")))
        label(tiny_checkpoint, photos, output, *more)
    assert mine.read_text() == "mine" and (output / "report.json").is_file()
    mine.unlink()
    with monkeypatch.context() as patch:
        seen = interrupt_at(patch, "")
        label(tiny_checkpoint, photos, output, *more)
    assert seen == []

    # Its own images, which it would delete before it copies them.
    with pytest.raises(RecipeError, match=r"a\.png.* would be deleted: .*train and report\.png are replaced"):
        label(tiny_checkpoint, output / "train" / "images", output, *more)

    # Its own sheet of examples, which is an image too.
    before = {path: path.read_bytes() for path in output.glob("*.*") if path.is_file()}
    with pytest.raises(RecipeError, match=r"report\.png would be deleted"):
        label(tiny_checkpoint, output, output, *more)
    assert before and all(path.read_bytes() == content for path, content in before.items())

    # A folder that somebody else has put there.
    (output / "val" / "images").mkdir(parents=True)
    (output / "val" / "images" / "x.png").write_text("mine")
    with pytest.raises(RecipeError, match=r"val is replaced, and holds files .* not written: images/x\.png"):
        label(tiny_checkpoint, photos, output, *more, "--split", "val")


def test_other_splits_keep_their_classes(tiny_checkpoint, photos, tmp_path, monkeypatch):
    other = with_other_classes(tiny_checkpoint, tmp_path / "other")
    output, more = tmp_path / "pseudo", ["--min_confidence", "0.4", "--overwrite"]
    label(tiny_checkpoint, photos, output, *more)
    train = files_in(output / "train")
    before = files_in(output)
    with pytest.raises(RecipeError, match=r"holds train as well, and labels\.yaml, .* has other classes than the checkpoint"):
        label(other, photos, output, *more, "--split", "more")
    assert files_in(output) == before

    # The label table stays while a split is added, so that the next run still compares the classes.
    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabels, "_examples", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            label(tiny_checkpoint, photos, output, *more, "--split", "more")
    with pytest.raises(RecipeError, match="has other classes than the checkpoint"):
        label(other, photos, output, *more, "--split", "more")
    label(tiny_checkpoint, photos, output, *more, "--split", "more")
    label(tiny_checkpoint, photos, output, *more)
    assert files_in(output / "train") == train
    for split in ("train", "more"):
        assert label_space_of(load_segmentation_dataset("folder", output, split)).names == tuple(NAMES)

    (output / "labels.yaml").unlink()
    (output / ".pseudo_label.work").mkdir()
    with pytest.raises(RecipeError, match=r"holds train as well, and labels\.yaml, .* is missing"):
        label(tiny_checkpoint, photos, output, *more, "--split", "more")
    shutil.rmtree(output / "train")
    label(other, photos, output, *more, "--split", "more")  # the only split may get other classes
    assert label_space_of(load_segmentation_dataset("folder", output, "more")).names == ("lorry", *NAMES[1:])


def test_images_that_cannot_be_used(tiny_checkpoint, photos, tmp_path, caplog):
    images = shutil.copytree(photos, tmp_path / "images")
    (images / "broken.png").write_bytes(b"no image")
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (images / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"3 of 6 images could not be read: .*broken\.png, .*gone\.png, .*loop\.png"):
        label(tiny_checkpoint, images, tmp_path / "pseudo", "--min_confidence", "0.4")
    assert caplog.text.count("skipped: Image") == 3 and "gone.png" in caplog.text
    assert len(load_segmentation_dataset("folder", tmp_path / "pseudo", "train")) == 3
    assert json.loads((tmp_path / "pseudo" / "report.json").read_text())["unreadable_images"] == [
        "broken.png",
        "gone.png",
        "loop.png",
    ]


def test_bad_input_is_named(tiny_checkpoint, photos, tmp_path, capsys):
    unsure = shutil.copytree(tiny_checkpoint, tmp_path / "unsure")
    save_temperature(unsure, 50.0)
    shutil.copytree(photos, tmp_path / "images")
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "A.bmp")
    for error, message, images, more in (
        (RecipeError, r"no class 'cart' \(did you mean car\?\)", photos, ["--class_confidence", "cart=0.5"]),
        (DataError, "would have one label map", tmp_path / "images", []),
        (RecipeError, "--split a/b", photos, ["--split", "a/b"]),
        (DataError, r"nothing to train on: give a lower --min_confidence \(the highest", photos, ["--min_confidence", "1"]),
    ):
        with pytest.raises(error, match=message):
            label(unsure, images, tmp_path / "out", *more)
    with pytest.raises(SystemExit):
        label(tiny_checkpoint, photos, tmp_path / "out", "--class_confidence", "car")
    assert "car is not CLASS=CONFIDENCE" in capsys.readouterr().err
    for names, message in ((["a"], "2 to 255 classes"), (["a", "b", "a"], "called 'a'")):
        with pytest.raises(CheckpointError, match=message):
            check_classes(names)


def test_few_labels_are_said(tmp_path, capsys):
    report = {"classes": [], "pixels": 1000, "kept": 99, "images": 2, "temperature": 1.5, "images_without_a_sure_pixel": []}
    print_report(tmp_path, report)
    assert "only 9.9 % of the pixels have labels: a lower --min_confidence keeps more" in capsys.readouterr().out
    print_report(tmp_path, {**report, "kept": 100})
    assert "have labels" not in capsys.readouterr().out


def test_a_very_wide_image(tiny_checkpoint, tmp_path):
    """Its row in the sheet of examples has at least one pixel."""
    (tmp_path / "wide").mkdir()
    Image.effect_noise((3000, 1), 90).convert("RGB").save(tmp_path / "wide" / "wide.png")
    label(tiny_checkpoint, tmp_path / "wide", tmp_path / "out", "--class_share", "0.02")
    assert (tmp_path / "out" / "report.png").is_file() and (tmp_path / "out" / "labels.yaml").is_file()
