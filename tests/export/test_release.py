"""The folder of a release: checked by sha256sum, loaded by the Auto classes, its ONNX run by onnxruntime."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import revhrnet_hf
from revhrnet_hf.commands import release
from revhrnet_hf.errors import CheckpointError, ExportError, HubError, RecipeError
from revhrnet_hf.synthetic import draw_scenes

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

NAMES = {
    "README.md", "SHA256SUMS", "config.json", "model.json", "model.onnx", "model.safetensors", "model_int8.onnx",
    "preprocessor_config.json", "modeling_revhrnet.py", "configuration_revhrnet.py",
}  # fmt: skip


@pytest.fixture
def run(two_streams_checkpoint, tmp_path):
    """A run's output folder, whose `best` has an example image and things that are not for others."""
    best = shutil.copytree(two_streams_checkpoint, tmp_path / "jane" / "run" / "best")
    (best / "examples").mkdir()
    for number, scene in enumerate(draw_scenes("val", 3, (64, 96), seed=1)):
        Image.fromarray(scene.image).save(best / "examples" / f"{number}.png")
    (best / "optimizer.safetensors").write_bytes(b"")
    return best.parent


def label_map(folder, image, **options):
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, **options).eval()
    with torch.inference_mode():
        inputs = processor(images=image, return_tensors="pt").to(model.dtype)
        [found] = processor.post_process_semantic_segmentation(model(**inputs), [(image.height, image.width)])
    return model.dtype, found.numpy()


@pytest.mark.slow
def test_assets(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "release"
    release.main([str(run.relative_to(tmp_path)), "--output_dir", "release"])
    names = {path.name for path in out.iterdir()}
    assert names >= NAMES and "optimizer.safetensors" not in names and all(path.is_file() for path in out.iterdir())
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK\n") == len(names) - 1

    # Half the size; loaded as before, or in 16 bits on request; nearly the same label map.
    half, full = load_file(out / "model.safetensors"), load_file(run / "best" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16, torch.int64} and half.keys() == full.keys()
    [scene] = draw_scenes("val", 1, (120, 160), seed=5)
    image = Image.fromarray(scene.image)
    dtype, expected = label_map(run / "best", image)
    assert len(np.unique(expected)) > 2
    for options in ({}, {"dtype": torch.float16}):
        found_dtype, found = label_map(out, image, **options)
        assert found_dtype == options.get("dtype", dtype) and (found == expected).mean() > 0.99

    # The ONNX networks on the same values.
    processor = AutoImageProcessor.from_pretrained(out)
    values = processor(images=image, return_tensors="np")["pixel_values"]
    for name, least in (("model.onnx", 0.999), ("model_int8.onnx", 0.7)):
        [logits] = onnxruntime.InferenceSession(out / name).run(None, {"pixel_values": values})
        scaled = torch.nn.functional.interpolate(torch.from_numpy(logits), size=(120, 160), mode="bilinear")
        assert (scaled.argmax(1)[0].numpy() == expected).mean() > least

    # Others learn nothing about this machine, not even from the exporter's stack traces.
    places = [str(tmp_path), str(Path(revhrnet_hf.__file__).parent), str(Path(torch.__file__).parent)]
    content = b"".join(path.read_bytes() for path in out.iterdir())
    assert [place for place in places if place.encode() in content] == []
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`model.onnx` (float32) and `model_int8.onnx` (eight bits)" in card
    assert json.loads((out / "model.json").read_text())["int8"]["calibration_images"] == 3


def refused(kind, match, run, out, *options):
    before = sorted(run.parent.rglob("*"))
    with pytest.raises(kind, match=match):
        release.main([str(run), "--output_dir", str(out), *options])
    assert sorted(run.parent.rglob("*")) == before and not list(out.parent.glob(".*"))


@pytest.mark.slow
def test_onnx_of_one_size(run, tmp_path):
    release.main([str(run), "--output_dir", str(tmp_path / "release"), "--without_int8", "--size", "64", "96"])
    assert json.loads((tmp_path / "release" / "model.json").read_text())["sizes"] == [64, 96]


def test_what_stops_a_release(run, tmp_path):
    """Nothing is written, and the checkpoint stays as it was."""
    out = tmp_path / "assets" / "release"
    out.parent.mkdir()
    best = run / "best"
    (best / "versions.json").write_text('{"x": "data:/home/me/sets"}')
    refused(HubError, r"no release was written: .*versions\.json holds the absolute path /home/me/sets", run, out)
    (best / "versions.json").unlink()
    weights = load_file(best / "model.safetensors")
    name = next(name for name in weights if weights[name].is_floating_point())
    save_file(weights | {name: weights[name] * 0 + 1e5}, best / "model.safetensors", {"format": "pt"})
    refused(ExportError, re.escape(f"{name} holds 1e+05, and float16 ends at 65504"), run, out)
    shutil.rmtree(best / "examples")
    refused(RecipeError, "give --calibration IMAGES", run, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("x")
    refused(CheckpointError, "not an empty folder", run, out, "--without_int8")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_options_that_do_not_fit(run, tmp_path):
    out = tmp_path / "assets" / "release"
    out.parent.mkdir()
    refused(RecipeError, "--size 0 -5: give at least 1 pixel each", run, out, "--size", "0", "-5")
    refused(RecipeError, "give one of them", run, out, "--without_int8", "--calibration", str(run / "best" / "examples"))


def test_code_of_the_checkpoints_own(run, tmp_path, monkeypatch):
    """It is refused, unless it is trusted: then it is copied, and runs."""
    code = run / "best" / "modeling_revhrnet.py"
    code.write_text(code.read_text() + "\n# mine\n")
    out = tmp_path / "assets" / "release"
    out.parent.mkdir()
    refused(HubError, "give --trust_remote_code", run, out)
    staged, loaded = [], []

    def load(checkpoint, trust_remote_code=False):
        loaded.append(trust_remote_code)
        if len(loaded) == 2:
            raise CheckpointError("far enough")
        return None, None

    monkeypatch.setattr(
        "revhrnet_hf.export.release.check_staged", lambda folder, _: staged.append((folder / code.name).read_text())
    )
    monkeypatch.setattr("revhrnet_hf.export.release.load_checkpoint", load)
    refused(CheckpointError, "far enough", run, out, "--trust_remote_code")
    assert staged == [code.read_text()] and loaded == [True, True]


def test_a_failure_at_the_end_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("revhrnet_hf.export.release.check_staged", full)
    with pytest.raises(OSError, match="No space left"):
        release.main([str(run), "--output_dir", str(tmp_path / "out" / "release")])
    assert list((tmp_path / "out").iterdir()) == []
