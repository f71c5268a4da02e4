"""Tables, sizes and the order of names."""

from revhrnet_hf.text import aligned, natural_order, size_on_disk


def test_columns_stand_below_each_other():
    lines = aligned([["name", ">IoU %", "how"], ["road", "98.5", "whole"], ["a long name", "7"]])
    assert lines == ["name         IoU %  how", "road          98.5  whole", "a long name      7"]
    assert aligned([["only", ">titles"]]) == ["only  titles"]


def test_small_sizes_are_not_zero():
    assert list(map(size_on_disk, (12.345, 0.1, 0.0999, 1e-7, 0))) == ["12.35 GiB", "0.10 GiB", "103 MiB", "1 MiB", "0 MiB"]


def test_names_are_sorted_by_their_numbers():
    names = ["a", "b/frame_2", "b/frame_10", "b/frame_010", "b/frame_10b", "1", "02", "x²", "x٣", "x12", ""]
    in_order = ["", "1", "02", "a", "b/frame_2", "b/frame_010", "b/frame_10", "b/frame_10b", "x٣", "x12", "x²"]
    assert sorted(names, key=natural_order) == sorted(reversed(names), key=natural_order) == in_order
