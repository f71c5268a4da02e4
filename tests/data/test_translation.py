"""The tables that join label spaces: complete, and read in both directions."""

import dataclasses

import pytest

from revhrnet_hf.data import get_label_space
from revhrnet_hf.data.label_space import classes_of_names
from revhrnet_hf.data.translation import TABLES, are_joined, sources_of, translate
from revhrnet_hf.errors import DataError

from ..label_spaces import unnamed_space


@pytest.mark.parametrize(("source", "target"), TABLES, ids=" → ".join)
def test_tables_are_complete(source, target):
    """Each class of the source stands in exactly one place, each class of the target has a row that is not empty."""
    source, target, table = get_label_space(source), get_label_space(target), TABLES[source, target]
    named = [name for names in table.values() for name in names]
    assert sorted(named) == sorted(source.names)
    assert set(table) - {None} == set(target.names)
    assert all(table.values())


def named(source, target):
    return translate(get_label_space(source), get_label_space(target))


def test_forwards():
    assert named("cityscapes", "camvid11")["truck"] == "Car"
    assert named("mapillary_vistas_v1.2", "cityscapes")["Curb"] == "sidewalk"
    assert named("mapillary_vistas_v1.2", "cityscapes")["Trailer"] is None
    voc = named("coco81", "voc21")
    assert (voc["couch"], voc["zebra"], voc["background"]) == ("sofa", "background", "background")


def test_backwards_where_one_is_meant():
    cityscapes = named("camvid11", "cityscapes")
    assert (cityscapes["Road"], cityscapes["Pedestrian"]) == ("road", "person")
    assert cityscapes["Car"] is None  # car, truck, bus or train
    coco = named("voc21", "coco81")
    assert (coco["sofa"], coco["background"]) == ("couch", "background")


def test_through_a_space_between():
    """v2.0 → v1.2 → Cityscapes, and panoptic COCO → COCO → VOC, as if one table stood for two."""
    for ends, middle in (
        (("mapillary_vistas_v2.0", "cityscapes"), "mapillary_vistas_v1.2"),
        (("mapillary_vistas_v2.0", "camvid11"), "mapillary_vistas_v1.2"),
        (("coco_panoptic133", "voc21"), "coco81"),
    ):
        into, onwards = named(ends[0], middle), named(middle, ends[1])
        assert named(*ends) == {name: partner and onwards[partner] for name, partner in into.items()}
        assert are_joined(*map(get_label_space, ends))
    assert named("mapillary_vistas_v2.0", "cityscapes")["Lane Marking - Stop Line"] == "road"
    assert named("cityscapes", "mapillary_vistas_v2.0")["sky"] == "Sky"
    assert named("coco_panoptic133", "voc21")["grass-merged"] == "background"


def test_camvids_classes_are_merged_as_its_label_maps_are():
    merged, own = get_label_space("camvid11"), get_label_space("camvid32")
    by_colour = {
        own.names[train_id]: merged.id2label.get(merged.raw_colours[colour])
        for colour, train_id in own.raw_colours.items()
        if train_id != 255
    }
    assert named("camvid32", "camvid11") == by_colour


def test_same_classes():
    voc = get_label_space("voc21")
    renamed = dataclasses.replace(voc, name="my voc")
    assert translate(renamed, voc) == {name: name for name in voc.names}
    assert are_joined(renamed, voc)


def test_others_are_joined_by_equal_names():
    own, other = unnamed_space(["Tree", "My Thing", "ROAD"]), get_label_space("cityscapes")
    assert translate(own, other) == {"Tree": None, "My Thing": None, "ROAD": "road"}
    assert not are_joined(own, other)
    with pytest.raises(
        DataError, match=r"No class of 'unnamed' has a partner in 'cityscapes'.*mapillary_vistas_v1\.2 → cityscapes"
    ):
        translate(unnamed_space(["a", "b"]), other)


def test_sources_are_the_partners_turned_round():
    source, target = get_label_space("mapillary_vistas_v1.2"), get_label_space("cityscapes")
    sources = sources_of(source, target)
    assert len(sources) == 19
    for train_id, partner in enumerate(translate(source, target).values()):
        assert [train_id in of for of in sources] == [partner == wanted for wanted in target.names]


def test_known_names_are_recognised():
    assert classes_of_names(get_label_space("cityscapes").names) is get_label_space("cityscapes")
