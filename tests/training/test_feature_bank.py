"""A run with a feature bank learns what a run learns that computes the same views anew; nothing of a bank is trusted unseen."""

import errno
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from revhrnet_hf.data import TrainingSamples
from revhrnet_hf.errors import CheckpointError, RecipeError, RunStopped
from revhrnet_hf.io import lock_file, without_nan
from revhrnet_hf.training import feature_bank
from revhrnet_hf.training.chain import run_chain
from revhrnet_hf.training.dry_run import dry_run
from revhrnet_hf.training.feature_bank import BANK_FOLDER, FREE, LABELS, LOCK_FILE, MAPS_FILE, STATE_FILE
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.training.sampler import EpochBatches, Mixture
from revhrnet_hf.training.trainer import Stage

from .test_resume import DEMANDING, assert_same

VIEWS, EPOCHS = 2, 4
BANK = {"feature_bank": VIEWS, "epochs": EPOCHS}
STEPS = 5  # of an epoch of `streets`' 10 images


@pytest.fixture
def stage(runs, streets, tmp_path):
    """Makes a stage on CamVid; of a name, in its own output folder."""

    def make(name="run", resume=False, overwrite=False, bank_dir=None, data=None, **settings):
        recipe = Recipe(dataset="camvid", **{**runs.settings, **BANK, **settings})
        return Stage(recipe, data or streets["camvid"], tmp_path / name, resume, overwrite, bank_dir=bank_dir)

    return make


def learn(stage, epochs=EPOCHS):
    """The loss of each step, and the weights at the end; without evaluations and checkpoints."""
    losses = []
    stage.data.open_bank(0)
    stage.learner.model.train()
    for epoch in range(epochs):
        stage.data.start_at(epoch, 0)
        for passes in stage.data.steps():
            losses += stage.learner.learn(passes, len(losses)).sum(0, keepdim=True)
    return torch.stack(losses), weights_of(stage)


def weights_of(stage):
    return {name: x.clone() for name, x in stage.learner.network.state_dict().items()}


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


def compute_anew(stage):
    """Let a stage without its bank compute the bank's views from the images, in each epoch."""
    stage.data.bank = None
    return stage


class TestEqualToComputingTheSameViews:
    @pytest.mark.parametrize(
        "settings",
        [
            {"gradient_accumulation_steps": 2, "batch_size": 4, "rotation": 10.0, "blur": 0.5, "num_workers": 1},
            {"precision": "bf16"},
            {"backbone_dtype": "bfloat16", "rare_class_images": 0.5, "rare_class_crops": 0.5, "crop_size": [40, 56]},
        ],
        ids=",".join,
    )
    def test_losses_and_weights(self, fresh_accelerate, stage, settings):
        """Bit for bit, in the epochs that fill the bank and in those that read it."""
        with_bank, without = stage("bank", **settings), compute_anew(stage("anew", **settings))
        (losses, weights), (expected, expected_weights) = learn(with_bank), learn(without)
        assert with_bank.data.bank.filled == VIEWS * with_bank.data.batches.steps
        assert torch.equal(losses, expected)
        assert_equal(weights, expected_weights)
        assert len(set(expected.tolist())) == len(expected)

    def test_a_run_and_its_scores(self, stage):
        with_bank, without = stage("bank", ema_decay=0.5), compute_anew(stage("anew", ema_decay=0.5))
        assert without_nan(with_bank.run()) == without_nan(without.run())
        assert_equal(weights_of(with_bank), weights_of(without))

    def test_a_vision_transformer(self, stage):
        """Its maps are kept at the stride of its patches, before the pyramid, which is trained."""
        settings = {"backbone": "test_vit", "backbone_weights": "random", "pyramid": "learned", "crop_size": [40, 56]}
        with_bank, without = stage("bank", **settings), compute_anew(stage("anew", **settings))
        losses, expected = learn(with_bank)[0], learn(without)[0]
        assert torch.equal(losses, expected)
        shapes = {tuple(x.shape[1:]) for name, x in load_file(with_bank.data.bank.path).items() if name != LABELS}
        assert shapes == {(64, 3, 4)}  # channels, ⌈40 / 16⌉, ⌈56 / 16⌉


