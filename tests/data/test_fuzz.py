"""Randomly damaged archives and annotations are read correctly or raise a DataError that names the file.

Each case is made of (kind, number) alone, so that one that fails can be run again by itself.
"""

import base64
import copy
import io
import json
import random
import shutil
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pytest
import scipy.io

from revhrnet_hf.data import LabelMap, RgbImage
from revhrnet_hf.data.label_space import find_label_space
from revhrnet_hf.data.listing import check_same_sizes
from revhrnet_hf.data.loading import find_builder
from revhrnet_hf.errors import DataError
from revhrnet_hf.synthetic import write_coco

QUICK, WHOLE = 40, 800  # cases of each kind
ODD_VALUES = (
    None,
    True,
    0,
    -1,
    1,
    3.5,
    255,
    2**31,
    2**63,
    -(2**63),
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "1",
    "x" * 300,
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "🙂",
    "zip://a::b.zip",
    "http://localhost/a.png",
    [],
    {},
    [[]],
    [{}],
    [None],
    [[[[[[1, 2, 3, 4, 5, 6]]]]]],
    {"counts": None},
    {"size": [8, 8], "counts": "0" * 50},
    {"id": 1},
)


def damaged(data, chance):
    """A file with a few bytes changed, taken out, put in, or with its end cut off."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(data) + 1)
        what = chance.randrange(6)
        if what == 0:
            del data[place : place + chance.choice((1, 4, 100))]
        elif what == 1:
            data[place:place] = chance.randbytes(chance.choice((1, 4, 100)))
        elif what == 2 and chance.random() < 0.2:
            del data[place:]
        elif what == 3:
            data[place : place + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        elif place < len(data):
            data[place] ^= 1 << chance.randrange(8)
    return bytes(data)


def places(value, found):
    """Every (container, key) within a value out of JSON."""
    for key in value if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def changed(content, chance):
    """JSON with a few of its values replaced, taken out or put elsewhere."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        found = places(content, [])
        if not found:
            break
        # Prefer a field of a record to one of a polygon's many numbers.
        fields = [entry for entry in found if isinstance(entry[0], dict)]
        container, key = chance.choice(fields if fields and chance.random() < 0.7 else found)
        what = chance.randrange(8)
        if what == 0:
            del container[key]
        elif what == 1:
            other, other_key = chance.choice(found)
            container[key] = copy.deepcopy(other[other_key]) if other_key in other or isinstance(other, list) else None
        else:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
    return content


def read_all(name, folder, split, label_space):
    """Lists, checks and decodes, as loading, training and the audit do."""
    builder, folder, label_space = find_builder(name, folder, label_space)
    samples = builder.list_samples(folder, split, label_space)
    check_same_sizes(samples)
    feature = LabelMap.of(find_label_space(label_space))
    for sample in samples:
        RgbImage().decode_example({"path": sample.image, "bytes": None})
        feature.decode_example({"path": sample.label_map, "bytes": sample.annotation})


@pytest.fixture(scope="module")
def tiny_coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "coco"
    write_coco(folder, {"train": 1, "val": 2}, (24, 32))
    return folder


@pytest.fixture
def archive_case(drawn_once, tmp_path):
    """Damages CamVid's archive, most of the time where its list of members is."""
    source = drawn_once / "segnet"
    files = [*sorted(source.glob("val*/*.png")), source / "val.txt"]

    def pack(kind):
        buffer = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in files:
                    archive.write(file, str(file.relative_to(source)))
        else:
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for file in files:
                    archive.add(file, str(file.relative_to(source)))
        return buffer.getvalue()

    wholes = {kind: pack(kind) for kind in ("zip", "tar")}

    def run(kind, chance):
        folder = tmp_path / f"{chance.getrandbits(64):x}"
        folder.mkdir()
        whole = wholes[kind]
        start = whole.rfind(b"valannot/") - 100 if kind == "zip" and chance.random() < 0.6 else 0
        (folder / f"case.{kind}").write_bytes(whole[:start] + damaged(whole[start:], chance))
        try:
            read_all("camvid", folder, "val", "camvid11")
        finally:
            shutil.rmtree(folder)

    return run


