"""Training end to end on drawn scenes: it learns, leaves the backbone alone, can be killed, and says what is wrong."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import revhrnet_hf
from revhrnet_hf.cli import run
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError, TrainingError
from revhrnet_hf.evaluation import SegmentationMetric, load_checkpoint, predict_label_maps
from revhrnet_hf.io import lock_file
from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training import processes
from revhrnet_hf.training.data import load_split
from revhrnet_hf.training.output_dir import claim_output_dir
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.sampler import EpochBatches
from revhrnet_hf.training.trainer import Stage
from revhrnet_hf.viz.figures import colourise, legend

from .. import forked

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is a matter of x86 processors")
def test_slow_bf16_is_said(monkeypatch, caplog):
    said = torch.backends.cpu.get_cpu_capability() in processes.NO_FAST_BF16
    assert said != torch.ops.mkldnn._is_mkldnn_bf16_supported(), "oneDNN, which computes it, must be of the same opinion"
    alone = SimpleNamespace(num_processes=1, is_main_process=True, device=torch.device("cpu"))
    monkeypatch.setattr(processes, "Accelerator", lambda **_: alone)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for capability, precision, warned in [("AVX2", "bf16", True), ("AVX2", "no", False), ("AVX512", "bf16", False)]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)  # noqa: B023
        caplog.clear()
        processes.start_processes(Recipe(dataset="camvid", precision=precision))
        assert ("`--precision no`" in caplog.text) == warned


@pytest.fixture(scope="module")
def mini_camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, {"train": 10, "val": 3}, size=(96, 128))
    return folder


@pytest.fixture
def recipe(weights):
    return Recipe(
        dataset="camvid",
        variant="w18",
        backbone="test_resnet",
        backbone_weights=str(weights),
        num_modules=[1, 1, 1],
        num_blocks=1,
        head="concat",
        initializer="he",
        batch_norm_momentum=0.1,
        crop_size=[64, 96],
        base_size=128,
        epochs=3,
        batch_size=4,
        learning_rate=0.05,
        num_workers=0,
        log_every=1,
        trackers=[],
    )


@pytest.mark.parametrize("eval_at_start", [True, False])
def test_an_evaluation_split_without_a_labelled_pixel_is_an_error(recipe, mini_camvid, tmp_path, eval_at_start):
    data = tmp_path / "camvid"
    shutil.copytree(mini_camvid, data)
    for file in (data / "valannot").glob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 11)).save(file)
    recipe.epochs, recipe.eval_at_start = 1, eval_at_start
    with pytest.raises(DataError, match="camvid:val: no pixel of its 3 label maps has a class"):
        Stage(recipe, data, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_learns_and_leaves_the_backbone_alone(recipe, mini_camvid, weights, log_of, tmp_path, capsys):
    recipe.eval_at_start, recipe.epochs, recipe.trackers = True, 8, ["tensorboard"]
    scores = Stage(recipe, mini_camvid, tmp_path).run()
    log = log_of(tmp_path)
    evaluations = [line for line in log if "mean_iou" in line]
    losses = [line["loss"] for line in log if "loss" in line]
    assert [line["epoch"] for line in evaluations] == list(range(9))
    assert [line["epoch"] for line in log if "loss" in line] == [1 + step // 2 for step in range(16)]
    ends = [line for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "epoch_seconds" in line]
    assert [line["epoch"] for line in ends] == list(range(1, 9))
    assert evaluations[-1]["mean_iou"] == scores["mean_iou"] > 2 * evaluations[0]["mean_iou"]
    assert losses[-1] < losses[0] / 1.5
    rates = [line["learning_rate"] for line in log if "loss" in line]
    assert rates == [pytest.approx(0.05 * (1 - step / 16) ** 0.9) for step in range(16)]

    last, best = (load_file(tmp_path / name / "model.safetensors") for name in ("last", "best"))
    backbone = {k: v for k, v in last.items() if ".backbone." in k}
    given = load_file(weights)
    for name, tensor in backbone.items():
        assert torch.equal(tensor, given[name.removeprefix("revhrnet.backbone._backbone.")]), name
    assert len(backbone) > 20
    assert best.keys() == last.keys()
    best_scores = json.loads((tmp_path / "best" / "scores.json").read_text())
    assert best_scores["mean_iou"] == max(line["mean_iou"] for line in evaluations)
    assert Recipe.from_yaml(tmp_path / "best" / "recipe.yaml") == recipe
    assert json.loads((tmp_path / "best" / "versions.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    model = revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "best")
    assert model.config.id2label[3] == "Road"
    assert model.config.palette[3] == [128, 64, 128]
    assert "Bicyclist" in capsys.readouterr().out


def test_same_recipe_same_result(recipe, mini_camvid, log_of, tmp_path):
    """Bit for bit, with the images loaded by workers or not."""
    for name, recipe.num_workers in (("a", 0), ("b", 2)):
        stage = Stage(recipe, mini_camvid, tmp_path / name)
        assert stage.data.loader.num_workers == recipe.num_workers
        stage.run()
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    a, b = (load_file(tmp_path / name / "last" / "model.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_killed_and_resumed(recipe, mini_camvid, log_of, tmp_path):
    """A run that is killed in the third epoch and resumed ends with the weights, optimizer and log of one that was not."""
    recipe.epochs, recipe.num_workers, recipe.ema_decay = 5, 1, 0.9
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    paths = ["--recipe", tmp_path / "recipe.yaml", "--data_dir", mini_camvid, "--output_dir"]
    command = [sys.executable, SCRIPTS / "run_seg.py", *paths]
    forked.run([*command, tmp_path / "whole"], check=True, capture_output=True)

    process = forked.Popen([*command, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"epoch": 3, "step": 5' in log.read_text()):
        assert time.monotonic() < deadline, "the run never came to its third epoch"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = json.loads((tmp_path / "killed" / "last" / "training_state.json").read_text())
    assert 2 <= state["epoch"] < 5

    refused = forked.run([*command, tmp_path / "killed"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "already holds a run" in refused.stderr.splitlines()[-1]
    forked.run([*command, tmp_path / "killed", "--resume"], check=True, capture_output=True)

    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    for file in ("model.safetensors", "optimizer.safetensors", "averaged.safetensors"):
        resumed, whole = (load_file(tmp_path / run / "last" / file) for run in ("killed", "whole"))
        assert resumed.keys() == whole.keys()
        assert all(torch.equal(resumed[name], whole[name]) for name in whole), file
    again = forked.run([*command, tmp_path / "killed", "--resume"], capture_output=True, text=True)
    assert again.returncode == 0
    assert "is finished" in again.stdout


def test_average_of_the_weights(recipe, mini_camvid, tmp_path):
    """The closed formula: from the second step on it keeps the smaller of the decay and (1 + steps) / (10 + steps)."""
    recipe.ema_decay, recipe.epochs = 0.26, 2
    stage = Stage(recipe, mini_camvid, tmp_path)
    weight = "head.3.bias"
    seen = []
    update = stage.learner.averaged.update_parameters
    stage.learner.averaged.update_parameters = lambda model: (seen.append(model.state_dict()[weight].clone()), update(model))
    stage.run()
    assert len(seen) == 4
    expected = seen[0]
    for step, weights in zip((2, 3, 4), seen[1:], strict=True):
        kept = min(0.26, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weights
    torch.testing.assert_close(stage.learner.averaged.module.state_dict()[weight], expected)
    torch.testing.assert_close(load_file(tmp_path / "last" / "averaged.safetensors")["module." + weight], expected)
    assert torch.equal(load_file(tmp_path / "last" / "model.safetensors")[weight], seen[3])
    best = load_file(tmp_path / "best" / "model.safetensors")[weight]
    assert not any(torch.equal(best, weights) for weights in seen)


def test_the_card_shows_predictions_and_no_image(recipe, mini_camvid, tmp_path):
    """Not one pixel of a dataset's images or annotations is in what is made to be passed on; it is drawn once a save."""
    recipe.epochs, recipe.ema_decay = 1, 0.5
    stage = Stage(recipe, mini_camvid, tmp_path)
    draw, drawn = stage.evaluation.draw_for_card, []
    stage.evaluation.draw_for_card = lambda: drawn.append(draw()) or drawn[-1]
    stage.run()
    assert len(drawn) == 1
    shown = Image.open(tmp_path / "best" / "example.png").convert("RGB")
    assert np.array_equal(shown, Image.open(tmp_path / "last" / "example.png").convert("RGB"))

    dataset = load_segmentation_dataset("camvid", mini_camvid, "val")
    space, images = label_space_of(dataset), list(dataset["image"])
    predicted = predict_label_maps(*load_checkpoint(tmp_path / "best"), images)
    panels = [colourise(x, space.colours).resize((320, 240), Image.Resampling.NEAREST) for x in predicted]
    gap = np.full((240, 4, 3), 255)
    expected = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    assert np.array_equal(np.asarray(shown)[:240], expected)
    present = sorted(set(np.unique(predicted)))
    legend_below = legend(space.names, space.colours, present, width=shown.width, font_size=16)
    assert np.array_equal(np.asarray(shown)[240:], legend_below)
    for name in ("best", "last"):
        assert "(example.png)\n\n*Predictions on images of the split" in (tmp_path / name / "README.md").read_text()


