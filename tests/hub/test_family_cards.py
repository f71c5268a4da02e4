"""Cards of families: results come from checkpoints' records, costs from the table, and the commands can be parsed."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from revhrnet_hf import RevHRNetConfig
from revhrnet_hf.commands import COMMANDS, cards
from revhrnet_hf.errors import CheckpointError
from revhrnet_hf.hub.family_cards import FAMILIES, family_card, merge_results, needed_costs, results_of, write_family_cards
from revhrnet_hf.hub.model_table import ModelCosts, all_models
from revhrnet_hf.hub.record import Record, Result
from revhrnet_hf.training.recipe import Recipe, read_chain

ROOT = Path(__file__).parents[2]
COSTS = {name: ModelCosts(name, 12_340_000, 5_670_000, 89_000_000_000, 2**30, 2**31, 2**29) for name in needed_costs()}
STAGE = {"dataset": "camvid", "label_space": "camvid11", "images": 367, "epochs": 25, "steps": 1, "recipe": {}, "seconds": 90.0}
SCORES = {"mean_iou": 0.625, "overall_accuracy": 0.875, "mean_accuracy": 0.75, "per_category_iou": [0.5, None]}


def record(variant, **scores):
    config = RevHRNetConfig.from_variant("w18", training_history=[STAGE])
    result = Result("camvid", "camvid11", "val", {**SCORES, **scores}, ["road", "pole"], "float32, whole image")
    return Record(config, recipe={"variant": variant}, results=[result])


def test_a_result_stands_in_its_familys_card_only():
    results = merge_results([], results_of(record("w18")))
    cards = {family.file: family_card(family, COSTS, results) for family in FAMILIES}
    text = cards.pop("revhrnet-w18")
    assert "| CamVid | CamVid val | 0.625 | 0.875 | 0.750 |" in text
    assert "367 images, 25 epochs, 2 min" in text
    assert "road 0.500, pole –" in text
    assert all("No checkpoint of it has been scored" in card and "0.625" not in card for card in cards.values())
    # Measured again, the new one takes its place.
    again = merge_results(results, results_of(record("w18", mean_iou=0.5)))
    assert len(again) == 1 and again[0]["scores"]["mean_iou"] == 0.5
    assert len(merge_results(results, results_of(record("w32")))) == 2
    for other in ({"images": 23}, {"epochs": 8}):  # another training
        assert len(merge_results(results, [{**results[0], **other}])) == 2


def test_own_data_are_called_so():
    found = record("w18")
    found.results[0].dataset, found.results[0].loader = "photos", "folder"
    text = family_card(next(family for family in FAMILIES if family.file == "revhrnet-w18"), COSTS, results_of(found))
    assert "| CamVid | photos (own data) val | 0.625 |" in text


def test_known_results_that_cannot_be_read_are_named(tmp_path):
    for content in ("[", "{}"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"results\.json cannot be read: "):
            cards.main(["--output_dir", str(tmp_path)])


def test_somebodys_own_page_is_kept(tmp_path):
    (tmp_path / "hrnetv2.md").write_text("# My notes")
    with pytest.raises(CheckpointError, match=r"hrnetv2\.md was not written by `revhrnet cards`: move it away"):
        cards.main(["--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["hrnetv2.md"] and (tmp_path / "hrnetv2.md").read_text() == "# My notes"


def test_recorded_names_are_no_markup():
    [result] = results_of(record("w18"))
    evil = "<b>x</b> |\n## Licence {{ 7 * 7 }}"
    result |= {"trained_on": evil, "hardware": evil, "how": evil, "class_iou": {evil: 0.5}}
    family = next(family for family in FAMILIES if family.file == "revhrnet-w18")
    card = family_card(family, COSTS, [result])
    assert "<b>" not in card and "49" not in card and card.count("\n## Licence") == 1
    [row] = [line for line in card.splitlines() if line.startswith("| w18")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 9


def test_costs_and_licence(tmp_path):
    assert set(needed_costs()) <= set(all_models())
    for path in write_family_cards(tmp_path, COSTS, []):
        card = ModelCard.load(path)
        assert "| 12.34 | 5.67 | 89.0 | 2.00 | 1.00 | 0.50 |" in card.text
        assert card.data.license == ("mit" if path.stem == "hrnetv2" else "cc-by-nc-4.0")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.file)
def test_the_commands_and_recipes_exist(family):
    """Fields are a recipe's, the datasets given are those of its stages, and the network is the family's."""
    commands = [shlex.split(line) for line in re.findall(r"^revhrnet .*$", family_card(family, COSTS, []), re.MULTILINE)]
    assert commands
    for _, command, *arguments in commands:
        assert command in COMMANDS
        if command != "train":
            continue
        options = {}
        for word in arguments:
            if word.startswith("--"):
                name = word[2:]
                options[name] = []
            else:
                options[name].append(word)
        recipes = read_chain(options.pop("recipe")[0])
        sets = [of.split("=")[0] for of in options.pop("data_dir")]
        assert len(sets) == 1 or set(sets) == {recipe.dataset for recipe in recipes}
        del options["output_dir"]
        settings = {**yaml.safe_load(recipes[-1].to_yaml()), **{name: value for name, (value,) in options.items()}}
        recipe = Recipe.from_dict(settings)
        assert (recipe.architecture, recipe.variant) in family.members
