"""Test splits whose label maps the publishers keep: images alone, and only where they were asked for."""

import shutil

import pytest

from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.errors import AbsentSplitError, DataError
from revhrnet_hf.synthetic import write_pascal_voc


def test_images_without_label_maps(mini_cityscapes):
    shutil.copytree(mini_cityscapes / "leftImg8bit" / "val", mini_cityscapes / "leftImg8bit" / "test")
    rows = load_segmentation_dataset("cityscapes", mini_cityscapes, "test", unlabelled=True)
    labelled = load_segmentation_dataset("cityscapes", mini_cityscapes, "val", unlabelled=True)
    assert [row["label_map"] for row in rows] == [None, None]
    assert all(row["label_map"] is not None for row in labelled)
    assert [row["image"].tobytes() for row in rows] == [row["image"].tobytes() for row in labelled]
    assert rows["image_id"] == labelled["image_id"]
    with pytest.raises(
        AbsentSplitError, match="'test' has no label maps, its publisher keeps them; splits with labels: train, val"
    ):
        load_segmentation_dataset("cityscapes", mini_cityscapes, "test")


def test_what_is_not_there_is_named(mini_cityscapes, mini_vistas, tmp_path):
    with pytest.raises(AbsentSplitError, match="it needs leftImg8bit/test/"):
        load_segmentation_dataset("cityscapes", mini_cityscapes, "test", unlabelled=True)
    vistas = mini_vistas("v1.2")
    with pytest.raises(AbsentSplitError, match="it needs testing/images/"):
        load_segmentation_dataset("mapillary_vistas", vistas, "test", unlabelled=True)
    (vistas / "testing" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"testing/images holds no \.jpg"):
        load_segmentation_dataset("mapillary_vistas", vistas, "test", unlabelled=True)
    write_pascal_voc(tmp_path / "voc", {"train": 1, "val": 1}, (48, 64))
    with pytest.raises(AbsentSplitError, match=r"test\.txt is missing"):
        load_segmentation_dataset("pascal_voc", tmp_path / "voc", "test", unlabelled=True)
    lists = next((tmp_path / "voc").rglob("Segmentation"))
    (lists / "test.txt").write_text("2008_000001\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of 1 images of PASCAL VOC's 'test' are not in .*2008_000001\.jpg first"):
        load_segmentation_dataset("pascal_voc", tmp_path / "voc", "test", unlabelled=True)