def test_what_is_drawn_is_not_predicted_again(recipe, mini_camvid, tmp_path):
    recipe.epochs, recipe.trackers, recipe.log_images = 1, ["tensorboard"], 2
    stage, runs = Stage(recipe, mini_camvid, tmp_path), []
    stage.learner.scored_network.register_forward_pre_hook(lambda model, _: None if model.training else runs.append(model))
    stage.run()
    assert len(runs) == len(stage.evaluation.dataset) == 3
    assert sorted(stage.evaluation.shown) == [0, 1, 2]


def test_a_report_lies_beside_the_checkpoint(recipe, mini_camvid, tmp_path, caplog):
    """It shows the last evaluation; where it cannot be written, that is said and training continues."""
    recipe.epochs = 2
    stage, written = Stage(recipe, mini_camvid, tmp_path), []
    write = stage.evaluation.write_report

    def write_and_keep(*arguments):
        write(*arguments)
        written.append((tmp_path / "report.html").read_text(encoding="utf-8"))
        if len(written) == 1:  # somebody takes the name between two evaluations
            (tmp_path / "report.html").write_text("notes")

    stage.evaluation.write_report = write_and_keep
    scores = stage.run()
    [first, notes] = written
    assert notes == "notes" == (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is no report of this program" in caplog.text and "training continues" in caplog.text
    assert "1 of 2, after step 2" in first and "CamVid" in first and "For yourself" in first
    assert f"{tmp_path}/best" in first and "batch_norm_momentum: 0.1" in first
    assert first.count("data:image/jpeg") == 6  # of three images the worst and the best

    (tmp_path / "report.html").unlink()
    write(tmp_path, scores, stage.state)
    assert f"<b>{100 * scores['mean_iou']:.1f} %</b>" in (tmp_path / "report.html").read_text(encoding="utf-8")

    dataset = load_segmentation_dataset("camvid", mini_camvid, "val")
    images, truth = list(dataset["image"]), [np.array(label_map) for label_map in dataset["label_map"]]
    predicted = predict_label_maps(stage.learner.scored_network, stage.learner.image_processor, images)
    expected = []
    for label_map, reference in zip(predicted, truth, strict=True):
        counts = SegmentationMetric(label_space_of(dataset).num_classes)
        expected.append(counts.compute(predictions=[label_map], references=[reference])["mean_iou"])
    np.testing.assert_allclose(stage.evaluation.mean_ious, expected, atol=1e-6)


def test_a_damaged_log_costs_the_report_only(recipe, mini_camvid, tmp_path, caplog):
    recipe.epochs = 1
    stage = Stage(recipe, mini_camvid, tmp_path)
    write = stage.evaluation.write_report

    def damage_and_write(*arguments):
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write("{not JSON\n")
        write(*arguments)

    stage.evaluation.write_report = damage_and_write
    assert "mean_iou" in stage.run()
    assert "report.html was not written, and training continues" in caplog.text and not (tmp_path / "report.html").exists()


def test_images_resized_for_the_network(recipe, mini_camvid, tmp_path):
    """With `eval_size` the checkpoint's own processor resizes, and scores are still those of native label maps."""
    recipe.epochs, recipe.eval_size = 1, 64  # of 96×128 images
    logged = Stage(recipe, mini_camvid, tmp_path).run()
    model = revhrnet_hf.RevHRNetForSemanticSegmentation.from_pretrained(tmp_path / "best")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "best")
    metric = SegmentationMetric(num_labels=11, ignore_index=255)
    for row in load_segmentation_dataset("camvid", mini_camvid, "val"):
        inputs = processor(row["image"], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 48, 64)
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(model(**inputs).logits, (96, 128), mode="bilinear")
        metric.add(prediction=logits.argmax(1)[0].numpy(), reference=np.array(row["label_map"]))
    assert metric.compute()["mean_iou"] == logged["mean_iou"]


