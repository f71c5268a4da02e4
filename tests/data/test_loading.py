import importlib
import multiprocessing
import struct
import zlib

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from revhrnet_hf.data import get_label_space, label_space_of, load_segmentation_dataset, translate
from revhrnet_hf.data.loading import in_classes
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import write_camvid, write_cityscapes, write_coco, write_mapillary_vistas, write_pascal_voc


def load(data_dir, split="train", **options):
    return load_segmentation_dataset("camvid", data_dir, split, **options)


def pixels(row):
    return row["image_id"], row["image"].tobytes(), row["label_map"].tobytes()


def test_streaming_gives_the_same(mini_camvid, tmp_path):
    streamed = load(mini_camvid, "trainval", streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert not any((tmp_path / "datasets_cache").rglob("*.arrow"))
    assert [pixels(row) for row in streamed] == [pixels(row) for row in load(mini_camvid, "trainval")]


def test_streaming_workers_share_the_images_out(mini_camvid):
    streamed = load(mini_camvid, "trainval", streaming=True)
    loader = torch.utils.data.DataLoader(streamed.select_columns("image_id"), batch_size=None, num_workers=2)
    assert sorted(row["image_id"] for row in loader) == load(mini_camvid, "trainval")["image_id"][:]


def test_nothing_but_paths_is_cached(mini_camvid, tmp_path):
    dataset = load(mini_camvid)
    stored = dataset.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(mini_camvid / "train" / "mini_train_00000.png")}
    in_cache = sum(file.stat().st_size for file in (tmp_path / "datasets_cache").rglob("*") if file.is_file())
    assert in_cache < 10_000


def test_relative_folder_holds_in_another_working_directory(mini_camvid, monkeypatch, tmp_path):
    monkeypatch.chdir(mini_camvid.parent)
    dataset = load(mini_camvid.name)
    monkeypatch.chdir("/")
    assert dataset[0]["image_id"] == "mini_train_00000"


@pytest.mark.parametrize(
    ("name", "split", "write", "options"),
    [
        ("camvid", "train", write_camvid, {"form": "segnet"}),
        ("camvid", "train", write_camvid, {"form": "original"}),
        ("cityscapes", "train", write_cityscapes, {}),
        ("mapillary_vistas", "train", write_mapillary_vistas, {}),
        ("coco", "train", write_coco, {}),
        ("pascal_voc", "train_aug", write_pascal_voc, {"form": "sbd"}),
    ],
)
def test_suffixes_in_capitals(name, split, write, options, tmp_path):
    """Every other file is called x.JPG where x.jpg is published, so that images and label maps differ."""
    write(tmp_path, {"train": 3, "val": 1}, (48, 64), **options)
    if options == {"form": "segnet"}:
        (tmp_path / "train.txt").unlink()  # so that the folders are listed
    expected = [pixels(row) for row in load_segmentation_dataset(name, tmp_path, split)]
    files = [file for file in sorted(tmp_path.rglob("*.*")) if file.suffix in (".jpg", ".png", ".mat")]
    for file in files[::2]:
        file.rename(file.with_suffix(file.suffix.upper()))
    assert [pixels(row) for row in load_segmentation_dataset(name, tmp_path, split)] == expected


def test_changed_folder_is_seen(mini_camvid):
    assert len(load(mini_camvid)) == 5
    (mini_camvid / "train.txt").unlink()
    for folder in ("train", "trainannot"):
        (mini_camvid / folder / "mini_train_00004.png").unlink()
    assert len(load(mini_camvid)) == 4
    odd = mini_camvid / "train" / "mini_train_00000.png"
    PIL.Image.open(odd).resize((32, 24)).save(odd)
    with pytest.raises(DataError, match="32×24"):
        load(mini_camvid)


def test_broken_image_is_named_when_it_is_read(mini_camvid):
    broken = mini_camvid / "train" / "mini_train_00002.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    dataset = load(mini_camvid)
    with pytest.raises(DataError, match=r"train/mini_train_00002\.png cannot be read"):
        dataset[2]


def test_decompression_bomb_is_refused(mini_camvid):
    """A file of a few bytes that says it is 30000×30000 pixels."""
    bomb = mini_camvid / "train" / "mini_train_00002.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(DataError, match=r"mini_train_00002\.png cannot be read: it has 900 megapixels, and more than 179 are"):
        load(mini_camvid)


