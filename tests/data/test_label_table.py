import json
import zipfile

import numpy as np
import PIL.Image
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from revhrnet_hf.data import LabelMap, LabelSpace, get_label_space, label_table
from revhrnet_hf.data.label_space import find_label_space
from revhrnet_hf.data.label_table import read_label_table
from revhrnet_hf.data.palette import default_palette
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
image_suffix: _sat
label_suffix: _mask
image_prefix: img
label_prefix: mask
labelme: {road: 7, street car: 26}
val_fraction: 0.2
val_seed: 0
untinted: [lawn]
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
    assert space.colours == (*default_palette(2), (220, 20, 60), (0, 255, 0))
    assert space.untinted == ("lawn",)


def test_the_documented_example_is_a_table(space_of):
    example = label_table.__doc__.split("All fields:")[1].split("A colour is")[0]
    assert yaml.safe_load(example) == yaml.safe_load(
        EVERYTHING.replace("./masks/{split}/ids/", "masks/{split}").replace("A", "a")
    )
    assert space_of(example).names == ("road", "car", "person", "lawn")


def test_folders_are_read(tmp_path):
    (tmp_path / "table.yaml").write_text(EVERYTHING)
    table = read_label_table(tmp_path / "table.yaml")
    assert (table.images, table.labels) == ("photos/{split}", "masks/{split}/ids")
    assert (table.image_prefix, table.label_prefix, table.labelme) == ("img", "mask", {"road": 7, "street car": 26})
    assert (table.image_suffix, table.label_suffix, table.val_fraction, table.val_seed) == ("_sat", "_mask", 0.2, 0)


def test_name_is_the_files_or_its_folders(space_of, tmp_path):
    assert space_of("names: [a, b]\n", "parking.yml").name == "parking"
    assert space_of("names: [a, b]\n", "labels.yaml").name == tmp_path.name


def test_explicit_ignore_replaces_the_usual_one(space_of):
    with pytest.raises(DataError, match="holds the ids 255"):
        space_of("names: [a, b]\nignore: 9\n").train_ids(np.array([[9, 255]]), "x")


def test_table_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("labels.yaml", "names: [a, b]\n")
    space = find_label_space(f"zip://labels.yaml::{tmp_path / 'data.zip'}")
    assert space.names == ("a", "b")


