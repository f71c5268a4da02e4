"""What a run and its evaluations have written is told from what others have put beside it, and only that is deleted."""

import json

import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import revhrnet_hf
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.training.chain import check_chain
from revhrnet_hf.training.checkpoint import TrainingState, save_averages, save_model_folder, save_training_state
from revhrnet_hf.training.checkpoint_files import checkpoint_files, damage, entries_of_others, write_checkpoint
from revhrnet_hf.training.output_dir import (
    begin_anew,
    claim_output_dir,
    earlier_checkpoints,
    entries_no_run_wrote,
    note_saved,
    save_last,
)
from revhrnet_hf.training.recipe import Recipe
from revhrnet_hf.viz.report import MARK

RECIPE = Recipe(dataset="camvid")
RECORD = json.dumps({"scores": {}, "confusion_matrix": [], "settings": {}})


def fill(folder, step=1):
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml())
    (folder / "training_state.json").write_text(f'{{"step": {step}}}')
    (folder / "scores.json").write_text(f'{{"step": {step}}}')


def begin(output_dir):
    """A run that has saved once."""
    _, lock = claim_output_dir(output_dir, RECIPE, resume=False, overwrite=False)
    begin_anew(output_dir, lock)
    write_checkpoint(output_dir / "best", fill)
    save_last(output_dir, 2, fill)
    save_last(output_dir, 2, lambda folder: fill(folder, 2))
    (output_dir / "log.jsonl").write_text("{}\n")
    (output_dir / "report.html").write_text(f"<!DOCTYPE html>\n{MARK}\n")
    (output_dir / "tensorboard" / "revhrnet" / "17").mkdir(parents=True)
    for name in ("events.out.tfevents.1.host.2.0", "hparams.yml", "17/events.out.tfevents.1.host.2.1"):
        (output_dir / "tensorboard" / "revhrnet" / name).write_text("")
    note_saved(lock)
    lock.close()


def overwrite(output_dir):
    """A run that begins in place of another."""
    _, lock = claim_output_dir(output_dir, RECIPE, resume=False, overwrite=True)
    begin_anew(output_dir, lock)
    lock.close()


