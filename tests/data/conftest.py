import shutil
from pathlib import Path

import datasets
import pytest

from revhrnet_hf.data.miniature import write_camvid

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has a `datasets` cache of its own, so that no earlier run can answer for the code under test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture(scope="session")
def drawn_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    for form in ("segnet", "original"):
        write_camvid(folder / form, {"train": 5, "val": 3}, size=(48, 64), form=form)
    return folder


@pytest.fixture
def mini_camvid(drawn_once, tmp_path):
    """CamVid in SegNet's form, 64×48: 5 pictures to train, 3 to validate; the test may break it."""
    return Path(shutil.copytree(drawn_once / "segnet", tmp_path / "camvid"))


@pytest.fixture
def mini_original(drawn_once, tmp_path):
    """The same pictures in the original form."""
    return Path(shutil.copytree(drawn_once / "original", tmp_path / "original"))


@pytest.fixture
def real_camvid():
    data_dir = SHARED / "data" / "camvid"
    if not data_dir.is_dir():
        pytest.skip(f"real CamVid is not at {data_dir}")
    return data_dir