def test_label_outside_the_table_is_named_when_it_is_read(mini_camvid):
    file = mini_camvid / "trainannot" / "mini_train_00002.png"
    raw = np.asarray(PIL.Image.open(file)).copy()
    raw[3, 5] = 77
    PIL.Image.fromarray(raw).save(file)
    for dataset in (load(mini_camvid), load(mini_camvid, streaming=True)):
        with pytest.raises(DataError, match=r"mini_train_00002\.png holds the ids 77"):
            list(dataset)


@pytest.mark.parametrize("streaming", [False, True])
def test_label_space_is_read_from_the_features(mini_camvid, streaming):
    assert label_space_of(load(mini_camvid, streaming=streaming)) is get_label_space("camvid11")


def test_dataset_without_label_map_has_no_label_space():
    with pytest.raises(DataError, match="column 'label_map' is None"):
        label_space_of(datasets.Dataset.from_dict({"text": ["a"]}))


def test_unknown_names_list_the_known(mini_camvid):
    with pytest.raises(DataError, match="Unknown dataset: 'kitti'; known: camvid"):
        load_segmentation_dataset("kitti", mini_camvid, "train")
    with pytest.raises(DataError, match="Unknown split of camvid: 'dev'; known: train, val, test, trainval"):
        load(mini_camvid, "dev")
    with pytest.raises(DataError, match="Unknown label space for camvid: 'voc21'; known: camvid11, camvid32"):
        load(mini_camvid, label_space="voc21")


@pytest.mark.parametrize("options", [{"image_column": "image"}, {"label_column": "label_map"}])
def test_columns_are_for_the_hub_only(mini_camvid, options):
    with pytest.raises(DataError, match="are for the dataset 'hub' only"):
        load(mini_camvid, **options)


def test_several_processes_load_at_once_and_say_nothing(mini_camvid, capfd, monkeypatch):
    # The tests' environment disables progress bars; enable them, as a user has them.
    bars = importlib.import_module("datasets.utils.tqdm")
    monkeypatch.setattr(bars, "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(bars, "_hf_datasets_progress_bars_disabled", False)
    processes = [multiprocessing.get_context("fork").Process(target=_load_all, args=(mini_camvid,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert capfd.readouterr() == ("", "")


def _load_all(data_dir):
    assert [row["image_id"] for row in load(data_dir)] == [f"mini_train_{k:05d}" for k in range(5)]


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_of_another_dataset(mini_camvid, streaming):
    """CamVid as Cityscapes, by the table that joins them; what has no single partner is ignored."""
    own, asked = load(mini_camvid), load(mini_camvid, label_space="cityscapes", streaming=streaming)
    space = get_label_space("cityscapes")
    assert label_space_of(asked).names == space.names
    partner_of = translate(label_space_of(own), space)
    expected = np.array([space.label2id.get(partner_of[name], 255) for name in label_space_of(own).names] + [255] * 245)
    for row, translated in zip(own, asked, strict=True):
        assert np.array_equal(np.array(translated["label_map"]), expected[np.array(row["label_map"])])
    with pytest.raises(DataError, match="Unknown label space for camvid: 'voc21'"):
        load(mini_camvid, label_space="voc21")


def test_what_was_decoded_before_is_not_translated_again(mini_camvid):
    decoded = load(mini_camvid).map(lambda row: {"label_map": row["label_map"]})
    with pytest.raises(DataError, match="hold train ids of 'camvid11' already"):
        in_classes(decoded, get_label_space("cityscapes"))


def test_dataset_with_a_name_of_its_own(mini_camvid):
    seen = load_segmentation_dataset("rainy", mini_camvid, "val", loader="camvid")
    assert [row["label_map"].tobytes() for row in seen] == [row["label_map"].tobytes() for row in load(mini_camvid, "val")]
    with pytest.raises(DataError, match="Unknown split of rainy: 'dev'"):
        load_segmentation_dataset("rainy", mini_camvid, "dev", loader="camvid")


@pytest.mark.parametrize(
    ("name", "loader", "message"),
    [
        ("photos", None, "Unknown dataset: 'photos'; known: camvid, .* hub. A dataset with a name of its own needs a loader"),
        ("photos", "folders", r"Unknown loader: 'folders' \(did you mean folder\?\); known: camvid"),
        ("camvid", "folder", "'camvid' has the loader 'folder': give it a name that is not another loader's"),
        ("../photos", "folder", "'../photos' cannot be a dataset's name"),
        ("", "folder", "'' cannot be a dataset's name"),
    ],
)
def test_bad_names_and_loaders(mini_camvid, name, loader, message):
    with pytest.raises(DataError, match=message):
        load_segmentation_dataset(name, mini_camvid, "val", loader=loader)
