"""A checkpoint that cannot be used is one clear error, and a missing folder is never sought on the Hub."""

import builtins
import json
import time
from contextlib import suppress
from functools import partial

import PIL.Image
import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.evaluation import (
    check_same_classes,
    checkpoint,
    find_checkpoint,
    load_checkpoint,
    load_for_inference,
    predict_label_maps,
)
from revhrnet_hf.synthetic import draw_scenes

CONFIG = dict(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3)


@pytest.fixture
def model():
    return SegformerForSemanticSegmentation(SegformerConfig(**CONFIG))


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_loads_weights_bit_for_bit_and_the_processor(model, folder):
    loaded, image_processor = load_checkpoint(folder)
    assert not loaded.training
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert image_processor.do_resize is False


def test_dtype_of_the_weights(folder):
    model, _ = load_checkpoint(folder, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["./absent", "/nowhere/absent", "a/b/c", "~/absent", "runs/absent", "a\\b"])
def test_a_missing_folder_is_not_sought_on_the_hub(name, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for auto_class in (AutoImageProcessor, AutoModelForSemanticSegmentation):
        monkeypatch.setattr(auto_class, "from_pretrained", lambda *_, **__: pytest.fail("asked Transformers"))
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        load_checkpoint(name)


def test_a_name_that_neither_folder_nor_hub_knows():
    with pytest.raises(CheckpointError, match=r"cannot load the checkpoint nobody/nothing: .*no folder of that name"):
        load_checkpoint("nobody/nothing")


def test_without_a_connection_it_is_said_at_once(monkeypatch):
    """One request, not Transformers' with their retries."""
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(checkpoint, "hf_hub_url", lambda name, file: f"http://127.0.0.1:9/{name}/{file}")  # nobody listens
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda *_, **__: pytest.fail("asked Transformers"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: pytest.fail("waited"))
    for name in ("bset", "runs/bset"):
        with pytest.raises(CheckpointError, match=f"there is no checkpoint folder {name}, and the Hub, .* cannot be reached"):
            load_checkpoint(name)


def test_a_config_with_a_wrong_value_is_one_plain_reason(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_encoder_blocks": "many"}))
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(folder)
    assert str(raised.value).endswith("Field 'num_encoder_blocks' expected int, got str (value: 'many')")


def test_folders_that_are_no_checkpoints(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is a file: give the checkpoint's folder"):
        load_checkpoint(folder / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["processor", "weights", "truncated", "config"])
def test_damaged_checkpoints_are_one_line(folder, damage):
    weights = folder / "model.safetensors"
    if damage == "processor":
        (folder / "preprocessor_config.json").unlink()
    elif damage == "weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the checkpoint") as raised:
        load_checkpoint(folder)
    assert "\n" not in str(raised.value)


def test_weights_that_are_missing_are_never_random(model, folder):
    model.segformer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"lacks \d+ of the model's weights \(decode_head"):
        load_checkpoint(folder)


def test_a_checkpoints_own_code_runs_only_where_it_is_trusted(folder, tmp_path, monkeypatch):
    """An architecture that nobody knows: an error without the flag, and no question on the terminal."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on the terminal"))
    (folder / "foreign.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from transformers import SegformerConfig, SegformerForSemanticSegmentation\n"
        "class ForeignConfig(SegformerConfig):\n    model_type = 'foreign'\n"
        "class Foreign(SegformerForSemanticSegmentation):\n    config_class = ForeignConfig\n"
    )
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.ForeignConfig", "AutoModelForSemanticSegmentation": "foreign.Foreign"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"brings Python code of its own.*--trust_remote_code"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
    with suppress(CheckpointError):  # Transformers renames SegFormer's weights by its own model type only
        load_checkpoint(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_classes_must_be_the_same():
    names = ["Sky", "Road", "Car"]
    config = SegformerConfig(**CONFIG, id2label=dict(enumerate(names)))
    check_same_classes(config, names, "camvid")
    check_same_classes(config, ["sky", "road", "car"], "camvid")
    check_same_classes(SegformerConfig(**CONFIG), names, "camvid")
    with pytest.raises(CheckpointError, match=r"has 3 classes \(Sky, Road, Car\), but camvid has 2 \(Sky, Road\)"):
        check_same_classes(config, names[:2], "camvid")
    with pytest.raises(CheckpointError, match="class 1 is 'Road' in the checkpoint, but 'Tree' in camvid: choose"):
        check_same_classes(config, ["Sky", "Tree", "Car"], "camvid")


def test_of_a_run_best_is_found_and_said(model, folder, tmp_path, caplog):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    folder.rename(run / "best")
    with caplog.at_level("INFO"):
        loaded, _ = load_checkpoint(run)
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert [str(run / "best") in message for message in caplog.messages] == [True]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert find_checkpoint(find_checkpoint(run)) == str(run / "best")
    assert len(caplog.messages) == 1  # a checkpoint is no run


def test_run_without_best_names_what_it_has(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"run in .*run has no checkpoint best, because it has not been scored yet: resume"):
        load_checkpoint(run)
    folder.rename(run / "last")
    with pytest.raises(CheckpointError, match=r"it holds .*run/last: resume it, or name a checkpoint"):
        find_checkpoint(run)
    chain = tmp_path / "chain"
    (chain / "1_cityscapes").mkdir(parents=True)
    (run / "last").rename(chain / "1_cityscapes" / "best")
    with pytest.raises(CheckpointError, match=r"it holds .*1_cityscapes/best"):
        find_checkpoint(chain)


def test_other_folders_and_names_stay_as_given(tmp_path):
    (tmp_path / "notes").mkdir()
    assert find_checkpoint(tmp_path / "notes") == str(tmp_path / "notes")
    assert find_checkpoint("somebody/model") == "somebody/model"


def test_a_checkpoint_in_the_home_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("~/run/best") == find_checkpoint("~/run") == str(tmp_path / "run" / "best")


def drawn_images(*sizes):
    return [PIL.Image.fromarray(scene.image) for size in sizes for scene in draw_scenes("val", 1, size, seed=0)]


class TestForInference:
    @pytest.mark.parametrize(("dtype", "equal"), [(torch.float32, 0.9999), (torch.bfloat16, 0.97)])
    def test_ours_is_optimized(self, tiny_checkpoint, dtype, equal):
        plain, fast = load_checkpoint(tiny_checkpoint), load_for_inference(tiny_checkpoint, "cpu", dtype)
        assert fast[0].is_optimized_for_inference
        assert {parameter.dtype for parameter in fast[0].parameters()} == {dtype}
        kernels = [p for p in fast[0].parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
        images = drawn_images((96, 128), (75, 53))
        for one, other in zip(predict_label_maps(*fast, images), predict_label_maps(*plain, images), strict=True):
            assert (one == other).mean() >= equal

    def test_another_librarys_model_stays_as_it_is(self, model, folder):
        loaded, image_processor = load_for_inference(folder)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert image_processor.do_resize is False

    @pytest.mark.slow
    def test_compiled_once_for_all_sizes_and_hooks_stay_outside(self, two_streams_checkpoint, monkeypatch):
        """With a backend that runs the graph as it was traced: only tracing is tested, the benchmark runs the real one."""
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        torch._dynamo.reset()
        plain, compiled = load_checkpoint(two_streams_checkpoint), load_for_inference(two_streams_checkpoint, compiled=True)
        torch._dynamo.utils.counters.clear()
        # For maps of fewer than 20,480 values PyTorch has another convolution, which needs a second graph.
        images, calls = drawn_images((96, 128), (150, 107), (121, 130)), []
        for image in images:
            handle = compiled[0].register_forward_pre_hook(lambda *_: calls.append(time.monotonic()))
            [one], [other] = predict_label_maps(*compiled, [image]), predict_label_maps(*plain, [image])
            handle.remove()
            assert (one == other).mean() >= 0.9999
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert len(set(calls)) == 3

    def test_without_a_compiler_it_is_one_line(self, folder):
        # The config's own patch: pytest's would delete the first setting when it is undone, for all tests that follow.
        no_compiler = torch._inductor.config.patch({"force_disable_caches": True, "cpp.cxx": ("/nowhere/c++",)})
        message = r"--compile needs a C\+\+ compiler .*No working C\+\+ compiler.*leave --compile out$"
        torch._dynamo.reset()
        with no_compiler, pytest.raises(RecipeError, match=message):
            load_for_inference(folder, compiled=True)
