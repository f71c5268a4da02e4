"""Recipes: what is read from YAML, and what is refused with field and value named."""

from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import yaml

from revhrnet_hf.data import get_label_space
from revhrnet_hf.data.loading import DATASETS
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.io import PATH_FIELDS
from revhrnet_hf.models.losses import LossSettings
from revhrnet_hf.training.chain import data_dirs_by_name
from revhrnet_hf.training.data import training_sets
from revhrnet_hf.training.dataset_names import NamedDataset
from revhrnet_hf.training.network import build_model
from revhrnet_hf.training.recipe import RECIPES, Recipe, find_recipe, read_chain


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole(path):
    """All their datasets are known, and their networks can be built (on the meta device, without weights)."""
    for recipe in read_chain(path):
        assert recipe.dataset in DATASETS
        label_space = get_label_space(DATASETS[recipe.dataset].LABEL_SPACES[0])
        recipe.backbone_weights = "random"
        with torch.device("meta"):
            model, _ = build_model(recipe, label_space)
        assert model.config.num_labels == label_space.num_classes


def test_recipes_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_chain("mapillary_to_cityscapes")[1].dataset == "cityscapes"
    with pytest.raises(RecipeError, match=r"no recipe camvit \(did you mean camvid\?\): .* one of camvid, camvid_mini, "):
        find_recipe("camvit")
    with pytest.raises(RecipeError, match=r"Cannot read the recipe mine\.yaml: No such file"):
        read_chain("mine.yaml")
    with pytest.raises(RecipeError, match=r"no recipe scripts/recipes/camvid\.yaml \(did you mean camvid\?\)"):  # where it was
        read_chain("scripts/recipes/camvid.yaml")
    (tmp_path / "camvid").mkdir()  # a folder is no recipe
    assert find_recipe("camvid") == RECIPES / "camvid.yaml"
    for own in ("mine", "camvid.yaml"):
        (tmp_path / own).write_text("dataset: camvid\n")
        assert read_chain(own) == [Recipe(dataset="camvid")]


def test_chain_of_recipes(tmp_path):
    path = write(tmp_path, "variant: w18\nepochs: 3\nstages:\n- dataset: camvid\n- dataset: camvid\n  epochs: 5\n")
    assert [(recipe.variant, recipe.epochs) for recipe in read_chain(path)] == [("w18", 3), ("w18", 5)]
    assert read_chain(write(tmp_path, "dataset: camvid\n")) == [Recipe(dataset="camvid")]
    with pytest.raises(RecipeError, match=r"recipe\.yaml, stage 2: Recipe field epochs must be positive"):
        read_chain(write(tmp_path, "dataset: camvid\nstages:\n- epochs: 3\n- epochs: 0\n"))
    for stages in ("camvid", "[]", "[camvid]"):
        with pytest.raises(RecipeError, match="stages must be a list of mappings"):
            read_chain(write(tmp_path, f"stages: {stages}\n"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["camvid=A", "coco=B"], {"camvid": Path("A"), "coco": Path("B")}),
        (["coco=B=C", "camvid=A"], {"camvid": Path("A"), "coco": Path("B=C")}),
        (["A"], None),
        (["camvid=A"], None),
        (["camvid=A", "coco=B", "camvid=C"], None),
        (["camvid=A", "coco=B", "kitti=C"], None),
    ],
)
def test_data_folders_by_name(given, expected):
    recipes = [Recipe(dataset=name) for name in ("camvid", "coco", "camvid")]
    if expected is None:
        with pytest.raises(RecipeError, match="give camvid=DIR coco=DIR"):
            data_dirs_by_name(given, recipes)
    else:
        assert data_dirs_by_name(given, recipes) == expected
        together = [Recipe(dataset="camvid", more_datasets=["coco:val", "coco", "camvid:test"])]
        assert data_dirs_by_name(given, together) == expected
    assert data_dirs_by_name(["A=B"], recipes[:1]) == {"camvid": Path("A=B")}