def test_label_space_is_found_by_name_or_file(tmp_path):
    (tmp_path / "own.yaml").write_text("names: [a, b]\n")
    assert find_label_space(tmp_path / "own.yaml").names == ("a", "b")
    assert find_label_space("camvid11") is get_label_space("camvid11")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.yaml is empty"),
        ("names: [a, b\n", "is not YAML: .*line 2"),
        ("- a\n- b\n", "line 1: a label table must be lines of the form field: value"),
        ("name: x\n", "line 1: the field names is missing"),
        ("name: x\nnames: []\n", "line 2: names is empty"),
        (
            "names: [a]\ncolours: [b]\n",
            "line 2: unknown field 'colours'; known: name, names, ignore, images, labels, image_suffix",
        ),
        ("names: [a]\nnames: [b]\n", "line 2: 'names' is there twice"),
        ("names:\n  a: 1\n  a: 2\n", "line 3: 'a' is there twice"),
        ("names: [a, b, a]\n", "line 1: the class 'a' is there twice"),
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
        ("names: [a, b]\nignore:\n- 7\n- 7\n", "line 4: the id 7 belongs to ignore already"),
        ("names:\n  a: {}\n", "line 2: the class 'a' has neither ids nor colours"),
        ("names:\n  a: {id: 3}\n", r"line 2: unknown field 'id' \(did you mean ids\?\); known: ids, colours"),
        ("names:\n  a: {colours: #ff0000}\n  }\n", r"line [23]: a colour is \[red, green, blue\].*quotes are needed.*not None"),
        ("names:\n  a: {colours: [1, 2, 256]}\n", r"not \[1, 2, 256\]"),
        ("names:\n  a: {colours: [1, 2]}\n", r"not \[1, 2\]"),
        ("names:\n  a: {colours: red}\n", "not 'red'"),
        (
            "names:\n  a: {colours: [1, 2, 3]}\n  b: 1\nignore: [[1, 2, 3]]\n",
            r"line 4: the colour \(1, 2, 3\) belongs to the class 'a'",
        ),
        ("names: [a, b]\nimages: x/{split}\n", "images and labels belong together"),
        ("names: [a, b]\nimages: x\nlabels: y/{split}\n", "either both hold {split}, .* or neither"),
        ("names: [a, b]\nimages: x/{split}/{split}\nlabels: y\n", "either both hold {split}, .* or neither"),
        ("names: [a, b]\nimages: 'x/{split}/*'\nlabels: y/{split}\n", r"\*, a folder of any name, stands once in each"),
        ("names: [a, b]\nimages: 'x/*'\nlabels: 'y/*'\n", "and only beside {split}"),
        ("names: [a, b]\nimages: '{split}/*/*/x'\nlabels: '{split}/*/*/y'\n", "stands once in each"),
        ("names: [a, b]\nimages: x/{split}\nlabels: ../y/{split}\n", "line 3: labels: '../y/{split}' leads outside"),
        (
            "names: [a, b]\nlabel_suffix: _mask.png\n",
            "line 2: label_suffix: '_mask.png' must be the end of a name before its ending",
        ),
        (
            "names: [a, b]\nlabel_prefix: masks/m\n",
            "line 2: label_prefix: 'masks/m' must be the beginning of a name, without folders",
        ),
        (
            "names: [a, b]\nlabelme: {a: first}\n",
            "line 2: labelme: 'a': an id is a whole number from 0 to 65535, not 'first'",
        ),
        ("names: [a, b]\nval_fraction: 20\n", "line 2: val_fraction is a share between 0 and 1, such as 0.2, not 20"),
        ("names: [a, b]\nval_seed: 3\n", "line 2: val_seed is a whole number, and belongs to val_fraction"),
        ("names: [road]\n", "line 1: there is one class.*two are the fewest.*background, road] where.*0, road: 255} where"),
        ("? [a]\n: b\n", "line 1: .* a field's name is text"),
        ("names: [a, 2001-99-99]\n", "line 1: this value cannot be read .*quotes"),
        ("names: {a: !!int x, b: 2}\n", "line 1: this value cannot be read"),
        ("names: &n [a, *n]\n", "more than 50,000 values, or contains itself: .*aliases"),
        ("[" * 2000, "line 1, is nested more than 20 levels deep"),
        ("- " * 100_000 + "x", "line 1, is nested more than 20 levels deep"),
        ("name: camvid11\nnames: [a, b]\n", "'camvid11' is already the name of another label space"),
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
    with pytest.raises(DataError, match=r"latin\.yaml is not text in UTF-8"):
        LabelSpace.from_yaml(tmp_path / "latin.yaml")


def test_ids_for_a_space_of_colours_are_refused(space_of):
    space = space_of("names:\n  lawn: {colours: '#00ff00'}\n  path: {colours: '#000000'}\nignore: []\n")
    assert space.train_ids(np.array([[[0, 255, 0]]], np.uint8), "x").tolist() == [[0]]
    with pytest.raises(DataError, match=r"Label map x\.png holds ids, but .* has colours only"):
        space.train_ids(np.array([[0]]), "x.png")


def test_a_table_of_colours_ignores_no_id_by_default(space_of):
    """Else a mask of nothing but 255 could be read in two ways, and an unknown colour would be reported as an unknown id."""
    space = space_of("names:\n  background: {colours: '#000000'}\n  thing: {colours: '#ffffff'}\n")
    assert space.raw_ids == {}
    assert np.asarray(space.translate_image(PIL.Image.new("L", (2, 1), 255), "x.png")).tolist() == [[1, 1]]
    palette = PIL.Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255, 1, 2, 3])
    with pytest.raises(DataError, match=r"Label map x\.png holds the colours \(1, 2, 3\), which"):
        space.translate_image(palette, "x.png")
    assert space_of("names:\n  a: {colours: '#000000'}\n  b: 3\n").raw_ids == {3: 1, 255: 255}


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


