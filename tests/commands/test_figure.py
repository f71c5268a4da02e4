"""`revhrnet figure`: what stands in each panel, what the caption says, and what it refuses."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BeitImageProcessor, TimmBackboneConfig

from revhrnet_hf import HRNetV2Config, HRNetV2ForSemanticSegmentation, RevHRNetConfig, RevHRNetForSemanticSegmentation
from revhrnet_hf import RevHRNetImageProcessor as Processor
from revhrnet_hf.commands import _figures, figure
from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.evaluation import load_checkpoint, predict_label_maps, segment
from revhrnet_hf.synthetic import write_camvid
from revhrnet_hf.viz.figures import JUDGEMENTS, colourise

from ..image_files import encoded

SPACE = get_label_space("camvid11")


def save(model, folder):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.nn.init.normal_(model.head[3].weight)
    model.save_pretrained(folder)
    Processor().save_pretrained(folder)
    return str(folder)


def rev(folder, **settings):
    torch.manual_seed(0)
    config = RevHRNetConfig(
        backbone_config=TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]),
        stream_channels=[4, 6, 8, 10],
        num_modules=[1, 1, 1],
        num_blocks=1,
        initializer="he",
        **{"id2label": SPACE.id2label, "palette": [list(colour) for colour in SPACE.colours], **settings},
    )
    return save(RevHRNetForSemanticSegmentation(config), folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A RevHRNet, and an HRNetV2 with five streams whose classes have no names."""
    folder = tmp_path_factory.mktemp("checkpoints")
    five = HRNetV2Config(
        stream_channels=[4, 6, 8, 10, 12], num_modules=[1] * 4, num_blocks=1, stem_stride=2, num_labels=11, initializer="he"
    )
    return rev(folder / "run" / "best"), save(HRNetV2ForSemanticSegmentation(five), folder / "hrnet")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camvid")
    write_camvid(folder, {"train": 1, "val": 3}, (96, 128))
    return folder


def panels(drawn):
    """Pixels of the panels in drawing order: image, then row by row."""
    return [axes.get_images()[0].get_array() for axes in drawn.axes]


def text_of(drawn):
    return " ".join(" ".join(text.get_text().split()) for text in drawn.texts)


def test_compare(checkpoints, camvid, tmp_path):
    files = sorted((camvid / "val").iterdir())[:2]
    arguments = ["compare", *checkpoints, *map(str, files), "-o", str(tmp_path / "fig.png")]
    drawn = _figures.draw_comparison(figure.build_parser().parse_args(arguments))
    shown = panels(drawn)
    # An image; RevHRNet: prediction and strides 4 to 32; HRNetV2: prediction and strides 2 to 32. Twice.
    assert len(shown) == 2 * (1 + 5 + 6)
    for place, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        block = shown[12 * place : 12 * (place + 1)]
        assert np.array_equal(block[0], np.asarray(image))
        for start, checkpoint in ((1, checkpoints[0]), (6, checkpoints[1])):
            [label_map] = predict_label_maps(*load_checkpoint(checkpoint), [image])
            assert np.array_equal(block[start], np.asarray(colourise(label_map, SPACE.colours)))  # one palette for both
        assert [x.shape for x in block[2:6]] == [(24, 32, 3), (12, 16, 3), (6, 8, 3), (3, 4, 3)]
        assert block[7].shape == (48, 64, 3)
    said = text_of(drawn)
    for words in ("stride 2", "stride 32", "run", "hrnet", "principal components", "same rule", "Share of the variance"):
        assert words in said
    assert "LABEL_" not in " ".join(text.get_text() for text in drawn.legends[0].get_texts())

    figure.main([*arguments[:-1], str(tmp_path / "fig.pdf"), "--map", "mean", "--names", "A", "B"])
    assert (tmp_path / "fig.pdf").read_bytes().startswith(b"%PDF")
    assert [path.name for path in tmp_path.iterdir()] == ["fig.pdf"]
    drawn = _figures.draw_comparison(figure.build_parser().parse_args([*arguments, "--map", "mean"]))
    assert panels(drawn)[2].shape == (24, 32)
    assert "mean over a map's channels" in text_of(drawn) and "principal" not in text_of(drawn)