def test_own_settings_do_not_tell_where_files_lie(tmp_path):
    table = write(tmp_path, "names: [road, car]\n")
    recipe = Recipe(dataset="folder", label_space=str(table), init_from=str(tmp_path), epochs=3)
    assert recipe.own_settings == {"label_space": table.name, "init_from": tmp_path.name, "epochs": 3}


def test_yaml_round_trip(tmp_path):
    recipe = Recipe(dataset="camvid", crop_size=[64, 96], class_weights=[1, 2.5], precision="bf16")
    assert Recipe.from_yaml(write(tmp_path, recipe.to_yaml())) == recipe


def test_numbers_as_people_write_them(tmp_path):
    """YAML reads 5e-4 as text and 1 as a whole number; both are numbers to a person."""
    recipe = Recipe.from_yaml(write(tmp_path, "dataset: camvid\nweight_decay: 5e-4\nlearning_rate: 1\n"))
    assert (recipe.weight_decay, recipe.learning_rate) == (0.0005, 1.0)
    assert isinstance(recipe.learning_rate, float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "dataset: camvid\nlearning_rat: 0.1",
            r"Unknown field in .*recipe.yaml: learning_rat \(did you mean learning_rate\?\)\. Known are .*learning_rate",
        ),
        ("dataset: camvid\nepochs: many", "recipe.yaml: Recipe field epochs must be of type int, got 'many'"),
        ("dataset: camvid\nepochs: 2.5", "epochs must be of type int, got 2.5"),
        ("dataset: camvid\nepochs: 0", "epochs must be positive"),
        ("dataset: camvid\nlearning_rate: fast", "learning_rate must be of type float, got 'fast'"),
        ("dataset: camvid\nlearning_rate: true", "learning_rate must be of type float, got True"),
        ("dataset: camvid\ncrop_size: 512", "crop_size must be a list"),
        ("dataset: camvid\ncrop_size: [512]", "crop_size must be two positive numbers"),
        ("dataset: camvid\ncrop_size: [512, wide]", "crop_size must be of type int, got 'wide'"),
        ("dataset: camvid\nscale_range: [2, 1]", "smallest first"),
        ("dataset: camvid\nhead: double", "head must be one of single, concat, ocr, got 'double'"),
        ("dataset: camvid\nflip: 2", "flip is a probability"),
        ("dataset: camvid\nbatch_size: 5\ngradient_accumulation_steps: 2", "batch_size 5 cannot be split"),
        ("dataset: camvid\n3: 0.1\nepoch: 1", r"Unknown field in .*: 3, epoch \(did you mean epochs\?\)\. Known are "),
        ("dataset: camvid\nlearning_rate: .nan", "learning_rate must be a finite number, got nan"),
        ("dataset: camvid\nlearning_rate: .inf", "learning_rate must be a finite number, got inf"),
        ("dataset: camvid\nlearning_rate: 1e999", "learning_rate must be a finite number, got inf"),
        ("dataset: camvid\nscale_range: [0.5, .nan]", "scale_range must be a finite number"),
        ("dataset: camvid\nmore_datasets: [coco]\ndataset_shares: [1, .nan]", "dataset_shares must be a finite number"),
        ("dataset: camvid\nclass_weights: [0, 0]", "class_weights must not be negative, and one of them at least"),
        ("dataset: camvid\nclass_weights: [1, -0.5]", r"class_weights must not be negative.*got \[1\.0, -0\.5\]"),
        ("dataset: camvid\nclass_weights: [1, .nan]", "class_weights must be a finite number, got nan"),
        ("dataset: camvid\nclass_weights: []", "class_weights must not be negative, and one of them at least"),
        ("dataset: camvid\nmomentum: 1", "momentum must be at least 0 and less than 1"),
        ("dataset: camvid\nmomentum: -0.1", "momentum must be at least 0 and less than 1"),
        ("dataset: camvid\nweight_decay: -1", "weight_decay must not be negative"),
        ("dataset: camvid\npoly_power: -1", "poly_power must not be negative"),
        ("dataset: camvid\nohem_threshold: 0", "ohem_threshold must be more than 0 and at most 1"),
        ("dataset: camvid\nohem_threshold: 1.1", "ohem_threshold must be more than 0 and at most 1"),
        ("dataset: camvid\nohem_min_kept: -1", "ohem_min_kept must not be negative"),
        ("dataset: camvid\nbatch_norm_momentum: 2", "batch_norm_momentum must be more than 0 and at most 1"),
        ("dataset: camvid\nseed: -1", "seed must be between 0 and 4294967295"),
        ("dataset: camvid\nnum_modules: [1, -1, 1]", "num_modules must be positive numbers"),
        ("dataset: camvid\nstream_channels: [8, 0, 8, 8]", "stream_channels must be positive numbers"),
        ("dataset: camvid\nnum_modules: []", "num_modules must be positive numbers"),
        (
            "dataset: camvid\ntrainable_backbone: all\nbackbone_dtype: bfloat16",
            "backbone_dtype would have no effect: the backbone's own",
        ),
        ("dataset: camvid\nfreeze_backbone: false\nbackbone_dtype: bfloat16", "backbone_dtype would have no effect"),
        (
            "dataset: camvid\nlayer_decay: 0.5",
            r"layer_decay would have no effect: the backbone is frozen.*\(default: not given\)",
        ),
        ("dataset: camvid\nbackbone_learning_rate: 0.1", "backbone_learning_rate would have no effect: the backbone is frozen"),
        (
            "dataset: camvid\nlora_rank: 4\nlora_targets: [qkv]",
            "lora_rank and lora_targets would have no effect: trainable_backbone is",
        ),
        ("dataset: camvid\ntrainable_backbone: lora\nlora_rank: 0", "lora_rank must be positive"),
        (
            "dataset: camvid\narchitecture: hrnetv2\nfinal_block: bottleneck\ntrainable_backbone: all",
            "trainable_backbone and final_block would have no",
        ),
        ("dataset: camvid\noptimizer: adamw\nmomentum: 0.8", r"momentum would have no effect: it is SGD's.*\(default: 0\.9\)"),
        ("dataset: camvid\nfeature_bank: -1", "feature_bank must not be negative"),
        ("dataset: camvid\nfeature_bank: 2\nepochs: 2", "feature_bank would have no effect: as many epochs fill it"),
        ("dataset: camvid\nfeature_bank: 2\narchitecture: hrnetv2", "feature_bank would have no effect: it keeps"),
        ("dataset: camvid\nfeature_bank: 2\ntrainable_backbone: norms", "feature_bank would have no effect: it keeps the maps"),
        ("dataset: camvid\nloss: {dice: 1}\nclass_weights: auto", "class_weights would have no effect: loss has neither"),
        ("dataset: camvid\nhub_private_repo: true", "hub_private_repo would have no effect: push_to_hub is off"),
        (
            "dataset: camvid\nhub_model_id: me/net",
            r"hub_model_id would have no effect: push_to_hub is off.*\(default: not given\)",
        ),
        (
            "dataset: camvid\narchitecture: hrnetv2\nfreeze_backbone: false",
            "freeze_backbone would have no effect: architecture hrnetv2 has no backbone, and is trained whole",
        ),
        ("dataset: camvid\nohem_min_kept: 5", "ohem_min_kept would have no effect: there is no ohem_threshold"),
        ("dataset: camvid\nimage_column: photo", "image_column would have no effect: only the loader hub"),
        (
            "dataset: camvid\ntrain_split: 'train[::4]'\nmore_datasets: ['coco:val', 'p,loader=folder']",
            r"more_datasets must name the split of p, .*: p:train for all its images, p:train\[::4\] for the same part",
        ),
        ("dataset: camvid\ndataset_shares: [1]", "dataset_shares would have no effect: there are no more_datasets"),
        ("dataset: camvid\ndistorted_datasets: [camvid]", "distorted_datasets would have no effect: photometric_d"),
        (
            "dataset: camvid\nmore_datasets: ['pseudo,loader=folder']\nblur: 0.5\ndistorted_datasets: [psuedo]",
            r"distorted_datasets has 'psuedo' \(did you mean pseudo\?\), and the recipe trains on camvid, pseudo",
        ),
        ("dataset: camvid\nblur: 0.5\ndistorted_datasets: []", "distorted_datasets names no dataset"),
        ("epochs: 3", "dataset is missing"),
        ("- camvid", "must be a mapping"),
        ("a: [", "is no valid YAML"),
        ("dataset: camvid\nepochs: 2\nepochs: 3\n", r"is no valid YAML: 'epochs' is there twice\s.*line 3"),
    ],
)
def test_refused(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(write(tmp_path, text))


def test_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00dataset")
    with pytest.raises(RecipeError, match=r"recipe\.yaml is no valid YAML"):
        Recipe.from_yaml(tmp_path / "recipe.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(RecipeError, match=r"Cannot read the recipe .*nothing\.yaml: No such file"):
        Recipe.from_yaml(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("word", ["no", "No", "NO", "off", "false", "'no'"])
def test_no_is_a_precision(tmp_path, word):
    """YAML 1.1 reads these words as false, but for the last."""
    assert Recipe.from_yaml(write(tmp_path, f"dataset: camvid\nprecision: {word}\n")).precision == "no"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("precision: yes", r"must be one of no, bf16, fp16, got True \(YAML reads yes, on, true, y as true: put the word in"),
        ("recompute: off", r"must be one of none, norms, modules, got False \(YAML reads no, off, false, n as false"),
        ("train_split: on", r"train_split must be of type str, got True \(YAML reads yes, on"),
        ("trackers: [no]", r"trackers must be of type str, got False \(YAML reads no"),
        ("epochs: yes", r"epochs must be of type int, got True$"),
        ("precision: 0", r"must be one of no, bf16, fp16, got 0$"),
    ],
)
def test_words_that_yaml_reads_as_truth_values(tmp_path, text, said):
    with pytest.raises(RecipeError, match=said):
        Recipe.from_yaml(write(tmp_path, f"dataset: camvid\n{text}\n"))


def test_finest_of_five_streams_has_the_stems_map():
    recipe = Recipe(dataset="camvid", variant="w24-5stream", backbone="test_resnet.r160_in1k", backbone_weights="random")
    model, _ = build_model(recipe, get_label_space("camvid11"))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).logits.shape[-2:] == (32, 32)


