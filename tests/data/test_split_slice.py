import pytest
from hypothesis import given
from hypothesis import strategies as st

from revhrnet_hf.data import load_segmentation_dataset
from revhrnet_hf.data.split_slice import SplitSlice
from revhrnet_hf.errors import DataError

bounds = st.none() | st.integers(-30, 30)


def text(bound):
    return "" if bound is None else str(bound)


@given(bounds, bounds, st.integers(1, 7), st.integers(0, 25))
def test_images_are_those_of_python(start, stop, step, count):
    part = SplitSlice.of_text(f"train[{text(start)}:{text(stop)}:{step}]")
    assert list(part.rows(count)) == list(range(count))[start:stop:step]


@given(st.integers(-100, 100), st.integers(0, 400))
def test_two_parts_in_per_cent_are_the_whole(percent, count):
    first, second = (SplitSlice.of_text(f"train[{bounds}]").rows(count) for bounds in (f":{percent}%", f"{percent}%:"))
    assert [*first, *second] == list(range(count))
    assert abs(len(first if percent >= 0 else second) - count * abs(percent) / 100) <= 0.5


@pytest.mark.parametrize(
    "split", ["train[", "train[3]", "train[a:]", "train[::-1]", "train[:5]x", "[:5]", "train[::0]", "train[:1:2:3]"]
)
def test_other_brackets_are_an_error(split):
    with pytest.raises(DataError, match="slice"):
        SplitSlice.of_text(split)


def test_part_of_a_dataset(mini_camvid):
    def ids(split, **options):
        return load_segmentation_dataset("camvid", mini_camvid, split, **options)["image_id"][:]

    whole = ids("train")
    assert ids("train[::2]") == whole[::2] and ids("train[1:3]") == whole[1:3] and ids("train[-2:]") == whole[-2:]
    assert ids("train[:60%]", label_space="camvid11") + ids("train[60%:]") == whole
    part = load_segmentation_dataset("camvid", mini_camvid, "train[2:3]")
    assert part[0]["image"].size == part[0]["label_map"].size
    with pytest.raises(DataError, match=r"'train\[9:\]' selects none of the 5 images"):
        ids("train[9:]")
    with pytest.raises(DataError, match="cannot be streamed"):
        ids("train[:2]", streaming=True)
    with pytest.raises(DataError, match="Unknown split"):
        ids("trian[:2]")
