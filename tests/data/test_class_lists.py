"""Names of classes in the files that tools write."""

import pytest

from revhrnet_hf.data.archive import DataFolder
from revhrnet_hf.data.class_lists import find_class_list
from revhrnet_hf.errors import DataError


@pytest.mark.parametrize(
    ("file", "text", "by_id", "by_colour"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, road\n", {0: "background", 1: "road"}, {}),
        ("train/_classes.csv", "Pixel Value, Class\r\n3, car\r\n", {3: "car"}, {}),
        ("class_dict.csv", "name,r,g,b\nSky,128,128,128\n", {}, {(128, 128, 128): "Sky"}),
        ("class_dict.csv", "class,red,green,blue\n\nSky,1,2,3\n", {}, {(1, 2, 3): "Sky"}),
        ("label_colors.txt", "64 128 64\tAnimal\n192 0 128\tArch\n", {}, {(64, 128, 64): "Animal", (192, 0, 128): "Arch"}),
        ("class_dict.csv", "name;r;g;b\r\nSky, blue;128;128;128\r\n", {}, {(128, 128, 128): "Sky, blue"}),
        ("class_dict.csv", "\ufeffname,r,g,b\nSky,128,128,128\n", {}, {(128, 128, 128): "Sky"}),
        ("_classes.csv", "\ufeffPixel Value;Class\n3;car\n", {3: "car"}, {}),
        ("classes.csv", "id\tname\n3\tcar\n", {3: "car"}, {}),
        ("classes.txt", "road\n\n  car \n", {0: "road", 1: "car"}, {}),
        ("classes.txt", "0: sky\n1: road\n", {0: "sky", 1: "road"}, {}),
        ("classes.txt", "\ufeff7 street car\r\n11\tsky\r\n", {7: "street car", 11: "sky"}, {}),
        (
            "classes.txt",
            "1,road\n0 ,sky\n2;a, b\n3=c\n04. d\n5) e\n",
            dict(enumerate(["sky", "road", "a, b", "c", "d", "e"])),
            {},
        ),
        ("classes.txt", "0: sky, 1: road", {0: "sky", 1: "road"}, {}),
        ("classes.txt", "car\n2 wheels\n3 wheels\n", {0: "car", 1: "2 wheels", 2: "3 wheels"}, {}),
        ("classes.txt", "2-wheeler\n3-wheeler\n", {0: "2-wheeler", 1: "3-wheeler"}, {}),
        ("classes.txt", "0 0 0 sky\n1 2 3 road\n", {}, {(0, 0, 0): "sky", (1, 2, 3): "road"}),
        ("labels.txt", "__ignore__\n_background_\ncat\n", {0: "_background_", 1: "cat"}, {}),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nroad:1,2,3::\ncar:4,5,6::\n",
            {},
            {(1, 2, 3): "road", (4, 5, 6): "car"},
        ),
    ],
)
def test_lists(tmp_path, file, text, by_id, by_colour):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text, newline="")
    found = find_class_list(DataFolder(tmp_path))
    assert (found.source, found.by_id, found.by_colour) == (file, by_id, by_colour)


def test_no_list(tmp_path):
    (tmp_path / "notes.txt").write_text("road")
    assert find_class_list(DataFolder(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "said"), [("a,b\n1,2\n", "needs the columns"), ("Pixel Value, Class\nx, road\n", "no numbers where they belong")]
)
def test_damaged_lists(tmp_path, text, said):
    (tmp_path / "_classes.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        find_class_list(DataFolder(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "0: sky\nroad\n",
            " has numbers before some names and none before 'road': write the id before each name",
        ),
        ("sky\n1 road\n2: car\n", " has numbers before some names and none before 'sky'"),
        ("0: sky\n0: road\n", ", the class 'road': the id 0 belongs to the class 'sky' already: correct one of the two"),
        ("3 wheels\n3 doors\n", ", the class 'doors': the id 3 belongs to the class 'wheels' already"),
    ],
)
def test_numbers_that_are_not_clear(tmp_path, text, said):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=f"{tmp_path}/classes.txt{said}"):
        find_class_list(DataFolder(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("class_dict.csv", "name,r,g,b\nC,0,1,2\nC2,0,1,2\n", r"'C2': the colour \(0, 1, 2\) belongs to the class 'C' already"),
        ("label_colors.txt", "0 128 192 Bike\n0 128 192 Bus\n", r"'Bus': the colour \(0, 128, 192\) belongs to the class 'Bike'"),
        ("_classes.csv", "Pixel Value, Class\n2, dog\n2, horse\n", "'horse': the id 2 belongs to the class 'dog' already"),
        ("classes.txt", "0 0 0 sky\n0 0 0 road\n", r"'road': the colour \(0, 0, 0\) belongs to the class 'sky' already"),
        ("class_dict.csv", "name,r,g,b\nC,0,128,256\n", "'C': a colour is red,green,blue, each from 0 to 255, not 0,128,256"),
        ("class_dict.csv", "name,r,g,b\nC,-1,0,0\n", "'C': a colour is red,green,blue, each from 0 to 255, not -1,0,0"),
        ("label_colors.txt", "300 0 0 Bike\n", "'Bike': a colour is red,green,blue, each from 0 to 255, not 300,0,0"),
    ],
)
def test_classes_that_share_an_id_or_a_colour(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=f"{tmp_path}/{file}, the class {said}"):
        find_class_list(DataFolder(tmp_path))


def test_the_same_line_twice(tmp_path):
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nC,1,2,3\nC,1,2,3\n")
    assert find_class_list(DataFolder(tmp_path)).by_colour == {(1, 2, 3): "C"}
