"""scripts/predict.py with another library's model (a tiny SegFormer) and with ours."""

import functools
import http.server
import shutil
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    TimmBackboneConfig,
    pipeline,
)

from revhrnet_hf import RevHRNetConfig, RevHRNetForSemanticSegmentation, RevHRNetImageProcessor
from revhrnet_hf.commands import predict
from revhrnet_hf.errors import CheckpointError, DataError, RecipeError
from revhrnet_hf.evaluation import InferenceSettings, load_checkpoint, segment
from revhrnet_hf.viz.figures import names_and_palette

from .. import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict.py"
NAMES = ["road", "sky", "car", "tree"]
PALETTE = [[128, 64, 128], [70, 130, 180], [0, 0, 142], [107, 142, 35]]


def save(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def segformer(tmp_path_factory):
    torch.manual_seed(1)
    config = SegformerConfig(
        id2label=dict(enumerate(NAMES)),
        hidden_sizes=[8] * 4,
        decoder_hidden_size=8,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
    )
    processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    return save(SegformerForSemanticSegmentation(config), processor, tmp_path_factory.mktemp("segformer"))


@pytest.fixture(scope="module")
def revhrnet(tmp_path_factory):
    torch.manual_seed(1)
    config = RevHRNetConfig(
        backbone_config=TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4]),
        stream_channels=[4, 6, 8, 10],
        num_modules=[1, 1, 1],
        num_blocks=1,
        id2label=dict(enumerate(NAMES)),
        palette=PALETTE,
    )
    model = RevHRNetForSemanticSegmentation(config)
    return save(model, RevHRNetImageProcessor(), tmp_path_factory.mktemp("revhrnet"))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "street.png"
    values = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(values).resize((75, 50), Image.Resampling.NEAREST).save(path)
    return path


def pipelines_label_map(checkpoint, image):
    """What Transformers' own pipeline says of the image, as ids."""
    label_map = np.full((image.height, image.width), 255)
    for part in pipeline("image-segmentation", model=checkpoint, device="cpu")(image):
        label_map[np.asarray(part["mask"]) > 0] = NAMES.index(part["label"])
    return label_map


