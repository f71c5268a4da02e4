"""The command that trains: what it reads from its command line over the recipe's file, and what it refuses before training."""

from dataclasses import fields

import PIL.Image
import pytest

from revhrnet_hf.cli import run
from revhrnet_hf.commands import train
from revhrnet_hf.errors import HubError, RecipeError
from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.training.recipe import Recipe


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def parsed(recipe, options):
    return train.parse_command_line(["--recipe", str(recipe), "--data_dir", "D", "--output_dir", "O", *options.split()])


def test_command_line_overrides(tmp_path):
    recipe = write(tmp_path, "dataset: camvid\nepochs: 7\ncrop_size: [64, 96]\nhead: concat\nfreeze_backbone: true\n")
    options = "--crop_size 32 48 --no_freeze_backbone --learning_rate 1e-3 --class_weights 1 2.5"
    arguments, (result,) = parsed(recipe, options)
    assert (arguments.data_dir, arguments.output_dir, arguments.resume) == (["D"], "O", False)
    assert (result.epochs, result.head) == (7, "concat")
    assert (result.crop_size, result.freeze_backbone, result.learning_rate) == ([32, 48], False, 0.001)
    assert result.class_weights == [1.0, 2.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--epoch 5", "unknown option --epoch (did you mean --epochs?)"),
        ("--learning-rat=5", "unknown option --learning-rat (did you mean --learning_rate?)"),
        ("--no_freeze_backbon --zzz", "unknown option --no_freeze_backbon (did you mean --no_freeze_backbone?), --zzz"),
        ("-x 3 stray", "not understood: -x 3 stray"),
        ("--head triple", "argument --head: invalid choice: 'triple' (choose from 'single', 'concat', 'ocr')"),
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--recipe", "argument --recipe: expected one argument"),
        # options of 0.1.0
        ("--log_pictures 3", "unknown option --log_pictures (did you mean --log_images?)"),
        ("--hand_over_classifier false", "unknown option --hand_over_classifier (did you mean --transfer_classifier?)"),
        ("--no_hand_over_classifier", "unknown option --no_hand_over_classifier (did you mean --no_transfer_classifier?)"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, options, said):
    """One line, of what is wrong, and nothing else; also where a needed option is misspelt."""
    recipe = write(tmp_path, "dataset: camvid\n")
    monkeypatch.setattr("sys.argv", ["run_seg.py"])
    with pytest.raises(SystemExit) as stop:
        parsed(recipe, options)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {said} (options: run_seg.py --help)\n")
    with pytest.raises(SystemExit):
        train.parse_command_line(f"--recipe {recipe} --data_dir D --output_dirr O".split())
    assert "unknown option --output_dirr (did you mean --output_dir?)" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_timeout_is_a_time(tmp_path, minutes):
    with pytest.raises(RecipeError, match="timeout_minutes must be a positive number"):
        parsed(write(tmp_path, "dataset: camvid\n"), f"--timeout_minutes {minutes}")


def test_help_of_what_turns_off():
    """It is not that of its opposite."""
    parser = train.build_parser()
    by_option = {option: action for action in parser._actions for option in action.option_strings}
    off = [option for option in by_option if option.startswith("--no_")]
    assert {"--no_freeze_backbone", "--no_sync_batch_norm", "--no_decay_norm_and_bias", "--no_transfer_classifier"} <= set(off)
    for option in off:
        field = option.removeprefix("--no_")
        assert by_option[option].help == f"The same as --{field} false"
        assert by_option[f"--{field}"].help != by_option[option].help


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for setting in fields(Recipe):
        assert f"--{setting.name}" in said
        assert setting.metadata["help"].split(":")[0] in said


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("epochs: 3\n", "--dataset folder", {"dataset": "folder", "epochs": 3}),
        ("dataset: camvid\nepochs: many\n", "--epochs 3", {"epochs": 3}),
        ("dataset: camvid\nprecision: float\n", "--precision no", {"precision": "no"}),
        ("dataset: camvid\nbatch_size: 5\n", "--gradient_accumulation_steps 5", {"gradient_accumulation_steps": 5}),
        ("dataset: camvid\nbatch_size: 5\ngradient_accumulation_steps: 2\n", "--batch_size 4", {"batch_size": 4}),
        ("dataset: camvid\npush_to_hub: true\n", "--hub_model_id me/net", {"hub_model_id": "me/net"}),
        ("dataset: camvid\nmore_datasets: [':val']\n", "--more_datasets coco", {"more_datasets": ["coco"]}),
        ("dataset: {loader: folder, split: all}\n", "--dataset photos", {"dataset": "photos", "train_split": "all"}),
        ("dataset: {name: a, loader: folder}\n", "--dataset camvid --loader hub", {"dataset": "camvid", "loader": "hub"}),
        ("dataset: {name: a, loader: folder}\nloader: hub\n", "--loader hub", {"dataset": "a", "loader": "hub"}),
        ("stages: [{epochs: 0}, {}]\n", "--dataset camvid --epochs 2", {"dataset": "camvid", "epochs": 2}),
    ],
)
def test_the_command_line_counts_before_the_file_is_checked(tmp_path, text, options, expected):
    for recipe in parsed(write(tmp_path, text), options)[1]:
        assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("epochs: 3\n", "--seed 1", r"recipe\.yaml with other seed: Recipe field dataset is missing"),
        ("dataset: camvid\n", "--epochs 0", r"recipe\.yaml with other epochs: Recipe field epochs must be positive, got 0"),
        ("dataset: camvid\nepochs: 0\n", "--seed 1", "Recipe field epochs must be positive, got 0"),
        ("dataset: camvid\nepoch: 5\n", "--epochs 3", "Unknown field in .*: epoch"),
    ],
)
def test_the_rest_of_the_file_is_checked(tmp_path, text, options, said):
    with pytest.raises(RecipeError, match=said):
        parsed(write(tmp_path, text), options)


