import io
import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.cli import run as run_and_explain
from revhrnet_hf.commands import audit
from revhrnet_hf.data import CamVid, RgbImage
from revhrnet_hf.data.audit import audit_dataset, is_ambiguous
from revhrnet_hf.errors import DataError


@pytest.fixture(autouse=True)
def published(monkeypatch):
    monkeypatch.setattr(CamVid, "PUBLISHED_COUNTS", {"train": 5, "val": 3})


@pytest.fixture
def run_script():
    def run(*arguments):
        """The exit status."""
        with pytest.raises(SystemExit) as stopped:
            run_and_explain(lambda: audit.main([*map(str, arguments), "--num_workers", "0"]))
        return stopped.value.code

    return run


def break_everything(camvid):
    """One file of each kind of damage, and what the audit should call it."""
    (camvid / "train" / "mini_train_00000.png").unlink()
    (camvid / "trainannot" / "mini_train_00001.png").unlink()
    truncate(camvid / "train" / "mini_train_00002.png")
    write_ids(camvid / "trainannot" / "mini_train_00003.png", [[77, 3], [200, 78]])
    file = camvid / "trainannot" / "mini_train_00004.png"
    PIL.Image.open(file).crop((0, 0, 30, 20)).save(file)
    truncate(camvid / "valannot" / "mini_val_00001.png")
    return [
        ("missing", "mini_train_00000.png", r"Label map without its image: .*trainannot/mini_train_00000\.png"),
        ("missing", "mini_train_00001.png", r"Image without its label map: .*train/mini_train_00001\.png"),
        ("image", "mini_train_00002.png", "cannot be read"),
        ("label map", "mini_train_00003.png", "holds the ids 77, 78, 200, which"),
        ("size", "mini_train_00004.png", "is 64×48 pixels .* label map is 30×20"),
        ("label map", "mini_val_00001.png", "cannot be read"),
    ]


def truncate(file):
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def write_ids(file, ids):
    raw = np.asarray(PIL.Image.open(file)).copy()
    raw[:2, :2] = ids
    PIL.Image.fromarray(raw).save(file)


def test_pixels_are_counted_as_numpy_does(mini_camvid):
    audit = audit_dataset("camvid", mini_camvid)
    assert not audit.findings
    assert list(audit.splits) == ["train", "val", "trainval"]
    assert list(audit.absent) == ["test"]
    for split, folders in (("train", ["train"]), ("val", ["val"]), ("trainval", ["train", "val"])):
        files = [file for folder in folders for file in (mini_camvid / f"{folder}annot").glob("*.png")]
        raw = np.stack([np.asarray(PIL.Image.open(file)) for file in files])
        report = audit.splits[split]
        assert report.images == len(files)
        assert report.sizes == {(64, 48): len(files)}
        # Raw id 11 is CamVid's void.
        assert report.pixels.tolist() == [(raw == raw_id).sum() for raw_id in range(12)]
        assert report.occurrences.tolist() == [(raw == raw_id).any((1, 2)).sum() for raw_id in range(12)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_finding_is_listed_once(mini_camvid, num_workers):
    expected = break_everything(mini_camvid)
    findings = audit_dataset("camvid", mini_camvid, num_workers=num_workers).findings
    assert sorted((problem.kind, Path(problem.file).name) for problem in findings) == sorted(e[:2] for e in expected)
    for kind, name, text in expected:
        ((problem, splits),) = [(p, s) for p, s in findings.items() if (p.kind, Path(p.file).name) == (kind, name)]
        assert splits == [name.split("_")[1], "trainval"]
        with pytest.raises(DataError, match=text):
            raise DataError(problem.text)


def test_broken_images_do_not_count(mini_camvid):
    break_everything(mini_camvid)
    report = audit_dataset("camvid", mini_camvid, ["train"]).splits["train"]
    assert report.images == 5
    assert report.sizes == {(64, 48): 2}
    # Label maps 2 and 4 were readable; 4 was cut to 30×20.
    assert report.pixels.sum() == 64 * 48 + 30 * 20


def test_count_is_compared_with_the_published(mini_camvid):
    lines = (mini_camvid / "val.txt").read_text().splitlines(keepends=True)
    (mini_camvid / "val.txt").write_text("".join(lines[:2]))
    ((problem, splits),) = audit_dataset("camvid", mini_camvid).findings.items()
    assert (problem.kind, splits) == ("count", ["val"])
    assert problem.text == "val has 2 images, but CamVid was published with 3."


def test_broken_list_does_not_hide_the_other_splits(mini_camvid):
    (mini_camvid / "train.txt").write_text("one_name_only.png\n")
    audit = audit_dataset("camvid", mini_camvid)
    ((problem, splits),) = audit.findings.items()
    assert (problem.kind, splits) == ("listing", ["train", "trainval"])
    assert "must name an image and a label map" in problem.text
    assert audit.splits["val"].images == 3


def test_script_says_it_all_and_fails(mini_camvid, tmp_path, run_script, capsys):
    expected = break_everything(mini_camvid)
    assert run_script("camvid", mini_camvid, "--json", tmp_path / "audit.json") == 1
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "audit.json").read_text())
    assert len(record["findings"]) == len(expected)
    for finding in record["findings"]:
        assert finding["text"] in printed
    assert "6 in all" in printed
    assert "not there: test" in printed
    assert record["splits"]["val"]["sizes"] == {"64×48": 3}


