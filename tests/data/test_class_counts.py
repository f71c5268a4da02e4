import hypothesis
import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import LabelMap, LabelSpace, class_counts, label_space_of, load_segmentation_dataset
from revhrnet_hf.data.audit import audit_dataset
from revhrnet_hf.data.class_counts import ClassCounter, count_classes, warn_of_unseen_classes
from revhrnet_hf.data.class_index import class_pixel_counts
from revhrnet_hf.data.loading import in_classes
from revhrnet_hf.errors import DataError

from . import test_raw_label_map as files


def write_folder(folder, arrays, table):
    for number, array in enumerate(arrays):
        label_map = PIL.Image.fromarray(np.asarray(array, np.uint8))
        for kind, image in (("images", PIL.Image.new("RGB", label_map.size)), ("labels", label_map)):
            (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
            image.save(folder / "train" / kind / f"{number:03d}.png")
    (folder / "labels.yaml").write_text(table)
    return load_segmentation_dataset("folder", folder, "train")


def warnings_of(caplog, *sets):
    caplog.clear()
    warn_of_unseen_classes(sets, label_space_of(sets[0]))
    assert all(record.levelname == "WARNING" for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_masks_of_0_and_255(tmp_path, caplog):
    masks = [np.kron([[0, 255]], np.ones((4, 2)))] * 3
    (line,) = warnings_of(caplog, write_folder(tmp_path / "a", masks, "names: [background, person]\n"))
    assert line.startswith("The class 'person' (id 1) has no pixel in the 3 label maps that are trained on")
    assert "50.0 % of the pixels are the id 255" in line and "names: {background: 0, person: 255}" in line
    assert warnings_of(caplog, write_folder(tmp_path / "b", masks, "names: {background: 0, person: 255}\n")) == []


def test_hint_of_a_long_table_and_of_colours(tmp_path, caplog):
    names = ", ".join(f"c{k}: {k}" for k in range(8))
    lines = warnings_of(caplog, write_folder(tmp_path / "a", [[[0, 255]]], f"names: {{{names}}}\n"))
    assert len(lines) == 2 and "the label table must say so, c1: 255." in lines[0]
    assert "6 more classes have no pixel there: c2, c3, c4, c5, c6, c7" in lines[1]
    table = 'names:\n  a: {colours: "#000000"}\n  b: {colours: "#0000ff"}\nignore: "#ffffff"\n'
    (line,) = warnings_of(caplog, write_folder(tmp_path / "b", [[[[0, 0, 0], [255, 255, 255]]]], table))
    assert "The class 'b' has no pixel" in line and "b: {colours: [255, 255, 255]}" in line


def test_much_that_is_ignored(tmp_path, caplog):
    array = np.repeat([0, 1, 255], [60, 34, 6]).reshape(10, 10)
    (line,) = warnings_of(caplog, write_folder(tmp_path / "a", [array], "names: [a, b]\n"))
    assert "6.0 % of the pixels in the 1 label maps" in line and "more than 5 % is unusual" in line
    array = np.repeat([0, 1, 255], [60, 35, 5]).reshape(10, 10)
    assert warnings_of(caplog, write_folder(tmp_path / "b", [array], "names: [a, b]\n")) == []


def test_no_more_is_read_than_needed(tmp_path, monkeypatch):
    dataset = write_folder(tmp_path / "a", [[[0, 1]]] * 30 + [[[2, 2]]] * 10, "names: [a, b, c]\n")
    monkeypatch.setattr(class_counts, "FEWEST_READ", 4)
    counts = count_classes([dataset], label_space_of(dataset))
    assert 4 <= counts.label_maps < 40 and counts.total == 40 and counts.unseen == []
    again = count_classes([dataset], label_space_of(dataset))
    assert again.pixels.tolist() == counts.pixels.tolist()


def test_cap_is_said_and_published_classes_may_be_rare(tmp_path, mini_camvid, monkeypatch, caplog):
    dataset = write_folder(tmp_path / "a", [[[0, 0]]] * 9, "names: [a, b]\n")
    monkeypatch.setattr(class_counts, "MOST_READ", 3)
    monkeypatch.setattr(class_counts, "count_classes", lambda sets, space: count_classes(sets, space, most=3))
    (line,) = warnings_of(caplog, dataset)
    assert "in the 3 label maps that were read, of 9 that are trained on" in line
    for file in (mini_camvid / "trainannot").iterdir():
        PIL.Image.fromarray(np.full((48, 64), 11, np.uint8)).save(file)
    camvid = load_segmentation_dataset("camvid", mini_camvid, "train")
    assert warnings_of(caplog, camvid) == []
    monkeypatch.undo()
    first, others = warnings_of(caplog, camvid)
    assert "The class 'Sky'" in first and "10 more classes" in others


def test_several_sets_count_together(tmp_path, caplog):
    first = write_folder(tmp_path / "a", [[[0, 0]]], "names: [a, b]\n")
    second = write_folder(tmp_path / "b", [[[5, 5]]], "names: {b: 5, a: 6}\n")
    assert len(warnings_of(caplog, first)) == 1
    assert warnings_of(caplog, first, in_classes(second, label_space_of(first))) == []


def test_unreadable_label_maps_are_left_to_training(tmp_path):
    dataset = write_folder(tmp_path / "a", [[[0, 1]]] * 3, "names: [a, b]\n")
    (tmp_path / "a" / "train" / "labels" / "001.png").write_bytes(b"x")
    assert count_classes([dataset], label_space_of(dataset)).label_maps == 2


@pytest.mark.parametrize("table", ["names: [a, b, c]\nignore: [7, 255]\n", "names: {a: 2, b: 255, c: [0, 1]}\nignore: [7]\n"])
def test_counts_are_numpys(tmp_path, table):
    rng = np.random.default_rng(0)
    arrays = rng.choice([0, 1, 2, 7, 255], (5, 8, 9))
    dataset = write_folder(tmp_path / "a", arrays, table)
    counts, space = count_classes([dataset], label_space_of(dataset)), label_space_of(dataset)
    expected = np.zeros(4, int)
    for raw_id, train_id in space.raw_ids.items():
        expected[min(train_id, 3)] += (arrays == raw_id).sum()
    assert counts.pixels.tolist() == expected.tolist()
    assert counts.ignored == {i: (arrays == i).sum() for i, k in space.raw_ids.items() if k == 255 and (arrays == i).any()}


IDS_AND_COLOURS = """
names:
  road: {ids: 1, colours: "#804080"}
  sky: {ids: 2, colours: "#4682b4"}
ignore: [0, 255, "#000000"]
"""


def test_an_ignored_id_that_is_shown_in_an_ignored_colour(tmp_path):
    """Grey files show the id 0 black, and so do most palettes. Each of the three counters reads them as training does."""
    arrays = np.random.default_rng(0).integers(0, 3, (4, 6, 7))
    dataset = write_folder(tmp_path / "a", arrays, IDS_AND_COLOURS)
    expected = [(arrays == 1).sum(), (arrays == 2).sum(), (arrays == 0).sum()]
    counts = count_classes([dataset], label_space_of(dataset))
    assert counts.label_maps == 4 and counts.pixels.tolist() == expected
    assert counts.ignored == {0: (arrays == 0).sum()}
    assert class_pixel_counts(dataset, num_workers=0).sum(0).tolist() == expected[:2]
    audit = audit_dataset("folder", tmp_path / "a", num_workers=0, most_ignored=50)
    assert not audit.findings and audit.splits["train"].pixels.tolist() == expected


def decoded(feature, value):
    """The train ids as an array; or the text of the error."""
    try:
        return np.asarray(feature.decode_example(value))
    except DataError as error:
        return str(error)


def check_counter(space, value):
    counter, known = ClassCounter(space), decoded(LabelMap.of(space), value)
    counted = decoded(counter.feature, value)
    if isinstance(known, str) or isinstance(counted, str):
        assert isinstance(known, str) and isinstance(counted, str) and counted == known
        return
    assert np.where(counted < space.num_classes, counted, space.ignore_index).tolist() == known.tolist()
    pixels, ignored = counter.count(counted)
    assert pixels.tolist() == [*((known == k).sum() for k in range(space.num_classes)), (known == space.ignore_index).sum()]
    assert sum(ignored.values()) == pixels[-1]


@hypothesis.settings(deadline=None, max_examples=400)
@hypothesis.given(files.BOTH_KINDS, files.small_files())
def test_label_maps_are_read_as_in_training(space, data):
    check_counter(space, {"path": "map.png", "bytes": data})


@pytest.mark.parametrize("value", [2, 3])
def test_train_ids_that_no_class_has_are_refused_as_in_training(value):
    """In label maps that were decoded before; the counter uses such train ids itself."""
    space = LabelSpace("own", ("a", "b"), ((0, 0, 0),) * 2, {0: 0, 1: 1, 7: 255, 255: 255})
    stored = {"path": None, "bytes": files.saved(PIL.Image.fromarray(np.array([[0, value]], np.uint8)))}
    assert f"holds the ids {value}" in decoded(LabelMap.of(space), stored)
    check_counter(space, stored)
