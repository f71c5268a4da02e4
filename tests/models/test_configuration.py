"""Configurations: no keyword is swallowed, backbones by name, and classes that change."""

import json
import logging

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    TimmBackboneConfig,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import revhrnet_hf
from revhrnet_hf import HRNetV2Config, RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetImageProcessor
from revhrnet_hf.models import configuration_revhrnet
from revhrnet_hf.models.losses import configured_loss

CONFIGS = [RevHRNetConfig, HRNetV2Config]
WIDTHS = {4: {"stream_channels": [4, 8, 12, 16], "num_modules": [1, 1, 1]}}
WIDTHS[5] = {"stream_channels": [4, 4, 8, 12, 16], "num_modules": [1, 1, 1, 1]}

configs = pytest.mark.parametrize("config_class", CONFIGS)


# Keywords


@configs
@pytest.mark.parametrize(
    ("keyword", "guess"),
    [
        ("num_module", "num_modules"),
        ("stream_channel", "stream_channels"),
        ("ignore_index", None),
        ("semantic_loss_class_weight", "semantic_loss_class_weights"),
        ("id2labels", "id2label"),
        ("max_length", None),  # Transformers would drop it: it is a setting of text generation
        ("frobnicate", None),
    ],
)
def test_unknown_keywords(config_class, keyword, guess):
    said = f"{config_class.__name__} does not know the keyword {keyword!r}" + (f"; did you mean {guess!r}" if guess else "")
    with pytest.raises(TypeError, match=said):
        config_class(**{keyword: 3})
    with pytest.raises(TypeError, match=said):
        config_class.from_variant("w18", **{keyword: 3})
    with pytest.raises(TypeError, match=said):
        AutoConfig.for_model(config_class.model_type, **{keyword: 3})


def test_only_the_reverse_network_has_a_backbone():
    for keyword in ("backbone", "backbone_config", "pyramid", "freeze_backbone"):
        with pytest.raises(TypeError, match=f"HRNetV2Config does not know the keyword {keyword!r}"):
            HRNetV2Config.from_variant("w18", **{keyword: None})
    with pytest.raises(TypeError, match="'stem_stride'"):
        RevHRNetConfig(stem_stride=2)


@configs
def test_keywords_of_loading_that_are_misspelt(config_class, tmp_path):
    config_class(num_labels=3).save_pretrained(tmp_path)
    for load in (config_class, AutoConfig):
        with pytest.raises(TypeError, match="'num_label'; did you mean 'num_labels'"):
            load.from_pretrained(tmp_path, num_label=4)
        assert load.from_pretrained(tmp_path, low_cpu_mem_usage=True, num_labels=5, _from_pipeline="x").num_labels == 5
    _, unused = config_class.from_pretrained(tmp_path, device_map="cpu", return_unused_kwargs=True)
    assert unused["device_map"] == "cpu"


@configs
def test_round_trips(config_class, tmp_path):
    """Everything that Transformers writes is taken back: in files, dictionaries, and as keywords of the constructor."""
    config = config_class(num_labels=3, palette=[[0, 1, 2]] * 3, dtype="float32", output_hidden_states=True)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for again in (
        config_class.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        config_class.from_dict(config.to_dict()),
        config_class(**config.to_dict()),
        config_class.from_json_file(tmp_path / "config.json"),
        config_class(**saved),
    ):
        again.name_or_path = ""
        assert {**again.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}


@configs
def test_entries_of_another_version_are_kept(config_class, tmp_path):
    config_class(num_labels=3).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    entries = {"of_a_later_version": [1, 2], "tie_word_embeddings": True, "_some_internal": 3}
    (tmp_path / "config.json").write_text(json.dumps({**saved, **entries}))
    loaded = AutoConfig.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["of_a_later_version"] == [1, 2]
    assert loaded.of_a_later_version == [1, 2]


# Backbones by name