def test_script_on_a_clean_split(mini_camvid, run_script, capsys):
    (mini_camvid / "train" / "mini_train_00000.png").unlink()
    assert run_script("camvid", mini_camvid, "--split", "val") == 0
    printed = capsys.readouterr().out
    assert "no findings" in printed
    assert ["val", "3", "3", "64×48", "(3)"] in [line.split() for line in printed.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kitti", "."], "Unknown dataset: 'kitti'; known: camvid"),
        (["camvid", "DIR", "--split", "dev"], "Unknown split of camvid: 'dev'"),
        (["camvid", "DIR", "--split", "test"], "no split 'test'"),
        (["camvid", "DIR", "--label_space", "voc21"], "Unknown label space for camvid: 'voc21'"),
        (["camvid", "DIR/train"], "DIR looks right"),
        (["camvid", "DIR", "--json", "DIR/none/x.json"], "there is no folder"),
    ],
)
def test_wrong_questions(mini_camvid, run_script, capsys, arguments, message):
    assert run_script(*(argument.replace("DIR", str(mini_camvid)) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert message.replace("DIR", str(mini_camvid)) in error
    assert "Traceback" not in error


def test_folder_of_ones_own(tmp_path, run_script, capsys):
    for split in ("train", "val"):
        for kind, array in (("images", np.zeros((2, 3, 3), np.uint8)), ("labels", np.array([[0, 1, 1], [1, 0, 0]], np.uint8))):
            (tmp_path / split / kind).mkdir(parents=True)
            PIL.Image.fromarray(array).save(tmp_path / split / kind / "a.png")
    (tmp_path / "labels.yaml").write_text("name: own\nnames: [road, car]\n")
    assert run_script("folder", tmp_path) == 0
    assert ["car", "1", "50.000", "1", "50.000", "1"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    PIL.Image.new("L", (3, 2)).save(tmp_path / "val" / "labels" / "a.png", format="TIFF", compression="jpeg")
    assert run_script("folder", tmp_path) == 1
    assert "is compressed as JPEG, whatever its name says" in capsys.readouterr().out
    (tmp_path / "val" / "labels" / "a.png").unlink()
    assert run_script("folder", tmp_path) == 1


def test_nothing_but_absent_splits(mini_original):
    for split in ("train", "val"):
        (mini_original / f"{split}.txt").unlink()
    with pytest.raises(DataError, match=r"does not say which frames are 'train'.*'val'.*'test'"):
        audit_dataset("camvid", mini_original)


def write_own(folder, splits, table, name="{}.png"):
    """Label maps as arrays, by split and number; images of one colour."""
    for split, arrays in splits.items():
        for number, array in enumerate(arrays):
            label_map = PIL.Image.fromarray(np.asarray(array, np.uint8))
            for kind, image in (("images", PIL.Image.new("RGB", label_map.size)), ("labels", label_map)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                image.save(folder / split / kind / name.format(number))
    (folder / "labels.yaml").write_text(table)
    return folder


MASK = np.zeros((10, 10), np.uint8)
MASK[:5, :5] = 255


@pytest.mark.parametrize("table", ["names: [background, person]\n", "names: [background, person]\nignore: [255]\n"])
def test_masks_of_0_and_255(tmp_path, run_script, capsys, table):
    own = write_own(tmp_path / "own", {"train": [MASK, MASK], "val": [MASK]}, table)
    assert run_script("folder", own) == 1
    said = capsys.readouterr().out
    assert (
        "The class 'person' (id 1) has no pixel in train, so that it cannot be learnt. 25.0 % of the pixels are the id 255"
        in said
    )
    assert "names: {background: 0, person: 255}" in said
    # Following the hint removes the finding.
    (own / "labels.yaml").write_text("names: {background: 0, person: 255}\n")
    assert run_script("folder", own) == 0
    assert ["person", "255", "25.000", "2", "25.000", "1"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_class_that_occurs_in_val_only(tmp_path):
    own = write_own(tmp_path / "own", {"train": [MASK // 255], "val": [MASK // 255 * 2]}, "names: [sky, road, car]\n")
    audit = audit_dataset("folder", own)
    assert [(problem.kind, problem.text[:78], splits) for problem, splits in audit.findings.items()] == [
        ("class", "The class 'car' (id 2) has no pixel in train (it occurs in val), so that it ca", ["train"])
    ]
    assert [problem.text for problem in audit.notes] == ["No pixel in val, so that no score tells how well it is learnt: road."]
    assert [finding["kind"] for finding in audit.to_dict()["findings"]] == ["class"]


@pytest.mark.parametrize("trained", ["train-2020", "lots"])
def test_training_split_is_found_by_name_or_size(tmp_path, trained):
    own = write_own(tmp_path / "own", {trained: [MASK // 255] * 2, "a": [MASK // 255 * 2]}, "names: [sky, road, car]\n")
    ((problem, splits),) = audit_dataset("folder", own).findings.items()
    assert splits == [trained] and f"'car' (id 2) has no pixel in {trained} (it occurs in a)" in problem.text


def test_class_without_pixels_in_the_only_split(tmp_path):
    own = write_own(tmp_path / "own", {"all": [MASK // 255]}, "names: [sky, road, car]\n")
    ((problem, _),) = audit_dataset("folder", own).findings.items()
    assert "'car' (id 2) has no pixel in all" in problem.text and "take it out of the label table" in problem.text


def ignored_share(tmp_path, percent, table, **options):
    """Findings and notes of a dataset of which an ignored value covers so much; the classes are all there."""
    array = np.zeros(1000, np.uint8)
    array[: 10 * percent] = 9
    array[-1:] = 1
    own = write_own(tmp_path / f"own_{percent}", {"train": [array.reshape(20, 50)]}, table)
    return audit_dataset("folder", own, **options)


def test_much_that_is_ignored(tmp_path):
    table = "names: [sky, road]\nignore: [9, 255]\n"
    assert not ignored_share(tmp_path, 5, table).findings
    ((problem, splits),) = ignored_share(tmp_path, 6, table).findings.items()
    assert (problem.kind, splits) == ("ignored", ["train"])
    assert problem.text.startswith("6.0 % of the pixels in train are the id 9, which is ignored; more than 5 % is unusual")
    assert "raise --max_ignored" in problem.text
    assert not ignored_share(tmp_path, 6, table, most_ignored=6).findings
    assert ignored_share(tmp_path, 2, table).splits["train"].counts.ignored == {9: 20}


def test_much_that_is_ignored_by_colour(tmp_path):
    colours = np.zeros((10, 10, 3), np.uint8)
    colours[:4] = (1, 2, 3)
    colours[9] = 255
    table = 'names:\n  sky: {colours: "#000000"}\n  road: {colours: "#ffffff"}\nignore: [[1, 2, 3]]\n'
    ((problem, _),) = audit_dataset("folder", write_own(tmp_path / "own", {"train": [colours]}, table)).findings.items()
    assert problem.text.startswith("40.0 % of the pixels in train are the colour (1, 2, 3)")
    assert "person: {colours: [1, 2, 3]}" in problem.text


def test_what_publishers_ignore_is_right(mini_camvid, mini_cityscapes, tmp_path):
    for file in (mini_camvid / "trainannot").iterdir():
        PIL.Image.fromarray(np.full((48, 64), 11, np.uint8)).save(file)
    audit = audit_dataset("camvid", mini_camvid)
    assert not audit.findings
    assert len(audit.notes) == 11 and {problem.kind for problem in audit.notes} == {"class"}
    assert not [p for p in audit_dataset("cityscapes", mini_cityscapes).findings if p.kind in ("class", "ignored")]
    # The same classes in a user's own folder: void is correct, a class that never occurs is an error.
    own = write_own(tmp_path / "own", {"train": [np.full((4, 4), 11)]}, "names: [a, b]\n")
    findings = audit_dataset("folder", own, label_space="camvid11").findings
    assert len(findings) == 11 and {problem.kind for problem in findings} == {"class"}


def test_counts_do_not_depend_on_what_is_ignored_apart(tmp_path):
    """More ignored ids than there are train ids left."""
    table = f"names: [a, b]\nignore: {[*range(2, 256), 300, 301]}\n"
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    report = audit_dataset("folder", write_own(tmp_path / "own", {"train": [array]}, table)).splits["train"]
    assert report.pixels.tolist() == [1, 1, 254] and sum(report.counts.ignored.values()) <= 254


@pytest.mark.parametrize(
    ("orientation", "size", "label_size", "ambiguous"),
    [
        (1, (8, 8), (8, 8), False),
        (None, (8, 8), (8, 8), False),
        (2, (8, 6), (8, 6), True),
        (3, (8, 6), (8, 6), True),
        (4, (8, 6), (8, 6), True),
        (6, (8, 6), (8, 6), False),
        (6, (8, 6), (6, 8), False),
        (5, (8, 8), (8, 8), True),
        (8, (8, 8), (8, 8), True),
        (9, (8, 8), (8, 8), False),
    ],
)
def test_orientation_that_fits_both_ways(tmp_path, orientation, size, label_size, ambiguous):
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
    opened = RgbImage().open({"path": str(tmp_path / "a.jpg"), "bytes": None})
    assert is_ambiguous(opened, label_size) == ambiguous


def test_orientations_are_noted(tmp_path):
    own = write_own(tmp_path / "own", {"train": [MASK // 255, MASK // 255]}, "names: [sky, road]\n")
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    PIL.Image.new("RGB", (10, 10)).save(own / "train" / "images" / "1.png", exif=exif)
    audit = audit_dataset("folder", own)
    ((note, splits),) = audit.notes.items()
    assert (note.kind, Path(note.file).name, splits) == ("orientation", "1.png", ["train"])
    assert not audit.findings and "EXIF orientation 3" in str(audit)


def test_own_name_of_a_dataset(tmp_path, run_script, capsys):
    own = write_own(tmp_path / "own", {"train": [MASK // 255]}, "names: [sky, road]\n")
    assert run_script("photos", own, "--loader", "folder") == 0
    assert capsys.readouterr().out.startswith("photos, label space own")
    assert run_script("photos", own) == 1
    assert "Unknown dataset: 'photos'; known: camvid" in capsys.readouterr().err
    assert run_script("photos", own, "--loader", "folder", "--max_ignored", "500") == 1
    assert "give a percentage" in capsys.readouterr().err


def png(array):
    data = io.BytesIO()
    PIL.Image.fromarray(np.asarray(array, np.uint8)).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def test_a_stored_dataset_is_audited(tmp_path):
    columns = {
        "image": [png(np.zeros((4, 5, 3)))] * 3 + [{"bytes": b"no image", "path": None}],
        "mask": [png(np.zeros((4, 5))), png(np.ones((4, 4))), png(np.full((4, 5), 7)), png(np.ones((4, 5)))],
    }
    features = datasets.Features({name: datasets.Image() for name in columns})
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns, features=features)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "own.yaml").write_text("names: [sky, road]\n")
    audit = audit_dataset("hub", tmp_path / "saved", label_space=tmp_path / "own.yaml", label_column="mask")
    assert audit.splits["train"].pixels.tolist() == [20, 36, 0]
    found = {problem.kind: (problem.file, problem.text) for problem in audit.findings}
    assert {kind: file for kind, (file, _) in found.items()} == {"size": "000001", "label map": "000002", "image": "000003"}
    assert all(file in text or "row 2" in text for file, text in found.values())


def test_a_size_that_differs_names_the_orientation(tmp_path):
    own = write_own(tmp_path / "own", {"train": [MASK // 255]}, "names: [sky, road]\n")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (image,) = (own / "train" / "images").iterdir()
    PIL.Image.new("RGB", (30, 20)).save(image, exif=exif)
    (problem,) = audit_dataset("folder", own).findings
    assert problem.kind == "size" and "is 20×30 pixels (width×height) (as its EXIF orientation 6 turns it" in problem.text
