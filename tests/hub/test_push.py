"""Pushing with huggingface_hub's own client to a hub on loopback, and loading from there; what must not be sent is not sent."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.commands import push
from revhrnet_hf.errors import CheckpointError, HubError
from revhrnet_hf.hub import push as hub_module
from revhrnet_hf.hub.model_card import CARD_FILE
from revhrnet_hf.hub.push import push_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"
NAME = "someone/tiny"


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """A run's best checkpoint, with all that a run leaves there and beside it."""
    folder = tmp_path / "run" / "best"
    tiny_model.save_pretrained(folder)
    RevHRNetImageProcessor().save_pretrained(folder)
    settings = {"dataset": "camvid", "init_from": str(tmp_path / "run" / "1_coco" / "best"), "epochs": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    save_file({"momentum": torch.zeros(3)}, folder / "optimizer.safetensors")
    with SummaryWriter(str(tmp_path / "run" / "tensorboard" / "revhrnet")) as writer:
        writer.add_text("init_from", settings["init_from"])
        for step, loss in ((1, 2.5), (2, 1.25)):
            writer.add_scalar("loss", loss, step, walltime=1000 + step)
    return folder


@pytest.fixture
def loads(monkeypatch):
    """Leave out the fresh process: `test_push_and_load` has it."""
    monkeypatch.setattr(hub_module, "_loading_fails", lambda staged: [])


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_push_and_load(hub, checkpoint, tiny_model, tmp_path):
    """The command sends it; another process, with an empty cache and without this package, loads it by name and sees the same."""
    before = snapshot(tmp_path)
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path / "home")
    command = [sys.executable, SCRIPT, checkpoint, "tiny", "--private"]  # the namespace is the token's
    pushed = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert "sent model.safetensors" in pushed.stdout and "left out: optimizer.safetensors" in pushed.stdout
    assert before == {path: content for path, content in snapshot(tmp_path).items() if "home" not in path.parts}
    assert hub.commits == [(NAME, "main")] and hub.repositories[NAME].private

    files = hub.repositories[NAME].branches["main"]
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert files["modeling_revhrnet.py"] == (checkpoint / "modeling_revhrnet.py").read_bytes()
    assert f'checkpoint = "{NAME}"' in files[CARD_FILE].decode()
    assert yaml.safe_load(files["recipe.yaml"])["init_from"] == "best"
    assert not [path for path in files if "optimizer" in path]

    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    program = """
import sys
sys.modules["revhrnet_hf"] = None
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
name, image, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
with torch.no_grad():
    numpy.save(out, model(**processor(Image.open(image), return_tensors="pt")).logits.numpy())
"""
    environment["HF_HOME"] = str(tmp_path / "empty")
    command = [sys.executable, "-c", program, NAME, tmp_path / "image.png", tmp_path / "out.npy"]
    subprocess.run(command, env=environment, check=True, cwd=tmp_path)
    with torch.no_grad():
        logits = tiny_model(**RevHRNetImageProcessor()(Image.fromarray(image), return_tensors="pt")).logits
    assert np.array_equal(np.load(tmp_path / "out.npy"), logits.numpy())


def test_curves_come_without_places_and_host(hub, checkpoint, loads, tmp_path):
    push_checkpoint(checkpoint, NAME, revision="curves")
    assert hub.commits == [(NAME, "curves")]
    assert hub.repositories[NAME].branches["main"] == {}
    files = hub.repositories[NAME].branches["curves"]
    (log,) = [path for path in files if path.startswith("tensorboard/")]
    assert os.uname().nodename not in log
    assert str(tmp_path).encode() not in files[log]
    target = tmp_path / "fetched" / Path(log).name
    target.parent.mkdir()
    target.write_bytes(files[log])
    scalars = EventAccumulator(str(target)).Reload().Scalars("loss")
    assert [(event.step, event.value, event.wall_time) for event in scalars] == [(1, 2.5, 1001), (2, 1.25, 1002)]