def test_maps_that_are_compared_are_of_the_whole_image(checkpoints):
    """Also where the image processor cuts out the centre."""
    model, _ = load_checkpoint(checkpoints[0])
    cropping = BeitImageProcessor(do_resize=False, do_center_crop=True, crop_size={"height": 32, "width": 32})
    maps, _ = _figures.drawn_maps(model, cropping, [Image.new("RGB", (128, 96))], "mean")
    assert {stride: drawn[0].shape for stride, drawn in maps.items()} == {
        stride: (96 // stride, 128 // stride) for stride in (4, 8, 16, 32)
    }


def test_errors_in_the_datasets_own_classes(camvid, tmp_path):
    """A checkpoint with other classes: as evaluate_seg.py joins them, a class without a partner is never predicted."""
    names = [*SPACE.names[::-1], "Water"]
    names[names.index("Road")] = "Motorway"
    checkpoint = rev(tmp_path / "other", id2label=dict(enumerate(names)), palette=None)
    arguments = ["errors", checkpoint, "--dataset", "camvid", "--data_dir", str(camvid), "-o", str(tmp_path / "e.png")]
    drawn = _figures.draw_errors(figure.build_parser().parse_args([*arguments, "--count", "1"]))
    row = load_segmentation_dataset("camvid", camvid, "val")[0]
    sources = [[names.index(name)] if name in names else [] for name in SPACE.names]
    expected = segment(*load_checkpoint(checkpoint), row["image"], sources=sources).label_map
    assert SPACE.names.index("Road") not in expected
    assert np.array_equal(panels(drawn)[2], np.asarray(colourise(expected, SPACE.colours)))


def test_compare_refuses_other_classes(checkpoints, camvid, tmp_path):
    image = str(next((camvid / "val").iterdir()))
    fewer = rev(tmp_path / "fewer", id2label={0: "road", 1: "sky"}, palette=None)
    other = rev(tmp_path / "other", id2label={**SPACE.id2label, 3: "Water"})
    for checkpoint, said in ((fewer, "has 2 classes .* has 11 "), (other, "class 3 is 'Water' in the checkpoint, but 'Road'")):
        with pytest.raises(CheckpointError, match=said):
            figure.main(["compare", checkpoints[0], checkpoint, image, "-o", str(tmp_path / "fig.png")])
    gap = rev(tmp_path / "gap", id2label={0: "road", 1: "sky"}, palette=None)
    config = Path(gap) / "config.json"
    config.write_text(config.read_text().replace('"0": "road"', '"2": "road"'))
    with pytest.raises(CheckpointError, match="id2label must have the ids 0 to 1"):
        figure.main(["overlay", gap, image, "-o", str(tmp_path / "fig.png")])
    assert not (tmp_path / "fig.png").exists()


def test_errors(checkpoints, camvid, tmp_path):
    arguments = ["errors", checkpoints[0], "--dataset", "camvid", "--data_dir", str(camvid), "-o", str(tmp_path / "e.png")]
    row = next(row for row in load_segmentation_dataset("camvid", camvid, "val") if 255 in np.array(row["label_map"]))
    drawn = _figures.draw_errors(figure.build_parser().parse_args([*arguments, "--image_ids", row["image_id"]]))
    image, truth, _, judged = panels(drawn)
    label_map = np.array(row["label_map"])
    assert np.array_equal(image, np.asarray(row["image"]))
    assert np.array_equal(truth, np.asarray(colourise(label_map, SPACE.colours)))
    [predicted] = predict_label_maps(*load_checkpoint(checkpoints[0]), [row["image"]])
    right, ignored = predicted == label_map, label_map == 255
    assert right.any() and ignored.any()
    assert np.array_equal((judged == JUDGEMENTS["right"]).all(-1), right)
    assert np.array_equal((judged == JUDGEMENTS["wrong"]).all(-1), ~right & ~ignored)
    assert np.array_equal((judged == (0, 0, 0)).all(-1), ignored)
    assert f"{100 * right.sum() / (~ignored).sum():.1f} % of the labelled pixels" in text_of(drawn)
    with pytest.raises(DataError, match="no image 'absent'"):
        figure.main([*arguments, "--image_ids", "absent"])
    figure.main([*arguments, "--count", "2"])
    assert Image.open(tmp_path / "e.png").width > 1000


def test_errors_of_a_turned_image_with_columns_of_its_own(checkpoints, camvid, tmp_path):
    """Its label map was drawn by a tool that does not know EXIF: the image is shown, and segmented, as it is stored."""
    row = load_segmentation_dataset("camvid", camvid, "val")[0]
    label_map = np.array(row["label_map"])
    label_map[label_map == 255] = 11  # CamVid's own id of ignored pixels
    turned, mask = encoded(row["image"], "PNG", 6), encoded(Image.fromarray(label_map), "PNG")
    columns = {"photo": [{"bytes": turned, "path": None}], "mask": [{"bytes": mask, "path": None}]}
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, features=features, split="train").save_to_disk(tmp_path / "saved")
    arguments = ["errors", checkpoints[0], "--dataset", "hub", "--data_dir", str(tmp_path / "saved"), "--split", "train"]
    arguments += ["--image_column", "photo", "--label_column", "mask", "--label_space", "camvid11", "-o", str(tmp_path / "e.png")]
    image, _, predicted, _ = panels(_figures.draw_errors(figure.build_parser().parse_args(arguments)))
    assert np.array_equal(image, np.asarray(row["image"]))
    [expected] = predict_label_maps(*load_checkpoint(checkpoints[0]), [row["image"]])
    assert np.array_equal(predicted, np.asarray(colourise(expected, SPACE.colours)))