def test_push_is_refused_before_training(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset: camvid\npush_to_hub: true\n")
    arguments = f"--recipe {recipe} --data_dir {tmp_path / 'absent'} --output_dir {tmp_path / 'out'}".split()
    with pytest.raises(RecipeError, match="push_to_hub needs hub_model_id"):
        train.main(arguments)
    recipe.write_text("dataset: camvid\n")
    monkeypatch.setattr("revhrnet_hf.hub.push.get_token", lambda: None)
    with pytest.raises(HubError, match="no token for the Hub"):
        train.main([*arguments, "--hub_model_id", "someone/net", "--push_to_hub"])
    assert not (tmp_path / "out").exists()


def test_a_former_field_is_read_with_a_note(tmp_path, capsys):
    """As a person sees it: one line on standard error, and the field under its new name."""
    recipe = write(tmp_path, "dataset: camvid\nlog_pictures: 1\nstages:\n- {}\n- hand_over_classifier: false\n")
    recipes = []
    run(lambda: recipes.extend(parsed(recipe, "")[1]))
    assert [(stage.log_images, stage.transfer_classifier) for stage in recipes] == [(1, True), (1, False)]
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"note: {recipe}: hand_over_classifier is called transfer_classifier now",
        f"note: {recipe}: log_pictures is called log_images now",
    ]


def test_crops_are_drawn_beside_the_output_folder(tmp_path, capsys):
    write_camvid(tmp_path / "camvid", {"train": 4, "val": 2}, size=(48, 64))
    text = "dataset: camvid\nbackbone_weights: nowhere.safetensors\ncrop_size: [32, 48]\nbase_size: 64\nbatch_size: 2\n"
    recipe = write(tmp_path, text + "stages: [{epochs: 1}, {epochs: 2, rotation: 5}]\n")
    output_dir = tmp_path / "runs" / "first"
    options = ["--recipe", str(recipe), "--data_dir", str(tmp_path / "camvid"), "--output_dir", str(output_dir), "--crops", "3"]
    train.main(options)
    files = [output_dir.parent / name for name in ("first_1_camvid_crops.png", "first_crops.png")]
    assert sorted(output_dir.parent.iterdir()) == files  # and no folder of a run
    assert capsys.readouterr().out == "".join(f"written: {file}\n" for file in files)
    assert PIL.Image.open(files[0]).size == PIL.Image.open(files[1]).size
    assert files[0].read_bytes() != files[1].read_bytes()
    with pytest.raises(RecipeError, match="--crops must be 1 or more, got 0"):
        train.main([*options[:-1], "0"])
