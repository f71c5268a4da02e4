"""Studies: which runs a file asks for, the peers' networks, and the table; one whole study on drawn scenes."""

import csv
import itertools
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf.adapters import add_adapters
from revhrnet_hf.data import get_label_space
from revhrnet_hf.errors import CheckpointError, RecipeError
from revhrnet_hf.hub.model_table import bytes_saved_by, count_multiply_adds
from revhrnet_hf.models.recompute import RecomputedModule
from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.recipe import Recipe

from .. import forked

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "study.py"
DOCS = SCRIPTS.parent / "docs"
LITE = "tf_efficientnet_lite0"

for extra in ("matplotlib", "segmentation_models_pytorch"):
    pytest.importorskip(extra)


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from studies.peers import register_peers

    register_peers()


def study(**settings):
    from studies.plan import Study

    usual = {"title": "A study", "recipe": "camvid_mini", "networks": {"ours": {}, "linear head": {"architecture": "linear"}}}
    return Study(**{**usual, **settings})


TUNING = {"train_split": "train[:80%]", "eval_split": "train[80%:]", "epochs": 1}


def test_a_run_has_the_settings_of_recipe_study_network_and_variation_in_this_order():
    plan = study(
        settings={"epochs": 5, "flip": 0.1, "batch_size": 2},
        networks={"a": {"flip": 0.2, "batch_size": 4}},
        variations={"b": {"batch_size": 6}, "c": {"epochs": 3}},
        seeds=[3, 4],
    )
    runs = plan.runs({})
    assert [(run.variation, run.seed) for run in runs] == [("b", 3), ("c", 3), ("b", 4), ("c", 4)]
    first = runs[0].recipe
    assert (first.dataset, first.base_size, first.epochs, first.flip, first.batch_size, first.seed) == (
        "camvid",
        320,
        5,
        0.2,
        6,
        3,
    )
    assert first.eval_every == 5 and not first.eval_at_start
    assert runs[1].recipe.eval_every == runs[1].recipe.epochs == 3
    assert len({run.folder for run in runs}) == 4


def test_learning_rates_are_tried_for_networks_without_their_own():
    plan = study(learning_rates=[0.1, 0.2], tuning=TUNING, networks={"a": {}, "b": {"learning_rate": 0.5}})
    tried = plan.tuning_runs()
    assert [(run.network, run.recipe.learning_rate, run.recipe.eval_split) for run in tried] == [
        ("a", 0.1, "train[80%:]"),
        ("a", 0.2, "train[80%:]"),
    ]
    assert [(run.network, run.recipe.learning_rate) for run in plan.runs({})] == [("b", 0.5)]
    assert [(run.network, run.recipe.learning_rate) for run in plan.runs({"a": 0.2})] == [("a", 0.2), ("b", 0.5)]


def test_of_a_chain_all_stages_have_the_settings():
    plan = study(recipe="mapillary_to_camvid_mini", settings={"flip": 0.25}, networks={"a": {"variant": "w32"}})
    (run,) = plan.runs({})
    assert [(recipe.dataset, recipe.flip, recipe.variant) for recipe in run.recipes] == [
        ("mapillary_vistas", 0.25, "w32"),
        ("camvid", 0.25, "w32"),
    ]
    assert run.recipe.dataset == "camvid"


def test_a_network_may_have_learning_rates_of_its_own():
    plan = study(learning_rates=[0.1, 0.2], tuning=TUNING, networks={"a": {}, "b": {"learning_rates": [0.05, "1e-1"]}})
    tried = [(run.network, run.recipe.learning_rate) for run in plan.tuning_runs()]
    assert tried == [("a", 0.1), ("a", 0.2), ("b", 0.05), ("b", 0.1)]
    assert [(run.network, run.recipe.learning_rate) for run in plan.runs({"b": 0.05})] == [("b", 0.05)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"networks": {}}, "no networks"),
        ({"baseline": "theirs"}, "'theirs' is not among the networks: ours, linear head"),
        ({"networks": {"a b": {}, "a/b": {}}}, "same folder runs/a_b/plain/seed_0"),
        ({"variations": {"1/2 data": {}, "1 2 data": {}}}, "2 runs of the study get the same folder runs/ours/1_2_data/seed_0"),
        ({"seeds": [0, 1, 0]}, "same folder runs/ours/plain/seed_0"),
        ({"learning_rates": [0.1, "1e-1"], "tuning": TUNING}, r"same folder tuning/ours/lr_0\.1/seed_0"),
        ({"learning_rates": 0.01}, "learning_rates must be a list, got 0.01"),
        ({"settings": {"learning_rates": [0.1]}}, "settings has learning_rates: they belong to the study or to a network"),
        ({"variations": {"v": {"learning_rates": [0.1]}}}, r"variations\.v has learning_rates"),
        (
            {"variations": {"v": {"learning_rate": 1}}, "learning_rates": [0.1], "tuning": TUNING},
            r"variations\.v has a learning_rate",
        ),
        ({"learning_rates": [0.1], "tuning": {**TUNING, "learning_rate": 1}}, "tuning has a learning_rate"),
        ({"networks": {"a": {"seed": 1}}}, r"networks\.a has a seed: give the study's seeds"),
        ({"networks": {"a" * 201: {}}}, "too long a name"),
        ({"networks": {"abc": {}, "ABC": {}}}, "2 runs of the study get the same folder"),
        ({"networks": {"a": {"learning_rates": 0.01}}}, "learning_rates of the network 'a' must be a list, got 0.01"),
        ({"networks": {"a": {"learning_rates": [0.1], "learning_rate": 1}}, "tuning": TUNING}, "'a' has both"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"seeds": []}, "no seeds"),
        ({"variations": {}}, "no variations"),
        ({"networks": {"ours": "w18"}}, r"networks\.ours must be a mapping, got 'w18'"),
        ({"networks": ["ours"]}, "networks must be a mapping"),
        ({"tuning": None}, "tuning must be a mapping, got None"),
        ({"recipe": ["camvid"]}, "recipe must be of type str"),
        ({"classes": "Pole"}, "classes must be a list, got 'Pole'"),
        ({"interval_block": "20"}, "interval_block must be of type int, got '20'"),
        ({"interval_block": 0}, "interval_block must be positive"),
        ({"networks": {"a": {"epochz": 1}}}, "epochz"),
        ({"networks": {"a": {"architecture": "fpm"}}}, "no architecture 'fpm'.*fpn"),
        ({"networks": {"a": {"architectur": "fpn"}}}, "network 'a': Unknown field .*did you mean architecture"),
        ({"recipe": "mapillary_to_camvid", "learning_rates": [0.1], "tuning": TUNING}, "chain"),
        ({"learning_rates": [0.1]}, "give tuning both"),
        ({"learning_rates": [0.1], "tuning": {**TUNING, "eval_split": "val[:50%]"}}, "split of the results"),
        (
            {
                "learning_rates": [0.1],
                "tuning": {**TUNING, "eval_split": "test[:50%]"},
                "networks": {"a": {"eval_split": "test"}, "b": {}},
            },
            "split of the results",
        ),
    ],
)
def test_errors_of_a_study(settings, said):
    with pytest.raises(RecipeError, match=said):
        study(**settings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "mapping"),
        ("title: a\nrecipe: b", "networks"),
        ("{title: a, recipe: camvid, networks: {a: {}}, seed: [1]}", "seeds"),
        ("{title: a, recipe: camvid, networks: {a: w18}}", r"study\.yaml: The study's networks\.a must be a mapping"),
    ],
)
def test_errors_of_a_file(tmp_path, content, said):
    from studies.plan import Study

    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=said):
        Study.from_yaml(path)


