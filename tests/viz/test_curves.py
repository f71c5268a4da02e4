"""Curves of runs: what is read from logs, and an image of them."""

import json
import sys
from pathlib import Path

import PIL.Image
import pytest

from revhrnet_hf.commands import plot
from revhrnet_hf.errors import CheckpointError, RecipeError

pytest.importorskip("matplotlib")
from revhrnet_hf.viz.curves import draw_curves, moving_mean, read_curves

from .. import forked

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plot_run.py"


def write_log(folder, losses, mean_ious):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"epoch": 0, "step": step, "time": 0.0, "loss": loss} for step, loss in losses]
    lines += [{"epoch": 1, "step": step, "time": 0.0, "mean_iou": iou} for step, iou in mean_ious]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def chain(tmp_path):
    write_log(tmp_path / "run" / "1_coco", [(1, 3.0), (2, 2.0)], [(2, 0.25), (4, None)])
    write_log(tmp_path / "run", [(1, 1.0)], [(1, 0.5), (2, 0.75), (3, 0.625)])
    return tmp_path / "run"


def test_stages_in_order(chain):
    first, second = read_curves([chain])
    assert (first.name, second.name) == (str(chain / "1_coco"), str(chain))
    assert first.losses == [(1, 3.0), (2, 2.0)]
    assert first.mean_ious == [(2, 0.25)]  # where nothing was labelled there is no mIoU
    loss_axes, iou_axes = draw_curves([first, second]).axes
    assert [line.get_xydata().tolist() for line in loss_axes.lines[:2]] == [[[1, 3], [2, 2]]] * 2
    assert [line.get_marker() for line in loss_axes.lines] == ["None", "None", "None", "."]  # a line of one point is not seen
    assert all(step == int(step) for step in loss_axes.get_xticks())
    assert iou_axes.get_legend_handles_labels()[1] == [f"{chain / '1_coco'} (best 0.250)", f"{chain} (best 0.750)"]


def test_a_folder_of_runs(chain):
    write_log(chain.parent / "another", [(1, 1.0)], [])
    (chain.parent / "notes").mkdir()
    (chain / "1_of_three").mkdir()
    assert [run.name for run in read_curves([chain.parent])] == [str(chain.parent / "another"), str(chain / "1_coco"), str(chain)]


def test_moving_mean():
    assert moving_mean((4.0, 2.0)) == [4.0, 2.0]
    values = tuple(float(i) for i in range(150))  # means over three
    assert moving_mean(values)[:2] == [0.0, 0.5]
    assert moving_mean(values)[2:] == [i - 1.0 for i in range(2, 150)]


def test_bad_input(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no log\.jsonl"):
        read_curves([tmp_path])
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(CheckpointError, match="line 2 is no entry of a log"):
        read_curves([tmp_path])


def test_a_last_line_that_was_cut_off_is_left_out(chain):
    with (chain / "log.jsonl").open("ab") as log:
        log.write('{"epoch": 1, "step": 4, "iou": {"Straße'.encode()[:-2])  # within a letter
    assert read_curves([chain])[1].mean_ious == [(1, 0.5), (2, 0.75), (3, 0.625)]


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "time": 0.0}\n\xff\xfe\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl is no log of a run: .*can't decode"):
        read_curves([tmp_path])


def test_names_of_runs_in_the_legend(tmp_path, monkeypatch):
    """matplotlib would leave out the first, and draw the second as a formula."""
    monkeypatch.chdir(tmp_path)
    for name in ("_old", "$x_1$"):
        write_log(Path(name), [(1, 2.0), (2, 1.0)], [(2, 0.5)])
    for axes in draw_curves(read_curves(["_old", "$x_1$"])).axes:
        texts = axes.get_legend().get_texts()
        assert [text.get_text().split(" (")[0].strip() for text in texts] == ["_old", "$x_1$"]
        assert not any(text.get_parse_math() for text in texts)


def test_a_file_that_is_there_is_kept(chain, tmp_path):
    output = tmp_path / "curves.png"
    output.write_text("mine")
    with pytest.raises(RecipeError, match=r"curves\.png is there already: give --overwrite"):
        plot.main([str(chain), "--output", str(output)])
    assert output.read_text() == "mine"
    plot.main([str(chain), "--output", str(output), "--overwrite"])
    assert PIL.Image.open(output).format == "PNG"


def test_script(chain, tmp_path):
    output = tmp_path / "curves.png"
    forked.run([sys.executable, SCRIPT, chain, "--output", output], check=True)
    width, height = PIL.Image.open(output).size
    assert width > 1800 and width / height == pytest.approx(12 / 4.5, rel=0.03)
    forked.run([sys.executable, SCRIPT, chain, "--output", tmp_path / "curves.pdf"], check=True)
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