def test_later_epochs_have_the_same_images_in_another_order():
    mixture = Mixture((7, 5), (1.0, 3.0))
    batches = EpochBatches(12, 4, 2, 2, 1, seed=3, mixture=mixture, views=2)
    plain = EpochBatches(12, 4, 2, 2, 1, seed=3, mixture=mixture)

    def of_epoch(epoch, each):
        each.start_at(epoch, 0)
        return [each.images(step, number) for step in range(3) for number in range(2)]

    def flat(images):
        return list(itertools.chain(*images))

    drawn = {}  # what lies at each place of the bank
    for epoch in range(6):
        images = of_epoch(epoch, batches)
        if epoch < 2:
            assert images == of_epoch(epoch, plain)
            drawn |= {epoch * 12 + place: image for place, image in enumerate(flat(images))}
        assert sorted(flat(images)) == sorted(flat(of_epoch(epoch % 2, batches)))
        batches.start_at(epoch, 0)
        own = list(batches)
        assert own == [[drawn[place] for place in numbers] for step in range(3) for numbers in batches.places(step)]
        assert own == [each[len(each) // 2 :] for each in images]  # the second of two processes
    orders = [flat(of_epoch(epoch, batches)) for epoch in (0, 2, 4)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_no_image_and_no_backbone_once_it_is_full(stage, monkeypatch):
    full = stage()
    learn(full, VIEWS)

    def refuse(*_):
        raise AssertionError("the bank should have this")

    monkeypatch.setattr(TrainingSamples, "crop", refuse)
    monkeypatch.setattr(full.learner.network.base_model, "run_backbone", refuse)
    full.data.start_at(VIEWS, 0)
    assert len([full.learner.learn(passes, 0) for passes in full.data.steps()]) == STEPS


def test_its_file(stage, runs, streets, tmp_path, monkeypatch):
    """safetensors reads it: maps and labels of the views, in the order of the first epochs; its size was said before."""
    [estimate] = dry_run([Recipe(dataset="camvid", **{**runs.settings, **BANK})], streets, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    one = stage()
    learn(one, VIEWS)
    bank = one.data.bank
    status = bank.path.stat()
    assert status.st_size == bank.size == round(estimate.bank_gib * 2**30)
    assert status.st_blocks * 512 >= bank.size  # no hole is left to be filled on a disk that is full by then
    kept = load_file(bank.path)
    one.data.samples.set_epoch(1)
    one.data.batches.start_at(1, 0)
    [third] = one.data.batches.images(2, 0)[1:]
    sample, place = one.data.samples[third], STEPS * 2 + 2 * 2 + 1
    assert torch.equal(kept[LABELS][place], sample["labels"])
    with torch.no_grad():
        maps = one.learner.network.base_model.run_backbone(sample["pixel_values"][None])
    for number, x in enumerate(maps):  # alone, an image may differ in the last bits from the same one in a batch
        torch.testing.assert_close(kept[f"map_{number}"][place].permute(2, 0, 1), x[0], rtol=1e-4, atol=1e-5)


def test_the_rehearsal_counts_steps_that_read(runs, streets, tmp_path, capsys):
    [estimate] = dry_run([Recipe(dataset="camvid", **{**runs.settings, **BANK})], streets, tmp_path / "out", bank_dir=tmp_path)
    assert (estimate.steps, estimate.bank_steps) == (EPOCHS * STEPS, (EPOCHS - VIEWS) * STEPS)
    training = VIEWS * STEPS * estimate.step_seconds + estimate.bank_steps * estimate.bank_step_seconds
    others = estimate.build_seconds + estimate.evaluations * estimate.images * estimate.image_seconds
    assert estimate.seconds == pytest.approx(training + others + estimate.saves * estimate.save_seconds)
    said = capsys.readouterr().out
    assert re.search(r"stage 1: its feature bank takes [1-9]\d* MiB more; 10 of its steps read it", said)
    assert said.count("GiB free at") == 2
    assert list(tmp_path.iterdir()) == []


class Stopped(BaseException):
    """As if the process were killed: nothing catches it."""


def interrupted(stage, after):
    """A run that ends after so many steps; what it has written since its last checkpoint is there."""
    step = stage.train_step

    def train_step(passes):
        if stage.state.step == after:
            raise Stopped
        step(passes)

    stage.train_step = train_step
    with pytest.raises(Stopped):
        stage.run()


@pytest.mark.parametrize("after", [3, 8, 17])
def test_interrupted_and_resumed(stage, after):
    """While it fills the bank, before the first checkpoint and after it, and while it reads it."""
    whole = stage("whole")
    whole.run()
    interrupted(stage(), after)
    resumed = stage(resume=True)
    assert resumed.state.step == after // STEPS * STEPS
    resumed.run()
    assert_equal(weights_of(resumed), weights_of(whole))
    assert_equal(load_file(resumed.data.bank.path), load_file(whole.data.bank.path))


def test_stopped_in_the_evaluation_after_it_is_full(stage):
    """The bank is not behind the checkpoint, either: nothing is computed again."""
    stopped = stage(eval_every=1)
    evaluate = stopped.evaluation.run

    def evaluate_or_stop(epoch, step):
        if epoch == VIEWS:
            raise RunStopped("a signal came", status=143)
        return evaluate(epoch, step)

    stopped.evaluation.run = evaluate_or_stop
    with pytest.raises(RunStopped):
        stopped.run()
    state = json.loads((stopped.output_dir / BANK_FOLDER / STATE_FILE).read_text())
    assert state["filled_steps"] == stage(resume=True).state.step == VIEWS * STEPS


def test_resumed_stage_that_began_with_a_checkpoint(stage, tmp_path):
    """Its backbone's weights come from there at first, and from the run's own checkpoint when it is resumed."""
    stage("before", feature_bank=0, epochs=1).run()
    settings = {"init_from": str(tmp_path / "before" / "best"), "backbone_weights": "random"}
    whole = stage("whole", **settings)
    whole.run()
    interrupted(stage(**settings), 8)
    resumed = stage(resume=True, **settings)
    resumed.run()
    assert_equal(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize("harm", ["gone", "file is gone", "short", "another header", "ahead of the disk"])
def test_a_bank_that_is_not_whole_is_filled_anew(stage, caplog, harm):
    whole = stage("whole")
    whole.run()
    interrupted(stage(), 12)
    folder = stage(resume=True).data.bank.folder
    state, maps = folder / STATE_FILE, folder / MAPS_FILE
    if harm == "gone":
        shutil.rmtree(folder)
    elif harm == "file is gone":
        maps.unlink()
    elif harm == "short":
        with maps.open("r+b") as file:
            file.truncate(maps.stat().st_size - 1)
    elif harm == "another header":
        with maps.open("r+b") as file:
            file.seek(20)
            file.write(b"#")
    else:  # a crash of the machine: the last steps were not brought to the disk
        content = json.loads(state.read_text())
        state.write_text(json.dumps({**content, "filled_steps": 7}))
        with maps.open("r+b") as file:
            file.seek(-30, 2)  # labels of the last image
            file.write(b"\0" * 30)
    resumed = stage(resume=True)
    resumed.run()
    lacking = 3 if harm == "ahead of the disk" else 10
    assert f"lacks the maps of {lacking} of 10 steps: they are computed again" in caplog.text
    assert_equal(weights_of(resumed), weights_of(whole))
    assert_equal(load_file(maps), load_file(whole.data.bank.path))


class TestShared:
    """A bank in a place of its own."""

    @pytest.fixture
    def place(self, stage, tmp_path):
        first = stage("first", bank_dir=tmp_path / "bank")
        learn(first, VIEWS)
        first.data.bank.flush()
        first.data.bank.close()
        return tmp_path / "bank"

    def test_with_another_decoder(self, stage, place, monkeypatch):
        settings = {"learning_rate": 0.01, "num_blocks": 2, "head": "concat", "loss": {"dice": 1.0}, "epochs": 3}
        expected = learn(compute_anew(stage("anew", **settings)), 3)[0]
        monkeypatch.setattr(TrainingSamples, "crop", None)
        assert torch.equal(learn(stage("other", bank_dir=place, **settings), 3)[0], expected)

    def test_nothing_of_another_run_is_deleted(self, stage, place):
        before = (place / MAPS_FILE).read_bytes()
        stage("first", overwrite=True, bank_dir=place)
        stage("second", overwrite=True, bank_dir=place).run()
        assert (place / MAPS_FILE).read_bytes() == before

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"crop_size": [32, 32]}, r"recipe field crop_size was \[32, 48\], is \[32, 32\]"),
            ({"seed": 1, "flip": 0.0}, r"recipe field flip was 0\.5, is 0\.0; recipe field seed was 0, is 1"),
            ({"feature_bank": 3}, "recipe field feature_bank was 2, is 3"),
            ({"backbone_dtype": "bfloat16"}, "recipe field backbone_dtype was 'float32', is 'bfloat16'"),
            ({"stream_channels": [8, 12, 16, 20, 24], "num_modules": [1] * 4}, "it has the maps of another number of streams"),
        ],
        ids=str,
    )
    def test_of_another_recipe(self, stage, place, settings, said):
        with pytest.raises(CheckpointError, match=rf"{place} holds other maps than this run's: {said}\. Delete it, or"):
            stage("other", bank_dir=place, **settings).run()

    def test_of_other_weights(self, stage, place, weights, tmp_path):
        changed = load_file(weights)
        next(x for x in changed.values() if x.is_floating_point()).flatten()[0] += 1e-3
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(CheckpointError, match="this run's: the backbone had other weights"):
            stage("other", bank_dir=place, backbone_weights=str(tmp_path / "changed.safetensors")).run()

    def test_of_other_data(self, stage, place, streets, tmp_path):
        data = shutil.copytree(streets["camvid"], tmp_path / "camvid")
        learn(stage("copy", bank_dir=place, data=data), 1)  # the same files in another folder
        image = sorted((data / "train").glob("*.png"))[0]
        PIL.Image.open(image).convert("RGB").rotate(180).save(image)
        with pytest.raises(CheckpointError, match="this run's: files of images or label maps have other sizes"):
            stage("other", bank_dir=place, data=data).run()
        with pytest.raises(CheckpointError, match=r"train_split was 'train', is 'val'; its images are other ones; files of"):
            stage("val", bank_dir=place, train_split="val").run()

    def test_while_another_run_fills_it(self, stage, place):
        state = json.loads((place / STATE_FILE).read_text())
        child = multiprocessing.get_context("fork").Process(target=_hold, args=(place / LOCK_FILE, place / "held"))
        child.start()
        while not (place / "held").exists():
            child.join(0.01)
        with pytest.raises(CheckpointError, match=f"Another run fills the feature bank in {place}"):
            stage("other", bank_dir=place).run()
        child.kill()
        child.join()
        stage("other", bank_dir=place, overwrite=True).data.open_bank(0)
        assert json.loads((place / STATE_FILE).read_text()) == state

    def test_in_a_folder_that_can_only_be_read(self, stage, place, monkeypatch):
        def read_only(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        expected = learn(compute_anew(stage("anew")), 3)[0]
        monkeypatch.setattr(feature_bank, "lock_file", read_only)
        assert torch.equal(learn(stage("other", bank_dir=place), 3)[0], expected)
        state = json.loads((place / STATE_FILE).read_text())
        (place / STATE_FILE).write_text(json.dumps(state | {"filled_steps": state["filled_steps"] - 1}))
        with pytest.raises(CheckpointError, match=r"Cannot write the feature bank in .*: Read-only file system"):
            stage("another", bank_dir=place).run()

    def test_what_is_not_a_bank_stays(self, stage, place):
        (place / STATE_FILE).write_text("[")
        with pytest.raises(CheckpointError, match=r"bank\.json cannot be read"):
            stage("other", bank_dir=place).run()
        (place / STATE_FILE).unlink()
        with pytest.raises(CheckpointError, match=r"maps\.safetensors lies where the feature bank belongs.*move it away"):
            stage("other", bank_dir=place, overwrite=True).run()

    def test_of_a_recipe_without_one(self, runs, streets, tmp_path):
        with pytest.raises(RecipeError, match="--bank_dir is for a feature bank, and the recipe has none"):
            run_chain([Recipe(dataset="camvid", **runs.settings)], streets, tmp_path / "run", bank_dir=tmp_path / "bank")


def _hold(path, told):
    held = lock_file(path)
    told.touch()
    signal.pause()
    held.close()


def test_in_the_output_folder(stage, tmp_path):
    """It is deleted with the run that it belongs to, and nothing of others with it."""
    learn(stage(), 1)
    stage(overwrite=True)
    assert not (tmp_path / "run" / BANK_FOLDER).exists()
    learn(stage(overwrite=True), 1)
    (tmp_path / "run" / BANK_FOLDER / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"no run of this program has written: feature_bank/notes\.txt"):
        stage(overwrite=True)


class TestFullDisk:
    def test_too_little_room(self, stage, small_disk):
        one = stage(bank_dir=small_disk.folder / "bank")
        small_disk.resize(one.data.bank.size // 4096 * 4096 - 4096)
        with pytest.raises(CheckpointError, match=r"Cannot make the feature bank .* MiB, with .* free: .*feature_bank\)$"):
            one.run()
        assert sorted(path.name for path in (small_disk.folder / "bank").iterdir()) == [LOCK_FILE, STATE_FILE]
        small_disk.resize(one.data.bank.size + 64 * 4096)
        again = stage(overwrite=True, bank_dir=small_disk.folder / "bank")
        assert torch.equal(learn(again)[0], learn(compute_anew(stage("anew")))[0])

    def test_it_has_its_room_from_the_start(self, stage, small_disk):
        one = stage(bank_dir=small_disk.folder / "bank")
        small_disk.resize(one.data.bank.size + 64 * 4096)
        one.data.open_bank(0)
        with pytest.raises(OSError, match="No space left"), (small_disk.folder / "of_others").open("wb", buffering=0) as file:
            while True:
                file.write(b"\1" * 4096)
        assert torch.equal(learn(one)[0], learn(compute_anew(stage("anew")))[0])


def test_fields_that_do_not_matter_are_fields():
    assert set(Recipe.__dataclass_fields__) > FREE


@pytest.mark.slow
def test_killed(runs, log_of, tmp_path):
    """Before the first checkpoint, while it fills the bank, in saving, at its end, and while it reads."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    status, said = runs.start(whole, "camvid", **DEMANDING, **BANK)
    assert status == 0, said
    points = [(1, "pass"), (3, "step"), (4, "saving"), (9, "pass"), (10, "moving"), (13, "pass"), (15, "evaluating")]
    for number, point in enumerate(points):
        status, said = runs.start(folder, "camvid", resume=number > 0, fault=("camvid", *point, "SIGKILL"), **DEMANDING, **BANK)
        assert status == -signal.SIGKILL, (point, said)
    status, said = runs.start(folder, "camvid", resume=True, **DEMANDING, **BANK)
    assert status == 0, said
    assert_same(whole, folder, log_of)
    assert_equal(*(load_file(each / BANK_FOLDER / MAPS_FILE) for each in (whole, folder)))


@pytest.mark.slow
def test_several_processes_share_one(runs, tmp_path):
    """They fill one file, each its images, and read what the others wrote; killed, one alone goes on with it."""
    settings = {**BANK, "batch_size": 4, "eval_every": EPOCHS}
    for status, said in runs.start_several(2, tmp_path / "two", "camvid", **settings):
        assert status == 0, said
    killed = runs.start_several(2, tmp_path / "killed", "camvid", fault=("camvid", 3, "step", "SIGKILL"), timeout=10, **settings)
    assert [status for status, _ in killed] == [1, -signal.SIGKILL], killed
    for status, said in runs.start_several(2, tmp_path / "killed", "camvid", resume=True, **settings):
        assert status == 0, said
    status, said = runs.start(tmp_path / "one", "camvid", gradient_accumulation_steps=2, **settings)
    assert status == 0, said
    two, killed, one = (load_file(tmp_path / name / BANK_FOLDER / MAPS_FILE) for name in ("two", "killed", "one"))
    assert_equal(two, killed)
    assert_equal(two, one)  # images of a pass are the same, whoever computes it
    assert_equal(*(load_file(tmp_path / name / "last" / "model.safetensors") for name in ("two", "killed")))


@pytest.mark.slow
def test_several_machines_share_none(runs, tmp_path):
    for status, said in runs.start_several(2, tmp_path / "run", "camvid", machines=True, batch_size=4, **BANK):
        assert status == 1
        assert "the processes are on several machines, and share no bank" in said
        assert "Traceback" not in said
