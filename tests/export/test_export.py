"""Exported networks against the checkpoint, run by onnxruntime in a process without this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers.conv2d_same import Conv2dSame
from transformers import DPTImageProcessor, SegformerImageProcessor, TimmBackboneConfig
from transformers.modeling_outputs import SemanticSegmenterOutput

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetImageProcessor, export
from revhrnet_hf.commands import export as export_command
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, ExportError, RecipeError
from revhrnet_hf.evaluation import class_sources, evaluate_dataset, load_checkpoint, predict_label_maps
from revhrnet_hf.export.folder import Export, describe
from revhrnet_hf.export.onnx_network import onnx_session, run_onnx, write_onnx
from revhrnet_hf.export.program import export_program, logits_or_label_map
from revhrnet_hf.synthetic import write_camvid

from .. import forked

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

SCRIPT = Path(__file__).parents[2] / "scripts" / "export.py"

# What a program does that knows the JSON only: NumPy, Pillow, onnxruntime.
FOREIGN = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image

folder, image, file = sys.argv[1:]
told = json.load(open(f"{folder}/model.json"))
values = np.asarray(Image.open(image).convert("RGB"), dtype=np.float32) * told["input"]["rescale_factor"]
values = (values - np.float32(told["input"]["mean"])) / np.float32(told["input"]["std"])
session = onnxruntime.InferenceSession(f"{folder}/{file}")
[found] = session.run([told["output"]["name"]], {told["input"]["name"]: values.transpose(2, 0, 1)[None]})
np.save(sys.stdout.buffer, found)
assert not {"torch", "transformers", "revhrnet_hf"} & set(sys.modules)
"""


# The same with openvino, where importing torch is an error.
FOREIGN_OPENVINO = """
import json, sys
sys.modules["torch"] = None
import numpy as np, openvino
from PIL import Image

folder, image, file = sys.argv[1:]
told = json.load(open(f"{folder}/model.json"))
values = np.asarray(Image.open(image).convert("RGB"), dtype=np.float32) * told["input"]["rescale_factor"]
values = (values - np.float32(told["input"]["mean"])) / np.float32(told["input"]["std"])
network = openvino.Core().compile_model(f"{folder}/{file}", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
found = network({told["input"]["name"]: values.transpose(2, 0, 1)[None]})[told["output"]["name"]]
np.save(sys.stdout.buffer, found)
assert not {"transformers", "revhrnet_hf"} & set(sys.modules)
"""


def run(*arguments):
    return forked.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def exported(*arguments):
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def foreign(folder, image, file):
    code = FOREIGN_OPENVINO if file.endswith(".xml") else FOREIGN
    command = [sys.executable, "-c", code, folder, image, file]
    finished = subprocess.run(command, capture_output=True, cwd=folder)
    assert finished.returncode == 0, finished.stderr.decode()
    (folder / "found.npy").write_bytes(finished.stdout)
    return np.load(folder / "found.npy")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camvid") / "mini"
    write_camvid(folder, {"train": 3, "val": 2}, size=(61, 90))
    return folder


@pytest.fixture(scope="module")
def image(camvid):
    return next((camvid / "val").glob("*.png"))