def test_yaml_may_have_numbers_as_text_or_names_and_empty_entries(tmp_path):
    from studies.plan import Study

    path = tmp_path / "study.yaml"
    path.write_text("{title: a, recipe: camvid_mini, networks: {18: }, variations: {92: {epochs: 2}}, learning_rates: [1e-3, 1]}")
    with pytest.raises(RecipeError, match="give tuning both"):
        Study.from_yaml(path)
    path.write_text(path.read_text()[:-1] + f", tuning: {json.dumps(TUNING)}}}")
    plan = Study.from_yaml(path)
    assert (plan.networks, plan.variations, plan.learning_rates) == ({"18": {}}, {"92": {"epochs": 2}}, [0.001, 1.0])


@pytest.mark.parametrize("path", sorted((SCRIPTS / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_study_files_can_be_read(path):
    from studies.plan import Study

    read = Study.from_yaml(path)
    assert len(read.runs(dict.fromkeys(read.tuned(), 0.001))) == len(read.networks) * len(read.seeds) * len(read.variations)


def peer(decoder, **settings):
    from studies.peers import PeerForSemanticSegmentation, peer_config

    common = {"decoder": decoder, "backbone": LITE, "num_labels": 5, "initializer": "he"}
    return PeerForSemanticSegmentation(peer_config({**common, **settings}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ("fpn", "FPN"),
        ("unet", "Unet"),
        ("upernet", "UPerNet"),
        ("deeplabv3plus", "DeepLabV3Plus"),
        ("pan", "PAN"),
        ("segformer", "Segformer"),
    ],
)
def test_peer_is_the_librarys_network_on_our_backbone(decoder, name):
    import segmentation_models_pytorch as smp

    ours = peer(decoder).eval()
    theirs = getattr(smp, name)("tu-tf_efficientnet_lite0", encoder_weights=None, classes=5).eval()
    encoder = theirs.encoder.model
    flat = {key.replace(".", "_"): value for key, value in ours.revhrnet.backbone._backbone.state_dict().items()}
    encoder.load_state_dict({key: flat[key.replace(".", "_")] for key in encoder.state_dict()})
    theirs.decoder.load_state_dict(ours.revhrnet.decoder.state_dict())
    theirs.segmentation_head[0].load_state_dict(ours.head.state_dict())
    theirs.segmentation_head[1] = torch.nn.Identity()  # its upsampling
    images = torch.randn(2, 3, 256, 320)
    with torch.no_grad():
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decoder", ["linear", "concat", "late", "fpn"])
def test_peer_trains_its_decoder_on_a_frozen_backbone_at_any_size(decoder):
    model = peer(decoder, **({"late_blocks": [1, 1, 1, 1]} if decoder == "late" else {})).train()
    before = {name: value.clone() for name, value in model.revhrnet.backbone.state_dict().items()}
    output = model(torch.randn(2, 3, 70, 101), labels=torch.randint(0, 5, (2, 70, 101)), output_hidden_states=True)
    assert output.logits.shape == (2, 5, 18, 26)
    assert [x.shape[2:] for x in output.hidden_states] == [(18, 26), (9, 13), (5, 7), (3, 4)][: len(output.hidden_states)]
    output.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if ".backbone." not in name}
    assert all(torch.equal(value, before[name]) for name, value in model.revhrnet.backbone.state_dict().items())


@pytest.mark.parametrize("decoder", ["linear", "concat", "late", "fpn", "unet", "upernet", "deeplabv3plus", "pan", "segformer"])
def test_costs_of_every_decoder(decoder):
    from studies.runner import costs_of

    model = peer(decoder, **({"late_blocks": [1, 1, 1, 1]} if decoder == "late" else {})).train()
    size = (256, 256) if decoder == "pan" else (64, 96)  # which halves the coarsest map three times
    costs = costs_of(model, Recipe("camvid", crop_size=list(size)))
    kept = [bytes_saved_by(model, lambda count=count: model(torch.randn(count, 3, *size)).logits) for count in (2, 4)]
    # Norms keep their means once for all images.
    recomputes = any(isinstance(module, RecomputedModule) for module in model.modules())
    assert (costs["plain_kept_bytes"] > costs["kept_bytes"]) == recomputes
    assert kept[0] // 2 == costs["kept_bytes"] and kept[1] / 4 == pytest.approx(costs["kept_bytes"], rel=0.02)
    assert costs["trained_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad) < costs["parameters"]
    assert costs["multiply_adds"] > 0
    model.eval().optimize_for_inference()  # as it is scored


def test_costs_are_those_of_the_recipes_recomputation_and_adapters():
    from studies.runner import costs_of

    config = RevHRNetConfig.from_variant("w18", num_modules=[1, 1, 1], backbone=LITE, num_labels=5)
    model = RevHRNetForSemanticSegmentation(config)
    found = {
        name: costs_of(model, Recipe("camvid", crop_size=[64, 96], **settings))
        for name, settings in {
            "norms": {},
            "modules": {"recompute": "modules"},
            "none": {"recompute": "none"},
            "lora": {"trainable_backbone": "lora", "lora_rank": 2},
        }.items()
    }
    assert found["modules"]["kept_bytes"] < found["norms"]["kept_bytes"] < found["none"]["kept_bytes"]
    assert found["none"]["kept_bytes"] == found["none"]["plain_kept_bytes"] == found["modules"]["plain_kept_bytes"]
    assert found["lora"]["kept_bytes"] > found["norms"]["kept_bytes"]
    adapters = add_adapters(model, 2, 4.0)
    added = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and ".backbone." in name)
    assert adapters and found["lora"]["trained_parameters"] == found["norms"]["trained_parameters"] + added


def test_peer_has_the_settings_of_the_recipe_or_says_that_it_has_not():
    space = get_label_space("camvid11")
    common = {"architecture": "linear", "backbone": LITE, "backbone_weights": "random"}
    model, _ = build_model(Recipe("camvid", backbone_dtype="bfloat16", **common), space)
    assert next(model.revhrnet.backbone.buffers()).dtype == torch.float32 and model.config.frozen_backbone_dtype == "bfloat16"
    with pytest.raises(RecipeError, match="auxiliary_loss_weight has no effect on the decoder 'linear'"):
        build_model(Recipe("camvid", auxiliary_loss_weight=0.4, **common), space)
    labels = torch.randint(0, 11, (2, 32, 32))
    given = torch.randn(2, 3, 32, 32), labels
    whole, half = (model.eval()(*given, pixel_share=share).loss for share in (1.0, 0.5))
    assert half.item() == pytest.approx(whole.item() / 2) and model(*given).loss.item() == pytest.approx(whole.item())


def test_linear_head_is_linear():
    maps = [torch.randn(2, channels, size, size + 4) for channels, size in ((6, 32), (5, 16), (4, 8))]
    from studies.peers import LinearHead

    head = LinearHead([6, 5, 4], 3, 0.1)
    head(*maps)  # statistics that are not 0 and 1
    weight, bias = torch.randn(3, 15), torch.randn(3)
    head.classifier.load_state_dict({"weight": weight[..., None, None], "bias": bias})
    head.eval()
    norms = [head.norms[i](x) for i, x in enumerate(maps)]
    upsampled = torch.cat([F.interpolate(x, size=(32, 36), mode="bilinear") for x in norms], 1)
    torch.testing.assert_close(
        head(*maps), torch.einsum("oc,bchw->bohw", weight, upsampled) + bias[:, None, None], atol=1e-4, rtol=1e-4
    )


def test_late_fusion_costs_what_early_fusion_costs():
    from studies.peers import LATE_BLOCKS

    with torch.device("meta"):
        config = RevHRNetConfig.from_variant("w18", num_modules=[1, 1, 1], head="concat", backbone=LITE, num_labels=11)
        networks = RevHRNetForSemanticSegmentation(config), peer("late", late_blocks=LATE_BLOCKS, num_labels=11)
        early, late = ((model.num_parameters(True), count_multiply_adds(model.eval(), (416, 576))) for model in networks)
    assert np.allclose(np.divide(late, early), 1, atol=0.01)


def result(network, seed, mean_iou, **values):
    return {
        "network": network,
        "variation": "plain",
        "seed": seed,
        "mean_iou": mean_iou,
        "pixel_accuracy": 0.9,
        "boundary_iou": None,
        "iou": {"pole": 0.25, "road": 0.75},
        "trained_parameters": 2_000_000,
        "multiply_adds": 5e9,
        "kept_bytes": 2**20 * 100,
        "plain_kept_bytes": 2**20 * 150,
        "step_seconds": 1.5,
        "image_seconds": 0.25,
        "versions": {},
        **values,
    }


def write_run(run, output_dir, mean_iou, totals, **values):
    folder = output_dir / run.folder
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result(run.network, run.seed, mean_iou, recipe=asdict(run.recipe), **values)))
    np.savez(folder / "totals.npz", totals=totals)