def test_confusion(tmp_path):
    record = {"checkpoint": "best", "dataset": "camvid", "split": "val", "images": 2, "class_names": ["road", "sky", "car"]}
    record["confusion_matrix"] = [[75, 25, 0], [0, 10, 0], [0, 0, 0]]
    (tmp_path / "scores.json").write_text(json.dumps(record))
    drawn = _figures.draw_confusion(figure.build_parser().parse_args(["confusion", str(tmp_path / "scores.json"), "-o", "x.png"]))
    matrix = drawn.axes[0].get_images()[0].get_array()
    assert np.array_equal(matrix.filled(-1), [[75, 25], [0, 100]])  # without the class that does not occur
    assert [text.get_text() for text in drawn.axes[0].texts] == ["75", "25", "100"]
    figure.main(["confusion", str(tmp_path / "scores.json"), "-o", str(tmp_path / "x.pdf")])
    (tmp_path / "scores.json").write_text(json.dumps({"mean_iou": 0.5}))
    with pytest.raises(DataError, match=r"scores\.json is no record of `revhrnet evaluate`"):
        figure.main(["confusion", str(tmp_path / "scores.json"), "-o", str(tmp_path / "y.png")])


def test_legend_and_overlay(checkpoints, camvid, tmp_path):
    for classes in ("camvid11", checkpoints[0]):
        drawn = _figures.draw_legend(figure.build_parser().parse_args(["legend", classes, "-o", "x.png"]))
        assert [text.get_text() for text in drawn.legends[0].get_texts()] == list(SPACE.names)
        colours = [np.round(np.multiply(patch.get_facecolor()[:3], 255)) for patch in drawn.legends[0].get_patches()]
        assert np.array_equal(colours, SPACE.colours)
    figure.main(["overlay", checkpoints[0], str(camvid / "val"), "-o", str(tmp_path / "o.png")])
    assert Image.open(tmp_path / "o.png").height > 1000  # three images
    with pytest.raises(RecipeError, match="there already"):
        figure.main(["overlay", checkpoints[0], str(camvid / "val"), "-o", str(tmp_path / "o.png")])
    with pytest.raises(RecipeError, match=r"written as \.png or \.pdf"):
        figure.main(["legend", "camvid11", "-o", str(tmp_path / "o.svg")])