@pytest.mark.slow
def test_onnx_of_any_size_where_nothing_of_ours_is(tiny_checkpoint, image, camvid, tmp_path):
    out = tmp_path / "onnx"
    said = exported(
        tiny_checkpoint,
        "--format",
        "onnx",
        "--dynamic",
        "--output_dir",
        out,
        "--quantize",
        "int8",
        "--calibration",
        camvid / "train",
    )
    assert "agrees with the checkpoint on 6 drawn images" in said
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx", "model_int8.onnx"]
    model, image_processor = load_checkpoint(tiny_checkpoint)
    told = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert told["labels"] == list(model.config.id2label.values())
    written = onnx.load(out / "model.onnx")
    assert [entry.version for entry in written.opset_import if entry.domain == ""] == [told["opset"]]
    assert [axis.dim_param or axis.dim_value for axis in written.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]

    inputs = image_processor(images=Image.open(image), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(foreign(out, image, "model.onnx"), expected, atol=1e-3)
    # Eight bits: much smaller than the network's spread, but not nothing, and the weights are really stored in eight.
    rough = foreign(out, image, "model_int8.onnx")
    assert np.abs(rough - expected).max() > 1e-3 and np.abs(rough - expected).mean() < 0.1 * expected.std()
    kinds = {tensor.data_type for tensor in onnx.load(out / "model_int8.onnx").graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.INT8}

    # In the place of the checkpoint, with windows, scores and all that.
    as_model = export.OnnxModel(out / "model.onnx")
    images = [Image.open(image), Image.open(image).resize((33, 120))]
    for one, other in zip(
        predict_label_maps(as_model, image_processor, images), predict_label_maps(model, image_processor, images), strict=True
    ):
        assert (one == other).mean() >= 0.999
    assert run(tiny_checkpoint, "--format", "onnx", "--dynamic", "--output_dir", out).stderr.startswith("error: ")


def test_a_folder_with_files_is_not_replaced(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="best exists and is not an empty folder"):
        Export(torch.nn.Identity(), RevHRNetImageProcessor(), "onnx").write(tmp_path / "best")
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.slow
def test_a_backbone_that_computes_in_bfloat16_is_exported_in_float32(tmp_path):
    """ONNX Runtime has no bfloat16 on CPUs; what was written is compared with the checkpoint in float32."""
    torch.manual_seed(0)
    settings = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "num_labels": 4}
    config = RevHRNetConfig(backbone="test_resnet", frozen_backbone_dtype="bfloat16", initializer="he", **settings)
    model = RevHRNetForSemanticSegmentation(config).eval()
    Export(model, RevHRNetImageProcessor(), "onnx", (64, 96)).write(tmp_path / "onnx")
    assert model.config.frozen_backbone_dtype == "bfloat16"
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    assert onnx.TensorProto.BFLOAT16 not in {value.type.tensor_type.elem_type for value in graph.value_info}
    assert "Cast" not in {node.op_type for node in graph.node}


@pytest.mark.slow
def test_label_maps_of_one_size_and_opset(two_streams_checkpoint, image, tmp_path):
    arguments = "--format", "onnx", "--size", 61, 90, "--with_argmax", "--opset", 18, "--output_dir", tmp_path / "fixed"
    exported(two_streams_checkpoint, *arguments)
    model, image_processor = load_checkpoint(two_streams_checkpoint)
    found = foreign(tmp_path / "fixed", image, "model.onnx")
    [expected] = predict_label_maps(model, image_processor, [Image.open(image)])
    assert (found.dtype, found.shape) == (np.uint8, (1, *expected.shape))
    assert len(np.unique(expected)) > 2 and (found[0] == expected).mean() >= 0.999
    assert json.loads((tmp_path / "fixed" / "model.json").read_text())["opset"] == 18


@pytest.mark.slow
def test_openvino_of_any_size_where_torch_is_not(tiny_checkpoint, image, camvid, tmp_path):
    for module in ("openvino", "nncf"):
        pytest.importorskip(module, reason="the extra `openvino` is not installed")
    out, labelled = tmp_path / "openvino", ["--dataset", "camvid", "--data_dir", camvid]
    arguments = "--format", "openvino", "--dynamic", "--quantize", "int8", "--max_drop", 0.9, "--output_dir", out
    said = exported(tiny_checkpoint, *arguments, *labelled)
    assert "agrees with the checkpoint on 6 drawn images" in said
    assert sorted(path.name for path in out.iterdir()) == [
        "model.bin",
        "model.json",
        "model.xml",
        "model_int8.bin",
        "model_int8.xml",
    ]
    model, image_processor = load_checkpoint(tiny_checkpoint)
    told = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert told["labels"] == list(model.config.id2label.values())
    assert (told["int8"]["calibration_images"], told["int8"]["max_drop"]) == (3, 0.9)
    with torch.no_grad():
        expected = model(**image_processor(images=Image.open(image), return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(foreign(out, image, "model.xml"), expected, atol=1e-3)
    rough = foreign(out, image, "model_int8.xml")
    assert np.abs(rough - expected).max() > 1e-3 and np.abs(rough - expected).mean() < 0.2 * expected.std()
    assert (out / "model_int8.bin").stat().st_size < 0.4 * (out / "model.bin").stat().st_size
    # The scores written are those of the checkpoint's own evaluation.
    rows = load_segmentation_dataset("camvid", camvid, "val")
    sources = class_sources(model.config, label_space_of(rows), "camvid")
    own = evaluate_dataset(model, image_processor, rows, 11, sources=sources).scores(label_space_of(rows).names)["mean_iou"]
    assert told["int8"]["mean_iou"]["float32"] == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.uint16)])
