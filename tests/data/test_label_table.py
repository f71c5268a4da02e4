import json
import zipfile

import numpy as np
import pytest
import yaml

from revhrnet_hf.data import LabelMap, LabelSpace, get_label_space, label_table
from revhrnet_hf.data.label_space import find_label_space
from revhrnet_hf.data.label_table import default_colours, read_label_table
from revhrnet_hf.errors import DataError

EVERYTHING = """\
name: car_park
names:
  road: 7                                 # the id in the label maps
  car: [26, 27]
  person: {ids: 24, colours: [220, 20, 60]}
  lawn: {colours: ["#00ff00", "#00AA00"]}
ignore: [0, 255, "#000000"]
images: photos/{split}
labels: ./masks/{split}/ids/
"""


@pytest.fixture
def space_of(tmp_path):
    def read(text, name="table.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return LabelSpace.from_yaml(tmp_path / name)

    return read


def test_three_classes_in_one_line(space_of):
    space = space_of("names: [road, car, person]\n")
    assert space.names == ("road", "car", "person")
    assert space.raw_ids == {0: 0, 1: 1, 2: 2, 255: 255}
    assert len(set(space.colours)) == 3
    assert space.train_ids(np.array([[2, 255, 0]]), "x").tolist() == [[2, 255, 0]]


def test_everything_that_can_be_said(space_of):
    space = space_of(EVERYTHING)
    assert (space.name, space.names) == ("car_park", ("road", "car", "person", "lawn"))
    assert space.raw_ids == {7: 0, 26: 1, 27: 1, 24: 2, 0: 255, 255: 255}
    assert space.raw_colours == {(220, 20, 60): 2, (0, 255, 0): 3, (0, 170, 0): 3, (0, 0, 0): 255}
    assert space.colours == (*default_colours(2), (220, 20, 60), (0, 255, 0))


def test_the_documented_example_is_a_table(space_of):
    example = label_table.__doc__.split("Everything that can be said:")[1].split("A colour is")[0]
    assert yaml.safe_load(example) == yaml.safe_load(
        EVERYTHING.replace("./masks/{split}/ids/", "masks/{split}").replace("A", "a")
    )
    assert space_of(example).names == ("road", "car", "person", "lawn")


def test_folders_are_read(tmp_path):
    (tmp_path / "table.yaml").write_text(EVERYTHING)
    table = read_label_table(tmp_path / "table.yaml")
    assert (table.images, table.labels) == ("photos/{split}", "masks/{split}/ids")


def test_name_is_the_files_or_its_folders(space_of, tmp_path):
    assert space_of("names: [a]\n", "parking.yml").name == "parking"
    assert space_of("names: [a]\n", "labels.yaml").name == tmp_path.name


def test_explicit_ignore_replaces_the_usual_one(space_of):
    with pytest.raises(DataError, match="holds the ids 255"):
        space_of("names: [a]\nignore: 9\n").train_ids(np.array([[9, 255]]), "x")


def test_table_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("labels.yaml", "names: [a, b]\n")
    space = find_label_space(f"zip://labels.yaml::{tmp_path / 'data.zip'}")
    assert space.names == ("a", "b")


def test_label_space_is_found_by_name_or_file(tmp_path):
    (tmp_path / "own.yaml").write_text("names: [a]\n")
    assert find_label_space(tmp_path / "own.yaml").names == ("a",)
    assert find_label_space("camvid11") is get_label_space("camvid11")


def test_default_colours_can_be_told_apart():
    colours = np.array(default_colours(35), float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(35, dtype=bool)].min() > 15
    # Okabe and Ito's vermilion and blue, as published.
    assert colours[5].tolist() == [213, 94, 0]
    assert colours[4].tolist() == [0, 114, 178]
    assert default_colours(36)[35] == default_colours(1)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.yaml is empty"),
        ("names: [a, b\n", "is no YAML: .*line 2"),
        ("- a\n- b\n", "line 1: a label table must be lines of the form field: value"),
        ("name: x\n", "line 1: the field names is missing"),
        ("name: x\nnames: []\n", "line 2: names is empty"),
        ("names: [a]\ncolours: [b]\n", "line 2: unknown field 'colours'; known: name, names, ignore, images, labels"),
        ("names: [a]\nnames: [b]\n", "line 2: 'names' stands twice"),
        ("names:\n  a: 1\n  a: 2\n", "line 3: 'a' stands twice"),
        ("names: [a, b, a]\n", "line 1: the class 'a' stands twice"),
        ("names: [yes, no]\n", "line 1: a class name must be text, but is True: put it in quotes"),
        ("names:\n  0: road\n", "line 2: 0: comes before its class: write the class first, such as road: 0"),
        ("names: a\n", "line 1: names .* must be lines of the form"),
        ("names:\n  a: 1\n  b:\n", "line 3: the class 'b': an id is a whole number from 0 to 65535, not None"),
        ("names:\n  a: -1\n", "line 2: the class 'a': an id .* not -1"),
        ("names:\n  a: 65536\n", "not 65536"),
        ("names:\n  a: 1.5\n", "not 1.5"),
        ("names:\n  a: true\n", "not True"),
        ("names:\n  a: [1, 2]\n  b: [2, 3]\n", "line 3: the id 2 belongs to the class 'a' already"),
        ("names: [a, b]\nignore: [1]\n", "line 2: the id 1 belongs to the class 'b' already"),
        ("names: [a]\nignore:\n- 7\n- 7\n", "line 4: the id 7 belongs to ignore already"),
        ("names:\n  a: {}\n", "line 2: the class 'a' has neither ids nor colours"),
        ("names:\n  a: {id: 3}\n", "line 2: unknown field 'id'; known: ids, colours"),
        ("names:\n  a: {colours: #ff0000}\n  }\n", r"line 2: a colour is \[red, green, blue\].*the quotes are needed.*not None"),
        ("names:\n  a: {colours: [1, 2, 256]}\n", r"not \[1, 2, 256\]"),
        ("names:\n  a: {colours: [1, 2]}\n", r"not \[1, 2\]"),
        ("names:\n  a: {colours: red}\n", "not 'red'"),
        ("names:\n  a: {colours: [1, 2, 3]}\nignore: [[1, 2, 3]]\n", r"line 3: the colour \(1, 2, 3\) belongs to the class 'a'"),
        ("names: [a]\nimages: x/{split}\n", "images and labels belong together"),
        ("names: [a]\nimages: x\nlabels: y/{split}\n", "line 2: images: 'x' must hold {split} once"),
        ("names: [a]\nimages: x/{split}\nlabels: ../y/{split}\n", "line 3: labels: '../y/{split}' leads outside"),
        ("name: camvid11\nnames: [a]\n", "'camvid11' is another label space already"),
        (f"names: [{', '.join(f'c{k}' for k in range(256))}]\n", "'c255' is one class too many"),
    ],
)
def test_every_mistake_is_named_with_its_line(space_of, text, message):
    with pytest.raises(DataError, match=message) as caught:
        space_of(text)
    assert "table.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_no_text(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.yaml cannot be read"):
        LabelSpace.from_yaml(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes("names: [straße]\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.yaml is no text in UTF-8"):
        LabelSpace.from_yaml(tmp_path / "latin.yaml")


def test_ids_for_a_space_of_colours_are_refused(space_of):
    space = space_of("names:\n  lawn: {colours: '#00ff00'}\nignore: []\n")
    assert space.train_ids(np.array([[[0, 255, 0]]], np.uint8), "x").tolist() == [[0]]
    with pytest.raises(DataError, match=r"Label map x\.png holds ids, but .* knows colours only"):
        space.train_ids(np.array([[0]]), "x.png")


@pytest.mark.parametrize("make", [lambda space_of: get_label_space("camvid11"), lambda space_of: space_of(EVERYTHING)])
def test_json_brings_the_same_space_back(make, space_of):
    space = make(space_of)
    text = space.to_json()
    assert LabelSpace.from_json(text) == space
    assert "\n" not in text
    assert json.loads(text)["names"] == list(space.names)


def test_foreign_json_is_refused():
    for text in ("{}", "[]", "not JSON", '{"name": "a", "names": 3}'):
        with pytest.raises(DataError, match="No label space can be read from the JSON"):
            LabelSpace.from_json(text)


def test_registered_space_stores_its_name_alone(space_of):
    assert LabelMap.of(get_label_space("camvid11")) == LabelMap(label_space="camvid11")
    assert LabelMap.of(space_of(EVERYTHING)).definition is not None