def test_what_must_not_be_sent_is_named_and_nothing_is_sent(hub, checkpoint, loads):
    def problem_of(name, text):
        (checkpoint / name).write_text(text)
        with pytest.raises(HubError) as caught:
            push_checkpoint(checkpoint, NAME)
        (checkpoint / name).unlink()
        return str(caught.value)

    assert "versions.json holds the absolute path /home/me/data" in problem_of("versions.json", '{"x": "/home/me/data"}')
    assert "versions.json holds an access token" in problem_of("versions.json", f'{{"x": "hf_{"a1B2" * 8}xy"}}')
    assert "README.md lacks" not in (said := problem_of(CARD_FILE, "# my own card")) and "the card lacks license" in said
    for pickle in ("old.bin", "a.pt", "b.pth", "c.pkl", "d.ckpt", "E.PT"):
        assert "pickles are not sent" in problem_of(pickle, "")
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt", "from": "/home/me/run"})
    with pytest.raises(HubError, match=r"model\.safetensors holds the absolute path /home/me/run"):
        push_checkpoint(checkpoint, NAME)
    assert hub.repositories == {}


PLANTED = """
import os, pathlib
pathlib.Path(os.environ["PLANTED"]).write_text(repr(sorted(os.environ.values())))
"""


def plant(checkpoint):
    code = checkpoint / "modeling_revhrnet.py"
    code.write_text(code.read_text() + PLANTED)


