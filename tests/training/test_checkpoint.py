"""Folders are replaced whole, and an output folder is never taken over by accident."""

import contextlib
import itertools
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training.checkpoint import (
    TrainingState,
    load_training_state,
    optimizer_tensors,
    restore_optimizer_tensors,
    save_training_state,
)
from revhrnet_hf.training.checkpoint_files import damage, write_checkpoint, write_checksums
from revhrnet_hf.training.optimisation import build_optimizer
from revhrnet_hf.training.output_dir import begin_anew, claim_output_dir, note_saved, recover
from revhrnet_hf.training.recipe import Recipe


def test_failing_write_leaves_the_old_folder(tmp_path):
    target = tmp_path / "last"
    write_checkpoint(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder):
        (folder / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"Cannot write .*last: disk full; what was saved before is whole"):
        write_checkpoint(target, fail)
    assert (target / "a").read_text() == "old"
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_between_the_renames(tmp_path):
    """The old folder has been moved away, the new one has not arrived: the old one comes back."""
    write_checkpoint(tmp_path / "checkpoint-7", lambda folder: (folder / "a").write_text("old"))
    (tmp_path / ".last.revhrnet-new-01234567").mkdir()
    (tmp_path / ".best.revhrnet-old-89abcdef").mkdir()
    recover(tmp_path)
    assert (tmp_path / "last" / "a").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"last", "best"}


@pytest.fixture
def forked():
    """Calls a function in a process of its own, which is killed at the end; gives the process's id and a pipe from it."""
    started = []

    def fork(function):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                function(write)
            finally:
                os._exit(1)
        os.close(write)
        started.append((child, read))
        return child, read

    yield fork
    for child, read in started:
        kill(child)
        os.close(read)


def kill(child):
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has been killed before
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("written", [1, 2, 5, 11])
def test_killed_while_writing(tmp_path, forked, written):
    """A process that writes folder after folder is killed: what is found is one of them, whole, whenever that happens."""

    def fill(folder, number):
        for name in "abcd":
            (folder / name).write_text(str(number))

    def write_again_and_again(pipe):
        for number in itertools.count():
            write_checkpoint(tmp_path / "best", lambda folder, number=number: fill(folder, number))
            os.write(pipe, b".")

    child, pipe = forked(write_again_and_again)
    for _ in range(written):
        assert os.read(pipe, 1) == b"."
    kill(child)  # somewhere in one of the next
    recover(tmp_path)
    assert len({(tmp_path / "best" / name).read_text() for name in "abcd"}) == 1
    assert damage(tmp_path / "best") is None
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


