import io
import json
import pickle
import sys

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets.table import embed_table_storage

from revhrnet_hf.data import LabelMap, LabelSpace, RgbImage
from revhrnet_hf.data.label_space import LABEL_SPACES
from revhrnet_hf.errors import DataError

from .. import forked

# Translating twice would show: 0 → 1 → 2.
SPACE = LabelSpace("shifted", ("a", "b", "c"), ((0, 0, 0),) * 3, {0: 1, 1: 2, 2: 0, 5: 255})
RAW = np.array([[0, 1, 2], [5, 5, 0]], np.uint8)
TRAIN_IDS = [[1, 2, 0], [255, 255, 1]]


@pytest.fixture(autouse=True)
def shifted_space(monkeypatch):
    monkeypatch.setitem(LABEL_SPACES, SPACE.name, SPACE)


@pytest.fixture
def label_png(tmp_path):
    file = tmp_path / "labels.png"
    PIL.Image.fromarray(RAW).save(file)
    return file


@pytest.fixture
def one_row(label_png):
    columns = datasets.Features({"label_map": LabelMap(label_space="shifted")})
    return datasets.Dataset.from_dict({"label_map": [str(label_png)]}, features=columns)


def ids_of(label_map):
    assert label_map.mode == "L"
    return np.asarray(label_map).tolist()


def test_grey_ids_become_train_ids(one_row):
    assert ids_of(one_row[0]["label_map"]) == TRAIN_IDS


def test_palette_indices_count_not_their_colours(one_row, label_png):
    palette_image = PIL.Image.fromarray(RAW)
    palette_image.putpalette([200, 100, 50] * 256)
    palette_image.save(label_png)
    assert PIL.Image.open(label_png).mode == "P"
    assert ids_of(one_row[0]["label_map"]) == TRAIN_IDS


def test_sixteen_bit_ids(one_row, label_png):
    PIL.Image.fromarray(RAW.astype(np.uint16)).save(label_png)
    assert PIL.Image.open(label_png).mode.startswith("I")
    assert ids_of(one_row[0]["label_map"]) == TRAIN_IDS
    PIL.Image.fromarray(RAW.astype(np.uint16) + 256).save(label_png)
    with pytest.raises(DataError, match="ids 256, 257, 258, 261"):
        one_row[0]


def png(array):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


LARGE = np.tile(RAW, (2, 2))
OF_COLOURS = LabelSpace("coloured", ("a", "b"), ((0, 0, 0),) * 2, {}, raw_colours={(9, 8, 7): 1, (255, 0, 0): 0})
POLYGON = {"id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4]], "iscrowd": 0}
OPENED = {
    "grey": (SPACE, {"path": "raw ids", "bytes": png(LARGE)}),
    "16-bit": (SPACE, {"path": "raw ids", "bytes": png(LARGE.astype(np.uint16))}),
    "decoded before": (SPACE, {"path": None, "bytes": png(LARGE.clip(max=2))}),
    "colours": (OF_COLOURS, {"path": "raw colours", "bytes": png(np.array([[9, 8, 7], [255, 0, 0]], np.uint8)[LARGE % 2])}),
    "annotation": (None, {"path": "json", "bytes": json.dumps({"height": 4, "width": 6, "objects": [POLYGON]}).encode()}),
}


@pytest.mark.parametrize(("space", "value"), OPENED.values(), ids=OPENED)
def test_crop_of_an_opened_file_is_that_of_the_decoded(space, value):
    feature = LabelMap.of(space) if space else LabelMap(label_space="coco81")
    opened, whole = feature.open(value), feature.decode_example(value)
    assert opened.size == whole.size == (6, 4) and len(np.unique(whole)) > 1
    for box in ((0, 0, 6, 4), (1, 1, 4, 3), (5, 0, 6, 1)):
        assert ids_of(opened.crop(box)) == ids_of(whole.crop(box))


def test_unknown_id_names_the_file(one_row, label_png):
    PIL.Image.fromarray(np.array([[0, 9]], np.uint8)).save(label_png)
    with pytest.raises(DataError, match=r"labels\.png holds the ids 9"):
        one_row[0]


def test_map_does_not_translate_twice(one_row):
    mapped = one_row.map(lambda row: {"label_map": row["label_map"].transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)})
    assert mapped.features == one_row.features
    assert ids_of(mapped[0]["label_map"]) == [row[::-1] for row in TRAIN_IDS]
    twice = mapped.map(lambda row: {"label_map": row["label_map"]})
    assert ids_of(twice[0]["label_map"]) == [row[::-1] for row in TRAIN_IDS]