@pytest.mark.parametrize("streams", [4, 5])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "vgg11", "dla34"])
def test_backbone_by_name(name, streams):
    """The named network gives the maps of strides 4 to 32 (from 2 on for five streams), whatever their numbers in timm."""
    if name == "test_convnext" and streams == 5:
        with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], but 5 streams need \[2, 4, 8, 16, 32\]"):
            RevHRNetConfig(backbone=name, **WIDTHS[streams])
        return
    config = RevHRNetConfig(backbone=name, num_labels=3, **WIDTHS[streams])
    assert config.backbone_config.backbone == name
    assert not hasattr(config, "backbone")
    with torch.device("meta"):
        model = revhrnet_hf.RevHRNetModel(config)
        maps = model.backbone(torch.empty(1, 3, 64, 96)).feature_maps
        theirs = timm.create_model(name, features_only=True, out_indices=config.backbone_config.out_indices)
    strides = [4, 8, 16, 32] if streams == 4 else [2, 4, 8, 16, 32]
    assert [tuple(x.shape[-2:]) for x in maps] == [(64 // stride, 96 // stride) for stride in strides]
    assert list(model.backbone.channels) == theirs.feature_info.channels()


def test_backbone_by_name_in_variants():
    for variant in configuration_revhrnet.VARIANTS:
        config = RevHRNetConfig.from_variant(variant, backbone="tf_efficientnet_lite0", num_labels=3)
        assert config.backbone_config.backbone == "tf_efficientnet_lite0"
        assert len(config.backbone_config.out_indices) == len(config.stream_channels)
        default = RevHRNetConfig.from_variant(variant).backbone_config
        assert (default.backbone, default.out_indices) == (
            "resnet50.fb_ssl_yfcc100m_ft_in1k",
            [0, 1, 2, 3, 4] if variant == "w24-5stream" else [1, 2, 3, 4],
        )


def test_what_a_named_backbone_predicts_is_timms(tmp_path):
    """Built by name, filled, saved and loaded again, beside the image processor for it: mean and std 0.5, timm's own maps."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_convnext", features_only=True).eval()
    config = RevHRNetConfig(backbone="test_convnext", num_labels=3, **WIDTHS[4])
    model = RevHRNetForSemanticSegmentation(config).eval()
    model.revhrnet.backbone._backbone.load_state_dict(theirs.state_dict())
    model.save_pretrained(tmp_path)
    RevHRNetImageProcessor.for_backbone(config).save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    batch = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    by_hand = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    torch.testing.assert_close(batch["pixel_values"], by_hand)
    with torch.no_grad():
        for ours, expected in zip(loaded.revhrnet.backbone(by_hand).feature_maps, theirs(by_hand), strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "given",
    [
        {"backbone": "test_resnet"},
        {"backbone": "timm/test_resnet"},
        {"backbone_config": {"backbone": "test_resnet"}},
        {"backbone_config": {"backbone": "test_resnet", "out_indices": [1, 2, 3, 4]}},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "test_resnet"}},
        {"backbone_config": TimmBackboneConfig(backbone="test_resnet")},
        {"backbone_config": TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]).to_dict()},
    ],
    ids=str,
)
def test_every_way_to_name_a_backbone(given):
    config = RevHRNetConfig(**given, **WIDTHS[4])
    assert (config.backbone_config.backbone, config.backbone_config.out_indices) == ("test_resnet", [1, 2, 3, 4])


def test_given_maps_and_objects_are_left_alone():
    given = TimmBackboneConfig(backbone="test_resnet")
    RevHRNetConfig(backbone_config=given)
    assert given.out_indices == [-1]
    five = {"backbone": "test_resnet", "out_indices": [0, 1, 2, 3]}
    assert RevHRNetConfig(backbone_config=five).backbone_config.out_indices == [0, 1, 2, 3]
    assert five == {"backbone": "test_resnet", "out_indices": [0, 1, 2, 3]}
    resnet = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    assert RevHRNetConfig(backbone_config=resnet).backbone_config is resnet


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbone": "resnet19"}, "timm has no model 'resnet19'.*did you mean 'resnet18'|'resnet10t'"),
        ({"backbone": "resnet18.nonsense"}, "timm has no model 'resnet18.nonsense'.*nonsense"),
        ({"backbone": ""}, "needs its name as 'backbone'"),
        ({"backbone": "levit_128"}, r"maps at strides \[16, 32, 64\], but 4 streams need \[4, 8, 16, 32\]"),
        ({"backbone": "test_vit", "stream_channels": [4] * 7, "num_modules": [1] * 6}, "6 layers, but 7 streams need a map each"),
        ({"backbone": "resnet18", "backbone_config": {"backbone": "resnet18"}}, "give one of the two"),
        ({"backbone_config": {}}, "model_type None"),
        ({"backbone_config": {"out_indices": [1, 2, 3, 4]}}, "model_type None.*its name"),
        ({"backbone_config": {"model_type": "timm-backbone"}}, "'timm-backbone'; did you mean 'timm_backbone'"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "needs its name as 'backbone'"),
        ({"backbone_config": "resnet18"}, "backbone_config"),
    ],
    ids=str,
)
def test_backbones_that_cannot_be(given, said):
    with pytest.raises((ValueError, StrictDataclassError), match=said):
        RevHRNetConfig(**given)


def test_misspelt_settings_of_a_backbone():
    with pytest.raises(TypeError, match="'out_index'; did you mean 'out_indices'"):
        RevHRNetConfig(backbone_config={"backbone": "resnet18", "out_index": [1, 2, 3, 4]})


def test_a_checkpoint_keeps_its_backbone(tiny_checkpoint):
    for load in (RevHRNetConfig, AutoConfig, RevHRNetForSemanticSegmentation, AutoModelForSemanticSegmentation):
        with pytest.raises(
            TypeError, match=r"backbone of a checkpoint cannot be changed.*from_variant\(…, backbone='resnet18'\)"
        ):
            load.from_pretrained(tiny_checkpoint, backbone="resnet18")


# Settings that do not fit


@configs
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"semantic_loss_class_weights": [1.0, float("nan")]}, "finite"),
        ({"semantic_loss_class_weights": [1.0, float("inf")]}, "finite"),
        ({"semantic_loss_class_weights": [1.0, -0.1]}, "none negative"),
        ({"semantic_loss_class_weights": [0.0, 0.0]}, "at least one above 0"),
        ({"semantic_loss_class_weights": [0, 0]}, "at least one above 0"),
        ({"semantic_loss_class_weights": []}, "0 for 2 classes"),
        ({"semantic_loss_class_weights": ["1", "2"]}, "semantic_loss_class_weights"),
        ({"semantic_loss_ohem_threshold": 0.0}, "above 0 and at most 1"),
        ({"semantic_loss_ohem_threshold": 70.0}, "above 0 and at most 1"),
        ({"semantic_loss_ohem_threshold": float("nan")}, "above 0 and at most 1"),
        ({"semantic_loss_ohem_min_kept": -1}, "0 or more"),
        ({"palette": [[0, 0, 0]]}, "1 for 2 classes"),
        ({"palette": [[0, 0, 0], [0, 0]]}, r"\[red, green, blue\]"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "0 to 255"),
        ({"untinted": [2]}, "untinted must have ids of classes, 0 to 1, got 2"),
        ({"untinted": ["sky"]}, "untinted"),
        ({"id2label": {1: "a", 2: "b"}}, "ids 0 to 1"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"b": 0, "a": 1}}, "label2id says that 'b' is class 0"),
        ({"id2label": {}}, "at least two classes"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels is 3, but the names of 2 classes"),
        ({"num_labels": 0}, "at least two classes"),
        ({"num_labels": 1}, "at least two classes, got num_labels=1: the background is a class too"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(config_class, settings, said, tmp_path):
    with pytest.raises((ValueError, StrictDataclassError), match=said):
        config_class(**settings)
    config_class(num_labels=2).save_pretrained(tmp_path)
    with pytest.raises((ValueError, StrictDataclassError), match=said):
        AutoConfig.from_pretrained(tmp_path, **settings)
    changed = config_class(num_labels=2)
    with pytest.raises((ValueError, StrictDataclassError)):  # set later, it is not saved
        for name, value in settings.items():
            setattr(changed, name, value)
        if settings.keys() >= {"num_labels", "id2label"}:  # one after the other they are no contradiction
            pytest.skip("the names that were set last count")
        changed.save_pretrained(tmp_path / "never")


@configs
def test_a_class_that_is_never_trained_is_said(config_class, monkeypatch):
    said = []
    monkeypatch.setattr(
        "revhrnet_hf.models.configuration_segmentation.logger.warning_once", lambda *args: said.append(args[0] % args[1:])
    )
    config_class(num_labels=255)
    config_class(num_labels=300, semantic_loss_ignore_index=-100)
    assert said == []
    config_class(num_labels=300)
    assert "semantic_loss_ignore_index is 255, so the class 'LABEL_255' is never trained" in said[0]


@configs
@pytest.mark.parametrize("name", ["id2label", "label2id"])
def test_names_in_a_list_are_refused(config_class, name):
    with pytest.raises(TypeError, match=f"{name} must be a mapping"):
        config_class.from_variant("w18", **{name: ["a", "b"]})


@configs
def test_weights_may_be_whole_numbers_and_some_of_them_0(config_class):
    config = config_class(num_labels=3, semantic_loss_class_weights=[1, 0, 2.5])
    labels = torch.tensor([[[0, 1, 2, 0]]])
    logits = torch.randn(1, 3, 1, 4)
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=torch.tensor([1.0, 0.0, 2.5]))
    torch.testing.assert_close(configured_loss(logits, labels, config), expected)


# Classes


@configs
def test_names_and_ids_belong_together(config_class):
    names = {"0": "road", "1": "sky", "2": "car"}
    expected = ({0: "road", 1: "sky", 2: "car"}, {"road": 0, "sky": 1, "car": 2})
    ids = {"road": "0", "sky": "1", "car": "2"}  # as in Transformers' example script
    for given in ({"id2label": names}, {"label2id": ids}, {"id2label": names, "label2id": ids, "num_labels": 3}):
        config = config_class(**given)
        assert config.id2label == expected[0]
        assert config.label2id == expected[1]
    config = config_class(num_labels=7)
    config.id2label = names
    assert (config.id2label, config.label2id, config.num_labels) == (*expected, 3)


OLD = {
    "id2label": dict(enumerate(["road", "sky", "car", "tree"])),
    "palette": [[128, 64, 128], [70, 130, 180], [0, 0, 142], [107, 142, 35]],
    "semantic_loss_class_weights": [1.0, 2.0, 3.0, 4.0],
    "training_history": [{"dataset": "camvid", "scores": {"mean_iou": 0.5}}],
}
NEW_NAMES = {i: f"class {i}" for i in range(15)}
NEW_IDS = {name: i for i, name in NEW_NAMES.items()}


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """A trained network with everything that belongs to its four classes."""
    torch.manual_seed(0)
    config = tiny_config(num_blocks=1, num_modules=[1, 1, 1], initializer="he", num_labels=4, **OLD)
    RevHRNetForSemanticSegmentation(config).save_pretrained(tmp_path / "best")
    RevHRNetImageProcessor().save_pretrained(tmp_path / "best")
    return tmp_path / "best"


def by_changed_config(folder):
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 15
    return AutoModelForSemanticSegmentation.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)


def by_config(folder):
    config = AutoConfig.from_pretrained(folder, id2label=NEW_NAMES, label2id={name: str(i) for name, i in NEW_IDS.items()})
    return AutoModelForSemanticSegmentation.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)


def by_new_head(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    model.head[3] = torch.nn.Conv2d(model.head[3].in_channels, 15, 1)
    model.config.id2label = NEW_NAMES
    return model


def by_keywords(model_class, **keywords):
    return lambda folder: model_class.from_pretrained(folder, ignore_mismatched_sizes=True, **keywords)


WAYS = {
    "num_labels": by_keywords(RevHRNetForSemanticSegmentation, num_labels=15),
    "num_labels, Auto class": by_keywords(AutoModelForSemanticSegmentation, num_labels=15),
    "id2label": by_keywords(AutoModelForSemanticSegmentation, id2label=NEW_NAMES),
    "id2label with text": by_keywords(AutoModelForSemanticSegmentation, id2label={str(i): n for i, n in NEW_NAMES.items()}),
    "label2id": by_keywords(AutoModelForSemanticSegmentation, label2id=NEW_IDS),
    "both": by_keywords(AutoModelForSemanticSegmentation, id2label=NEW_NAMES, label2id=NEW_IDS),
    "both, the other way round": by_keywords(AutoModelForSemanticSegmentation, label2id=NEW_IDS, id2label=NEW_NAMES),
    "all three": by_keywords(RevHRNetForSemanticSegmentation, num_labels=15, id2label=NEW_NAMES, label2id=NEW_IDS),
    "config, as the example script": by_config,
    "config with num_labels set": by_changed_config,
    "a new head": by_new_head,
}


@pytest.mark.parametrize("way", WAYS)
def test_fine_tuning_on_other_classes(way, checkpoint, tmp_path, caplog):
    """Every usual way: the loss is taken, the rest of the weights is the checkpoint's, and what is saved loads again."""
    before = load_file(checkpoint / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        model = WAYS[way](checkpoint)
    assert "palette, semantic_loss_class_weights, training_history (kept as pretraining_history)" in caplog.text
    config = model.config
    assert (config.palette, config.semantic_loss_class_weights, config.training_history) == (None, None, None)
    assert config.pretraining_history == OLD["training_history"]
    assert config.num_labels == 15
    assert {config.id2label[i]: i for i in range(15)} == config.label2id
    assert config.id2label == (NEW_NAMES if "num_labels" not in way else {i: f"LABEL_{i}" for i in range(15)})
    body = {k: x for k, x in model.state_dict().items() if not k.startswith("head.3")}
    assert all(torch.equal(before[name], tensor) for name, tensor in body.items())
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    label_maps = np.random.default_rng(0).integers(0, 16, (2, 32, 32))
    processor = AutoImageProcessor.from_pretrained(checkpoint, do_reduce_labels=True)
    outputs = model.train()(**processor(list(images), list(label_maps), return_tensors="pt"))
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss) and model.head[3].weight.grad.shape[0] == 15
    assert [m.shape for m in processor.post_process_semantic_segmentation(outputs, [(48, 50), (32, 32)])] == [(48, 50), (32, 32)]

    model.save_pretrained(tmp_path / "tuned")
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "tuned")
    assert again.config.id2label == config.id2label
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


def test_what_was_fine_tuned_goes_through_the_pipeline(checkpoint, tmp_path):
    model = WAYS["both"](checkpoint)
    torch.nn.init.normal_(model.head[3].weight)
    model.save_pretrained(tmp_path / "tuned")
    AutoImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "tuned")
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    segments = pipeline("image-segmentation", model=str(tmp_path / "tuned"))(image)
    assert {segment["label"] for segment in segments} <= NEW_IDS.keys()
    assert sum((np.array(segment["mask"]) > 0).sum() for segment in segments) == 40 * 60