def test_code_that_is_not_this_packages_is_neither_run_nor_sent(hub, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    plant(checkpoint)
    for dry_run in (True, False):
        with pytest.raises(HubError, match=r"modeling_revhrnet\.py .* differ from this package's code.*--trust_remote_code"):
            push_checkpoint(checkpoint, NAME, dry_run=dry_run)
    assert not (tmp_path / "planted").exists() and hub.repositories == {}


@pytest.mark.slow
def test_code_that_is_trusted_runs_without_tokens(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"secret-{name}")
    plant(checkpoint)
    push_checkpoint(checkpoint, NAME, dry_run=True, trust_remote_code=True)
    seen = (tmp_path / "planted").read_text()
    assert "secret-" not in seen and str(tmp_path / "planted") in seen


def test_reports_which_show_the_datasets_images_are_never_sent(checkpoint, tmp_path, loads):
    """Cityscapes and Mapillary forbid to pass images on: neither the run's report nor that of an evaluation leaves."""
    image = b"data:image/jpeg;base64,MARKED"
    here = [checkpoint / "report.html", checkpoint / "scores_cityscapes_val_report.html", checkpoint.parent / "report.html"]
    worst = checkpoint / "scores_cityscapes_val_worst" / "001_a.png"
    worst.parent.mkdir()
    for path in (*here, worst):
        path.write_bytes(image)
    (tmp_path / "staged").mkdir()
    left_out = hub_module.stage(checkpoint, tmp_path / "staged", "someone/tiny")
    assert {"report.html", "scores_cityscapes_val_report.html", "scores_cityscapes_val_worst"} <= set(left_out)
    sent = [path for path in (tmp_path / "staged").rglob("*") if path.is_file()]
    assert sent and not [path for path in sent if path.suffix == ".html" or b"MARKED" in path.read_bytes()]


def test_only_code_that_loading_needs_is_sent(checkpoint, tmp_path, loads):
    (checkpoint / "notes.py").write_text("my_password = 1")
    (tmp_path / "staged").mkdir()
    left_out = hub_module.stage_model(checkpoint, tmp_path / "staged")
    assert "notes.py" in left_out and not (tmp_path / "staged" / "notes.py").exists()
    assert {"modeling_revhrnet.py", "high_resolution.py", "image_processing_revhrnet.py"} <= {
        path.name for path in (tmp_path / "staged").iterdir()
    }


@pytest.mark.parametrize("name", ["versions.json", "example.png", "README.md", "model.safetensors"])
def test_links_out_of_the_folder_are_not_followed(checkpoint, tmp_path, name):
    (checkpoint / name).unlink(missing_ok=True)
    (tmp_path / "thesis.txt").write_text("{}")
    (checkpoint / name).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(HubError, match=rf"{name} is a link out of the checkpoint's folder"):
        push_checkpoint(checkpoint, NAME, dry_run=True)


def test_a_snapshot_in_the_hubs_cache_can_be_sent(checkpoint, tmp_path, loads):
    """Its files are links to blobs, which is how huggingface_hub keeps what it has fetched."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for path in (path for path in checkpoint.iterdir() if path.is_file()):
        (blobs / f"blob-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-{path.name}")
    push_checkpoint(snapshot, NAME, dry_run=True)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_load_alone_is_not_sent(hub, checkpoint):
    code = checkpoint / "modeling_revhrnet.py"
    code.write_text(code.read_text() + "\nfrom revhrnet_hf import cli\n")
    with pytest.raises(HubError, match=r"does not load in a fresh process without this package: .*revhrnet_hf"):
        push_checkpoint(checkpoint, NAME, trust_remote_code=True)
    assert hub.repositories == {}


def test_dry_run_needs_neither_token_nor_network(checkpoint, loads, monkeypatch, capsys):
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    assert push_checkpoint(checkpoint, NAME, dry_run=True) is None
    printed = capsys.readouterr().out
    assert "  model.safetensors" in printed and "  modeling_revhrnet.py" in printed and "nothing was sent" in printed
    with pytest.raises(HubError, match=r"no token for the Hub.*HF_TOKEN"):
        push_checkpoint(checkpoint, NAME)


def test_the_missing_token_has_no_hint_of_another_command(monkeypatch):
    """`train --dry_run` asks as well, and needs a token there."""
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    with pytest.raises(HubError, match="no token") as caught:
        hub_module.check_ready(NAME)
    assert "--dry_run" not in str(caught.value)


def test_of_a_runs_folder_its_best_is_pushed(checkpoint, loads, capsys):
    push.main([str(checkpoint.parent), NAME, "--dry_run"])
    assert "  model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("preprocessor_config.json", "[]"), ("recipe.yaml", "a: [1"), ("config.json", "\xff")],
)
def test_damaged_settings_are_named(checkpoint, loads, name, content):
    (checkpoint / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: "):
        push_checkpoint(checkpoint, NAME, dry_run=True)


def test_names(hub, checkpoint, loads, monkeypatch, capsys):
    with pytest.raises(HubError, match="no name of a repository"):
        push_checkpoint(checkpoint, "two words")
    with pytest.raises(HubError, match=r"may not write there.*namespace else"):
        push_checkpoint(checkpoint, "else/tiny")
    hub.repositories[NAME] = type(hub).repository_type(files={"config.json": b'{"model_type": "bert"}'})
    with pytest.raises(HubError, match="is taken: the repository holds a bert, no revhrnet"):
        push_checkpoint(checkpoint, NAME)
    hub.repositories[NAME] = type(hub).repository_type(files={"config.json": b'{"model_type": "revhrnet"}'})
    with pytest.raises(HubError, match="there already and public"):
        push_checkpoint(checkpoint, NAME, private=True)
    assert hub.commits == []
    push_checkpoint(checkpoint, NAME)
    assert "it gets a further commit" in capsys.readouterr().out
    assert json.loads(hub.repositories[NAME].branches["main"]["config.json"])["num_blocks"] == 1
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(HubError, match="does not accept the token"):
        push_checkpoint(checkpoint, NAME)


@pytest.mark.parametrize("where", ["PUT /lfs/", "POST .*/commit/", "GET /api/whoami"])
def test_network_lost(hub, checkpoint, loads, where):
    """Said: what was lost, what had been sent. Kept: the checkpoint, to the byte. Afterwards the same command succeeds."""
    before = snapshot(checkpoint.parent)
    hub.break_at = where
    with pytest.raises(HubError, match="connection to the Hub was lost") as caught:
        push_checkpoint(checkpoint, NAME)
    said = str(caught.value)
    if where.startswith("POST"):
        assert "So far: model.safetensors had been sent" in said
        assert "if it arrived, all of it is there" in said
    else:
        assert ("So far: no large file had been sent" if "PUT" in where else "So far: nothing was sent") in said
    assert hub.commits == []
    assert snapshot(checkpoint.parent) == before
    hub.break_at = None
    push_checkpoint(checkpoint, NAME)
    assert hub.commits == [(NAME, "main")]
