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
        ("classes.txt", "road\n\n  car \n", {0: "road", 1: "car"}, {}),
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