def test_label_maps_take_the_smallest_type(classes, dtype):
    logits, pixel_values = torch.randn(1, classes, 6, 8), torch.zeros(1, 3, 24, 32)
    logits[:, -1, 2, 3] = 100  # the largest id occurs
    found = logits_or_label_map(logits, pixel_values, with_argmax=True)
    expected = F.interpolate(logits, (24, 32), mode="bilinear").argmax(1)
    assert found.dtype == dtype and expected.max() == classes - 1
    assert torch.equal(found.long(), expected)


@pytest.mark.slow
def test_torch_program(two_streams_checkpoint, image, tmp_path):
    exported(two_streams_checkpoint, "--format", "torch_export", "--dynamic", "--output_dir", tmp_path / "program")
    model, image_processor = load_checkpoint(two_streams_checkpoint)
    pixel_values = image_processor(images=Image.open(image), return_tensors="pt")["pixel_values"].repeat(3, 1, 1, 1)
    torch.save(pixel_values, tmp_path / "in.pt")
    # In a process of its own, without this package.
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module(); x = torch.load(sys.argv[2]);"
        "torch.save(program(x), sys.argv[3]); assert 'revhrnet_hf' not in sys.modules"
    )
    files = [tmp_path / "program" / "model.pt2", tmp_path / "in.pt", tmp_path / "out.pt"]
    forked.run([sys.executable, "-c", code, *files], preloaded=forked.BARE, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(files[2]), model(pixel_values).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (75, 53), (33, 34), (1, 2)])
def test_mirrored_is_the_same_as_tensorflows_padding(tiny_config, size):
    torch.manual_seed(0)
    config = tiny_config(
        initializer="he", backbone_config=TimmBackboneConfig(backbone="tf_efficientnet_lite0", out_indices=[1, 2, 3, 4])
    )
    model = RevHRNetForSemanticSegmentation(config).eval()
    exportable = export.Exportable(model)
    assert any(isinstance(layer, Conv2dSame) for layer in model.modules())
    assert not any(isinstance(layer, Conv2dSame) for layer in exportable.modules())
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(pixel_values).logits
        scale = expected.std()
        torch.testing.assert_close(exportable(pixel_values) / scale, expected / scale, rtol=0, atol=1e-4)


def test_another_network_is_found_out(tiny_model):
    batches = export.drawn_batches(RevHRNetImageProcessor(), (64, 96))
    agreement = export.check_agreement(tiny_model, lambda x: tiny_model(x).logits, batches)
    assert (agreement.images, agreement.largest_difference, agreement.equal_pixels) == (1, 0, 1)
    with pytest.raises(ExportError, match=r"differ by 0\.01"):
        export.check_agreement(tiny_model, lambda x: tiny_model(x).logits + 0.01, batches)
    with pytest.raises(ExportError, match="of the pixels are equal"):
        export.check_agreement(tiny_model, lambda x: torch.zeros(1, 64, 96, dtype=torch.uint8), batches)


def test_odd_sizes_are_compared_whether_or_not_images_are_padded():
    for image_processor in (RevHRNetImageProcessor(), RevHRNetImageProcessor(do_pad=True), SegformerImageProcessor()):
        batches = export.drawn_batches(image_processor, None)
        assert [tuple(batch.shape[-2:]) for batch in batches] == [(96, 128), (150, 107), (240, 320)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"do_pad": True}, {"multiple": 32}),
        ({"do_pad": True, "size_divisor": 1}, {"multiple": 1}),
        ({"do_pad": True, "size_divisor": 20, "do_resize": True, "size": {"longest_edge": 70}}, {"multiple": 20}),
        ({"do_pad": True, "pad_size": {"height": 96, "width": 64}}, {"size": {"height": 96, "width": 64}}),
    ],
)
def test_padding_is_described(tiny_model, options, expected):
    told = describe(tiny_model, RevHRNetImageProcessor(**options), with_argmax=False)["input"]["pad"]
    assert json.loads(json.dumps(told)) == (expected and {**expected, "is": told["is"]})


def test_padding_that_cannot_be_described(tiny_model):
    """DPT's centres the image."""
    with pytest.raises(ExportError, match=r"DPTImageProcessor pads images in a way that model\.json cannot describe"):
        describe(tiny_model, DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=32), with_argmax=False)