def test_label_space_and_columns_reach_the_dataset(mini_camvid, tmp_path):
    camvid = load_segmentation_dataset("camvid", mini_camvid, "train")
    raw = camvid.cast_column("label_map", datasets.Image()).rename_columns({"image": "photo", "label_map": "mask"})
    raw.save_to_disk(tmp_path / "saved")
    (tmp_path / "table.yaml").write_text(f"names: {list('abcdefghijkl')}\n")
    recipe = Recipe(dataset="hub", label_space=str(tmp_path / "table.yaml"), image_column="photo", label_column="mask")
    loaded = load_split(recipe, tmp_path / "saved", "train")
    assert label_space_of(loaded).names == tuple("abcdefghijkl")
    for row, expected in zip(loaded, raw, strict=True):
        assert row["image"].tobytes() == expected["photo"].tobytes()
        assert row["label_map"].tobytes() == expected["mask"].tobytes()


class TestOrder:
    def batches(self, process_index=0, passes=1, num_processes=1, epoch=0):
        order = EpochBatches(23, 6, passes, num_processes, process_index, seed=1)
        order.epoch = epoch
        return list(order)

    def test_each_image_at_most_once(self):
        epoch = [i for batch in self.batches() for i in batch]
        assert len(epoch) == 18  # 3 steps of 6; 5 images are left over
        assert len(set(epoch)) == 18
        assert set(epoch) <= set(range(23))
        assert epoch != [i for batch in self.batches(epoch=1) for i in batch]
        assert epoch == [i for batch in self.batches() for i in batch]

    def test_processes_and_passes_share_the_same_steps(self):
        steps = [sorted(batch) for batch in self.batches()]
        for passes, num_processes in ((1, 2), (3, 2), (2, 1), (1, 6)):
            shares = [self.batches(p, passes, num_processes) for p in range(num_processes)]
            for step, expected in enumerate(steps):
                parts = [share[step * passes + k] for share in shares for k in range(passes)]
                assert sorted(i for part in parts for i in part) == expected

    def test_refused(self):
        with pytest.raises(RecipeError, match="batch_size 6 cannot be split evenly over 4 processes"):
            EpochBatches(23, 6, 1, 4, 0, seed=0)
        with pytest.raises(RecipeError, match="batch_size 6 is more than the 5 images"):
            EpochBatches(5, 6, 1, 1, 0, seed=0)


