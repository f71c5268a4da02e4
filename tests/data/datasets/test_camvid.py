import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from revhrnet_hf.data import get_label_space, load_segmentation_dataset
from revhrnet_hf.errors import AbsentSplitError, DataError


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("camvid", data_dir, split, **options)


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("trainval", 468)])
def test_real_camvid(real_camvid, split, count):
    dataset = load(real_camvid, split)
    assert len(dataset) == count
    assert dataset.column_names == ["image", "label_map", "image_id"]
    row = dataset[count - 1]
    part = "train" if split == "train" else "val"
    raw = np.asarray(PIL.Image.open(real_camvid / f"{part}annot" / f"{row['image_id']}.png"))
    assert np.array_equal(np.asarray(row["label_map"]), np.where(raw == 11, 255, raw))
    assert np.array_equal(np.asarray(row["image"]), np.asarray(PIL.Image.open(real_camvid / part / f"{row['image_id']}.png")))


def test_list_decides_order_and_members(mini_camvid):
    lines = (mini_camvid / "train.txt").read_text().splitlines()
    (mini_camvid / "train.txt").write_text("\n".join([lines[3], lines[1]]) + "\n")
    assert load(mini_camvid)["image_id"][:] == ["mini_train_00003", "mini_train_00001"]


@pytest.mark.parametrize("above", ["/home/me/my data/CamVid/", "C:\\my data\\CamVid\\", ""])
@pytest.mark.parametrize("form", ["mini_camvid", "mini_original"])
def test_lists_of_other_machines(request, form, above):
    data_dir = request.getfixturevalue(form)
    expected, line = load(data_dir)["image_id"][:], f"{above}train/{{0}}.png\t{above}trainannot/{{0}}.png\r\n"
    line = line.replace("/", "\\") if "\\" in above else line
    (data_dir / "train.txt").write_bytes("".join(map(line.format, expected)).encode())
    assert load(data_dir)["image_id"][:] == expected


def test_publishers_zip_files(mini_camvid, mini_original):
    """That of the label maps holds no folder."""
    for folder, above in (("701_StillsRaw_full", "701_StillsRaw_full/"), ("LabeledApproved_full", "")):
        with zipfile.ZipFile(mini_original / f"{folder}.zip", "w") as zipped:
            for file in (mini_original / folder).iterdir():
                zipped.write(file, f"{above}{file.name}")
        shutil.rmtree(mini_original / folder)
    for segnet, original in zip(load(mini_camvid), load(mini_original), strict=True):
        assert segnet["image_id"] == original["image_id"]
        assert segnet["label_map"].tobytes() == original["label_map"].tobytes()


def test_without_a_list_the_folder_is_listed(mini_camvid):
    (mini_camvid / "train.txt").unlink()
    assert load(mini_camvid)["image_id"][:] == [f"mini_train_{k:05d}" for k in range(5)]


def test_both_forms_hold_the_same(mini_camvid, mini_original):
    for split in ("train", "val", "trainval"):
        for segnet, original in zip(load(mini_camvid, split), load(mini_original, split), strict=True):
            assert segnet["image_id"] == original["image_id"]
            assert segnet["image"].tobytes() == original["image"].tobytes()
            assert segnet["label_map"].tobytes() == original["label_map"].tobytes()


def test_all_classes_of_the_original_form(mini_camvid, mini_original):
    """Each pixel has the class of its raw colour; merged as SegNet did, they are the eleven."""
    space, merged = get_label_space("camvid32"), get_label_space("camvid11")
    assert space.num_classes == 31  # the 32nd is Void
    for row, eleven in zip(load(mini_original, label_space="camvid32"), load(mini_original), strict=True):
        raw = np.asarray(PIL.Image.open(mini_original / "LabeledApproved_full" / f"{row['image_id']}_L.png"))
        ids = np.asarray(row["label_map"])
        for train_id in np.unique(ids):
            (colour,) = np.unique(raw[ids == train_id], axis=0).tolist()
            assert tuple(colour) == (space.colours[train_id] if train_id != 255 else (0, 0, 0))
            assert set(np.asarray(eleven["label_map"])[ids == train_id]) == {merged.raw_colours[tuple(colour)]}
    with pytest.raises(DataError, match="SegNet's form, which has 11 classes"):
        load(mini_camvid, label_space="camvid32")


def test_original_form_does_not_invent_a_split(mini_original):
    with pytest.raises(DataError, match=r"'test': put SegNet's test\.txt .*lists there: train\.txt, val\.txt"):
        load(mini_original, "test")


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty is empty"):
        load(tmp_path / "empty")


def test_parent_folder_suggests_the_right_one(mini_camvid):
    with pytest.raises(DataError, match=f"{mini_camvid} looks right"):
        load(mini_camvid.parent)


@pytest.mark.parametrize("below", ["train", "trainannot"])
def test_sub_folder_suggests_the_right_one(mini_camvid, below, monkeypatch):
    with pytest.raises(DataError, match=f"{mini_camvid} looks right"):
        load(mini_camvid / below)
    monkeypatch.chdir(mini_camvid / below)
    with pytest.raises(DataError, match=f"{mini_camvid} looks right"):
        load(".")


