"""Used as people use Transformers: Auto classes, pipeline, and a checkpoint where this package is not installed."""

import functools
import http.server
import json
import logging
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import PIL.ImageChops
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ImageSegmentationPipeline,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

import revhrnet_hf
from revhrnet_hf.evaluation import predict_label_maps
from revhrnet_hf.images import read_image

from .. import forked

NAMES = ["sky", "road", "car", "tree", "person"]


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    tiny_model.config.id2label = dict(enumerate(NAMES))
    tiny_model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    tiny_model.save_pretrained(tmp_path / "checkpoint")
    revhrnet_hf.RevHRNetImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def image():
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


def test_pipeline(checkpoint, image, caplog, capfd):
    """Right names, the label map of the plain model, at the image's size, and no word of an unsupported model."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        segments = pipeline("image-segmentation", model=str(checkpoint))(image)
    logging.getLogger("transformers").propagate = False
    heard = caplog.text + "".join(capfd.readouterr())
    assert "not supported" not in heard
    assert "eager" not in heard
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    with torch.no_grad():
        pixel_values = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
        logits = torch.nn.functional.interpolate(model(pixel_values).logits, size=(53, 71), mode="bilinear")
    expected = logits.argmax(1)[0].numpy()
    assert len(np.unique(expected)) > 1
    assert np.array_equal(label_map_of(segments, image.size), expected)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert np.array_equal(predict_label_maps(model, processor, [image])[0], expected)


def pipelines_inputs(image, folder):
    """One image in every form that a pipeline takes; the addresses are served on loopback."""
    for name in ("one", "two"):
        image.save(folder / f"{name}.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield "file", str(folder / "one.png")
    yield "image", image
    yield "address", f"{address}/one.png"
    yield "list of files", [str(folder / "one.png"), str(folder / "two.png")]
    yield "list of addresses", [f"{address}/one.png", f"{address}/two.png"]
    yield "generator", (image for _ in range(2))
    server.shutdown()


def test_pipeline_takes_images_in_every_form(checkpoint, image, tmp_path):
    """Files, images, addresses; one by one, in lists, from a generator, in batches: always the same label map."""
    segmenter = pipeline("image-segmentation", model=str(checkpoint))
    expected = label_map_of(segmenter(image), image.size)
    for form, given in pipelines_inputs(image, tmp_path):
        many = not isinstance(given, str | PIL.Image.Image)
        for batch_size in (1, 2) if isinstance(given, list) else (1,):
            results = list(segmenter(given, batch_size=batch_size))
            for segments in results if many else [results]:
                assert np.array_equal(label_map_of(segments, image.size), expected), (form, batch_size)
            assert len(results) == 2 or not many


def test_pipeline_on_a_device_in_another_dtype(checkpoint, image):
    plain = pipeline("image-segmentation", model=str(checkpoint))
    segmenter = pipeline("image-segmentation", model=str(checkpoint), device="cpu", dtype=torch.bfloat16)
    assert segmenter.model.dtype == torch.bfloat16 and segmenter.device.type == "cpu"
    same = label_map_of(segmenter(image), image.size) == label_map_of(plain(image), image.size)
    assert 0.9 < same.mean() < 1  # rounded, so not all the same; were dtype ignored, all would be


def test_pipeline_sees_images_as_a_person_does(checkpoint, image, tmp_path):
    """What predict.py makes of each file, pixel by pixel: grey, 16 bits, CMYK, transparent, turned by EXIF, tiny, long."""
    grey, exif = np.array(image.convert("L")), PIL.Image.Exif()
    exif[0x0112] = 6
    clear = image.convert("RGBA")
    clear.putalpha(PIL.Image.fromarray(np.where(np.arange(71) < 40, 0, 255).astype(np.uint8)[None].repeat(53, 0)))
    kinds = {
        "grey.png": PIL.Image.fromarray(grey),
        "deep.png": PIL.Image.fromarray(grey.astype(np.uint16) * 257),
        "print.jpg": image.convert("CMYK"),
        "clear.png": clear,
        "tiny.png": image.crop((0, 0, 1, 1)),
        "long.png": image.resize((3000, 5)),
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
    image.save(tmp_path / "turned.jpg", exif=exif)
    segmenter = pipeline("image-segmentation", model=str(checkpoint))
    maps = {}
    for path in [*(tmp_path / name for name in kinds), tmp_path / "turned.jpg"]:
        seen = read_image(path)
        [expected] = predict_label_maps(segmenter.model, segmenter.image_processor, [seen])
        for given in (str(path), PIL.Image.open(path)):
            maps[path.name] = label_map_of(segmenter(given), seen.size)
            assert np.array_equal(maps[path.name], expected), path.name
    assert maps["turned.jpg"].shape == (71, 53) and maps["long.png"].shape == (5, 3000)
    assert np.array_equal(maps["deep.png"], maps["grey.png"])
    white = clear.copy()
    white.paste("white", mask=PIL.ImageChops.invert(clear.getchannel("A")))
    assert np.array_equal(maps["clear.png"], label_map_of(segmenter(white.convert("RGB")), image.size))


def test_pipeline_of_other_models_is_transformers_own():
    """A SegFormer's segments are those of the class that Transformers would have made."""
    torch.manual_seed(0)
    tiny = {"hidden_sizes": [8] * 4, "decoder_hidden_size": 8, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, id2label=dict(enumerate(NAMES)), **tiny))
    settings = {"model": model.eval(), "image_processor": SegformerImageProcessor(size={"height": 64, "width": 64})}
    deep = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 65536, (24, 40), dtype=np.uint16))
    ours = pipeline("image-segmentation", **settings)(deep)
    theirs = ImageSegmentationPipeline(**settings)(deep)
    assert np.array_equal(label_map_of(ours, deep.size), label_map_of(theirs, deep.size))


@pytest.mark.slow
def test_without_this_package(checkpoint, image, tmp_path):
    """A fresh process in which revhrnet_hf cannot be imported loads the folder's own code and computes the same bits."""
    image.save(tmp_path / "image.png")
    program = """
import sys
sys.modules["revhrnet_hf"] = None  # as if it were not installed: importing it is an ImportError
import numpy, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline
folder, image, out = sys.argv[1:]
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).train()
assert not any(p.requires_grad for p in model.revhrnet.backbone.parameters())
assert not model.revhrnet.backbone.training
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model.eval()(**processor(Image.open(image), return_tensors="pt")).logits
segments = pipeline("image-segmentation", model=folder, trust_remote_code=True)(image)
maps = {segment["label"]: numpy.array(segment["mask"]) for segment in segments}
numpy.savez(out, logits=logits.numpy(), **maps)
assert type(model).__module__.startswith("transformers_modules")
"""
    command = [sys.executable, "-c", program, checkpoint, tmp_path / "image.png", tmp_path / "out.npz"]
    finished = forked.run(command, preloaded=forked.BARE, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "not supported" not in finished.stdout + finished.stderr
    model = AutoModelForSemanticSegmentation.from_pretrained(checkpoint)
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    theirs = np.load(tmp_path / "out.npz")
    assert np.array_equal(theirs["logits"], logits.numpy())
    segments = [{"label": name, "mask": theirs[name]} for name in theirs.files if name != "logits"]
    assert np.array_equal(label_map_of(segments, image.size), predict_label_maps(model, processor, [image])[0])


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
    program = "import sys; sys.path.insert(0, sys.argv[1]); import revhrnet_hf, transformers"
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert result.returncode == 1
    assert "torch and torchvision do not fit together" in result.stderr
    assert "pip install --force-reinstall torch torchvision (in a clone with -c constraints.txt)" in result.stderr


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