def test_resuming_loads_no_image_that_was_seen():
    for passes, num_processes in ((1, 1), (3, 2)):
        order = EpochBatches(23, 6, passes, num_processes, num_processes - 1, seed=1)
        order.start_at(4, 0)
        all_of_it = list(order)
        order.start_at(4, 2)
        assert list(order) == all_of_it[2 * passes :]
        assert len(order) == passes
        assert order.images(2, 0)[-6 // (passes * num_processes) :] == all_of_it[2 * passes]


def test_ends_early(recipe, mini_camvid, tmp_path, monkeypatch, capsys):
    """Two evaluations in a row without a better mIoU end it; resuming needs more patience."""
    mean_ious = iter([0.1, 0.3, 0.2, 0.3, 0.4, 0.0])
    evaluate = Stage.evaluate
    monkeypatch.setattr(Stage, "evaluate", lambda self, epoch: {**evaluate(self, epoch), "mean_iou": next(mean_ious)})
    recipe.epochs, recipe.early_stopping_patience = 6, 2
    Stage(recipe, mini_camvid, tmp_path).run()
    state = json.loads((tmp_path / "last" / "training_state.json").read_text())
    assert (state["epoch"], state["best_mean_iou"], state["evaluations_since_best"]) == (4, 0.3, 2)
    assert json.loads((tmp_path / "best" / "scores.json").read_text())["epoch"] == 2
    assert Stage(recipe, mini_camvid, tmp_path, resume=True).run() is None
    assert "is finished: 4 of 6 epochs" in capsys.readouterr().out
    recipe.early_stopping_patience = 3
    assert Stage(recipe, mini_camvid, tmp_path, resume=True).run() is not None
    assert json.loads((tmp_path / "best" / "scores.json").read_text())["epoch"] == 5


def test_a_finished_run_is_not_locked(recipe, mini_camvid, tmp_path):
    recipe.epochs = 1
    Stage(recipe, mini_camvid, tmp_path).run()
    again = Stage(recipe, mini_camvid, tmp_path, resume=True)
    assert again.run() is None
    assert again.lock.closed


def test_loss_is_that_of_the_whole_step(recipe, mini_camvid, tmp_path):
    """Passes with unlike pixels (padding, class weights) learn what one pass over all their images would, BatchNorm aside."""
    recipe.gradient_accumulation_steps, recipe.weight_decay = 2, 0.0
    recipe.class_weights = [1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0]
    stage = Stage(recipe, mini_camvid, tmp_path)
    stage.learner.model.eval()  # statistics of BatchNorm are those of a pass
    passes = next(stage.data.steps())
    passes[0]["labels"][:, 10:] = 255
    whole = stage.learner.model(**{name: torch.cat([batch[name] for batch in passes]) for name in passes[0]}).loss
    weight = stage.learner.model.head[3].weight
    (gradient,) = torch.autograd.grad(whole, weight)
    before = weight.detach().clone()
    stage.train_step(passes)
    assert stage.meter.losses[-1].sum().item() == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close((before - weight.detach()) / recipe.learning_rate, gradient, rtol=1e-3, atol=1e-5)


def test_passes_with_ohem_count_alike(recipe, mini_camvid, tmp_path):
    """With OHEM the step's loss is the mean of its passes' losses, however many pixels each has labels for."""
    recipe.gradient_accumulation_steps, recipe.weight_decay = 2, 0.0
    recipe.ohem_threshold, recipe.ohem_min_kept = 0.9, 10
    stage = Stage(recipe, mini_camvid, tmp_path)
    stage.learner.model.eval()  # statistics of BatchNorm are those of a pass
    torch.nn.init.normal_(stage.learner.model.head[3].weight)
    passes = next(stage.data.steps())
    passes[0]["labels"][:, 4:] = 255
    losses = [stage.learner.model(**batch).loss for batch in passes]
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-2)
    weight = stage.learner.model.head[3].weight
    mean = (losses[0] + losses[1]) / 2
    (gradient,) = torch.autograd.grad(mean, weight)
    before = weight.detach().clone()
    stage.train_step(passes)
    assert stage.meter.losses[-1].sum().item() == pytest.approx(mean.item(), rel=1e-5)
    torch.testing.assert_close((before - weight.detach()) / recipe.learning_rate, gradient, rtol=1e-3, atol=1e-5)