def test_one_image_has_no_interval_of_a_difference(tmp_path):
    from studies.results import read_rows, score_cells

    plan = study(seeds=[1], baseline="ours")
    for run in plan.runs({}):
        right = 4 if run.network == "ours" else 2
        write_run(run, tmp_path, 0.5, np.array([[[right] * 2, [4, 4], [4, 4]]]))
    titles, _, other, *_ = score_cells(plan, read_rows(plan, tmp_path))
    found = dict(zip(titles, other, strict=True))
    assert (found["to ours"], found["interval over images"]) == ("-0.667", "–")


def test_table_shows_gaps_intervals_and_differences(tmp_path):
    from studies.results import cost_cells, read_rows, score_cells, write_results

    plan = study(seeds=[0, 1, 2], baseline="ours", classes=["pole"])
    right, wrong = [[[4, 4], [4, 4], [4, 4]]] * 3, [[[2, 2], [4, 4], [4, 4]]] * 3
    finished = (run for run in plan.runs({}) if run.network == "ours")
    for run, score, totals in zip(finished, (0.5, 0.6, 0.7), (wrong, right, wrong), strict=True):
        write_run(run, tmp_path, score, np.array(totals))
    (last,) = (run for run in plan.runs({}) if run.network == "linear head" and run.seed == 1)
    write_run(last, tmp_path, 0.4, np.array(wrong))
    rows = read_rows(plan, tmp_path)
    (titles, ours, linear), (cost_titles, _, costs) = score_cells(plan, rows), cost_cells(plan, rows)
    first, second = dict(zip(titles, ours, strict=True)), dict(zip(titles, linear, strict=True))
    second |= zip(cost_titles, costs, strict=True)
    # Student's t for three values: 4.303 × 0.1 / √3.
    assert (first["seeds"], first["mIoU"], first["to ours"], first["boundary IoU"]) == ("3", "0.600 ± 0.248", "", "–")
    # Of the seed that both have. IoU of each class: 4 / 4, and 2 / (4 + 4 − 2).
    assert (second["seeds"], second["mIoU"], second["to ours"]) == ("1 of 3", "0.400", "-0.667")
    assert (first["with each seed"], second["with each seed"], second["interval over images"]) == (
        "",
        "-0.667",
        "-0.667 to -0.667",
    )
    assert (second["pole"], second["kept MiB"], second["without recomputation"]) == ("0.250", "100", "150")
    assert second["s / step"] == "1.50"
    written = write_results(plan, tmp_path, tmp_path, "name")
    assert {path.name for path in written} == {"name.md", "name.csv", "name_scores.png", "name_costs.png"}
    with open(tmp_path / "name.csv") as file:
        assert [float(line["mean_iou"]) for line in csv.DictReader(file)] == [0.5, 0.6, 0.7, 0.4]


