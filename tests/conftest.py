"""Shared by all tests: offline, without progress bars, on the CPU; a tiny network; fixtures; the place of the real data."""

import atexit
import csv
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "True")  # as gradio sets it in the middle of a test
# Caches and fetched code of the libraries, for this session and its child processes alone.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="revhrnet_tests_")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
# Tests mean the CPU where they name no device; child processes inherit it. TEST_GPU=1 shows them the GPUs.
if os.environ.get("TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import TimmBackboneConfig

import revhrnet_hf


# Fixtures and tests draw the same numbers from torch in whatever order they come; pytest-randomly sees to `random` and NumPy.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    torch.manual_seed(0)


# The same examples in each run, none kept in a folder, and no clock: a busy machine is no fault of the code.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

SLOW_SECONDS = 1800  # after which a slow test is ended; the others have the time that pyproject.toml says


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture
def tiny_config():
    """Makes a config of a network with few parameters and five classes."""

    def make(**settings):
        tiny = {
            "backbone_config": TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]),
            "stream_channels": [8, 12, 16, 20],
            "num_modules": [2, 1, 1],
            "num_blocks": 1,
            "num_labels": 5,
        }
        return revhrnet_hf.RevHRNetConfig(**{**tiny, **settings})

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """A tiny network in eval mode whose BatchNorm statistics and classifier are not those of initialisation."""
    torch.manual_seed(0)
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(tiny_config(initializer="he"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.nn.init.normal_(model.head[3].weight)
    return model.eval()


FIXTURES = Path(__file__).parent / "fixtures"


def _cell(column, text):
    if column in ("id", "train_id"):
        return int(text)
    if column == "colour":
        return tuple(bytes.fromhex(text.removeprefix("#")))
    if column in ("hrnet_weight", "average_size"):
        return float(text) if text else None
    return {"yes": True, "no": False}.get(text, text)


@pytest.fixture(scope="session")
def fixture_rows():
    """Reads `fixtures/NAME.csv` as a list of rows by column: ids as int, colours as (red, green, blue), yes and no as bool.

    A cell that is empty is "", or None where the column holds numbers.
    """

    def read(name):
        with (FIXTURES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return [{column: _cell(column, text) for column, text in row.items()} for row in csv.DictReader(file)]

    return read


@pytest.fixture(scope="session")
def shared_dir():
    """The folder of real data and weights beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder of real data beside the repository")
    return folder


def _save_tiny(folder, streams):
    """A network with so many streams, and four classes, with names and a palette, that predicts all of them."""
    torch.manual_seed(1)
    config = revhrnet_hf.RevHRNetConfig(
        backbone_config=TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4][:streams]),
        stream_channels=[8, 12, 16, 20][:streams],
        num_modules=[1] * (streams - 1),
        num_blocks=1,
        initializer="he",
        id2label=dict(enumerate(["road", "sky & <b>clouds</b>", "car", "tree"])),
        palette=[[128, 64, 128], [70, 130, 180], [0, 0, 142], [107, 142, 35]],
    )
    model = revhrnet_hf.RevHRNetForSemanticSegmentation(config)
    torch.nn.init.normal_(model.head[3].weight)
    with torch.no_grad():  # no class is ahead of the others everywhere
        logits = model.eval()(torch.randn(2, 3, 96, 96)).logits
        model.head[3].bias.sub_(logits.mean(dim=(0, 2, 3)))
    model.save_pretrained(folder)
    revhrnet_hf.RevHRNetImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """The folder of a tiny network with four classes, with names and a palette, that predicts all of them."""
    return _save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", streams=4)


@pytest.fixture(scope="session")
def two_streams_checkpoint(tmp_path_factory):
    """The same with two streams: a third of the layers, for what takes time by the layer."""
    return _save_tiny(tmp_path_factory.mktemp("checkpoint") / "two_streams", streams=2)
