"""Turned images with their label maps, in own folders and in stored datasets, through training and evaluation."""

import datasets
import numpy as np
import PIL.Image
import pytest

from revhrnet_hf import RevHRNetImageProcessor
from revhrnet_hf.data import TrainingSamples, TrainingTransform, load_segmentation_dataset
from revhrnet_hf.errors import DataError
from revhrnet_hf.evaluation.network_input import Samples
from revhrnet_hf.evaluation.report import shown_images
from revhrnet_hf.evaluation.settings import InferenceSettings

from ..image_files import UPRIGHT, encoded

HEIGHT, WIDTH = 6, 9
RNG = np.random.default_rng(0)
STORED = RNG.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)  # the classes as stored; the image shows them as grey values
PIXELS = np.repeat(STORED[..., None] * 100, 3, axis=2)
KINDS = {"PNG": "png", "TIFF": "tif", "JPEG": "jpg"}


def labels_for(turn, drawn_on):
    """As somebody draws them who sees the image upright, or whose tool does not know EXIF."""
    return np.ascontiguousarray(UPRIGHT[turn](STORED) if drawn_on == "upright" else STORED)


def write_folder(root, kind, drawn_on, turns=UPRIGHT):
    for turn in turns:
        for folder in ("images", "labels"):
            (root / folder / "train").mkdir(parents=True, exist_ok=True)
        data = encoded(PIL.Image.fromarray(PIXELS), kind, turn, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
        (root / "images" / "train" / f"{turn}.{KINDS[kind]}").write_bytes(data)
        PIL.Image.fromarray(labels_for(turn, drawn_on)).save(root / "labels" / "train" / f"{turn}.png")
    (root / "labels.yaml").write_text("names: [a, b, c]\n")
    return root


def stored_set(root, kind, drawn_on, turns, folder):
    """The same as somebody pushes it: bytes, no names."""
    columns = {"image": [], "label_map": []}
    for turn in turns:
        data = encoded(PIL.Image.fromarray(PIXELS), kind, turn, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
        columns["image"].append({"bytes": data, "path": None})
        labels = encoded(PIL.Image.fromarray(labels_for(turn, drawn_on)), "PNG")
        columns["label_map"].append({"bytes": labels, "path": None})
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, features=features, split="train").save_to_disk(folder)
    (root / "t.yaml").write_text("names: [a, b, c]\n")
    return load_segmentation_dataset("hub", folder, "train", root / "t.yaml")


def seen_by_training(rows, place):
    """Crop of the whole image at scale 1, not flipped: (image as classes, labels)."""
    processor = RevHRNetImageProcessor(do_normalize=False, do_rescale=False)
    transform = TrainingTransform(processor, (WIDTH, WIDTH), WIDTH, (1, 1), None, flip=0)
    sample = TrainingSamples(rows, transform, seed=0)[place]
    labels = sample["labels"].numpy()
    return np.rint(sample["pixel_values"][0].numpy() / 100), labels


def seen_by_evaluation(rows, place):
    processor = RevHRNetImageProcessor(do_normalize=False, do_rescale=False)
    sample = Samples(rows, [place], processor, InferenceSettings())[0]
    inputs = sample.inputs[0]
    inputs = getattr(inputs, "tensors", inputs)
    return np.rint(inputs["pixel_values"][0, 0].numpy() / 100), sample.references.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["folder", "hub"])
@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_pixels_and_labels_lie_on_each_other(kind, source, drawn_on, tmp_path):
    # If both fit, the upright image is used, even for a label map that was drawn on the stored image.
    turns = list(UPRIGHT) if drawn_on == "upright" else [1, 5, 6, 7, 8]
    if source == "folder":
        rows = load_segmentation_dataset("folder", write_folder(tmp_path, kind, drawn_on, turns), "train")
    else:
        rows = stored_set(tmp_path, kind, drawn_on, turns, tmp_path / "saved")
    for place, turn in enumerate(turns):
        shown, labels = seen_by_evaluation(rows, place)
        assert np.array_equal(shown, labels) and np.array_equal(labels, labels_for(turn, drawn_on)), turn
        shown, labels = seen_by_training(rows, place)
        assert np.array_equal(shown[labels != 255], labels[labels != 255]) and (labels != 255).sum() == HEIGHT * WIDTH
        if source == "folder":
            row = rows[place]
            assert row["image"].size == row["label_map"].size
            assert np.array_equal(np.rint(np.asarray(row["image"])[..., 0] / 100), np.asarray(row["label_map"]))


def test_drawings_have_the_orientation_that_is_scored(tmp_path):
    rows = stored_set(tmp_path, "PNG", "stored", [1, 6, 8], tmp_path / "saved")

    def seen(_, content):
        return np.rint(np.asarray(content["image"])[..., 0] / 100)

    for image in shown_images(rows, range(3), [0.5] * 3, seen):
        assert np.array_equal(image.prediction, image.truth) and image.image.size == image.truth.shape[::-1]


def test_images_as_stored_travel_so(tmp_path):
    rows = load_segmentation_dataset("folder", write_folder(tmp_path, "PNG", "stored", [6]), "train")
    expected = rows[0]["image"].tobytes()
    rows.save_to_disk(tmp_path / "saved")
    back = load_segmentation_dataset("hub", tmp_path / "saved", "train")
    assert back[0]["image"].size == (WIDTH, HEIGHT) and back[0]["image"].tobytes() == expected


def test_a_size_that_fits_neither_way_names_exif(tmp_path):
    root = write_folder(tmp_path, "JPEG", "upright", [6])
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "labels" / "train" / "6.png")
    message = r"6\.jpg is 6×9 pixels .*\(as its EXIF orientation 6 turns it, 9×6 as stored\) but its label map .* is 4×4"
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset("folder", root, "train")
    rows = stored_set(tmp_path, "JPEG", "upright", [6], tmp_path / "saved")
    small = PIL.Image.fromarray(np.zeros((4, 4), np.uint8))
    rows = rows.map(lambda row: {"label_map": small})
    with pytest.raises(DataError, match=r"Image 000000 is 6×9 pixels.*EXIF orientation 6.*its label map is 4×4"):
        seen_by_training(rows, 0)
