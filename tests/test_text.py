"""Tables as plain text."""

from revhrnet_hf.text import aligned


def test_columns_stand_below_each_other():
    lines = aligned([["name", ">IoU %", "how"], ["road", "98.5", "whole"], ["a long name", "7"]])
    assert lines == ["name         IoU %  how", "road          98.5  whole", "a long name      7"]
    assert aligned([["only", ">titles"]]) == ["only  titles"]
