import shutil
from pathlib import Path

import datasets
import pytest

from revhrnet_hf.synthetic import write_camvid, write_cityscapes, write_mapillary_vistas

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has its own `datasets` cache, so that the code under test cannot use results of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture(scope="session")
def drawn_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    for form in ("segnet", "original"):
        write_camvid(folder / form, {"train": 5, "val": 3}, size=(48, 64), form=form)
    return folder


@pytest.fixture(scope="session")
def drawn_cityscapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(folder, {"train": 5, "val": 2, "train_extra": 2}, size=(48, 96))
    return folder


@pytest.fixture(scope="session")
def drawn_vistas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vistas")
    for version in ("v1.2", "v2.0"):
        write_mapillary_vistas(folder / version, {"train": 4, "val": 2}, size=(48, 64), version=version)
    return folder


@pytest.fixture
def mini_camvid(drawn_once, tmp_path):
    """CamVid in SegNet's form, 64×48: 5 images in train, 3 in val; the test may change it."""
    return Path(shutil.copytree(drawn_once / "segnet", tmp_path / "camvid"))


@pytest.fixture
def mini_original(drawn_once, tmp_path):
    """The same images in the original form."""
    return Path(shutil.copytree(drawn_once / "original", tmp_path / "original"))


@pytest.fixture
def mini_cityscapes(drawn_cityscapes, tmp_path):
    """Cityscapes, 96×48, with three cities in each split: 5 images in train, 2 in val, 2 extra; the test may change it."""
    return Path(shutil.copytree(drawn_cityscapes, tmp_path / "cityscapes"))


@pytest.fixture
def mini_vistas(drawn_vistas, tmp_path):
    """Copies Mapillary Vistas of a version, 64×48: 4 images in train, 2 in val; the test may change it."""
    return lambda version: Path(shutil.copytree(drawn_vistas / version, tmp_path / version))


@pytest.fixture
def published_table(fixture_rows):
    """Reads a publisher's table of labels, NAME_labels.json, under the publisher's own keys."""
    keys = {"colour": "color", "train_id": "trainId", "has_instances": "hasInstances", "ignored": "ignoreInEval"}
    ours = {"cityscapes", "camvid11", "mapillary_vistas_v1.2", "hrnet_weight", "average_size"}

    def read(name):
        rows = fixture_rows(name.removesuffix("_labels.json"))
        return [
            {keys.get(key, key): list(value) if key == "colour" else value for key, value in row.items() if key not in ours}
            for row in rows
        ]

    return read


@pytest.fixture
def real_camvid():
    data_dir = SHARED / "data" / "camvid"
    if not data_dir.is_dir():
        pytest.skip(f"real CamVid is not at {data_dir}")
    return data_dir