def test_names_of_folders_stay_in_the_output_folder():
    (run,) = study(networks={"..": {}}, variations={"..": {}}).runs({})
    assert run.folder == "runs/_/_/seed_0"


def test_networks_that_were_scored_on_other_images_are_not_compared(tmp_path):
    from studies.results import read_rows

    plan = study(baseline="ours", networks={"ours": {}, "b": {"flip": 0.1}})
    for number, run in enumerate(plan.runs({})):
        write_run(run, tmp_path, 0.5, np.ones((2, 3, 2)), data=str(number))
    with pytest.raises(CheckpointError, match="b cannot be compared with ours: they are scored on other images"):
        read_rows(plan, tmp_path)


def test_damaged_totals_are_named(tmp_path):
    from studies.results import read_rows

    plan = study(networks={"a": {}})
    (run,) = plan.runs({})
    write_run(run, tmp_path, 0.5, np.ones((2, 3, 2)))
    totals = tmp_path / run.folder / "totals.npz"
    totals.write_bytes(totals.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"totals\.npz cannot be read .* the run is made again"):
        read_rows(plan, tmp_path)


def test_a_run_that_is_killed_is_said(tmp_path, caplog):
    from studies.runner import work_through

    (run,) = study(networks={"a": {}}).runs({})
    kill = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with caplog.at_level("INFO", "revhrnet_hf"):
        assert work_through([run], kill, []) == [run]
    assert [record.getMessage() for record in caplog.records] == [
        f"run 1 of 1: {run.folder}",
        f"{run.folder} was ended by signal 9; the system does that if memory is short",
    ]


def test_a_network_whose_rate_is_not_chosen_yet_is_said(tmp_path):
    from studies.runner import waiting

    plan = study(networks={"a": {}, "b": {}, "c": {"learning_rate": 1}}, learning_rates=[0.1, 0.2], tuning=TUNING)
    for run in plan.tuning_runs()[:3]:
        write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    assert waiting(plan, tmp_path) == ["b"]


def test_interval_of_a_difference_over_seeds_is_students():
    from scipy import stats
    from studies.results import Row, _differences, half_width

    differences = (-0.014, -0.007, -0.017)
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert half_width(differences) == pytest.approx((high - low) / 2)
    assert np.isnan(half_width(differences[:2]))  # of two seeds it would be 13 times as wide as they differ
    row = Row("other", "plain", [], [], 3, (-0.0127, [-0.017, -0.008]), differences)
    assert _differences(row, "ours") == ("-0.013 ± 0.013", "-0.014, -0.007, -0.017", "-0.017 to -0.008")


