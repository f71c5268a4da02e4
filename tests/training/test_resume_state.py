"""What a run knows when it is saved, it knows again when it is resumed; each part of its state by itself."""

import json
import shutil
from dataclasses import fields

import pytest
import torch

from revhrnet_hf.training.checkpoint import TrainingState
from revhrnet_hf.training.checkpoint_files import write_checksums
from revhrnet_hf.training.evaluation_hook import note_scores
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.trainer import Stage

SCORES = {"mean_iou": 0.625, "mean_accuracy": 0.75, "overall_accuracy": 0.875}


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        dataset="camvid",
        variant="w18",
        backbone="test_resnet",
        backbone_weights="random",
        num_modules=[1, 1, 1],
        num_blocks=1,
        initializer="he",
        crop_size=[32, 48],
        base_size=64,
        epochs=4,
        batch_size=2,
        learning_rate=0.05,
        num_workers=0,
        trackers=[],
        on_bad_sample="skip",
        ema_decay=0.5,
        decay_norm_and_bias=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "run"


@pytest.fixture(scope="module")
def saved(recipe, streets, folder):
    """A stage that has done three steps of its second epoch, and is saved."""
    stage = Stage(recipe, streets, folder)
    stage.log.start({})
    stage.learner.model.train()
    for _, passes in zip(range(3), stage.data.steps(), strict=False):
        stage.train_step(passes)
    stage.state.epoch, stage.state.step = 1, 8
    stage.state.best_mean_iou, stage.state.evaluations_since_best, stage.state.seconds = 0.5, 2, 1000.0
    stage._write(0, {"loss": 1.5})
    stage.data.samples.bad[[2, 7]] = 1
    stage.save()
    stage.lock.close()
    return stage


@pytest.fixture
def stage(saved, recipe, streets, folder):
    """The run resumed."""
    return Stage(recipe, streets, folder, resume=True)


def test_state(stage, saved):
    state = stage.state
    assert {setting.name for setting in fields(TrainingState)} == vars(state).keys()
    assert vars(state) == vars(saved.state)
    assert (state.epoch, state.step, state.best_mean_iou, state.evaluations_since_best) == (1, 8, 0.5, 2)
    assert (state.log_lines, state.bad_images, len(state.losses)) == (1, [2, 7], 3)
    assert state.seconds > 1000


def test_bad_images_are_remembered_and_said_once(stage, caplog):
    assert stage.data.samples.bad.nonzero().flatten().tolist() == [2, 7]
    assert stage.data.gather_bad(stage.state.bad_images) == [2, 7] == stage.state.bad_images
    assert caplog.messages == []  # they are no news
    stage.data.samples.bad[4] = 1
    assert stage.data.gather_bad(stage.state.bad_images) == [2, 4, 7]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "3 of 10 training images cannot be used and are skipped"
    ]


def test_losses_since_the_last_line_of_the_log_count(stage, saved):
    assert len(stage.meter.losses) == 3
    for loss, before in zip(stage.meter.losses, saved.meter.losses, strict=True):
        torch.testing.assert_close(loss, before)


def test_weights_average_and_optimizer(stage, saved):
    for before, after in ((saved.learner.model, stage.learner.model), (saved.learner.averaged, stage.learner.averaged)):
        ours, theirs = before.state_dict(), after.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(stage.learner.averaged.n_averaged) == 3
    names = [name for name, p in stage.learner.model.named_parameters() if p.requires_grad]
    before, after = (dict(each.learner.model.named_parameters()) for each in (saved, stage))
    assert len(names) > 50
    for name in names:
        momentum = stage.learner.optimizer.optimizer.state[after[name]]["momentum_buffer"]
        assert torch.equal(momentum, saved.learner.optimizer.optimizer.state[before[name]]["momentum_buffer"]), name


def test_the_next_images_are_those_that_would_have_come(stage, saved):
    seen = []
    stage.train_step = lambda passes: seen.append(passes) or setattr(stage.state, "step", stage.state.step + 1)
    stage.meter.line = lambda *_: {}
    stage.log.start({}, 1)
    stage.train_epoch(1, type("Progress", (), {"update": lambda self: None})())
    assert len(seen) == 2  # the fourth and fifth of five
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()  # of seed 0 and epoch 1
    saved.data.samples.set_epoch(1)
    for step, (batch,) in enumerate(seen, start=3):
        for place, index in enumerate(order[2 * step : 2 * step + 2]):
            assert torch.equal(batch["pixel_values"][place], saved.data.samples[index]["pixel_values"])


def test_the_better_score_stays_the_best(stage):
    assert not note_scores(stage.state, {**SCORES, "mean_iou": 0.5})  # as good is not better
    assert (stage.state.best_mean_iou, stage.state.evaluations_since_best) == (0.5, 3)
    assert note_scores(stage.state, SCORES)
    assert (stage.state.best_mean_iou, stage.state.evaluations_since_best) == (0.625, 0)


def test_state_is_plain_text(saved, folder):
    written = json.loads((folder / "last" / "training_state.json").read_text())
    assert written["bad_images"] == [2, 7]
    assert written.keys() == vars(saved.state).keys()


FORMER = {
    "training_state.json": {'"bad_images"': '"bad_pictures"'},
    "recipe.yaml": {"log_images:": "log_pictures:", "transfer_classifier:": "hand_over_classifier:"},
}


def test_a_run_of_0_1_0_resumes(saved, recipe, streets, folder, tmp_path):
    """Its state and its recipe have the names that fields had then."""
    old = shutil.copytree(folder, tmp_path / "run")
    for name, renamed in FORMER.items():
        text = (old / "last" / name).read_text()
        for now, before in renamed.items():
            assert text.count(now) == 1
            text = text.replace(now, before)
        (old / "last" / name).write_text(text)
    (old / "last" / "SHA256SUMS").unlink()
    write_checksums(old / "last")
    resumed = Stage(recipe, streets, old, resume=True)
    assert vars(resumed.state) == vars(saved.state)
    assert resumed.data.samples.bad.nonzero().flatten().tolist() == [2, 7]
