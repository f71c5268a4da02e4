"""What a run writes down, by the trackers' own readers; and trackers that fail."""

import json
import os
import sqlite3
import time
from io import BytesIO

import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.training import log as log_module
from revhrnet_hf.training.log import RunLog, check_trackers

IMAGE = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))


@pytest.fixture(autouse=True)
def _accelerate(fresh_accelerate):
    """As in training, where trackers' own log messages need it, whatever tests came before."""
    PartialState()


def events_of(folder):
    path = folder / "tensorboard" / "revhrnet"
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0}).Reload()


def write_run(log):
    log.start({"epochs": 3})
    log.write(0, 1, {"loss": 2.0})
    log.write(1, 2, {"mean_iou": 0.5}, iou={"Road": 0.75, "Pole": float("nan")})
    log.images(2, lambda: IMAGE)


def test_tensorboard_and_json(tmp_path):
    log = RunLog(tmp_path, ["tensorboard"], is_main=True)
    write_run(log)
    log.close()
    events = events_of(tmp_path)
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "loss": [(1, 2.0)],
        "mean_iou": [(2, 0.5)],
        "iou/Road": [(2, 0.75)],
    }
    (image,) = events.Images("predictions")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    shown = np.asarray(Image.open(BytesIO(image.encoded_image_string)), int)
    assert np.abs(shown - np.asarray(IMAGE)).max() < 8
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[1]["iou"] == {"Road": 0.75, "Pole": None}
    assert (lines[0]["epoch"], lines[0]["step"], lines[0]["loss"]) == (0, 1, 2.0)


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path, monkeypatch):
    """A run is killed after three lines, the last two of which no checkpoint has counted."""
    first = RunLog(tmp_path, ["tensorboard"], is_main=True)
    first.start({})
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0)):
        first.write(0, step, {"loss": loss})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"epoch": 0, "st')  # it was killed in the middle of a line
    # TensorBoard reads event files in the order of their names: second, host, process, and a number that is not padded.
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 1)
    second = RunLog(tmp_path, ["tensorboard"], is_main=True)
    second.start({}, lines=1, again_from=2)
    second.write(0, 2, {"loss": 3.5})
    second.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [4.0, 3.5]
    assert [(e.step, e.value) for e in events_of(tmp_path).Scalars("loss")] == [(1, 4.0), (2, 3.5)]
    with pytest.raises(CheckpointError, match="has 2 lines, and the run to resume had 5"):
        RunLog(tmp_path, [], is_main=True).start({}, lines=5, again_from=6)


def test_trackio(tmp_path, monkeypatch):
    """By its own database."""
    pytest.importorskip("trackio")
    import trackio.sqlite_storage

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run", ["trackio"], is_main=True)
    write_run(log)
    log.close()
    (database,) = (tmp_path / "trackio").glob("revhrnet*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step, id").fetchall()
    assert {name for name, _, _ in rows} == {"run"}
    metrics = [(step, json.loads(text)) for _, step, text in rows]
    assert (1, {"loss": 2.0}) in metrics
    assert (2, {"mean_iou": 0.5, "iou/Road": 0.75}) in metrics
    assert any("predictions" in values for _, values in metrics)


class Failing(log_module.GeneralTracker):
    name = "failing"
    requires_logging_directory = False
    calls = 0

    def __init__(self, project, **settings):
        super().__init__(_blank=True)

    def start(self):
        pass

    def store_init_configuration(self, values):
        pass

    def log(self, values, step):
        type(self).calls += 1
        raise ConnectionError("no server")

    def finish(self):
        pass


def test_failing_tracker_is_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(log_module.LOGGER_TYPE_TO_CLASS, "failing", Failing)
    log = RunLog(tmp_path, ["failing", "tensorboard"], is_main=True)
    write_run(log)
    log.close()
    said = "the tracker failing failed and is left out from now on (ConnectionError: no server)"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", said)]
    assert Failing.calls == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert [e.value for e in events_of(tmp_path).Scalars("loss")] == [2.0]


def test_refused():
    with pytest.raises(RecipeError, match=r"unknown 'tensorbord'; known are .*tensorboard"):
        check_trackers(["tensorbord"])
    with pytest.raises(RecipeError, match=r"the package for aim is not installed \(pip install aim\)"):
        check_trackers(["tensorboard", "aim"])


def test_log_on_a_full_disk(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path, [], is_main=True)
    with pytest.raises(CheckpointError, match=r"Cannot write .*log\.jsonl: No space left on device"):
        log.write(0, 1, {"loss": 1.0})