KEPT = {"sgd": ["momentum_buffer"], "adamw": ["step", "exp_avg", "exp_avg_sq"]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_state_comes_back(tmp_path, name):
    """A step after loading equals the step that would have come, also for channels-last weights."""

    def network():
        torch.manual_seed(0)
        return torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        model(torch.randn(1, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    recipe = Recipe(dataset="camvid", optimizer=name)
    model = network()
    optimizer = build_optimizer(model, recipe)
    step(model, optimizer, 1)
    save_training_state(tmp_path, TrainingState(epoch=3, step=9, best_mean_iou=0.5), optimizer_tensors(model, optimizer))
    other = network()
    other.load_state_dict(model.state_dict())
    other_optimizer = build_optimizer(other, recipe)
    state, tensors = load_training_state(tmp_path)
    restore_optimizer_tensors(other, other_optimizer, tensors)
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    assert torch.equal(model.weight, other.weight)
    assert (state.epoch, state.step, state.best_mean_iou) == (3, 9, 0.5)
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    kept = {f"{parameter}:{what}" for parameter in ("weight", "bias") for what in KEPT[name]}
    assert set(load_file(tmp_path / "optimizer.safetensors")) == kept


def tree(folder):
    """Every path below a folder, with the text of files."""
    return {path: path.read_text() if path.is_file() else path.is_dir() for path in folder.rglob("*")}


class TestClaim:
    recipe = Recipe(dataset="camvid")

    def run_in(self, folder, recipe=None):
        for name in ("last", "best"):
            (folder / name).mkdir(parents=True)
        (folder / "last" / "recipe.yaml").write_text((recipe or self.recipe).to_yaml())
        write_checksums(folder / "last")
        (folder / "log.jsonl").write_text("{}\n")
        (folder / "mine.txt").write_text("not ours")

    def begin(self, folder, resume=False, overwrite=False):
        """A run that finds none to resume."""
        resumes, lock = claim_output_dir(folder, self.recipe, resume, overwrite)
        assert resumes is False
        begin_anew(folder, lock)
        lock.close()

    def test_fresh(self, tmp_path):
        assert claim_output_dir(tmp_path / "a" / "b", self.recipe, resume=False, overwrite=False)[0] is False
        assert claim_output_dir(tmp_path / "a" / "b", self.recipe, resume=True, overwrite=False)[0] is False

    def test_holds_a_run(self, tmp_path):
        self.run_in(tmp_path)
        with pytest.raises(CheckpointError, match=r"already holds a run: .*--resume.*--overwrite"):
            claim_output_dir(tmp_path, self.recipe, resume=False, overwrite=False)
        assert (tmp_path / "last").exists()
        assert claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[0] is True

    def test_overwrite_deletes_only_ours(self, tmp_path):
        self.run_in(tmp_path)
        self.begin(tmp_path, overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.txt"}

    def test_another_process_is_at_work(self, tmp_path, forked):
        self.run_in(tmp_path)

        def lock_and_wait(pipe):
            lock = claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[1]
            os.write(pipe, b".")
            signal.pause()
            lock.close()

        child, pipe = forked(lock_and_wait)
        assert os.read(pipe, 1) == b"."
        with pytest.raises(CheckpointError, match="Another run is at work"):
            claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)
        assert (tmp_path / "last").exists()
        kill(child)
        assert claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[0] is True

    def test_other_recipe(self, tmp_path):
        self.run_in(tmp_path, Recipe(dataset="camvid", learning_rate=0.5, num_workers=7))
        with pytest.raises(CheckpointError, match=r"learning_rate was 0.5, is 0.01\. Resume") as refusal:
            claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)
        assert "num_workers" not in str(refusal.value)

    @pytest.mark.parametrize("resume", [False, True])
    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("name", ["log.jsonl", "tensorboard", "last", "best", "checkpoint-12", "last.damaged"])
    def test_files_of_others(self, tmp_path, name, resume, overwrite):
        """Under the names of a run, in a folder without one: they are named and stay, whatever is asked for."""
        if name == "log.jsonl":
            (tmp_path / name).write_text("somebody's")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "thesis.txt").write_text("somebody's")
        before = tree(tmp_path)
        with pytest.raises(CheckpointError, match="exclude" if resume and overwrite else rf"{name}|already holds a run"):
            claim_output_dir(tmp_path, self.recipe, resume, overwrite)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("name", ["x.damaged", "last.new", "best.old", "best.new", "checkpoint-best", "lasting", ".best.new"])
    def test_names_like_ours(self, tmp_path, name):
        """A run begins, saves, is begun anew, resumed, and recovered beside them."""
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("somebody's")
        for how in ({"overwrite": False}, {"overwrite": True}, {"overwrite": False, "resume": True}):
            resumes, lock = claim_output_dir(tmp_path, self.recipe, **{"resume": False, **how})
            if not resumes:
                begin_anew(tmp_path, lock)
            self.save_in(tmp_path, lock)
            write_checkpoint(tmp_path / "best", lambda folder: (folder / "a").write_text("b"))
            lock.close()
        assert (tmp_path / name / "thesis.txt").read_text() == "somebody's"

    def save_in(self, folder, lock):
        write_checkpoint(folder / "last", lambda new: (new / "recipe.yaml").write_text(self.recipe.to_yaml()))
        note_saved(lock)

    @pytest.mark.parametrize("marked", [False, True])
    def test_resume_deletes_nothing(self, tmp_path, marked):
        """Of a run only `best` and the log are left: what is missing is said, and all stays."""
        if marked:
            _, lock = claim_output_dir(tmp_path, self.recipe, resume=False, overwrite=False)
            note_saved(lock)
            lock.close()
        self.run_in(tmp_path)
        shutil.rmtree(tmp_path / "last")
        (tmp_path / "best" / "recipe.yaml").write_text(self.recipe.to_yaml())
        before = tree(tmp_path)
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"last/ and checkpoint-STEP/ are missing.* only best, log\.jsonl"):
                claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)
            assert tree(tmp_path) == before
        shutil.rmtree(tmp_path / "best")
        if marked:  # nor does a run begin over what is left
            with pytest.raises(CheckpointError, match=r"only log\.jsonl\. Bring"):
                claim_output_dir(tmp_path, self.recipe, resume=False, overwrite=False)
        assert (tmp_path / "log.jsonl").exists()

    @pytest.mark.parametrize("resume", [False, True])
    def test_killed_before_its_first_checkpoint(self, tmp_path, resume):
        """What such a run left is its own, and it begins anew; `best` is written before the first `last`."""
        self.begin(tmp_path)
        (tmp_path / "log.jsonl").write_text("{}\n")
        if resume:
            (tmp_path / "best").mkdir()
        self.begin(tmp_path, resume)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}

    @pytest.mark.parametrize("kind", ["link", "text", "folder", "pipe"])
    def test_lock_of_another(self, tmp_path, kind):
        """It is not emptied, through a link or itself, and not waited for."""
        lock, thesis = tmp_path / "out" / ".lock", tmp_path / "thesis.txt"
        lock.parent.mkdir()
        thesis.write_text("somebody's")
        make = {
            "link": lambda: lock.symlink_to(thesis),
            "text": lambda: lock.write_text("somebody's"),
            "folder": lock.mkdir,
            "pipe": lambda: os.mkfifo(lock),
        }
        make[kind]()
        before = tree(tmp_path)
        with pytest.raises(CheckpointError, match=r"\.lock (is a link or no plain file|was not written by this program)"):
            claim_output_dir(lock.parent, self.recipe, resume=False, overwrite=False)
        assert tree(tmp_path) == before

    def test_damaged_twice(self, tmp_path):
        """A second damaged checkpoint does not replace the first one that was set aside."""
        for number in (1, 2):
            self.run_in(tmp_path / "other")
            (tmp_path / "other" / "last").rename(tmp_path / f"checkpoint-{number}")
            shutil.rmtree(tmp_path / "other")
            (tmp_path / "last").mkdir(exist_ok=True)
            (tmp_path / "last" / "SHA256SUMS").write_text(f"damaged {number}")
            assert claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=False)[0] is True
        assert (tmp_path / "last.damaged" / "SHA256SUMS").read_text() == "damaged 1"
        assert (tmp_path / "last.damaged.2" / "SHA256SUMS").read_text() == "damaged 2"
        self.begin(tmp_path, overwrite=True)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}

    def test_impossible(self, tmp_path):
        with pytest.raises(CheckpointError, match="exclude each other"):
            claim_output_dir(tmp_path, self.recipe, resume=True, overwrite=True)
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="is a file"):
            claim_output_dir(tmp_path / "file", self.recipe, resume=False, overwrite=False)
        with pytest.raises(CheckpointError, match="Cannot write to the output folder"):
            claim_output_dir(tmp_path / "file" / "below", self.recipe, resume=False, overwrite=False)

    def test_damaged_state(self, tmp_path):
        (tmp_path / "training_state.json").write_text('{"epoch": 1')
        with pytest.raises(CheckpointError, match="holds no training state to resume from"):
            load_training_state(tmp_path)
