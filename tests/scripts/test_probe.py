"""Linear classifiers on feature maps: against brute force, and on maps that hold everything or nothing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import label_space_of, load_segmentation_dataset
from revhrnet_hf.errors import RecipeError
from revhrnet_hf.synthetic import write_camvid

for extra in ("sklearn", "segmentation_models_pytorch"):
    pytest.importorskip(extra)
FILE = Path(__file__).parents[2] / "scripts" / "probe.py"


def load():
    spec = importlib.util.spec_from_file_location("probe", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


probe = load()


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    write_camvid(folder, {"train": 3, "val": 2}, size=(60, 80))
    return folder


@given(
    label_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.sampled_from([1, 2, 4, 8]),
)
def test_class_of_a_cell_is_that_of_the_pixel_at_its_centre(label_size, size, stride):
    label_map = np.arange(np.prod(label_size)).reshape(label_size)
    cells = tuple(-(-edge // stride) for edge in size)
    found = probe.labels_of_cells(label_map, cells, stride, size)
    assert found.shape == cells
    for row, column in np.ndindex(cells):
        centre = [(place + 0.5) * stride / edge for place, edge in zip((row, column), size, strict=True)]  # share of the image
        pixel = tuple(min(int(np.floor(part * edge + 1e-9)), edge - 1) for part, edge in zip(centre, label_size, strict=True))
        assert found[row, column] == label_map[pixel]


def of_maps(monkeypatch, make_maps):
    """Lets the images have the maps that `make_maps` makes of their true classes."""

    def maps_of_images(_, dataset):
        for row in dataset:
            label_map = np.array(row["label_map"])
            yield make_maps(label_map), SimpleNamespace(size=label_map.shape), label_map

    monkeypatch.setattr(probe, "maps_of_images", maps_of_images)


def test_maps_that_hold_the_classes_or_nothing(camvid, monkeypatch):
    train, val = (load_segmentation_dataset("camvid", camvid, split) for split in ("train", "val"))
    space = label_space_of(val)
    one_hot = np.eye(256, dtype=np.float32)

    def make_maps(label_map):
        classes = one_hot[label_map].transpose(2, 0, 1)
        nothing = np.zeros((3, *np.divide(label_map.shape, 4).astype(int)), dtype=np.float32)
        return {1: classes, 4: nothing}

    of_maps(monkeypatch, make_maps)
    scores = probe.score(None, val, probe.fit(None, train, 4000, seed=0))
    truth = np.concatenate([np.array(row["label_map"]).ravel() for row in val])
    counts = np.bincount(truth[truth != space.ignore_index], minlength=space.num_classes)
    learnt = np.bincount(np.concatenate([np.array(row["label_map"])[2::4, 2::4].ravel() for row in train]), minlength=256)
    most = np.argmax(learnt[: space.num_classes])
    assert scores[1] == 1
    assert scores[4] == pytest.approx(counts[most] / counts.sum() / np.count_nonzero(counts))


def test_two_classes(monkeypatch):
    pixels = np.random.default_rng(0).normal(size=(300, 2))
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(pixels, np.where(pixels[:, 0] > 0.5, 7, 3))
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype(np.float32)
    expected = fitted.predict(x.reshape(2, -1).T).reshape(5, 6)
    assert np.array_equal(probe.predicted_map(fitted, x, 1, (5, 6), (5, 6)), expected) and len(np.unique(expected)) == 2


@pytest.mark.parametrize(("size", "target"), [((30, 37), (30, 37)), ((30, 37), (61, 70))])
def test_map_is_upsampled_by_its_stride(size, target):
    """A map of 8 columns at stride 5 that is -1, …, -1, 1, …, 1 changes its sign at column 20 of 37."""
    x = np.broadcast_to(np.where(np.arange(8) < 4, -1.0, 1.0), (1, 6, 8)).astype(np.float32)
    sign = SimpleNamespace(decision_function=lambda values: values[:, 0], classes_=np.array([0, 1]))
    found = probe.predicted_map(sign, x, 5, size, target)
    assert found.shape == target
    assert np.array_equal(found, np.broadcast_to((np.arange(target[1]) + 0.5) * size[1] / target[1] > 20, target))


def test_command(camvid, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(FILE.parent)
    tiny_model.save_pretrained(tmp_path / "network")
    RevHRNetImageProcessor(do_resize=True, size={"longest_edge": 96}).save_pretrained(tmp_path / "network")
    data = ["--dataset", "camvid", "--data_dir", str(camvid)]
    said = []
    for _ in range(2):
        probe.main([str(tmp_path / "network"), *data, "--cells", "20"])
        said.append(capsys.readouterr().out)
    titles, row = said[0].splitlines()
    assert titles.split()[-2:] == ["stride", "32"] and said[0] == said[1]
    assert all(0 < float(value) < 1 for value in row.split()[1:]) and len(row.split()) == 5
    with pytest.raises(RecipeError, match="--cells 0: give 1 or more"):
        probe.main([str(tmp_path / "network"), *data, "--cells", "0"])