NAMED = """
dataset: {name: photos, loader: folder, split: all}
more_datasets:
  - {name: scans, loader: folder, label_space: scans.yaml}
  - {name: streets, loader: hub, image_column: pixels, label_column: seg, split: validation}
  - coco:val
"""


def test_datasets_with_names_of_their_own(tmp_path):
    recipe = Recipe.from_yaml(write(tmp_path, NAMED))
    assert (recipe.dataset, recipe.loader, recipe.train_split) == ("photos", "folder", "all")
    assert recipe.more_datasets == [
        "scans,loader=folder,label_space=scans.yaml",
        "streets:validation,loader=hub,image_column=pixels,label_column=seg",
        "coco:val",
    ]
    assert recipe.datasets == [
        NamedDataset("photos", "all", "folder"),
        NamedDataset("scans", None, "folder", "scans.yaml"),
        NamedDataset("streets", "validation", "hub", None, "pixels", "seg"),
        NamedDataset("coco", "val"),
    ]
    assert Recipe.from_yaml(write(tmp_path, recipe.to_yaml())) == recipe
    assert training_sets(recipe) == [("photos", "all"), ("scans", "all"), ("streets", "validation"), ("coco", "val")]
    given = ["photos=A", "scans=B", "streets=me/streets", "coco=D"]
    assert data_dirs_by_name(given, [recipe])["scans"] == Path("B")
    with pytest.raises(RecipeError, match="give photos=DIR scans=DIR streets=DIR coco=DIR"):
        data_dirs_by_name(given[:3], [recipe])


