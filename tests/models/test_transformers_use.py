"""Used as people use Transformers: Auto classes, pipeline, and a checkpoint where this package is not installed."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments, pipeline

import revhrnet_hf
from revhrnet_hf.evaluation import predict_label_maps

NAMES = ["sky", "road", "car", "tree", "person"]


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    tiny_model.config.id2label = dict(enumerate(NAMES))
    tiny_model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    revhrnet_hf.RevHRNetImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def picture():
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (53, 71, 3), dtype=np.uint8))


def label_map_of(segments, size):
    label_map = np.full(size[::-1], 255, dtype=np.uint8)
    for segment in segments:
        label_map[np.array(segment["mask"]) > 0] = NAMES.index(segment["label"])
    return label_map


def test_auto_classes(checkpoint):
    assert type(AutoModelForSemanticSegmentation.from_pretrained(checkpoint)) is revhrnet_hf.RevHRNetForSemanticSegmentation
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert type(processor) is revhrnet_hf.RevHRNetImageProcessor
    assert list(processor.image_mean) == [0.5] * 3
    assert type(AutoImageProcessor.from_pretrained(checkpoint, backend="pil")) is revhrnet_hf.RevHRNetImageProcessorPil


def test_pipeline(checkpoint, picture, caplog, capfd):
    """Right names, the label map of the plain model, at the picture's size, and no word of an unsupported model."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        segments = pipeline("image-segmentation", model=str(checkpoint))(picture)
    logging.getLogger("transformers").propagate = False
    heard = caplog.text + "".join(capfd.readouterr())
    assert "not supported" not in heard
    assert "eager" not in heard
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    with torch.no_grad():
        pixel_values = (torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        logits = torch.nn.functional.interpolate(model(pixel_values).logits, size=(53, 71), mode="bilinear")
    expected = logits.argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 1
    assert np.array_equal(label_map_of(segments, picture.size), expected)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert np.array_equal(predict_label_maps(model, processor, [picture])[0], expected)


@pytest.mark.slow
def test_without_this_package(checkpoint, picture, tmp_path):
    """A fresh process in which revhrnet_hf cannot be imported loads the folder's own code and computes the same bits."""
    picture.save(tmp_path / "picture.png")
    program = """
import sys
sys.modules["revhrnet_hf"] = None  # as if it were not installed: importing it is an ImportError
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, picture, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).train()
assert not any(p.requires_grad for p in model.revhrnet.backbone.parameters())
assert not model.revhrnet.backbone.training
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model.eval()(**processor(Image.open(picture), return_tensors="pt")).logits
segments = pipeline("image-segmentation", model=folder, trust_remote_code=True)(picture)
maps = {segment["label"]: numpy.array(segment["mask"]) for segment in segments}
numpy.savez(out, logits=logits.numpy(), **maps)
assert type(model).__module__.startswith("transformers_modules")
"""
    command = [sys.executable, "-c", program, checkpoint, tmp_path / "picture.png", tmp_path / "out.npz"]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")})
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits
    theirs = np.load(tmp_path / "out.npz")
    assert np.array_equal(theirs["logits"], logits.numpy())
    segments = [{"label": name, "mask": theirs[name]} for name in theirs.files if name != "logits"]
    assert np.array_equal(label_map_of(segments, picture.size), predict_label_maps(model, processor, [picture])[0])


def test_checkpoint_folder(checkpoint):
    """Weights as safetensors only, the code flat beside them, and no path of the machine that saved it."""
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_revhrnet.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pth", ".pt"))]
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["auto_map"]["AutoModelForSemanticSegmentation"] == "modeling_revhrnet.RevHRNetForSemanticSegmentation"
    assert str(checkpoint.parent) not in (checkpoint / "config.json").read_text()


@pytest.mark.slow
def test_torch_that_does_not_fit_torchvision(tmp_path):
    """What a CPU-only torch beside the index's torchvision does at import (operator torchvision::nms does not exist)."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import revhrnet_hf"
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert result.returncode == 1
    assert "torch and torchvision do not fit together" in result.stderr
    assert "pip install --force-reinstall torch torchvision -c constraints.txt" in result.stderr


@pytest.mark.slow
def test_trainer_accumulates(tiny_config, tmp_path):
    """One SGD step of transformers.Trainer on four equal samples is the same in one pass and in two accumulated ones."""
    generator = torch.Generator().manual_seed(1)
    sample = {
        "pixel_values": torch.randn(3, 64, 64, generator=generator),
        "labels": torch.randint(0, 5, (64, 64), generator=generator),
    }
    steps = []
    for batch_size, passes in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he"))
        before = model.head[3].bias.detach().clone()
        settings = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=passes,
            max_steps=1,
            learning_rate=0.01,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=settings, train_dataset=[sample] * 4).train()
        steps.append(model.head[3].bias.detach() - before)
    assert steps[0].norm() > 1e-4
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-3, atol=1e-6)