def test_overlay_of_untinted_classes(camvid, tmp_path):
    checkpoint = rev(tmp_path / "checkpoint", untinted=list(range(SPACE.num_classes)))
    image = next((camvid / "val").glob("*.png"))
    drawn = _figures.draw_overlay(figure.build_parser().parse_args(["overlay", checkpoint, str(image), "-o", "x.png"]))
    assert all(text.get_text().endswith(" (untinted)") for text in drawn.legends[0].get_texts())
    shown, predicted = (np.asarray(axes.images[0].get_array()) for axes in drawn.axes if axes.images)
    np.testing.assert_array_equal(predicted, shown)


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RecipeError, match=r"figures need matplotlib: pip install .*\[plots\]"):
        figure.main(["legend", "camvid11", "-o", str(tmp_path / "o.png")])
    with pytest.raises(SystemExit) as raised:
        figure.main(["--help"])
    assert raised.value.code == 0


def test_without_a_figure(capsys):
    with pytest.raises(SystemExit) as raised:
        figure.main([])
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("error: say which figure: compare, maps, overlay, errors, confusion, legend")


def test_a_legend_of_an_unknown_name(tmp_path):
    arguments = ["-o", str(tmp_path / "o.png")]
    said = (
        r"'camvid_11' is no label space \(did you mean camvid11\?\); these are .*camvid32, cityscapes, .*voc21\. A label table "
    )
    with pytest.raises(DataError, match=said + r".* checkpoint's folder or its name on the Hub is possible too, but cannot load"):
        figure.main(["legend", "camvid_11", *arguments])
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):  # no label space is called like a path
        figure.main(["legend", str(tmp_path / "nowhere"), *arguments])


def test_every_figure_is_drawn():
    assert list(_figures.DRAWINGS) == list(figure.FIGURES)


def test_maps_in_several_rows(checkpoints, camvid, tmp_path):
    """The panels of one row, with their titles, in rows of three; each image begins a row."""
    files = sorted(map(str, (camvid / "val").iterdir()))[:2]
    arguments = ["maps", checkpoints[1], *files, "-o", str(tmp_path / "maps.png")]
    parser = figure.build_parser()
    one_row = _figures.draw_comparison(parser.parse_args(arguments))
    tiled = _figures.draw_comparison(parser.parse_args([*arguments, "--columns", "3"]))
    for tile, panel in zip(panels(tiled), panels(one_row), strict=True):
        assert np.array_equal(tile, panel)
    places = [axes.get_position() for axes in tiled.axes]
    lefts = sorted({round(place.x0, 4) for place in places})
    assert [lefts.index(round(place.x0, 4)) for place in places] == [0, 1, 2, 0, 1, 2, 0] * 2  # image, prediction, five strides
    tops = [round(place.y1, 4) for place in places]
    assert tops == sorted(tops, reverse=True) and len(set(tops)) == 6
    titles = ["image", "prediction", *(f"stride {stride}" for stride in (2, 4, 8, 16, 32))]
    assert [text.get_text() for text in tiled.texts][:14] == titles * 2
    # Titles are above their panels, and nothing is outside the figure.
    for text, place in zip(tiled.texts, places, strict=False):
        assert place.x0 < text.get_position()[0] < place.x1 and place.y1 < text.get_position()[1] < place.y1 + 0.1
    assert all(0 < place.x0 < place.x1 < 1 and 0 < place.y0 < place.y1 < 1 for place in places)