def test_what_was_fine_tuned_loads_with_its_own_code(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    model = WAYS["both"](checkpoint).eval()
    model.save_pretrained(tmp_path / "tuned")
    theirs = get_class_from_dynamic_module("modeling_revhrnet.RevHRNetForSemanticSegmentation", str(tmp_path / "tuned"))
    assert theirs is not RevHRNetForSemanticSegmentation
    loaded = theirs.from_pretrained(tmp_path / "tuned")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
    again = theirs.from_pretrained(checkpoint, num_labels=7, ignore_mismatched_sizes=True)
    assert (again.config.num_labels, again.config.palette) == (7, None)


def test_new_classes_may_bring_their_own_settings(checkpoint):
    palette, weights = [[i, i, i] for i in range(15)], [1.0] * 15
    config = AutoConfig.from_pretrained(
        checkpoint, semantic_loss_class_weights=weights, palette=palette, id2label=NEW_NAMES, training_history=[]
    )
    assert (config.palette, config.semantic_loss_class_weights, config.training_history) == (palette, weights, [])
    with pytest.raises(StrictDataclassError, match="4 for 15 classes"):
        AutoConfig.from_pretrained(checkpoint, num_labels=15, palette=OLD["palette"])


@configs
def test_untinted_classes_belong_to_the_classes(config_class, tmp_path, caplog):
    config_class(num_labels=4, untinted=[0, 3]).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_labels=4).untinted == [0, 3]
    assert AutoConfig.from_pretrained(tmp_path, num_labels=3).untinted is None
    assert "classes have changed" in caplog.text and "untinted" in caplog.text
    assert AutoConfig.from_pretrained(tmp_path, num_labels=3, untinted=[2]).untinted == [2]