def test_records_are_enough_for_the_same_table_and_to_go_on(tmp_path):
    from studies.results import write_results
    from studies.runner import copy_records, remaining

    plan = study(
        seeds=[0, 1], baseline="ours", learning_rates=[0.1, 0.2], tuning=TUNING, networks={"ours": {}, "b": {"flip": 0.1}}
    )
    done, kept = tmp_path / "done", tmp_path / "kept"
    totals = np.random.default_rng(0).integers(1, 9, (5, 1, 3)) + np.array([[[0], [9], [9]]])
    tried = plan.tuning_runs()
    for number, run in enumerate([*tried, *plan.runs({"ours": 0.2, "b": 0.2})[:3]]):
        write_run(run, done, 0.5 + number / 100, totals + number)
        (done / run.folder / "best").mkdir()
    copy_records(plan, done, kept)
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {"result.json", "totals.npz"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for source, target in ((done, "a"), (kept, "b")):
        write_results(plan, source, tmp_path / target, "name")
    assert [(tmp_path / "a" / f"name.{kind}").read_bytes() for kind in ("md", "csv")] == [
        (tmp_path / "b" / f"name.{kind}").read_bytes() for kind in ("md", "csv")
    ]
    assert remaining([*tried, *plan.runs({"ours": 0.2, "b": 0.2})], kept) == plan.runs({"ours": 0.2, "b": 0.2})[3:]


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("*.md")), ids=lambda path: path.stem)
def test_published_results_are_those_of_the_records(path, tmp_path):
    from studies.plan import Study
    from studies.results import read_rows, tables, write_csv
    from studies.runner import read_times

    plan = Study.from_yaml(SCRIPTS / "studies" / f"{path.stem}.yaml")
    records = SCRIPTS / "studies" / "records" / "camvid"
    rows = read_rows(plan, records, read_times(records, path.stem))
    write_csv(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_text() == path.with_suffix(".csv").read_text()
    assert tables(plan, rows) == path.read_text()
    assert path.read_text().split("\n\n", 1)[1] in (DOCS / "results.md").read_text()
    [listed] = [line for line in (DOCS / "studies.md").read_text().splitlines() if line.startswith(f"| `{path.stem}.yaml`")]
    assert f"| {sum(len(row.results) for row in rows)} of {len(rows) * len(plan.seeds)} runs" in listed


def test_values_that_a_result_lacks_are_gaps(tmp_path):
    from studies.results import cost_cells, read_rows, score_cells, write_results

    plan = study(seeds=[0, 1], networks={"ours": {}})
    first, second = plan.runs({})
    write_run(first, tmp_path, 0.5, np.ones((1, 3, 2)))
    write_run(second, tmp_path, None, np.ones((1, 3, 2)))  # no number
    path = tmp_path / first.folder / "result.json"
    recorded = json.loads(path.read_text())
    del recorded["plain_kept_bytes"]  # as in results of earlier versions
    path.write_text(json.dumps(recorded))
    rows = read_rows(plan, tmp_path)
    scores, costs = (dict(zip(*cells(plan, rows), strict=True)) for cells in (score_cells, cost_cells))
    assert (scores["mIoU"], scores["pixel accuracy"]) == ("–", "0.900")
    assert (costs["kept MiB"], costs["without recomputation"]) == ("100", "–")
    write_results(plan, tmp_path, tmp_path, "name")
    with open(tmp_path / "name.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["mean_iou"], line["plain_kept_bytes"]) for line in lines] == [("0.5", ""), ("", "157286400")]


def test_an_empty_study_is_a_table_of_gaps(tmp_path):
    from studies.results import cost_cells, read_rows, score_cells, write_results

    plan = study(baseline="ours", variations={"few": {}, "many": {}})
    rows = read_rows(plan, tmp_path)
    assert len(score_cells(plan, rows)) == 5 and len(cost_cells(plan, rows)) == 1
    for cells in score_cells(plan, rows)[1:]:
        assert not any(cell[:1].isdigit() for cell in cells[3:])
    assert [path.suffix for path in write_results(plan, tmp_path, tmp_path, "name")] == [".md", ".csv"]


def test_curves_over_variations_are_broken_at_gaps(tmp_path):
    from studies.results import growth_figure, read_rows

    plan = study(variations={"few": {}, "some": {}, "many": {}})
    for run, score in zip((run for run in plan.runs({}) if run.network == "ours"), (0.25, None, 0.75), strict=True):
        if score is not None:
            write_run(run, tmp_path, score, np.zeros((1, 3, 2)))
    (axes,) = growth_figure(plan, read_rows(plan, tmp_path)).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours"]
    np.testing.assert_array_equal(np.asarray(axes.lines[0].get_ydata(), float), [0.25, np.nan, 0.75])


@pytest.mark.parametrize("name", ["network of the study with a name that takes some room", "_hidden_" * 18])
def test_long_names_do_not_overlap_in_figures(tmp_path, name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from studies.results import cost_figure, growth_figure, read_rows, score_figure

    networks = {f"{name} {number}": {} for number in range(4)}
    plan = study(networks=networks, variations={f"every {number}th of the images": {} for number in range(5)}, baseline=None)
    for run in plan.runs({}):
        write_run(run, tmp_path, 0.5, np.ones((1, 3, 2)))
    rows = read_rows(plan, tmp_path)
    for draw, legends in ((score_figure, 0), (cost_figure, 4), (growth_figure, 4)):
        figure = draw(plan, [row for row in rows if draw is growth_figure or row.variation == "every 0th of the images"])
        FigureCanvasAgg(figure).draw()
        shown = [legend for legend in (*figure.legends, figure.axes[0].get_legend()) if legend is not None]
        texts = [text for legend in shown for text in legend.get_texts()]
        assert len(texts) == legends
        axis = {score_figure: "y", cost_figure: None, growth_figure: "x"}[draw]
        ticks = [] if axis is None else getattr(figure.axes[0], f"get_{axis}ticklabels")()
        boxes = [text.get_window_extent() for text in texts]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        # Of slanted labels the boxes overlap, the lines of text do not: these have the height of a line between them.
        boxes += [text.get_window_extent() for text in ticks if not text.get_rotation()]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_result_of_other_settings_is_refused(tmp_path):
    from studies.runner import read_result

    (run,) = study(networks={"a": {}}).runs({})
    write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    assert read_result(run, tmp_path)["mean_iou"] == 0.5
    (changed,) = study(networks={"a": {"flip": 0.25}}).runs({})
    with pytest.raises(CheckpointError, match=r"flip was 0\.5, is 0\.25"):
        read_result(changed, tmp_path)
    (tmp_path / run.folder / "result.json").write_text("")
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read"):
        read_result(run, tmp_path)


def test_result_of_a_run_with_other_workers_or_checkpoints_is_accepted(tmp_path):
    from studies.runner import read_result

    (run,) = study(networks={"a": {}}).runs({})
    write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    (changed,) = study(networks={"a": {"num_workers": 1, "save_every": 50, "trackers": ["wandb"]}}).runs({})
    assert read_result(changed, tmp_path)["mean_iou"] == 0.5
    (costly,) = study(networks={"a": {"recompute": "none"}}).runs({})  # it changes the costs in the result
    with pytest.raises(CheckpointError, match="recompute was 'norms', is 'none'"):
        read_result(costly, tmp_path)


def test_field_that_is_newer_than_a_result_had_its_default(tmp_path):
    from studies.runner import read_result

    (run,) = study(networks={"a": {}}).runs({})
    write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    path = tmp_path / run.folder / "result.json"
    recorded = json.loads(path.read_text())
    del recorded["recipe"]["jpeg_noise"]
    path.write_text(json.dumps(recorded))
    assert read_result(run, tmp_path)["mean_iou"] == 0.5
    (changed,) = study(networks={"a": {"jpeg_noise": 0.25}}).runs({})
    with pytest.raises(CheckpointError, match=r"jpeg_noise was 0\.0, is 0\.25"):
        read_result(changed, tmp_path)


def test_result_of_a_chain_with_other_earlier_stages_is_refused(tmp_path):
    from studies.runner import read_result

    def chain(*earlier):
        content = {"stages": [*earlier, {"dataset": "camvid", "epochs": 2}]}
        (tmp_path / "chain.yaml").write_text(yaml.safe_dump(content))
        (run,) = study(recipe=str(tmp_path / "chain.yaml"), networks={"a": {}}).runs({})
        return run

    first = {"dataset": "mapillary_vistas", "epochs": 3}
    run, alone = chain(first), chain()
    write_run(run, tmp_path / "of_chain", 0.5, np.zeros((1, 3, 2)), earlier_recipes=[asdict(run.recipes[0])])
    write_run(run, tmp_path / "alone", 0.5, np.zeros((1, 3, 2)), earlier_recipes=[])
    write_run(run, tmp_path / "unsaid", 0.5, np.zeros((1, 3, 2)))  # by an earlier version
    accepted = [(run, "of_chain"), (alone, "alone"), (run, "unsaid"), (alone, "unsaid")]
    assert [read_result(one, tmp_path / folder)["mean_iou"] for one, folder in accepted] == [0.5] * 4
    for one, folder, said in (
        (chain({**first, "epochs": 4}), "of_chain", "in stage 1 epochs was 3, is 4"),
        (alone, "of_chain", "the number of stages was 2, is 1"),
        (chain(first, first), "of_chain", "the number of stages was 2, is 3"),
        (run, "alone", "the number of stages was 1, is 2"),
    ):
        with pytest.raises(CheckpointError, match=said):
            read_result(one, tmp_path / folder)


def write_pairs(folder):
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
            Image.new("L", (4, 4)).save(folder / kind / split / "0.png")
    (folder / "labels.yaml").write_text("names: {road: 0, car: 1}")


@pytest.mark.parametrize("is_folder", [False, True])
def test_other_backbone_weights_in_the_same_study_are_refused(tmp_path, is_folder):
    from studies.runner import inputs_of, refuse_other_data

    from revhrnet_hf.training.data import load_split

    def made_with(run):
        return inputs_of(run, load_split(run.recipe, tmp_path / "data", "val"))

    write_pairs(tmp_path / "data")
    weights = tmp_path / "weights" if is_folder else tmp_path / "net.pth"
    file = weights / "model.safetensors" if is_folder else weights
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"some")
    networks = {"a": {}, "b": {"flip": 0.1}, "random": {"backbone_weights": "random"}, "begun": {"init_from": "someone/net"}}
    settings = {"dataset": "folder", "eval_split": "val", "backbone_weights": str(weights)}
    first, *others = study(networks=networks, settings=settings).runs({})
    result_file = tmp_path / "out" / first.folder / "result.json"
    result_file.parent.mkdir(parents=True)
    result_file.write_text(json.dumps(made_with(first)))
    assert [bool(made_with(run)["backbone_weights"]) for run in others] == [True, False, False]  # the last two do not read them
    refuse_other_data(made_with(others[0]), tmp_path / "out")

    file.write_bytes(b"others")
    with pytest.raises(CheckpointError, match=f"was made with other weights in {re.escape(str(weights))}: a study"):
        refuse_other_data(made_with(others[0]), tmp_path / "out")
    for run in others[1:]:
        refuse_other_data(made_with(run), tmp_path / "out")
    earlier = {name: value for name, value in json.loads(result_file.read_text()).items() if name != "backbone_weights"}
    result_file.write_text(json.dumps(earlier))  # as earlier versions wrote it
    refuse_other_data(made_with(others[0]), tmp_path / "out")


@pytest.mark.parametrize("options", [[], ["--dry_run"], ["--times"]])
def test_a_class_that_the_data_lack_is_refused_before_the_first_run(tmp_path, monkeypatch, options):
    import study as program

    write_camvid(tmp_path / "camvid", {"train": 1, "val": 1}, size=(48, 64))
    for name in ("runner.work_through", "estimates.estimate_runs", "times.measure_times"):
        monkeypatch.setattr(f"studies.{name}", lambda *_: pytest.fail("it begins"))
    path = tmp_path / "misspelt.yaml"
    content = {"title": "A", "recipe": "camvid_mini", "networks": {"a": {}}, "classes": ["Pole", "Pedestrain"]}
    path.write_text(yaml.safe_dump(content))
    said = r"classes have 'Pedestrain' \(did you mean Pedestrian\?\), and its datasets have Sky, Building, .*, Bicyclist$"
    with pytest.raises(RecipeError, match=said):
        program.main([str(path), "--data_dir", str(tmp_path / "camvid"), "--output_dir", str(tmp_path / "out"), *options])


def test_a_class_that_no_result_has_is_refused(tmp_path):
    from studies.results import write_results

    other = {"dataset": "cityscapes", "label_space": "cityscapes"}
    plan = study(networks={"a": {}, "b": other}, classes=["pole", "rode"])
    first, second = plan.runs({})
    write_run(first, tmp_path, 0.5, np.ones((1, 3, 2)))
    write_results(plan, tmp_path, tmp_path, "name")  # the second's results may have it
    write_run(second, tmp_path, 0.5, np.ones((1, 3, 2)), iou={"train": 0.5})
    with pytest.raises(RecipeError, match=r"'rode' \(did you mean road\?\), and its datasets have pole, road, train"):
        write_results(plan, tmp_path, tmp_path, "name")
    plan.classes = ["pole", "train"]
    write_results(plan, tmp_path, tmp_path, "name")


def test_other_data_in_the_same_study_are_refused(tmp_path):
    from studies.runner import inputs_of, refuse_other_data

    from revhrnet_hf.training.data import load_split

    def made_with(run):
        return inputs_of(run, load_split(run.recipe, tmp_path / "data", run.recipe.eval_split))

    def set_ids(road, car):
        (tmp_path / "data" / "labels.yaml").write_text(f"names: {{road: {road}, car: {car}}}")

    write_pairs(tmp_path / "data")
    set_ids(road=0, car=1)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"some")
    start = {"init_from": str(tmp_path / "weights")}
    settings = {"dataset": "folder", "eval_split": "val"}
    first, second, third = study(networks={"a": start, "b": start, "c": {"eval_split": "train"}}, settings=settings).runs({})
    out = tmp_path / "out"
    (out / first.folder).mkdir(parents=True)
    result_file = out / first.folder / "result.json"
    result_file.write_text(json.dumps(made_with(first)))
    refuse_other_data(made_with(second), out)

    (tmp_path / "weights" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"result\.json was made with other weights in .*weights: a study"):
        refuse_other_data(made_with(second), out)
    refuse_other_data(made_with(third), out)  # of another split, and without these weights
    set_ids(road=1, car=0)
    with pytest.raises(CheckpointError, match="a label table with other ids or colours and other weights in"):
        refuse_other_data(made_with(second), out)
    Image.new("L", (4, 4), 1).save(tmp_path / "data" / "masks" / "val" / "0.png")
    with pytest.raises(CheckpointError, match="other images or label maps and a label table"):
        refuse_other_data(made_with(second), out)
    refuse_other_data(made_with(third), out)
    earlier = {name: value for name, value in json.loads(result_file.read_text()).items() if name in ("recipe", "seed")}
    result_file.write_text(json.dumps(earlier))  # as earlier versions wrote it
    refuse_other_data(made_with(second), out)


def test_a_learning_rate_that_diverges_is_not_chosen(tmp_path):
    from studies.runner import DIVERGED, chosen_rates, copy_records, diverged, remaining

    plan = study(networks={"a": {}, "b": {}}, learning_rates=[0.1, 0.2], tuning=TUNING)
    for run in plan.tuning_runs():
        write_run(run, tmp_path, 0.5 if run.recipe.learning_rate == 0.1 and run.network == "a" else DIVERGED, np.zeros((1, 3, 2)))
    (tmp_path / "tuning" / "b" / "lr_0.1" / "seed_0" / "totals.npz").unlink()  # it has no scores
    assert chosen_rates(plan, tmp_path) == {"a": 0.1} and not remaining(plan.tuning_runs(), tmp_path)
    assert diverged(plan, tmp_path) == ["b"]
    copy_records(plan, tmp_path, tmp_path / "records")
    assert chosen_rates(plan, tmp_path / "records") == {"a": 0.1}


def test_best_learning_rate_is_chosen_when_all_are_tried(tmp_path):
    from studies.runner import chosen_rates

    plan = study(networks={"a": {}}, learning_rates=[0.1, 0.2, 0.3], tuning=TUNING)
    for run, score in zip(plan.tuning_runs(), (0.5, 0.7, 0.6), strict=True):
        assert chosen_rates(plan, tmp_path) == {}
        write_run(run, tmp_path, score, np.zeros((1, 3, 2)))
    assert chosen_rates(plan, tmp_path) == {"a": 0.2}


def test_failed_runs_are_named_and_others_are_done(tmp_path):
    from studies.runner import work_through

    runs = study(seeds=[0, 1, 2], networks={"a": {}}).runs({})
    code = f"import sys; open({str(tmp_path)!r} + '/' + sys.argv[1][-1], 'w'); sys.exit(sys.argv[1].endswith('1'))"
    failed = work_through(runs, [sys.executable, "-S", "-c", code], [])
    assert [run.seed for run in failed] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGTERM")
def test_sigterm_ends_the_runs_too(tmp_path):
    """The program waits for its run, which saves itself; then it ends as after SIGTERM."""
    code = (
        "import signal, sys, time; from pathlib import Path; there = Path(sys.argv[1]);"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), (there / 'saved').touch(), sys.exit(143)));"
        "(there / 'begun').touch(); time.sleep(60)"
    )
    program = (
        "import sys; from types import SimpleNamespace; from revhrnet_hf.cli import run; from studies.runner import work_through;"
        f"run(lambda: work_through([SimpleNamespace(folder='a')], [sys.executable, '-S', '-c', {code!r}, {str(tmp_path)!r}], []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": f"{SCRIPTS}:{SCRIPTS.parent}"}, stderr=subprocess.PIPE
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=60) == 143 and (tmp_path / "saved").exists()
    assert b"the same command resumes it" in process.stderr.read()