def evaluate(folder, stem="scores_camvid_val"):
    """The files that evaluate_seg.py writes."""
    (folder / f"{stem}.json").write_text(RECORD)
    beside = (f"{stem}_confusion.png", f"{stem}_reliability.png", f"{stem}_report.html")
    for name in (f"{stem}.csv", *beside, f"{stem}_worst/001_a.png", f".{stem}_flip.work/part_0.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def put(output_dir, name):
    (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (output_dir / name).write_text("somebody's")


OTHERS = [
    "best/thesis.txt",
    "last/notes/thesis.txt",
    "checkpoint-1/.hidden",
    "checkpoint-7/model.safetensors",
    "checkpoint-8",
    "last.damaged/thesis.txt",
    "tensorboard/thesis.txt",
    "tensorboard/revhrnet/17/notes/a",
    "best/scores_of_mine.csv",
    "best/scores_of_mine.json",
    "best/scores_camvid_val_worst/mine.png",
    "best/report.html",
    "report.html",
    "best/empty/",
]


class TestOverwrite:
    def test_a_runs_own_goes(self, tmp_path, capsys, caplog):
        caplog.set_level("INFO", "revhrnet_hf")
        begin(tmp_path)
        assert entries_no_run_wrote(tmp_path) == []
        overwrite(tmp_path)
        assert list(tree(tmp_path)) == [".lock"]
        assert (capsys.readouterr(), caplog.messages) == (("", ""), [])

    @pytest.mark.parametrize("name", OTHERS)
    def test_files_of_others_are_named_and_nothing_is_deleted(self, tmp_path, name):
        begin(tmp_path)
        evaluate(tmp_path / "best")
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            put(tmp_path, name)
        before = tree(tmp_path)
        entry = name.removesuffix("/").removesuffix("/thesis.txt") if "notes" in name else name.removesuffix("/")
        with pytest.raises(CheckpointError, match=rf"no run of this program has written: {entry.removesuffix('/a')}\. They"):
            claim_output_dir(tmp_path, RECIPE, resume=False, overwrite=True)
        with pytest.raises(CheckpointError, match=r"after moving away .*, which no run has written"):
            claim_output_dir(tmp_path, RECIPE, resume=False, overwrite=False)
        assert tree(tmp_path) == before
        claim_output_dir(tmp_path, RECIPE, resume=True, overwrite=False)[1].close()
        assert tree(tmp_path) == before

    @pytest.mark.parametrize(
        "name", ["best", "last", "tensorboard", "log.jsonl", "report.html", "best/model.safetensors", "tensorboard/more"]
    )
    def test_links_are_of_others(self, tmp_path, name):
        put(tmp_path, "far/thesis.txt")
        begin(tmp_path / "out")
        link = tmp_path / "out" / name
        if link.exists():
            link.rename(tmp_path / "aside")
        link.symlink_to(tmp_path / "far")
        before = tree(tmp_path)
        with pytest.raises(CheckpointError, match=rf"no run of this program has written: {name}\. They"):
            claim_output_dir(tmp_path / "out", RECIPE, resume=False, overwrite=True)
        assert tree(tmp_path) == before

    def test_evaluations_go_and_that_is_said(self, tmp_path, caplog):
        caplog.set_level("INFO", "revhrnet_hf")
        begin(tmp_path)
        evaluate(tmp_path / "best")
        evaluate(tmp_path / "last", "scores_folder-photos_val")
        overwrite(tmp_path)
        assert list(tree(tmp_path)) == [".lock"]
        (line,) = caplog.messages
        assert line.endswith(": best/scores_camvid_val.json, last/scores_folder-photos_val.json")

    def test_checksums_that_list_what_lies_elsewhere(self, tmp_path):
        put(tmp_path, "thesis.txt")
        begin(tmp_path / "out")
        (tmp_path / "out" / "last" / "SHA256SUMS").write_text(f"0  ../../thesis.txt\n0  {tmp_path / 'thesis.txt'}\n")
        overwrite(tmp_path / "out")
        assert (tmp_path / "thesis.txt").exists()
        assert list(tree(tmp_path / "out")) == [".lock"]

    def test_a_run_that_begins_anew_by_itself(self, tmp_path):
        """It was killed before its first checkpoint; somebody has put a file into its folders."""
        _, lock = claim_output_dir(tmp_path, RECIPE, resume=False, overwrite=False)
        begin_anew(tmp_path, lock)
        lock.close()
        put(tmp_path, "tensorboard/thesis.txt")
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=r"has written: tensorboard/thesis\.txt\. They"):
                claim_output_dir(tmp_path, RECIPE, resume, overwrite=False)
        assert (tmp_path / "tensorboard" / "thesis.txt").exists()

    def test_a_later_stage_of_a_chain(self, streets, tmp_path):
        """Nothing of the first stage is deleted either."""
        recipes = [Recipe(dataset="camvid"), Recipe(dataset="cityscapes")]
        for folder in (tmp_path, tmp_path / "1_camvid"):
            begin(folder)
        put(tmp_path, "best/thesis.txt")
        with pytest.raises(CheckpointError, match=r"has written: best/thesis\.txt\. They"):
            check_chain(recipes, streets, tmp_path, resume=False, overwrite=True)

    @pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
    @pytest.mark.parametrize("kind", ["folder", "link"])
    @pytest.mark.parametrize("name", ["best", "last", "checkpoint-3"])
    def test_what_is_no_runs_is_said_first(self, tmp_path, name, kind, how):
        """Else the first message's advice leads to the second."""
        put(tmp_path, "far/thesis.txt")
        (tmp_path / "out").mkdir()
        if kind == "link":
            (tmp_path / "out" / name).symlink_to(tmp_path / "far")
        else:
            (tmp_path / "far").rename(tmp_path / "out" / name)
        with pytest.raises(CheckpointError, match=f"holds {name}, where a run would write, and no run"):
            claim_output_dir(tmp_path / "out", RECIPE, **{"resume": False, "overwrite": False, **how})


def test_all_files_of_a_real_checkpoint_are_known(tmp_path, tiny_config):
    """Also without the list of checksums."""
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config())

    def fill_all(folder):
        example = Image.new("RGB", (4, 4))
        save_model_folder(folder, model, revhrnet_hf.RevHRNetImageProcessor(), RECIPE, {"step": 1, "mean_iou": 0.5}, example)
        save_training_state(folder, TrainingState(), {"a:b": torch.zeros(1)})
        save_averages(folder, torch.nn.Linear(2, 2).state_dict())

    write_checkpoint(tmp_path / "last", fill_all)
    assert entries_of_others(tmp_path / "last", checkpoint_files(tmp_path / "last")) == []
    (tmp_path / "last" / "SHA256SUMS").unlink()
    assert entries_of_others(tmp_path / "last", checkpoint_files(tmp_path / "last")) == []


def test_all_files_of_tensorboard_are_known(tmp_path):
    begin(tmp_path)
    with SummaryWriter(tmp_path / "tensorboard" / "revhrnet") as writer:
        writer.add_hparams({"a": 1}, {})
        writer.add_scalar("b", 1, 1)
    assert entries_no_run_wrote(tmp_path) == []