@pytest.mark.parametrize("model", ["segformer", "revhrnet"])
def test_label_map_is_the_pipelines(request, model, image, tmp_path, capsys):
    checkpoint = request.getfixturevalue(model)
    out = tmp_path / "out"
    predict.main([checkpoint, str(image), "--output_dir", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["street_labels.png", "street_overlay.png"]
    labels = Image.open(out / "street_labels.png")
    assert (labels.mode, labels.size) == ("P", (75, 50))
    expected = pipelines_label_map(checkpoint, Image.open(image))
    assert len(np.unique(expected)) > 1  # a map of one class would prove little
    np.testing.assert_array_equal(np.asarray(labels), expected)

    overlay = Image.open(out / "street_overlay.png")
    assert overlay.width >= 75 and overlay.height > 50  # the legend is below
    palette = np.array(labels.getpalette()).reshape(-1, 3)
    if model == "revhrnet":
        np.testing.assert_array_equal(palette[:4], PALETTE)
    mixed = (np.asarray(Image.open(image)).astype(int) + palette[expected]) / 2
    np.testing.assert_allclose(np.asarray(overlay)[:50, :75], mixed, atol=1)

    printed = capsys.readouterr().out
    assert "street_labels.png" in printed and "street_overlay.png" in printed
    for index in np.unique(expected):
        [line] = [line for line in printed.splitlines() if line.split()[0] == NAMES[index]]
        assert float(line.split()[1]) == pytest.approx(100 * (expected == index).mean(), abs=0.051)


def test_untinted_classes_show_the_image_alone(revhrnet, image, tmp_path):
    """They keep their colour in the palette PNG."""
    before, after = (tmp_path / name for name in ("tinted", "untinted"))
    predict.main([revhrnet, str(image), "--output_dir", str(before)])
    label_map = np.asarray(Image.open(before / "street_labels.png"))
    chosen = int(np.bincount(label_map.ravel()).argmax())
    checkpoint = shutil.copytree(revhrnet, tmp_path / "checkpoint")
    config = RevHRNetConfig.from_pretrained(checkpoint)
    config.untinted = [chosen]
    config.save_pretrained(checkpoint)
    predict.main([str(checkpoint), str(image), "--output_dir", str(after)])
    assert (after / "street_labels.png").read_bytes() == (before / "street_labels.png").read_bytes()
    drawn = np.asarray(Image.open(after / "street_overlay.png"))[:50, :75]
    tinted = np.asarray(Image.open(before / "street_overlay.png"))[:50, :75]
    expected = np.where((label_map == chosen)[..., None], np.asarray(Image.open(image)), tinted)
    np.testing.assert_array_equal(drawn, expected)
    assert not np.array_equal(drawn, tinted)


def test_inference_options_are_evaluations(revhrnet, image, tmp_path):
    given = ["--window", "32", "48", "--stride", "20", "30", "--scales", "0.8", "1.4", "--flip", "--batch_size", "2"]
    predict.main([revhrnet, str(image), "--output_dir", str(tmp_path / "out"), *given])
    settings = InferenceSettings((32, 48), (20, 30), (0.8, 1.4), flip=True, batch_size=2)
    expected = segment(*load_checkpoint(revhrnet), Image.open(image), settings).label_map
    written = np.asarray(Image.open(tmp_path / "out" / "street_labels.png"))
    np.testing.assert_array_equal(written, expected)
    for scale in ("nan", "inf", "0"):
        with pytest.raises(RecipeError, match="give one or more finite factors above 0"):
            predict.main([revhrnet, str(image), "--output_dir", str(tmp_path / "other"), "--scales", "1", scale])
    with pytest.raises(RecipeError, match="stride"):
        predict.main([revhrnet, str(image), "--output_dir", str(tmp_path / "other"), "--stride", "9", "9"])
    assert not (tmp_path / "other").exists()


def test_images_of_every_kind_get_maps_of_the_size_a_person_sees(segformer, tmp_path):
    folder, exif = tmp_path / "in", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    grey = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(np.dstack([grey] * 3)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.new("RGBA", (30, 20)).save(folder / "clear.png")
    Image.new("CMYK", (30, 20)).save(folder / "print.jpg")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "readme.txt").write_text("not an image")
    predict.main([segformer, str(folder), "--output_dir", str(tmp_path / "out")])
    sizes = {path.stem: Image.open(path).size for path in (tmp_path / "out").glob("*_labels.png")}
    plain = dict.fromkeys(["grey_labels", "deep_labels", "clear_labels", "print_labels"], (30, 20))
    assert sizes == plain | {"turned_labels": (20, 30), "dot_labels": (1, 1)}
    # Sixteen bits show the same image as eight, so they get the same label map.
    one, other = (np.asarray(Image.open(tmp_path / "out" / f"{name}_labels.png")) for name in ("grey", "deep"))
    np.testing.assert_array_equal(one, other)


def test_results_are_not_replaced_unless_asked(segformer, image, tmp_path):
    arguments = [segformer, str(image), "--output_dir", str(tmp_path / "out")]
    predict.main(arguments)
    result = tmp_path / "out" / "street_labels.png"
    result.write_text("precious")
    with pytest.raises(DataError, match=r"street_labels\.png is there already"):
        predict.main(arguments)
    assert result.read_text() == "precious"
    predict.main([*arguments, "--overwrite"])
    assert Image.open(result).size == (75, 50)


def test_two_images_of_one_name_are_an_error(segformer, image, tmp_path):
    namesake = tmp_path / "other" / "street.jpg"
    namesake.parent.mkdir()
    Image.new("RGB", (5, 5)).save(namesake)
    with pytest.raises(DataError, match=r"street\.png and .*street\.jpg would both"):
        predict.main([segformer, str(image), str(namesake), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_named_and_the_rest_is_done(segformer, image, tmp_path, caplog):
    folder, exif = tmp_path / "in", Image.Exif()
    folder.mkdir()
    exif[0x0112], exif[0x8769] = 6, {0x9003: "2024"}
    lying = Image.open(image).convert("RGB")
    malformed = exif.tobytes().replace(b"2024", b"\xff\xff\xff\xff").replace(b"\x03\x90\x02\x00", b"\x03\x90\x63\x00")
    lying.save(folder / "tagged.jpg", exif=malformed)
    lying.save(folder / "good.png")
    (folder / "cut.png").write_bytes(image.read_bytes()[:60])
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "._tagged.jpg").write_bytes(b"\0\x05\x16\x07" + bytes(90))
    (folder / "paper.pdf").write_bytes(b"%PDF-1.4\n")
    (folder / "film.mpg").write_bytes(b"\0\0\1\xb3" + bytes(90))
    (folder / "notes.txt").write_text("P5 is no image")
    (folder / "moved.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "album.jpg").mkdir()
    (folder / "older").mkdir()
    lying.save(folder / "older" / "inner.png")
    message = r"^4 of 6 images could not be segmented: .*cut\.png, .*drawing\.png, .*moved\.jpg, .*page\.jpg$"
    with pytest.raises(DataError, match=message):
        predict.main([segformer, str(folder), "--output_dir", str(tmp_path / "out")])
    written = sorted(path.name for path in (tmp_path / "out").glob("*_labels.png"))
    assert written == ["good_labels.png", "tagged_labels.png"]
    assert Image.open(tmp_path / "out" / "tagged_labels.png").size == lying.size[::-1]
    said = [line for line in caplog.messages if line.startswith("skipped: ")]
    unreadable = ["cut.png", "drawing.png", "moved.jpg", "page.jpg"]
    assert [line.split(" cannot be read")[0].rpartition("/")[2] for line in said] == unreadable


def test_a_name_that_is_too_long_or_an_image_above_the_padding_does_not_end_the_batch(revhrnet, image, tmp_path, caplog):
    checkpoint = shutil.copytree(revhrnet, tmp_path / "checkpoint")
    RevHRNetImageProcessor(do_pad=True, pad_size={"height": 64, "width": 96}).save_pretrained(checkpoint)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b" * 245, "z"):
        shutil.copy(image, folder / f"{name}.png")
    Image.open(image).resize((97, 50)).save(folder / "large.png")
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"^2 of 4 images could not be segmented: .*/bbb\S+, .*/large\.png$"):
        predict.main([str(checkpoint), str(folder), *out])
    assert [path.name for path in sorted((tmp_path / "out").glob("*_labels.png"))] == ["a_labels.png", "z_labels.png"]
    long, large = (line.removeprefix(f"skipped: {folder}/") for line in caplog.messages if line.startswith("skipped: "))
    assert long.startswith("bbb") and "too long a name for a file" in long
    assert large.startswith("large.png cannot be segmented: its 50×97 pixels") and "64×96" in large and "--window" in large
    predict.main([str(checkpoint), str(folder / "large.png"), *out, "--window", "64", "64"])


def test_the_limit_on_pixels_is_an_option(segformer, image, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setenv("REVHRNET_MAX_MEGAPIXELS", "0.002")
    arguments = [segformer, str(image), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(DataError, match="1 of 1 images could not be segmented"):
        predict.main(arguments)
    assert "--max_megapixels" in caplog.text
    predict.main([*arguments, "--max_megapixels", "0.01"])
    with pytest.raises(SystemExit):
        predict.main([*arguments, "--max_megapixels", "0"])


def test_bad_input_writes_nothing(segformer, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"broken\.png"):
        predict.main([segformer, str(broken), *out])
    with pytest.raises(DataError, match="absent"):
        predict.main([segformer, str(tmp_path / "absent.png"), *out])
    with pytest.raises(CheckpointError, match="no_model"):
        predict.main([str(tmp_path / "no_model"), str(image), *out])
    assert not (tmp_path / "out").exists()
    with pytest.raises(RecipeError, match="is a file"):
        predict.main([segformer, str(image), "--output_dir", str(image)])


def test_palette_must_fit_the_classes():
    with pytest.raises(CheckpointError, match="3 colours for 4 classes"):
        names_and_palette(SegformerConfig(num_labels=4, palette=PALETTE[:3]))
    with pytest.raises(CheckpointError, match="300 classes"):
        names_and_palette(SegformerConfig(num_labels=300))


@pytest.mark.slow
def test_as_a_command_an_error_is_one_line_and_status_1(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "absent.png")]
    finished = forked.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr == f"error: there is no image or folder {tmp_path / 'absent.png'}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "bits"), [([], 8), (["8"], 8), (["16"], 16)])
def test_confidence_is_the_softmax_of_the_upsampled_logits(segformer, image, tmp_path, capsys, given, bits):
    predict.main([segformer, str(image), "--output_dir", str(tmp_path), "--confidence", *given])
    written = Image.open(tmp_path / "street_confidence.png")
    assert (written.mode, written.size) == ({8: "L", 16: "I;16"}[bits], (75, 50))
    model, image_processor = load_checkpoint(segformer)
    with torch.no_grad():
        logits = model(**image_processor(Image.open(image), return_tensors="pt")).logits
    expected = torch.nn.functional.interpolate(logits, (50, 75), mode="bilinear")[0].softmax(0).amax(0).numpy()
    largest = 2**bits - 1
    np.testing.assert_allclose(np.asarray(written) / largest, expected, atol=0.51 / largest + 1e-6)
    assert f"mean confidence {100 * expected.mean():.1f} %" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"street_.*png is there already"):
        predict.main([segformer, str(image), "--output_dir", str(tmp_path), "--confidence"])


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sub_folders_are_mirrored_and_results_are_not_read_again(segformer, image, tmp_path, capsys):
    photos = tmp_path / "photos"
    for name in ("street.png", "north/street.png", "north/deep/street.png", "south/street.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(image.read_bytes())
    out = photos / "predictions"  # inside the folder that is searched
    for more in ([], ["--overwrite"]):
        predict.main([segformer, str(photos), "--recursive", "--output_dir", str(out), *more])
        expected = [
            f"{name}street_{kind}.png" for name in ("", "north/", "north/deep/", "south/") for kind in ("labels", "overlay")
        ]
        assert written(out) == sorted(expected)
    predict.main([segformer, f"{photos}/*/street.png", "--output_dir", str(tmp_path / "matched")])
    assert written(tmp_path / "matched") == [f"{n}/street_{k}.png" for n in ("north", "south") for k in ("labels", "overlay")]
    labels = {path.read_bytes() for path in photos.rglob("*_labels.png")}
    assert len(labels) == 1  # the same image


def test_addresses(segformer, image, tmp_path, caplog):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        log_message = lambda *args: None  # noqa: E731

    handler = functools.partial(Quiet, directory=image.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        given = [f"{address}/street.png?size=large", f"{address}/gone.png"]
        with pytest.raises(DataError, match=r"1 of 2 images could not be segmented: http://.*/gone\.png$"):
            predict.main([segformer, *given, "--output_dir", str(tmp_path / "out")])
        with pytest.raises(DataError, match="1 of 1 images"):
            predict.main([segformer, given[0], "--output_dir", str(tmp_path / "small"), "--max_download", "0.0001"])
        server.shutdown()
    assert "the server answers 404" in caplog.text and "more than 0.0001 are not fetched" in caplog.text
    predict.main([segformer, str(image), "--output_dir", str(tmp_path / "file")])
    assert written(tmp_path / "out") == written(tmp_path / "file") and not (tmp_path / "small").exists()
    for name in written(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "file" / name).read_bytes()
    with pytest.raises(DataError, match="file:///etc/passwd is not fetched"):
        predict.main([segformer, "file:///etc/passwd", "--output_dir", str(tmp_path / "other")])


def test_of_a_run_best_is_used(segformer, image, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(segformer, run / "best")
    predict.main([str(run), str(image), "--output_dir", str(tmp_path / "out")])
    predict.main([segformer, str(image), "--output_dir", str(tmp_path / "same")])
    assert (tmp_path / "out" / "street_labels.png").read_bytes() == (tmp_path / "same" / "street_labels.png").read_bytes()


@pytest.fixture
def clip(image, tmp_path):
    """Four frames of 75×50, each darker than the one before."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30000, 1001), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 75, 50, "yuv444p"
        for number in range(4):
            frame = Image.open(image).convert("RGB").point(lambda value, number=number: value // (number + 1))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return path


def test_videos(segformer, clip, tmp_path, capsys):
    out = tmp_path / "out"
    predict.main([segformer, str(clip), "--output_dir", str(out), "--frame_labels"])
    labels = [f"clip_labels/00000{number}.png" for number in range(4)]
    assert written(out) == [*labels, "clip_legend.png", "clip_overlay.mp4"]
    model, image_processor = load_checkpoint(segformer)
    with av.open(str(clip)) as container, av.open(str(out / "clip_overlay.mp4")) as drawn:
        assert drawn.streams.video[0].average_rate == Fraction(30000, 1001)
        frames = [frame.to_image() for frame in container.decode(video=0)]
        overlays = [frame.to_ndarray(format="rgb24").astype(int) for frame in drawn.decode(video=0)]
    assert len(overlays) == len(frames) == 4
    pixels = np.zeros(4, int)
    for name, frame, coloured in zip(labels, frames, overlays, strict=True):
        label_map = Image.open(out / name)
        np.testing.assert_array_equal(np.asarray(label_map), segment(model, image_processor, frame).label_map)
        pixels += np.bincount(np.asarray(label_map).ravel(), minlength=4)
        palette = np.array(label_map.getpalette()).reshape(-1, 3)
        mixed = (np.asarray(frame).astype(int) + palette[np.asarray(label_map)]) / 2
        assert coloured.shape == (50, 76, 3)
        assert np.abs(coloured[:, :75] - mixed).mean() < 12  # 4:2:0 and compression; a wrong palette is beyond 40
    printed = capsys.readouterr().out
    for index in np.flatnonzero(pixels):
        [line] = [line for line in printed.splitlines() if line.split()[0] == NAMES[index]]
        assert float(line.split()[1]) == pytest.approx(100 * pixels[index] / pixels.sum(), abs=0.051)
    with pytest.raises(DataError, match=r"clip_overlay\.mp4 is there already"):
        predict.main([segformer, str(clip), "--output_dir", str(out)])


def test_a_damaged_video_leaves_nothing(segformer, clip, image, tmp_path, caplog):
    clip.write_bytes(clip.read_bytes()[:-2000])  # the index is at the end
    with pytest.raises(DataError, match=r"1 of 2 images could not be segmented: .*clip\.mp4"):
        predict.main([segformer, str(clip), str(image), "--output_dir", str(tmp_path / "out"), "--frame_labels"])
    assert written(tmp_path / "out") == ["street_labels.png", "street_overlay.png"]
    assert "Video " in caplog.text and "cannot be read" in caplog.text


def test_options_that_do_not_fit_are_errors(segformer, clip, image, tmp_path):
    out = ["--output_dir", str(tmp_path / "out")]
    with pytest.raises(RecipeError, match=r"--confidence writes maps of images.*clip\.mp4"):
        predict.main([segformer, str(clip), *out, "--confidence"])
    with pytest.raises(RecipeError, match="--frame_labels is for videos"):
        predict.main([segformer, str(image), *out, "--frame_labels"])