@pytest.mark.parametrize(("visible", "devices"), [(None, ["4", "7"]), ("4,5,7", ["0", "2"])])
def test_each_device_has_one_run_at_a_time(tmp_path, monkeypatch, visible, devices):
    from studies.runner import work_through

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runs = study(seeds=[0, 1, 2, 3], networks={"a": {}}).runs({})
    code = (
        "import os, sys, time; name = sys.argv[1] + '/' + os.environ['CUDA_VISIBLE_DEVICES'];"
        "os.close(os.open(name + '.lock', os.O_CREAT | os.O_EXCL)); time.sleep(0.1); os.remove(name + '.lock');"
        "open(name, 'a').write(sys.argv[2][-1])"
    )
    assert not work_through(runs, [sys.executable, "-S", "-c", code, str(tmp_path)], devices)
    done = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(done) == {"4", "7"} and sorted("".join(done.values())) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("option", ["--report_only", "--times"])
def test_devices_are_refused_where_nothing_is_trained(option):
    import study as program

    with pytest.raises(RecipeError, match="--devices is for trainings"):
        program.main(["study.yaml", "--data_dir", "x", "--output_dir", "out", option, "--devices", "0"])


@pytest.mark.parametrize("visible", ["6,7", "", "GPU-a,GPU-b"])
def test_a_device_that_this_program_may_not_use_is_refused(monkeypatch, visible):
    from studies.runner import work_through

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(RecipeError, match=f"--devices 6: CUDA_VISIBLE_DEVICES={visible} gives this program [02] GPUs"):
        work_through([], [], ["6"])


