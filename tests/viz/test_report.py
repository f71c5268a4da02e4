"""Reports: what a browser would see of one, names from elsewhere, files of others, and the curves' geometry."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation import ConfusionMatrix
from revhrnet_hf.viz.curves import Curves
from revhrnet_hf.viz.line_chart import MOST_POINTS, MOST_TICKS, Line, line_chart, thinned, ticks
from revhrnet_hf.viz.matrix import shares_of_truth
from revhrnet_hf.viz.report import MARK, Report, ShownImage, report_html, write_report

from .. import forked

NAMES = ["background", "sky & <b>clouds</b>", "car\u202e", "never"]
COLOURS = [(128, 64, 128), (70, 130, 180), (0, 0, 142), (1, 2, 3)]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page with their attributes, its text, and whether each element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def report():
    truth = np.zeros((60, 80), np.uint8)
    truth[:30], truth[50:] = 1, 255
    prediction = truth.clip(0, 2)
    prediction[:10] = 0
    matrix = ConfusionMatrix(4)
    matrix.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    image = Image.new("RGB", (80, 60), (200, 100, 50))
    shown = ShownImage('<img src=x onerror="alert(1)">', 0.25, image, truth, prediction)
    curves = Curves(
        "run", [(1, 3.0), (2, 2.0), (3, float("nan"))], [(2, 0.5), (3, 0.6)], [(2, 2.5)], {NAMES[1]: [(2, 0.4), (3, 0.8)]}
    )
    return Report(
        title="run & </title><script>alert(1)</script>",
        facts={"scored on": "val"},
        terms="For yourself only.",
        checkpoint='runs/"my run"/best',
        names=NAMES,
        colours=COLOURS,
        scores=matrix.scores(NAMES),
        matrix=matrix.matrix.numpy(),
        best=[shown],
        worst=[shown],
        curves=curves,
        recipe="dataset: camvid # </pre><script>",
        untinted=frozenset([0]),
    )


def test_one_file_that_fetches_and_runs_nothing(report):
    page = Page(report_html(report))
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base", "form", "use", "image"} == set()
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "xlink:href")], tag
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert "url(" not in attributes.get("style", "")
    text = report_html(report)
    assert "@import" not in text and "url(" not in text
    assert re.findall(r"https?://", text) == []
    [policy] = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_names_from_elsewhere_are_text(report):
    text = report_html(report)
    page = Page(text)
    assert "\u202e" not in text and r"car\u202e" in page.text
    assert "sky & <b>clouds</b>" in page.text and page.all("b") != []
    assert page.text.count('<img src=x onerror="alert(1)">') == 2
    assert "run & </title><script>alert(1)</script>" in page.text
    assert "dataset: camvid # </pre><script>" in page.text
    assert """revhrnet predict 'runs/"my run"/best' photo.jpg""" in page.text


def test_scores_and_terms(report):
    page = Page(report_html(report))
    assert page.text.index("For yourself only.") < page.text.index("mIoU")
    iou = report.scores["per_category_iou"]
    assert iou[0] == 20 / 30 and iou[1] == 20 / 30  # 60 × 80: ten of thirty rows of sky are taken for background
    assert page.text.count("66.7 %") >= 3  # mIoU and both classes


def test_images_show_truth_and_prediction_over_the_image(report):
    page = Page(report_html(report))
    drawn = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in page.all("img")]
    assert [image.size for image in drawn] == [(80, 60)] * 6
    image, truth, prediction = (np.asarray(panel, int) for panel in drawn[:3])

    def is_close(pixel, expected):
        return np.abs(pixel - np.array(expected)).max() <= 6  # JPEG

    sky = 0.4 * np.array([200, 100, 50]) + 0.6 * np.array(COLOURS[1])
    assert is_close(image[20, 40], (200, 100, 50))
    assert is_close(truth[3, 40], sky) and is_close(truth[20, 40], sky)
    assert is_close(prediction[3, 40], (200, 100, 50)) and is_close(prediction[20, 40], sky)  # background is untinted
    assert is_close(truth[40, 40], (200, 100, 50)) and is_close(truth[57, 40], (200, 100, 50))  # ignored
    assert "background (untinted)" in page.text


def test_a_large_image_becomes_small(report):
    large = ShownImage("a", 0.5, Image.new("RGB", (1000, 500)), np.zeros((2000, 4000), int), np.zeros((2000, 4000), np.int64))
    text = report_html(Report(**{**vars(report), "worst": [large], "best": []}))
    assert [(image["width"], image["height"]) for image in Page(text).all("img")] == [("480", "240")] * 3


def test_curves(report):
    page = Page(report_html(report))
    lines = [line for line in page.all("polyline") if "line" in line["class"].split()]
    assert [line["class"] for line in lines] == ["line faint", "line first", "line second", "line first"]
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in lines[0]["points"].split())  # the NaN is left out
    assert x1 < x2 and y1 < y2  # down on the screen: 3.0 is above 2.0
    assert len([line for line in page.all("polyline") if line["class"] == "curve"]) == 1
    without = Page(report_html(Report(**{**vars(report), "curves": None, "recipe": None})))
    assert "Curves" not in without.text and "Recipe" not in without.text and without.all("polyline") == []


def test_a_run_without_an_evaluated_pixel_of_one_class(report):
    """One class only, and never predicted right: no division by 0 anywhere."""
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([[1]]), torch.tensor([[0]]))
    page = Page(report_html(Report(**{**vars(report), "scores": matrix.scores(NAMES), "matrix": matrix.matrix.numpy()})))
    assert "grey: a class that is never true" in page.text


def test_a_confusion_matrix_leaves_out_classes_that_occur_nowhere(report):
    page = Page(report_html(report))
    drawn = [attributes for tag, attributes in page.elements if tag == "rect" and attributes["class"] == "cell"]
    assert len(drawn) == 3 and page.text.split("Confusion matrix")[1].count("never true") == 0
    assert "never" not in page.text.split("Confusion matrix")[1].split("Use the checkpoint")[0]
    truth, predicted = np.array([0, 0, 1, 3, 3]), np.array([0, 1, 4, 3, 0])
    shares, names = shares_of_truth(confusion_matrix(truth, predicted, labels=range(6)), "abcdef")
    assert names == ["a", "b", "d", "e"]  # e is predicted, but never true
    expected = confusion_matrix(truth, predicted, labels=[0, 1, 3], normalize="true")
    np.testing.assert_allclose(shares[:3, :3].sum(1) + shares[:3, 3], 1)
    np.testing.assert_allclose(shares[[0, 2], :3], expected[[0, 2]])
    assert np.isnan(shares[3]).all()
    assert shares_of_truth(np.zeros((2, 2)), "ab")[1] == ["a", "b"]


def test_only_a_report_is_replaced(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("<!DOCTYPE html>my own notes")
    with pytest.raises(DataError, match=r"report\.html is there and is no report of this program"):
        write_report(path, report)
    assert path.read_text() == "<!DOCTYPE html>my own notes"
    path.unlink()
    (tmp_path / "far.html").write_text(MARK)
    path.symlink_to(tmp_path / "far.html")
    with pytest.raises(DataError):
        write_report(path, report)
    path.unlink()
    write_report(path, report)
    first = path.read_bytes()
    write_report(path, report)
    assert path.read_bytes() == first and sorted(p.name for p in tmp_path.iterdir()) == ["far.html", "report.html"]


def test_it_needs_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import revhrnet_hf.viz.report, revhrnet_hf.training.evaluation_hook"
    finished = forked.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_ticks_are_round_few_and_inside(low, extent, whole):
    high = low + extent
    found = ticks(low, high, whole)
    assert len(found) <= MOST_TICKS
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= tick <= high + slack for tick in found)
    if not whole:
        assert len(found) >= 2
    else:
        assert all(tick == int(tick) for tick in found)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e3, 1e3)), min_size=1, max_size=2000, unique_by=lambda p: p[0]))
def test_a_chart_keeps_its_points_in_the_frame(points):
    chart = line_chart("loss", "step", [Line("", sorted(points), "first")])
    drawn = [tuple(map(float, point.split(","))) for point in chart.lines[0].path.split()]
    assert 1 <= len(drawn) <= MOST_POINTS
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in drawn)
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_thinning_keeps_means():
    points = [(x, float(x % 7)) for x in range(5 * MOST_POINTS)]
    kept = thinned(points)
    assert len(kept) == MOST_POINTS
    assert np.mean([y for _, y in kept]) == pytest.approx(np.mean([y for _, y in points]))
    with pytest.raises(ValueError, match="at least one point"):
        line_chart("loss", "step", [Line("", [(1, float("nan"))], "first")])