def test_mapped_image_that_holds_no_train_ids_is_refused(one_row):
    mapped = one_row.map(lambda row: {"label_map": PIL.Image.fromarray(np.array([[0, 3]], np.uint8))})
    with pytest.raises(DataError, match=r"ids 3.*has 0–2, 255"):
        mapped[0]


def test_parquet_with_embedded_files_keeps_pixels_and_label_space(one_row, tmp_path):
    # push_to_hub does this to each shard.
    embedded = one_row.with_format("arrow").map(embed_table_storage, batched=True)
    embedded.to_parquet(tmp_path / "embedded.parquet")
    (tmp_path / "labels.png").unlink()
    back = datasets.Dataset.from_parquet(str(tmp_path / "embedded.parquet"))
    assert back.features["label_map"] == LabelMap(label_space="shifted")
    assert ids_of(back[0]["label_map"]) == TRAIN_IDS


def test_save_to_disk_loads_in_another_process(tmp_path):
    file = tmp_path / "labels.png"
    PIL.Image.fromarray(np.array([[3, 11]], np.uint8)).save(file)
    columns = datasets.Features({"label_map": LabelMap(label_space="camvid11")})
    datasets.Dataset.from_dict({"label_map": [str(file)]}, features=columns).save_to_disk(tmp_path / "saved")
    program = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import sys, datasets, revhrnet_hf.data\n"
        "row = datasets.load_from_disk(sys.argv[1])[0]\n"
        "print(list(row['label_map'].tobytes()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "saved")]
    run = forked.run(command, preloaded=forked.BARE, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[3, 255]"


def test_worker_process_reads_and_names_the_broken_file(one_row, label_png):
    loader = torch.utils.data.DataLoader(one_row, batch_size=None, num_workers=1)
    assert [ids_of(row["label_map"]) for row in loader] == [TRAIN_IDS]
    label_png.write_bytes(label_png.read_bytes()[:40])
    with pytest.raises(DataError, match=r"^Label map .*labels\.png cannot be read"):
        list(loader)


def test_pickles(one_row):
    assert ids_of(pickle.loads(pickle.dumps(one_row))[0]["label_map"]) == TRAIN_IDS


@pytest.mark.parametrize("column", ["image", "label_map"])
def test_truncated_file_is_named_wherever_it_ends(column, tmp_path):
    file = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 3, size=(40, 40), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    feature = {"image": RgbImage(), "label_map": LabelMap(label_space="shifted")}[column]
    row = datasets.Dataset.from_dict({column: [str(file)]}, features=datasets.Features({column: feature}))
    # The last 12 bytes only say that the file ends, and 12 more may be the check sum of complete pixels.
    for length in (*range(0, 90), *range(90, len(whole) - 24, 37)):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"broken\.png cannot be read"):
            row[0]
    file.unlink()
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        row[0]


def test_damaged_second_block_is_named(tmp_path):
    file = tmp_path / "damaged.png"
    noise = np.random.default_rng(0).integers(0, 256, size=(200, 200, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(file)
    damaged = file.read_bytes()
    file.write_bytes(damaged[::-1].replace(b"TADI", b"\x00ADI", 1)[::-1])
    assert damaged.count(b"IDAT") == 2
    row = datasets.Dataset.from_dict({"image": [str(file)]}, features=datasets.Features({"image": RgbImage()}))
    with pytest.raises(DataError, match=r"damaged\.png cannot be read \(broken PNG file"):
        row[0]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "RGB"])
def test_every_image_comes_out_rgb(mode, tmp_path):
    file = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    colours = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(colours).convert(mode).save(file)
    row = datasets.Dataset.from_dict({"image": [str(file)]}, features=datasets.Features({"image": RgbImage()}))
    image = row[0]["image"]
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(PIL.Image.open(file).convert("RGB")))