def test_aliases_may_be_used(space_of):
    assert space_of("names: {a: &ids [1, 2], b: 3}\nignore: [9]\n").raw_ids == {1: 0, 2: 0, 3: 1, 9: 255}
    with pytest.raises(DataError, match="the id 1 belongs to the class 'a' already"):
        space_of("names:\n  a: &ids [1, 2]\n  b: *ids\n")


def test_aliases_that_multiply_are_refused_at_once(space_of):
    lines = ["a0: &a0 [x, x]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 60))]
    with pytest.raises(DataError, match="stands for more than 50,000 values"):
        space_of("\n".join(lines) + "\nnames: *a59\n")


def test_long_table_is_refused_before_it_is_parsed(space_of, monkeypatch):
    text = f"names: [a, b]\n# {'x' * (1 << 20)}\n"
    monkeypatch.setattr(yaml, "compose", lambda *_: pytest.fail("parsed"))
    with pytest.raises(DataError, match=r"more than 0.25 MB of text, .*variable REVHRNET_MAX_TEXT_MB"):
        space_of(text)
    monkeypatch.undo()
    monkeypatch.setenv("REVHRNET_MAX_TEXT_MB", "2")
    assert space_of(text).names == ("a", "b")
    monkeypatch.setenv("REVHRNET_MAX_TEXT_MB", "lots")
    with pytest.raises(DataError, match="is 'lots': give a whole number of megabytes"):
        space_of(text)


def test_what_is_wrong_is_shown_shortened(space_of):
    with pytest.raises(DataError) as caught:
        space_of(f"names: {{a: {list(range(70_000, 90_000))}, b: {'x' * 100_000}}}\n")
    assert len(str(caught.value)) < 500


CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:0,0,255:head,tail:run\nbig: dog:255,0,0::\n"


def test_cvats_table(space_of):
    space = space_of(CVAT, "labelmap.txt")
    assert space.names == ("background", "cat", "big: dog")
    assert space.colours == ((0, 0, 0), (0, 0, 255), (255, 0, 0))
    assert (space.raw_ids, space.raw_colours) == ({}, {(0, 0, 0): 0, (0, 0, 255): 1, (255, 0, 0): 2})
    raw = np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)
    assert space.train_ids(raw, "x").tolist() == [[2, 0]]
    assert space_of("a:::\nb:::\n", "labelmap.txt").raw_ids == {0: 0, 1: 1, 255: 255}
    assert space_of("\ufeffa:1,1,1::\r\nb: 2, 2, 2\r\n", "labelmap.txt").raw_colours == {(1, 1, 1): 0, (2, 2, 2): 1}


def test_cvats_classes_in_a_table_of_ones_own(space_of, tmp_path):
    (tmp_path / "labelmap.txt").write_text(CVAT)
    space = space_of("names: labelmap.txt\nignore: [7]\nval_fraction: 0.5\n", "labels.yaml")
    assert space.names == ("background", "cat", "big: dog") and space.raw_ids == {7: 255}
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("own/labels.yaml", "names: labelmap.txt\n")
        archive.writestr("own/labelmap.txt", CVAT)
    assert find_label_space(f"zip://own/labels.yaml::{tmp_path / 'data.zip'}").names == space.names
    assert find_label_space(tmp_path / "labelmap.txt").names == space.names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n", "line 1: 'cat' is not of CVAT's form label:red,green,blue:parts:actions"),
        ("cat:1,2::\n", "line 1: 'cat:1,2::' is not of CVAT's form"),
        ("#\ncat:1,2,256::\n", "line 2: a colour is red,green,blue, each from 0 to 255, not 1,2,256"),
        ("a:1,2,3::\nb:1,2,3::\n", r"line 2: the colour \(1, 2, 3\) belongs to the class 'a' already"),
        ("a:1,2,3::\na:1,2,4::\n", "line 2: the class 'a' is there twice"),
        ("a:1,2,3::\nb:::\n", "'a' has a colour and 'b' has none"),
        ("background:0,0,0::\n", r"there is one class.*\[background, person\]"),
        ("# nothing\n", "there are no classes"),
    ],
)
def test_mistakes_in_cvats_table(space_of, text, message):
    with pytest.raises(DataError, match=message) as caught:
        space_of(text, "labelmap.txt")
    assert "labelmap.txt" in str(caught.value)