@pytest.mark.parametrize(
    ("seen", "devices", "said"),
    [
        (0, ["0"], "--devices 0: PyTorch sees 0 GPUs; leave --devices out to use the CPU"),
        (2, ["1", "2"], "--devices 2: PyTorch sees 2 GPUs; count these from 0"),
        (2, ["cuda:1"], "--devices cuda:1: PyTorch sees 2 GPUs; count these from 0"),
        (2, ["1", "1"], "--devices has 1 twice: name each GPU once, each has one run at a time"),
    ],
)
def test_devices_that_are_not_there_or_named_twice_are_refused(monkeypatch, seen, devices, said):
    from studies.runner import work_through

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(RecipeError, match=f"^{said}$"):
        work_through([], [], devices)


def test_times_are_measured_in_turns_and_take_the_place_of_those_of_the_runs(tmp_path):
    from studies.results import write_results
    from studies.times import measure_times

    write_camvid(tmp_path / "camvid", {"train": 1, "val": 1}, size=(48, 64))
    small = {"crop_size": [32, 48], "base_size": 64, "eval_size": 64, "num_blocks": 1, "num_modules": [1, 1, 1]}
    networks = {"ours": {"recompute": "modules"}, "linear head": {"architecture": "linear"}}
    plan = study(settings=small, networks=networks, seeds=[0, 1], variations={"lora": {"trainable_backbone": "lora"}, "none": {}})
    times = measure_times(plan, "small", [str(tmp_path / "camvid")], tmp_path, rounds=1)
    assert json.loads((tmp_path / "small_times.json").read_text()) == times and times["hardware"] and times["versions"]["torch"]
    named = {(entry["network"], entry["variation"]): entry["step_seconds"] for entry in times["networks"]}
    assert set(named) == {(network, variation) for network in networks for variation in ("lora", "none")}
    assert all(entry["step_seconds"] > 0 and entry["image_seconds"] > 0 for entry in times["networks"])
    assert named["ours", "none"] > named["linear head", "none"]

    for run in plan.runs({}):
        write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    added = study(settings=small, networks={**networks, "late": {"architecture": "late"}}, seeds=[0, 1])
    for run in added.runs({}):
        if run.network == "late":
            write_run(run, tmp_path, 0.5, np.zeros((1, 3, 2)))
    for variation in ("lora", "none"):
        shown = study(settings=small, networks=networks, seeds=[0, 1], variations={variation: plan.variations[variation]})
        write_results(shown, tmp_path, tmp_path, "small")
        assert f"| {named['ours', variation]:.2f} |" in (tmp_path / "small.md").read_text()
    write_results(added, tmp_path, tmp_path, "small")  # none of its networks has been measured
    assert "1.50" not in (tmp_path / "small.md").read_text() and "| – | – |" in (tmp_path / "small.md").read_text()
    write_results(added, tmp_path, tmp_path, "other")
    assert "| 1.50 | 0.250 |" in (tmp_path / "other.md").read_text()