class Fixed(torch.nn.Module):
    """A network that gives these logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.logits)


LOGITS = torch.randn(1, 5, 16, 24, generator=torch.Generator().manual_seed(0))


def with_one(value):
    logits = LOGITS.clone()
    logits[0, 2, 3, 4] = value
    return logits


@pytest.mark.parametrize(
    ("checkpoint", "exported", "said"),
    [
        (LOGITS, LOGITS * torch.nan, "what was exported hold NaN or infinity"),
        (LOGITS, with_one(torch.nan), "what was exported hold NaN or infinity"),
        (LOGITS, with_one(torch.inf), "what was exported hold NaN or infinity"),
        (with_one(torch.nan), with_one(torch.nan), "the checkpoint hold NaN or infinity"),
        (with_one(-torch.inf), with_one(-torch.inf), "the checkpoint hold NaN or infinity"),
        (with_one(3e38), with_one(-3e38), "logits differ by inf"),
        (LOGITS, with_one(LOGITS[0, 2, 3, 4] + 0.0011), r"logits differ by 0\.0010999"),
        (LOGITS, LOGITS[:, :4], r"float32 of shape \(1, 4, 16, 24\) where the checkpoint gives .* \(1, 5, 16, 24\)"),
        (LOGITS, LOGITS[:, :, :1], r"of shape \(1, 5, 1, 24\)"),  # would be broadcast
        (LOGITS, LOGITS.double(), "torch.float64"),
        (LOGITS, torch.zeros(1, 16, 24, dtype=torch.uint8), r"uint8 of shape \(1, 16, 24\)"),
        (LOGITS, torch.zeros(1, 64, 96, dtype=torch.int32), "torch.int32"),
        (with_one(torch.nan), torch.zeros(1, 64, 96, dtype=torch.uint8), "the checkpoint hold NaN or infinity"),
    ],
)
def test_what_is_not_equal_fails_whatever_it_is(checkpoint, exported, said):
    batches = [torch.zeros(1, 3, 64, 96)]
    with pytest.raises(ExportError, match=said):
        export.check_agreement(Fixed(checkpoint), lambda _: exported, batches)


def test_a_bad_batch_between_good_ones_fails(tiny_model):
    outputs = iter([LOGITS, with_one(torch.nan), LOGITS])
    with pytest.raises(ExportError, match="NaN"):
        export.check_agreement(Fixed(LOGITS), lambda _: next(outputs), [torch.zeros(1, 3, 64, 96)] * 3)
    with pytest.raises(ExportError, match="no image to compare"):
        export.check_agreement(Fixed(LOGITS), lambda _: LOGITS, [])


def test_what_is_allowed_passes():
    found = export.check_agreement(Fixed(LOGITS), lambda _: with_one(LOGITS[0, 2, 3, 4] + 0.0009), [torch.zeros(1, 3, 64, 96)])
    assert found.largest_difference == pytest.approx(0.0009, rel=1e-3) and found.equal_pixels >= 0.999


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "torch_export", "--dynamic", "--opset", "18"], "--opset needs --format onnx"),
        (["--format", "torch_export", "--dynamic", "--quantize", "int8"], "--quantize needs --format onnx or openvino"),
        (["--format", "openvino", "--dynamic", "--quantize", "int8"], "takes labelled images: give --dataset"),
        (["--format", "openvino", "--dynamic", "--quantize", "int8", "--calibration", "."], "not --calibration"),
        (["--format", "onnx", "--dynamic", "--max_drop", "0.01"], "--max_drop needs --format openvino --quantize int8"),
        (
            ["--format", "openvino", "--dynamic", "--quantize", "int8", "--dataset", "x", "--data_dir", ".", "--max_drop", "5"],
            "--max_drop 5.0: give a difference of mIoU",
        ),
        (["--format", "onnx", "--dynamic", "--quantize", "int8"], "needs --calibration"),
        (["--format", "onnx", "--dynamic", "--calibration", "."], "need --quantize int8"),
        (["--format", "onnx", "--dynamic", "--data_dir", ".", "--split", "val"], "^--data_dir, --split: for the label maps of"),
        (["--format", "onnx", "--dynamic", "--loader", "folder"], "^--loader: for the label maps of --dataset"),
        (["--format", "onnx", "--dynamic", "--image_column", "x"], "^--image_column: for the label maps of --dataset"),
        (["--format", "onnx", "--size", "0", "9"], "--size 0 9: give at least 1 pixel each"),
    ],
)
def test_what_does_not_fit_together(tmp_path, arguments, said):
    with pytest.raises(RecipeError, match=said):
        export_command.main(["CHECKPOINT", *arguments, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_command_trusts_code_on_request(tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def load(checkpoint, trust_remote_code):
        raise Told(trust_remote_code)

    monkeypatch.setattr("revhrnet_hf.evaluation.load_checkpoint", load)
    arguments = ["CHECKPOINT", "--format", "torch_export", "--dynamic", "--output_dir", str(tmp_path / "out")]
    for options, expected in (([], "False"), (["--trust_remote_code"], "True")):
        with pytest.raises(Told, match=expected):
            export_command.main([*arguments, *options])


def test_columns_of_the_dataset(tmp_path, monkeypatch):
    asked = {}

    def load(*_, **options):
        asked.update(options)
        raise RecipeError("far enough")

    monkeypatch.setattr("revhrnet_hf.data.load_segmentation_dataset", load)
    arguments = ["CHECKPOINT", "--format", "onnx", "--dynamic", "--quantize", "int8", "--dataset", "hub", "--data_dir", "x/y"]
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    arguments += [
        "--calibration",
        str(image),
        "--image_column",
        "photo",
        "--label_column",
        "mask",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    with pytest.raises(RecipeError, match="far enough"):
        export_command.main(arguments)
    assert (asked["image_column"], asked["label_column"]) == ("photo", "mask")


def test_a_backbone_that_accepts_one_size_only(tmp_path):
    settings = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "initializer": "he"}
    model = RevHRNetForSemanticSegmentation(RevHRNetConfig(backbone="cait_xxs24_224", **settings)).eval()
    image_processor = RevHRNetImageProcessor.for_backbone(model.config)
    for size in (None, (224, 256)):
        with pytest.raises(ExportError, match="images of 224×224 pixels only: export it with --size 224 224"):
            Export(model, image_processor, "torch_export", size).write(tmp_path / "never")
    assert not (tmp_path / "never").exists()
    Export(model, image_processor, "torch_export", (224, 224)).write(tmp_path / "program")
    told = json.loads((tmp_path / "program" / "model.json").read_text(encoding="utf-8"))
    assert told["input"]["resize"]["size"] == {"height": 224, "width": 224}
    assert told["agreement_with_the_checkpoint"]["equal_pixels"] >= 0.999


class TestPlainTransformers:
    """Their maps are cropped from whole patches to the image's size."""

    @pytest.mark.slow
    @pytest.mark.parametrize("pyramid", ["resize", "learned"])
    def test_any_size(self, pyramid):
        torch.manual_seed(0)
        settings = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "initializer": "he"}
        config = RevHRNetConfig(backbone="test_vit", pyramid=pyramid, num_labels=5, **settings)
        model = RevHRNetForSemanticSegmentation(config).eval()
        program = export_program(model, None).module()
        for size in ((1, 3, 128, 192), (2, 3, 96, 160), (1, 3, 101, 150), (1, 3, 250, 99)):
            x = torch.randn(size)
            with torch.no_grad():
                torch.testing.assert_close(program(x), model(x).logits, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_onnx_of_one_size_only(self, tmp_path):
        """The exporter to ONNX fixes timm's position embeddings: another size is an error that names --size; with it, ONNX
        Runtime gives torch's logits, at an odd size too."""
        torch.manual_seed(0)
        settings = {"stream_channels": [8, 12, 16, 20], "num_modules": [1, 1, 1], "num_blocks": 1, "initializer": "he"}
        model = RevHRNetForSemanticSegmentation(RevHRNetConfig(backbone="test_vit", num_labels=5, **settings)).eval()
        write_onnx(export_program(model, None), tmp_path / "any.onnx")
        session = onnx_session(tmp_path / "any.onnx")
        batches = [torch.randn(size) for size in ((1, 3, 96, 160), (2, 3, 101, 150))]
        with pytest.raises(ExportError, match="--size HEIGHT WIDTH"):
            export.check_agreement(model, lambda x: run_onnx(session, x), batches)
        for number, size in enumerate(((96, 160), (101, 150))):
            x = torch.randn(1, 3, *size)
            write_onnx(export_program(model, size), tmp_path / f"{number}.onnx")
            with torch.no_grad():
                expected = model(x).logits
            assert expected.std() > 0.01
            torch.testing.assert_close(run_onnx(onnx_session(tmp_path / f"{number}.onnx"), x), expected, rtol=1e-3, atol=1e-4)

    def test_a_size_that_tracing_has_fixed(self):
        def fixed(pixel_values):
            assert pixel_values.shape[-2:] == (128, 192), "Guard failed: rows == 8"

        with pytest.raises(ExportError, match=r"images of 64×96 pixels \(Guard failed: rows == 8.*--size HEIGHT WIDTH"):
            export.check_agreement(Fixed(LOGITS), fixed, [torch.zeros(1, 3, 64, 96)])