class TestReplacing:
    def test_best(self, tmp_path):
        """Files of others move along; results do not stand beside weights that they are not of."""
        begin(tmp_path)
        best = tmp_path / "best"
        put(best, "thesis.txt")
        put(best, "notes/deep/thesis.txt")
        put(best, "mine.safetensors")
        (best / "link").symlink_to(tmp_path)
        evaluate(best)
        for step in (2, 3):
            write_checkpoint(best, lambda folder, step=step: fill(folder, step))
        assert json.loads((best / "scores.json").read_text()) == {"step": 3}
        assert (best / "thesis.txt").read_text() == (best / "notes/deep/thesis.txt").read_text() == "somebody's"
        assert (best / "mine.safetensors").exists() and (best / "link").is_symlink()
        assert list(best.glob("scores_*.*")) == [] and list(best.glob(".scores*")) == []
        old = best / "scores_of_step_1"
        assert (old / "scores_camvid_val.json").read_text() == RECORD
        assert (old / "scores_camvid_val_worst" / "001_a.png").exists()
        assert {path.name for path in best.glob("scores_of_step_*")} == {old.name}
        evaluate(best)
        write_checkpoint(best, lambda folder: fill(folder, 4))
        assert {path.name for path in best.glob("scores_of_step_*")} == {old.name, "scores_of_step_3"}

    def test_a_name_that_the_new_one_has_too(self, tmp_path):
        write_checkpoint(tmp_path / "best", fill)
        put(tmp_path, "best/new.txt")
        write_checkpoint(tmp_path / "best", lambda folder: [fill(folder), (folder / "new.txt").write_text("the run's")])
        assert (tmp_path / "best" / "new.txt").read_text() == "the run's"
        assert (tmp_path / "best" / "new.txt.2").read_text() == "somebody's"
        assert damage(tmp_path / "best") is None

    def test_last(self, tmp_path):
        """Results stay with their weights, and so do weights of others, with which `last` could not be resumed from."""
        begin(tmp_path)
        for name in ("thesis.txt", "adapter.safetensors", "model.pt"):
            put(tmp_path / "last", name)
        evaluate(tmp_path / "last")
        save_last(tmp_path, 2, lambda folder: fill(folder, 3))
        assert (tmp_path / "last" / "thesis.txt").exists()
        assert damage(tmp_path / "last") is None
        assert list((tmp_path / "last").glob("*scores_*")) == []
        for name in ("adapter.safetensors", "model.pt", "scores_camvid_val.json"):
            assert (tmp_path / "checkpoint-2" / name).exists()

    def test_rotation(self, tmp_path):
        """What is left of a checkpoint counts no more; a link is not followed."""
        begin(tmp_path)
        put(tmp_path, "checkpoint-1/notes/thesis.txt")
        evaluate(tmp_path / "checkpoint-1")
        for step in (3, 4):
            save_last(tmp_path, 2, lambda folder, step=step: fill(folder, step))
        assert [path.name for path in earlier_checkpoints(tmp_path)] == ["checkpoint-3"]
        assert not (tmp_path / "checkpoint-2").exists()
        left = tree(tmp_path / "checkpoint-1")
        assert left["notes/thesis.txt"] == b"somebody's" and "scores_camvid_val.json" in left and "recipe.yaml" not in left
        far = tmp_path / "far"
        (tmp_path / "checkpoint-3").rename(far)
        (tmp_path / "checkpoint-3").symlink_to(far)
        before = tree(far)
        save_last(tmp_path, 1, lambda folder: fill(folder, 5))
        assert tree(far) == before

    def test_a_step_that_is_saved_twice(self, tmp_path):
        """`checkpoint-2` is replaced by another one of its name."""
        begin(tmp_path)
        save_last(tmp_path, 3, lambda folder: fill(folder, 2))
        put(tmp_path, "checkpoint-2/thesis.txt")
        evaluate(tmp_path / "checkpoint-2")
        save_last(tmp_path, 3, lambda folder: fill(folder, 3))
        assert len(list(tmp_path.rglob("thesis.txt"))) == 1
        assert len(list(tmp_path.rglob("scores_camvid_val.json"))) == 1

    def test_a_link_is_replaced_and_not_followed(self, tmp_path):
        put(tmp_path, "far/thesis.txt")
        (tmp_path / "best").symlink_to(tmp_path / "far")
        write_checkpoint(tmp_path / "best", fill)
        assert (tmp_path / "far" / "thesis.txt").exists()
        assert not (tmp_path / "best").is_symlink() and damage(tmp_path / "best") is None