@configs
def test_a_temperature_that_was_fitted_to_other_classes(config_class, tmp_path, caplog):
    """It is 1 again, which the warning says, unless the new classes bring one."""
    config_class(num_labels=4, confidence_temperature=1.7).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, num_labels=3).confidence_temperature == 1.0
    assert "classes have changed" in caplog.text and "confidence_temperature (1.7, now 1.0)" in caplog.text
    for given in ({"num_labels": 3}, {"id2label": {0: "a", 1: "b"}}, {"num_labels": 4}):
        assert AutoConfig.from_pretrained(tmp_path, confidence_temperature=2.5, **given).confidence_temperature == 2.5
    caplog.clear()
    config = config_class(num_labels=4)
    config.num_labels = 3
    assert not caplog.records


def test_as_many_other_classes_are_other_classes(checkpoint, caplog):
    names = dict(enumerate(["cat", "dog", "bird", "fish"]))
    config = AutoConfig.from_pretrained(checkpoint, id2label=names)
    assert (config.palette, config.semantic_loss_class_weights) == (None, None)
    assert config.label2id == {"cat": 0, "dog": 1, "bird": 2, "fish": 3}
    assert "classes have changed" in caplog.text


def test_the_same_classes_keep_what_is_theirs(checkpoint, caplog):
    names = OLD["id2label"]
    for given in ({}, {"num_labels": 4}, {"id2label": names}, {"id2label": names, "label2id": {n: i for i, n in names.items()}}):
        config = AutoConfig.from_pretrained(checkpoint, **given)
        assert {name: getattr(config, name) for name in OLD} == OLD, given
        assert config.pretraining_history is None
    unnamed = RevHRNetConfig(num_labels=4, palette=OLD["palette"])
    unnamed.id2label = names  # a name is no other class
    assert unnamed.palette == OLD["palette"]
    assert not caplog.records


def test_folders_with_remains_of_other_classes_load(checkpoint, caplog):
    """As version 0.1.0 wrote them after fine-tuning with `id2label` alone."""
    saved = json.loads((checkpoint / "config.json").read_text())
    saved["id2label"] = {str(i): name for i, name in NEW_NAMES.items()}
    (checkpoint / "config.json").write_text(json.dumps(saved))
    config = AutoConfig.from_pretrained(checkpoint)
    assert (config.palette, config.semantic_loss_class_weights) == (None, None)
    assert (config.id2label, config.label2id) == (NEW_NAMES, NEW_IDS)
    assert "palette for 4 classes, but names of 15" in caplog.text


def test_histories_add_up():
    config = RevHRNetConfig(num_labels=2, training_history=[{"dataset": "a"}])
    config.num_labels = 3
    config.training_history = [{"dataset": "b"}]
    config.num_labels = 4
    assert (config.training_history, config.pretraining_history) == (None, [{"dataset": "a"}, {"dataset": "b"}])
