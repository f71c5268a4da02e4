"""The tables that join label spaces: complete, and read in both directions."""

import pytest

from revhrnet_hf.data import get_label_space
from revhrnet_hf.data.label_space import label_space_of_names
from revhrnet_hf.data.translation import TABLES, are_joined, partners, sources_of
from revhrnet_hf.errors import DataError


@pytest.mark.parametrize(("source", "target"), TABLES, ids=" → ".join)
def test_tables_are_complete(source, target):
    """Each class of the source stands in exactly one place, each class of the target has a row that is not empty."""
    source, target, table = get_label_space(source), get_label_space(target), TABLES[source, target]
    named = [name for names in table.values() for name in names]
    assert sorted(named) == sorted(source.names)
    assert set(table) - {None} == set(target.names)
    assert all(table.values())


def named(source, target):
    """Partners by name."""
    source, target = get_label_space(source), get_label_space(target)
    return {
        name: None if partner is None else target.names[partner]
        for name, partner in zip(source.names, partners(source, target), strict=True)
    }


def test_forwards():
    assert named("cityscapes19", "camvid11")["truck"] == "Car"
    assert named("mapillary65", "cityscapes19")["Curb"] == "sidewalk"
    assert named("mapillary65", "cityscapes19")["Trailer"] is None
    voc = named("coco81", "voc21")
    assert (voc["couch"], voc["zebra"], voc["background"]) == ("sofa", "background", "background")


def test_backwards_where_one_is_meant():
    cityscapes = named("camvid11", "cityscapes19")
    assert (cityscapes["Road"], cityscapes["Pedestrian"]) == ("road", "person")
    assert cityscapes["Car"] is None  # car, truck, bus or train
    coco = named("voc21", "coco81")
    assert (coco["sofa"], coco["background"]) == ("couch", "background")


def test_same_classes_under_another_name():
    coco = get_label_space("coco_voc21")
    assert partners(coco, get_label_space("voc21")) == tuple(range(21))
    assert are_joined(coco, get_label_space("voc21"))


def test_others_are_joined_by_equal_names():
    own, other = label_space_of_names(["Tree", "My Thing", "ROAD"]), get_label_space("cityscapes19")
    assert partners(own, other) == (None, None, 0)
    assert not are_joined(own, other)
    with pytest.raises(DataError, match=r"No class of 'unnamed' has a partner in 'cityscapes19'.*mapillary65 → cityscapes19"):
        partners(label_space_of_names(["a", "b"]), other)


def test_sources_are_the_partners_turned_round():
    source, target = get_label_space("mapillary65"), get_label_space("cityscapes19")
    sources = sources_of(source, target)
    assert len(sources) == 19
    for train_id, partner in enumerate(partners(source, target)):
        assert [train_id in of for of in sources] == [partner == wanted for wanted in range(19)]


def test_known_names_are_recognised():
    assert label_space_of_names(get_label_space("cityscapes19").names) is get_label_space("cityscapes19")
