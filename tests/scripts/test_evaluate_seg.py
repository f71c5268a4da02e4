"""The command as a user gives it, on a CamVid of six small pictures; scores against torchmetrics and the pipeline."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, pipeline

from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_seg.py"
SPACE = get_label_space("camvid11")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("evaluate_seg", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    given = [checkpoint, "--dataset", "camvid", "--data_dir", camvid, "--device", "cpu", "--num_workers", "0", *more]
    return list(map(str, given))


def test_scores_are_those_of_pipeline_and_torchmetrics(script, checkpoint, camvid, tmp_path, capsys):
    output = tmp_path / "scores.json"
    script.main(arguments(checkpoint, camvid, "--output", output))
    record = json.loads(output.read_text(encoding="utf-8"))

    segment = pipeline("image-segmentation", model=str(checkpoint), device="cpu")
    expected = torch.zeros(11, 11, dtype=torch.int64)
    for picture in sorted((camvid / "val").iterdir()):
        prediction = torch.empty(36, 52, dtype=torch.int64)
        for part in segment(str(picture)):
            prediction[torch.from_numpy(np.array(part["mask"])) == 255] = SPACE.label2id[part["label"]]
        reference = torch.from_numpy(np.array(PIL.Image.open(camvid / "valannot" / picture.name))).long()
        expected += multiclass_confusion_matrix(prediction, reference, 11, ignore_index=11)
    assert record["confusion_matrix"] == expected.tolist()
    assert record["scores"]["overall_accuracy"] == pytest.approx((expected.trace() / expected.sum()).item(), rel=1e-6)
    assert record["class_names"] == list(SPACE.names)
    assert record["pictures"] == 6
    assert (record["dataset"], record["split"]) == ("camvid", "val")
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]

    printed = capsys.readouterr().out
    assert f"{100 * record['scores']['mean_iou']:.2f}" in printed
    assert "pictures: 6" in printed
    assert all(name in printed for name in SPACE.names)


def test_same_pictures_stored_elsewhere_give_the_same(script, checkpoint, camvid, tmp_path):
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
        script.main(arguments(checkpoint, camvid, "--output", tmp_path / "scores.json", *given))
        record = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
        assert record["label_space"] == "camvid11"
        matrices.append(record["confusion_matrix"])
    assert matrices[0] == matrices[1] == matrices[2]


def test_scores_lie_beside_the_checkpoint_by_default(script, checkpoint, camvid):
    script.main(arguments(checkpoint, camvid))
    text = (checkpoint / "scores_camvid_val.json").read_text(encoding="utf-8")
    assert json.loads(text)["checkpoint"] == checkpoint.name
    assert str(checkpoint.parent) not in text


def test_bad_input_is_named(script, checkpoint, camvid, tmp_path):
    five = save_checkpoint(tmp_path / "five", dict(enumerate("abcde")))
    other = save_checkpoint(tmp_path / "other", {**SPACE.id2label, 3: "Motorway"})
    for error, message, given in (
        (CheckpointError, r"5 classes \(a, b, c, d …\), but camvid has 11 \(Sky", arguments(five, camvid)),
        (CheckpointError, "class 3 is 'Motorway' in the checkpoint, but 'Road'", arguments(other, camvid)),
        (CheckpointError, "there is no checkpoint folder", arguments(tmp_path / "absent", camvid)),
        (DataError, "does not exist", arguments(checkpoint, tmp_path / "absent")),
        (DataError, "no split 'test'", arguments(checkpoint, camvid, "--split", "test")),
        (RecipeError, "there is no folder .*absent", arguments(checkpoint, camvid, "--output", tmp_path / "absent/x")),
        (RecipeError, "--num_workers -1", arguments(checkpoint, camvid, "--num_workers", "-1")),
    ):
        with pytest.raises(error, match=message):
            script.main(given)


def test_an_error_is_one_line_and_status_1(checkpoint, camvid, tmp_path):
    output = tmp_path / "scores.json"
    command = [sys.executable, SCRIPT, *arguments(checkpoint, tmp_path / "absent", "--output", output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: ")
    assert "\n" not in done.stderr.strip()
    assert done.stdout == ""
    assert not output.exists()


@pytest.mark.slow
def test_two_processes_give_the_same_digits(script, checkpoint, camvid, tmp_path):
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    script.main(arguments(checkpoint, camvid, "--output", alone))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    command += arguments(checkpoint, camvid, "--output", together)
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (alone, together))
    assert two["settings"].pop("num_processes") == 2
    assert one["settings"].pop("num_processes") == 1
    assert one == two