def test_own_settings_keep_names_and_no_folders(tmp_path):
    table = write(tmp_path, "names: [road, car]\n")
    recipe = Recipe(dataset="photos", loader="folder", more_datasets=[f"scans,loader=folder,label_space={table}"])
    assert recipe.own_settings == {
        "loader": "folder",
        "more_datasets": [f"scans,loader=folder,label_space={table.name}"],
    }


def test_fields_with_paths_are_known():
    """A new field of text is entered here if it never holds a path, else in `PATH_FIELDS`, so that no folder is published."""
    without = {"dataset", "loader", "image_column", "label_column", "train_split", "eval_split", "architecture", "variant"}
    without |= {"more_datasets", "lora_targets", "distorted_datasets", "loss", "class_weights", "trackers", "hub_model_id"}
    text = {name for name, kind in get_type_hints(Recipe).items() if "str" in str(kind)}
    assert text == without.union(PATH_FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {loader: folder}\n", r"dataset: \{'loader': 'folder'\} has no name"),
        ("dataset: {name: a, loader: folder, color: red}\n", "dataset: color: 'red' is not one of name, split, loader"),
        ("dataset: {name: a, loader: folder}\nloader: hub\n", "loader is said twice: 'hub', and 'folder' within dataset"),
        ("dataset: camvid\nmore_datasets: [{name: a, split: 3}]\n", "more_datasets: split: 3 is not"),
        ("dataset: camvid\nmore_datasets: ['a,color=red']\n", "'a,color=red' is not NAME or NAME:SPLIT"),
        ("dataset: camvid\nmore_datasets: ['a,loader=folder,loader=hub']\n", "is not NAME or NAME:SPLIT"),
        ("dataset: camvid\nmore_datasets: [':val']\n", "':val' is not NAME"),
        (
            "dataset: photos\nloader: folder\nmore_datasets: ['photos:val,loader=hub']\n",
            "'photos' has the loader 'folder' and 'hub'",
        ),
    ],
)
def test_mistakes_in_datasets_names(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(write(tmp_path, text))


def test_a_name_is_one_dataset_in_a_whole_chain():
    recipes = [Recipe(dataset="photos", loader=loader) for loader in ("folder", "hub")]
    with pytest.raises(RecipeError, match="give each dataset a name of its own"):
        data_dirs_by_name(["photos=A"], recipes)


@pytest.mark.parametrize(("former", "now"), [("nothing", "none"), ("relus", "norms"), ("modules", "modules")])
def test_former_names_of_recompute(former, now):
    """Recipes of earlier versions, also those beside checkpoints, still mean what they meant."""
    assert Recipe.from_dict({"dataset": "camvid", "recompute": former}).recompute == now


def test_recompute_default_and_error():
    assert Recipe(dataset="camvid").recompute == "norms"
    with pytest.raises(RecipeError, match="recompute must be one of none, norms, modules, got 'all'"):
        Recipe(dataset="camvid", recompute="all")


def test_a_folder_is_no_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: camvid")
    with pytest.raises(RecipeError, match=r"is a folder: give a recipe's YAML file \(it holds mine\.yaml\)"):
        find_recipe(tmp_path)
    with pytest.raises(RecipeError, match="it holds no YAML file"):
        find_recipe(tmp_path.parent)


def test_a_label_table_beside_the_recipe(tmp_path, monkeypatch):
    """Also from another folder; what lies there is not taken in its place."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "mine" / "mine.yaml"
    recipe.write_text("dataset: folder\nlabel_space: labels.yaml\n")
    assert read_chain(recipe)[0].label_space == "labels.yaml"  # where the run looks, and says that it is missing
    (tmp_path / "mine" / "labels.yaml").write_text("names: [a, b]")
    assert read_chain(recipe)[0].label_space == str(tmp_path / "mine" / "labels.yaml")
    (tmp_path / "here" / "labels.yaml").write_text("names: [c, d]")
    with pytest.raises(RecipeError, match=r"labels\.yaml is a file here and another beside the recipe"):
        read_chain(recipe)
    assert read_chain(recipe, {"label_space": "cityscapes"})[0].label_space == "cityscapes"


def test_label_tables_beside_the_recipe_of_stages_and_datasets(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "mine" / "labels.yaml"
    table.write_text("names: [a, b]")
    dataset = "{name: photos, loader: folder, label_space: labels.yaml}"
    for text in (
        "stages: [{dataset: folder, label_space: labels.yaml}]",
        f"dataset: {dataset}",
        f"stages: [{{dataset: {dataset}}}]",
    ):
        (tmp_path / "mine" / "mine.yaml").write_text(text)
        assert read_chain(tmp_path / "mine" / "mine.yaml")[0].label_space == str(table), text
    (tmp_path / "mine" / "mine.yaml").write_text(f"dataset: camvid\nmore_datasets: [{dataset}]")
    assert read_chain(tmp_path / "mine" / "mine.yaml")[0].datasets[1].label_space == str(table)


def test_a_checkpoint_for_a_chain_is_one_to_begin_with(tmp_path):
    """The later stages begin with the stage before them, unless they name another one."""
    stages = "stages: [{dataset: cityscapes}, {dataset: camvid}, {dataset: camvid, init_from: own}]"
    assert [recipe.init_from for recipe in read_chain(write(tmp_path, f"init_from: given\n{stages}"))] == ["given", None, "own"]
    chain = read_chain(write(tmp_path, stages), {"init_from": "given"})
    assert [recipe.init_from for recipe in chain] == ["given", None, "own"]


def test_without_a_checkpoint_there_is_no_classifier_to_transfer(tmp_path):
    """A stage after the first has that of the stage before."""
    own = write(tmp_path, "dataset: camvid\n")
    with pytest.raises(RecipeError, match=r"transfer_classifier would have no effect: there is no init_from.*\(default: True\)"):
        read_chain(own, {"transfer_classifier": False})
    assert not read_chain(own, {"transfer_classifier": False, "init_from": "given"})[0].transfer_classifier
    chain = write(tmp_path, "dataset: camvid\ntransfer_classifier: false\nstages: [{}, {}]\n")
    assert [recipe.transfer_classifier for recipe in read_chain(chain)] == [False, False]


def test_a_push_can_be_switched_off(tmp_path):
    """With what the recipe says of it; what the command line says is refused."""
    own = write(tmp_path, "dataset: camvid\npush_to_hub: true\nhub_model_id: me/net\nhub_private_repo: true\n")
    (recipe,) = read_chain(own, {"push_to_hub": False})
    assert (recipe.push_to_hub, recipe.hub_model_id, recipe.hub_private_repo) == (False, None, False)
    with pytest.raises(RecipeError, match="hub_model_id would have no effect: push_to_hub is off"):
        read_chain(own, {"push_to_hub": False, "hub_model_id": "me/other"})


def test_the_older_way_to_freeze_the_backbone_overrides_a_recipe():
    """`camvid` has trainable_backbone: last_stage."""
    for frozen, choice in ((True, "none"), (False, "all")):
        (recipe,) = read_chain("camvid", {"freeze_backbone": frozen, "backbone_learning_rate": 1.0})
        assert (recipe.trainable_backbone, recipe.freeze_backbone) == (choice, frozen)
    with pytest.raises(RecipeError, match="freeze_backbone: true and trainable_backbone: all contradict each other"):
        read_chain("camvid", {"freeze_backbone": True, "trainable_backbone": "all"})
    saved = Recipe(dataset="camvid", trainable_backbone="last_stage").to_yaml()
    assert Recipe.from_dict(yaml.safe_load(saved)).trainable_backbone == "last_stage"


def test_an_auxiliary_loss_of_weight_zero_is_none():
    assert Recipe(dataset="camvid", auxiliary_loss_weight=0).auxiliary_loss_weight is None


def test_ohem_keeps_as_many_pixels_as_the_official_hrnet():
    """OHEMKEEP of its configurations of Cityscapes."""
    assert LossSettings().ohem_min_kept == 131_072