@pytest.fixture
def json_case(tiny_coco, tmp_path):
    """Changes COCO's JSON, of instances or panoptic, or its bytes."""
    folder = shutil.copytree(tiny_coco, tmp_path / "case")

    def run(kind, chance):
        space, name = {"instances": ("coco81", "instances"), "panoptic": ("coco_panoptic133", "panoptic")}.get(
            kind, (None, "instances")
        )
        file = folder / "annotations" / f"{name}_val2017.json"
        whole = (tiny_coco / file.relative_to(folder)).read_bytes()
        if chance.random() < 0.15:
            file.write_bytes(damaged(whole, chance))
        else:
            content = json.loads(whole)
            if len(content["categories"]) > 5 and chance.random() < 0.5:
                content["categories"] = content["categories"][:5]  # so that the rest is changed more often
            if kind == "own":
                content["categories"] = [{**record, "name": f"my {record['name']}"} for record in content["categories"]]
            file.write_text(json.dumps(changed(content, chance)))
        read_all("coco", folder, "val", space or str(file))

    return run


def annotation_case(kind, chance):
    """A stored annotation or MATLAB file, as it lies in a dataset out of somebody else's hands."""
    if kind == "matlab":
        buffer = io.BytesIO()
        label_map = np.arange(48, dtype=np.uint8).reshape(6, 8) % 21
        scipy.io.savemat(buffer, {"GTcls": {"Segmentation": label_map, "Boundaries": [1.0, 2.0]}}, do_compression=False)
        data, space = buffer.getvalue(), "voc21"
        data = data[:6] + damaged(data[6:], chance)
    else:
        record = {"height": 6, "width": 8, "note": {"tool": "x", "version": [1, 2]}, **annotation_drawing(kind)}
        space = "coco81" if kind == "objects" else "coco_panoptic133"
        data = json.dumps(changed(record, chance)).encode()
        data = data[:1] + damaged(data[1:], chance) if chance.random() < 0.2 else data
    LabelMap(label_space=space).decode_example({"path": "the_case", "bytes": data})


def annotation_drawing(kind):
    if kind == "objects":
        polygon = {"id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
        runs = {"id": 2, "category_id": 18, "segmentation": {"size": [6, 8], "counts": [40, 5, 3]}, "iscrowd": 1}
        text = {"id": 3, "category_id": 3, "segmentation": {"size": [6, 8], "counts": "d02j0"}, "iscrowd": 1}
        box = {"id": 4, "category_id": 2, "segmentation": [], "bbox": [1, 1, 2, 2.5]}
        return {"objects": [polygon, runs, text, box]}
    png = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (7, 0, 0)).save(png, "PNG")
    return {"segments": [[7, 1], [9, 18]], "png_base64": base64.b64encode(png.getvalue()).decode()}


def outcome(run, kind, number, names):
    """Whether a case gave a result; a failure of the test for any error but a DataError that names the file."""
    try:
        run(kind, random.Random(f"{kind} {number}"))
    except DataError as error:
        assert any(name in str(error) for name in names), (kind, number, str(error))
        str(error).encode()  # the message must be printable
        return False
    except Exception as error:
        raise AssertionError(f"case {kind} {number}") from error
    return True


def check_cases(run, kind, count, names):
    results = [outcome(run, kind, number, names) for number in range(count)]
    assert 0 < sum(results) < count  # some are whole, some are not: the damage is neither nothing nor everything


COUNTS = [QUICK, pytest.param(WHOLE, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives(archive_case, tmp_path, kind, count):
    check_cases(archive_case, kind, count, [str(tmp_path)])  # if a name in the list is damaged, the folder lacks something


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["instances", "panoptic", "own"])
def test_changed_coco_annotations(json_case, kind, count):
    check_cases(json_case, kind, count, ["_val2017"])


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["objects", "segments", "matlab"])
def test_changed_stored_annotations(kind, count):
    check_cases(annotation_case, kind, count, ["the_case"])