names = st.lists(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1), min_size=2, max_size=9, unique=True)
colours = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def label_spaces(draw):
    """Any label space that a label table can give."""
    classes = draw(names)
    ids = draw(st.lists(st.integers(0, 65535), min_size=len(classes), max_size=4 * len(classes), unique=True))
    coded = draw(st.lists(colours, max_size=12, unique=True))
    owner = st.sampled_from([*range(len(classes)), 255])
    raw_ids = dict(zip(ids, [*range(len(classes)), *draw(st.lists(owner, min_size=40, max_size=40))], strict=False))
    raw_colours = {colour: draw(owner) for colour in coded}
    shown = tuple(
        next((colour for colour in coded if raw_colours[colour] == k), default_palette(k + 1)[k]) for k in range(len(classes))
    )
    return LabelSpace("own", tuple(classes), shown, raw_ids, raw_colours=raw_colours)


def as_table(space):
    """The label table of a label space, as PyYAML writes it."""

    def of(raw, train_id):
        return [list(key) if isinstance(key, tuple) else key for key, value in raw.items() if value == train_id]

    classes = {
        name: {"ids": of(space.raw_ids, k)} | ({"colours": coded} if (coded := of(space.raw_colours, k)) else {})
        for k, name in enumerate(space.names)
    }
    ignored = of(space.raw_ids, 255) + of(space.raw_colours, 255)
    return yaml.safe_dump({"name": space.name, "names": classes, "ignore": ignored}, sort_keys=False, allow_unicode=True)


property_test = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@property_test
@given(label_spaces())
def test_table_and_json_bring_any_space_back(space_of, space):
    assert space_of(as_table(space)) == LabelSpace.from_json(space.to_json()) == space


@property_test
@given(label_spaces(), st.data())
def test_translation_is_a_look_up_in_the_table(space, data):
    raw = data.draw(st.lists(st.sampled_from(sorted(space.raw_ids)), min_size=1, max_size=20))
    for dtype in (np.uint16, np.int32):
        assert space.train_ids(np.array([raw], dtype), "x").tolist() == [[space.raw_ids[raw_id] for raw_id in raw]]
    unknown = data.draw(st.integers(0, 65535).filter(lambda raw_id: raw_id not in space.raw_ids))
    with pytest.raises(DataError, match=f"holds the ids {unknown},"):
        space.train_ids(np.array([[*raw, unknown]], np.uint16), "x")
    if space.raw_colours:
        raw = data.draw(st.lists(st.sampled_from(sorted(space.raw_colours)), min_size=1, max_size=20))
        translated = space.train_ids(np.array([raw], np.uint8), "x")
        assert translated.tolist() == [[space.raw_colours[colour] for colour in raw]]


@property_test
@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.dates() | st.binary(),
            lambda below: st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(label_table.FIELDS) | st.text(), below),
        ).map(lambda value: yaml.dump(value)),
    )
)
def test_any_text_is_a_table_or_one_error(tmp_path, text):
    for name in ("table.yaml", "labelmap.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        try:
            assert len(read_label_table(tmp_path / name).names) >= 2
        except DataError as error:
            assert name in str(error)