@pytest.mark.slow
def test_dry_run_lists_the_runs_and_says_what_they_take(tmp_path, capsys):
    import study as program

    write_camvid(tmp_path / "camvid", {"train": 8, "val": 3}, size=(48, 64))
    small = {"epochs": 1, "crop_size": [32, 48], "base_size": 64, "batch_size": 4, "num_blocks": 1, "num_modules": [1, 1, 1]}
    networks = {"ours": {}, "linear head": {"architecture": "linear", "learning_rate": 0.001, "precision": "bf16"}}
    content = {"title": "Small", "recipe": "camvid_mini", "settings": {**small, "backbone_weights": "random"}, "seeds": [0, 1]}
    content |= {"learning_rates": [0.001, 0.002], "tuning": TUNING, "networks": networks}
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(content))
    plan = study(**content)
    write_run(plan.tuning_runs()[0], out, 0.5, np.zeros((1, 3, 2)))
    write_run(plan.runs({})[0], out, 0.5, np.zeros((1, 3, 2)))
    before = sorted(out.rglob("*"))
    program.main([str(path), "--data_dir", str(tmp_path / "camvid"), "--output_dir", str(out), "--dry_run"])
    said = capsys.readouterr().out
    assert said.count("finished ") == 2 and said.count("to do ") == 2 and said.count("waiting  ") == 2
    assert [line.split("  ")[0] for line in said.splitlines()[-5:-1]] == ["network", "ours", "linear head", "ours"]
    for row in (r"ours +choice of its rate +1", r"ours +plain +2", r"linear head +plain +1"):
        assert re.search(rf"\n{row}  +\d+ min \d+ s  +\d\.\d\d ", said), row
    assert re.search(r"\ntogether \d+ min \d+ s, 0\.\d\d GiB of disk\n$", said)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (["--output_dir", "out", "--results", "typo"], "typo"),
        (["--output_dir", "typo", "--report_only", "--results", "out"], "typo"),
    ],
)
def test_a_missing_folder_is_noticed_before_anything_is_done(tmp_path, monkeypatch, options, missing):
    import study as program

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(program, "train", lambda *_: pytest.fail("it trains"))
    with pytest.raises(RecipeError, match=f"There is no folder {missing}: make it first"):
        program.main([str(SCRIPTS / "studies" / "tiny.yaml"), "--data_dir", "data", *options])
    assert not any((tmp_path / "out").iterdir()) and not (tmp_path / missing).exists()


def test_pareto_front_against_brute_force():
    from studies.results import pareto_front

    points = [tuple(point) for point in np.random.default_rng(0).integers(0, 12, (40, 2)).tolist()]
    front = pareto_front(points)
    for cost, score in points:
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        assert ((cost, score) in front) == (not beaten)


# Its runs are forked too, where each would import torch anew.
FORKED_RUNS = """
import os, runpy, sys
sys.executable = os.environ["PYTHON_EXEC"]
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_whole_study_is_resumed_and_never_done_twice(tmp_path):
    write_camvid(tmp_path / "camvid", {"train": 8, "val": 3}, size=(48, 64))
    small = {"epochs": 1, "crop_size": [32, 48], "base_size": 64, "batch_size": 4, "num_blocks": 1, "num_modules": [1, 1, 1]}
    small["backbone_weights"] = "random"
    content = {
        "title": "Small",
        "recipe": "camvid_mini",
        "settings": small,
        "learning_rates": [0.001, 1e30],  # with the second the loss is no number
        "tuning": TUNING,
        "baseline": "ours",
        "networks": {"ours": {}, "linear head": {"architecture": "linear", "learning_rate": 0.001}},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [
        sys.executable,
        "-c",
        FORKED_RUNS,
        SCRIPT,
        path,
        "--data_dir",
        tmp_path / "camvid",
        "--output_dir",
        tmp_path / "out",
    ]
    command = [str(part) for part in command]
    done = forked.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = sorted((tmp_path / "out").rglob("result.json"))
    assert len(results) == 4
    assert sum(json.loads(path.read_text())["mean_iou"] == -1 for path in results) == 1
    for path in results:
        if not (path.parent / "best").exists():
            continue
        found, model = json.loads(path.read_text()), AutoModelForSemanticSegmentation.from_pretrained(path.parent / "best")
        decoder = [parameter for name, parameter in model.named_parameters() if ".backbone." not in name]
        assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert found["trained_parameters"] == sum(parameter.numel() for parameter in decoder)
    times = [path.stat().st_mtime_ns for path in results]
    results[0].unlink()  # as if the process had been killed before it wrote
    done = forked.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in results][1:] == times[1:]
    assert "is finished" in done.stdout
    table = (tmp_path / "out" / "small.md").read_text()
    assert table.count("| ours |") == table.count("| linear head |") == 2 and "| – |" not in table
