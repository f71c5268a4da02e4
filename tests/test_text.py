"""Tables and sizes as plain text."""

from revhrnet_hf.text import aligned, size_on_disk


def test_columns_stand_below_each_other():
    lines = aligned([["name", ">IoU %", "how"], ["road", "98.5", "whole"], ["a long name", "7"]])
    assert lines == ["name         IoU %  how", "road          98.5  whole", "a long name      7"]
    assert aligned([["only", ">titles"]]) == ["only  titles"]


def test_small_sizes_are_not_zero():
    assert list(map(size_on_disk, (12.345, 0.1, 0.0999, 1e-7, 0))) == ["12.35 GiB", "0.10 GiB", "103 MiB", "1 MiB", "0 MiB"]