def test_gradients_are_clipped(recipe, mini_camvid, tmp_path):
    """A first step of SGD is as long as learning rate × the clipped norm."""
    recipe.max_grad_norm, recipe.weight_decay, recipe.epochs = 0.01, 0.0, 1
    stage = Stage(recipe, mini_camvid, tmp_path)
    before = [parameter.detach().clone() for parameter in stage.learner.model.parameters()]
    stage.learner.model.train()
    stage.train_step(next(stage.data.steps()))
    moved = [parameter.detach() - old for parameter, old in zip(stage.learner.model.parameters(), before, strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.05 * 0.01, rel=1e-3)
    assert stage.learner.grad_norm > 0.01


def test_options_together(recipe, mini_camvid, weights, tmp_path):
    """A backbone in bfloat16 under autocast with checkpointing, warm-up and an average: what is saved is float32, to the bit."""
    recipe.precision, recipe.backbone_dtype, recipe.recompute = "no", "bfloat16", "modules"
    recipe.epochs, recipe.warmup_steps, recipe.ema_decay, recipe.decay_norm_and_bias = 1, 3, 0.9, False
    scores = Stage(recipe, mini_camvid, tmp_path).run()
    assert scores["labelled_pixels"] > 0
    given = load_file(weights)
    for name in ("last", "best"):
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == "float32"
        saved = load_file(tmp_path / name / "model.safetensors")
        backbone = {k.removeprefix("revhrnet.backbone._backbone."): v for k, v in saved.items() if ".backbone." in k}
        assert len(backbone) > 20
        assert all(torch.equal(tensor, given[key]) for key, tensor in backbone.items())


@pytest.mark.slow
def test_compiled(recipe, mini_camvid, log_of, monkeypatch, tmp_path):
    """The same losses, but for rounding; the checkpoint has the same names. Without the minutes of the compiler of C++."""
    torch._dynamo.reset()
    compile_module = torch.nn.Module.compile
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: (calls.append(self), compile_module(self, backend="aot_eager")))
    recipe.epochs = 1
    for name, recipe.torch_compile in (("plain", False), ("compiled", True)):
        recipe.ema_decay = 0.9
        Stage(recipe, mini_camvid, tmp_path / name).run()
    assert len(calls) == 1
    plain, compiled = ([line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-3)
    plain, compiled = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()


@pytest.mark.slow
def test_adapters_compiled(recipe, mini_camvid, log_of, monkeypatch, tmp_path):
    """LoRA in a compiled network, saved beside the next steps: losses, scores and adapters are the plain ones but for rounding,
    also of a run that is resumed. Scores are those of the merged network."""
    torch._dynamo.reset()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    recipe.backbone, recipe.backbone_weights = "test_vit", "random"
    recipe.trainable_backbone, recipe.lora_rank, recipe.freeze_backbone, recipe.epochs = "lora", 2, False, 2
    scores = {"plain": Stage(recipe, mini_camvid, tmp_path / "plain").run()}
    recipe.torch_compile = recipe.save_in_background = True
    train_step, stops = Stage.train_step, []

    def stop_once(self, passes):
        if self.state.step == 2 and not stops:
            stops.append(2)
            raise OSError("stopped")
        return train_step(self, passes)

    monkeypatch.setattr(Stage, "train_step", stop_once)
    recipe.save_every = 1
    with pytest.raises(OSError, match="stopped"):
        Stage(recipe, mini_camvid, tmp_path / "compiled").run()
    scores["compiled"] = Stage(recipe, mini_camvid, tmp_path / "compiled", resume=True).run()
    assert scores["compiled"]["mean_iou"] == pytest.approx(scores["plain"]["mean_iou"], rel=0.01)
    plain, compiled = ([line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in scores)
    assert compiled == pytest.approx(plain, rel=1e-3)
    plain, compiled = (load_file(tmp_path / name / "last" / "lora.safetensors") for name in scores)
    assert plain.keys() == compiled.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-2, atol=1e-3)


def test_worker_that_dies(recipe, mini_camvid, tmp_path):
    """As the kernel kills it when memory is short: the run ends and says so."""
    recipe.num_workers = 1
    stage = Stage(recipe, mini_camvid, tmp_path)

    def killed(index):
        os.kill(os.getpid(), signal.SIGKILL)

    stage.data.samples._read = killed
    with pytest.raises(TrainingError, match=r"A process that loads images died .*DataLoader worker .*num_workers is 1"):
        stage.run()


def test_worker_that_hangs(recipe, mini_camvid, tmp_path):
    recipe.num_workers = 1
    stage = Stage(recipe, mini_camvid, tmp_path, timeout=2)
    stage.data.samples._read = lambda index: time.sleep(60)
    with pytest.raises(TrainingError, match="answered nothing for 2 s: DataLoader timed out"):
        stage.run()


def test_unwritable_folder(recipe):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if user == 0:  # who may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(CheckpointError, match=rf"Cannot write to the output folder {folder}: Permission denied"):
                claim_output_dir(Path(folder), recipe, resume=False, overwrite=False)
        finally:
            os.seteuid(user)


class TestBadInput:
    def test_loss_that_is_no_number(self, recipe, mini_camvid, tmp_path):
        recipe.learning_rate = 1e30
        said = r"The loss is (nan|inf) in step 2 of 6 \(epoch 1, learning rate 8\.49e\+29\), on the images (\w+, ){3}\w+\."
        with pytest.raises(TrainingError, match=said):
            Stage(recipe, mini_camvid, tmp_path).run()
        assert not (tmp_path / "last").exists()

    def test_nothing_is_written_before_all_is_known(self, recipe, mini_camvid, tmp_path):
        output_dir = tmp_path / "out"
        for field, value, said in (
            ("dataset", "camvit", "Unknown dataset: 'camvit' .did you mean camvid..; known: camvid"),
            ("eval_split", "test", "no split 'test'"),
            ("backbone", "resnet5o", "Unknown model"),
            ("backbone_weights", None, "Cannot fetch"),
            ("backbone_weights", "nothing.pth", "No backbone weights at nothing.pth"),
            ("variant", "w64", "known are w18, w32, w48"),
            ("num_modules", [1, 1], "num_modules must have one entry fewer"),
            ("class_weights", [1.0], "class_weights must have one value a class: it has 1, and 'camvid11' has 11 classes"),
            ("batch_size", 64, "more than the 10 images"),
        ):
            broken = Recipe(**{**vars(recipe), field: value})
            with pytest.raises((DataError, RecipeError), match=said):
                Stage(broken, mini_camvid, output_dir)
            assert not output_dir.exists(), field

    def test_the_old_run_stays_where_the_new_one_cannot_begin(self, recipe, mini_camvid, tmp_path, monkeypatch):
        """Nor does its folder stay locked."""
        output_dir, bank = tmp_path / "out", tmp_path / "bank"
        recipe.epochs = 1
        Stage(recipe, mini_camvid, output_dir).run()
        bank.mkdir()
        (bank / "bank.json").write_text("{}")
        before = {path: path.is_file() and path.read_bytes() for path in output_dir.rglob("*")}
        monkeypatch.setitem(sys.modules, "torchao.optim", None)
        locks = []
        monkeypatch.setattr("revhrnet_hf.training.output_dir.lock_file", lambda path: locks.append(lock_file(path)) or locks[-1])
        for settings, error, said in (
            ({"trainable_backbone": "all", "layer_decay": 0.75}, RecipeError, "layer_decay is for plain vision transformers"),
            ({"optimizer": "adamw8bit"}, RecipeError, "adamw8bit needs torchao"),
            ({"feature_bank": 1, "epochs": 2}, CheckpointError, "holds other maps than this run's"),
        ):
            changed = Recipe(**{**vars(recipe), **settings})
            bank_dir = bank if "feature_bank" in settings else None
            with pytest.raises(error, match=said):
                Stage(changed, mini_camvid, output_dir, overwrite=True, bank_dir=bank_dir)
            assert {path: path.is_file() and path.read_bytes() for path in output_dir.rglob("*")} == before
        assert [lock.closed for lock in locks] == [True] * 3

    @pytest.mark.parametrize("num_workers", [0, 1])
    @pytest.mark.parametrize("fault", ["truncated image", "truncated label map", "unknown id"])
    def test_bad_file_in_the_middle(self, recipe, mini_camvid, tmp_path, capsys, num_workers, fault):
        """One line that names the file, also out of a loader's worker; no checkpoint, so that the folder is free again."""
        import numpy as np
        import PIL.Image

        data_dir, output_dir = tmp_path / "data", tmp_path / "out"
        shutil.copytree(mini_camvid, data_dir)
        folder = "train" if fault == "truncated image" else "trainannot"
        path = data_dir / folder / "mini_train_00004.png"
        if fault == "unknown id":
            ids = np.array(PIL.Image.open(path))
            ids[3, 5] = 77
            PIL.Image.fromarray(ids).save(path)
        else:
            path.write_bytes(path.read_bytes()[:-400])
        recipe.num_workers, recipe.batch_size = num_workers, 10
        with pytest.raises(SystemExit) as stop:
            run(lambda: Stage(recipe, data_dir, output_dir).run())
        assert stop.value.code == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "error: " in said
        assert str(path) in said
        assert fault != "unknown id" or "77" in said
        assert not (output_dir / "last").exists()
        shutil.rmtree(data_dir)
        shutil.copytree(mini_camvid, data_dir)
        recipe.epochs = 1
        Stage(recipe, data_dir, output_dir).run()

    def test_resume_with_another_recipe(self, recipe, mini_camvid, tmp_path):
        recipe.epochs = 1
        Stage(recipe, mini_camvid, tmp_path).run()
        recipe.learning_rate = 0.01
        with pytest.raises(CheckpointError, match=r"learning_rate was 0\.05, is 0\.01"):
            Stage(recipe, mini_camvid, tmp_path, resume=True)