def test_foreign_folder(tmp_path):
    (tmp_path / "foreign" / "photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"foreign is not CamVid.*Give the folder that holds them"):
        load(tmp_path / "foreign")


def write_kaggles_copy(original, folder):
    """Colours, a folder for each split's images and one for its label maps, and no lists."""
    for split in ("train", "val"):
        stems = [Path(line).stem for line in (original / f"{split}.txt").read_text().split()]
        for kind, ending, target in (("701_StillsRaw_full", "", split), ("LabeledApproved_full", "_L", f"{split}_labels")):
            (folder / target).mkdir(parents=True)
            for stem in stems:
                shutil.copy(original / kind / f"{stem}{ending}.png", folder / target)


@pytest.mark.parametrize("place", ["", "CamVid", "archive.zip"])
def test_the_copy_on_kaggle_is_to_be_read_as_own_data(mini_original, tmp_path, place):
    given = tmp_path / "given"
    write_kaggles_copy(mini_original, tmp_path / "unpacked" / "CamVid" if ".zip" in place else given / place)
    if ".zip" in place:
        shutil.make_archive(str(given / "archive"), "zip", tmp_path / "unpacked")
    with pytest.raises(DataError, match=f"{given} is the copy of CamVid on Kaggle .*`revhrnet new {given}` writes") as refusal:
        load(given)
    assert not isinstance(refusal.value, AbsentSplitError)


def test_absent_split_lists_those_there(mini_camvid):
    with pytest.raises(DataError, match=r"no split 'test'.*splits there: train, val"):
        load(mini_camvid, "test")


def test_missing_label_maps_folder_is_an_absent_split(mini_camvid):
    shutil.rmtree(mini_camvid / "trainannot")
    with pytest.raises(DataError, match=r"no split 'train'.*splits there: val"):
        load(mini_camvid, "trainval")


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("folder", "kind"), [("trainannot", "Image"), ("train", "Label map")])
def test_file_without_partner_is_named(mini_camvid, listed, folder, kind):
    if not listed:
        (mini_camvid / "train.txt").unlink()
    (mini_camvid / folder / "mini_train_00002.png").unlink()
    with pytest.raises(DataError, match=rf"{kind} without its .*, 1 of 5: .*mini_train_00002\.png"):
        load(mini_camvid)


def test_many_files_without_partner_are_counted(mini_camvid):
    for label_map in (mini_camvid / "trainannot").glob("*.png"):
        label_map.unlink()
    with pytest.raises(DataError, match=r"5 of 5: .*00000\.png.*00002\.png.* and 2 more"):
        load(mini_camvid)


@pytest.mark.parametrize("streaming", [False, True])
def test_differing_sizes_name_both_files_and_sizes(mini_camvid, streaming):
    odd = mini_camvid / "trainannot" / "mini_train_00004.png"
    PIL.Image.open(odd).crop((0, 0, 30, 20)).save(odd)
    sizes = r"train/mini_train_00004\.png is 64×48 .*trainannot/mini_train_00004\.png is 30×20"
    with pytest.raises(DataError, match=sizes):
        load(mini_camvid, streaming=streaming)


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_file_that_is_no_image_is_named_while_listing(mini_camvid, folder):
    (mini_camvid / folder / "mini_train_00001.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"{folder}/mini_train_00001\.png cannot be read"):
        load(mini_camvid)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/SegNet/CamVid/train/a.png\n", r"train\.txt: the line .* must name"),
        ("/ trainannot/mini_train_00000.png\n", r"train\.txt: the line .* must name"),
        (". trainannot/mini_train_00000.png\n", r"train\.txt: the line .* must name"),
        ("\n", r"train\.txt is empty"),
    ],
)
def test_broken_list(mini_camvid, text, message):
    (mini_camvid / "train.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load(mini_camvid)


@pytest.mark.parametrize(
    "line",
    [
        "../secret.png valannot/mini_val_00000.png",
        "val/mini_val_00000.png ../secret.png",
        "/SegNet/CamVid/val/../secret.png /SegNet/CamVid/valannot/mini_val_00000.png",
        "..\\secret.png valannot/mini_val_00000.png",
    ],
)
def test_segnet_list_that_leads_outside_is_refused(mini_camvid, line):
    PIL.Image.new("RGB", (64, 48)).save(mini_camvid.parent / "secret.png")
    (mini_camvid / "val.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"val\.txt: the line .* leads outside the data folder: correct it"):
        load(mini_camvid, "val")


@pytest.mark.parametrize("line", ["../../secret", "/etc/secret.png", "..", "../../secret/../secret.png"])
def test_original_list_that_leads_outside_finds_nothing_there(mini_original, line):
    for name in ("secret.png", "secret_L.png"):
        PIL.Image.new("RGB", (64, 48)).save(mini_original.parent / name)
    (mini_original / "val.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match="without its"):
        load(mini_original, "val")


@pytest.mark.parametrize("form", ["mini_camvid", "mini_original"])
def test_frame_that_is_named_twice(request, form):
    data_dir = request.getfixturevalue(form)
    train, val = (data_dir / f"{split}.txt" for split in ("train", "val"))
    line = train.read_text().splitlines()[1]
    with val.open("a") as names:
        names.write(line + "\n")
    assert len(load(data_dir, "train")) == 5
    with pytest.raises(DataError, match=r"train \+ val names '.*00001' twice: take one out"):
        load(data_dir, "trainval")
    with val.open("a") as names:
        names.write(line + "\n")
    with pytest.raises(DataError, match=r"val names '.*00001' twice"):
        load(data_dir, "val")


def test_folder_beside_one_called_train_is_not_taken_for_camvids(tmp_path):
    for name in ("train", "thesis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "thesis", "train")
    assert "looks right" not in str(caught.value)
